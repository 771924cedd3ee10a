"""How traffic moves to a new champion: where it begins, whether it may go on, and what sends it back.

Pure functions of the ledger, of what servers counted and of what the model's author declared. Sources: looks before the
end of a step at a stricter level, Haybittle (1971) and Peto (1976); the level of the sample-ratio test, Kohavi, Tang
and Xu (2020), chapter 21; the tests themselves, `_arms`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from ml_platform.model_spec import Rollout
from ml_platform.records import Action, GateOutcome, LedgerEntry
from ml_platform.stages._arms import (
    Arm,
    arm,
    error_difference,
    p95_bound,
    p_more_errors,
    p_ratio,
    p_slower,
    score_shift,
)
from ml_platform.stages._standing import FROM_VERSION, ROLLOUT, standing
from ml_platform.traffic import Mode, TrafficFigures, TrafficPlan

# How a rollout of each kind begins; blue/green moves all traffic as soon as a server has loaded the champion.
MODES = {"blue_green": Mode.ALL, "canary": Mode.CANARY, "ab": Mode.AB, "shadow": Mode.SHADOW}
# Chances to send back a champion that is as good as the one before, at the end of a step and at each look before.
LEVEL, EARLY_LEVEL = 0.01, 0.001
# The same for "traffic was divided as the plan says".
RATIO_LEVEL, EARLY_RATIO_LEVEL = 0.001, 0.0001
# Before this many answers, or the author's `least_requests` where they are fewer, nothing is sent back.
EARLIEST = 20


# Plans


def begin(history: Sequence[LedgerEntry], *, sequence: int = 1) -> TrafficPlan | None:
    """Return the plan with which the champion's rollout begins; the ledger alone says it.

    Parameters
    ----------
    history : sequence of LedgerEntry
        The decisions, oldest first.
    sequence : int
        Number of the plan: one more than that of the newest plan.

    Returns
    -------
    TrafficPlan or None
        All traffic to the champion after a rollback, for blue/green, and where no version before it stands; ``None``
        before the first promotion.
    """
    if not history:
        return None
    origin, rollout = _origin(history), rollout_of(history)
    champions, _ = standing(history)
    stable = origin.details.get(FROM_VERSION, origin.previous_version)
    whole = alone(history[-1], sequence=sequence)
    if rollout is None or MODES[rollout.kind] is Mode.ALL or stable not in champions[:-1]:
        return whole
    mode = MODES[rollout.kind]
    share = 0.0 if mode is Mode.SHADOW else rollout.steps[0]
    moving = replace(whole, mode=mode, stable=stable, successor=history[-1].version, share=share)
    return replace(moving, salt=origin.digest[:16])


def alone(decision: LedgerEntry, *, sequence: int) -> TrafficPlan:
    """Return the plan by which the champion that a decision made answers everything."""
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


def rollout_of(history: Sequence[LedgerEntry]) -> Rollout | None:
    """Return how the author of the champion lets traffic move to it; ``None`` where the ledger does not say."""
    declared = _origin(history).details.get(ROLLOUT)
    return Rollout(**declared) if declared else None


def _origin(history: Sequence[LedgerEntry]) -> LedgerEntry:
    """Return the promotion or rollback that made the champion, under whatever number."""
    return next((entry for entry in reversed(history) if entry.action != Action.REPLACEMENT), history[0])


def in_force(history: Sequence[LedgerEntry], newest: TrafficPlan | None) -> TrafficPlan | None:
    """Return the plan that servers obey.

    Parameters
    ----------
    history : sequence of LedgerEntry
        The decisions, oldest first.
    newest : TrafficPlan or None
        The newest plan of the database; ``None`` if there is none.

    Returns
    -------
    TrafficPlan or None
        The newest plan where it is one of the last decision, under the champion's present number; else the one with
        which the last decision's rollout begins. A plan that the ledger does not allow gives all traffic to the
        champion. ``None`` before the first promotion.
    """
    if newest is None or not history:
        return begin(history)
    plan = _renumbered(newest, history)
    if plan is None:
        return begin(history, sequence=newest.sequence + 1)
    return plan if is_allowed(plan, history) else alone(history[-1], sequence=newest.sequence + 1)


def is_allowed(plan: TrafficPlan, history: Sequence[LedgerEntry]) -> bool:
    """Whether a plan names the champion, and beside it no version but a champion before it that still stands."""
    champion, (champions, _) = history[-1], standing(history)
    if plan.decision != champion.sequence:
        return False
    if plan.mode is Mode.ALL:
        return plan.successor is None and plan.stable == champion.version
    return plan.successor == champion.version and plan.stable in champions[:-1] and 0 <= plan.share <= 1


def _renumbered(plan: TrafficPlan, history: Sequence[LedgerEntry]) -> TrafficPlan | None:
    """Return a plan under the champion's present number; ``None`` if another decision than a replacement followed."""
    later = [entry for entry in history if entry.sequence > plan.decision]
    known = any(entry.sequence == plan.decision for entry in history)
    if not known or any(entry.action != Action.REPLACEMENT for entry in later):
        return None
    for entry in later:
        plan = _under_new_number(plan, entry)
    return replace(plan, sequence=plan.sequence + 1) if later else plan


