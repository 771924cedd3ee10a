"""What makes, approves, rebuilds and holds versions against the ledger."""

import getpass
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ml_platform.commands import shared
from ml_platform.commands.github import AT_HELP, SLOT_HELP, retrain_at, retrain_here
from ml_platform.commands.looking import print_status
from ml_platform.commands.shared import FIRST, MODELS, REFUSED, AsJson, Model, output, progress, working
from ml_platform.errors import ConfigurationError
from ml_platform.lazily import Lazily
from ml_platform.records import Alerting, LedgerEntry

if TYPE_CHECKING:
    from ml_platform import workflows
    from ml_platform.workflows import Platform
else:
    workflows = Lazily("ml_platform.workflows")


def retrain(
    model: Model,
    reason: Annotated[str, typer.Option(help="Why, for whoever reads the ledger later.")],
    slot: Annotated[str | None, typer.Option(help=SLOT_HELP)] = None,
    at: Annotated[str | None, typer.Option(help=AT_HELP)] = None,
    json: AsJson = False,
) -> None:
    """Train on the newest rows, judge, and promote what passes; once a slot, if one is given."""
    shared.require_model(model)
    platform = workflows.Platform()
    if at is not None:
        retrain_at(platform, at, model, reason, slot)
        return
    with working(f"Training and judging {model} …"):
        failed = retrain_here(platform, model, reason, slot)
    found = [row for row in workflows.status(platform) if row["model"] == model]
    if json:
        output.print_json(data=found)
    for row in [] if json else found:
        print_status(row)
    exit_if_refused(failed)


def exit_if_refused(failed: list[str]) -> None:
    """End with exit status 1 where checks failed, and name them."""
    for check in failed:
        progress.print(f"refused: {check}", style="red", markup=False)
    if failed:
        raise typer.Exit(REFUSED)


def approve(
    model: Model,
    version: Annotated[int | None, typer.Argument(help="Its number in the registry; the newest by default.")] = None,
    *,
    reason: Annotated[str, typer.Option(help="Why, for whoever reads the ledger later.")],
    by: Annotated[str, typer.Option(help="How you are known: os_user, token or github_environment.")] = "os_user",
    name: Annotated[str, typer.Option(help="With --by token: whose token it is.")] = "",
    verdict: Annotated[
        str | None, typer.Option(help="Digest of the verdict that was looked at; no other one is approved.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Approve a version that passed its gates, as somebody other than who trained it, and promote it."""
    spec, platform = shared.spec_of(model), workflows.Platform()
    person = workflows.authenticate(platform, by, name=name, token=_token(platform) if by == "token" else "")
    approval, entry = workflows.approve_version(platform, spec, version, person, reason=reason, verdict_digest=verdict)
    _show_in_dagster(platform, entry)
    if json:
        output.print_json(data={"approval": vars(approval), "entry": vars(entry)}, default=str)
    else:
        until = f"until {approval.expires_at:%Y-%m-%d %H:%M} UTC"
        output.print(f"{model} version {entry.version}: approved by {person.name} {until}, champion", markup=False)


def _show_in_dagster(platform: "Platform", entry: LedgerEntry) -> None:
    from ml_platform import runs

    try:
        runs.report_champion(platform, entry)
    except ConfigurationError as error:
        progress.print(f"version {entry.version} is champion; Dagster is not told: {error}", markup=False)


def _token(platform: "Platform") -> str:
    """Return the secret; never from the command's arguments, which everybody on the host can read."""
    given = platform.settings.approval_token
    if given is not None:
        return given.get_secret_value()
    return getpass.getpass("token: ") if sys.stdin.isatty() else sys.stdin.readline().strip()


def reproduce(
    model: Model,
    version: Annotated[int, typer.Argument(help="Its number in the registry.")],
    here: Annotated[
        bool, typer.Option("--here", help="Rebuild with the code and lock that are here, whatever was recorded.")
    ] = False,
    any_commit: Annotated[
        bool, typer.Option("--any-commit", help="Also run the code of a commit that HEAD does not come from.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Make a version again from its pinned dataset, code and lock, and compare; exit status 1 if it is not the same."""
    shared.require_model(model)
    with working(f"Making version {version} of {model} again …"):
        found = workflows.reproduce(
            workflows.Platform(), model, version, module=f"{MODELS}.{model}", here=here, any_commit=any_commit
        )
    if json:
        output.print_json(data=vars(found))
    else:
        _print_reproduction(found)
    if not found.identical:
        raise typer.Exit(REFUSED)


def _print_reproduction(found: "workflows.Reproduction") -> None:
    colour = "green" if found.identical else "red"
    output.print(f"[bold]{found.model}[/] version {found.version}: [{colour}]{found.outcome}[/]")
    lines = {
        "dataset": f"version {found.dataset_version}, digest {found.dataset_digest[:12]}",
        "code": found.code,
        "lock": f"digest {found.lock_digest[:12]}",
        "model": f"canonical bytes {found.model_digest[:12]}, made again {found.rebuilt_digest[:12]}",
        "compared": f"{found.predictions:,} predictions to the bit, {len(found.figures)} figures of the verdict",
        "not compared": ", ".join(name.removeprefix("metrics.") for name in found.not_compared) or "nothing",
    }
    for name, text in lines.items():
        output.print(f"{name:<14}{text}", markup=False)
    for note in found.notes:
        output.print(f"note          {note}", markup=False)
    for difference in found.differences[:FIRST]:
        output.print(f"differs       {difference}", style="red", markup=False)
    if len(found.differences) > FIRST:
        output.print(f"              and {len(found.differences) - FIRST} differences more")
    if found.deterministic is False:
        output.print(f"pipeline      {_unseeded(found)}", style="red", markup=False)


def _unseeded(found: "workflows.Reproduction") -> str:
    names = ", ".join(found.unseeded)
    advice = f"random_state is None: {names}" if names else "no random_state is None: look for other randomness"
    return f"{found.model} cannot be reproduced: two rebuilds gave two models; {advice}"


def reconcile(model: Model, json: AsJson = False) -> None:
    """Hold MLflow's aliases, versions and bytes against the ledger, and mend what differs; the sensor does it too."""
    platform, spec = workflows.Platform(), shared.spec_of(model)
    findings = workflows.reconcile(platform, spec, actor=workflows.who(platform))
    workflows.alert(platform, findings)
    if json:
        output.print_json(data=[asdict(finding) for finding in findings], default=str)
    elif not findings:
        output.print(f"{model}: MLflow shows what the ledger says.", markup=False)
    for finding in [] if json else findings:
        output.print(finding.summary, markup=False)
    if any(finding.alerting is not Alerting.NONE for finding in findings):
        raise typer.Exit(REFUSED)
