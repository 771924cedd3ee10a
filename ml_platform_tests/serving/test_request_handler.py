"""Each version reads a request by its own contract: other orders, added columns and dropped columns."""

import asyncio
import json
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ml_platform.inference.predictor import Answers
from ml_platform.inference.request_contract import Field, Record, RequestContract
from ml_platform.monitoring.prediction_log.writer import LoggedVersion, PredictionLog
from ml_platform.records.traffic import Mode, TrafficPlan
from ml_platform.serving.counters import Counts
from ml_platform.serving.http.wire_formats import Formats
from ml_platform.serving.state import DesiredState, ServedVersion
from ml_platform.serving.worker import request_handler
from ml_platform.serving.worker.model_loader import Loaded
from ml_platform.serving.worker.request_handler import INFERENCE, INVOCATIONS, Reply, RequestHandler, WireFormat
from ml_platform.serving.worker.routing import ServedModel, build_routing_table

PAGES = Field(name="pages", kind="float", dtype="float64")
SECONDS = Field(name="seconds", kind="float", dtype="float64")
AGE = Field(name="age", kind="float", dtype="float64", nullable=True)
VISITOR = Field(name="visitor", kind="int", dtype="int64")
# The score of a version depends on its columns by name: a record in another order gets another score.
WEIGHTS = {"pages": 0.01, "seconds": 0.0001, "age": 0.000001}


def make_version(number: int, *features: Field) -> ServedModel:
    contract = RequestContract(
        model="visits", task="binary", features=features, entity=VISITOR, classes=(0, 1), positive="yes"
    )
    served = ServedVersion(
        version=number, candidate=f"c{number}", model_digest=f"{number}" * 64, served_digest="0" * 64
    )

    def predict(records: list[Record]) -> Answers:
        weights = [WEIGHTS[name] for name in contract.names]
        scores = [
            sum(weight * (value or 0.0) for weight, value in zip(weights, record, strict=True)) for record in records
        ]
        return Answers(scores, [0] * len(scores))

    return ServedModel(
        Loaded(
            served=served,
            contract=contract,
            formats=Formats(contract),
            predict=predict,
            way="compiled",
            logged=LoggedVersion(contract=contract, version=number, digest=served.model_digest),
            seconds=0.0,
        )
    )


def make_handler(mode: Mode, stable: ServedModel, successor: ServedModel, log: PredictionLog | None = None) -> Any:
    """Return a handler whose successor gets all keys of a canary, or a copy of each request as a shadow."""
    models = {model.version: model for model in (stable, successor)}
    plan = TrafficPlan(
        model="visits",
        sequence=1,
        decision=1,
        mode=mode,
        stable=stable.version,
        successor=successor.version,
        share=1.0,
        since=datetime.now(UTC),
        reason="test",
        actor="test",
    )
    desired = DesiredState(
        model="visits", revision=1, plan=plan, arms={number: model.loaded.served for number, model in models.items()}
    )
    handler = RequestHandler(Counts(), log)
    handler.serving = build_routing_table(desired, models)
    return handler


def make_body(form: str, values: dict[str, float]) -> tuple[WireFormat, bytes]:
    """Return a request of three records in one of the forms; the second and third have other values."""
    rows = [{name: value + number for name, value in values.items()} for number in range(3)]
    names = list(values)
    bodies: dict[str, Any] = {
        "records": {"dataframe_records": rows},
        "split": {"dataframe_split": {"columns": names, "data": [[row[name] for name in names] for row in rows]}},
        "columns": {"inputs": {name: [row[name] for row in rows] for name in names}},
        "tensors": {
            "inputs": [
                {"name": name, "datatype": "FP64", "shape": [3], "data": [row[name] for row in rows]} for name in names
            ]
        },
    }
    return (INFERENCE if form == "tensors" else INVOCATIONS), json.dumps(bodies[form]).encode()


def answer(handler: RequestHandler, form: str, values: dict[str, float]) -> Any:
    """Return status, scores and version of the reply, after what follows it."""

    async def run() -> Any:
        wire, body = make_body(form, values)
        reply = await handler.answer(wire, body, key="k", request_id="r")
        if reply.after is not None:
            reply.after()
        await asyncio.gather(*handler._shadows)
        return reply

    reply = asyncio.run(run())
    content = json.loads(reply.body)
    tensors = {tensor["name"]: tensor["data"] for tensor in content.get("outputs", [])}
    scores = content.get("scores", tensors.get("scores", []))
    version = dict(reply.headers).get(b"ml-platform-version", b"0")
    return reply.status, scores, int(version)


def expect(names: list[str], values: dict[str, float]) -> list[float]:
    return [sum(WEIGHTS[name] * (values[name] + number) for name in names) for number in range(3)]