def _under_new_number(plan: TrafficPlan, entry: LedgerEntry) -> TrafficPlan:
    old, new = entry.previous_version, entry.version
    return replace(
        plan,
        decision=entry.sequence,
        stable=new if plan.stable == old else plan.stable,
        successor=new if plan.successor == old else plan.successor,
        since=entry.recorded_at,
        reason=entry.reason,
        actor=entry.actor,
    )


def next_plan(plan: TrafficPlan, rollout: Rollout, *, since: datetime, actor: str, reason: str) -> TrafficPlan:
    """Return the plan that follows one whose step is done: a greater share, or all traffic to the champion."""
    said: dict[str, Any] = {"sequence": plan.sequence + 1, "since": since, "actor": actor, "reason": reason}
    step = plan.step + 1
    if plan.mode is Mode.CANARY and step < len(rollout.steps):
        return replace(plan, step=step, share=rollout.steps[step], **said)
    if plan.successor is None:
        return replace(plan, **said)
    return replace(plan, mode=Mode.ALL, stable=plan.successor, successor=None, share=0.0, step=step, **said)


# Steps


class Step(StrEnum):
    """What becomes of a rollout now."""

    HOLD = "hold"
    ADVANCE = "advance"
    ABORT = "abort"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One condition on the successor.

    FAIL sends it back; INCONCLUSIVE lets it wait for more requests: it looks worse, and it may be chance. `figures` are
    the numbers that decided, by name; None where one cannot be told.
    """

    name: str
    outcome: GateOutcome
    why: str
    figures: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What is to be done with a rollout, and what that rests on: both versions, the stable one first."""

    step: Step
    why: str
    arms: tuple[Arm, Arm]
    conditions: tuple[Condition, ...]

    @property
    def document(self) -> dict[str, Any]:
        """The report as the ledger, the command line and Dagster's metadata take it."""
        return {
            "step": self.step.value,
            "why": self.why,
            "versions": [_arm_document(arm) for arm in self.arms],
            "conditions": [{**asdict(c), "outcome": c.outcome.value} for c in self.conditions],
        }


def _arm_document(of: Arm) -> dict[str, Any]:
    low, high = of.error_interval
    counts = {"latencies": list(of.latencies), "scores": list(of.scores)}
    shares = {"error_share": of.error_share, "error_low": low, "error_high": high}
    return {**asdict(of), **counts, **shares, "p95_seconds": of.p95}


def judge(
    plan: TrafficPlan,
    figures: Iterable[TrafficFigures],
    rollout: Rollout,
    *,
    at: datetime,
    before: Sequence[TrafficFigures] = (),
) -> StepReport:
    """Say whether the champion on its way in waits, goes on or goes back.

    Parameters
    ----------
    plan : TrafficPlan
        The plan in force; traffic must be under way.
    figures : iterable of TrafficFigures
        What servers counted under it.
    rollout : Rollout
        What the author declared.
    at : datetime
        The present time.
    before : sequence of TrafficFigures
        What they counted under earlier plans of the same rollout: the stable version is judged by them where it gets no
        traffic any more.

    Returns
    -------
    StepReport
        ABORT as soon as a condition fails. Else ADVANCE when the step lasted long enough, the champion was asked often
        enough and every condition holds.
    """
    counted = list(figures)
    stable, successor = arm(plan.stable, counted), arm(plan.successor or 0, counted)
    if plan.share >= 1:  # what the stable version answers now is what the other one failed at
        stable = arm(plan.stable, before)
    waiting = _waits(plan, successor, rollout, at)
    conditions = _conditions(plan, stable, successor, rollout, early=bool(waiting))
    step, why = _decision(conditions, waiting)
    return StepReport(step=step, why=why, arms=(stable, successor), conditions=conditions)


def _decision(conditions: Sequence[Condition], waiting: str) -> tuple[Step, str]:
    said = {outcome: [c.why for c in conditions if c.outcome is outcome] for outcome in GateOutcome}
    if said[GateOutcome.FAIL]:
        return Step.ABORT, "; ".join(said[GateOutcome.FAIL])
    if waiting:
        return Step.HOLD, waiting
    if said[GateOutcome.INCONCLUSIVE]:
        return Step.HOLD, "more requests must tell: " + "; ".join(said[GateOutcome.INCONCLUSIVE])
    return Step.ADVANCE, "; ".join(said[GateOutcome.PASS])


