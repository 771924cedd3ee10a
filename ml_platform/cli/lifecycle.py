"""`ml-platform retrain`, `approve`, `reproduce` and `reconcile`."""

import getpass
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ml_platform.cli import common
from ml_platform.cli.automation import DAGSTER_URL_HELP, SLOT_HELP, retrain_at, retrain_here
from ml_platform.cli.common import FIRST, REFUSED, AsJson, Model, Reason, Version, output, progress, working
from ml_platform.cli.console import literal
from ml_platform.cli.status import print_status
from ml_platform.errors import ConfigurationError
from ml_platform.models import discovery
from ml_platform.records.ledger import Alerting, LedgerEntry, approval_audience

if TYPE_CHECKING:
    from ml_platform.governance import reproduce as governance_reproduce
    from ml_platform.platform import Platform


def retrain(
    model: Model,
    reason: Reason,
    slot: Annotated[str | None, typer.Option(help=SLOT_HELP)] = None,
    dagster_url: Annotated[str | None, typer.Option(help=DAGSTER_URL_HELP)] = None,
    json: AsJson = False,
) -> None:
    """Train on the newest rows; promote if all gates pass.

    Exit status 1 if a gate or check failed.

    Example: ml-platform retrain churn --reason "new prices"
    """
    from ml_platform.governance.status import status
    from ml_platform.platform import Platform

    common.require_model(model)
    platform = Platform()
    if dagster_url is not None:
        retrain_at(platform, dagster_url, model, reason, slot)
        return
    with working(f"Training and evaluating {model} …"):
        failed = retrain_here(platform, model, reason, slot)
    rows = [row for row in status(platform) if row["model"] == model]
    if json:
        output.print_json(data=rows)
    for row in [] if json else rows:
        print_status(row)
    exit_if_refused(failed)


def resume(model: Model, json: AsJson = False) -> None:
    """Register, test and promote the newest candidate.

    Finishes a retraining whose gates passed and that stopped later: MLflow was unreachable, or the latency behind the
    server was inconclusive on a busy machine. Nothing is trained. Exit status 1 if a check failed.

    Example: ml-platform resume churn
    """
    from ml_platform.cli import launch
    from ml_platform.governance.status import status
    from ml_platform.platform import Platform
    from ml_platform.release.authentication import current_actor

    common.require_model(model)
    platform = Platform()
    with working(f"Testing the newest candidate of {model} …"):
        failed = launch.resume(model, current_actor(platform))
    rows = [row for row in status(platform) if row["model"] == model]
    if json:
        output.print_json(data=rows)
    for row in [] if json else rows:
        print_status(row)
    exit_if_refused(failed)


def exit_if_refused(failed: list[str]) -> None:
    """Print failed checks; exit with status 1 if there are any."""
    for check in failed:
        progress.print(f"refused: {check}", style="red", markup=False)
    if failed:
        raise typer.Exit(REFUSED)


