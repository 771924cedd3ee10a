"""Answers prediction requests: selects a version, predicts, falls back, counts, logs, and copies to a shadow.

This module knows no HTTP beyond status codes and headers; `http/app.py` reads the bodies and sends the replies.
"""

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import msgspec

from ml_platform.errors import BusyError, ModelTimeoutError, QueueTimeoutError, RequestError
from ml_platform.inference.predictor import Answers
from ml_platform.inference.request_contract import Record, RequestContract
from ml_platform.monitoring.prediction_log.writer import Prediction, PredictionLog, TrafficRole
from ml_platform.records.traffic import deadlines_for, find_cell
from ml_platform.serving.counters import Counts, VersionCounts
from ml_platform.serving.http import wire_formats
from ml_platform.serving.http.request_body import ACCEPT_ENCODING
from ml_platform.serving.http.wire_formats import Formats, Requests
from ml_platform.serving.worker.routing import PredictionResult, RoutingTable, ServedModel, request_prediction

# Bodies of more bytes are read and logged in a thread, so that other requests do not wait; at most so many wait for it.
LARGE_BODY = 64 * 1024
MAX_LARGE_WAITING = 16
# Maximum number of records in running shadow requests; further ones are dropped and counted.
MAX_SHADOWED = 1_024
LONGEST_KEY = 256
REQUEST_ID_LENGTH = 128
NO_ROLE = "none"
STATUS_OF: dict[type[Exception], int] = {BusyError: 503, ModelTimeoutError: 504}

Result = TypeVar("Result")
Headers = list[tuple[bytes, bytes]]
_encode = msgspec.json.encode


@dataclass(frozen=True)
class WireFormat:
    """Reads requests and writes responses of one format."""

    read: Callable[[Formats, bytes], Requests]
    write: Callable[[RequestContract, Requests, Answers, int], bytes]


INVOCATIONS = WireFormat(
    Formats.read_invocation,
    lambda contract, _, answers, __: wire_formats.invocation_answer(contract, answers),
)
INFERENCE = WireFormat(
    Formats.read_inference,
    lambda contract, requests, answers, version: wire_formats.inference_answer(
        contract, requests, answers, version=version
    ),
)


@dataclass(frozen=True)
class Reply:
    """A response; `after` must be called after it has been sent."""

    status: int
    body: bytes
    headers: Headers
    after: Callable[[], None] | None = None


@dataclass(frozen=True)
class _Request:
    """The contents of a body as the stable version reads it, with its key, id and time of arrival."""

    contents: Requests
    key: str
    id: str
    at: float
    body: bytes
    wire: WireFormat

    def read_for(self, model: ServedModel, serving: RoutingTable) -> list[Record]:
        """Return the records as a version reads them; raise RequestError if it refuses what the stable version takes.

        Each version has its own columns, in its own order.
        """
        if model.loaded.contract.features == serving.stable.loaded.contract.features:
            return self.contents.records
        return self.wire.read(serving.formats[model.version], self.body).records


