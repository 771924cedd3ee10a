"""Answer requests by the state of the moment: choose a version, ask it, fall back, count, log, copy to a shadow.

Nothing here knows HTTP beyond status codes and headers; `app.py` brings bodies and takes replies.
"""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from ml_platform.errors import BusyError, ModelTimeoutError, RequestError
from ml_platform.predictor import Answers
from ml_platform.request_contract import RequestContract
from ml_platform.serving import formats
from ml_platform.serving.counts import Counts
from ml_platform.serving.formats import Formats, Requests
from ml_platform.serving.prediction_log import Prediction, PredictionLog, Slot
from ml_platform.serving.slots import Arm, Asked, Serving, ask

# Records of shadow requests that may wait; more are dropped and counted.
MOST_SHADOWED = 1_024
LONGEST_KEY = 256
REQUEST_ID_LENGTH = 128
NOBODY = "none"
STATUS_OF: dict[type[Exception], int] = {BusyError: 503, ModelTimeoutError: 504}

Headers = list[tuple[bytes, bytes]]
_encode = msgspec.json.encode


@dataclass(frozen=True)
class Wire:
    """One format of requests and answers."""

    read: Callable[[Formats, bytes], Requests]
    write: Callable[[RequestContract, Requests, Answers, int], bytes]


def _write_invocation(contract: RequestContract, _: Requests, answers: Answers, __: int) -> bytes:
    return formats.invocation_answer(contract, answers)


def _write_inference(contract: RequestContract, asked: Requests, answers: Answers, version: int) -> bytes:
    return formats.inference_answer(contract, asked, answers, version=version)


INVOCATIONS = Wire(Formats.read_invocation, _write_invocation)
INFERENCE = Wire(Formats.read_inference, _write_inference)


@dataclass(frozen=True)
class Reply:
    """An answer on its way to a client; `after` is called once it was sent."""

    status: int
    body: bytes
    headers: Headers
    after: Callable[[], None] | None = None


@dataclass(frozen=True)
class _Request:
    """A request that was read."""

    asked: Requests
    key: str
    id: str
    at: float
    size: int


