"""Wait for a promoted version's rollout to finish, and roll it back if it does not finish in time."""

import logging
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ml_platform.errors import ConflictError, EvidenceError
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform
from ml_platform.release.rollback import roll_back
from ml_platform.release.rollout.heartbeats import ALIVE
from ml_platform.release.rollout.steps import step_rollout
from ml_platform.release.rollout.traffic import list_live_servers, plan_in_force

log = logging.getLogger("ml_platform")

# Seconds between two checks of a rollout; a step that is due is carried out by the first process that checks.
PAUSE = 5.0


class RolloutOutcome(StrEnum):
    """Outcome of a rollout."""

    ARRIVED = "arrived"  # the version serves all traffic
    NOBODY_SERVES = "no live server"  # no server could send it traffic
    WENT_BACK = "went back"  # an earlier version is champion again
    OVERTAKEN = "overtaken"  # another version was promoted meanwhile


@dataclass(frozen=True, kw_only=True)
class RolloutResult:
    """Result of a rollout.

    Parameters
    ----------
    end : RolloutOutcome
    champion : int or None
        The current champion; ``None`` if there is none.
    why : str
        The reason, in one sentence.
    """

    end: RolloutOutcome
    champion: int | None
    why: str


def wait_for_rollout(platform: Platform, spec: ModelSpec, version: int, *, seconds: float, actor: str) -> RolloutResult:
    """Wait until a promoted version serves all traffic; roll back to the previous champion if it does not in time.

    Steps that are due are carried out while waiting, so that the rollout also finishes without a Dagster deployment.

    Parameters
    ----------
    platform : Platform
    spec : ModelSpec
    version : int
        Number of the version in the registry.
    seconds : float
        Maximum wait. 0 rolls back an unfinished rollout at once.
    actor : str
        The user or process that waits, for the ledger.

    Raises
    ------
    EvidenceError
        The version never was champion.
    LedgerError, DigestMismatchError, RegistryError
        As in `roll_back`: the rollout is unchanged.
    """
    deadline, served = time.monotonic() + seconds, False
    grace = time.monotonic() + min(seconds, ALIVE)
    while True:
        served = served or bool(list_live_servers(platform, spec.name))
        result = _read_result(platform, spec, version)
        if result is None and seconds > 0:
            step_rollout(platform, spec, actor=actor)
            result = _read_result(platform, spec, version)
        if result is not None:
            return result
        if not served and time.monotonic() >= grace:
            return RolloutResult(
                end=RolloutOutcome.NOBODY_SERVES, champion=version, why=f"no server of {spec.name} is alive"
            )
        if time.monotonic() >= deadline:
            plan = plan_in_force(platform, spec.name)
            to, decision = (plan.stable, plan.decision) if plan else (None, None)
            reason = f"the rollout of version {version} did not arrive within {seconds / 60:g} minutes"
            options: dict[str, Any] = {
                "load_spec": lambda _: spec,
                "reason": reason,
                "actor": actor,
                "instead_of": decision,
            }
            try:
                roll_back(platform, spec.name, to=to, **options)
            except ConflictError:  # the rollback is repeated if the other process did not end the rollout
                log.warning("another process changed the ledger of %s first", spec.name)
            result = _read_result(platform, spec, version)
            if result is not None:
                return result
        time.sleep(min(PAUSE, max(0.0, deadline - time.monotonic())))


def _read_result(platform: Platform, spec: ModelSpec, version: int) -> RolloutResult | None:
    """Return the result of a version's rollout; ``None`` while it is under way."""
    history = platform.database.history(spec.name)
    if version not in [entry.version for entry in history]:
        raise EvidenceError(f"Version {version} of {spec.name!r} never was champion: there is no rollout to wait for.")
    last, plan = history[-1], plan_in_force(platform, spec.name)
    if last.version != version:
        why = f"version {last.version} is champion by {last.action}, instead of {version}: {last.reason}"
        end = RolloutOutcome.WENT_BACK if last.action == "rollback" else RolloutOutcome.OVERTAKEN
        return RolloutResult(end=end, champion=last.version, why=why)
    # Another version is stable until the rollout finishes, or if another process decided since the ledger was read.
    if plan is None or plan.stable != version:
        return None
    return RolloutResult(end=RolloutOutcome.ARRIVED, champion=version, why=f"version {version} serves all traffic")
