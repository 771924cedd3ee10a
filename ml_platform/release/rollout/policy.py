"""Rollout policy: the first traffic plan after a decision, the next step, and the conditions of an abort.

Pure functions of the ledger, the servers' traffic statistics and the rollout that the model's author declared. The
tests hold at all looks and all steps of a rollout together: see `exact_tests`. Level of the sample-ratio test: Kohavi,
Tang and Xu (2020), chapter 21.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from ml_platform.model_spec import Rollout
from ml_platform.records.ledger import Action, LedgerEntry
from ml_platform.records.traffic import Mode, TrafficPlan, TrafficStats
from ml_platform.records.verdict import GateOutcome
from ml_platform.release.ledger.champions import FROM_VERSION, ROLLOUT, champion_stack
from ml_platform.release.rollout.exact_tests import (
    VersionStats,
    error_difference,
    p95_bound,
    p_fewer_errors,
    p_more_errors,
    p_ratio,
    p_slower,
    score_shift,
    sum_version_stats,
)

# First mode of each kind of rollout; blue/green moves all traffic as soon as a server has loaded the champion.
MODES = {"blue_green": Mode.ALL, "canary": Mode.CANARY, "ab": Mode.AB, "shadow": Mode.SHADOW}
# False-alarm rates: probability that a rollout of a champion as good as the previous one is ever aborted, 1 % in all;
# the steps of a canary share them.
ERROR_LEVEL, LATENCY_LEVEL, SCORE_LEVEL, RATIO_LEVEL = 0.004, 0.0025, 0.0025, 0.001
# Probability to promote a champion that fails by twice the limit, or more, more often.
PASS_LEVEL = 0.01
# A limit of 0 could never be proved: it is tested as this one.
SMALLEST_LIMIT = 0.001
# Minimum number of units before an abort; the author's `min_requests` if that is smaller.
EARLIEST = 20


# Plans


def begin(history: Sequence[LedgerEntry], *, sequence: int = 1) -> TrafficPlan | None:
    """Return the first plan of the champion's rollout, which follows from the ledger alone.

    Parameters
    ----------
    history : sequence of LedgerEntry
        The decisions, oldest first.
    sequence : int
        Number of the plan: one more than that of the newest plan.

    Returns
    -------
    TrafficPlan or None
        All traffic to the champion after a rollback, for blue/green, and if no previous champion is valid; ``None``
        before the first promotion.
    """
    if not history:
        return None
    origin, rollout = find_origin(history), read_declared_rollout(history)
    champions, _ = champion_stack(history)
    stable = origin.details.get(FROM_VERSION, origin.previous_version)
    whole = make_single_version_plan(history[-1], sequence=sequence)
    if rollout is None or MODES[rollout.kind] is Mode.ALL or stable not in champions[:-1]:
        return whole
    mode = MODES[rollout.kind]
    share = 0.0 if mode is Mode.SHADOW else rollout.steps[0]
    moving = replace(whole, mode=mode, stable=stable, successor=history[-1].version, share=share)
    return replace(moving, salt=origin.digest[:16])


def make_single_version_plan(decision: LedgerEntry, *, sequence: int) -> TrafficPlan:
    """Return the plan that sends all traffic to the version of a decision."""
    return TrafficPlan(
        model=decision.model,
        sequence=sequence,
        decision=decision.sequence,
        mode=Mode.ALL,
        stable=decision.version,
        since=decision.recorded_at,
        reason=decision.reason,
        actor=decision.actor,
        salt=decision.digest[:16],
    )


def read_declared_rollout(history: Sequence[LedgerEntry]) -> Rollout | None:
    """Return the rollout that the champion's author declared; ``None`` if the ledger has none."""
    declared = find_origin(history).details.get(ROLLOUT)
    return Rollout(**declared) if declared else None


def find_origin(history: Sequence[LedgerEntry]) -> LedgerEntry:
    """Return the promotion or rollback that made the champion, also if its number was replaced since."""
    return next((entry for entry in reversed(history) if entry.action != Action.REPLACEMENT), history[0])


def in_force(history: Sequence[LedgerEntry], newest: TrafficPlan | None) -> TrafficPlan | None:
    """Return the plan that servers follow.

    Parameters
    ----------
    history : sequence of LedgerEntry
        The decisions, oldest first.
    newest : TrafficPlan or None
        The newest plan of the database; ``None`` if there is none.

    Returns
    -------
    TrafficPlan or None
        The newest plan if it belongs to the last decision, with the champion's current number; else the first plan of
        the last decision's rollout. If the ledger does not allow the plan, all traffic goes to the champion. ``None``
        before the first promotion.
    """
    if newest is None or not history:
        return begin(history)
    later = [entry for entry in history if entry.sequence > newest.decision]
    known = any(entry.sequence == newest.decision for entry in history)
    if not known or any(entry.action != Action.REPLACEMENT for entry in later):
        return begin(history, sequence=newest.sequence + 1)
    plan = newest if not later else replace(newest, sequence=newest.sequence + 1)
    for entry in later:
        old, new = entry.previous_version, entry.version
        plan = replace(
            plan,
            decision=entry.sequence,
            stable=new if plan.stable == old else plan.stable,
            successor=new if plan.successor == old else plan.successor,
            since=entry.recorded_at,
            reason=entry.reason,
            actor=entry.actor,
        )
    return plan if is_allowed(plan, history) else make_single_version_plan(history[-1], sequence=newest.sequence + 1)


