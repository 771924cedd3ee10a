"""Automatic steps of a rollout: hold, advance or abort, decided from the servers' traffic statistics."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from ml_platform.errors import ConflictError
from ml_platform.model_spec import ModelSpec, Rollout
from ml_platform.platform import Platform
from ml_platform.records.canonical import now
from ml_platform.records.ledger import Action, LedgerEntry
from ml_platform.records.traffic import ServerHeartbeat, TrafficPlan, TrafficStats
from ml_platform.release.ledger.champions import champion_stack
from ml_platform.release.rollback import roll_back
from ml_platform.release.rollout import policy
from ml_platform.release.rollout.policy import Step, StepReport
from ml_platform.release.rollout.traffic import list_live_servers, store_plan

log = logging.getLogger("ml_platform")


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """State of a model's traffic, and the next action of its rollout.

    Parameters
    ----------
    model : str
    plan : TrafficPlan or None
        The plan in force; ``None`` before the first promotion.
    servers : list of ServerHeartbeat
        The live servers.
    step, why : Step, str
        The next action, and its reason.
    report : StepReport or None
        Statistics of both versions; ``None`` if no rollout is under way.
    back_to : int or None
        The version that an abort returns to; ``None`` if there is none.
    entry : LedgerEntry or None
        The rollback of an abort that was carried out; ``None`` otherwise.
    stored : bool
        True if the plan in force is the newest one of the database.
    """

    model: str
    plan: TrafficPlan | None
    servers: list[ServerHeartbeat]
    step: Step
    why: str
    report: StepReport | None = None
    back_to: int | None = None
    entry: LedgerEntry | None = None
    stored: bool = True

    @property
    def due(self) -> bool:
        """True if `step_rollout` has work: a step is due, or the plan in force is not stored yet."""
        return self.plan is not None and (self.step is not Step.HOLD or not self.stored)

    @property
    def document(self) -> dict[str, Any]:
        """The state as plain values, for the command line and Dagster's metadata."""
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


def read_traffic(platform: Platform, model: str, *, at: datetime | None = None) -> Traffic:
    """Return the state of a model's traffic; nothing is changed.

    Parameters
    ----------
    platform : Platform
    model : str
    at : datetime or None
        ``None`` is now.
    """
    time = at or now()
    newest, servers = platform.database.traffic_plan(model), list_live_servers(platform, model)
    history = platform.database.history(model)
    plan = policy.in_force(history, newest)
    if plan is None:
        return Traffic(model=model, plan=None, servers=servers, step=Step.HOLD, why=f"{model} never had a champion")
    champions, _ = champion_stack(history)
    declared = policy.read_declared_rollout(history) or Rollout()
    figures = platform.database.traffic_figures(model, plan.sequence)
    back_to = plan.stable if plan.under_way else champions[-2] if len(champions) > 1 else None
    why = f"version {plan.stable} serves all traffic"
    hold = Traffic(model=model, plan=plan, servers=servers, step=Step.HOLD, why=why)
    traffic = replace(hold, back_to=back_to, stored=plan == newest)
    refusal = _find_load_refusal(plan, servers, declared, figures, time)
    # A promotion is undone automatically; a person's rollback is not.
    if refusal and back_to is not None and policy.find_origin(history).action == Action.PROMOTION:
        return replace(traffic, step=Step.ABORT, why=refusal)
    if not plan.under_way:
        return traffic
    before = list[TrafficStats]()
    if plan.share >= 1:
        for other in platform.database.traffic_plans(model, plan.salt):  # plans of one rollout have the same salt
            if other.sequence < plan.sequence:
                before += platform.database.traffic_figures(model, other.sequence)
    report = policy.judge(plan, figures, declared, at=time, before=before)
    return replace(traffic, step=report.step, why=report.why, report=report)


def _find_load_refusal(
    plan: TrafficPlan,
    servers: Sequence[ServerHeartbeat],
    declared: Rollout,
    figures: Sequence[TrafficStats],
    at: datetime,
) -> str:
    """Return the reason why no server can load the champion; empty if it answered, or the step is not over yet."""
    champion = plan.stable if plan.successor is None else plan.successor
    reasons = [dict(beat.says.get("refused") or {}).get(str(champion)) for beat in servers]
    answered = any(stats.version == champion and stats.records > stats.failures for stats in figures)
    waited = at >= plan.since + timedelta(minutes=declared.hold_minutes)
    if not reasons or not all(reasons) or answered or not waited:
        return ""
    return f"no server serves version {champion}: {reasons[0]}"


def step_rollout(platform: Platform, spec: ModelSpec, *, actor: str, at: datetime | None = None) -> Traffic:
    """Carry out the next action of a model's rollout. Of several processes that try at the same time, one succeeds.

    An abort is a rollback in the ledger, with the measurements in the entry's details.

    Parameters
    ----------
    platform : Platform
    spec : ModelSpec
    actor : str
        The user or process that acts, for the plan and the ledger.
    at : datetime or None
        ``None`` is now.

    Returns
    -------
    Traffic
        The state before the action, with the rollback of an abort. `step` is HOLD if another process acted first.

    Raises
    ------
    LedgerError
        The ledger does not verify.
    EvidenceError, DigestMismatchError, RegistryError
        The earlier version has no valid evidence, or its bytes are missing everywhere: the plan is unchanged.
    """
    store_plan(platform, spec.name)
    traffic = read_traffic(platform, spec.name, at=at)
    plan = traffic.plan
    try:
        if traffic.step is Step.ADVANCE:
            declared = policy.read_declared_rollout(platform.database.history(spec.name))
            if plan is not None and declared is not None:
                after = policy.next_plan(plan, declared, since=at or now(), actor=actor, reason=traffic.why)
                platform.database.append_traffic_plan(after)
                log.info("traffic of %s: %s", spec.name, describe_plan(after))
        elif traffic.step is Step.ABORT:
            measured = {name: traffic.document[name] for name in ("mode", "plan", "share", "step", "figures")}
            entry = roll_back(
                platform,
                spec.name,
                load_spec=lambda _: spec,
                to=traffic.back_to,
                reason=f"{plan.mode if plan else 'rollout'} aborted: {traffic.why}",
                actor=actor,
                details={"traffic": measured},
                instead_of=plan.decision if plan else None,
            )
            log.warning("the rollout of %s went back to version %s: %s", spec.name, entry.version, traffic.why)
            return replace(traffic, entry=entry)
    except ConflictError as error:
        return replace(traffic, step=Step.HOLD, why=f"another process acted first: {error}")
    return traffic


def describe_plan(plan: TrafficPlan) -> str:
    """Describe a plan in words: ``canary, step 2: 25% to version 4, the rest to version 3``."""
    if plan.successor is None:
        return f"all to version {plan.stable}"
    if not plan.share:
        return f"{plan.mode}: all to version {plan.stable}, copies to version {plan.successor}"
    return (
        f"{plan.mode}, step {plan.step + 1}: {plan.share:.0%} to version {plan.successor}, the rest to version "
        f"{plan.stable}"
    )
