"""A log of ledger heads outside the database, which reveals a truncated or rewritten ledger."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ml_platform.errors import LedgerError
from ml_platform.records.canonical import canonical_json
from ml_platform.records.ledger import LedgerEntry, LedgerHead


def make_ledger_head(entry: LedgerEntry) -> LedgerHead:
    """Return the head that an anchor stores for an entry."""
    return LedgerHead(model=entry.model, sequence=entry.sequence, digest=entry.digest)


class LedgerAnchor:
    """A file outside the database with one JSON line for every entry of every ledger.

    Parameters
    ----------
    path : Path
        The file; it need not exist, and is only appended to. A copy on another host is proof, too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def heads(self, model: str) -> list[LedgerHead]:
        """Return the logged heads of a model's ledger, in the order of the lines.

        Raises
        ------
        LedgerError
            A line is not in the platform's format. An unterminated last line, left by a crash, is ignored.
        """
        return [head for head in self._read_heads() if head.model == model]

    def models(self) -> list[str]:
        """Return the models with a logged head, sorted."""
        return sorted({head.model for head in self._read_heads()})

    def _read_heads(self) -> list[LedgerHead]:
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        heads = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                head = LedgerHead(model=str(row["model"]), sequence=int(row["sequence"]), digest=str(row["digest"]))
            except (ValueError, TypeError, KeyError) as error:
                raise LedgerError(
                    f"Line {number} of {self.path} was changed: it is not what the platform wrote. Restore the file "
                    "from a copy."
                ) from error
            heads.append(head)
        return heads

    def append(self, entries: Sequence[LedgerEntry]) -> None:
        """Append entries and flush them to the disk.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        if not entries:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = ""
        for entry in entries:
            head, time = make_ledger_head(entry), entry.recorded_at.isoformat()
            row = {"model": head.model, "sequence": head.sequence, "digest": head.digest, "recorded_at": time}
            lines += f"{canonical_json(row)}\n"
        # Unbuffered: a single write, so that two processes never mix their lines.
        with self.path.open("ab+", buffering=0) as file:
            _drop_torn_line(file.fileno())
            file.write(lines.encode())
            os.fsync(file.fileno())


def _drop_torn_line(descriptor: int) -> None:
    """Cut off an unterminated last line: its writer was killed before it reported success."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 4096, max(0, size - 4096))
    if tail and not tail.endswith(b"\n"):
        os.ftruncate(descriptor, size - len(tail) + tail.rfind(b"\n") + 1)
