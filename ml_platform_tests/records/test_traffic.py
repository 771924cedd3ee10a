"""The version that answers each key, and the database's records of traffic."""

from dataclasses import replace

import pytest

from ml_platform.database import PlatformDatabase
from ml_platform.errors import ConflictError
from ml_platform.records.canonical import now
from ml_platform.records.traffic import Mode, ServerHeartbeat, TrafficPlan, TrafficStats

PLAN = TrafficPlan(
    model="visits",
    sequence=1,
    decision=3,
    mode=Mode.CANARY,
    stable=1,
    successor=2,
    share=0.25,
    salt="3",
    since=now(),
    reason="schedule",
    actor="test",
)
KEYS = [str(number) for number in range(2_000)]


@pytest.fixture
def database(database_url: str) -> PlatformDatabase:
    return PlatformDatabase(database_url)


def answered_by_successor(plan: TrafficPlan) -> set[str]:
    return {key for key in KEYS if plan.version_for(key) == plan.successor}


def test_successor_answers_its_share_of_keys() -> None:
    # Six standard deviations of a binomial distribution with 2,000 keys and a share of 0.25.
    assert abs(len(answered_by_successor(PLAN)) - 500) < 6 * 19.4


def test_growing_share_keeps_the_successors_keys() -> None:
    assert answered_by_successor(PLAN) < answered_by_successor(replace(PLAN, share=0.5, step=2))
    assert answered_by_successor(replace(PLAN, share=1.0)) == set(KEYS)


def test_another_salt_selects_other_keys() -> None:
    assert answered_by_successor(PLAN) != answered_by_successor(replace(PLAN, salt="4"))


def test_shadow_answers_no_key() -> None:
    assert answered_by_successor(replace(PLAN, mode=Mode.SHADOW, share=1.0)) == set()


def test_plan_document_round_trip_is_lossless() -> None:
    assert TrafficPlan.from_document(PLAN.document) == PLAN


def test_plan_that_does_not_follow_is_refused(database: PlatformDatabase) -> None:
    assert database.traffic_plan("visits") is None
    database.append_traffic_plan(PLAN)
    second = replace(PLAN, sequence=2, share=0.5)
    database.append_traffic_plan(second)

    with pytest.raises(ConflictError, match=r"next one has the sequence 3\. Got 2"):
        database.append_traffic_plan(replace(PLAN, sequence=2, share=1.0))

    assert database.traffic_plan("visits") == second
    assert database.traffic_plan("churn") is None


def test_new_heartbeat_and_figures_replace_earlier_ones(database: PlatformDatabase) -> None:
    address = "http://127.0.0.1:9"
    for plan in (1, 2):
        says = {"plan": plan}
        database.beat(ServerHeartbeat(model="visits", server="a", admin_address=address, says=says, number=plan))
        database.count_traffic(TrafficStats(model="visits", plan=1, server="a", version=2, records=plan))
    database.count_traffic(TrafficStats(model="visits", plan=1, server="b", version=2, records=5))

    (alive,) = database.servers("visits")
    assert (alive.says, alive.number, alive.admin_address) == ({"plan": 2}, 2, address)
    assert alive.age is not None
    assert 0 <= alive.age < 60
    assert database.servers("churn") == []
    assert sorted(one.records for one in database.traffic_figures("visits", 1)) == [2, 5]
    assert database.traffic_figures("visits", 2) == []