def _waits(plan: TrafficPlan, successor: Arm, rollout: Rollout, at: datetime) -> str:
    """Return what a step still waits for; empty if it is to be decided."""
    until = plan.since + timedelta(minutes=rollout.hold_minutes)
    asked = _asked(plan, successor)
    waits = [f"the step lasts until {until:%Y-%m-%d %H:%M:%S} UTC"] if at < until else []
    if asked < rollout.least_requests:
        waits.append(f"version {successor.version} has answered {asked:,} of {rollout.least_requests:,} requests")
    return "; ".join(waits)


def _asked(plan: TrafficPlan, successor: Arm) -> int:
    """Return how often the successor was asked: by requests, or by copies of them."""
    return successor.records if plan.mode is Mode.SHADOW else successor.requests


def _conditions(
    plan: TrafficPlan, stable: Arm, successor: Arm, rollout: Rollout, *, early: bool
) -> tuple[Condition, ...]:
    level = EARLY_LEVEL if early else LEVEL
    found = [
        _errors(stable, successor, rollout.most_error_share, level),
        _latency(stable, successor, rollout.most_slower, level),
        _scores(stable, successor, rollout.most_score_shift, level),
    ]
    if plan.mode is Mode.AB:
        found.append(_ratio(plan, stable, successor, EARLY_RATIO_LEVEL if early else RATIO_LEVEL))
    if successor.weight < min(EARLIEST, rollout.least_requests):
        return tuple(
            c if c.outcome is GateOutcome.PASS else replace(c, outcome=GateOutcome.INCONCLUSIVE) for c in found
        )
    return tuple(found)


def _outcome(p: float, level: float, *, looks_worse: bool) -> GateOutcome:
    """FAIL needs both: what looks worse, and proof that it is no chance."""
    if not looks_worse:
        return GateOutcome.PASS
    return GateOutcome.FAIL if p < level else GateOutcome.INCONCLUSIVE


def _errors(stable: Arm, successor: Arm, most: float, level: float) -> Condition:
    difference, low, high = error_difference(successor, stable)
    p = p_more_errors(successor, stable, most)
    return Condition(
        name="errors",
        outcome=_outcome(p, level, looks_worse=difference > most),
        why=f"version {successor.version} fails {successor.error_share:.2%} of {successor.records:,} records, version "
        f"{stable.version} {stable.error_share:.2%} of {stable.records:,}; {most:.2%} more are allowed",
        figures={"difference": difference, "low": low, "high": high, "p": p, "most": most},
    )


def _latency(stable: Arm, successor: Arm, most: float, level: float) -> Condition:
    ours, theirs, bound = successor.p95, stable.p95, p95_bound(stable, level)
    if ours is None or theirs is None:
        return _not_compared("latency", stable, successor)
    p = 1.0 if bound is None else p_slower(successor, most * bound)
    return Condition(
        name="latency",
        outcome=_outcome(p, level, looks_worse=ours > most * theirs),
        why=f"the p95 of version {successor.version} is {ours * 1000:.3g} ms, that of version {stable.version} "
        f"{theirs * 1000:.3g} ms; {most:g} times as much is allowed",
        figures={"p95_seconds": ours, "stable_p95_seconds": theirs, "stable_p95_bound": bound, "p": p, "most": most},
    )


def _scores(stable: Arm, successor: Arm, most: float, level: float) -> Condition:
    found = score_shift(successor, stable)
    if found is None:
        return _not_compared("scores", stable, successor)
    v, p = found
    return Condition(
        name="scores",
        outcome=_outcome(p, level, looks_worse=v > most),
        why=f"Cramer's V between the scores of versions {successor.version} and {stable.version} is {v:.3f}; {most:g} "
        "is allowed",
        figures={"v": v, "p": p, "most": most},
    )


def _not_compared(name: str, stable: Arm, successor: Arm) -> Condition:
    why = f"{name} of versions {successor.version} and {stable.version} are not compared: one of them has none"
    return Condition(name=name, outcome=GateOutcome.PASS, why=why)


def _ratio(plan: TrafficPlan, stable: Arm, successor: Arm, level: float) -> Condition:
    p, total = p_ratio(successor, stable, plan.share), successor.requests + stable.requests
    got = successor.requests / total if total else None
    return Condition(
        name="sample_ratio",
        outcome=_outcome(p, level, looks_worse=p < level),
        why=f"version {successor.version} got {successor.requests:,} of {total:,} requests, and the plan says "
        f"{plan.share:.2%}",
        figures={"share": got, "planned": plan.share, "p": p},
    )
