"""Records of a server's admin port: its calls, and each rollback until the ledger contains it.

All are files of JSON lines, appended to and synced to disk before the caller gets its response. A last line without a
newline was cut off by a crash; its caller got no response, so it is ignored. A disk that is full or read-only must not
prevent a rollback: the journal keeps it in memory and stores it later.
"""

import contextlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ml_platform.errors import StorageError
from ml_platform.records.canonical import canonical_json, now
from ml_platform.storage import atomic_files

log = logging.getLogger("ml_platform.serving")

CHANGES_FILE, READS_FILE, REFUSED_FILE = "admin.jsonl", "admin-reads.jsonl", "admin-refused.jsonl"
JOURNAL_FILE = "journal.jsonl"
# Callers must not fill the disk: of each file one older one is kept, no more.
MAX_BYTES = 16 * 2**20
# Part of a file that is read for its last lines; a line has at most about 1,500 bytes.
TAIL_BYTES = 4 * 2**20
# Callers without a token must not occupy the disk either: further refusals of a caller are counted, not recorded.
MAX_REFUSALS, SECONDS_OF_REFUSALS = 50, 10.0


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """A rollback that an admin port carried out.

    Parameters
    ----------
    id : str
    to, leaves : int
        The version that gets all traffic after the rollback, and the champion before it.
    decision : int
        Sequence of the ledger's entry that made that champion: a newer entry overtakes the rollback.
    reason, actor, at : str
        The reason, the caller, and the time in UTC (ISO 8601).
    closed : str
        The outcome: the ledger's entry, or the reason why the ledger does not contain it; empty while it is open.
    """

    id: str
    to: int
    leaves: int
    decision: int
    reason: str
    actor: str
    at: str
    closed: str = ""


class Journal:
    """The rollbacks of one host's server.

    Parameters
    ----------
    folder : Path

    Attributes
    ----------
    unstored : list of Rollback
        Appended rollbacks that are only in memory, because the disk refused them.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL_FILE
        self.unstored: list[Rollback] = []

    def entries(self) -> list[Rollback]:
        """Return all rollbacks in their present state, oldest first."""
        entries: dict[str, Rollback] = {}
        for line in [*read_lines(self.path), *map(asdict, self.unstored)]:
            with contextlib.suppress(TypeError):  # an edited line with other fields
                entry = Rollback(**line)
                entries[entry.id] = entry
        return list(entries.values())

    def open_entry(self) -> Rollback | None:
        """Return the newest rollback without an outcome; ``None`` if all are closed."""
        return next((entry for entry in reversed(self.entries()) if not entry.closed), None)

    def append(self, entry: Rollback) -> None:
        """Append a rollback; it is synced to disk when this returns, unless the disk refuses it: see `unstored`."""
        self.unstored.append(entry)
        self.store()

    def store(self) -> None:
        """Write the rollbacks that the disk refused before."""
        try:
            while self.unstored:
                append_line(self.path, asdict(self.unstored[0]))
                del self.unstored[0]
        except StorageError as error:
            log.warning("%s rollbacks are only in memory: %s", len(self.unstored), error)

    def close(self, entry: Rollback, outcome: str, decision: int) -> None:
        """Record the outcome of a rollback, and update the others that are open.

        Older ones are closed: this one replaces them. Newer ones were requested while this one was being written to
        the ledger: they leave the champion that it made.

        Parameters
        ----------
        entry : Rollback
        outcome : str
        decision : int
            Sequence of the ledger's entry that made the present champion.
        """
        others = [other for other in self.entries() if not other.closed and other.id != entry.id]
        for other in others:
            later = other.at > entry.at
            replaced = f"replaced by rollback {entry.id}"
            self.append(replace(other, decision=decision) if later else replace(other, closed=replaced))
        self.append(replace(entry, closed=outcome))


class CallFile:
    """A file of calls with a bounded size.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._older = path.with_suffix(".jsonl.1")

    def append(self, call: Mapping[str, Any]) -> None:
        """Append a call, or the outcome of the call with the same ``id``; it is synced to disk when this returns.

        Raises
        ------
        StorageError
            It could not be written.
        """
        with atomic_files.raise_storage_errors(self.path.parent):
            if self.path.exists() and self.path.stat().st_size > MAX_BYTES:
                self.path.replace(self._older)
        append_line(self.path, call)

    def last(self, count: int) -> list[dict[str, Any]]:
        """Return at most `count` of the last calls with their outcomes, oldest first."""
        calls: dict[Any, dict[str, Any]] = {}
        for number, line in enumerate(read_lines(self._older, TAIL_BYTES) + read_lines(self.path, TAIL_BYTES)):
            calls.setdefault(line.get("id", number), {}).update(line)
        return list(calls.values())[-count:]


