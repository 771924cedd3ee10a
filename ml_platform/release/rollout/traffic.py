"""Current traffic of a model: the plan in force, the live servers, and an unfinished rollout."""

import functools

from ml_platform.errors import ConflictError
from ml_platform.platform import Platform
from ml_platform.records.traffic import ServerHeartbeat, TrafficPlan
from ml_platform.release.rollout import policy
from ml_platform.release.rollout.heartbeats import HeartbeatWatch


def plan_in_force(platform: Platform, model: str) -> TrafficPlan | None:
    """Return the plan that servers follow, stored or not; ``None`` before the first promotion."""
    newest = platform.database.traffic_plan(model)
    # The ledger is read after the plan, so that it contains the plan's decision.
    return policy.in_force(platform.database.history(model), newest)


def store_plan(platform: Platform, model: str) -> TrafficPlan | None:
    """Store the plan in force if the ledger has a newer decision than the newest stored plan; return it.

    Until then servers derive the plan from the ledger, so that any process may store it after a crash. ``None`` before
    the first promotion.
    """
    newest = platform.database.traffic_plan(model)
    plan = policy.in_force(platform.database.history(model), newest)
    if plan is None or plan == newest:
        return plan
    try:
        platform.database.append_traffic_plan(plan)
    except ConflictError:  # another process stored a plan meanwhile
        return plan_in_force(platform, model)
    return plan


def list_live_servers(platform: Platform, model: str) -> list[ServerHeartbeat]:
    """Return the servers of a model with a heartbeat in the last minute, by name.

    A process that reads again and again, as Dagster's code server and ``ml-platform rollout wait`` do, sees a server's
    heartbeats change, and uses no clock that can be set. The first reading of a process uses the database's clock:
    see `HeartbeatWatch`. The server itself is not asked: its admin port may be reachable on its own host alone.
    """
    return _watch(platform.settings.database, model).find_live(platform.database.servers(model))


@functools.cache
def _watch(_database: str, _model: str) -> HeartbeatWatch:
    """Return the watch that this process has on the servers of a model: each opens the platform again at each tick."""
    return HeartbeatWatch()


def unfinished_rollout(platform: Platform, model: str) -> TrafficPlan | None:
    """Return the plan of an unfinished rollout; ``None`` if one version serves all traffic."""
    plan = plan_in_force(platform, model)
    return plan if plan is not None and plan.under_way else None


def is_carried_out(platform: Platform, plan: TrafficPlan) -> bool:
    """Return True if a live server follows a plan."""
    return any(beat.says.get("plan") == plan.sequence for beat in list_live_servers(platform, plan.model))