class Answering:
    """Answers the requests of one worker.

    Parameters
    ----------
    counts : Counts
    log : PredictionLog or None
        ``None`` logs nothing.

    Attributes
    ----------
    serving : Serving or None
        What is served; assigned anew at a swap, never changed. ``None`` before anything was loaded.
    """

    def __init__(self, counts: Counts, log: PredictionLog | None) -> None:
        self.counts = counts
        self.log = log
        self.serving: Serving | None = None
        self._shadowed = 0
        self._shadows: set[asyncio.Task[None]] = set()

    async def answer(
        self, wire: Wire, body: bytes, *, key: str | None, request_id: str, version: int | None = None
    ) -> Reply:
        """Return the answer to a request, whatever comes of it.

        Parameters
        ----------
        wire : Wire
        body : bytes
        key : str or None
            What the client's header asks the version to be chosen by; the body's own key goes before it.
        request_id : str
        version : int or None
            The version that alone may answer; ``None`` leaves it to the plan.
        """
        serving = self.serving
        if serving is None:
            return not_ready(request_id)
        try:
            arm = serving.stable if version is None else serving.arms[version]
            request = self._read(wire, arm, body, key, request_id)
        except KeyError:
            return self._refused(serving, None, request_id, 404, f"version {version} is not loaded here")
        except RequestError as error:
            self.counts.answered(arm.version, NOBODY, error.status)
            return Reply(error.status, formats.error_answer(error), _headers(serving, arm, request_id))
        if version is not None:
            return self._reply(wire, serving, request, await self._ask(serving, request, arm, Slot.STABLE), [])
        return await self._by_plan(wire, serving, request, body)

    def _read(self, wire: Wire, arm: Arm, body: bytes, key: str | None, request_id: str) -> _Request:
        asked = wire.read(arm.loaded.formats, body)
        if asked.sticky_key is not None:
            key = asked.sticky_key
        elif key is None and asked.entities and asked.entities[0] is not None:
            key = str(asked.entities[0])
        return _Request(asked, key if key is not None else request_id, request_id, time.time(), len(body))

    async def _by_plan(self, wire: Wire, serving: Serving, request: _Request, body: bytes) -> Reply:
        arm, slot = serving.arm_for(request.key)
        self.counts.arm(serving.plan.sequence, arm.version).requests += 1
        if slot is Slot.STABLE:
            said = await self._ask(serving, request, arm, slot)
            return self._reply(wire, serving, request, said, [])
        theirs = _read_as(wire, arm, serving.stable, request, body)
        if theirs is None:
            said = Asked(arm, slot, 0.0, error="it refuses a request that the stable version takes")
        else:
            said = await self._ask(serving, theirs, arm, slot)
        if said.answers is not None:
            return self._reply(wire, serving, request, said, [])
        self.counts.fell_back(arm.version, "no answer")
        instead = await self._ask(serving, request, serving.stable, Slot.STABLE)
        return self._reply(wire, serving, request, instead, [said])

    async def _ask(self, serving: Serving, request: _Request, arm: Arm, slot: Slot) -> Asked:
        """Ask a version and count what came of it."""
        records = request.asked.records
        said = await ask(arm, slot, records, None if slot is Slot.STABLE else serving.deadline)
        counted = self.counts.arm(serving.plan.sequence, arm.version)
        # What was too late took at least as long as it may, also where nobody waited for it.
        late = slot is not Slot.STABLE and said.kind is ModelTimeoutError
        seconds = max(said.seconds, serving.deadline) if late else said.seconds
        counted.asked(len(records), seconds, failed=said.answers is None)
        if said.answers is not None:
            contract = serving.stable.loaded.contract
            buckets = [contract.bucket_of(score) for score in said.answers.scores]
            counted.scored(buckets, of=len(contract.score_ends) + 1)
        return said

    def _reply(self, wire: Wire, serving: Serving, request: _Request, said: Asked, failed: list[Asked]) -> Reply:
        headers = _headers(serving, said.arm, request.id)
        if said.answers is None:
            status = _status_of(said)
            body = _encode({"error": said.error, "problems": []})
            headers += [(b"retry-after", b"1")] if status == 503 else []
        else:
            status = 200
            body = wire.write(said.arm.loaded.contract, request.asked, said.answers, said.arm.version)
        self.counts.answered(said.arm.version, said.slot, status)
        return Reply(status, body, headers, lambda: self._afterwards(serving, request, [said, *failed]))

    def unread(self, error: RequestError, request_id: str) -> Reply:
        """Return the answer to a request whose body could not be taken."""
        self.counts.answered(0, NOBODY, error.status)
        serving = self.serving
        headers = _headers(serving, serving.stable, request_id) if serving else []
        # What was not read of it must not be taken for the next request.
        return Reply(error.status, formats.error_answer(error), [*headers, (b"connection", b"close")])

    def _refused(self, serving: Serving, arm: Arm | None, request_id: str, status: int, why: str) -> Reply:
        self.counts.answered(0, NOBODY, status)
        return Reply(status, _encode({"error": why, "problems": []}), _headers(serving, arm, request_id))

    # After the answer was sent

    def _afterwards(self, serving: Serving, request: _Request, said: list[Asked]) -> None:
        for one in said:
            self._write_log(request, one)
        shadow = serving.shadow
        if shadow is not None:
            self._copy_to(shadow, serving, request)

    def _write_log(self, request: _Request, said: Asked) -> None:
        if self.log is None:
            return
        asked, loaded = request.asked, said.arm.loaded
        size = request.size // len(asked.records)
        for position, record in enumerate(asked.records):
            self.log.write(
                Prediction(
                    of=loaded.logged,
                    slot=said.slot,
                    at=request.at,
                    seconds=said.seconds,
                    request_id=request.id,
                    position=position,
                    record=record,
                    entity=asked.entities[position] if asked.entities else None,
                    score=said.answers.scores[position] if said.answers else None,
                    prediction=said.answers.predictions[position] if said.answers else None,
                    error=said.error or None,
                    size=size,
                )
            )

    def _copy_to(self, shadow: Arm, serving: Serving, request: _Request) -> None:
        records = len(request.asked.records)
        if self._shadowed + records > MOST_SHADOWED:
            self.counts.shadow_dropped += 1
            return
        self._shadowed += records
        copied = asyncio.ensure_future(self._shadow(shadow, serving, request))
        self._shadows.add(copied)
        copied.add_done_callback(self._shadows.discard)

    async def _shadow(self, shadow: Arm, serving: Serving, request: _Request) -> None:
        try:
            self._write_log(request, await self._ask(serving, request, shadow, Slot.SHADOW))
        finally:
            self._shadowed -= len(request.asked.records)


def _read_as(wire: Wire, arm: Arm, stable: Arm, request: _Request, body: bytes) -> _Request | None:
    """Return a request as a successor with another contract reads it; ``None`` where it refuses it."""
    if arm.loaded.contract.features == stable.loaded.contract.features:
        return request
    try:
        asked = wire.read(arm.loaded.formats, body)
    except RequestError:
        return None
    return _Request(asked, request.key, request.id, request.at, request.size)


def _status_of(said: Asked) -> int:
    return STATUS_OF.get(said.kind, 500)


def _headers(serving: Serving, arm: Arm | None, request_id: str) -> Headers:
    of = arm.headers if arm else []
    return [*serving.headers, *of, (b"ml-platform-request-id", request_id.encode())]


def not_ready(request_id: str) -> Reply:
    """Return the answer of a worker that has loaded nothing yet."""
    body = _encode({"error": "No version is loaded yet. Try again in a second.", "problems": []})
    return Reply(503, body, [(b"retry-after", b"1"), (b"ml-platform-request-id", request_id.encode())])


def request_id_of(given: bytes | None) -> str:
    """Return the client's own name of a request where it is short and printable, else a random one."""
    if given and len(given) <= REQUEST_ID_LENGTH and given.isascii():
        text = given.decode()
        if text.isprintable():
            return text
    return os.urandom(16).hex()


def key_of(given: bytes | None) -> str | None:
    """Return the key that a header asks the version to be chosen by; ``None`` for none."""
    return given[:LONGEST_KEY].decode("latin-1") if given else None


def counted(answering: Answering) -> Counts:
    """Return what a worker counted so far, with what waits in it at this moment."""
    counts = answering.counts
    serving, log = answering.serving, answering.log
    counts.queued = {version: arm.waiting for version, arm in serving.arms.items()} if serving else {}
    if log is not None:
        figures = log.figures
        counts.log_written, counts.log_queued, counts.log_dropped = figures.written, figures.queued, figures.dropped
    return counts
