"""Chains of ledger entries and their heads, without a database."""

from ml_platform.records.canonical import now
from ml_platform.records.ledger import GENESIS, LedgerEntry, LedgerHead
from ml_platform.storage import ledger_anchor

Stored = list[tuple[LedgerEntry, str]]


def entry(sequence: int, previous_digest: str = GENESIS, model: str = "visits") -> LedgerEntry:
    """Return a promotion, the entry of a number."""
    return LedgerEntry(
        model=model,
        sequence=sequence,
        action="promotion",
        version=sequence,
        previous_version=sequence - 1 or None,
        candidate=f"candidate-{sequence}",
        verdict_digest="0" * 64,
        reason="schedule",
        actor="test",
        recorded_at=now(),
        details={"approval": None},
        previous_digest=previous_digest,
    )


def chain(length: int, model: str = "visits") -> Stored:
    """Return a chain of `length` entries with their digests, as they are stored."""
    entries: list[LedgerEntry] = []
    for sequence in range(1, length + 1):
        entries.append(entry(sequence, entries[-1].digest if entries else GENESIS, model))
    return [(each, each.digest) for each in entries]


def heads(stored: Stored) -> list[LedgerHead]:
    """Return an anchor's heads of stored entries."""
    return [ledger_anchor.make_ledger_head(each) for each, _ in stored]
