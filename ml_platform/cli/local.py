"""`ml-platform demo` and `dev`."""

from typing import TYPE_CHECKING, Annotated

import typer

from ml_platform.cli.automation import retrain_here
from ml_platform.cli.common import REFUSED, output, progress, working
from ml_platform.cli.data import any_quarantined, ingest_waiting
from ml_platform.cli.lifecycle import exit_if_refused
from ml_platform.cli.status import print_status
from ml_platform.models import discovery

if TYPE_CHECKING:
    from ml_platform.platform import Platform


def demo(
    shuffle_labels: Annotated[
        bool, typer.Option(help="Land the data again with shuffled labels, so that gates fail.")
    ] = False,
    next_file: Annotated[bool, typer.Option(help="Only land the next file.")] = False,
) -> None:
    """Land, publish and train on the included churn data, up to a champion."""
    from ml_platform.devtools import demo_data
    from ml_platform.governance.status import status
    from ml_platform.platform import Platform
    from ml_platform.release.ledger.follow import sync_alias

    platform = Platform()
    if next_file:
        _land(platform, demo_data.next_export(demo_data.newest_time(platform.rows("churn"))))
        return
    _land(platform, demo_data.shuffled_exports() if shuffle_labels else demo_data.exports())
    outcomes = ingest_waiting(platform, "churn")
    if not outcomes:
        output.print("All files were already published: nothing was published twice.")
    failed = []
    if platform.new_rows("churn"):
        with working("Training and evaluating churn …"):
            failed = retrain_here(platform, "churn", "demo", None)
    else:
        output.print("There are no new rows since the newest candidate's dataset version: nothing was trained.")
        sync_alias(platform, "churn")
    row = status(platform)[0]
    print_status(row)
    exit_if_refused(failed)
    if any_quarantined(outcomes) or row["last_run"]["state"] == "refused":
        raise typer.Exit(REFUSED)


def _land(platform: "Platform", files: dict[str, bytes]) -> None:
    from ml_platform.data.landing import land_files

    landed = land_files(platform, "churn", files)
    output.print(f"{len(landed)} files landed in {platform.zone.address}/churn", soft_wrap=True)


def dev(
    port: Annotated[int, typer.Option(help="Port of Dagster's UI.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's UI.")] = 5000,
) -> None:
    """Run Dagster's UI and daemon, and MLflow's UI, on loopback."""
    from ml_platform.devtools.dev_servers import run_servers
    from ml_platform.platform import Platform

    run_servers(Platform().settings, discovery.names(), port, mlflow_port, progress.print)
