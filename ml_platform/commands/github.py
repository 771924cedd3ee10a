"""What the workflows under .github/ call, and the receiver that starts one of them."""

import contextlib
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ml_platform.commands import shared
from ml_platform.commands.shared import REFUSED, AsJson, Model, output, progress
from ml_platform.errors import ConflictError, OutsideError
from ml_platform.lazily import Lazily
from ml_platform.records import Slot, now

if TYPE_CHECKING:
    from ml_platform import workflows
    from ml_platform.workflows import Platform
else:
    workflows = Lazily("ml_platform.workflows")

SCHEDULE, DUE = "schedule", "due"
SLOT_HELP = "Retrain only if nobody did for this name and reason; `due` is the newest tick of the model's schedule."
AT_HELP = "Ask the Dagster whose webserver answers at this address, and wait until its run has ended."

# A month: longer than any rollout, and no infinity.
MOST_MINUTES = 30 * 24 * 60

Version = Annotated[int, typer.Argument(help="Its number in the registry.")]


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
    if model is not None:
        shared.require_model(model)
    found = shared.declared_models() if model is None else [model]
    if json:
        output.print_json(data=found)
    for name in [] if json else found:
        output.print(name, markup=False)


def retrain_here(platform: "Platform", model: str, reason: str, slot: str | None) -> list[str]:
    """Retrain in this process; return the blocking checks that failed. A slot that another run has is left to it."""
    from ml_platform import runs

    actor = workflows.who(platform)
    if slot is None:
        return runs.retrain(model, _by_hand(reason), actor)
    asked = _slot(model, reason, slot, now())
    try:
        return runs.retrain_once(platform, asked, actor)
    except ConflictError as error:
        progress.print(f"nothing is done: {error}", markup=False)
        return []


def retrain_at(platform: "Platform", url: str, model: str, reason: str, slot: str | None) -> None:
    """Ask a deployed Dagster to retrain, wait for its run, and exit as a retraining here would."""
    from ml_platform.deployed import DeployedDagster

    token = platform.settings.dagster_token
    dagster = DeployedDagster(url=url, token=token.get_secret_value() if token else None)
    asked = _slot(model, reason, slot, now()) if slot else None
    why = asked.reason if asked else _by_hand(reason)
    run = dagster.retrain(model, why, workflows.who(platform), asked.slot if asked else None)
    output.print(f"{url.rstrip('/')}/runs/{run}", markup=False)
    outcome = dagster.outcome(run, lambda said: progress.print(said, markup=False))
    again = "Look at it there. Run it again there, which keeps its slot, or start another retraining."
    if outcome == "CANCELED":
        raise OutsideError(f"Run {run} was canceled. {again}")
    if outcome != "SUCCESS":
        progress.print(f"refused: run {run} failed. {again}", style="red", markup=False)
        raise typer.Exit(REFUSED)


def _slot(model: str, reason: str, slot: str, at: datetime) -> Slot:
    """Return what is asked for; a clock that asks for its tick has the reason of Dagster's own schedule."""
    if slot == DUE:
        from ml_platform import runs

        slot = runs.due_slot(model, at)
    return Slot(model=model, reason=SCHEDULE if reason == SCHEDULE else _by_hand(reason), slot=slot)


def _by_hand(reason: str) -> str:
    """Return a person's reason, which must say something, with or without a slot."""
    workflows.require_reason(reason)
    return f"manual: {reason.removeprefix('manual: ')}"


def check_version(model: Model, version: Version, json: AsJson = False) -> None:
    """Run the integration test of exactly this version, and say which verdict holds for its bytes."""
    tested = workflows.check_version(workflows.Platform(), shared.spec_of(model), version)
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
    within: Annotated[
        float, typer.Option(help="Minutes that it may take; 0 goes back at once.", min=0, max=MOST_MINUTES)
    ] = 300,
    json: AsJson = False,
) -> None:
    """Wait until a promoted version answers everything; where it does not, the champion before it returns."""
    platform = workflows.Platform()
    actor = workflows.who(platform)
    followed = workflows.follow_rollout(platform, shared.spec_of(model), version, seconds=60 * within, actor=actor)
    if json:
        output.print_json(data=asdict(followed))
    else:
        output.print(f"{model}: {followed.end}, {followed.why}", markup=False)
    if followed.end not in {workflows.End.ARRIVED, workflows.End.NOBODY_SERVES}:
        raise typer.Exit(REFUSED)


def webhooks(
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8090,
    host: Annotated[
        str, typer.Option(help="Address; a proxy that speaks TLS stands in front of any other.")
    ] = "127.0.0.1",
) -> None:
    """Receive MLflow's webhooks and ask GitHub for the promotion of what waits, until interrupted."""
    from ml_platform.webhooks import PATH, Server, receiver

    server = Server((host, port), receiver(workflows.Platform().settings))
    progress.print(f"receiving on http://{host}:{server.server_address[1]}{PATH}", markup=False)
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
