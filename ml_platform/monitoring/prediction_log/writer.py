"""Writer of the prediction log: one JSON object per prediction, written outside of the request path.

A request only appends an entry to a bounded queue. A separate thread converts the queued entries to lines of the
Elastic Common Schema and writes them to rotating files (`ml_platform.monitoring.prediction_log.files`). Failures of the
log never reach a request. Entries that cannot be written are dropped and counted by reason:

==============  ======================================================================================================
reason          cause
==============  ======================================================================================================
``queue_full``  the queue has `max_queued` entries or `max_queued_bytes`, because the disk is slower than the requests:
                the newest entry is dropped, the queued ones are kept
``disk``        the disk is full, read-only or broken: the entries that were being written are dropped; later entries
                are written to the same file if it is intact
``unwritable``  an entry contains a value that JSON cannot represent
``closed``      the entry came after `close`
==============  ======================================================================================================

A killed process loses the queued entries, usually those of the last 0.1 s; a power cut also loses the part of the open
file that the operating system had not written. Closed files are durable. If the closed files of a folder exceed
`kept_bytes` in total, those of earlier workers included, the oldest are removed and counted; the asset `prediction_log`
normally collects and removes them much earlier.
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

from ml_platform.errors import ConfigurationError
from ml_platform.monitoring.prediction_log.files import (
    asked_at,
    close_left_open,
    closed_name,
    create,
    new_name,
    remove_oldest,
)
from ml_platform.storage import atomic_files

log = logging.getLogger("ml_platform")

ECS_VERSION = "8.17.0"
# Maximum number of entries per write; between two writes, other threads can run.
CHUNK = 64
# Seconds between two checks of the queue: requests append to it without waking the thread.
INTERVAL = 0.1
# Minimum seconds between two messages about the disk in the platform's log.
SAY_EVERY = 60.0
# Maximum length of a text, the limit of Elasticsearch's keyword fields.
LONGEST_TEXT = 1_024
ENTRY_BYTES = 512
REASONS = ("queue_full", "disk", "unwritable", "closed")
WORKER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class TrafficRole(StrEnum):
    """A version's role in traffic: the champion, its successor, or a successor that receives shadow copies."""

    CHAMPION = "champion"
    SUCCESSOR = "successor"
    SHADOW = "shadow"


class Contract(Protocol):
    """The log's interface to a version's request contract."""

    @property
    def model(self) -> str:
        """Name of the model."""

    @property
    def logged(self) -> tuple[str, ...]:
        """Names of the features that may be logged."""

    def values(self, record: Any, names: Sequence[str]) -> dict[str, Any]:
        """Return a record's values of some features by name."""

    def anomaly(self, record: Any) -> float:
        """Return the distance of a record from the version's training data, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class LoggedVersion:
    """The common part of all predictions of a loaded version, created when the version is loaded.

    Parameters
    ----------
    contract : RequestContract
        Gives the names of the model and of the features that may be logged, and, in the log's thread, the anomaly
        score.
    version : int
    digest : str
        Hex sha256 of the model's bytes.
    """

    contract: Contract
    version: int
    digest: str


class Prediction(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One record and a version's prediction for it.

    Parameters
    ----------
    of : LoggedVersion
        The version.
    role : TrafficRole
    at : float
        Time of the request, in seconds since the epoch.
    seconds : float
        Duration of the prediction in the server.
    request_id : str
    position : int
        The record's position in its request, from 0.
    record : tuple
        In the form of the version's contract; only the features that the contract lists as logged are written.
    entity : object or None
        The entity that the record describes; ``None`` if the request has none.
    score : float, sequence of float or None
        The probability or number, or the probability of each class; ``None`` if the prediction failed.
    prediction : object or None
        The class or number; ``None`` if the prediction failed.
    error : str or None
        Reason of the failure; ``None`` if the prediction succeeded.
    size : int
        Approximate memory of the record in bytes, for instance the bytes of its request divided by the number of
        records. It limits the queue.
    """

    of: LoggedVersion
    role: TrafficRole
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
    """Statistics of a log since it was opened.

    Parameters
    ----------
    written : int
        Number of entries in files.
    dropped : dict
        Number of dropped entries by each of `REASONS`.
    queued : int
        Number of entries in the queue.
    removed_files : int
        Number of closed files that were removed to stay below `kept_bytes`.
    """

    written: int
    dropped: dict[str, int]
    queued: int
    removed_files: int


