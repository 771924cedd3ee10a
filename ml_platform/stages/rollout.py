"""How traffic moves to a new champion: where it begins, whether it may go on, and what sends it back.

Pure functions of the ledger, of what servers counted and of what the model's author declared.

Statistics: an exact test of a share with a nuisance parameter, Berger and Boos (1994), JASA 89; intervals of shares,
Wilson (1927), and of their difference, Newcombe (1998), Statistics in Medicine 17, method 10; bounds of quantiles by
order statistics, Conover (1999), section 3.2; Cramer's V less what chance makes of it, after Bergsma (2013), Journal of
the Korean Statistical Society 42; looks before the end of a step at a stricter level, Haybittle (1971) and Peto (1976);
the sample-ratio test, Kohavi, Tang and Xu (2020), chapter 21.
"""

from collections.abc import Sequence
from dataclasses import replace

from ml_platform.model_spec import Rollout
from ml_platform.records import Action, LedgerEntry
from ml_platform.stages._standing import FROM_VERSION, ROLLOUT, standing
from ml_platform.traffic import Mode, TrafficPlan

# How a rollout of each kind begins; blue/green moves all traffic as soon as a server has loaded the champion.
MODES = {"blue_green": Mode.ALL, "canary": Mode.CANARY, "ab": Mode.AB, "shadow": Mode.SHADOW}


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
