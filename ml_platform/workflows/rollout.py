"""A rollout's automatic steps: what servers counted lets a champion wait, go on or go back."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from ml_platform.errors import ConflictError
from ml_platform.model_spec import ModelSpec, Rollout
from ml_platform.records import Action, LedgerEntry, now
from ml_platform.stages import promotion, rollout
from ml_platform.stages.rollout import Step, StepReport
from ml_platform.traffic import ServerBeat, TrafficFigures, TrafficPlan
from ml_platform.workflows.platform import Platform
from ml_platform.workflows.promotion import roll_back
from ml_platform.workflows.traffic import keep_plan, living_servers

log = logging.getLogger("ml_platform")


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """How traffic of a model stands, and what is to be done about it.

    Parameters
    ----------
    model : str
    plan : TrafficPlan or None
        The plan in force; ``None`` before the first promotion.
    servers : list of ServerBeat
        Those that are alive.
    step, why : Step, str
        What is to be done now, and why.
    report : StepReport or None
        Both versions' figures; ``None`` where no rollout is under way.
    back_to : int or None
        The version that an abort returns to; ``None`` where there is none.
    entry : LedgerEntry or None
        The rollback that came of it; ``None`` where nothing was rolled back.
    stored : bool
        Whether the plan in force is the newest one of the database.
    """

    model: str
    plan: TrafficPlan | None
    servers: list[ServerBeat]
    step: Step
    why: str
    report: StepReport | None = None
    back_to: int | None = None
    entry: LedgerEntry | None = None
    stored: bool = True

    @property
    def due(self) -> bool:
        """Whether somebody must act: a step is to be done, or the plan in force stands in the ledger alone."""
        return self.plan is not None and (self.step is not Step.HOLD or not self.stored)

    @property
    def document(self) -> dict[str, Any]:
        """What people and programs are shown."""
        plan = self.plan
        servers = [{"server": s.server, "admin_address": s.admin_address, **s.says} for s in self.servers]
        moves = {"step": plan.step, "share": plan.share, "since": plan.since.isoformat()} if plan else {}
        return {
            "model": self.model,
            "mode": plan.mode.value if plan else None,
            "stable": plan.stable if plan else None,
            "successor": plan.successor if plan else None,
            "plan": plan.sequence if plan else None,
            **moves,
            "next": self.step.value,
            "why": self.why,
            "figures": self.report.document if self.report else None,
            "servers": servers,
        }


def traffic_of(platform: Platform, model: str, *, at: datetime | None = None) -> Traffic:
    """Return how traffic of a model stands; nothing is changed.

    Parameters
    ----------
    platform : Platform
    model : str
    at : datetime or None
        ``None`` is now.
    """
    time = at or now()
    newest, servers = platform.database.traffic_plan(model), living_servers(platform, model)
    history = platform.database.history(model)
    plan = rollout.in_force(history, newest)
    if plan is None:
        return Traffic(model=model, plan=None, servers=servers, step=Step.HOLD, why=f"{model} never had a champion")
    champions, _ = promotion.standing(history)
    declared = rollout.rollout_of(history) or Rollout()
    figures = platform.database.traffic_figures(model, plan.sequence)
    back_to = plan.stable if plan.under_way else champions[-2] if len(champions) > 1 else None
    why = f"version {plan.stable} answers everything"
    hold = Traffic(model=model, plan=plan, servers=servers, step=Step.HOLD, why=why)
    found = replace(hold, back_to=back_to, stored=plan == newest)
    refusal = _refusal(plan, servers, declared, figures, time)
    if refusal and back_to is not None and _was_promoted(history):
        return replace(found, step=Step.ABORT, why=refusal)
    if not plan.under_way:
        return found
    report = rollout.judge(plan, figures, declared, at=time, before=_counted_before(platform, plan))
    return replace(found, step=report.step, why=report.why, report=report)


def _was_promoted(history: Sequence[LedgerEntry]) -> bool:
    """Whether the champion was promoted, and not brought back by a person: only then it goes back by itself."""
    last = next((entry for entry in reversed(history) if entry.action != Action.REPLACEMENT), None)
    return last is not None and last.action == Action.PROMOTION


def _refusal(
    plan: TrafficPlan,
    servers: Sequence[ServerBeat],
    declared: Rollout,
    figures: Sequence[TrafficFigures],
    at: datetime,
) -> str:
    """Return why every server refuses to load the champion, once that lasted a step and it never answered; else ''."""
    champion = plan.stable if plan.successor is None else plan.successor
    reasons = [dict(beat.says.get("refused") or {}).get(str(champion)) for beat in servers]
    answered = any(counted.version == champion and counted.records > counted.failures for counted in figures)
    waited = at >= plan.since + timedelta(minutes=declared.hold_minutes)
    if not reasons or not all(reasons) or answered or not waited:
        return ""
    return f"no server serves version {champion}: {reasons[0]}"


def _counted_before(platform: Platform, plan: TrafficPlan) -> list[TrafficFigures]:
    """Return what was counted under earlier plans of the same rollout, whose salt is the same."""
    if plan.share < 1:
        return []
    earlier = platform.database.traffic_plans(plan.model, plan.salt)
    return [
        figures
        for sequence in (other.sequence for other in earlier if other.sequence < plan.sequence)
        for figures in platform.database.traffic_figures(plan.model, sequence)
    ]


def step_rollout(platform: Platform, spec: ModelSpec, *, actor: str, at: datetime | None = None) -> Traffic:
    """Do what is to be done with a model's rollout now, once: whoever comes second finds nothing to do.

    Parameters
    ----------
    platform : Platform
    spec : ModelSpec
    actor : str
        Who does it, for the plan and the ledger.
    at : datetime or None
        ``None`` is now.

    Returns
    -------
    Traffic
        As it stood before, with the rollback if one came of it; `step` is HOLD where somebody else was faster.

    Raises
    ------
    LedgerError
        The ledger does not verify.
    EvidenceError, DigestMismatchError, RegistryError
        The version to go back to has no evidence, or its bytes are nowhere: the plan stays.
    """
    keep_plan(platform, spec.name)
    found = traffic_of(platform, spec.name, at=at)
    try:
        if found.step is Step.ADVANCE:
            _advance(platform, found, actor, at or now())
        elif found.step is Step.ABORT:
            return replace(found, entry=_abort(platform, spec, found, actor))
    except ConflictError as error:
        return replace(found, step=Step.HOLD, why=f"somebody else was faster: {error}")
    return found


def _advance(platform: Platform, found: Traffic, actor: str, at: datetime) -> None:
    plan, declared = found.plan, rollout.rollout_of(platform.database.history(found.model))
    if plan is None or declared is None:
        return
    after = rollout.next_plan(plan, declared, since=at, actor=actor, reason=found.why)
    platform.database.append_traffic_plan(after)
    log.info("traffic of %s: %s", found.model, described(after))


def _abort(platform: Platform, spec: ModelSpec, found: Traffic, actor: str) -> LedgerEntry:
    """Go back by the ledger, and by the plan that follows from it; the figures that decided stand in the entry."""
    plan = found.plan
    details = {"traffic": {name: found.document[name] for name in ("mode", "plan", "share", "step", "figures")}}
    entry = roll_back(
        platform,
        spec.name,
        lambda: spec,
        to=found.back_to,
        reason=f"{plan.mode if plan else 'rollout'} aborted: {found.why}",
        actor=actor,
        details=details,
        instead_of=plan.decision if plan else None,
    )
    log.warning("the rollout of %s went back to version %s: %s", spec.name, entry.version, found.why)
    return entry


def described(plan: TrafficPlan) -> str:
    """Return a plan in words: ``canary, step 2: 25% to version 4, the rest to version 3``."""
    if plan.successor is None:
        return f"all to version {plan.stable}"
    if not plan.share:
        return f"{plan.mode}: all to version {plan.stable}, copies to version {plan.successor}"
    return (
        f"{plan.mode}, step {plan.step + 1}: {plan.share:.0%} to version {plan.successor}, the rest to version "
        f"{plan.stable}"
    )
