"""Records of a server's admin port: all calls, and each rollback until the ledger contains it.

Both are files of JSON lines, appended to and synced to disk before the caller gets its response. A last line without a
newline was cut off by a crash; its caller got no response, so it is ignored. A disk that is full or read-only must not
prevent a rollback: the journal keeps it in memory and stores it later.
"""

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ml_platform.errors import StorageError
from ml_platform.records.canonical import canonical_json
from ml_platform.storage import atomic_files

log = logging.getLogger("ml_platform.serving")

CALLS_FILE, JOURNAL_FILE = "admin.jsonl", "journal.jsonl"
# Callers without a token must not fill the disk with refused calls: one older file is kept, no more.
MAX_BYTES = 16 * 2**20


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


class AdminAuditLog:
    """All calls of an admin port, refused calls included.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / CALLS_FILE

    def append(self, call: Mapping[str, Any]) -> None:
        """Append a call; it is synced to disk when this returns.

        Raises
        ------
        StorageError
            It could not be written.
        """
        if self.path.exists() and self.path.stat().st_size > MAX_BYTES:
            self.path.replace(self.path.with_suffix(".jsonl.1"))
        append_line(self.path, call)

    def last(self, count: int) -> list[dict[str, Any]]:
        """Return at most `count` of the last calls, oldest first."""
        return read_lines(self.path)[-count:]


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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a file of JSON objects; empty if there is no file. Other lines are left out."""
    if not path.exists():
        return []
    lines = map(_parse_line, path.read_bytes().split(b"\n")[:-1])
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
