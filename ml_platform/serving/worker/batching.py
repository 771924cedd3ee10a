"""Batches the requests that arrive while a model predicts: they become its next call, in one thread per version.

A prediction of 32 records takes about as long as one of a single record, so a busy version predicts its whole queue at
once. A request to an idle version does not wait for a batch. A compiled version is called in the event loop while its
calls take less than a millisecond: to hand a call to a thread and back takes longer.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ml_platform.errors import BusyError, PredictionError
from ml_platform.inference.predictor import Answers
from ml_platform.inference.request_contract import Record
from ml_platform.safe_text import describe_without_values

MAX_RECORDS_PER_CALL = 256
MAX_WAITING = 4_096
# Calls of up to this many seconds may run in the event loop, which they block; the weight of the last call in the mean.
QUICK_SECONDS = 0.001
QUICK_RECORDS = 64
LAST_CALL = 0.3

Predict = Callable[[list[Record]], Answers]


@dataclass(eq=False)
class _QueuedRequest:
    records: list[Record]
    answer: "asyncio.Future[Answers]"
    alone: bool = False
    # The answers to the first parts of a request that has more records than a call.
    answered: Answers = field(default_factory=lambda: Answers([], []))


class Batcher:
    """Predicts with one version for all coroutines of one event loop.

    Parameters
    ----------
    predict : callable
        Takes a list of records and returns their `Answers`; it runs in a thread of its own, one call at a time, and may
        raise any exception.
    max_records_per_call : int
        Maximum number of records in a call. A request of more gets several calls, between which others get theirs.
    max_waiting : int
        Maximum number of records in the queue, of each request those of its next call; a request that would exceed it
        is refused.
    compiled : bool
        True if `predict` runs no code of the model's author: its calls run in the event loop while they are quick.
    """

    def __init__(
        self,
        predict: Predict,
        *,
        max_records_per_call: int = MAX_RECORDS_PER_CALL,
        max_waiting: int = MAX_WAITING,
        compiled: bool = False,
    ) -> None:
        self._predict = predict
        self._compiled = compiled
        self._mean_seconds: float | None = None
        self._max_records_per_call = max_records_per_call
        self._max_waiting = max_waiting
        self._queue = deque[_QueuedRequest]()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self._busy = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._call_began: float | None = None
        self.waiting = 0

    async def predict(self, records: list[Record]) -> Answers:
        """Return the model's answers for some records.

        A request whose caller is cancelled (`asyncio.timeout`) leaves the queue; a running call is not interrupted.

        Raises
        ------
        BusyError
            The queue is full, or the batcher is closed.
        PredictionError
            The model raised, or did not return a finite score for each record. Other requests of the same call are
            answered nevertheless.
        """
        loop = asyncio.get_running_loop()
        request = _QueuedRequest(records, loop.create_future())
        if self._closed or (self.waiting and self.waiting + len(self._next_part(request)) > self._max_waiting):
            raise BusyError(
                f"At most {self._max_waiting:,} records may wait for a prediction. {self.waiting:,} are waiting. Try "
                "again in a second."
            )
        self._queue.append(request)
        self.waiting += len(self._next_part(request))
        if not self._busy:
            self._busy = True
            self._idle.clear()
            # Not at once: other requests that this iteration of the loop has received join the call.
            loop.call_soon(self._call_next, loop)
        return await request.answer

    @property
    def seconds_in_call(self) -> float:
        """Seconds since the model's running call began; 0 if none runs. A call has at most one part of a request."""
        began = self._call_began
        return 0.0 if began is None else time.monotonic() - began

    async def close(self) -> None:
        """Refuse new requests, and wait until all queued requests are answered."""
        self._closed = True
        await self._idle.wait()
        self._thread.shutdown(wait=False)

    def _next_part(self, request: _QueuedRequest) -> list[Record]:
        """Return the next records of a request that have no answer yet, as many as a call may have."""
        start = len(request.answered.scores)
        return request.records[start : start + self._max_records_per_call]

    def _call_next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the next call, with as many queued requests as fit, or with one that must be predicted alone."""
        batch, records, most = list[_QueuedRequest](), list[Record](), self._max_records_per_call
        while self._queue:
            request = self._queue[0]
            part = self._next_part(request)
            if batch and (len(records) + len(part) > most or request.alone or batch[0].alone):
                break
            self._queue.popleft()
            self.waiting -= len(part)
            if not request.answer.done():  # not cancelled by its caller
                batch.append(request)
                records += part
        if not batch:
            self._busy = False
            self._idle.set()
            return
        if self._is_quick(len(records)):
            self._finish(loop, batch, len(records), run_here(self._measure, records))
            return
        call = self._thread.submit(self._measure, records)
        call.add_done_callback(lambda done: loop.call_soon_threadsafe(self._finish, loop, batch, len(records), done))

    def _is_quick(self, records: int) -> bool:
        """Tell whether a call may run in the event loop: the last calls were quick, and this one is no larger."""
        mean = self._mean_seconds
        return self._compiled and records <= QUICK_RECORDS and mean is not None and mean < QUICK_SECONDS

    def _finish(
        self, loop: asyncio.AbstractEventLoop, batch: list[_QueuedRequest], records: int, call: "Future[Answers]"
    ) -> None:
        failure = _find_failure(call, records)
        if failure and len(batch) > 1:
            # Repeat the requests one by one: only those that cause the failure get it.
            for request in reversed(batch):
                request.alone = True
                self._queue.appendleft(request)
                self.waiting += len(self._next_part(request))
        elif failure:
            _set_answer(batch[0], failure)
        else:
            answers, start = call.result(), 0
            for request in batch:
                end = start + len(self._next_part(request))
                request.answered.scores.extend(answers.scores[start:end])
                request.answered.predictions.extend(answers.predictions[start:end])
                start = end
                if self._next_part(request) and not request.answer.done():
                    self._queue.append(request)
                    self.waiting += len(self._next_part(request))
                else:
                    _set_answer(request, request.answered)
        # Not at once: a call in the event loop must not keep it from other requests.
        loop.call_soon(self._call_next, loop)

    def _measure(self, records: list[Record]) -> Answers:
        """Call the model, and note the duration of the call."""
        self._call_began = began = time.monotonic()
        try:
            answers = self._predict(records)
        finally:
            self._call_began = None
        if len(records) <= QUICK_RECORDS:
            seconds, mean = time.monotonic() - began, self._mean_seconds
            self._mean_seconds = seconds if mean is None else mean + LAST_CALL * (seconds - mean)
        return answers


def run_here(predict: Predict, records: list[Record]) -> "Future[Answers]":
    """Call a model in this thread; return a future with its answers or its exception, as an executor does."""
    call = Future[Answers]()
    try:
        call.set_result(predict(records))
    except Exception as error:  # noqa: BLE001 - a model may raise any exception; the caller reports it
        call.set_exception(error)
    return call


def _set_answer(request: _QueuedRequest, answer: Answers | PredictionError) -> None:
    if request.answer.done():
        return
    if isinstance(answer, PredictionError):
        request.answer.set_exception(answer)
    else:
        request.answer.set_result(answer)


def _find_failure(call: "Future[Answers]", records: int) -> PredictionError | None:
    """Return the error of a call for a number of records; ``None`` if it succeeded."""
    # A model may raise any exception; the future has caught it.
    error = call.exception()
    if error is not None:
        # Without `error` as its cause: a traceback would show the text.
        return PredictionError(
            f"The model failed to predict: {describe_without_values(error)}. Its message is not shown, because it may "
            "quote values of the request."
        )
    answers = call.result()
    if len(answers.scores) != records or len(answers.predictions) != records:
        return PredictionError(
            f"The model must return an answer for each of {records} records. It returned {len(answers.scores)}."
        )
    if not all(map(is_finite, answers.scores)):
        return PredictionError("The model must return finite scores. It returned NaN or infinity.")
    return None


def is_finite(score: Any) -> bool:
    """Return True if a score, or each score of a list, is neither NaN nor infinite."""
    return all(map(math.isfinite, score)) if isinstance(score, list) else math.isfinite(score)
