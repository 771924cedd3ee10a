"""Tests of batching: queued requests become one call, and an invalid record fails alone."""

import asyncio
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ml_platform.errors import BusyError, ModelTimeoutError, PredictionError, QueueTimeoutError
from ml_platform.inference.predictor import Answers
from ml_platform.inference.request_contract import Record
from ml_platform.serving.worker.batching import QUICK_RECORDS, QUICK_SECONDS, Batcher
from ml_platform.serving.worker.routing import ServedModel

RAISES, NAN, MISSING = -1, -2, -3


class Model:
    """Scores each record as half of its only value; a closed `gate` blocks calls, `calls` has their sizes."""

    def __init__(self) -> None:
        self.calls = list[int]()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def predict(self, records: list[Record]) -> Answers:
        self.calls.append(len(records))
        self.entered.set()
        assert self.gate.wait(20)
        values = [record[0] for record in records]
        if RAISES in values:
            raise KeyError(f"no such plan: {records}")
        scores = [float("nan") if value == NAN else value / 2 for value in values if value != MISSING]
        return Answers(scores, values)


async def start_blocked_call(model: Model, batcher: Batcher) -> "asyncio.Task[Answers]":
    """Request a prediction of one record, and return when the model is blocked in it."""
    model.gate.clear()
    model.entered.clear()
    task = asyncio.create_task(batcher.predict([(0,)]))
    await asyncio.to_thread(model.entered.wait, 20)
    return task


def run(body: Callable[[Model], Coroutine[Any, Any, None]]) -> Model:
    model = Model()
    asyncio.run(asyncio.wait_for(body(model), 30))
    return model


def test_requests_to_a_busy_model_become_one_call() -> None:
    async def body(model: Model) -> None:
        batcher = Batcher(model.predict)
        first = await start_blocked_call(model, batcher)
        others = [asyncio.create_task(batcher.predict([(n,), (n + 1,)])) for n in range(1, 20)]
        await asyncio.sleep(0)
        assert batcher.waiting == 38
        model.gate.set()
        assert await first == Answers([0.0], [0])
        assert await asyncio.gather(*others) == [Answers([n / 2, (n + 1) / 2], [n, n + 1]) for n in range(1, 20)]
        await batcher.close()

    assert run(body).calls == [1, 38]


class Where:
    """A quick model that notes the thread of each call, and fails on a negative value; `seconds` slows a call."""

    def __init__(self) -> None:
        self.threads = list[str]()
        self.seconds = 0.0

    def predict(self, records: list[Record]) -> Answers:
        self.threads.append(threading.current_thread().name)
        if self.seconds:
            time.sleep(self.seconds)
        values = [record[0] for record in records]
        if min(values) < 0:
            raise KeyError(values)
        return Answers(values, values)


@pytest.mark.parametrize("compiled", [True, False])
def test_quick_compiled_calls_run_in_event_loop(*, compiled: bool) -> None:
    model = Where()

    async def body() -> None:
        batcher = Batcher(model.predict, compiled=compiled)
        for value in (1, 2, 3):
            assert await batcher.predict([(value,)]) == Answers([value], [value])
        several = await asyncio.gather(*(batcher.predict([(value,)]) for value in (4, -5, 6)), return_exceptions=True)
        assert several[::2] == [Answers([4], [4]), Answers([6], [6])]
        assert isinstance(several[1], PredictionError)
        await batcher.close()

    asyncio.run(body())

    # The first call is measured in a thread; the failed call of three is repeated one by one.
    assert model.threads[0] == "predict_0"
    assert set(model.threads[1:]) == {"MainThread" if compiled else "predict_0"}
    assert len(model.threads) == 3 + 1 + 3


def test_slow_or_large_calls_run_in_thread() -> None:
    model = Where()

    async def body() -> None:
        batcher = Batcher(model.predict, compiled=True)
        await batcher.predict([(1,)])
        await batcher.predict([(1,)] * (QUICK_RECORDS + 1))
        model.seconds = 10 * QUICK_SECONDS
        await batcher.predict([(1,)])
        await batcher.predict([(1,)])
        await batcher.close()

    asyncio.run(body())

    assert model.threads == ["predict_0", "predict_0", "MainThread", "predict_0"]


def test_concurrent_requests_become_one_call() -> None:
    async def body(model: Model) -> None:
        batcher = Batcher(model.predict)
        await asyncio.gather(*(batcher.predict([(n,)]) for n in range(8)))
        await batcher.close()

    assert run(body).calls == [8]


@pytest.mark.fault("R15")
def test_long_request_lets_others_between_its_calls() -> None:
    async def body(model: Model) -> None:
        batcher = Batcher(model.predict, max_records_per_call=4)
        first = await start_blocked_call(model, batcher)
        tasks = [asyncio.create_task(batcher.predict([(n,)] * size)) for n, size in enumerate((3, 2, 10, 1))]
        await asyncio.sleep(0)
        model.gate.set()
        await first
        assert [len(answers.scores) for answers in await asyncio.gather(*tasks)] == [3, 2, 10, 1]
        await batcher.close()

    assert run(body).calls == [1, 3, 2, 4, 1, 4, 2]


@pytest.mark.fault("R15")
@pytest.mark.parametrize("bad", [0, 5, 9])
def test_long_request_with_failing_part_fails(bad: int) -> None:
    async def body(model: Model) -> None:
        batcher = Batcher(model.predict, max_records_per_call=4, max_waiting=20)
        values = [(RAISES,) if n == bad else (n,) for n in range(10)]
        long, short = batcher.predict(values), batcher.predict([(7,)])
        failure, answers = await asyncio.gather(long, short, return_exceptions=True)
        assert isinstance(failure, PredictionError)
        assert answers == Answers([3.5], [7])
        assert batcher.waiting == 0
        assert await batcher.predict([(n,) for n in range(10)]) == Answers([n / 2 for n in range(10)], [*range(10)])
        await batcher.close()

    run(body)


