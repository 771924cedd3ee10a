"""The prediction log: one JSON object a prediction, written off the request path.

A request appends to a bounded queue and goes on; a thread of its own turns what waits there into lines of the Elastic
Common Schema and writes them to rotating files (`ml_platform.prediction_files`). No failure of the log reaches a
request. What the log cannot take is dropped and counted by reason:

==============  ======================================================================================================
reason          what happened
==============  ======================================================================================================
``queue_full``  the queue holds `most_queued` entries, or `most_queued_bytes`, because the disk is slower than the
                requests: the newest entry is dropped, those that wait are kept
``disk``        the disk is full, read-only or broken: the entries that were being written are dropped; those that come
                later are tried again, in the same file while it is sound
``unwritable``  an entry holds what JSON cannot
``closed``      it came after `close`
==============  ======================================================================================================

A process that is killed loses what was queued, a tenth of a second as a rule; a power cut, what the system had not
written of the open file. Closed files are on the disk. Of a worker's closed files the oldest are removed, and counted,
when they together exceed `kept_bytes`: where the asset `prediction_log` runs, it takes and removes them long before.
"""

import contextlib
import logging
import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ml_platform import durable, prediction_files
from ml_platform.errors import ConfigurationError

log = logging.getLogger("ml_platform")

ECS_VERSION = "8.17.0"
# So many entries are written at once: between two writes other threads get their turn.
CHUNK = 64
# Seconds between two looks at the queue: a request only appends, it wakes nobody.
INTERVAL = 0.1
# A disk that is full is said so often in the platform's log, in seconds.
SAY_EVERY = 60.0
# Elasticsearch's keyword fields take no longer texts; neither does the log.
LONGEST_TEXT = 1_024
ENTRY_BYTES = 512
REASONS = ("queue_full", "disk", "unwritable", "closed")
WORKER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Slot(StrEnum):
    """In which place a version answered: the stable one, its successor, or the successor asked beside it."""

    STABLE = "stable"
    SUCCESSOR = "successor"
    SHADOW = "shadow"


class Contract(Protocol):
    """What the log asks of a version's request contract."""

    @property
    def model(self) -> str:
        """Name of the model."""

    @property
    def logged(self) -> tuple[str, ...]:
        """The features whose values may stand in the log."""

    def values(self, record: Any, names: Sequence[str]) -> dict[str, Any]:
        """Return a record's values of some features by name."""

    def anomaly(self, record: Any) -> float:
        """Return how far a record is from what the version was trained on, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class LoggedVersion:
    """What every prediction of one loaded version says alike; made once when the version is loaded.

    Parameters
    ----------
    contract : RequestContract
        Names the model and the features that may be logged; it gives the anomaly score, in the log's thread.
    version : int
    digest : str
        Hex sha256 of the model's bytes.
    """

    contract: Contract
    version: int
    digest: str


class Prediction(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One record and what a version said of it.

    Parameters
    ----------
    of : LoggedVersion
        Who was asked.
    slot : Slot
    at : float
        When the request came, in seconds since the epoch.
    seconds : float
        How long the prediction took in the server.
    request_id : str
    position : int
        The record's place in its request, from 0.
    record : tuple
        As the version's contract has it; only the features that the contract lists as logged are written.
    entity : object or None
        Whom the record is about; ``None`` where the request did not say.
    score : float, sequence of float or None
        The probability or number, or the probability of each class; ``None`` where there was no answer.
    prediction : object or None
        The class or number; ``None`` where there was no answer.
    error : str or None
        Why there was no answer; ``None`` where there was one.
    size : int
        About how many bytes of memory the record holds, for instance the bytes of its request by the number of its
        records: what the queue holds is bounded by it.
    """

    of: LoggedVersion
    slot: Slot
    at: float
    seconds: float
    request_id: str
    record: Any
    position: int = 0
    entity: Any = None
    score: Any = None
    prediction: Any = None
    error: str | None = None
    size: int = ENTRY_BYTES


class LogFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a log did since it was opened.

    Parameters
    ----------
    written : int
        Entries that stand in files.
    dropped : dict
        Entries that were dropped, by each of `REASONS`.
    queued : int
        Entries that wait.
    removed_files : int
        Closed files that made place for newer ones.
    """

    written: int
    dropped: dict[str, int]
    queued: int
    removed_files: int


class PredictionLog:
    """The log of one worker; it owns a thread from here to `close`.

    Parameters
    ----------
    folder : Path
        Where its files stand; made when the first entry is written. Workers of one model share it.
    worker : str
        Name of the worker, for instance ``host-0``, of letters, digits, ``.``, ``_`` and ``-``. Two that write into one
        folder have different names.
    most_queued, most_queued_bytes : int
        What may wait to be written.
    most_bytes : int
        A file with so many bytes is closed.
    most_seconds : float
        A file that was begun so long ago is closed.
    kept_bytes : int
        So much of this worker's closed files is kept.

    Raises
    ------
    ConfigurationError
        The worker's name cannot stand in the name of a file.
    """

    def __init__(
        self,
        folder: Path,
        worker: str,
        *,
        most_queued: int = 10_000,
        most_queued_bytes: int = 64 * 2**20,
        most_bytes: int = 64 * 2**20,
        most_seconds: float = 300.0,
        kept_bytes: int = 4 * 2**30,
    ) -> None:
        if not WORKER_NAME.fullmatch(worker):
            raise ConfigurationError(f"The name of a worker must match {WORKER_NAME.pattern}. Got {worker!r} instead.")
        self._most_queued, self._most_queued_bytes = most_queued, most_queued_bytes
        self._queue: deque[Prediction] = deque()
        self._queued_bytes = 0
        self._dropped = dict.fromkeys(REASONS, 0)
        self._written = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._files = _Files(folder, worker, most_bytes, most_seconds, kept_bytes)
        self._lines = _Lines(worker)
        self._said_at = -SAY_EVERY
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def write(self, entry: Prediction) -> bool:
        """Queue an entry; return whether it was taken. It waits for no disk and raises nothing."""
        with self._lock:
            reason = self._why_not(entry)
            if reason is None:
                self._queue.append(entry)
                self._queued_bytes += entry.size
                return True
            self._dropped[reason] += 1
        return False

    def _why_not(self, entry: Prediction) -> str | None:
        if self._closing.is_set():
            return "closed"
        full = len(self._queue) >= self._most_queued or self._queued_bytes + entry.size > self._most_queued_bytes
        return "queue_full" if full else None

    @property
    def figures(self) -> LogFigures:
        """What the log did so far."""
        with self._lock:
            return LogFigures(
                written=self._written,
                dropped=dict(self._dropped),
                queued=len(self._queue),
                removed_files=self._files.removed,
            )

    def close(self, timeout: float = 10.0) -> bool:
        """Write what waits, close the file and end the thread; return whether it ended within a time in seconds."""
        self._closing.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._try(self._files.recover)
        while not self._closing.wait(INTERVAL):
            self._drain()
            self._try(self._files.rotate)
        self._drain()
        self._try(self._files.close)

    def _try(self, what: Callable[[], None]) -> bool:
        """Do something with the disk; return whether it could be done."""
        try:
            what()
        except OSError as error:
            self._say(error)
            return False
        return True

    def _say(self, error: OSError) -> None:
        if time.monotonic() - self._said_at >= SAY_EVERY:
            self._said_at = time.monotonic()
            where = self._files.folder
            log.error("prediction log: %s takes nothing (%s): predictions are dropped and counted", where, error)

    def _drain(self) -> None:
        while chunk := self._take():
            lines, unwritable = self._lines.of(chunk)
            stored = not lines or self._try(partial(self._files.append, b"".join(lines)))
            with self._lock:
                self._written += len(lines) if stored else 0
                self._dropped["disk"] += 0 if stored else len(lines)
                self._dropped["unwritable"] += unwritable

    def _take(self) -> list[Prediction]:
        with self._lock:
            chunk = [self._queue.popleft() for _ in range(min(CHUNK, len(self._queue)))]
            self._queued_bytes -= sum(entry.size for entry in chunk)
        return chunk


# Lines


class _Lines:
    """Entries as lines of JSON."""

    def __init__(self, worker: str) -> None:
        self._encode = msgspec.json.Encoder(enc_hook=_plain).encode
        self._worker, self._host = worker, socket.gethostname()

    def of(self, entries: list[Prediction]) -> tuple[list[bytes], int]:
        """Return the lines of entries, and how many of them hold what JSON cannot."""
        lines = []
        for entry in entries:
            # A lone surrogate, a list in itself, an anomaly score of what is no number.
            with contextlib.suppress(TypeError, ValueError, ArithmeticError, LookupError, RecursionError):
                lines.append(self._encode(self._document(entry)) + b"\n")
        return lines, len(entries) - len(lines)

    def _document(self, entry: Prediction) -> dict[str, Any]:
        of = entry.of
        node = {"name": self._worker}
        return {
            "@timestamp": datetime.fromtimestamp(entry.at, UTC),
            "ecs": {"version": ECS_VERSION},
            "event": _event(entry),
            "http": {"request": {"id": entry.request_id}},
            "service": {"name": of.contract.model, "type": "ml_platform", "version": str(of.version), "node": node},
            "host": {"name": self._host},
            **({"error": {"message": _text(entry.error)}} if entry.error is not None else {}),
            "ml": _own_fields(entry),
        }


def _event(entry: Prediction) -> dict[str, Any]:
    return {
        "kind": "event",
        "category": ["web"],
        "type": ["access" if entry.error is None else "error"],
        "dataset": "ml_platform.predictions",
        "action": "prediction",
        "id": f"{entry.request_id}-{entry.position}-{entry.of.version}-{entry.slot}",
        "outcome": "success" if entry.error is None else "failure",
        "duration": round(entry.seconds * 1e9),
    }


def _own_fields(entry: Prediction) -> dict[str, Any]:
    of = entry.of
    inputs = of.contract.values(entry.record, of.contract.logged)
    score = _plain(entry.score) if hasattr(entry.score, "tolist") else entry.score
    several = isinstance(score, Sequence)
    return {
        "model": of.contract.model,
        "version": of.version,
        "digest": of.digest,
        "slot": entry.slot,
        "record": entry.position,
        "entity": None if entry.entity is None else _text(entry.entity),
        "inputs": {name: _short(value) for name, value in inputs.items()},
        "score": None if several else score,
        "scores": score if several else None,
        # As text: of one model it is a number, of another a word, and a field has one type.
        "prediction": None if entry.prediction is None else _text(entry.prediction),
        "anomaly_score": of.contract.anomaly(entry.record),
    }


def _short(value: Any) -> Any:
    return value[:LONGEST_TEXT] if isinstance(value, str) else value


def _text(value: Any) -> str:
    return str(value)[:LONGEST_TEXT]


def _plain(value: Any) -> Any:
    """Return a NumPy number or array as what JSON has."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"An entry must hold numbers, texts and None. Got {type(value).__name__} instead.")


