"""Verification of the ledger: the digests that chain its entries, and the anchors of its head outside the database."""

from collections.abc import Iterable, Sequence

from ml_platform.records.ledger import GENESIS, Action, LedgerEntry, LedgerHead

# The names of the anchors in messages.
LOG, MLFLOW = "the log of heads", "MLflow"

Stored = Sequence[tuple[LedgerEntry, str]]


def chain_problems(stored: Stored) -> list[str]:
    """Return the signs of tampering in a chain of entries; empty if every link holds.

    Parameters
    ----------
    stored : sequence of (LedgerEntry, str)
        All entries by sequence, each with its stored digest.
    """
    problems, sequence, digest = [], 0, GENESIS
    for entry, stored_digest in stored:
        # guard: ledger-gap
        if entry.sequence != sequence + 1:
            problems.append(f"between entry {sequence} and entry {entry.sequence} something was removed")
        # guard: ledger-edit
        if entry.digest != stored_digest:
            problems.append(f"entry {entry.sequence} was changed: its digest is not the stored one")
        # guard: ledger-link
        if entry.previous_digest != digest:
            problems.append(f"entry {entry.sequence} does not follow entry {sequence} by digest")
        sequence, digest = entry.sequence, stored_digest
    return problems


def anchor_problems(where: str, heads: Iterable[LedgerHead], stored: Stored) -> list[str]:
    """Return the entries of an anchor that the ledger contradicts, as sentences; empty if the ledger extends them."""
    digests = {entry.sequence: digest for entry, digest in stored}
    last, problems = max(digests, default=0), []
    for head in heads:
        # guard: ledger-tail
        if head.sequence > last:
            problems.append(f"{where} saw entry {head.sequence}, and the ledger ends with {last}: its tail was cut off")
        # guard: ledger-other-entry
        elif digests.get(head.sequence) != head.digest:
            problems.append(f"{where} saw another entry {head.sequence} than the ledger holds")
    return problems


def unanchored(heads: Iterable[LedgerHead], stored: Stored) -> list[LedgerEntry]:
    """Return the ledger's entries after the last one that an anchor has recorded."""
    last = max((head.sequence for head in heads), default=0)
    return [entry for entry, _ in stored if entry.sequence > last]


def anchor_gaps(heads: Iterable[LedgerHead]) -> list[int]:
    """Return the numbers up to the last logged entry that a log of heads does not hold: their lines were removed."""
    logged = {head.sequence for head in heads}
    return [number for number in range(1, max(logged, default=0)) if number not in logged]


def late_anchors(anchors: dict[str, list[LedgerHead]], stored: Stored) -> tuple[list[str], list[str]]:
    """Return the anchors that are behind the ledger, and those whose records were removed, as sentences.

    The platform writes the log before MLflow's tag, and both after each confirmation: a log behind MLflow, and an empty
    anchor of a ledger with a confirmed decision, had records before.
    """
    behind, gone = list[str](), list[str]()
    last = {where: max((head.sequence for head in heads), default=0) for where, heads in anchors.items()}
    confirmed = any(entry.action == Action.CONFIRMATION for entry, _ in stored)
    for where, heads in anchors.items():
        if late := unanchored(heads, stored):
            behind.append(f"{where} has not seen the last {len(late)} of {len(stored)} entries")
        if confirmed and not heads:
            gone.append(
                f"{where} holds no entry: its records were deleted, or their process ended before it wrote them"
            )
        elif where == LOG and last[LOG] < last.get(MLFLOW, 0):
            gone.append(f"{LOG} ends with entry {last[LOG]}, and MLflow saw entry {last[MLFLOW]}: its end was deleted")
        elif where == LOG and (gaps := anchor_gaps(heads)):
            gone.append(f"{LOG} holds no line for entry {gaps[0]}: lines were deleted")
    return behind, gone
