"""Who answers now: the plan in force, the servers that are alive, and the rollout that a promotion would meet."""

from datetime import timedelta

from ml_platform.errors import ConflictError
from ml_platform.records import now
from ml_platform.stages import rollout
from ml_platform.traffic import ServerBeat, TrafficPlan
from ml_platform.workflows.platform import Platform

# A server that has not beaten for so long is taken for gone.
ALIVE = timedelta(seconds=60)


def plan_in_force(platform: Platform, model: str) -> TrafficPlan | None:
    """Return the plan that servers obey, stored or not; ``None`` before the first promotion."""
    newest = platform.database.traffic_plan(model)
    # The ledger after the plan: it then holds the decision that the plan is of.
    return rollout.in_force(platform.database.history(model), newest)


def keep_plan(platform: Platform, model: str) -> TrafficPlan | None:
    """Store the plan in force where the ledger has decided since the newest one was stored; return it.

    Until then servers find it in the ledger by themselves: it may be done again after a crash, by anybody.
    """
    newest = platform.database.traffic_plan(model)
    plan = rollout.in_force(platform.database.history(model), newest)
    if plan is None or plan == newest:
        return plan
    try:
        platform.database.append_traffic_plan(plan)
    except ConflictError:  # somebody else stored one just now
        return plan_in_force(platform, model)
    return plan


def living_servers(platform: Platform, model: str) -> list[ServerBeat]:
    """Return the servers of a model that have beaten in the last minute, by name."""
    return platform.database.servers(model, now() - ALIVE)


def unfinished_rollout(platform: Platform, model: str) -> TrafficPlan | None:
    """Return the plan of a rollout that has not arrived; ``None`` where one version answers everything."""
    plan = plan_in_force(platform, model)
    return plan if plan is not None and plan.under_way else None


def is_carried_out(platform: Platform, plan: TrafficPlan) -> bool:
    """Whether a living server obeys a plan."""
    return any(beat.says.get("plan") == plan.sequence for beat in living_servers(platform, plan.model))