@pytest.mark.fault("R15")
def test_cancelled_long_request_is_predicted_no_further() -> None:
    async def body(model: Model) -> None:
        batcher = Batcher(model.predict, max_records_per_call=4)
        model.gate.clear()
        task = asyncio.create_task(batcher.predict([(1,)] * 10))
        await asyncio.to_thread(model.entered.wait, 20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        model.gate.set()
        assert await batcher.predict([(2,)]) == Answers([1.0], [2])
        assert batcher.waiting == 0
        await batcher.close()

    assert run(body).calls == [4, 1]


@pytest.mark.fault("R26")
@pytest.mark.parametrize(
    ("bad", "message"), [(RAISES, "KeyError in predict, line"), (NAN, "finite"), (MISSING, "each of 1 records")]
)
def test_record_that_fails_does_not_fail_others(bad: int, message: str) -> None:
    async def body(model: Model) -> None:
        batcher = Batcher(model.predict)
        results = await asyncio.gather(*(batcher.predict([(n,)]) for n in (1, 2, bad, 3)), return_exceptions=True)
        assert [result.predictions for result in results if isinstance(result, Answers)] == [[1], [2], [3]]
        assert isinstance(results[2], PredictionError)
        assert message in str(results[2])
        assert "no such plan" not in "".join(traceback.format_exception(results[2]))
        assert await batcher.predict([(4,)]) == Answers([2.0], [4])
        await batcher.close()

    assert run(body).calls == [4, 1, 1, 1, 1, 1]


def test_multiclass_score_that_is_not_finite_fails() -> None:
    async def body(_: Model) -> None:
        batcher = Batcher(lambda records: Answers([[0.5, float("inf")]] * len(records), [0] * len(records)))
        with pytest.raises(PredictionError, match="finite"):
            await batcher.predict([(1,)])
        await batcher.close()

    run(body)


def test_full_queue_refuses_and_loses_no_request() -> None:
    async def body(model: Model) -> None:
        batcher = Batcher(model.predict, max_waiting=3)
        first = await start_blocked_call(model, batcher)
        waiting = [asyncio.create_task(batcher.predict([(n,)])) for n in (1, 2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="3 are waiting"):
            await batcher.predict([(4,)])
        model.gate.set()
        assert [(await task).predictions for task in (first, *waiting)] == [[0], [1], [2], [3]]
        # An empty queue accepts a request of any size.
        assert (await batcher.predict([(n,) for n in range(9)])).predictions == list(range(9))
        await batcher.close()

    run(body)


def test_cancelled_request_is_not_predicted() -> None:
    async def body(model: Model) -> None:
        batcher = Batcher(model.predict)
        first = await start_blocked_call(model, batcher)
        cancelled = asyncio.create_task(batcher.predict([(1,)]))
        kept = asyncio.create_task(batcher.predict([(2,), (2,)]))
        await asyncio.sleep(0)
        cancelled.cancel()
        first.cancel()
        model.gate.set()
        assert (await kept).predictions == [2, 2]
        assert batcher.waiting == 0
        await batcher.close()

    assert run(body).calls == [1, 2]


def test_close_answers_queued_requests_and_refuses_new() -> None:
    async def body(model: Model) -> None:
        batcher = Batcher(model.predict)
        first = await start_blocked_call(model, batcher)
        second = asyncio.create_task(batcher.predict([(1,)]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await batcher.predict([(2,)])
        assert not closing.done()
        model.gate.set()
        await closing
        assert (first.result().predictions, second.result().predictions) == ([0], [1])

    run(body)


def test_close_of_idle_batcher_returns_at_once() -> None:
    async def body(model: Model) -> None:
        await Batcher(model.predict).close()

    assert run(body).calls == []


# Timeouts of a successor


def serve_model(model: Model) -> ServedModel:
    served = SimpleNamespace(version=2, model_digest="0")
    return ServedModel(
        cast("Any", SimpleNamespace(way="frame", version=2, served=served, predict=model.predict, formats=None))
    )


@pytest.mark.fault("R19")
def test_request_behind_a_larger_one_is_no_failure() -> None:
    async def body(model: Model) -> None:
        successor = serve_model(model)
        model.gate.clear()
        batch = asyncio.create_task(successor.predict([(n,) for n in range(200)], 20.0))
        await asyncio.to_thread(model.entered.wait, 20)
        with pytest.raises(QueueTimeoutError, match="Version 2 was busy with a larger request"):
            await successor.predict([(1,)], 0.05)
        model.gate.set()
        assert len((await batch).scores) == 200
        assert (await successor.predict([(4,)], 20.0)).scores == [2]

    assert run(body).calls == [200, 1]  # the request that waited left the queue


@pytest.mark.fault("R19")
def test_request_behind_an_equal_one_is_a_failure() -> None:
    async def body(model: Model) -> None:
        successor = serve_model(model)
        model.gate.clear()
        first = asyncio.create_task(successor.predict([(1,)], 0.05))
        await asyncio.to_thread(model.entered.wait, 20)
        second = asyncio.create_task(successor.predict([(2,)], 0.1))
        for late in (first, second):
            with pytest.raises(ModelTimeoutError) as error:
                await late
            assert not isinstance(error.value, QueueTimeoutError)
        with pytest.raises(ModelTimeoutError, match="still busy"):
            await successor.predict([(3,)], 0.1)
        model.gate.set()

    run(body)
