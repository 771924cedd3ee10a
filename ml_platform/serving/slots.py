"""Which loaded version answers a request: one immutable object a state, swapped by one assignment.

A request takes the object when it begins and keeps it to its end, whatever is swapped meanwhile: it is answered by a
version of the plan under which it came.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from ml_platform.errors import BusyError, ModelTimeoutError, PredictionError
from ml_platform.predictor import Answers
from ml_platform.request_contract import Record
from ml_platform.serving.batching import Batcher
from ml_platform.serving.loading import Loaded
from ml_platform.serving.prediction_log import Slot
from ml_platform.serving.state import DesiredState
from ml_platform.traffic import Mode, TrafficPlan


class Arm:
    """A loaded version with its queue and thread.

    It is never closed: a request that began before a swap may still ask it. Its thread ends when nobody has it any
    more.

    Parameters
    ----------
    loaded : Loaded
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.version = loaded.version
        self.batcher = Batcher(loaded.predict)
        self._late: asyncio.Task[Answers] | None = None
        served = loaded.served
        self.headers = [
            (b"ml-platform-version", str(served.version).encode()),
            (b"ml-platform-digest", served.model_digest.encode()),
        ]

    async def ask(self, records: list[Record], seconds: float | None) -> Answers:
        """Return what the version says of some records.

        Parameters
        ----------
        records : list of tuple
        seconds : float or None
            How long to wait for it; ``None`` waits as long as it takes, and costs no timer.

        Raises
        ------
        ModelTimeoutError
            It took longer than so many seconds, or is still busy with what it was too late for before: then nobody
            waits for it again.
        BusyError, PredictionError
            As `Batcher.ask`.
        """
        if seconds is None:
            return await self.batcher.ask(records)
        if self._late is not None and not self._late.done():
            raise ModelTimeoutError(f"Version {self.version} is still busy with an answer that it was too late for.")
        asked = asyncio.ensure_future(self.batcher.ask(records))
        done, _ = await asyncio.wait((asked,), timeout=seconds)
        if not done:
            self._late = asked
            asked.add_done_callback(_look_away)
            raise ModelTimeoutError(f"Version {self.version} must answer within {seconds:g} s. It did not.")
        return asked.result()

    @property
    def waiting(self) -> int:
        """Records that wait for it."""
        return self.batcher.waiting


def _look_away(late: "asyncio.Task[Answers]") -> None:
    # Nobody waits for it any more; asked for, its error is not reported as forgotten.
    if not late.cancelled():
        late.exception()


@dataclass(frozen=True, eq=False)
class Serving:
    """What a worker serves at one moment.

    Parameters
    ----------
    desired : DesiredState
        What it follows.
    plan : TrafficPlan
    arms : mapping of int to Arm
        All loaded versions.
    stable : Arm
    successor : Arm or None
        ``None`` also where the plan names one that could not be loaded.
    headers : list of (bytes, bytes)
        What every answer carries, whoever gave it.
    """

    desired: DesiredState
    plan: TrafficPlan
    arms: Mapping[int, Arm]
    stable: Arm
    successor: Arm | None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def deadline(self) -> float:
        """How long a successor may take, in seconds."""
        return self.desired.deadline_ms / 1_000

    @property
    def stale(self) -> bool:
        """Whether the version that answers may not be the one that should."""
        return bool(self.desired.stale) or self.stable.version != self.plan.stable

    @property
    def shadow(self) -> Arm | None:
        """The version that is asked beside the stable one; ``None`` where none is."""
        return self.successor if self.plan.mode is Mode.SHADOW else None

    def arm_for(self, key: str) -> tuple[Arm, Slot]:
        """Return the version that answers a key, and in which place."""
        if self.successor is not None and self.plan.version_for(key) == self.successor.version:
            return self.successor, Slot.SUCCESSOR
        return self.stable, Slot.STABLE


def serving_of(desired: DesiredState, arms: Mapping[int, Arm]) -> Serving | None:
    """Return what a worker serves by the versions that it could load; ``None`` if none of them may answer.

    Where the stable version could not be loaded, the champion before it goes on answering: an old slot stays.
    """
    former = [served.version for served in reversed(desired.known)]
    stable = next((arms[version] for version in (desired.plan.stable, *former) if version in arms), None)
    if stable is None:
        return None
    wanted = desired.plan.successor
    successor = arms.get(wanted) if wanted is not None and stable.version == desired.plan.stable else None
    headers = [(b"ml-platform-model", desired.model.encode())]
    if desired.stale or stable.version != desired.plan.stable:
        headers.append((b"ml-platform-stale", b"true"))
    return Serving(desired, desired.plan, arms, stable, successor, headers)


@dataclass
class Asked:
    """What came of asking one version: its answers or its error, and how long it took."""

    arm: Arm
    slot: Slot
    seconds: float
    answers: Answers | None = None
    error: str = ""
    kind: type[Exception] = PredictionError


async def ask(arm: Arm, slot: Slot, records: list[Record], seconds: float | None) -> Asked:
    """Ask a version, for so many seconds at most or as long as it takes, and return what came of it."""
    began = time.perf_counter()
    try:
        answers = await arm.ask(records, seconds)
    except (PredictionError, ModelTimeoutError, BusyError) as error:
        took = time.perf_counter() - began
        return Asked(arm, slot, took, error=str(error), kind=type(error))
    return Asked(arm, slot, time.perf_counter() - began, answers)
