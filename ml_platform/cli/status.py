"""Read-only commands: `status`, `history`, `explain` and `ledger verify`."""

from typing import Annotated, Any

import typer
from rich.table import Table

from ml_platform.cli import common
from ml_platform.cli.common import FAILED, FIRST, REFUSED, AsJson, Model, Version, output
from ml_platform.cli.console import literal
from ml_platform.records.ledger import Action, LedgerReport
from ml_platform.reporting.charts import format_number


def status(json: AsJson = False) -> None:
    """Show each model's champion, newest candidate, gates and arrivals."""
    from ml_platform.governance import status as governance_status
    from ml_platform.platform import Platform

    models = governance_status.status(Platform())
    if json:
        output.print_json(data=models)
    elif not models:
        output.print("No model has data yet. Start with: make demo")
    for model in [] if json else models:
        print_status(model)


def print_status(model: dict[str, Any]) -> None:
    """Print one entry of `governance.status.status`."""
    run = model["last_run"]
    champion = f"version {model['champion']}, since {model['promoted_at'][:16]}" if model["champion"] else "none yet"
    output.print(model["model"], style="bold")
    output.print(f"champion          {champion}")
    if run:
        text = f"{run['state']}: {run['candidate']}, dataset version {run['dataset_version']}, {run['reason']}"
        output.print(f"newest candidate  {text}")
        if run["next_step"]:
            output.print(f"next step         {run['next_step']}")
        if not run["reproducible"]:
            output.print("                  not reproducible: some of its training rows were forgotten on request")
    if model["gates"]:
        output.print(gates_table(model["gates"]))
    arrivals = ", ".join(f"{n} {outcome}" for outcome, n in sorted(model["arrivals"].items())) or "none"
    counts = f"{model['new_rows']:,} rows not trained on yet, {model['passed_over_rows']:,} passed over"
    output.print(f"arrivals          {arrivals}; {counts}")
    for name in model["stuck"]:
        output.print(f"stuck             {name}: the file does not match its manifest", style="red")


def gates_table(gates: list[dict[str, Any]]) -> Table:
    """Return a table of gates, their values and results."""
    table = Table("gate", "value", "result")
    for gate in gates:
        value = format_number(gate["value"])
        colour = "green" if gate["result"] == "PASS" else "red"
        table.add_row(gate["gate"], value, literal(gate["result"], colour))
    return table


def history(model: Model, json: AsJson = False) -> None:
    """Show a model's approvals, promotions and rollbacks."""
    from ml_platform.platform import Platform

    entries = [entry for entry in Platform().database.ledger(model) if entry.action != Action.CONFIRMATION]
    if not entries:
        common.require_model(model)
    if json:
        output.print_json(data=[{**vars(entry), "digest": entry.digest} for entry in entries], default=str)
        return
    table = Table("entry", "action", "version", "instead of", "when (UTC)", "reason", "verdict", "by")
    for e in entries:
        instead = "none" if e.previous_version is None else str(e.previous_version)
        when, digest = f"{e.recorded_at:%Y-%m-%d %H:%M:%S}", e.verdict_digest[:12]
        cells = str(e.sequence), e.action, str(e.version), instead, when, e.reason, digest, e.actor
        table.add_row(*cells)
    output.print(table if entries else f"{model} never had a champion.")


def ledger_verify(
    model: Annotated[str | None, typer.Argument(help="Model name. Default: all models.")] = None,
    json: AsJson = False,
) -> None:
    """Verify ledgers against their digests, anchors and evidence.

    The evidence is every verdict, and the candidates' records, files and MLflow runs. Exit status 1 if something was
    changed or an anchor is missing, 2 if an anchor could not be read.
    """
    from ml_platform.platform import Platform
    from ml_platform.release.ledger.follow import ledgers, verify_ledger

    platform = Platform()
    names = ledgers(platform) if model is None else [common.require_model_name(model)]
    reports = [verify_ledger(platform, name, deep=True) for name in names]
    if json:
        output.print_json(data=[vars(report) for report in reports])
    for report in [] if json else reports:
        _print_report(report)
    if any(report.problems or report.missing for report in reports):
        raise typer.Exit(REFUSED)
    if any(report.unread for report in reports):
        raise typer.Exit(FAILED)


