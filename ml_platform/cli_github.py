"""What the workflows under .github/ call, and the receiver that starts one of them."""

import contextlib
import sys
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console

from ml_platform import workflows
from ml_platform.errors import ConflictError, OutsideError
from ml_platform.model_spec import ModelSpec
from ml_platform.records import Slot, now
from ml_platform.workflows import End, Platform

progress = Console(stderr=True, highlight=False, soft_wrap=True)
output = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
REFUSED, FAILED = 1, 2
SCHEDULE, DUE = "schedule", "due"
SLOT_HELP = "Retrain only if nobody did for this name and reason; `due` is the newest tick of the model's schedule."
AT_HELP = "Ask the Dagster whose webserver answers at this address, and wait until its run has ended."

Model = Annotated[str, typer.Argument(help="Name of the model, for instance churn.")]
Version = Annotated[int, typer.Argument(help="Its number in the registry.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(models)
    app.command("check-version")(check_version)
    app.command("follow-rollout")(follow_rollout)
    app.command()(webhooks)


def models(
    model: Annotated[str | None, typer.Argument(help="Only this one; it must be there.")] = None, json: AsJson = False
) -> None:
    """List the models that have a file."""
    from ml_platform import cli

    if model is not None:
        cli._require_model(model)
    found = cli.declared_models() if model is None else [model]
    if json:
        output.print_json(data=found)
    for name in [] if json else found:
        output.print(name, markup=False)


def retrain_here(platform: Platform, model: str, reason: str, slot: str | None) -> list[str]:
    """Retrain in this process; return the blocking checks that failed. A slot that another run has is left to it."""
    from ml_platform import runs

    actor = workflows.who(platform)
    if slot is None:
        return runs.retrain(model, _manual(reason), actor)
    asked = _slot(model, reason, slot, now())
    try:
        return runs.retrain_once(platform, asked, actor)
    except ConflictError as error:
        progress.print(f"nothing is done: {error}", markup=False)
        return []


def retrain_at(platform: Platform, url: str, model: str, reason: str, slot: str | None) -> None:
    """Ask a deployed Dagster to retrain, wait for its run, and exit as a retraining here would."""
    from ml_platform.deployed import DeployedDagster

    token = platform.settings.dagster_token
    dagster = DeployedDagster(url=url, token=token.get_secret_value() if token else None)
    asked = _slot(model, reason, slot, now()) if slot else None
    why = asked.reason if asked else _manual(reason)
    run = dagster.retrain(model, why, workflows.who(platform), asked.slot if asked else None)
    output.print(f"{url.rstrip('/')}/runs/{run}", markup=False)
    outcome = dagster.outcome(run, lambda said: progress.print(said, markup=False))
    if outcome == "CANCELED":
        raise OutsideError(f"Run {run} was canceled.")
    if outcome != "SUCCESS":
        raise typer.Exit(REFUSED)


def _manual(reason: str) -> str:
    """Return a person's reason as it is recorded, which is what some people write themselves."""
    return f"manual: {reason.removeprefix('manual: ')}"


def _slot(model: str, reason: str, slot: str, at: datetime) -> Slot:
    """Return what is asked for; a clock that asks for its tick has the reason of Dagster's own schedule."""
    workflows.require_reason(reason)
    if slot == DUE:
        from ml_platform import runs

        slot = runs.due_slot(model, at)
    return Slot(model=model, reason=SCHEDULE if reason == SCHEDULE else _manual(reason), slot=slot)


def check_version(model: Model, version: Version, json: AsJson = False) -> None:
    """Run the integration test of exactly this version, and say which verdict holds for its bytes."""
    tested = workflows.check_version(Platform(), _spec(model), version)
    if json:
        output.print_json(data=asdict(tested))
    elif tested.problem is None:
        waits = "waits for an approval" if tested.waits else f"waits for nothing, champion is {tested.champion}"
        output.print(f"{model} version {version}: passed, verdict {tested.verdict}, {waits}", markup=False)
    if tested.problem is not None:
        progress.print(f"refused: {tested.problem}", style="red", markup=False)
        raise typer.Exit(REFUSED)


def follow_rollout(
    model: Model,
    version: Version,
    within: Annotated[float, typer.Option(help="Minutes that it may take; 0 goes back at once.", min=0)] = 300,
    json: AsJson = False,
) -> None:
    """Wait until a promoted version answers everything; where it does not, the champion before it returns."""
    platform = Platform()
    actor = workflows.who(platform)
    followed = workflows.follow_rollout(platform, _spec(model), version, seconds=60 * within, actor=actor)
    if json:
        output.print_json(data=asdict(followed))
    else:
        output.print(f"{model}: {followed.end}, {followed.why}", markup=False)
    if followed.end not in {End.ARRIVED, End.NOBODY_SERVES}:
        raise typer.Exit(REFUSED)


def webhooks(
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8090,
    host: Annotated[
        str, typer.Option(help="Address; a proxy that speaks TLS stands in front of any other.")
    ] = "127.0.0.1",
) -> None:
    """Receive MLflow's webhooks and ask GitHub for the promotion of what waits, until interrupted."""
    from ml_platform.webhooks import PATH, Server, receiver

    server = Server((host, port), receiver(Platform().settings))
    progress.print(f"receiving on http://{host}:{server.server_address[1]}{PATH}", markup=False)
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


def _spec(model: str) -> ModelSpec:
    from ml_platform import cli

    return cli._spec(model)
