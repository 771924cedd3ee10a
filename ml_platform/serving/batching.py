"""Requests that arrive while a model is busy become its next call: one thread a version, and nobody waits when idle.

A prediction of 32 records costs about what one costs, so a busy version answers its whole queue at once.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ml_platform.errors import BusyError, PredictionError
from ml_platform.predictor import Answers
from ml_platform.request_contract import Record

MOST_IN_A_CALL = 256
MOST_WAITING = 4_096

Predict = Callable[[list[Record]], Answers]


@dataclass(eq=False)
class _Waiting:
    records: list[Record]
    answer: "asyncio.Future[Answers]"
    alone: bool = False


class Batcher:
    """Asks one version, for all coroutines of one event loop.

    Parameters
    ----------
    predict : callable
        Takes a list of records and returns their `Answers`; it runs in a thread of its own, one call at a time, and
        may raise whatever it likes.
    most_in_a_call : int
        Records that are given to it at once; a request of more has its calls to itself.
    most_waiting : int
        Records that may wait; a request that comes with more is refused.
    """

    def __init__(
        self, predict: Predict, *, most_in_a_call: int = MOST_IN_A_CALL, most_waiting: int = MOST_WAITING
    ) -> None:
        self._predict = predict
        self._most_in_a_call = most_in_a_call
        self._most_waiting = most_waiting
        self._queue = deque[_Waiting]()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self._busy = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.waiting = 0

    async def ask(self, records: list[Record]) -> Answers:
        """Return what the model says of some records.

        A caller that gives up (`asyncio.timeout`) is taken out of the queue; a call that runs goes on to its end.

        Raises
        ------
        BusyError
            Too many records wait, or the version is being closed.
        PredictionError
            The model raised, or said what is no finite number for each record; its neighbours in the same call are
            answered all the same.
        """
        if self._closed or (self.waiting and self.waiting + len(records) > self._most_waiting):
            raise BusyError(
                f"At most {self._most_waiting:,} records may wait for an answer. {self.waiting:,} do. Try again in a "
                "second."
            )
        loop = asyncio.get_running_loop()
        asked = _Waiting(records, loop.create_future())
        self._queue.append(asked)
        self.waiting += len(records)
        if not self._busy:
            self._busy = True
            self._idle.clear()
            # Not at once: what else this turn of the loop has read comes along.
            loop.call_soon(self._next, loop)
        return await asked.answer

    async def close(self) -> None:
        """Take nothing more, and wait until all that was asked is answered."""
        self._closed = True
        await self._idle.wait()
        self._thread.shutdown(wait=False)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = self._take()
        if not batch:
            self._busy = False
            self._idle.set()
            return
        called = self._thread.submit(self._answer, [record for asked in batch for record in asked.records])
        called.add_done_callback(lambda done: loop.call_soon_threadsafe(self._finish, loop, batch, done))

    def _take(self) -> list[_Waiting]:
        """Return the requests of the next call: as many as fit, or one that has to be asked alone."""
        batch, size = list[_Waiting](), 0
        while self._queue and (not batch or self._fits(batch[0], self._queue[0], size)):
            asked = self._queue.popleft()
            self.waiting -= len(asked.records)
            if not asked.answer.done():  # its caller did not give up
                batch.append(asked)
                size += len(asked.records)
        return batch

    def _fits(self, first: _Waiting, asked: _Waiting, size: int) -> bool:
        return not (first.alone or asked.alone) and size + len(asked.records) <= self._most_in_a_call

    def _finish(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting], called: "Future[Answers]") -> None:
        failed = _failure(called, sum(len(asked.records) for asked in batch))
        if failed and len(batch) > 1:
            self._ask_each_alone(batch)
        elif failed:
            _settle(batch[0], failed)
        else:
            for asked, answers in zip(batch, _split(called.result(), batch), strict=True):
                _settle(asked, answers)
        self._next(loop)

    def _ask_each_alone(self, batch: list[_Waiting]) -> None:
        for asked in reversed(batch):
            asked.alone = True
            self._queue.appendleft(asked)
            self.waiting += len(asked.records)

    def _answer(self, records: list[Record]) -> Answers:
        """Ask the model, in its thread; a long list in pieces, so that its memory is bounded."""
        if len(records) <= self._most_in_a_call:
            return self._predict(records)
        starts = range(0, len(records), self._most_in_a_call)
        parts = [self._predict(records[start : start + self._most_in_a_call]) for start in starts]
        return Answers(
            [score for part in parts for score in part.scores],
            [prediction for part in parts for prediction in part.predictions],
        )


def _settle(asked: _Waiting, said: Answers | PredictionError) -> None:
    if asked.answer.done():
        return
    if isinstance(said, PredictionError):
        asked.answer.set_exception(said)
    else:
        asked.answer.set_result(said)


def _split(answers: Answers, batch: list[_Waiting]) -> list[Answers]:
    if len(batch) == 1:
        return [answers]
    parts, start = list[Answers](), 0
    for asked in batch:
        end = start + len(asked.records)
        parts.append(Answers(answers.scores[start:end], answers.predictions[start:end]))
        start = end
    return parts


def _failure(called: "Future[Answers]", records: int) -> PredictionError | None:
    # A model may raise whatever it likes: the future has caught it.
    error = called.exception()
    if error is not None:
        failed = PredictionError(f"The model could not answer: {type(error).__name__}: {error}")
        failed.__cause__ = error
        return failed
    answers = called.result()
    if len(answers.scores) != records or len(answers.predictions) != records:
        return PredictionError(f"The model must answer {records} records. It answered {len(answers.scores)}.")
    if not all(map(_is_finite, answers.scores)):
        return PredictionError("The model must answer with finite numbers. It said NaN or infinity.")
    return None


def _is_finite(score: Any) -> bool:
    return all(map(math.isfinite, score)) if isinstance(score, list) else math.isfinite(score)
