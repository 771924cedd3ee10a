"""Rollout policy: first plans, the plan in force, decisions about steps, and their statistics."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaln

from ml_platform.model_spec import Rollout
from ml_platform.records.canonical import canonical_json, now
from ml_platform.records.ledger import LedgerEntry
from ml_platform.records.traffic import LATENCY_BUCKETS, Mode, TrafficPlan, TrafficStats
from ml_platform.records.verdict import GateOutcome
from ml_platform.release.ledger.champions import champion_stack
from ml_platform.release.rollout.exact_tests import (
    VersionStats,
    error_difference,
    p_more_errors,
    p_slower,
    quantile,
    score_shift,
    sum_version_stats,
)
from ml_platform.release.rollout.policy import (
    Step,
    StepReport,
    begin,
    in_force,
    is_allowed,
    judge,
    make_single_version_plan,
    next_plan,
    read_declared_rollout,
)
from ml_platform_tests.support.rollouts import pack_first

START = now()
CANARY = Rollout(kind="canary", steps=(0.05, 0.5, 1.0), hold_minutes=10, min_requests=200)
SHADOW = Rollout(kind="shadow", min_requests=50)
AB = Rollout(kind="ab", steps=(0.5, 1.0))


def decision(sequence: int, version: int, action: str = "promotion", **changes: Any) -> LedgerEntry:
    fields: dict[str, Any] = {
        "model": "visits",
        "sequence": sequence,
        "action": action,
        "version": version,
        "previous_version": version - 1 or None,
        "candidate": f"candidate-{version}",
        "verdict_digest": "0" * 64,
        "reason": "schedule",
        "actor": "test",
        "recorded_at": START,
    }
    return LedgerEntry(**{**fields, **changes})


def promoted(sequence: int, version: int, rollout: Rollout = CANARY, **details: Any) -> LedgerEntry:
    declared = {"rollout": rollout.model_dump(mode="json"), **details}
    return decision(sequence, version, details=declared)


HISTORY = [promoted(1, 1), promoted(2, 2)]


def begin_plan(history: Sequence[LedgerEntry], sequence: int = 1) -> TrafficPlan:
    plan = begin(history, sequence=sequence)
    assert plan is not None
    return plan


PLAN = begin_plan(HISTORY)


# First plans


def test_begin_first_version_takes_all_traffic() -> None:
    assert begin([]) is None
    assert in_force([], None) is None
    plan = begin_plan(HISTORY[:1])
    assert (plan.mode, plan.stable, plan.successor, plan.share) == (Mode.ALL, 1, None, 0.0)


@pytest.mark.parametrize(
    ("rollout", "mode", "share"),
    [(CANARY, Mode.CANARY, 0.05), (AB, Mode.AB, 0.5), (SHADOW, Mode.SHADOW, 0.0)],
)
def test_a_rollout_begins_at_the_version_before(rollout: Rollout, mode: Mode, share: float) -> None:
    plan = begin_plan([promoted(1, 1), promoted(4, 2, rollout)], sequence=7)

    assert (plan.mode, plan.stable, plan.successor, plan.share) == (mode, 1, 2, share)
    assert (plan.sequence, plan.decision, plan.step, plan.since) == (7, 4, 0, START)
    assert read_declared_rollout([promoted(1, 1), promoted(4, 2, rollout)]) == rollout


@pytest.mark.parametrize(
    "last",
    [promoted(2, 2, Rollout(kind="blue_green")), decision(2, 2), decision(2, 2, "rollback")],
    ids=["blue_green", "not declared", "rollback"],
)
def test_all_traffic_goes_to_the_champion_at_once(last: LedgerEntry) -> None:
    plan = begin_plan([promoted(1, 1), last])

    assert (plan.mode, plan.stable, plan.successor) == (Mode.ALL, 2, None)


def test_begin_is_deterministic_with_a_salt_per_rollout() -> None:
    assert begin_plan(HISTORY) == begin_plan(list(HISTORY))
    assert begin_plan([*HISTORY, promoted(3, 3)]).salt != PLAN.salt
    assert (
        make_single_version_plan(HISTORY[0], sequence=1).salt != make_single_version_plan(HISTORY[1], sequence=1).salt
    )


def test_begin_after_unfinished_rollout_keeps_stable_version() -> None:
    history = [*HISTORY, promoted(3, 3, from_version=1)]

    assert (begin_plan(history).stable, begin_plan(history).successor) == (1, 3)
    assert champion_stack(history) == ([1, 3], set())


def test_begin_rolled_back_stable_version_gets_no_traffic() -> None:
    history = [*HISTORY, decision(3, 1, "rollback", previous_version=2), promoted(4, 3, from_version=2)]

    assert begin_plan(history).versions == (3,)


# The plan in force


def test_in_force_without_current_plan_begins_the_rollout() -> None:
    later = [*HISTORY, promoted(3, 3)]

    assert in_force(HISTORY, None) == PLAN
    assert in_force(later, replace(PLAN, sequence=5)) == begin_plan(later, sequence=6)


def test_in_force_returns_newest_plan_of_last_decision() -> None:
    plan = replace(PLAN, sequence=3, step=1, share=0.5)

    assert in_force(HISTORY, plan) == plan


@pytest.mark.parametrize(
    "changes",
    [
        {"stable": 9},
        {"stable": 2},
        {"successor": 1},
        {"share": 1.5},
        {"share": float("nan")},
        {"mode": Mode.ALL},
        {"mode": Mode.ALL, "successor": None},
        {"successor": None},
    ],
    ids=str,
)
def test_in_force_invalid_plan_gives_champion_all_traffic(changes: dict[str, Any]) -> None:
    plan = replace(PLAN, sequence=4, **changes)

    assert not is_allowed(plan, HISTORY)
    assert in_force(HISTORY, plan) == make_single_version_plan(HISTORY[-1], sequence=5)


def test_in_force_plan_of_unknown_decision_is_ignored() -> None:
    assert in_force(HISTORY, replace(PLAN, sequence=4, decision=9)) == begin_plan(HISTORY, sequence=5)
    assert not is_allowed(replace(PLAN, decision=1), HISTORY)


def test_plan_with_rolled_back_version_is_refused() -> None:
    history = [*HISTORY, decision(3, 1, "rollback", previous_version=2), promoted(4, 3, previous_version=1)]

    assert is_allowed(replace(PLAN, decision=4, stable=1, successor=3), history)
    assert not is_allowed(replace(PLAN, decision=4, stable=2, successor=3), history)


def test_replacement_changes_only_the_plans_version_number() -> None:
    history = [*HISTORY, decision(4, 5, "replacement", previous_version=2)]
    on_its_way = in_force(history, replace(PLAN, sequence=3, step=1, share=0.5))
    arrived = in_force(history, make_single_version_plan(HISTORY[-1], sequence=3))

    assert on_its_way is not None
    assert arrived is not None
    assert (on_its_way.stable, on_its_way.successor, on_its_way.share, on_its_way.step) == (1, 5, 0.5, 1)
    assert (on_its_way.sequence, on_its_way.decision, on_its_way.salt) == (4, 4, PLAN.salt)
    assert (arrived.mode, arrived.stable, arrived.decision) == (Mode.ALL, 5, 4)
    assert begin_plan(history).salt == PLAN.salt  # if no plan was stored before


def test_steps_follow_each_other_up_to_all_traffic() -> None:
    plans = [PLAN]
    while plans[-1].under_way:
        plans.append(next_plan(plans[-1], CANARY, since=START, actor="test", reason="holds"))

    assert [(p.mode, p.share, p.step) for p in plans] == [
        (Mode.CANARY, 0.05, 0),
        (Mode.CANARY, 0.5, 1),
        (Mode.CANARY, 1.0, 2),
        (Mode.ALL, 0.0, 3),
    ]
    assert (plans[-1].stable, plans[-1].successor, plans[-1].sequence) == (2, None, 4)
    assert all(is_allowed(plan, HISTORY) for plan in plans)


@pytest.mark.parametrize("rollout", [AB, SHADOW])
def test_an_experiment_is_followed_by_all_traffic(rollout: Rollout) -> None:
    plan = begin_plan([promoted(1, 1), promoted(2, 2, rollout)])

    after = next_plan(plan, rollout, since=START, actor="test", reason="holds")

    assert (after.mode, after.stable, after.successor) == (Mode.ALL, 2, None)


# Steps

LATE = START + timedelta(minutes=10)
# Multiples of this number, modulo 1, are spread evenly over 0 to 1.
GOLDEN = (5**0.5 - 1) / 2
SHAPES: dict[str, Callable[[float], float]] = {"flat": lambda x: x, "low": lambda x: x**2}


def make_stats(
    version: int, records: int, *, failures: int = 0, ms: float = 8, scores: str = "flat", start: int = 0
) -> TrafficStats:
    """Return statistics of keys with one record: times spread evenly from 0 to twice `ms`, scores in a shape."""
    latencies, buckets = [0] * (len(LATENCY_BUCKETS) + 1), [0.0] * 20
    for number in range(records):
        seconds = 2 * ms / 1000 * (number + 0.5) / records
        latencies[sum(end < seconds for end in LATENCY_BUCKETS)] += 1
        if scores != "none":
            buckets[int(SHAPES[scores](number * GOLDEN % 1) * 20)] += 1
    return TrafficStats(
        model="visits",
        plan=1,
        server="a",
        version=version,
        requests=records,
        records=records,
        failures=failures,
        latencies=latencies,
        scores=buckets,
        seen=pack_first(records, start),
        failed=pack_first(failures, start),
    )


STABLE = make_stats(1, 4_000)


def report_on(*figures: TrafficStats, plan: TrafficPlan = PLAN, at: Any = LATE, **more: Any) -> StepReport:
    return judge(plan, figures, more.pop("rollout", CANARY), at=at, **more)


def failed_conditions(report: StepReport) -> list[str]:
    return [condition.name for condition in report.conditions if condition.outcome is GateOutcome.FAIL]


def test_a_successor_that_is_as_good_goes_on() -> None:
    report = report_on(STABLE, make_stats(2, 500))

    assert report.step is Step.ADVANCE
    assert [condition.outcome for condition in report.conditions] == [GateOutcome.PASS] * 3
    canonical_json(report.document)


def test_judge_short_or_small_step_holds() -> None:
    early = report_on(STABLE, make_stats(2, 210), at=LATE - timedelta(seconds=1))
    few = report_on(STABLE, make_stats(2, 199))
    none = report_on()

    assert [report.step for report in (early, few, none)] == [Step.HOLD] * 3
    assert early.why.startswith("the step lasts until ")
    assert few.why == "version 2 has answered 199 of 200 requests"


@pytest.mark.parametrize(
    ("worse", "name"),
    [
        ({"failures": 30}, "errors"),
        ({"ms": 40}, "latency"),
        ({"scores": "low"}, "scores"),
    ],
)
def test_judge_worse_successor_aborts_with_measurements(worse: dict[str, Any], name: str) -> None:
    report = report_on(STABLE, make_stats(2, 300, **worse))

    assert report.step is Step.ABORT
    assert failed_conditions(report) == [name]
    (condition,) = [condition for condition in report.conditions if condition.name == name]
    assert condition.why == report.why
    assert "version" in report.why
    assert condition.figures["p"] is not None
    assert condition.figures["p"] < 0.01


@pytest.mark.fault("M1")
@pytest.mark.fault("M2")
def test_judge_failing_successor_aborts_before_step_ends() -> None:
    report = report_on(make_stats(1, 400), make_stats(2, 20, failures=20, scores="none"), at=START)

    assert report.step is Step.ABORT
    assert failed_conditions(report) == ["errors"]
    assert report.why.startswith("version 2 fails 100.00% of 20 units, version 1 0.00% of 400; 1.00% more")


def test_a_few_failures_are_no_proof() -> None:
    assert report_on(STABLE, make_stats(2, 19, failures=19), at=START).step is Step.HOLD
    report = report_on(STABLE, make_stats(2, 200, failures=2))

    assert report.step is Step.HOLD
    assert report.why.startswith("inconclusive, needs more requests: version 2 fails 1.00% of 200 units")


def test_judge_same_error_share_advances() -> None:
    assert report_on(make_stats(1, 20_000, failures=200), make_stats(2, 3_000, failures=30)).step is Step.ADVANCE


def test_judge_few_requests_of_equal_versions_hold() -> None:
    report = report_on(make_stats(1, 4_000, failures=40), make_stats(2, 210, failures=2))

    assert report.step is Step.HOLD
    assert report.conditions[0].outcome is GateOutcome.INCONCLUSIVE


def test_judge_without_stable_units_tests_the_limit() -> None:
    whole = replace(PLAN, share=1.0)

    assert report_on(make_stats(2, 500), plan=whole).step is Step.ADVANCE
    assert report_on(make_stats(2, 500, failures=40), plan=whole).step is Step.ABORT
    assert report_on(make_stats(2, 500, failures=7), plan=whole).step is Step.HOLD


def test_judge_limit_of_zero_can_be_met() -> None:
    rollout = CANARY.model_copy(update={"max_error_increase": 0.0})

    assert report_on(STABLE, make_stats(2, 1_000), rollout=rollout).step is Step.HOLD
    assert report_on(make_stats(1, 30_000), make_stats(2, 7_000), rollout=rollout).step is Step.ADVANCE


@pytest.mark.fault("R19")
def test_judge_batch_does_not_hide_failed_requests() -> None:
    """97 of 970 requests fail; one batch of 10,000 records that succeeds is one more request."""
    singles, batch = make_stats(2, 970, failures=97), make_stats(2, 1, start=970)
    batch = replace(batch, server="b", records=10_000)

    assert report_on(STABLE, singles, batch, at=START).step is Step.ABORT


@pytest.mark.fault("R19")
def test_judge_late_batch_does_not_abort() -> None:
    singles, batch = make_stats(2, 970), replace(make_stats(2, 1, failures=1, start=970), records=10_000)
    batch = replace(batch, server="b", failures=10_000)

    assert report_on(make_stats(1, 20_000), singles, batch).step is Step.ADVANCE


@pytest.mark.fault("R19")
def test_unit_seen_by_two_servers_counts_once() -> None:
    here, there = make_stats(2, 300, failures=10), replace(make_stats(2, 310, failures=300), server="b")

    stats = sum_version_stats(2, [here, there])

    # The first server's outcomes count: 10 of its 300; the other server adds 10 units, which did not fail.
    assert (stats.units, stats.failed_units, stats.requests) == (310, 10, 610)


def test_figures_of_all_servers_are_added_up() -> None:
    here, there = make_stats(2, 320), replace(make_stats(2, 300, start=320), server="b")

    report = report_on(STABLE, here, there)

    assert report.step is Step.ADVANCE
    assert report.arms[1].requests == report.arms[1].units == 620
    assert sum(report.arms[1].scores) == 620


def test_judge_last_step_uses_earlier_statistics() -> None:
    plan = replace(PLAN, sequence=3, step=2, share=1.0)
    slow = make_stats(2, 300, ms=40)

    assert report_on(slow, plan=plan, before=[STABLE]).step is Step.ABORT
    assert report_on(make_stats(2, 500), plan=plan, before=[STABLE]).step is Step.ADVANCE
    assert "are not compared" in report_on(slow, plan=plan).why


def test_shadow_copies_count_as_answers() -> None:
    plan = begin_plan([promoted(1, 1), promoted(2, 2, SHADOW)])
    failing = make_stats(2, 600, failures=60)

    assert report_on(STABLE, make_stats(2, 600), plan=plan, rollout=SHADOW).step is Step.ADVANCE
    assert report_on(STABLE, make_stats(2, 200), plan=plan, rollout=SHADOW).step is Step.HOLD
    assert report_on(STABLE, failing, plan=plan, rollout=SHADOW).step is Step.ABORT


def test_judge_ab_test_uneven_split_aborts() -> None:
    plan = begin_plan([promoted(1, 1), promoted(2, 2, AB)])

    fair = report_on(make_stats(1, 1_000), make_stats(2, 1_010), plan=plan, rollout=AB)
    lost = report_on(make_stats(1, 1_000), make_stats(2, 800), plan=plan, rollout=AB)

    assert fair.step is Step.ADVANCE
    assert (lost.step, failed_conditions(lost)) == (Step.ABORT, ["sample_ratio"])
    assert lost.why == "version 2 got 800 of 1,800 units, and the plan says 50.00%"


def test_an_experiment_reports_both_arms_with_intervals() -> None:
    plan = begin_plan([promoted(1, 1), promoted(2, 2, AB)])

    document = report_on(make_stats(1, 1_000), make_stats(2, 1_000, failures=5), plan=plan, rollout=AB).document

    stable, successor = document["versions"]
    assert (stable["version"], successor["version"]) == (1, 2)
    # Wilson's interval of 5 of 1,000, and Newcombe's of its difference to 0 of 1,000.
    assert (successor["error_low"], successor["error_high"]) == pytest.approx((0.002138, 0.011651), abs=1e-6)
    figures = document["conditions"][0]["figures"]
    assert (figures["low"], figures["high"]) == pytest.approx((0.000221, 0.011651), abs=1e-6)


# Statistics


def test_quantiles_are_read_off_buckets() -> None:
    assert quantile([0] * 13, 0.95) is None
    assert quantile([100, *[0] * 12], 0.95) == pytest.approx(0.00095)
    assert quantile([*[0] * 12, 7], 0.95) == 5.0


def test_p_more_errors_includes_uncertainty_of_stable_share() -> None:
    bad = VersionStats(version=2, units=200, failed_units=12)
    much, little = (VersionStats(version=1, units=n) for n in (30_000, 300))

    # B(12.5, 208) / (B(0.5, 20) 0.01^12 0.99^188)
    assert p_more_errors(bad, VersionStats(version=1), 0.01) == pytest.approx(math.exp(-log_ratio(12, 200, 0.01)))
    assert p_more_errors(bad, much, 0.0) < p_more_errors(bad, little, 0.0) < 0.01
    assert p_more_errors(bad, little, 0.0) < p_more_errors(bad, little, 0.02) < 1.0


@pytest.mark.parametrize("paired", [False, True])
@given(counts=st.lists(st.integers(0, 400), min_size=4, max_size=4), margin=st.sampled_from([0.0, 0.02, 0.3]))
def test_p_more_errors_is_largest_over_allowed_rates(counts: list[int], margin: float, paired: bool) -> None:
    """The bisection finds the pair of rates with the smallest ratio: no pair of a grid has a smaller one."""
    k, n, j, m = counts[0], counts[0] + counts[1] + 1, counts[2], counts[2] + counts[3] + 1
    one, other = VersionStats(version=2, units=n, failed_units=k), VersionStats(version=1, units=m, failed_units=j)

    p = p_more_errors(one, other, margin, paired=paired)

    for q in (number / 200 for number in range(1, 200)):
        if q + margin < 1:
            ratios = [log_ratio(k, n, q + margin), log_ratio(j, m, q)]
            assert p >= min(1.0, math.exp(-(max(ratios) - math.log(2) if paired else sum(ratios)))) * 0.999999


def log_ratio(hits: int, of: int, rate: float) -> float:
    likelihood = hits * math.log(rate) + (of - hits) * math.log(1 - rate)
    return float(betaln(hits + 0.5, of - hits + 20)) - float(betaln(0.5, 20)) - likelihood


def test_an_interval_of_a_difference_is_newcombes() -> None:
    one = VersionStats(version=2, units=70, failed_units=56)
    other = VersionStats(version=1, units=80, failed_units=48)

    # Example (a) of Newcombe, method 10: 56/70 and 48/80.
    assert error_difference(one, other) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def in_bucket(place: int, records: int = 200) -> VersionStats:
    """Return a version whose records all have times in one bucket."""
    latencies = tuple(records * (number == place) for number in range(len(LATENCY_BUCKETS) + 1))
    return VersionStats(version=2, units=records, latencies=latencies)


def test_p_slower_interpolates_within_buckets() -> None:
    between_5_and_10_ms, beyond = in_bucket(3), in_bucket(len(LATENCY_BUCKETS))

    assert p_slower(between_5_and_10_ms, 0.0075) < 1e-6  # half of them are slower
    assert p_slower(between_5_and_10_ms, 0.0099) > 0.9
    assert p_slower(beyond, 5.0) < 1e-6
    assert p_slower(beyond, 6.0) == 1.0


def test_score_shift_ignores_chance_and_merges_rare_scores() -> None:
    few = VersionStats(version=2, scores=(7, 13, 10, 10))
    many = VersionStats(version=1, scores=(10_000, 10_000, 10_000, 10_000))
    rare = VersionStats(version=2, scores=(20, 0, 0, 0))
    common = VersionStats(version=1, scores=(396, 1, 1, 2))

    shift = score_shift(few, many)
    assert shift is not None
    assert shift[0] == 0.0
    assert shift[1] > 0.1
    assert score_shift(rare, common) == (0.0, 1.0)


def test_score_shift_is_independent_of_traffic_split() -> None:
    def scored(version: int, scores: Sequence[int]) -> VersionStats:
        return VersionStats(version=version, scores=tuple(scores))

    flat, steep = [100, 100, 100, 100], [160, 120, 80, 40]
    even = score_shift(scored(2, [100 * n for n in steep]), scored(1, [100 * n for n in flat]))
    rare = score_shift(scored(2, [10 * n for n in steep]), scored(1, [1_900 * n for n in flat]))

    assert even is not None
    assert rare is not None
    assert rare[0] == pytest.approx(even[0], abs=0.01)
    same = score_shift(scored(2, flat), scored(1, flat))
    assert same is not None
    assert same == pytest.approx((0.0, 1.0))
    apart = score_shift(scored(2, [400, 0]), scored(1, [0, 400]))
    assert apart is not None
    assert apart[0] == pytest.approx(1.0, abs=0.01)
    assert score_shift(scored(2, []), scored(1, flat)) is None
    assert score_shift(scored(2, [400, 0]), scored(1, flat)) is None
