"""What waits becomes one call; one bad record costs nobody else an answer."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ml_platform.errors import BusyError, PredictionError
from ml_platform.predictor import Answers
from ml_platform.request_contract import Record
from ml_platform.serving.batching import Batcher

BAD, ODD, FEW = -1, -2, -3


class Model:
    """Says half of each record's only value; `gate` holds a call back, `calls` are their sizes."""

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
        if BAD in values:
            raise KeyError("no such plan")
        scores = [float("nan") if value == ODD else value / 2 for value in values if value != FEW]
        return Answers(scores, values)


async def held(model: Model, batcher: Batcher) -> "asyncio.Task[Answers]":
    """Ask one record and return once the model is at it, held back."""
    model.gate.clear()
    model.entered.clear()
    task = asyncio.create_task(batcher.ask([(0,)]))
    await asyncio.to_thread(model.entered.wait, 20)
    return task


def run(body: Callable[[Model], Coroutine[Any, Any, None]]) -> Model:
    model = Model()
    asyncio.run(asyncio.wait_for(body(model), 30))
    return model


def test_an_idle_model_is_asked_at_once_and_a_busy_one_for_all_that_waits() -> None:
    async def body(model: Model) -> None:
        batcher = Batcher(model.predict)
        first = await held(model, batcher)
        others = [asyncio.create_task(batcher.ask([(n,), (n + 1,)])) for n in range(1, 20)]
        await asyncio.sleep(0)
        assert batcher.waiting == 38
        model.gate.set()
        assert await first == Answers([0.0], [0])
        assert await asyncio.gather(*others) == [Answers([n / 2, (n + 1) / 2], [n, n + 1]) for n in range(1, 20)]
        await batcher.close()

    assert run(body).calls == [1, 38]


def test_requests_of_one_turn_of_the_loop_go_together() -> None:
    async def body(model: Model) -> None:
        batcher = Batcher(model.predict)
        await asyncio.gather(*(batcher.ask([(n,)]) for n in range(8)))
        await batcher.close()

    assert run(body).calls == [8]


def test_a_call_is_bounded_also_for_a_long_request() -> None:
    async def body(model: Model) -> None:
        batcher = Batcher(model.predict, most_in_a_call=4)
        first = await held(model, batcher)
        asked = [asyncio.create_task(batcher.ask([(n,)] * size)) for n, size in enumerate((3, 2, 10, 1))]
        await asyncio.sleep(0)
        model.gate.set()
        await first
        assert [len(answers.scores) for answers in await asyncio.gather(*asked)] == [3, 2, 10, 1]
        await batcher.close()

    assert run(body).calls == [1, 3, 2, 4, 4, 2, 1]


@pytest.mark.parametrize(("bad", "said"), [(BAD, "KeyError"), (ODD, "finite"), (FEW, "must answer 1 records")])
def test_a_record_that_the_model_cannot_answer_fails_alone(bad: int, said: str) -> None:
    async def body(model: Model) -> None:
        batcher = Batcher(model.predict)
        found = await asyncio.gather(*(batcher.ask([(n,)]) for n in (1, 2, bad, 3)), return_exceptions=True)
        assert [one.predictions for one in found if isinstance(one, Answers)] == [[1], [2], [3]]
        assert isinstance(found[2], PredictionError)
        assert said in str(found[2])
        assert await batcher.ask([(4,)]) == Answers([2.0], [4])
        await batcher.close()

    assert run(body).calls == [4, 1, 1, 1, 1, 1]


def test_one_of_several_classes_that_is_not_finite_fails() -> None:
    async def body(_: Model) -> None:
        batcher = Batcher(lambda records: Answers([[0.5, float("inf")]] * len(records), [0] * len(records)))
        with pytest.raises(PredictionError, match="finite"):
            await batcher.ask([(1,)])
        await batcher.close()

    run(body)


def test_more_than_may_wait_is_refused_and_nothing_is_lost() -> None:
    async def body(model: Model) -> None:
        batcher = Batcher(model.predict, most_waiting=3)
        first = await held(model, batcher)
        waiting = [asyncio.create_task(batcher.ask([(n,)])) for n in (1, 2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="3 do"):
            await batcher.ask([(4,)])
        model.gate.set()
        assert [(await task).predictions for task in (first, *waiting)] == [[0], [1], [2], [3]]
        assert (await batcher.ask([(n,) for n in range(9)])).predictions == list(range(9))  # nobody waits: taken
        await batcher.close()

    run(body)


def test_who_gives_up_is_not_asked_for() -> None:
    async def body(model: Model) -> None:
        batcher = Batcher(model.predict)
        first = await held(model, batcher)
        impatient = asyncio.create_task(batcher.ask([(1,)]))
        patient = asyncio.create_task(batcher.ask([(2,), (2,)]))
        await asyncio.sleep(0)
        impatient.cancel()
        first.cancel()
        model.gate.set()
        assert (await patient).predictions == [2, 2]
        assert batcher.waiting == 0
        await batcher.close()

    assert run(body).calls == [1, 2]


def test_closing_answers_what_was_asked_and_takes_nothing_more() -> None:
    async def body(model: Model) -> None:
        batcher = Batcher(model.predict)
        first = await held(model, batcher)
        second = asyncio.create_task(batcher.ask([(1,)]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await batcher.ask([(2,)])
        assert not closing.done()
        model.gate.set()
        await closing
        assert (first.result().predictions, second.result().predictions) == ([0], [1])

    run(body)


def test_closing_an_idle_one_ends_at_once() -> None:
    async def body(model: Model) -> None:
        await Batcher(model.predict).close()

    assert run(body).calls == []
