"""Commands and helpers for the workflows in .github/, and the webhook server that starts one of them."""

import contextlib
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ml_platform.cli.common import REFUSED, AsJson, output, progress
from ml_platform.errors import ConflictError, RemoteServiceError
from ml_platform.models import discovery
from ml_platform.records.canonical import now
from ml_platform.records.retraining import Slot
from ml_platform.safe_text import show_address

if TYPE_CHECKING:
    from ml_platform.platform import Platform

SCHEDULE, DUE = "schedule", "due"
SLOT_HELP = "Time slot: retrain once per model, reason and slot. `due` is the latest tick of the model's schedule."
DAGSTER_URL_HELP = "Retrain on the Dagster deployment at this URL and wait for the run to end."


def models(
    model: Annotated[
        str | None,
        typer.Argument(help="Load this model's file and print its name; fail if it is not declared or not valid."),
    ] = None,
    json: AsJson = False,
) -> None:
    """List the declared models; load the given one and report its errors."""
    if model is not None:
        discovery.load(model)
    names = discovery.names() if model is None else [model]
    if json:
        output.print_json(data=names)
    for name in [] if json else names:
        output.print(name)


def retrain_here(platform: "Platform", model: str, reason: str, slot: str | None) -> list[str]:
    """Retrain in this process; return the failed blocking checks, an empty list if another run has the slot."""
    from ml_platform.cli import launch
    from ml_platform.release.authentication import current_actor

    actor = current_actor(platform)
    if slot is None:
        return launch.retrain(model, _by_hand(reason), actor)
    try:
        return launch.retrain_once(platform, _slot(model, reason, slot, now()), actor)
    except ConflictError as error:
        progress.print(f"nothing to do: {error}")
        return []


def retrain_at(platform: "Platform", url: str, model: str, reason: str, slot: str | None) -> None:
    """Retrain on a deployed Dagster and wait for its run; exit with status 1 if the run fails."""
    from ml_platform.orchestration.remote_dagster import DeployedDagster
    from ml_platform.release.authentication import current_actor

    token = platform.settings.dagster_token
    dagster = DeployedDagster(url=url, token=token.get_secret_value() if token else None)
    claimed = _slot(model, reason, slot, now()) if slot else None
    full_reason = claimed.reason if claimed else _by_hand(reason)
    run = dagster.retrain(model, full_reason, current_actor(platform), claimed.slot if claimed else None)
    output.print(f"{show_address(url.rstrip('/'))}/runs/{run}")
    outcome = dagster.outcome(run, progress.print)
    advice = "Open it in that deployment's UI. Re-execute it there, which keeps its slot, or start another retraining."
    if outcome == "CANCELED":
        raise RemoteServiceError(f"Run {run} was canceled. {advice}")
    if outcome != "SUCCESS":
        progress.print(f"refused: run {run} failed. {advice}", style="red")
        raise typer.Exit(REFUSED)


def _slot(model: str, reason: str, slot: str, at: datetime) -> Slot:
    """Return the slot to claim; a scheduled retraining shares Dagster's reason, and so its slots."""
    if slot == DUE:
        from ml_platform.cli import launch

        slot = launch.due_slot(model, at)
    return Slot(model=model, reason=SCHEDULE if reason == SCHEDULE else _by_hand(reason), slot=slot)


def _by_hand(reason: str) -> str:
    """Return a manual retraining's reason; raise if it is empty."""
    from ml_platform.release.promote import require_reason

    require_reason(reason)
    return f"manual: {reason.removeprefix('manual: ')}"


def webhook_server(
    port: Annotated[int, typer.Option(help="Port; 0 selects a free port.")] = 8090,
    host: Annotated[
        str, typer.Option(help="Address to bind. Other addresses than loopback need a TLS proxy in front.")
    ] = "127.0.0.1",
) -> None:
    """Receive MLflow's webhooks and start promotions on GitHub."""
    from ml_platform.ci.mlflow_webhook import PATH, Server, receiver
    from ml_platform.platform import Platform

    server = Server((host, port), receiver(Platform().settings))
    progress.print(f"listening on http://{host}:{server.server_address[1]}{PATH}")
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