@pytest.mark.fault("R15")
@pytest.mark.parametrize("mode", [Mode.CANARY, Mode.SHADOW])
def test_large_bodies_are_read_and_logged_in_thread(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set[tuple[str, str]]()
    for name in ("_read", "_write_log"):
        real = getattr(RequestHandler, name)

        def note(*arguments: Any, name: str = name, real: Any = real) -> Any:
            threads.add((name, threading.current_thread().name))
            return real(*arguments)

        monkeypatch.setattr(RequestHandler, name, note)
    log = PredictionLog(tmp_path, "worker-0")
    handler = make_handler(mode, make_version(1, PAGES), make_version(2, PAGES, AGE), log)
    body = json.dumps({"dataframe_records": [{"pages": 1.0}] * (request_handler.LARGE_BODY // 10)}).encode()

    async def run() -> Reply:
        reply: Reply = await handler.answer(INVOCATIONS, body, key="k", request_id="r")
        assert reply.after is not None
        reply.after()
        await asyncio.gather(*handler._shadows)
        return reply

    reply = asyncio.run(run())
    handler.close()
    log.close()

    assert len(json.loads(reply.body)["scores"]) == request_handler.LARGE_BODY // 10
    assert threads == {("_read", "large_0"), ("_write_log", "large_0")}
    assert log.figures.written >= request_handler.LARGE_BODY // 10


@pytest.mark.fault("R15")
def test_large_body_behind_many_is_refused() -> None:
    handler = make_handler(Mode.CANARY, make_version(1, PAGES), make_version(2, PAGES))
    body = b'{"dataframe_records": [{"pages": 1.0}]%b}' % (b" " * request_handler.LARGE_BODY)

    async def run() -> list[Reply]:
        more = request_handler.MAX_LARGE_WAITING + 2
        calls = (handler.answer(INVOCATIONS, body, key="k", request_id="r") for _ in range(more))
        return list(await asyncio.gather(*calls))

    replies = asyncio.run(run())
    handler.close()

    assert sorted(reply.status for reply in replies) == [200] * request_handler.MAX_LARGE_WAITING + [503] * 2
    refused = next(reply for reply in replies if reply.status == 503)
    assert b"or predict files with `ml-platform predict`" in refused.body
    assert (b"retry-after", b"1") in refused.headers


FORMS = ["records", "split", "columns", "tensors"]


@pytest.mark.fault("R17")
@pytest.mark.parametrize("form", FORMS)
def test_shadow_in_other_order_logs_its_scores(form: str, tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, "worker-0")
    handler = make_handler(Mode.SHADOW, make_version(1, PAGES, SECONDS), make_version(2, SECONDS, PAGES), log)
    values = {"pages": 3.0, "seconds": 7.0}

    status, scores, version = answer(handler, form, values)
    log.close()

    lines = [
        json.loads(line) for file in tmp_path.rglob("*") if file.is_file() for line in file.read_text().splitlines()
    ]
    logged = [(line["ml"]["version"], line["ml"]["score"]) for line in lines]
    wanted = expect(["pages", "seconds"], values)
    assert (status, scores, version) == (200, pytest.approx(wanted), 1)
    assert sorted(logged) == [(number, pytest.approx(score)) for number in (1, 2) for score in wanted]


@pytest.mark.fault("R17")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", [Mode.CANARY, Mode.AB])
def test_successor_in_other_order_reads_its_columns(form: str, mode: Mode) -> None:
    handler = make_handler(mode, make_version(1, PAGES, SECONDS), make_version(2, SECONDS, PAGES))
    values = {"pages": 3.0, "seconds": 7.0}

    assert answer(handler, form, values) == (200, pytest.approx(expect(["pages", "seconds"], values)), 2)


@pytest.mark.fault("R17")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sent", [["pages", "seconds"], ["pages", "seconds", "age"], ["age", "pages", "seconds"]])
def test_each_version_reads_its_own_columns(form: str, sent: list[str]) -> None:
    values = {name: 2.0 + place for place, name in enumerate(sent)}
    old, new = make_version(1, PAGES, SECONDS), make_version(2, AGE, PAGES)
    known = {name: values[name] for name in sent}

    canary = answer(make_handler(Mode.CANARY, old, new), form, known)
    shadow = answer(make_handler(Mode.SHADOW, old, new), form, known)

    # The successor's own column is required; the stable version answers for clients that do not send it yet.
    reads = ["age", "pages"] if "age" in sent else ["pages", "seconds"]
    assert canary == (200, pytest.approx(expect(reads, values)), 2 if "age" in sent else 1)
    assert shadow == (200, pytest.approx(expect(["pages", "seconds"], values)), 1)


@pytest.mark.fault("R17")
@pytest.mark.parametrize("form", FORMS)
def test_optional_new_column_may_be_absent(form: str) -> None:
    values = {"pages": 3.0, "seconds": 7.0}
    handler = make_handler(
        Mode.CANARY, make_version(1, PAGES, SECONDS), make_version(2, PAGES, SECONDS, replace(AGE, required=False))
    )

    assert answer(handler, form, values) == (200, pytest.approx(expect(["pages", "seconds"], values)), 2)


@pytest.mark.parametrize("form", FORMS)
def test_column_of_no_version_is_refused(form: str) -> None:
    handler = make_handler(Mode.CANARY, make_version(1, PAGES, SECONDS), make_version(2, AGE, PAGES))

    status, _, _ = answer(handler, form, {"pages": 3.0, "seconds": 7.0, "height": 1.0})

    assert status == 422


def test_unread_request_counts_as_failed_unit() -> None:
    handler = make_handler(Mode.CANARY, make_version(1, PAGES, SECONDS), make_version(2, AGE, PAGES))

    answer(handler, "records", {"pages": 3.0, "seconds": 7.0})

    counts = handler.counts.version_counts(1, 2)
    assert (int.from_bytes(counts.seen, "little").bit_count(), int.from_bytes(counts.failed, "little").bit_count()) == (
        1,
        1,
    )
    assert handler.counts.fallbacks == {"2/no answer": 1}
