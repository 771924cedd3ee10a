"""The command line: thin over `workflows`; Dagster is imported only where a command launches a run.

Exit status: 0 done; 1 done, and something was refused (a gate failed, a file was quarantined); 2 it could not be
done, and the message says why and what to do.
"""

import contextlib
import functools
import getpass
import importlib
import logging
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ml_platform import cli_quality, workflows
from ml_platform.errors import ConfigurationError, LandingZoneError, PlatformError
from ml_platform.model_spec import ModelSpec
from ml_platform.records import Action, Alerting, LedgerEntry, LedgerReport
from ml_platform.settings import require_dagster_home
from ml_platform.workflows import Platform, ignored_files, land_files, show_champion, waiting_arrivals
from ml_platform.workflows import status as model_status

app = typer.Typer(
    help="From a dropped file to a champion in the registry, with evidence that anyone can check.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
quarantine = typer.Typer(help="Explain what is quarantined; release what passes now.", no_args_is_help=True)
app.add_typer(quarantine, name="quarantine")
explain = typer.Typer(help="Why a version is champion, or is not, with the proof.", no_args_is_help=True)
app.add_typer(explain, name="explain")
ledger = typer.Typer(help="The record of approvals, promotions and rollbacks.", no_args_is_help=True)
app.add_typer(ledger, name="ledger")
cli_quality.register(app)
progress = Console(stderr=True, highlight=False, soft_wrap=True)
# A pipe has no width: what is written into a file or a log is not folded.
output = Console(highlight=False, width=None if sys.stdout.isatty() else 160)

Model = Annotated[str, typer.Argument(help="Name of the model, for instance churn.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
MODELS = "ml_platform.defs.models"
REFUSED = 1
FAILED = 2
FIRST = 10


class _Progress(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        progress.print(f"  {record.getMessage()}", markup=False)


def main() -> None:
    """Run the command line; turn the platform's own errors into one message and exit status 2."""
    logger = logging.getLogger("ml_platform")
    logger.addHandler(_Progress())
    logger.setLevel(logging.INFO)
    try:
        app()
    except PlatformError as error:
        Console(stderr=True, style="red", highlight=False).print(f"error: {error}", markup=False, soft_wrap=True)
        sys.exit(FAILED)


@contextlib.contextmanager
def _working(what: str) -> Iterator[None]:
    progress.print(what, style="bold")
    with progress.status(what) if progress.is_terminal else contextlib.nullcontext():
        yield


@app.command()
def status(json: AsJson = False) -> None:
    """Show every model with its champion, the newest candidate's gates and its last run."""
    models = model_status(Platform())
    if json:
        output.print_json(data=models)
    elif not models:
        output.print("No model has left a trace yet. Start with: make demo")
    for model in [] if json else models:
        _print_status(model)


@app.command()
def history(model: Model, json: AsJson = False) -> None:
    """Show the ledger: what was approved, what became champion, what was rolled back; when, by whom and why."""
    said = Platform().database.ledger(model)
    entries = [entry for entry in said if entry.action != Action.CONFIRMATION]
    if not entries:
        _require_model(model)
    if json:
        output.print_json(data=[{**vars(entry), "digest": entry.digest} for entry in entries], default=str)
        return
    table = Table("entry", "action", "version", "instead of", "when (UTC)", "reason", "verdict", "by")
    for e in entries:
        instead = "none" if e.previous_version is None else str(e.previous_version)
        when, digest = f"{e.recorded_at:%Y-%m-%d %H:%M:%S}", e.verdict_digest[:12]
        cells = str(e.sequence), e.action, str(e.version), instead, when, e.reason, digest, e.actor
        table.add_row(*(escape(cell) for cell in cells))
    output.print(table if entries else f"{model} never had a champion.")


@ledger.command("verify")
def ledger_verify(
    model: Annotated[str | None, typer.Argument(help="Name of the model; all by default.")] = None,
    json: AsJson = False,
) -> None:
    """Hold ledgers against their own digests and both anchors; exit status 1 where one was changed."""
    platform = Platform()
    names = workflows.ledgers(platform) if model is None else [model]
    reports = [workflows.verify_ledger(platform, name) for name in names]
    if json:
        output.print_json(data=[vars(report) for report in reports])
    for report in [] if json else reports:
        _print_report(report)
    if any(report.problems for report in reports):
        raise typer.Exit(REFUSED)
    if any(report.unread for report in reports):
        raise typer.Exit(FAILED)


def _print_report(report: LedgerReport) -> None:
    says = "was changed" if report.problems else "verifies"
    output.print(f"{report.model}: {report.entries} entries, the ledger {says}", markup=False)
    for problem in report.problems[:10]:
        output.print(f"  {problem}", style="red", markup=False)
    if len(report.problems) > 10:
        output.print(f"  and {len(report.problems) - 10} problems more")
    for late in (*report.behind, *report.unread):
        output.print(f"  {late}", markup=False)


@explain.command("champion")
def explain_champion(model: Model, json: AsJson = False) -> None:
    """Say who made the champion, when, why, of which data and code, on which evidence and instead of what."""
    _print_explanation(workflows.explain(Platform(), model), json)


@explain.command("version")
def explain_version(
    model: Model, version: Annotated[int, typer.Argument(help="Its number in the registry.")], json: AsJson = False
) -> None:
    """Say the same of any version."""
    _print_explanation(workflows.explain(Platform(), model, version), json)


def _print_explanation(found: dict[str, Any], json: bool) -> None:
    if json:
        output.print_json(data=found)
        return
    candidate, dataset, decision, proof = (found[key] for key in ("candidate", "dataset", "decision", "ledger"))
    output.print(f"[bold]{found['model']}[/] version {found['version']}, {_standing_of(found)}")
    if decision:
        instead = "nothing" if decision["instead_of"] is None else f"version {decision['instead_of']}"
        _say(decision["action"], f"{decision['when'][:19]} UTC by {decision['by']}, instead of {instead}")
        _say("reason", decision["reason"])
    for number in found["replaces"]:
        _say("replaces", f"version {number}, which was lost in MLflow: the same bytes under another number")
    for approval in found["approvals"]:
        way = f"{approval['by']} ({approval['authenticated_by']}), {approval['when'][:19]} UTC"
        _say("approved by", f"{way}, until {approval['expires'][:19]} UTC: {approval['reason']}")
    _say("candidate", f"{candidate['id']}, asked for by {candidate['asked_for_by'] or 'a trigger'}")
    _say("dataset", f"version {dataset['version']}, digest {dataset['digest'][:12]}")
    for arrival in dataset["arrivals"][:10]:
        _say("", f"{arrival['name']}: {arrival['rows']:,} rows, sha256 {arrival['sha256'][:12]}")
    if len(dataset["arrivals"]) > 10:
        _say("", f"and {len(dataset['arrivals']) - 10:,} arrivals more")
    _say("code", candidate["code_revision"])
    _say("lock", candidate["lock_digest"][:12])
    _say("model file", f"sha256 {candidate['model_digest'][:12]}")
    _say("verdict", (found["verdict"] or "none")[:12])
    _say("its page", found["verdict_page"] or "none is kept here")
    output.print(_gates_table(found["gates"]))
    _say("ledger", f"{proof['entries']} entries, {'verifies' if proof['verifies'] else 'was CHANGED'}")
    for line in (*proof["problems"], *proof["anchors"]):
        _say("", line)


def _say(what: str, text: str) -> None:
    output.print(f"{what:<13}{text}", markup=False)


def _standing_of(found: dict[str, Any]) -> str:
    if found["is_champion"]:
        return "champion"
    if found["was_rolled_back"]:
        return "rolled back"
    return "champion before" if found["decision"] else "never champion"


@app.command()
def land(
    files: Annotated[list[Path], typer.Argument(help="Parquet, CSV, CSV.GZ or JSON Lines files.")],
    model: Annotated[str, typer.Option(help="The model whose folder they are dropped into.")],
) -> None:
    """Copy files into the landing zone, all or none; a file that is there already is left alone."""
    _require_model(model)
    names = [file.name for file in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PlatformError(
            f"Two files are called {twice[0]!r}: the second would replace the first. Nothing was landed."
        )
    landed = land_files(Platform(), model, {file.name: _read(file) for file in files})
    for name in names:
        output.print(f"{name}: {'landed' if name in landed else 'is there already'}", markup=False)


def _require_model(model: str) -> None:
    """Refuse a model that has no file: its folder would be watched by nobody. Dagster need not be asked."""
    models = declared_models()
    if model not in models:
        raise ConfigurationError(f"There is no model {model!r}. There is: {', '.join(models) or 'none'}.")


def declared_models() -> list[str]:
    """Return the names of the files under defs/models/, which are the models' names."""
    from ml_platform.defs import models

    return sorted(found.name for found in pkgutil.iter_modules(models.__path__))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise PlatformError(f"{file} cannot be read: {error.strerror}. Nothing was landed.") from error


@app.command()
def ingest(model: Model, json: AsJson = False) -> None:
    """Publish or quarantine every file that waits in the landing zone, in one run."""
    _require_model(model)
    platform = Platform()
    outcomes = _ingest(platform, model)
    ignored = ignored_files(platform, model)
    if json:
        output.print_json(data={"arrivals": outcomes, "ignored": ignored}, default=str)
    elif outcomes:
        _print_outcomes(outcomes)
    else:
        output.print(f"No new, complete file for {model}: nothing was published.")
    for name in ignored:
        progress.print(
            f"ignored: {name!r} is no Parquet, CSV, CSV.GZ or JSON Lines file with a safe name", markup=False
        )
    if ignored or _any_quarantined(outcomes):
        raise typer.Exit(REFUSED)


def _any_quarantined(outcomes: list[dict[str, Any]]) -> bool:
    return any(row["outcome"] == "quarantined" for row in outcomes)


def _ingest(platform: Platform, model: str) -> list[dict[str, Any]]:
    with _working(f"Publishing what waits for {model} …"):
        from ml_platform import runs

        keys = set(runs.ingest(platform, model))
    outcomes = platform.database.arrival_outcomes(model)
    if not outcomes and not keys and not waiting_arrivals(platform, model):
        raise LandingZoneError(
            f"The landing zone {platform.zone.address}/{model} is empty. Drop a file there: "
            f"ml-platform land FILE --model {model}"
        )
    handled = [row for row in outcomes if row["key"] in keys]
    for key in sorted(keys - {row["key"] for row in handled}):
        progress.print(f"  {key}: its file was removed or changed meanwhile; run it again", markup=False)
    return handled


@quarantine.command("show")
def quarantine_show(model: Model, json: AsJson = False) -> None:
    """Explain what is quarantined: each arrival's reason, its findings by rule, and examples of them."""
    from ml_platform import corrections

    _require_model(model)
    found = corrections.show(Platform(), model)
    if json:
        output.print_json(data=found)
    elif not found:
        output.print(f"Nothing of {model} is quarantined.")
    for arrival in [] if json else found:
        _print_quarantined(arrival)


def _print_quarantined(arrival: dict[str, Any]) -> None:
    output.print(f"{arrival['name']}  ({arrival['arrival']}, {arrival['outcome']})", style="bold", markup=False)
    rows = f"{arrival['quarantined_rows']:,} of {arrival['rows']:,} rows quarantined"
    output.print(f"{rows}: {arrival['reason']}", markup=False)
    table = Table("check", "column", "rule", "findings", "examples")
    for finding in arrival["findings"]:
        said = [f"row {e['row']}: {e['value']}" if e["row"] is not None else e["value"] for e in finding["examples"]]
        cells = finding["check"], finding["column"], finding["rule"], f"{finding['count']:,}", "\n".join(said)
        table.add_row(*(escape(cell) for cell in cells))
    output.print(table)
    if arrival["more_rules"]:
        output.print(f"and {arrival['more_rules']:,} broken rules more")


@quarantine.command("release")
def quarantine_release(
    model: Model,
    arrivals: Annotated[
        list[str] | None, typer.Argument(help="Keys or file names of arrivals; all that are quarantined by default.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Validate quarantined rows again, from the kept bytes, and publish those that pass now."""
    from ml_platform import corrections

    spec = _spec(model)
    platform = Platform()
    released = corrections.release(platform, spec, arrivals or [], actor=workflows.who(platform))
    if json:
        output.print_json(data=released)
    elif not released:
        output.print(f"Nothing of {model} is quarantined.")
    else:
        table = Table("file", "outcome", "released rows", "still quarantined", "reason")
        for row in released:
            figures = f"{row['released_rows']:,}", f"{row['quarantined_rows']:,}"
            table.add_row(row["name"], row["outcome"], *figures, escape(row["reason"]))
        output.print(table)
    if any(row["stays"] for row in released):
        raise typer.Exit(REFUSED)


@app.command()
def forget(
    model: Model,
    entity: Annotated[str, typer.Argument(help="Whose rows go: a value of the model's entity column.")],
    reason: Annotated[str, typer.Option(help="Why, for the record; it must not say who.")],
    json: AsJson = False,
) -> None:
    """Delete one entity's data everywhere, in every version; it outranks every retention and cannot be undone."""
    from ml_platform import corrections, history

    platform, spec = Platform(), _spec(model)
    require_dagster_home()
    done = corrections.forget(platform, spec, entity, reason=reason, actor=workflows.who(platform))
    done["figures"]["runs_of_dagster"] = history.forget_runs(platform, spec)
    if json:
        output.print_json(data=done)
    else:
        for what, count in done["figures"].items():
            output.print(f"{count:>8,} {what.replace('_', ' ')}")
    for file in done["unsearched"]:
        progress.print(f"could not be searched, look at it yourself: {file}", style="red", markup=False)
    if done["unsearched"]:
        raise typer.Exit(REFUSED)


def _spec(model: str) -> ModelSpec:
    """Return what a model's author declared; importing its file imports Dagster."""
    _require_model(model)
    members = vars(importlib.import_module(f"{MODELS}.{model}")).values()
    return next(member for member in members if isinstance(member, ModelSpec) and member.name == model)


@app.command()
def approve(
    model: Model,
    version: Annotated[int | None, typer.Argument(help="Its number in the registry; the newest by default.")] = None,
    *,
    reason: Annotated[str, typer.Option(help="Why, for whoever reads the ledger later.")],
    by: Annotated[str, typer.Option(help="How you are known: os_user, token or github_environment.")] = "os_user",
    name: Annotated[str, typer.Option(help="With --by token: whose token it is.")] = "",
    json: AsJson = False,
) -> None:
    """Approve a version that passed its gates, as somebody other than who trained it, and promote it."""
    spec, platform = _spec(model), Platform()
    person = workflows.authenticate(platform, by, name=name, token=_token(platform) if by == "token" else "")
    approval, entry = workflows.approve_version(platform, spec, version, person, reason=reason)
    _show_in_dagster(platform, entry)
    if json:
        output.print_json(data={"approval": vars(approval), "entry": vars(entry)}, default=str)
    else:
        until = f"until {approval.expires_at:%Y-%m-%d %H:%M} UTC"
        output.print(f"{model} version {entry.version}: approved by {person.name} {until}, champion", markup=False)


def _show_in_dagster(platform: Platform, entry: LedgerEntry) -> None:
    from ml_platform import runs

    try:
        runs.report_champion(platform, entry)
    except ConfigurationError as error:
        progress.print(f"version {entry.version} is champion; Dagster is not told: {error}", markup=False)


def _token(platform: Platform) -> str:
    """Return the secret; never from the command's arguments, which everybody on the host can read."""
    given = platform.settings.approval_token
    if given is not None:
        return given.get_secret_value()
    return getpass.getpass("token: ") if sys.stdin.isatty() else sys.stdin.readline().strip()


@app.command()
def rollback(
    model: Model,
    reason: Annotated[str, typer.Option(help="Why, for whoever reads the ledger later.")],
    to: Annotated[int | None, typer.Option(help="The version; by default the champion before the present one.")] = None,
    json: AsJson = False,
) -> None:
    """Make an earlier version champion again. What is rolled back does not return by itself."""
    platform = Platform()
    declared = functools.partial(_spec, model)
    asked: dict[str, Any] = {"to": to, "reason": reason, "actor": workflows.who(platform)}
    entry = workflows.roll_back(platform, model, declared, **asked)
    if json:
        output.print_json(data=vars(entry), default=str)
    else:
        output.print(f"{model}: version {entry.version} is champion again, instead of {entry.previous_version}")


@app.command()
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
    _require_model(model)
    with _working(f"Making version {version} of {model} again …"):
        found = workflows.reproduce(
            Platform(), model, version, module=f"{MODELS}.{model}", here=here, any_commit=any_commit
        )
    if json:
        output.print_json(data=vars(found))
    else:
        _print_reproduction(found)
    if not found.identical:
        raise typer.Exit(REFUSED)


def _print_reproduction(found: workflows.Reproduction) -> None:
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


def _unseeded(found: workflows.Reproduction) -> str:
    names = ", ".join(found.unseeded)
    advice = f"random_state is None: {names}" if names else "no random_state is None: look for other randomness"
    return f"{found.model} cannot be reproduced: two rebuilds gave two models; {advice}"


@app.command()
def reconcile(model: Model, json: AsJson = False) -> None:
    """Hold MLflow's aliases, versions and bytes against the ledger, and mend what differs; the sensor does it too."""
    platform, spec = Platform(), _spec(model)
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


@app.command()
def retrain(
    model: Model,
    reason: Annotated[str, typer.Option(help="Why, for whoever reads the ledger later.")],
    json: AsJson = False,
) -> None:
    """Train on the newest rows, judge, and promote what passes."""
    _require_model(model)
    platform = Platform()
    failed = _retrain(model, f"manual: {reason.removeprefix('manual: ')}")
    found = [row for row in model_status(platform) if row["model"] == model]
    if json:
        output.print_json(data=found)
    for row in [] if json else found:
        _print_status(row)
    _exit_if_refused(failed)


def _retrain(model: str, reason: str) -> list[str]:
    with _working(f"Training and judging {model} …"):
        from ml_platform import runs

        return runs.retrain(model, reason, workflows.who(Platform()))


def _exit_if_refused(failed: list[str]) -> None:
    for check in failed:
        progress.print(f"refused: {check}", style="red", markup=False)
    if failed:
        raise typer.Exit(REFUSED)


@app.command()
def demo(
    shuffle_labels: Annotated[
        bool, typer.Option(help="Land the customers again with shuffled labels: the gates close.")
    ] = False,
    only_land_next: Annotated[bool, typer.Option(help="Land one more export and do nothing else.")] = False,
) -> None:
    """Take the shipped churn data from files in the landing zone to a champion in the registry."""
    from ml_platform import demo as shipped

    platform = Platform()
    if only_land_next:
        _land(platform, shipped.next_export(shipped.newest_time(platform.rows("churn"))))
        return
    _land(platform, shipped.shuffled_exports() if shuffle_labels else shipped.exports())
    outcomes = _ingest(platform, "churn")
    if not outcomes:
        output.print("Every file is published already: nothing was published twice.")
    failed = _retrain("churn", "manual: demo") if platform.new_rows("churn") else _nothing_to_train_on(platform)
    found = model_status(platform)[0]
    _print_status(found)
    _exit_if_refused(failed)
    if _any_quarantined(outcomes) or found["last_run"]["state"] == "refused":
        raise typer.Exit(REFUSED)


def _nothing_to_train_on(platform: Platform) -> list[str]:
    output.print("No row is newer than the newest candidate's dataset version: nothing to train on.")
    show_champion(platform, "churn")
    return []


def _land(platform: Platform, files: dict[str, bytes]) -> None:
    landed = land_files(platform, "churn", files)
    output.print(f"{len(landed)} files landed in {platform.zone.address}/churn", soft_wrap=True)


@app.command()
def dev(
    port: Annotated[int, typer.Option(help="Port of Dagster's UI.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's UI.")] = 5000,
) -> None:
    """Run Dagster's UI and daemon and MLflow's UI on loopback until interrupted."""
    from ml_platform.dev import run_servers

    run_servers(Platform().settings, declared_models(), port, mlflow_port, progress.print)


def _print_outcomes(outcomes: list[dict[str, Any]]) -> None:
    table = Table("file", "outcome", "rows", "quarantined", "reason")
    for row in outcomes:
        figures = f"{row['rows']:,}", f"{row['quarantined_rows']:,}"
        table.add_row(row["name"], row["outcome"], *figures, row["reason"])
    output.print(table)


def _print_status(model: dict[str, Any]) -> None:
    run = model["last_run"]
    champion = f"version {model['champion']}, since {model['promoted_at'][:16]}" if model["champion"] else "none yet"
    output.print(f"[bold]{model['model']}[/]\nchampion          {champion}")
    if run:
        text = f"{run['state']}: {run['candidate']}, dataset version {run['dataset_version']}, {run['reason']}"
        output.print(f"newest candidate  {text}", markup=False)
        if not run["reproducible"]:
            output.print("                  not reproducible: rows it was trained on were forgotten on request")
    if model["gates"]:
        output.print(_gates_table(model["gates"]))
    arrivals = ", ".join(f"{n} {outcome}" for outcome, n in sorted(model["arrivals"].items())) or "none"
    output.print(f"arrivals          {arrivals}; {model['new_rows']:,} rows not trained on yet")
    for name in model["stuck"]:
        output.print(f"stuck             {name}: its manifest does not fit it", style="red", markup=False)


def _gates_table(gates: list[dict[str, Any]]) -> Table:
    table = Table("gate", "value", "result")
    for gate in gates:
        value = "none" if gate["value"] is None else f"{gate['value']:.4g}"
        colour = "green" if gate["result"] == "PASS" else "red"
        table.add_row(gate["gate"], value, f"[{colour}]{gate['result']}[/]")
    return table
