"""Conversion of the prediction log's lines to rows of a Delta table, without erased entities.

A row is one prediction of one version for one record. Fields of the Elastic Common Schema become plain columns. The
logged features are stored in one column as JSON, because the model's author may change the list of features.
"""

import json
import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ml_platform.storage import atomic_files

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("ml_platform")

TIME, ENTITY = "at", "entity"


class _Event(msgspec.Struct, frozen=True):
    id: str
    duration: int


class _Request(msgspec.Struct, frozen=True):
    id: str


class _Http(msgspec.Struct, frozen=True):
    request: _Request


class _Node(msgspec.Struct, frozen=True):
    name: str


class _Service(msgspec.Struct, frozen=True):
    node: _Node


class _Error(msgspec.Struct, frozen=True):
    message: str


class _Own(msgspec.Struct, frozen=True):
    version: int
    digest: str
    role: str
    record: int
    inputs: dict[str, Any]
    entity: str | None = None
    score: float | None = None
    scores: list[float | None] | None = None
    prediction: str | None = None
    anomaly_score: float | None = None


class _Line(msgspec.Struct, frozen=True):
    timestamp: datetime = msgspec.field(name="@timestamp")
    event: _Event
    http: _Http
    service: _Service
    ml: _Own
    error: _Error | None = None


def schema() -> "pa.Schema":
    """Return the columns of the table.

    ``at``, time of the request in UTC; ``id`` of the prediction; ``request_id`` and ``record``, its position in the
    request from 0; ``worker``; ``version`` and ``digest`` of the model's bytes; ``role``: champion, successor, shadow;
    ``entity`` as text, null if the request has none; ``inputs``, the logged features as a JSON object; ``score``, or
    ``scores`` for more than two classes; ``prediction`` as text; ``anomaly_score`` from 0 to 1; ``seconds`` of the
    prediction; ``error``, null for a successful prediction.
    """
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    return pa.schema(
        [
            (TIME, pa.timestamp("us", "UTC")),
            ("id", text),
            ("request_id", text),
            ("record", pa.int64()),
            ("worker", text),
            ("version", pa.int64()),
            ("digest", text),
            ("role", text),
            (ENTITY, text),
            ("inputs", text),
            ("score", number),
            ("scores", pa.list_(number)),
            ("prediction", text),
            ("anomaly_score", number),
            ("seconds", number),
            ("error", text),
        ]
    )


def read(
    file: Path, canonical: Callable[[str], str], forgotten: Callable[[str], bool] | None
) -> tuple["pa.Table", int]:
    """Read a closed file of the log.

    Parameters
    ----------
    canonical : callable
        Converts an entity to text according to the model's contract.
    forgotten : callable or None
        Returns True for an erased entity, whose lines are left out. ``None`` if no entity was erased.

    Returns
    -------
    rows : pyarrow Table of shape (n_predictions, n_columns)
        With the columns of `schema`.
    unreadable : int
        Number of lines that are not entries of the log, which are left out too.
    """
    import pyarrow as pa

    decode = msgspec.json.Decoder(_Line).decode
    rows, unreadable = list[dict[str, Any]](), 0
    for line in _lines(file):
        try:
            entry = decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            unreadable += 1
            continue
        entity = None if entry.ml.entity is None else canonical(entry.ml.entity)
        if entity is None or forgotten is None or not forgotten(entity):
            rows.append(_row(entry, entity))
    if unreadable:
        log.warning("prediction log: left out %s lines of %s, which are not entries of the log", unreadable, file.name)
    return pa.Table.from_pylist(rows, schema=schema()), unreadable


def _row(entry: _Line, entity: str | None) -> dict[str, Any]:
    own = entry.ml
    return {
        TIME: entry.timestamp,
        "id": entry.event.id,
        "request_id": entry.http.request.id,
        "record": own.record,
        "worker": entry.service.node.name,
        "version": own.version,
        "digest": own.digest,
        "role": own.role,
        ENTITY: entity,
        "inputs": json.dumps(own.inputs),
        "score": own.score,
        "scores": own.scores,
        "prediction": own.prediction,
        "anomaly_score": own.anomaly_score,
        "seconds": entry.event.duration / 1e9,
        "error": entry.error.message if entry.error else None,
    }


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        for line in opened:
            if line.strip():
                yield line


class _EntityField(msgspec.Struct, frozen=True):
    entity: str | None = None


class _EntityLine(msgspec.Struct, frozen=True):
    ml: _EntityField


def erase_log_lines(file: Path, is_one: Callable[[str], bool]) -> int:
    """Remove the lines about some entities from a closed file; return their number.

    Unreadable lines may be about one of them: they are removed too, but not counted.
    """
    decode = msgspec.json.Decoder(_EntityLine).decode
    kept, removed, unreadable = list[bytes](), 0, 0
    for line in _lines(file):
        try:
            entity = decode(line).ml.entity
        except (msgspec.MsgspecError, UnicodeDecodeError):
            unreadable += 1
            continue
        if entity is not None and is_one(entity):
            removed += 1
        else:
            kept.append(line)
    if removed or unreadable:
        atomic_files.write(file, b"".join(kept))
    return removed
