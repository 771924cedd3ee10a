"""`ml-platform rollout status`, `rollout wait` and `rollback`."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from ml_platform.cli.common import REFUSED, AsJson, Model, Reason, Version, output, progress
from ml_platform.models import discovery
from ml_platform.release import admin_client
from ml_platform.release.authentication import caller
from ml_platform.settings import read_settings

MAX_MINUTES = 30 * 24 * 60  # a month, longer than any rollout


def rollout_status(model: Model, json: AsJson = False) -> None:
    """Show traffic shares, the next step and the servers' statistics."""
    from ml_platform.platform import Platform
    from ml_platform.release.rollout.steps import describe_plan, read_traffic

    platform = Platform()
    traffic = read_traffic(platform, model)
    if json:
        plans = platform.database.traffic_plans(model)
        entries = [{"plan": plan.sequence, "since": plan.since.isoformat(), "reason": plan.reason} for plan in plans]
        output.print_json(data={**traffic.document, "plans": entries})
        return
    plan = traffic.plan
    if plan is None:
        output.print(f"{traffic.why}.")
        return
    lines = [
        ("traffic", describe_plan(plan)),
        ("since", f"{plan.since:%Y-%m-%d %H:%M:%S} UTC, plan {plan.sequence}, by {plan.actor}"),
        ("next", f"{traffic.step.value}: {traffic.why}"),
    ]
    for beat in traffic.servers:
        refused = "".join(f"; refuses version {v}: {why}" for v, why in (beat.says.get("refused") or {}).items())
        text = f"{beat.server}, admin {beat.admin_address}, serves plan {beat.says.get('plan')}{refused}"
        lines.append(("server", text))
    for name, text in lines if traffic.servers else [*lines, ("server", f"none is alive: ml-platform serve {model}")]:
        output.print(f"{name:<9}{text}")
    if traffic.report is not None:
        _print_statistics(traffic.report.document)


def _print_statistics(report: dict[str, Any]) -> None:
    table = Table("version", "requests", "units", "failed", "error share", "95 % interval", "p95 ms")
    for row in report["versions"]:
        p95 = "none" if row["p95_seconds"] is None else f"{row['p95_seconds'] * 1000:.3g}"
        interval = f"{row['error_low']:.2%} to {row['error_high']:.2%}"
        counts = (f"{row[name]:,}" for name in ("requests", "units", "failed_units"))
        table.add_row(str(row["version"]), *counts, f"{row['error_share']:.2%}", interval, p95)
    output.print(table)
    for condition in report["conditions"]:
        output.print(f"{condition['outcome']:<13}{condition['name']}: {condition['why']}")


def rollout_wait(
    model: Model,
    version: Version,
    timeout_minutes: Annotated[
        float, typer.Option(help="Maximum wait. 0 rolls back at once.", min=0, max=MAX_MINUTES)
    ] = 300,
    json: AsJson = False,
) -> None:
    """Wait for a rollout to finish; roll back to the previous champion if it does not.

    Exit status 1 if another version became champion.

    Example: ml-platform rollout wait churn 7
    """
    from ml_platform.platform import Platform
    from ml_platform.release.authentication import current_actor
    from ml_platform.release.rollout import wait

    platform, spec = Platform(), discovery.load(model)
    actor = current_actor(platform)
    result = wait.wait_for_rollout(platform, spec, version, seconds=60 * timeout_minutes, actor=actor)
    if json:
        output.print_json(data=asdict(result))
    else:
        output.print(f"{model}: {result.end}, {result.why}")
    if result.end not in {wait.RolloutOutcome.ARRIVED, wait.RolloutOutcome.NOBODY_SERVES}:
        raise typer.Exit(REFUSED)


def rollback(
    model: Model,
    reason: Reason,
    to: Annotated[int | None, typer.Option(help="Version to return to. Default: the previous champion.")] = None,
    json: AsJson = False,
) -> None:
    """Make an earlier version champion again, on every server.

    The rolled-back version is not promoted again automatically. Exit status 1 if neither the ledger nor every server
    has confirmed.

    Example: ml-platform rollback churn --reason "too many alarms"
    """
    settings = read_settings()
    request: dict[str, Any] = {"to": to, "reason": reason, "actor": caller(settings)}
    here = admin_client.local_address(settings, model)
    # The local server swaps first: importing the database takes longer.
    first = admin_client.swap_all(settings, model, [here] if here else [], **request)
    from ml_platform.platform import Platform
    from ml_platform.release.fast_rollback import run_fast_rollback

    result = run_fast_rollback(Platform(settings), model, **request, first=first)
    if json:
        entry = vars(result.entry) if result.entry else {"model": model, "version": result.version}
        state = {"ledger": result.problem or "written", "servers": [vars(swap) for swap in result.swaps]}
        output.print_json(data={**entry, **state}, default=str)
    else:
        if result.entry is not None:
            text = f"is champion again, instead of {result.entry.previous_version}"
        else:
            text = f"serves again; the ledger will follow: {result.problem}"
        output.print(f"{model}: version {result.version} {text}")
        swapped = [swap.address for swap in result.swaps if swap.swapped]
        if swapped:
            progress.print(f"{len(swapped)} servers swapped: {', '.join(swapped)}")
    late = [swap for swap in result.swaps if not swap.swapped]
    for swap in late:
        problem = swap.problem or f"{swap.address} has not confirmed yet"
        progress.print(f"not yet: {problem}", style="red")
    if result.entry is None and late:
        raise typer.Exit(REFUSED)
