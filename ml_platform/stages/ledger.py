"""The ledger's proof: digests that chain its entries, and anchors outside the database that saw how far it went."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ml_platform.errors import LedgerError
from ml_platform.records import GENESIS, LedgerEntry, LedgerHead, canonical_json

Stored = Sequence[tuple[LedgerEntry, str]]


def head_of(entry: LedgerEntry) -> LedgerHead:
    """Return what an anchor says of an entry."""
    return LedgerHead(model=entry.model, sequence=entry.sequence, digest=entry.digest)


def chain_problems(stored: Stored) -> list[str]:
    """Return what shows that a chain is not as it was written; empty if every link holds.

    Parameters
    ----------
    stored : sequence of (LedgerEntry, str)
        All entries by sequence, each with the digest that it was stored under.
    """
    problems, sequence, digest = [], 0, GENESIS
    for entry, stored_digest in stored:
        if entry.sequence != sequence + 1:
            problems.append(f"between entry {sequence} and entry {entry.sequence} something was removed")
        if entry.digest != stored_digest:
            problems.append(f"entry {entry.sequence} was changed: its digest is not the stored one")
        if entry.previous_digest != digest:
            problems.append(f"entry {entry.sequence} does not follow entry {sequence} by digest")
        sequence, digest = entry.sequence, stored_digest
    return problems


def anchor_problems(where: str, heads: Iterable[LedgerHead], stored: Stored) -> list[str]:
    """Return what an anchor saw that the ledger does not hold; empty if the ledger extends what it saw."""
    digests = {entry.sequence: digest for entry, digest in stored}
    last, problems = max(digests, default=0), []
    for head in heads:
        if head.sequence > last:
            problems.append(f"{where} saw entry {head.sequence}, and the ledger ends with {last}: its tail was cut off")
        elif digests.get(head.sequence) != head.digest:
            problems.append(f"{where} saw another entry {head.sequence} than the ledger holds")
    return problems


def unanchored(heads: Iterable[LedgerHead], stored: Stored) -> list[LedgerEntry]:
    """Return the entries that an anchor has not seen yet: those behind the last one that it saw."""
    seen = max((head.sequence for head in heads), default=0)
    return [entry for entry, _ in stored if entry.sequence > seen]


class HeadsLog:
    """A file with one JSON line for every entry of every ledger, outside the database.

    Parameters
    ----------
    path : Path
        It need not exist; it is only ever appended to. Ship it elsewhere and the proof holds for that copy.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def heads(self, model: str) -> list[LedgerHead]:
        """Return what was logged of a model's ledger, in the order of the lines.

        Raises
        ------
        LedgerError
            A line is not what the platform writes. A last line without its end was cut off by a crash and is none.
        """
        return [head for head in self._all() if head.model == model]

    def models(self) -> list[str]:
        """Return the models of which something was logged, sorted."""
        return sorted({head.model for head in self._all()})

    def _all(self) -> list[LedgerHead]:
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        return [self._head(number, line) for number, line in enumerate(lines, start=1)]

    def _head(self, number: int, line: bytes) -> LedgerHead:
        try:
            row = json.loads(line)
            return LedgerHead(model=str(row["model"]), sequence=int(row["sequence"]), digest=str(row["digest"]))
        except (ValueError, TypeError, KeyError) as error:
            raise LedgerError(
                f"Line {number} of {self.path} was changed: it is not what the platform wrote."
            ) from error

    def append(self, entries: Sequence[LedgerEntry]) -> None:
        """Append entries; they are on the disk when this returns.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        if not entries:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{canonical_json(_line(entry))}\n" for entry in entries).encode()
        # Unbuffered: one write, so that two processes never mix their lines.
        with self.path.open("ab+", buffering=0) as file:
            _drop_torn_line(file.fileno())
            file.write(lines)
            os.fsync(file.fileno())


def _line(entry: LedgerEntry) -> dict[str, str | int]:
    head = head_of(entry)
    time = entry.recorded_at.isoformat()
    return {"model": head.model, "sequence": head.sequence, "digest": head.digest, "recorded_at": time}


def _drop_torn_line(descriptor: int) -> None:
    """Cut off a last line that a crash left without its end: nobody was told that it was written."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 4096, max(0, size - 4096))
    if tail and not tail.endswith(b"\n"):
        os.ftruncate(descriptor, size - len(tail) + tail.rfind(b"\n") + 1)
