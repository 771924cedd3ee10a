"""The prediction log: from the lines that servers wrote to rows of a Delta table, and without those who were forgotten.

A row is one prediction of one version for one record. What the log says in the fields of the Elastic Common Schema
stands in plain columns here; the logged features stand in one column as JSON, since which ones are logged is the
author's to change.
"""

import json
import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ml_platform import durable

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
    slot: str
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

    ``at``, when the request came, in UTC; ``id`` of the prediction; ``request_id`` and ``record``, its place in the
    request from 0; ``worker``; ``version`` and ``digest`` of the model's bytes; ``slot``: stable, successor or shadow;
    ``entity`` as text, null where the request did not say; ``inputs``, the logged features as a JSON object; ``score``,
    or ``scores`` of more than two classes; ``prediction`` as text; ``anomaly_score`` from 0 to 1; ``seconds`` that it
    took; ``error``, null where there was an answer.
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
            ("slot", text),
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
        Returns an entity as text as the model's contract has it.
    forgotten : callable or None
        Whether an entity was forgotten; its lines are left out. ``None`` where nobody was.

    Returns
    -------
    rows : pyarrow Table of shape (n_predictions, n_columns)
        With the columns of `schema`.
    unreadable : int
        Lines that are no entry of the log, which are left out too.
    """
    import pyarrow as pa

    decode = msgspec.json.Decoder(_Line).decode
    rows, unreadable = list[dict[str, Any]](), 0
    for line in _lines(file):
        try:
            said = decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            unreadable += 1
            continue
        entity = None if said.ml.entity is None else canonical(said.ml.entity)
        if entity is None or forgotten is None or not forgotten(entity):
            rows.append(_row(said, entity))
    if unreadable:
        log.warning("prediction log: %s lines of %s are no entries of the log and were left out", unreadable, file.name)
    return pa.Table.from_pylist(rows, schema=schema()), unreadable


def _row(said: _Line, entity: str | None) -> dict[str, Any]:
    own = said.ml
    return {
        TIME: said.timestamp,
        "id": said.event.id,
        "request_id": said.http.request.id,
        "record": own.record,
        "worker": said.service.node.name,
        "version": own.version,
        "digest": own.digest,
        "slot": own.slot,
        ENTITY: entity,
        "inputs": json.dumps(own.inputs),
        "score": own.score,
        "scores": own.scores,
        "prediction": own.prediction,
        "anomaly_score": own.anomaly_score,
        "seconds": said.event.duration / 1e9,
        "error": said.error.message if said.error else None,
    }


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        for line in opened:
            if line.strip():
                yield line


class _Who(msgspec.Struct, frozen=True):
    entity: str | None = None


class _About(msgspec.Struct, frozen=True):
    ml: _Who


def without(file: Path, is_one: Callable[[str], bool]) -> int:
    """Take the lines about some entities out of a closed file; return how many.

    A line that cannot be read may be about one of them: it is taken out too, and not counted.
    """
    decode = msgspec.json.Decoder(_About).decode
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
        durable.write(file, b"".join(kept))
    return removed