class PredictionLog:
    """The prediction log of one worker. It runs a thread until `close`.

    Parameters
    ----------
    folder : Path
        Folder of the files, created with the first entry. Workers of one model share it.
    worker : str
        Name of the worker, for instance ``host-0``, of letters, digits, ``.``, ``_`` and ``-``. Workers with the same
        folder must have different names.
    max_queued, max_queued_bytes : int
        Maximum number of queued entries, and their maximum size in bytes.
    max_bytes : int
        Size of a file in bytes at which it is closed.
    max_seconds : float
        Age of a file in seconds at which it is closed.
    kept_bytes : int
        Maximum total size of the folder's closed files, of this and all other workers.

    Raises
    ------
    ConfigurationError
        The worker's name cannot be part of a file's name.
    """

    def __init__(
        self,
        folder: Path,
        worker: str,
        *,
        max_queued: int = 10_000,
        max_queued_bytes: int = 64 * 2**20,
        max_bytes: int = 64 * 2**20,
        max_seconds: float = 300.0,
        kept_bytes: int = 4 * 2**30,
    ) -> None:
        if not WORKER_NAME.fullmatch(worker):
            raise ConfigurationError(f"A worker's name must match {WORKER_NAME.pattern}. Got {worker!r} instead.")
        self._max_queued, self._max_queued_bytes = max_queued, max_queued_bytes
        self._queue: deque[Prediction] = deque()
        self._queued_bytes = 0
        self._dropped = dict.fromkeys(REASONS, 0)
        self._written = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._files = _Files(folder, worker, max_bytes, max_seconds, kept_bytes)
        self._lines = _Lines(worker)
        self._said_at = -SAY_EVERY
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def write(self, entry: Prediction) -> bool:
        """Queue an entry; return False if it was dropped. The method never waits for the disk and never raises."""
        with self._lock:
            closed = self._closing.is_set()
            full = len(self._queue) >= self._max_queued or self._queued_bytes + entry.size > self._max_queued_bytes
            if closed or full:
                self._dropped["closed" if closed else "queue_full"] += 1
                return False
            self._queue.append(entry)
            self._queued_bytes += entry.size
            return True

    @property
    def figures(self) -> LogFigures:
        """The statistics so far."""
        with self._lock:
            return LogFigures(
                written=self._written,
                dropped=dict(self._dropped),
                queued=len(self._queue),
                removed_files=self._files.removed,
            )

    def close(self, timeout: float = 10.0) -> bool:
        """Write the queued entries, close the file and end the thread; return False if `timeout` seconds pass first."""
        self._closing.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        # A worker that crashes again and again leaves an open file each time, and closes none of its own.
        self._try(partial(close_left_open, self._files.folder))
        self._try(self._files.remove_excess)
        while not self._closing.wait(INTERVAL):
            self._drain()
            self._try(self._files.rotate)
        self._drain()
        self._try(self._files.close)

    def _try(self, action: Callable[[], object]) -> bool:
        """Call a function that uses the disk; log its error, at most once in `SAY_EVERY` seconds, and return False."""
        try:
            action()
        except OSError as error:
            problem = error
        else:
            return True
        if time.monotonic() - self._said_at >= SAY_EVERY:
            self._said_at = time.monotonic()
            folder = self._files.folder
            log.error("prediction log: cannot write to %s (%s): predictions are dropped and counted", folder, problem)
        return False

    def _drain(self) -> None:
        while True:
            with self._lock:
                chunk = [self._queue.popleft() for _ in range(min(CHUNK, len(self._queue)))]
                self._queued_bytes -= sum(entry.size for entry in chunk)
            if not chunk:
                return
            lines, unwritable = self._lines.encode(chunk)
            stored = not lines or self._try(partial(self._files.append, b"".join(lines)))
            with self._lock:
                self._written += len(lines) if stored else 0
                self._dropped["disk"] += 0 if stored else len(lines)
                self._dropped["unwritable"] += unwritable


# Lines


