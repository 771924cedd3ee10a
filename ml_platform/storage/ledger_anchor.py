"""A log of ledger heads and verdicts outside the database, which reveals a truncated or rewritten record."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_platform.errors import LedgerError
from ml_platform.records.canonical import canonical_json
from ml_platform.records.ledger import LedgerEntry, LedgerHead
from ml_platform.records.verdict import Verdict


def make_ledger_head(entry: LedgerEntry) -> LedgerHead:
    """Return the head that an anchor stores for an entry."""
    return LedgerHead(model=entry.model, sequence=entry.sequence, digest=entry.digest)


class LoggedVerdict(NamedTuple):
    """A verdict's line: the model, the candidate and the verdict's digest."""

    model: str
    candidate: str
    verdict: str


class LedgerAnchor:
    """A file outside the database with one JSON line for every entry of every ledger and for every verdict.

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
        return [line for line in self._read_lines() if isinstance(line, LedgerHead) and line.model == model]

    def verdicts(self, model: str) -> dict[str, list[str]]:
        """Return the digests of a model's logged verdicts by candidate, in the order of the lines.

        Raises
        ------
        LedgerError
            As `heads`.
        """
        logged = dict[str, list[str]]()
        for line in self._read_lines():
            if isinstance(line, LoggedVerdict) and line.model == model:
                logged.setdefault(line.candidate, []).append(line.verdict)
        return logged

    def models(self) -> list[str]:
        """Return the models with a logged head, sorted."""
        return sorted({line.model for line in self._read_lines() if isinstance(line, LedgerHead)})

    def _read_lines(self) -> "list[LedgerHead | LoggedVerdict]":
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        read = list[LedgerHead | LoggedVerdict]()
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if "verdict" in row:
                    read.append(LoggedVerdict(*(str(row[name]) for name in ("model", "candidate", "verdict"))))
                    continue
                head = LedgerHead(model=str(row["model"]), sequence=int(row["sequence"]), digest=str(row["digest"]))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise LedgerError(
                    f"Line {number} of {self.path} was changed: it is not what the platform wrote. Restore the file "
                    "from a copy."
                ) from error
            read.append(head)
        return read

    def append(self, entries: Sequence[LedgerEntry]) -> None:
        """Append entries and flush them to the disk.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        rows = []
        for entry in entries:
            head, time = make_ledger_head(entry), entry.recorded_at.isoformat()
            rows.append({"model": head.model, "sequence": head.sequence, "digest": head.digest, "recorded_at": time})
        self._write_lines(rows)

    def append_verdict(self, verdict: Verdict) -> None:
        """Append a verdict and flush it to the disk; appending it twice changes nothing.

        Raises
        ------
        OSError
            The file cannot be written.
        LedgerError
            As `heads`.
        """
        if verdict.digest not in self.verdicts(verdict.model).get(verdict.candidate, []):
            self._write_lines([{"model": verdict.model, "candidate": verdict.candidate, "verdict": verdict.digest}])

    def _write_lines(self, rows: Sequence[dict[str, Any]]) -> None:
        if not rows:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{canonical_json(row)}\n" for row in rows)
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