class AdminAuditLog:
    """The calls of an admin port, in three files: reads and refused calls never displace a change.

    Parameters
    ----------
    folder : Path
    clock : callable
        Returns monotonic seconds.

    Attributes
    ----------
    changes, reads : CallFile
        Permitted calls that need the operator's scope, and permitted calls that only read.
    refused : CallFile
        Refused calls: at most `MAX_REFUSALS` of one token's holder, or of all callers without a known token, in
        `SECONDS_OF_REFUSALS`. A line with ``omitted`` has the number of further ones.
    omitted : int
        Number of refused calls that no line counts yet.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.changes = CallFile(folder / CHANGES_FILE)
        self.reads = CallFile(folder / READS_FILE)
        self.refused = CallFile(folder / REFUSED_FILE)
        self.omitted = 0
        self._clock = clock
        self._window, self._refusals = 0.0, Counter[Any]()

    def append_refusal(self, call: Mapping[str, Any]) -> None:
        """Append a refused call, or count it if its caller is refused too often.

        Raises
        ------
        StorageError
            It could not be written.
        """
        if self._clock() >= self._window:
            self.store_omitted()
            self._window, self._refusals = self._clock() + SECONDS_OF_REFUSALS, Counter()
        self._refusals[call["caller"]] += 1
        if self._refusals[call["caller"]] > MAX_REFUSALS:
            self.omitted += 1
            return
        self.refused.append(call)

    def last(self, count: int) -> dict[str, Any]:
        """Return at most `count` of the last calls of each file, and the number of refused calls without a line."""
        calls = {"changes": self.changes, "reads": self.reads, "refused": self.refused}
        return {**{name: file.last(count) for name, file in calls.items()}, "refused_without_line": self.omitted}

    def store_omitted(self) -> None:
        """Write the number of refused calls that were left out, once a period; a full disk delays only that."""
        if self.omitted and self._clock() >= self._window:
            with contextlib.suppress(StorageError):
                self.refused.append({"at": now().isoformat(), "allowed": False, "omitted": self.omitted})
                self.omitted = 0


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line of JSON to a file; it is synced to disk when this returns.

    Raises
    ------
    StorageError
        It could not be written.
    """
    with atomic_files.raise_storage_errors(path.parent):
        atomic_files.make_folder(path.parent)
        with path.open("ab+", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            tail = os.pread(file.fileno(), 65_536, max(0, size - 65_536))
            if tail and not tail.endswith(b"\n"):  # a crash cut off the last line
                os.ftruncate(file.fileno(), size - len(tail) + tail.rfind(b"\n") + 1)
            file.write(f"{canonical_json(dict(line))}\n".encode())
            os.fsync(file.fileno())


def read_lines(path: Path, max_bytes: int | None = None) -> list[dict[str, Any]]:
    """Return the complete lines of a file of JSON objects; empty if there is no file. Other lines are left out.

    Parameters
    ----------
    path : Path
    max_bytes : int or None
        Number of bytes at the file's end to read; ``None`` reads the whole file.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(0 if max_bytes is None else max(0, path.stat().st_size - max_bytes))
        lines = map(_parse_line, file.read().split(b"\n")[:-1])
    return [line for line in lines if isinstance(line, dict)]


def _parse_line(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # damaged by the disk, or edited
        return None


def set_invalid_lines_aside(path: Path) -> None:
    """Copy a file of JSON lines to ``<name>.invalid`` if some of its lines are invalid, and keep the valid ones.

    Raises
    ------
    StorageError
        The disk refused it; the file is unchanged, and its invalid lines are ignored.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    valid = [line for line in lines if isinstance(_parse_line(line), dict)]
    if len(valid) < len(lines):
        aside = path.with_name(f"{path.name}.invalid")
        atomic_files.write(aside, path.read_bytes())
        atomic_files.write(path, b"".join(line + b"\n" for line in valid))
        log.warning("%s had %s invalid lines; the old file is now %s", path, len(lines) - len(valid), aside)