def _print_report(report: LedgerReport) -> None:
    state = "was changed" if report.problems else "has lost an anchor" if report.missing else "verifies"
    output.print(f"{report.model}: {report.entries} entries, the ledger {state}")
    problems = (*report.problems, *report.missing)
    for problem in problems[:FIRST]:
        output.print(f"  {problem}", style="red")
    if len(problems) > FIRST:
        output.print(f"  and {len(problems) - FIRST} more problems")
    for late in (*report.behind, *report.unread):
        output.print(f"  {late}")


def explain_champion(model: Model, json: AsJson = False) -> None:
    """Explain a champion: actor, time, reason, data, code, gates and predecessor."""
    from ml_platform.governance.explain import explain
    from ml_platform.platform import Platform

    _print_explanation(explain(Platform(), model), json)


def explain_version(model: Model, version: Version, json: AsJson = False) -> None:
    """Explain any registered version, as `explain champion` does."""
    from ml_platform.governance.explain import explain
    from ml_platform.platform import Platform

    _print_explanation(explain(Platform(), model, version), json)


def _print_explanation(explanation: dict[str, Any], json: bool) -> None:
    if json:
        output.print_json(data=explanation)
        return
    candidate, dataset, decision, proof = (explanation[key] for key in ("candidate", "dataset", "decision", "ledger"))
    states = {"champion": "is_champion", "rolled back": "was_rolled_back", "former champion": "decision"}
    state = next((name for name, key in states.items() if explanation[key]), "never champion")
    output.print(explanation["model"], style="bold", end=" ")
    output.print(f"version {explanation['version']}, {state}")
    if decision:
        instead = "nothing" if decision["instead_of"] is None else f"version {decision['instead_of']}"
        _say(decision["action"], f"{decision['when'][:19]} UTC by {decision['by']}, instead of {instead}")
        _say("reason", decision["reason"])
    for number in explanation["replaces"]:
        _say("replaces", f"version {number}, which MLflow lost: the same bytes with another number")
    for approval in explanation["approvals"]:
        way = f"{approval['by']} ({approval['authenticated_by']}), {approval['when'][:19]} UTC"
        _say("approved by", f"{way}, until {approval['expires'][:19]} UTC: {approval['reason']}")
    user = f", trained by {candidate['trained_by']}" if candidate["trained_by"] else ""
    _say("candidate", f"{candidate['id']}, requested by {candidate['asked_for_by'] or 'a trigger'}{user}")
    _say("dataset", f"version {dataset['version']}, digest {dataset['digest'][:12]}")
    for arrival in dataset["arrivals"][:FIRST]:
        _say("", f"{arrival['name']}: {arrival['rows']:,} rows, sha256 {arrival['sha256'][:12]}")
    if len(dataset["arrivals"]) > FIRST:
        _say("", f"and {len(dataset['arrivals']) - FIRST:,} more arrivals")
    _say("code", candidate["code_revision"])
    _say("lock", candidate["lock_digest"][:12])
    _say("model file", f"sha256 {candidate['model_digest'][:12]}")
    _say("verdict", (explanation["verdict"] or "none")[:12])
    _say("verdict page", explanation["verdict_page"] or "not stored on this host")
    output.print(gates_table(explanation["gates"]))
    _say("ledger", f"{proof['entries']} entries, {'verifies' if proof['verifies'] else 'was CHANGED'}")
    for line in (*proof["problems"], *proof["anchors"]):
        _say("", line)


def _say(name: str, text: str) -> None:
    output.print(f"{name:<13}{text}")