# Files


class _Files:
    """A worker's files: one open at most, begun with the first line."""

    def __init__(self, folder: Path, worker: str, most_bytes: int, most_seconds: float, kept_bytes: int) -> None:
        self.folder, self._worker, self.removed = folder, worker, 0
        self._most_bytes, self._most_seconds, self._kept_bytes = most_bytes, most_seconds, kept_bytes
        self._descriptor: int | None = None
        self._path = folder
        self._size, self._begun, self._asked = 0, 0.0, 0

    def recover(self) -> None:
        """Close what a worker that died left open."""
        prediction_files.close_left_open(self.folder)

    def append(self, lines: bytes) -> None:
        """Write whole lines, or none of them."""
        if self._descriptor is not None and not os.fstat(self._descriptor).st_nlink:
            self._let_go()  # somebody removed it: what is written there is nowhere
        if self._descriptor is None:
            self._open()
        try:
            self._write(lines)
        except OSError:
            self._cut_back()
            raise
        self._size += len(lines)
        if self._size >= self._most_bytes:
            self.close()

    def _open(self) -> None:
        durable.make_folder(self.folder)
        self._asked = prediction_files.asked_at(self.folder)
        name = prediction_files.new_name(self._worker, time.time())
        self._descriptor, self._path = prediction_files.create(self.folder, name)
        self._size, self._begun = 0, time.monotonic()

    def _write(self, lines: bytes) -> None:
        left = memoryview(lines)
        while left and self._descriptor is not None:
            left = left[os.write(self._descriptor, left) :]

    def _cut_back(self) -> None:
        """Take away a part of a line; where that fails too, begin another file next time."""
        try:
            if self._descriptor is not None:
                os.ftruncate(self._descriptor, self._size)
        except OSError:
            self._let_go()

    def _let_go(self) -> None:
        """Leave a file without a lock, as a process does that dies: whoever comes next closes it."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def rotate(self) -> None:
        """Close the file if it is old, or if somebody asked for it."""
        if self._descriptor is None:
            return
        old = time.monotonic() - self._begun >= self._most_seconds
        if old or prediction_files.asked_at(self.folder) != self._asked:
            self.close()

    def close(self) -> None:
        """Make the open file durable and give it its closed name; an empty one is removed."""
        if self._descriptor is None:
            return
        try:
            if self._size:
                os.fsync(self._descriptor)
                self._path.rename(prediction_files.closed_name(self._path))
                durable.sync(self.folder)
            else:
                self._path.unlink()
        finally:
            self._let_go()
        self._remove_oldest()

    def _remove_oldest(self) -> None:
        files = prediction_files.closed_files(self.folder, self._worker)
        sizes = {}
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # taken into the table meanwhile
                sizes[file] = file.stat().st_size
        excess = sum(sizes.values()) - self._kept_bytes
        for file, size in sizes.items():
            if excess <= 0:
                return
            file.unlink(missing_ok=True)
            self.removed += 1
            excess -= size
