"""Files on their way in, what is quarantined of them, and people who are forgotten."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ml_platform.commands import shared
from ml_platform.commands.shared import REFUSED, AsJson, Model, output, progress, working
from ml_platform.errors import LandingZoneError, PlatformError
from ml_platform.lazily import Lazily
from ml_platform.settings import require_dagster_home

if TYPE_CHECKING:
    from ml_platform import workflows
    from ml_platform.workflows import Platform
else:
    workflows = Lazily("ml_platform.workflows")


def land(
    files: Annotated[list[Path], typer.Argument(help="Parquet, CSV, CSV.GZ or JSON Lines files.")],
    model: Annotated[str, typer.Option(help="The model whose folder they are dropped into.")],
) -> None:
    """Copy files into the landing zone, all or none; a file that is there already is left alone."""
    shared.require_model(model)
    names = [file.name for file in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PlatformError(
            f"Two files are called {twice[0]!r}: the second would replace the first. Nothing was landed."
        )
    landed = workflows.land_files(workflows.Platform(), model, {file.name: _read(file) for file in files})
    for name in names:
        output.print(f"{name}: {'landed' if name in landed else 'is there already'}", markup=False)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise PlatformError(f"{file} cannot be read: {error.strerror}. Nothing was landed.") from error


def ingest(model: Model, json: AsJson = False) -> None:
    """Publish or quarantine every file that waits in the landing zone, in one run."""
    shared.require_model(model)
    platform = workflows.Platform()
    outcomes = ingest_waiting(platform, model)
    ignored = workflows.ignored_files(platform, model)
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
    if ignored or any_quarantined(outcomes):
        raise typer.Exit(REFUSED)


def any_quarantined(outcomes: list[dict[str, Any]]) -> bool:
    """Whether something was quarantined of what `ingest` handled."""
    return any(row["outcome"] == "quarantined" for row in outcomes)


def ingest_waiting(platform: "Platform", model: str) -> list[dict[str, Any]]:
    """Publish or quarantine what waits; return what became of each file."""
    with working(f"Publishing what waits for {model} …"):
        from ml_platform import runs

        keys = set(runs.ingest(platform, model))
    outcomes = platform.database.arrival_outcomes(model)
    if not outcomes and not keys and not workflows.waiting_arrivals(platform, model):
        raise LandingZoneError(
            f"The landing zone {platform.zone.address}/{model} is empty. Drop a file there: "
            f"ml-platform land FILE --model {model}"
        )
    handled = [row for row in outcomes if row["key"] in keys]
    for key in sorted(keys - {row["key"] for row in handled}):
        progress.print(f"  {key}: its file was removed or changed meanwhile; run it again", markup=False)
    return handled


def _print_outcomes(outcomes: list[dict[str, Any]]) -> None:
    table = Table("file", "outcome", "rows", "quarantined", "reason")
    for row in outcomes:
        figures = f"{row['rows']:,}", f"{row['quarantined_rows']:,}"
        table.add_row(row["name"], row["outcome"], *figures, row["reason"])
    output.print(table)


def quarantine_show(model: Model, json: AsJson = False) -> None:
    """Explain what is quarantined: each arrival's reason, its findings by rule, and examples of them."""
    from ml_platform import corrections

    shared.require_model(model)
    found = corrections.show(workflows.Platform(), model)
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


def quarantine_release(
    model: Model,
    arrivals: Annotated[
        list[str] | None, typer.Argument(help="Keys or file names of arrivals; all that are quarantined by default.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Validate quarantined rows again, from the kept bytes, and publish those that pass now."""
    from ml_platform import corrections

    spec = shared.spec_of(model)
    platform = workflows.Platform()
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


def forget(
    model: Model,
    entity: Annotated[str, typer.Argument(help="Whose rows go: a value of the model's entity column.")],
    reason: Annotated[str, typer.Option(help="Why, for the record; it must not say who.")],
    json: AsJson = False,
) -> None:
    """Delete one entity's data everywhere, in every version; it outranks every retention and cannot be undone."""
    from ml_platform import corrections, history

    platform, spec = workflows.Platform(), shared.spec_of(model)
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