class _Lines:
    """Encoder of entries as lines of JSON."""

    def __init__(self, worker: str) -> None:
        self._encode = msgspec.json.Encoder(enc_hook=_to_plain_value).encode
        self._worker, self._host = worker, socket.gethostname()

    def encode(self, entries: list[Prediction]) -> tuple[list[bytes], int]:
        """Return the lines of entries, and the number of entries with a value that JSON cannot represent."""
        lines = []
        for entry in entries:
            # Errors come from a lone surrogate, a list that contains itself, or an anomaly score of a non-number.
            with contextlib.suppress(TypeError, ValueError, ArithmeticError, LookupError, RecursionError):
                lines.append(self._encode(self._document(entry)) + b"\n")
        return lines, len(entries) - len(lines)

    def _document(self, entry: Prediction) -> dict[str, Any]:
        of, failed = entry.of, entry.error is not None
        service = {"name": of.contract.model, "type": "ml_platform", "version": str(of.version)}
        return {
            "@timestamp": datetime.fromtimestamp(entry.at, UTC),
            "ecs": {"version": ECS_VERSION},
            "event": {
                "kind": "event",
                "category": ["web"],
                "type": ["error" if failed else "access"],
                "dataset": "ml_platform.predictions",
                "action": "prediction",
                "id": f"{entry.request_id}-{entry.position}-{of.version}-{entry.role}",
                "outcome": "failure" if failed else "success",
                "duration": round(entry.seconds * 1e9),
            },
            "http": {"request": {"id": entry.request_id}},
            "service": {**service, "node": {"name": self._worker}},
            "host": {"name": self._host},
            **({"error": {"message": _shorten(entry.error)}} if failed else {}),
            "ml": _model_fields(entry),
        }


def _model_fields(entry: Prediction) -> dict[str, Any]:
    of = entry.of
    inputs = of.contract.values(entry.record, of.contract.logged)
    score = entry.score.tolist() if hasattr(entry.score, "tolist") else entry.score
    several = isinstance(score, Sequence)
    return {
        "model": of.contract.model,
        "version": of.version,
        "digest": of.digest,
        "role": entry.role,
        "record": entry.position,
        "entity": None if entry.entity is None else _shorten(entry.entity),
        "inputs": {name: _shorten(value) if isinstance(value, str) else value for name, value in inputs.items()},
        "score": None if several else score,
        "scores": score if several else None,
        # Always text: some models predict numbers, others words, and a field has one type.
        "prediction": None if entry.prediction is None else _shorten(entry.prediction),
        "anomaly_score": of.contract.anomaly(entry.record),
    }


def _shorten(value: Any) -> str:
    return str(value)[:LONGEST_TEXT]


def _to_plain_value(value: Any) -> Any:
    """Convert a NumPy number or array to Python values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"An entry must hold numbers, texts and None. Got {type(value).__name__} instead.")


# Files


class _Files:
    """A worker's files. At most one is open; it is created with the first line."""

    def __init__(self, folder: Path, worker: str, max_bytes: int, max_seconds: float, kept_bytes: int) -> None:
        self.folder, self._worker, self.removed = folder, worker, 0
        self._max_bytes, self._max_seconds, self._kept_bytes = max_bytes, max_seconds, kept_bytes
        self._descriptor: int | None = None
        self._path = folder
        self._size, self._begun, self._asked = 0, 0.0, 0

    def append(self, lines: bytes) -> None:
        """Write all lines, or none of them."""
        if self._descriptor is not None and not os.fstat(self._descriptor).st_nlink:
            self._release()  # the file was removed, and further lines would be lost
        descriptor = self._open() if self._descriptor is None else self._descriptor
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            try:
                os.ftruncate(descriptor, self._size)  # cuts off a partly written line
            except OSError:
                self._release()  # the next lines go to a new file
            raise
        self._size += len(lines)
        if self._size >= self._max_bytes:
            self.close()

    def _open(self) -> int:
        atomic_files.make_folder(self.folder)
        self._asked = asked_at(self.folder)
        name = new_name(self._worker, time.time())
        descriptor, self._path = create(self.folder, name)
        self._descriptor, self._size, self._begun = descriptor, 0, time.monotonic()
        return descriptor

    def _release(self) -> None:
        """Leave the open file without a lock, as a killed process does: another process closes it later."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def rotate(self) -> None:
        """Close the file if it is old, or if a process requested it."""
        if self._descriptor is None:
            return
        old = time.monotonic() - self._begun >= self._max_seconds
        if old or asked_at(self.folder) != self._asked:
            self.close()

    def close(self) -> None:
        """Make the open file durable and give it its closed name; remove an empty one, and files above `kept_bytes`."""
        if self._descriptor is None:
            return
        try:
            if self._size:
                os.fsync(self._descriptor)
                self._path.rename(closed_name(self._path))
                atomic_files.sync(self.folder)
            else:
                self._path.unlink()
        finally:
            self._release()
        self.remove_excess()

    def remove_excess(self) -> None:
        """Remove the oldest files above `kept_bytes`."""
        self.removed += remove_oldest(self.folder, self._kept_bytes)
