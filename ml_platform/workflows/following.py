"""Follow a promoted version's rollout to its end, and go back where it does not arrive."""

import logging
import time
from dataclasses import dataclass
from enum import StrEnum

from ml_platform.errors import ConflictError, EvidenceError
from ml_platform.model_spec import ModelSpec
from ml_platform.records import LedgerEntry
from ml_platform.workflows.platform import Platform
from ml_platform.workflows.promotion import integration_problem, roll_back, staged_evidence
from ml_platform.workflows.rollout import step_rollout
from ml_platform.workflows.traffic import ALIVE, living_servers, plan_in_force

log = logging.getLogger("ml_platform")

# How often a rollout is looked at, in seconds; a step that is due is done by whoever looks first.
PAUSE = 5.0


class End(StrEnum):
    """How a rollout ended."""

    ARRIVED = "arrived"  # the version answers everything
    NOBODY_SERVES = "nobody serves"  # no server is alive that could send it traffic
    WENT_BACK = "went back"  # a version before it is champion again
    OVERTAKEN = "overtaken"  # another version was promoted meanwhile


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What came of a rollout.

    Parameters
    ----------
    end : End
    champion : int or None
        The champion now; ``None`` where there is none.
    why : str
    """

    end: End
    champion: int | None
    why: str


def follow_rollout(platform: Platform, spec: ModelSpec, version: int, *, seconds: float, actor: str) -> Followed:
    """Wait until a promoted version answers everything; make the champion before it champion again if it does not.

    Steps that are due are done on the way, so that it arrives where no Dagster is deployed too.

    Parameters
    ----------
    platform : Platform
    spec : ModelSpec
    version : int
        Its number in the registry.
    seconds : float
        How long it may take. With 0 a rollout that has not arrived goes back at once.
    actor : str
        Who follows, for the ledger.

    Raises
    ------
    EvidenceError
        The version never was champion.
    LedgerError, DigestMismatchError, RegistryError
        As `roll_back`: the rollout stands as it stood.
    """
    deadline, served = time.monotonic() + seconds, False
    grace = time.monotonic() + min(seconds, ALIVE.total_seconds())
    while True:
        served = served or bool(living_servers(platform, spec.name))
        found = _ended(platform, spec, version)
        if found is None and seconds > 0:
            step_rollout(platform, spec, actor=actor)
            found = _ended(platform, spec, version)
        if found is not None:
            return found
        if not served and time.monotonic() >= grace:
            return Followed(end=End.NOBODY_SERVES, champion=version, why=f"no server of {spec.name} is alive")
        if time.monotonic() >= deadline and (found := _go_back(platform, spec, version, seconds, actor)) is not None:
            return found
        time.sleep(min(PAUSE, max(0.0, deadline - time.monotonic())))


def _ended(platform: Platform, spec: ModelSpec, version: int) -> Followed | None:
    """Return how a version's rollout ended; ``None`` while it is under way."""
    history = platform.database.history(spec.name)
    if version not in [entry.version for entry in history]:
        raise EvidenceError(f"Version {version} of {spec.name!r} never was champion: there is no rollout to follow.")
    last, plan = history[-1], plan_in_force(platform, spec.name)
    if last.version != version:
        return _replaced(last, version)
    # Until it arrives another version is the stable one; so it is where somebody decided since the ledger was read.
    if plan is None or plan.stable != version:
        return None
    return Followed(end=End.ARRIVED, champion=version, why=f"version {version} answers everything")


def _replaced(last: LedgerEntry, version: int) -> Followed:
    back = last.action == "rollback"
    why = f"version {last.version} is champion by {last.action}, instead of {version}: {last.reason}"
    return Followed(end=End.WENT_BACK if back else End.OVERTAKEN, champion=last.version, why=why)


def _go_back(platform: Platform, spec: ModelSpec, version: int, seconds: float, actor: str) -> Followed | None:
    """Make the champion before it champion again; return how it ended, ``None`` if it has to be looked at again."""
    plan = plan_in_force(platform, spec.name)
    to, decision = (plan.stable, plan.decision) if plan else (None, None)
    reason = f"the rollout of version {version} did not arrive within {seconds / 60:g} minutes"
    try:
        roll_back(platform, spec.name, lambda: spec, to=to, reason=reason, actor=actor, instead_of=decision)
    except ConflictError:  # somebody else wrote meanwhile: what they decided is told, else it is tried again
        log.warning("somebody else was faster with %s", spec.name)
    return _ended(platform, spec, version)


@dataclass(frozen=True, kw_only=True)
class Tested:
    """What the integration test of a version says.

    Parameters
    ----------
    model : str
    version : int
    problem : str or None
        What it found; ``None`` if it passed.
    verdict : str
        Digest of the verdict that holds for the bytes that were tested; empty if it did not pass.
    champion : int or None
        The champion now; ``None`` where there is none.
    waits : bool
        Whether the version waits for a person's approval.
    """

    model: str
    version: int
    problem: str | None
    verdict: str
    champion: int | None
    waits: bool


def check_version(platform: Platform, spec: ModelSpec, version: int) -> Tested:
    """Run the integration test of exactly one version again; nothing is changed, its alias neither.

    Raises
    ------
    EvidenceError
        There is no such version, it was never staged, or its evidence does not hold for the bytes in the registry.
    MissingInRegistryError
        Its bytes are not in the registry.
    """
    registration = platform.database.registration(spec.name, version)
    if registration is None:
        raise EvidenceError(f"There is no version {version} of {spec.name!r}. Look at `ml-platform status`.")
    problem = integration_problem(platform, registration, most_ms=spec.most_inference_ms)
    verdict = "" if problem else staged_evidence(platform, spec, registration).digest
    champion = platform.database.champion(spec.name)
    now = champion.version if champion else None
    return Tested(
        model=spec.name,
        version=version,
        problem=problem,
        verdict=verdict,
        champion=now,
        waits=problem is None and spec.approval_needed is not None and now != version,
    )
