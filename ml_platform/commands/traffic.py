"""`ml-platform traffic` and `ml-platform rollback`: who answers, and the way back within a second."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ml_platform import admin
from ml_platform.commands import shared
from ml_platform.commands.shared import REFUSED, AsJson, Model, output, progress
from ml_platform.model_spec import ModelSpec
from ml_platform.settings import read_settings
from ml_platform.stages.approvals import caller

if TYPE_CHECKING:
    from ml_platform import workflows


def traffic(model: Model, json: AsJson = False) -> None:
    """Show which versions answer, how far the champion's rollout is, what servers counted, and what comes next."""
    from ml_platform import workflows

    platform = workflows.Platform()
    found = workflows.traffic_of(platform, model)
    plans = platform.database.traffic_plans(model)
    if json:
        said = [{"plan": plan.sequence, "since": plan.since.isoformat(), "reason": plan.reason} for plan in plans]
        output.print_json(data={**found.document, "plans": said})
        return
    if found.plan is None:
        output.print(f"{found.why}.", markup=False)
        return
    _say("traffic", workflows.described(found.plan))
    _say("since", f"{found.plan.since:%Y-%m-%d %H:%M:%S} UTC, plan {found.plan.sequence}, by {found.plan.actor}")
    _say("next", f"{found.step.value}: {found.why}")
    for beat in found.servers:
        refused = "".join(f"; refuses version {v}: {why}" for v, why in (beat.says.get("refused") or {}).items())
        _say("server", f"{beat.server}, admin {beat.admin_address}, obeys plan {beat.says.get('plan')}{refused}")
    if not found.servers:
        _say("server", f"none is alive: ml-platform serve {model}")
    if found.report is not None:
        _print_figures(found.report.document)


def _say(what: str, text: str) -> None:
    output.print(f"{what:<9}{text}", markup=False)


def _print_figures(report: dict[str, Any]) -> None:
    table = Table("version", "requests", "records", "failures", "error share", "95 % interval", "p95 ms")
    for of in report["versions"]:
        p95 = "none" if of["p95_seconds"] is None else f"{of['p95_seconds'] * 1000:.3g}"
        interval = f"{of['error_low']:.2%} to {of['error_high']:.2%}"
        counts = (f"{of[name]:,}" for name in ("requests", "records", "failures"))
        table.add_row(str(of["version"]), *counts, f"{of['error_share']:.2%}", interval, p95)
    output.print(table)
    for condition in report["conditions"]:
        output.print(f"{condition['outcome']:<13}{condition['name']}: {condition['why']}", markup=False)


def rollback(
    model: Model,
    reason: Annotated[str, typer.Option(help="Why, for whoever reads the ledger later.")],
    to: Annotated[int | None, typer.Option(help="The version; by default the champion before the present one.")] = None,
    json: AsJson = False,
) -> None:
    """Let an earlier version answer again, on every server, as champion. It does not return by itself."""
    settings = read_settings()
    asked: dict[str, Any] = {"to": to, "reason": reason, "actor": caller(settings)}
    here = admin.local_address(settings, model)
    # Its server swaps before anything is imported that the ledger needs.
    first = admin.swap_all(settings, model, [here] if here else [], **asked)
    from ml_platform import workflows

    def declared() -> ModelSpec:
        return shared.spec_of(model)

    done = workflows.go_back(workflows.Platform(settings), model, declared, **asked, first=first)
    if json:
        entry = vars(done.entry) if done.entry else {"model": model, "version": done.version}
        said = {"ledger": done.problem or "written", "servers": [vars(swap) for swap in done.swaps]}
        output.print_json(data={**entry, **said}, default=str)
    else:
        _print_return(model, done)
    late = [swap for swap in done.swaps if not swap.swapped]
    for swap in late:
        said_by = swap.problem or f"{swap.address} has not confirmed yet"
        progress.print(f"not yet: {said_by}", style="red", markup=False)
    if done.entry is None and late:
        raise typer.Exit(REFUSED)


def _print_return(model: str, done: "workflows.Return") -> None:
    if done.entry is not None:
        instead = done.entry.previous_version
        output.print(f"{model}: version {done.version} is champion again, instead of {instead}", markup=False)
    else:
        output.print(f"{model}: version {done.version} answers again; the ledger follows: {done.problem}", markup=False)
    swapped = [swap.address for swap in done.swaps if swap.swapped]
    if swapped:
        progress.print(f"{len(swapped)} servers swapped: {', '.join(swapped)}", markup=False)
