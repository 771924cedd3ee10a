"""What stands: models, ledgers, and why a version is champion."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ml_platform.commands import shared
from ml_platform.commands.shared import FAILED, REFUSED, AsJson, Model, output
from ml_platform.lazily import Lazily
from ml_platform.records import Action, LedgerReport

if TYPE_CHECKING:
    from ml_platform import workflows
else:
    workflows = Lazily("ml_platform.workflows")


def status(json: AsJson = False) -> None:
    """Show every model with its champion, the newest candidate's gates and its last run."""
    models = workflows.status(workflows.Platform())
    if json:
        output.print_json(data=models)
    elif not models:
        output.print("No model has left a trace yet. Start with: make demo")
    for model in [] if json else models:
        print_status(model)


def print_status(model: dict[str, Any]) -> None:
    """Print how a model stands, as `workflows.status` says it."""
    run = model["last_run"]
    champion = f"version {model['champion']}, since {model['promoted_at'][:16]}" if model["champion"] else "none yet"
    output.print(f"[bold]{model['model']}[/]\nchampion          {champion}")
    if run:
        text = f"{run['state']}: {run['candidate']}, dataset version {run['dataset_version']}, {run['reason']}"
        output.print(f"newest candidate  {text}", markup=False)
        if not run["reproducible"]:
            output.print("                  not reproducible: rows it was trained on were forgotten on request")
    if model["gates"]:
        output.print(gates_table(model["gates"]))
    arrivals = ", ".join(f"{n} {outcome}" for outcome, n in sorted(model["arrivals"].items())) or "none"
    output.print(f"arrivals          {arrivals}; {model['new_rows']:,} rows not trained on yet")
    for name in model["stuck"]:
        output.print(f"stuck             {name}: its manifest does not fit it", style="red", markup=False)


def gates_table(gates: list[dict[str, Any]]) -> Table:
    """Return gates with their values and results."""
    table = Table("gate", "value", "result")
    for gate in gates:
        value = "none" if gate["value"] is None else f"{gate['value']:.4g}"
        colour = "green" if gate["result"] == "PASS" else "red"
        table.add_row(gate["gate"], value, f"[{colour}]{gate['result']}[/]")
    return table


def history(model: Model, json: AsJson = False) -> None:
    """Show the ledger: what was approved, what became champion, what was rolled back; when, by whom and why."""
    said = workflows.Platform().database.ledger(model)
    entries = [entry for entry in said if entry.action != Action.CONFIRMATION]
    if not entries:
        shared.require_model(model)
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


def ledger_verify(
    model: Annotated[str | None, typer.Argument(help="Name of the model; all by default.")] = None,
    json: AsJson = False,
) -> None:
    """Hold ledgers against their own digests and both anchors; exit status 1 where one was changed."""
    platform = workflows.Platform()
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


def explain_champion(model: Model, json: AsJson = False) -> None:
    """Say who made the champion, when, why, of which data and code, on which evidence and instead of what."""
    _print_explanation(workflows.explain(workflows.Platform(), model), json)


def explain_version(
    model: Model, version: Annotated[int, typer.Argument(help="Its number in the registry.")], json: AsJson = False
) -> None:
    """Say the same of any version."""
    _print_explanation(workflows.explain(workflows.Platform(), model, version), json)


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
    output.print(gates_table(found["gates"]))
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