class RequestHandler:
    """Answers the requests of one worker.

    Parameters
    ----------
    counts : Counts
    log : PredictionLog or None
        ``None`` disables the log.

    Attributes
    ----------
    serving : RoutingTable or None
        The routing table; a swap replaces the object, which itself never changes. ``None`` before a version is loaded.
    """

    def __init__(self, counts: Counts, log: PredictionLog | None) -> None:
        self.counts = counts
        self.log = log
        self.serving: RoutingTable | None = None
        self._large = ThreadPoolExecutor(max_workers=1, thread_name_prefix="large")
        self._large_waiting = 0
        self._shadowed = 0
        self._shadows: set[asyncio.Task[None]] = set()

    async def answer(
        self, wire: WireFormat, body: bytes, *, key: str | None, request_id: str, version: int | None = None
    ) -> Reply:
        """Return the reply to a prediction request; a failure is a reply too.

        Parameters
        ----------
        wire : WireFormat
        body : bytes
        key : str or None
            The key in the client's header, which selects the version; a key in the body takes precedence.
        request_id : str
        version : int or None
            The version that must predict; ``None`` selects it by the traffic plan.
        """
        serving = self.serving
        if serving is None:
            return not_ready(request_id)
        try:
            model = serving.stable if version is None else serving.models[version]
            read = partial(self._read, wire, serving, model, body, key, request_id)
            request = await self._run_large(read) if len(body) > LARGE_BODY else read()
        except KeyError:
            self.counts.count_response(0, NO_ROLE, 404)
            error_body = _encode({"error": f"version {version} is not loaded", "problems": []})
            return Reply(404, error_body, _make_headers(serving, None, request_id))
        except RequestError as error:
            self.counts.count_response(model.version, NO_ROLE, error.status)
            return Reply(error.status, wire_formats.error_answer(error), _make_headers(serving, model, request_id))
        except BusyError as error:
            self.counts.count_response(model.version, NO_ROLE, 503)
            headers = [*_make_headers(serving, model, request_id), (b"retry-after", b"1")]
            return Reply(503, _encode({"error": str(error), "problems": []}), headers)
        if version is not None:
            result = await self._predict(serving, request.contents.records, model, TrafficRole.CHAMPION)
            return self._make_reply(wire, serving, request, [result])
        return await self._answer_by_plan(wire, serving, request)

    def close(self) -> None:
        """Wait until the predictions of large requests are in the log's queue."""
        self._large.shutdown()

    async def _run_large(self, work: Callable[[], Result]) -> Result:
        """Run work on a large body in a thread, one after the other.

        Raises
        ------
        BusyError
            `MAX_LARGE_WAITING` large requests wait already.
        """
        if self._large_waiting >= MAX_LARGE_WAITING:
            raise BusyError(
                f"At most {MAX_LARGE_WAITING} requests of more than {LARGE_BODY:,} bytes may wait to be read. Try "
                "again in a second, or predict files with `ml-platform predict`."
            )
        self._large_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._large, work)
        finally:
            self._large_waiting -= 1

    def _read(
        self,
        wire: WireFormat,
        serving: RoutingTable,
        model: ServedModel,
        body: bytes,
        key: str | None,
        request_id: str,
    ) -> _Request:
        contents = wire.read(serving.formats[model.version], body)
        if contents.sticky_key is not None:
            key = contents.sticky_key
        elif key is None and contents.entities and contents.entities[0] is not None:
            key = str(contents.entities[0])
        key = key if key is not None else request_id
        return _Request(contents, key, request_id, time.time(), body, wire)

    async def _answer_by_plan(self, wire: WireFormat, serving: RoutingTable, request: _Request) -> Reply:
        model, role = serving.select_model(request.key)
        counts = self.counts.version_counts(serving.plan.sequence, model.version)
        counts.requests += 1
        if role is TrafficRole.CHAMPION:
            result = await self._predict(serving, request.contents.records, model, role)
            _count_unit(counts, serving, request, result)
            return self._make_reply(wire, serving, request, [result])
        result = await self._predict_as_read(serving, request, model, role)
        _count_unit(counts, serving, request, result)
        if result.answers is not None:
            return self._make_reply(wire, serving, request, [result])
        self.counts.count_fallback(model.version, "no answer")
        fallback = await self._predict(serving, request.contents.records, serving.stable, TrafficRole.CHAMPION)
        return self._make_reply(wire, serving, request, [fallback, result])

    async def _predict_as_read(
        self, serving: RoutingTable, request: _Request, model: ServedModel, role: TrafficRole
    ) -> PredictionResult:
        """Predict with a successor, which reads the request by its own contract."""
        try:
            read = partial(request.read_for, model, serving)
            records = await self._run_large(read) if len(request.body) > LARGE_BODY else read()
        except (RequestError, BusyError):
            unread = [(None,) * len(model.loaded.contract.features)] * len(request.contents.records)
            error = "it refuses a request that the stable version accepts"
            return PredictionResult(model, role, unread, 0.0, error=error)
        return await self._predict(serving, records, model, role)

    async def _predict(
        self, serving: RoutingTable, records: list[Record], model: ServedModel, role: TrafficRole
    ) -> PredictionResult:
        """Predict with a version, and count the result."""
        timeout = None if role is TrafficRole.CHAMPION else serving.deadline * deadlines_for(len(records))
        result = await request_prediction(model, role, records, timeout)
        counts = self.counts.version_counts(serving.plan.sequence, model.version)
        # A timeout counts as at least the deadline, also for a request that did not wait because the version was busy.
        if timeout is not None and result.kind is ModelTimeoutError:
            result.seconds = max(result.seconds, timeout)
        counts.count_prediction(len(records), result.seconds, failed=result.answers is None)
        return result

    def _make_reply(
        self, wire: WireFormat, serving: RoutingTable, request: _Request, results: list[PredictionResult]
    ) -> Reply:
        """Return a reply with the first result; the others are failed ones, for the log."""
        result = results[0]
        headers = _make_headers(serving, result.model, request.id)
        if result.answers is None:
            status = STATUS_OF.get(result.kind, 500)
            body = _encode({"error": result.error, "problems": []})
            headers += [(b"retry-after", b"1")] if status == 503 else []
        else:
            status = 200
            body = wire.write(result.model.loaded.contract, request.contents, result.answers, result.model.version)
        self.counts.count_response(result.model.version, result.role, status)
        return Reply(status, body, headers, lambda: self._log_and_shadow(serving, request, results))

    def refuse_unread(self, error: RequestError, request_id: str) -> Reply:
        """Return the reply to a request whose body was not read completely."""
        self.counts.count_response(0, NO_ROLE, error.status)
        serving = self.serving
        headers = _make_headers(serving, serving.stable, request_id) if serving else []
        if any(problem.field == "content-encoding" for problem in error.problems):
            headers.append((b"accept-encoding", ACCEPT_ENCODING))
        # The rest of the body must not be parsed as the next request.
        return Reply(error.status, wire_formats.error_answer(error), [*headers, (b"connection", b"close")])

    # After the response was sent

    def _log_and_shadow(self, serving: RoutingTable, request: _Request, results: list[PredictionResult]) -> None:
        for result in results:
            if len(request.body) > LARGE_BODY:
                self._large.submit(self._write_log, request, result)
            else:
                self._write_log(request, result)
        shadow = serving.shadow
        if shadow is None:
            return
        records = len(request.contents.records)
        if self._shadowed + records > MAX_SHADOWED:
            self.counts.shadow_dropped += 1
            return
        self._shadowed += records
        task = asyncio.ensure_future(self._predict_shadow(shadow, serving, request))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    def _write_log(self, request: _Request, result: PredictionResult) -> None:
        if self.log is None:
            return
        contents, answers = request.contents, result.answers
        size = len(request.body) // len(contents.records)
        for position, record in enumerate(result.records):
            self.log.write(
                Prediction(
                    of=result.model.loaded.logged,
                    role=result.role,
                    at=request.at,
                    seconds=result.seconds,
                    request_id=request.id,
                    position=position,
                    record=record,
                    entity=contents.entities[position] if contents.entities else None,
                    score=answers.scores[position] if answers else None,
                    prediction=answers.predictions[position] if answers else None,
                    error=result.error or None,
                    size=size,
                )
            )

    async def _predict_shadow(self, shadow: ServedModel, serving: RoutingTable, request: _Request) -> None:
        counts = self.counts.version_counts(serving.plan.sequence, shadow.version)
        counts.requests += 1
        try:
            result = await self._predict_as_read(serving, request, shadow, TrafficRole.SHADOW)
            _count_unit(counts, serving, request, result)
            self._write_log(request, result)
        finally:
            self._shadowed -= len(request.contents.records)


