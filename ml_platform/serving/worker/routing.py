"""Selects the loaded version for a request by an immutable routing table, which a swap replaces in one assignment.

A request keeps the table that it started with, even if another one replaces it meanwhile: its version belongs to the
traffic plan at the request's arrival.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ml_platform.errors import BusyError, ModelTimeoutError, PredictionError, QueueTimeoutError
from ml_platform.inference.predictor import Answers
from ml_platform.inference.request_contract import Record
from ml_platform.monitoring.prediction_log.writer import TrafficRole
from ml_platform.records.traffic import Mode, TrafficPlan
from ml_platform.serving.http.wire_formats import Formats
from ml_platform.serving.state import DesiredState
from ml_platform.serving.worker.batching import Batcher
from ml_platform.serving.worker.model_loader import Loaded


class ServedModel:
    """A loaded version with its queue and thread.

    It is never closed, because requests that started before a swap still use it. Its thread ends when the last
    reference is gone.

    Parameters
    ----------
    loaded : Loaded
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.version = loaded.version
        self.batcher = Batcher(loaded.predict, compiled=loaded.way == "compiled")
        self._formats = {frozenset[str](): loaded.formats}
        self._late: asyncio.Task[Answers] | None = None
        # The ends of the timeouts of the predictions under way, oldest first.
        self._timeouts: dict[asyncio.Task[Answers], float] = {}
        served = loaded.served
        self.headers = [
            (b"ml-platform-version", str(served.version).encode()),
            (b"ml-platform-digest", served.model_digest.encode()),
        ]

    async def predict(self, records: list[Record], timeout: float | None) -> Answers:
        """Return the version's answers for some records.

        Parameters
        ----------
        records : list of tuple
        timeout : float or None
            Maximum duration in seconds; ``None`` sets no limit, and creates no timer.

        Raises
        ------
        ModelTimeoutError
            The prediction exceeded the timeout, or the version is still busy with an earlier one that did: no further
            request waits for it.
        QueueTimeoutError
            The prediction exceeded the timeout behind an earlier one whose timeout is longer and not over.
        BusyError, PredictionError
            As `Batcher.predict`.
        """
        if timeout is None:
            return await self.batcher.predict(records)
        if self._late is not None and not self._late.done():
            raise ModelTimeoutError(
                f"Version {self.version} is still busy with a prediction that exceeded its timeout."
            )
        task = asyncio.ensure_future(self.batcher.predict(records))
        earlier = list(self._timeouts)
        self._timeouts[task] = time.monotonic() + timeout
        task.add_done_callback(self._timeouts.pop)
        done, _ = await asyncio.wait((task,), timeout=timeout)
        if not done and any(self._timeouts.get(other, 0.0) > time.monotonic() for other in earlier):
            task.cancel()
            raise QueueTimeoutError(f"Version {self.version} was busy with a larger request for {timeout:g} s.")
        if not done:
            self._late = task
            # No code awaits the task now: reading its error keeps asyncio from logging it as never retrieved.
            task.add_done_callback(lambda late: late.cancelled() or late.exception())
            raise ModelTimeoutError(f"Version {self.version} must predict within {timeout:g} s. It did not.")
        return task.result()

    def formats_beside(self, others: Iterable["ServedModel"]) -> Formats:
        """Return the reader of requests while other versions are loaded: columns that only they have are ignored.

        Clients that send the columns of an earlier or a later version are answered during a rollout and after it.
        """
        contract = self.loaded.contract
        theirs = frozenset(name for other in others for name in other.loaded.contract.names)
        ignored = theirs - {*contract.names, contract.entity.name}
        if ignored not in self._formats:
            self._formats[ignored] = Formats(contract, ignored=ignored)
        return self._formats[ignored]

    @property
    def waiting(self) -> int:
        """The number of records in its queue."""
        return self.batcher.waiting


@dataclass(frozen=True, eq=False)
class RoutingTable:
    """The versions that a worker serves at one moment.

    Parameters
    ----------
    desired : DesiredState
        The state that the table was built from.
    plan : TrafficPlan
    models : mapping of int to ServedModel
        All loaded versions.
    stable : ServedModel
    successor : ServedModel or None
        ``None`` also if the plan's successor could not be loaded.
    headers : list of (bytes, bytes)
        Headers of every response, for any version.

    Attributes
    ----------
    formats : dict of int to Formats
        The reader of requests of each version: each reads its own columns, in its own order.
    """

    desired: DesiredState
    plan: TrafficPlan
    models: Mapping[int, ServedModel]
    stable: ServedModel
    successor: ServedModel | None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    formats: dict[int, Formats] = field(init=False)

    def __post_init__(self) -> None:
        """Prepare the readers of requests."""
        models = self.models.values()
        object.__setattr__(self, "formats", {model.version: model.formats_beside(models) for model in models})

    @property
    def deadline(self) -> float:
        """Maximum duration of a successor's prediction for each 32 records of a request, in seconds."""
        return self.desired.deadline_ms / 1_000

    @property
    def stale(self) -> bool:
        """True if the state may be out of date, or an earlier champion replaces the plan's stable version."""
        return bool(self.desired.stale) or self.stable.version != self.plan.stable

    @property
    def shadow(self) -> ServedModel | None:
        """The version that gets a copy of each request; ``None`` if there is none."""
        return self.successor if self.plan.mode is Mode.SHADOW else None

    def select_model(self, key: str) -> tuple[ServedModel, TrafficRole]:
        """Return the version for a key, and its role."""
        if self.successor is not None and self.plan.version_for(key) == self.successor.version:
            return self.successor, TrafficRole.SUCCESSOR
        return self.stable, TrafficRole.CHAMPION


def build_routing_table(desired: DesiredState, models: Mapping[int, ServedModel]) -> RoutingTable | None:
    """Return the routing table of a state and the loaded versions; ``None`` if no version with traffic is loaded.

    If the stable version could not be loaded, the newest earlier champion that is loaded gets all traffic.
    """
    former = [served.version for served in reversed(desired.known)]
    stable = next((models[version] for version in (desired.plan.stable, *former) if version in models), None)
    if stable is None:
        return None
    number = desired.plan.successor
    successor = models.get(number) if number is not None and stable.version == desired.plan.stable else None
    headers = [(b"ml-platform-model", desired.model.encode())]
    if desired.stale or stable.version != desired.plan.stable:
        headers.append((b"ml-platform-stale", b"true"))
    return RoutingTable(desired, desired.plan, models, stable, successor, headers)


@dataclass
class PredictionResult:
    """The answers or the error of one version for records as it has read them, and the duration."""

    model: ServedModel
    role: TrafficRole
    records: list[Record]
    seconds: float
    answers: Answers | None = None
    error: str = ""
    kind: type[Exception] = PredictionError


async def request_prediction(
    model: ServedModel,
    role: TrafficRole,
    records: list[Record],
    timeout: float | None,
) -> PredictionResult:
    """Predict with a version, within a timeout in seconds if one is given, and return its answers or its error."""
    start = time.perf_counter()
    try:
        answers = await model.predict(records, timeout)
    except (PredictionError, ModelTimeoutError, BusyError) as error:
        seconds = time.perf_counter() - start
        return PredictionResult(model, role, records, seconds, error=str(error), kind=type(error))
    return PredictionResult(model, role, records, time.perf_counter() - start, answers)