def is_allowed(plan: TrafficPlan, history: Sequence[LedgerEntry]) -> bool:
    """Return True if a plan's only versions are the champion and a previous champion that was not rolled back."""
    champion, (champions, _) = history[-1], champion_stack(history)
    if plan.decision != champion.sequence:
        return False
    if plan.mode is Mode.ALL:
        return plan.successor is None and plan.stable == champion.version
    return plan.successor == champion.version and plan.stable in champions[:-1] and 0 <= plan.share <= 1


def next_plan(plan: TrafficPlan, rollout: Rollout, *, since: datetime, actor: str, reason: str) -> TrafficPlan:
    """Return the plan after a finished step: the next share, or all traffic to the champion."""
    changes: dict[str, Any] = {"sequence": plan.sequence + 1, "since": since, "actor": actor, "reason": reason}
    step = plan.step + 1
    if plan.mode is Mode.CANARY and step < len(rollout.steps):
        return replace(plan, step=step, share=rollout.steps[step], **changes)
    if plan.successor is None:
        return replace(plan, **changes)
    return replace(plan, mode=Mode.ALL, stable=plan.successor, successor=None, share=0.0, step=step, **changes)


# Steps


class Step(StrEnum):
    """Next action of a rollout."""

    HOLD = "hold"
    ADVANCE = "advance"
    ABORT = "abort"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Result of one condition on the successor.

    FAIL aborts the rollout. INCONCLUSIVE waits for more requests: too few units were counted to tell.
    `figures` are the measurements by name, None for an unknown one.
    """

    name: str
    outcome: GateOutcome
    why: str
    figures: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Next action of a rollout and its basis: the statistics of both versions, the stable one first."""

    step: Step
    why: str
    arms: tuple[VersionStats, VersionStats]
    conditions: tuple[Condition, ...]

    @property
    def document(self) -> dict[str, Any]:
        """The report as plain values, for the ledger, the command line and Dagster's metadata."""
        versions = [
            {
                **asdict(stats),
                "latencies": list(stats.latencies),
                "scores": list(stats.scores),
                "error_share": stats.error_share,
                "error_low": stats.error_interval[0],
                "error_high": stats.error_interval[1],
                "p95_seconds": stats.p95,
            }
            for stats in self.arms
        ]
        return {
            "step": self.step.value,
            "why": self.why,
            "versions": versions,
            "conditions": [{**asdict(c), "outcome": c.outcome.value} for c in self.conditions],
        }


def judge(
    plan: TrafficPlan,
    figures: Iterable[TrafficStats],
    rollout: Rollout,
    *,
    at: datetime,
    before: Sequence[TrafficStats] = (),
) -> StepReport:
    """Decide whether a rollout holds, advances or aborts.

    Parameters
    ----------
    plan : TrafficPlan
        The plan in force; its rollout must be under way.
    figures : iterable of TrafficStats
        The servers' statistics under this plan.
    rollout : Rollout
        The rollout that the author declared.
    at : datetime
        The current time.
    before : sequence of TrafficStats
        The servers' statistics under earlier plans of the same rollout, used for the stable version once it receives
        no traffic.

    Returns
    -------
    StepReport
        ABORT as soon as a condition fails; ADVANCE if the step lasted long enough, the champion received enough
        requests and every condition passes; HOLD otherwise, also if the requests can never tell.
    """
    counted = list(figures)
    stable, successor = sum_version_stats(plan.stable, counted), sum_version_stats(plan.successor or 0, counted)
    if plan.share >= 1:  # the stable version now answers only requests that failed on the successor
        stable = sum_version_stats(plan.stable, before)
    until = plan.since + timedelta(minutes=rollout.hold_minutes)
    waiting = [f"the step lasts until {until:%Y-%m-%d %H:%M:%S} UTC"] if at < until else []
    if successor.requests < rollout.min_requests:
        answered = f"{successor.requests:,} of {rollout.min_requests:,} requests"
        waiting.append(f"version {successor.version} has answered {answered}")
    conditions = _check_conditions(plan, stable, successor, rollout)
    reasons = {outcome: "; ".join(c.why for c in conditions if c.outcome is outcome) for outcome in GateOutcome}
    if reasons[GateOutcome.FAIL]:
        step, why = Step.ABORT, reasons[GateOutcome.FAIL]
    elif waiting:
        step, why = Step.HOLD, "; ".join(waiting)
    elif reasons[GateOutcome.INCONCLUSIVE]:
        step, why = Step.HOLD, f"inconclusive, needs more requests: {reasons[GateOutcome.INCONCLUSIVE]}"
    else:
        step, why = Step.ADVANCE, reasons[GateOutcome.PASS]
    return StepReport(step=step, why=why, arms=(stable, successor), conditions=conditions)