def _count_unit(counts: VersionCounts, serving: RoutingTable, request: _Request, result: PredictionResult) -> None:
    """Count the outcome of the version that the split assigned, if the plan is a comparison of two versions."""
    if not serving.plan.under_way or result.kind is QueueTimeoutError:
        return
    cell, seconds = (
        find_cell(request.key, serving.plan.salt),
        result.seconds / deadlines_for(len(request.contents.records)),
    )
    if counts.count_unit(cell, seconds, failed=result.answers is None) and result.answers is not None:
        contract = serving.stable.loaded.contract
        buckets = [contract.find_score_bucket(score) for score in result.answers.scores]
        counts.count_scores(buckets, len(contract.score_ends) + 1)


def _make_headers(serving: RoutingTable, model: ServedModel | None, request_id: str) -> Headers:
    model_headers = model.headers if model else []
    return [*serving.headers, *model_headers, (b"ml-platform-request-id", request_id.encode())]


def not_ready(request_id: str) -> Reply:
    """Return the reply of a worker that has not loaded a version yet."""
    body = _encode({"error": "No version is loaded yet. Try again in a second.", "problems": []})
    return Reply(503, body, [(b"retry-after", b"1"), (b"ml-platform-request-id", request_id.encode())])


def choose_request_id(given: bytes | None) -> str:
    """Return the client's id of a request if it is short and printable, else a random id."""
    if given and len(given) <= REQUEST_ID_LENGTH and given.isascii():
        text = given.decode()
        if text.isprintable():
            return text
    return os.urandom(16).hex()


def parse_sticky_key(given: bytes | None) -> str | None:
    """Return the key in a header, at most `LONGEST_KEY` characters of it; ``None`` without a header."""
    return given[:LONGEST_KEY].decode("latin-1") if given else None


def read_counts(handler: RequestHandler) -> Counts:
    """Return a worker's counts, with the present lengths of its queues."""
    counts, serving, log = handler.counts, handler.serving, handler.log
    counts.queued = {version: model.waiting for version, model in serving.models.items()} if serving else {}
    if log is not None:
        figures = log.figures
        counts.log_written, counts.log_queued, counts.log_dropped = figures.written, figures.queued, figures.dropped
    return counts
