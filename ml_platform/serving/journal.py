"""What a server's admin port was asked and did: every call, and every rollback until the ledger has it.

Both are files of JSON lines, appended to and on the disk before anybody is answered. A last line without its end was
cut off by a crash: nobody was told that it was written.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ml_platform import durable
from ml_platform.records import canonical_json

CALLS_FILE, JOURNAL_FILE = "admin.jsonl", "journal.jsonl"
# Somebody without a token must not be able to fill the disk with refusals: the file before this one is kept, no more.
MOST_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """A rollback that an admin port carried out.

    Parameters
    ----------
    id : str
    to, leaves : int
        The version that answers from then on, and the champion before.
    decision : int
        Sequence of the ledger's entry that had made that champion: a newer decision has overtaken the rollback.
    reason, actor, at : str
        Why, who asked, and when, in UTC (ISO 8601).
    closed : str
        What became of it: that the ledger has it, or why it does not take it; empty while it is open.
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
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL_FILE

    def entries(self) -> list[Rollback]:
        """Return all rollbacks, oldest first, each as it stands now."""
        entries: dict[str, Rollback] = {}
        for line in lines(self.path):
            entry = Rollback(**line)
            entries[entry.id] = entry
        return list(entries.values())

    def open_entry(self) -> Rollback | None:
        """Return the rollback that the ledger has not answered yet, the newest of several; ``None`` without any."""
        return next((entry for entry in reversed(self.entries()) if not entry.closed), None)

    def append(self, entry: Rollback) -> None:
        """Write a rollback down; it is on the disk when this returns.

        Raises
        ------
        StorageError
            It could not be written.
        """
        append(self.path, asdict(entry))

    def close(self, entry: Rollback, what: str, decision: int) -> None:
        """Write down what became of a rollback, and of the others that are open.

        Those before it are replaced by it. Those after it were asked for while it was on its way into the ledger: they
        leave what it has made champion.

        Parameters
        ----------
        entry : Rollback
        what : str
        decision : int
            Sequence of the ledger's decision that stands now.
        """
        others = [other for other in self.entries() if not other.closed and other.id != entry.id]
        for other in others:
            later = other.at > entry.at
            replaced = f"replaced by rollback {entry.id}"
            self.append(replace(other, decision=decision) if later else replace(other, closed=replaced))
        self.append(replace(entry, closed=what))


class Calls:
    """Every call of an admin port, refused ones too.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / CALLS_FILE

    def append(self, call: Mapping[str, Any]) -> None:
        """Write a call down.

        Raises
        ------
        StorageError
            It could not be written.
        """
        if self.path.exists() and self.path.stat().st_size > MOST_BYTES:
            self.path.replace(self.path.with_suffix(".jsonl.1"))
        append(self.path, call)

    def last(self, most: int) -> list[dict[str, Any]]:
        """Return the last calls, oldest first."""
        return lines(self.path)[-most:]


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line of JSON to a file; it is on the disk when this returns.

    Raises
    ------
    StorageError
        It could not be written.
    """
    with durable.storing_in(path.parent):
        durable.make_folder(path.parent)
        with path.open("ab+", buffering=0) as file:
            _drop_torn_line(file.fileno())
            file.write(f"{canonical_json(dict(line))}\n".encode())
            os.fsync(file.fileno())


def _drop_torn_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 65_536, max(0, size - 65_536))
    if tail and not tail.endswith(b"\n"):
        os.ftruncate(descriptor, size - len(tail) + tail.rfind(b"\n") + 1)


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file of JSON lines; empty where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
