"""Everything on a laptop: the demonstration, and all servers on loopback."""

from typing import TYPE_CHECKING, Annotated

import typer

from ml_platform.commands import shared
from ml_platform.commands.data import any_quarantined, ingest_waiting
from ml_platform.commands.deciding import exit_if_refused
from ml_platform.commands.github import retrain_here
from ml_platform.commands.looking import print_status
from ml_platform.commands.shared import REFUSED, output, progress, working
from ml_platform.lazily import Lazily

if TYPE_CHECKING:
    from ml_platform import workflows
    from ml_platform.workflows import Platform
else:
    workflows = Lazily("ml_platform.workflows")


def demo(
    shuffle_labels: Annotated[
        bool, typer.Option(help="Land the customers again with shuffled labels: the gates close.")
    ] = False,
    only_land_next: Annotated[bool, typer.Option(help="Land one more export and do nothing else.")] = False,
) -> None:
    """Take the shipped churn data from files in the landing zone to a champion in the registry."""
    from ml_platform import demo as shipped

    platform = workflows.Platform()
    if only_land_next:
        _land(platform, shipped.next_export(shipped.newest_time(platform.rows("churn"))))
        return
    _land(platform, shipped.shuffled_exports() if shuffle_labels else shipped.exports())
    outcomes = ingest_waiting(platform, "churn")
    if not outcomes:
        output.print("Every file is published already: nothing was published twice.")
    failed = _train_demo(platform) if platform.new_rows("churn") else _nothing_to_train_on(platform)
    found = workflows.status(platform)[0]
    print_status(found)
    exit_if_refused(failed)
    if any_quarantined(outcomes) or found["last_run"]["state"] == "refused":
        raise typer.Exit(REFUSED)


def _train_demo(platform: "Platform") -> list[str]:
    with working("Training and judging churn …"):
        return retrain_here(platform, "churn", "demo", None)


def _nothing_to_train_on(platform: "Platform") -> list[str]:
    output.print("No row is newer than the newest candidate's dataset version: nothing to train on.")
    workflows.show_champion(platform, "churn")
    return []


def _land(platform: "Platform", files: dict[str, bytes]) -> None:
    landed = workflows.land_files(platform, "churn", files)
    output.print(f"{len(landed)} files landed in {platform.zone.address}/churn", soft_wrap=True)


def dev(
    port: Annotated[int, typer.Option(help="Port of Dagster's UI.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's UI.")] = 5000,
) -> None:
    """Run Dagster's UI and daemon and MLflow's UI on loopback until interrupted."""
    from ml_platform.dev import run_servers

    run_servers(workflows.Platform().settings, shared.declared_models(), port, mlflow_port, progress.print)