def _check_conditions(
    plan: TrafficPlan, stable: VersionStats, successor: VersionStats, rollout: Rollout
) -> tuple[Condition, ...]:
    """Compare the successor with the stable version by errors, latency and scores, and in an A/B test by the split.

    Until the successor has `EARLIEST` units, FAIL becomes INCONCLUSIVE.
    """
    # Each step is a test of its own: together they must not exceed the levels.
    steps = len(rollout.steps) if plan.mode is Mode.CANARY else 1
    conditions = [
        _compare_errors(plan, stable, successor, rollout.max_error_increase, ERROR_LEVEL / steps),
        _compare_latency(stable, successor, rollout.max_slowdown, LATENCY_LEVEL / steps),
        _compare_scores(stable, successor, rollout.max_score_shift, SCORE_LEVEL / steps),
    ]
    if plan.mode is Mode.AB:
        p, total = p_ratio(successor, stable, plan.share), successor.units + stable.units
        conditions.append(
            Condition(
                name="sample_ratio",
                outcome=_outcome(p, RATIO_LEVEL, looks_worse=p < RATIO_LEVEL),
                why=f"version {successor.version} got {successor.units:,} of {total:,} units, and the plan says "
                f"{plan.share:.2%}",
                figures={"share": successor.units / total if total else None, "planned": plan.share, "p": p},
            )
        )
    if successor.units < min(EARLIEST, rollout.min_requests):
        return tuple(
            c if c.outcome is GateOutcome.PASS else replace(c, outcome=GateOutcome.INCONCLUSIVE) for c in conditions
        )
    return tuple(conditions)


def _outcome(p: float, level: float, *, looks_worse: bool) -> GateOutcome:
    """Return FAIL only for a successor that looks worse by more than chance."""
    if not looks_worse:
        return GateOutcome.PASS
    return GateOutcome.FAIL if p < level else GateOutcome.INCONCLUSIVE


def _compare_errors(
    plan: TrafficPlan, stable: VersionStats, successor: VersionStats, limit: float, level: float
) -> Condition:
    """Compare the shares of failed units.

    FAIL needs proof that the successor fails more often, and a share above the limit; PASS needs proof that it fails
    less than twice the limit more often, and a share within the limit.
    """
    difference, low, high = error_difference(successor, stable)
    paired, excess = plan.mode is Mode.SHADOW, 2 * max(limit, SMALLEST_LIMIT)
    # Without a stable version to compare with, the limit itself is the rate that must be exceeded.
    p = p_more_errors(successor, stable, 0.0 if stable.units else excess / 2, paired=paired)
    p_pass = p_fewer_errors(successor, stable, excess, paired=paired)
    outcome = GateOutcome.INCONCLUSIVE
    if difference > limit and p < level:
        outcome = GateOutcome.FAIL
    elif difference <= limit and p_pass < PASS_LEVEL:
        outcome = GateOutcome.PASS
    return Condition(
        name="errors",
        outcome=outcome,
        why=f"version {successor.version} fails {successor.error_share:.2%} of {successor.units:,} units, version "
        f"{stable.version} {stable.error_share:.2%} of {stable.units:,}; {limit:.2%} more are allowed",
        figures={"difference": difference, "low": low, "high": high, "p": p, "p_pass": p_pass, "most": limit},
    )


def _compare_latency(stable: VersionStats, successor: VersionStats, limit: float, level: float) -> Condition:
    ours, theirs, bound = successor.p95, stable.p95, p95_bound(stable, level / 2)
    if ours is None or theirs is None:
        return _skip_condition("latency", stable, successor)
    p = 1.0 if bound is None else p_slower(successor, limit * bound)
    return Condition(
        name="latency",
        outcome=_outcome(p, level / 2, looks_worse=ours > limit * theirs),
        why=f"the p95 of version {successor.version} is {ours * 1000:.3g} ms, that of version {stable.version} "
        f"{theirs * 1000:.3g} ms; {limit:g} times as much is allowed",
        figures={"p95_seconds": ours, "stable_p95_seconds": theirs, "stable_p95_bound": bound, "p": p, "most": limit},
    )


def _compare_scores(stable: VersionStats, successor: VersionStats, limit: float, level: float) -> Condition:
    shift = score_shift(successor, stable)
    if shift is None:
        return _skip_condition("scores", stable, successor)
    v, p = shift
    return Condition(
        name="scores",
        outcome=_outcome(p, level, looks_worse=v > limit),
        why=f"Cramer's V between the scores of versions {successor.version} and {stable.version} is {v:.3f}; {limit:g} "
        "is allowed",
        figures={"v": v, "p": p, "most": limit},
    )


def _skip_condition(name: str, stable: VersionStats, successor: VersionStats) -> Condition:
    why = f"{name} of versions {successor.version} and {stable.version} are not compared: one of them has none"
    return Condition(name=name, outcome=GateOutcome.PASS, why=why)
