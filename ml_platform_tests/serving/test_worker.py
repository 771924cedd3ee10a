"""Tests of a worker's process."""

import asyncio
import gc
import weakref
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ml_platform.errors import ModelError
from ml_platform.inference.request_contract import Field, RequestContract
from ml_platform.records.traffic import Mode, TrafficPlan
from ml_platform.serving.http.wire_formats import Formats
from ml_platform.serving.state import DesiredState, ServedVersion
from ml_platform.serving.worker import worker as worker_module
from ml_platform.serving.worker.worker import Worker, WorkerTask, freeze_objects


class Part:
    """An object of a replaced model: a cycle, which only the garbage collection frees."""

    def __init__(self) -> None:
        self.whole = self


def test_freezing_keeps_live_objects_out_of_collections() -> None:
    kept, replaced = Part(), Part()
    dead = weakref.ref(replaced)
    try:
        freeze_objects()
        frozen = gc.get_freeze_count()
        del replaced
        gc.collect()
        assert dead() is not None  # it was frozen while it lived
        freeze_objects()

        assert frozen > 1_000
        assert dead() is None
        assert kept.whole is kept
    finally:
        gc.unfreeze()


def make_state(version: int) -> DesiredState:
    served = ServedVersion(version=version, candidate=f"c{version}", model_digest="1" * 64, served_digest="0" * 64)
    plan = TrafficPlan(
        model="visits",
        sequence=version,
        decision=version,
        mode=Mode.ALL,
        stable=version,
        successor=None,
        share=0.0,
        since=datetime.now(UTC),
        reason="test",
        actor="test",
    )
    return DesiredState(model="visits", revision=version, plan=plan, arms={version: served})


@pytest.mark.fault("R28")
def test_starting_worker_takes_no_request_without_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the first state are removed while the worker starts, because a newer state has followed."""
    channel = cast("Any", SimpleNamespace(send=lambda _: None))
    worker = Worker(WorkerTask(listening=0, channel=0, home=str(tmp_path), model="visits", name="w"), channel)
    ready = list[bool]()

    def load(_home: Path, _model: str, served: ServedVersion) -> Any:
        ready.append(worker._first_read.is_set())
        if served.version == 1:
            worker._desired = make_state(2)
            worker._received.set()
            raise ModelError("The model file cannot be read: No such file or directory.")
        field = Field(name="pages", kind="float", dtype="float64")
        entity = Field(name="visitor", kind="int", dtype="int64")
        contract = RequestContract(model="visits", task="binary", features=(field,), entity=entity)
        formats = Formats(contract)
        return SimpleNamespace(
            version=2, served=served, contract=contract, formats=formats, way="frame", predict=None, logged=None
        )

    monkeypatch.setattr(worker_module, "load_version", load)

    async def start() -> None:
        worker._desired = make_state(1)
        worker._received.set()
        following, ready_to_serve = worker._follow_states(), worker._first_read.wait()
        tasks = [asyncio.create_task(following), asyncio.create_task(ready_to_serve)]
        done, _ = await asyncio.wait(tasks, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        tasks[0].cancel()

    asyncio.run(start())
    worker.prediction_log.close()
    gc.unfreeze()

    assert ready == [False, False]
    assert worker.handler.serving is not None
    assert worker.handler.serving.stable.version == 2