def approve(
    model: Model,
    version: Annotated[int | None, typer.Argument(help="Version number in the registry. Default: the newest.")] = None,
    *,
    reason: Reason,
    auth: Annotated[str, typer.Option(help="Authentication: os_user, token or github_environment.")] = "os_user",
    token_name: Annotated[str, typer.Option(help="Owner of the token. Required with --auth token.")] = "",
    verdict: Annotated[
        str | None,
        typer.Option(
            help="Digest of the reviewed verdict; any other is refused. Required with --auth github_environment."
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Approve a version that passed its gates, and promote it.

    Neither the person who asked for the training nor the user who ran it can approve it.
    """
    from ml_platform.platform import Platform
    from ml_platform.release.authentication import authenticate
    from ml_platform.release.promote import approve_version

    spec, platform = discovery.load(model), Platform()
    token = _token(platform) if auth == "token" else ""
    audience = approval_audience(model, version, verdict) if version is not None and verdict is not None else None
    person = authenticate(platform, auth, name=token_name, token=token, audience=audience)
    approval, entry = approve_version(platform, spec, version, person, reason=reason, verdict_digest=verdict)
    _show_in_dagster(platform, entry)
    if json:
        output.print_json(data={"approval": vars(approval), "entry": vars(entry)}, default=str)
    else:
        until = f"until {approval.expires_at:%Y-%m-%d %H:%M} UTC"
        output.print(f"{model} version {entry.version}: approved by {person.name} {until}, champion", markup=False)


def _show_in_dagster(platform: "Platform", entry: LedgerEntry) -> None:
    from ml_platform.cli import launch

    try:
        launch.report_champion(platform, entry)
    except ConfigurationError as error:
        progress.print(f"version {entry.version} is champion, but Dagster does not show it: {error}", markup=False)


def _token(platform: "Platform") -> str:
    """Return the approval token, never from the command's arguments: every user of the host can read those."""
    token = platform.settings.approval_token
    if token is not None:
        return token.get_secret_value()
    return getpass.getpass("token: ") if sys.stdin.isatty() else sys.stdin.readline().strip()


def reproduce(
    model: Model,
    version: Version,
    current_code: Annotated[
        bool, typer.Option("--current-code", help="Use the current code and lock instead of the recorded ones.")
    ] = False,
    any_commit: Annotated[
        bool, typer.Option("--any-commit", help="Also allow a commit that is not in HEAD's history.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Train a version again and compare the results.

    The rebuild uses the pinned dataset, commit and lock. Exit status 1 if predictions or metrics differ.
    """
    from ml_platform.governance import reproduce as governance_reproduce
    from ml_platform.platform import Platform

    common.require_model(model)
    with working(f"Training version {version} of {model} again …"):
        result = governance_reproduce.reproduce(
            Platform(),
            model,
            version,
            module=f"{discovery.PACKAGE}.{model}",
            current_code=current_code,
            any_commit=any_commit,
        )
    if json:
        output.print_json(data=vars(result))
    else:
        _print_reproduction(result)
    if not result.identical:
        raise typer.Exit(REFUSED)


def _print_reproduction(result: "governance_reproduce.Reproduction") -> None:
    colour = "green" if result.identical else "red"
    output.print(result.model, style="bold", end=" ")
    output.print(f"version {result.version}:", literal(result.outcome, colour))
    lines = {
        "dataset": f"version {result.dataset_version}, digest {result.dataset_digest[:12]}",
        "code": result.code,
        "lock": f"digest {result.lock_digest[:12]}",
        "model": f"canonical bytes {result.model_digest[:12]}, rebuilt {result.rebuilt_digest[:12]}",
        "compared": f"{result.predictions:,} predictions bit by bit, {len(result.figures)} figures of the verdict",
        "not compared": ", ".join(name.removeprefix("metrics.") for name in result.not_compared) or "nothing",
    }
    for name, text in lines.items():
        output.print(f"{name:<14}{text}", markup=False)
    for note in result.notes:
        output.print(f"note          {note}", markup=False)
    for difference in result.differences[:FIRST]:
        output.print(f"differs       {difference}", style="red", markup=False)
    if len(result.differences) > FIRST:
        output.print(f"              and {len(result.differences) - FIRST} more differences")
    if result.deterministic is False:
        names = ", ".join(result.unseeded)
        advice = f"random_state is None: {names}" if names else "no random_state is None: look for other randomness"
        text = f"{result.model} cannot be reproduced: two rebuilds gave two models; {advice}"
        output.print(f"pipeline      {text}", style="red", markup=False)


def reconcile(model: Model, json: AsJson = False) -> None:
    """Compare MLflow with the ledger and repair differences.

    Covers aliases, versions and files; Dagster's registry sensor does the same. Exit status 1 if a difference needs
    attention.
    """
    from ml_platform.platform import Platform
    from ml_platform.release import reconcile as release_reconcile
    from ml_platform.release.authentication import current_actor

    platform, spec = Platform(), discovery.load(model)
    differences = release_reconcile.reconcile(platform, spec, actor=current_actor(platform))
    release_reconcile.alert(platform, differences)
    if json:
        output.print_json(data=[asdict(difference) for difference in differences], default=str)
    elif not differences:
        output.print(f"{model}: MLflow agrees with the ledger.", markup=False)
    for difference in [] if json else differences:
        output.print(difference.summary, markup=False)
    if any(difference.alerting is not Alerting.NONE for difference in differences):
        raise typer.Exit(REFUSED)
