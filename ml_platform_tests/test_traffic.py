"""Who answers which key, and what the database keeps of traffic."""

from dataclasses import replace
from datetime import timedelta

import pytest

from ml_platform.database import Database
from ml_platform.errors import ConflictError
from ml_platform.records import now
from ml_platform.traffic import Mode, ServerBeat, TrafficFigures, TrafficPlan

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
def database(database_url: str) -> Database:
    return Database(database_url)


def answered_by_successor(plan: TrafficPlan) -> set[str]:
    return {key for key in KEYS if plan.version_for(key) == plan.successor}


def test_a_share_of_the_keys_meets_the_successor() -> None:
    # Six standard deviations of a binomial of 2,000 at a quarter.
    assert abs(len(answered_by_successor(PLAN)) - 500) < 6 * 19.4


def test_a_key_that_met_the_successor_goes_on_meeting_it_while_the_share_grows() -> None:
    assert answered_by_successor(PLAN) < answered_by_successor(replace(PLAN, share=0.5, step=2))
    assert answered_by_successor(replace(PLAN, share=1.0)) == set(KEYS)


def test_another_rollout_tries_other_keys() -> None:
    assert answered_by_successor(PLAN) != answered_by_successor(replace(PLAN, salt="4"))


def test_a_shadow_answers_nobody() -> None:
    assert answered_by_successor(replace(PLAN, mode=Mode.SHADOW, share=1.0)) == set()


def test_a_plan_is_read_back_from_its_document() -> None:
    assert TrafficPlan.from_document(PLAN.document) == PLAN


def test_the_newest_plan_counts_and_an_overtaken_one_is_refused(database: Database) -> None:
    assert database.traffic_plan("visits") is None
    database.append_traffic_plan(PLAN)
    second = replace(PLAN, sequence=2, share=0.5)
    database.append_traffic_plan(second)

    with pytest.raises(ConflictError, match=r"next one has the sequence 3\. Got 2"):
        database.append_traffic_plan(replace(PLAN, sequence=2, share=1.0))

    assert database.traffic_plan("visits") == second
    assert database.traffic_plan("churn") is None


def test_a_servers_newest_beat_and_figures_replace_those_before(database: Database) -> None:
    before = now() - timedelta(seconds=1)
    for plan in (1, 2):
        beat = ServerBeat(model="visits", server="a", admin_address="http://127.0.0.1:9", says={"plan": plan})
        database.beat(beat)
        database.count_traffic(TrafficFigures(model="visits", plan=1, server="a", version=2, records=plan))
    database.count_traffic(TrafficFigures(model="visits", plan=1, server="b", version=2, records=5))

    (alive,) = database.servers("visits", before)
    assert (alive.says, alive.admin_address) == ({"plan": 2}, "http://127.0.0.1:9")
    assert alive.seen_at is not None
    assert database.servers("visits", now()) == []
    assert sorted(one.records for one in database.traffic_figures("visits", 1)) == [2, 5]
    assert database.traffic_figures("visits", 2) == []
