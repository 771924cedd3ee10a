"""A promoted version, its traffic plan, and the heartbeats of servers."""

from datetime import timedelta

from ml_platform.model_spec import Rollout
from ml_platform.platform import Platform
from ml_platform.records.ledger import LedgerEntry
from ml_platform.records.traffic import UNIT_CELLS, ServerHeartbeat, TrafficPlan, TrafficStats, pack_cells
from ml_platform.release.promote import promote_version
from ml_platform.release.rollout import steps
from ml_platform.release.rollout.steps import Traffic
from ml_platform.release.rollout.traffic import plan_in_force
from ml_platform_tests.support import fakes
from ml_platform_tests.support.promotions import rows

SPEC = fakes.uncompared_spec(
    rollout=Rollout(kind="canary", steps=(0.1, 1.0), hold_minutes=5, min_requests=100, max_error_increase=0.05)
)


def promoted(platform: Platform, times: int = 1) -> LedgerEntry:
    """Promote new versions, each with new rows; return the last entry."""
    for _ in range(times):
        number = platform.database.count_candidates("visits", 3)
        version = fakes.staged_version(platform, lineage=rows(f"rows {number}"))
        candidate = platform.database.candidate(version.candidate)
        entry = promote_version(platform, SPEC, candidate, reason="schedule", actor="test")
    return entry


def read_plan(platform: Platform) -> TrafficPlan:
    plan = plan_in_force(platform, "visits")
    assert plan is not None
    assert platform.database.traffic_plan("visits") == plan  # it is stored too
    return plan


def beats(platform: Platform, name: str = "a", **says: object) -> None:
    """Store a server's heartbeat with the current plan, or with the given fields."""
    said = {"plan": read_plan(platform).sequence, **says}
    platform.database.beat(ServerHeartbeat(model="visits", server=name, admin_address="http://127.0.0.1:9", says=said))


def pack_first(number: int, start: int = 0) -> str:
    """Return a number of cells, the first ones after `start`."""
    return pack_cells((((1 << number) - 1) << start).to_bytes(UNIT_CELLS // 8, "little"))


def count(platform: Platform, version: int, records: int, failures: int = 0) -> None:
    plan = read_plan(platform)
    latencies = [records, *[0] * 12]
    platform.database.count_traffic(
        TrafficStats(
            model="visits",
            plan=plan.sequence,
            server="a",
            version=version,
            requests=records,
            records=records,
            failures=failures,
            latencies=latencies,
            seen=pack_first(records),
            failed=pack_first(failures),
        )
    )


def step(platform: Platform, minutes: float = 6) -> Traffic:
    """Take the asset's step, `minutes` after the plan was made."""
    at = read_plan(platform).since + timedelta(minutes=minutes)
    return steps.step_rollout(platform, SPEC, actor="test", at=at)
