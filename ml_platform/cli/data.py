"""`ml-platform land`, `ingest`, `quarantine` and `forget`."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table

from ml_platform.cli import common
from ml_platform.cli.common import REFUSED, AsJson, Model, output, progress, working
from ml_platform.errors import LandingZoneError, PlatformError
from ml_platform.models import discovery
from ml_platform.settings import require_dagster_home
from ml_platform.system.file_modes import users_file_modes

if TYPE_CHECKING:
    from ml_platform.platform import Platform


def land(
    files: Annotated[list[Path], typer.Argument(help="Parquet, CSV, CSV.GZ or JSON Lines files.")],
    model: Annotated[str, typer.Option(help="Model that the files belong to.")],
    correction: Annotated[
        bool, typer.Option("--correction", help="Rows replace the published rows of their entity and event time.")
    ] = False,
) -> None:
    """Copy files into the landing zone, all or none.

    Files that are already there are skipped.

    Example: ml-platform land customers.csv --model churn
    """
    from ml_platform.data.landing import land_files
    from ml_platform.platform import Platform

    common.require_model(model)
    names = [file.name for file in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PlatformError(
            f"Two files have the name {twice[0]!r}: the second would replace the first. Rename one; nothing was landed."
        )
    try:
        contents = {file.name: file.read_bytes() for file in files}
    except OSError as error:
        raise PlatformError(f"{error.filename} cannot be read: {error.strerror}. Nothing was landed.") from error
    platform = Platform()
    # The user of the daemon, perhaps another one, must read a shared landing zone.
    with users_file_modes() if platform.settings.landing_zone else contextlib.nullcontext():
        landed = land_files(platform, model, contents, corrects=correction)
    for name in names:
        output.print(f"{name}: {'landed' if name in landed else 'is there already'}", markup=False)


def ingest(model: Model, json: AsJson = False) -> None:
    """Publish or quarantine the files in the landing zone.

    Exit status 1 if a file was quarantined or ignored.
    """
    from ml_platform.data.landing import ignored_files
    from ml_platform.platform import Platform

    common.require_model(model)
    platform = Platform()
    outcomes = ingest_waiting(platform, model)
    ignored = ignored_files(platform, model)
    if json:
        output.print_json(data={"arrivals": outcomes, "ignored": ignored}, default=str)
    elif outcomes:
        table = Table("file", "outcome", "rows", "quarantined", "passed over", "reason")
        for row in outcomes:
            counts = (f"{row[name]:,}" for name in ("rows", "quarantined_rows", "passed_over_rows"))
            table.add_row(row["name"], row["outcome"], *counts, row["reason"])
        output.print(table)
    else:
        output.print(f"No new, complete file for {model}: nothing was published.")
    for name in ignored:
        reason = "not a Parquet, CSV, CSV.GZ or JSON Lines file with a safe name"
        progress.print(f"ignored: {name!r} is {reason}", markup=False)
    if ignored or any_quarantined(outcomes):
        raise typer.Exit(REFUSED)


def any_quarantined(outcomes: list[dict[str, Any]]) -> bool:
    """Return True if at least one arrival was quarantined."""
    return any(row["outcome"] == "quarantined" for row in outcomes)


def ingest_waiting(platform: "Platform", model: str) -> list[dict[str, Any]]:
    """Publish or quarantine waiting files; return each file's outcome."""
    from ml_platform.data.landing import waiting_arrivals

    with working(f"Publishing the files that wait for {model} …"):
        from ml_platform.cli import launch

        keys = set(launch.ingest(platform, model))
    outcomes = platform.database.arrival_outcomes(model)
    if not outcomes and not keys and not waiting_arrivals(platform, model):
        raise LandingZoneError(
            f"The landing zone {platform.zone.address}/{model} is empty. Drop a file there: "
            f"ml-platform land FILE --model {model}"
        )
    handled = [row for row in outcomes if row["key"] in keys]
    for key in sorted(keys - {row["key"] for row in handled}):
        progress.print(f"  {key}: its file was removed or changed meanwhile; run the command again", markup=False)
    return handled


def quarantine_show(model: Model, json: AsJson = False) -> None:
    """Show quarantined arrivals: reasons, violations by rule, examples."""
    from ml_platform.data import quarantine
    from ml_platform.platform import Platform

    common.require_model(model)
    arrivals = quarantine.show(Platform(), model)
    if json:
        output.print_json(data=arrivals)
    elif not arrivals:
        output.print(f"No arrival of {model} is quarantined.")
    for arrival in [] if json else arrivals:
        output.print(f"{arrival['name']}  ({arrival['arrival']}, {arrival['outcome']})", style="bold", markup=False)
        rows = f"{arrival['quarantined_rows']:,} of {arrival['rows']:,} rows quarantined"
        output.print(f"{rows}: {arrival['reason']}", markup=False)
        table = Table("check", "column", "rule", "violations", "examples")
        for violation in arrival["violations"]:
            examples = [
                f"row {e['row']}: {e['value']}" if e["row"] is not None else e["value"] for e in violation["examples"]
            ]
            count = f"{violation['count']:,}"
            table.add_row(violation["check"], violation["column"], violation["rule"], count, Group(*examples))
        output.print(table)
        if arrival["more_rules"]:
            output.print(f"and {arrival['more_rules']:,} more violated rules")


def quarantine_add(
    model: Model,
    arrival: Annotated[str, typer.Argument(help="Key or file name of an arrival without an outcome.")],
    reason: Annotated[str, typer.Option(help="Reason, stored in the record.")],
) -> None:
    """Quarantine an arrival without reading it.

    Its file is not tried again. `quarantine release` reads it only if it is named there.

    Example: ml-platform quarantine add churn customers.parquet --reason "wrong warehouse"
    """
    from ml_platform.data import quarantine
    from ml_platform.platform import Platform
    from ml_platform.release.authentication import current_actor

    common.require_model(model)
    if not reason.strip():
        raise PlatformError("--reason must not be empty: the record says why. Nothing was quarantined.")
    platform = Platform()
    result = quarantine.add(platform, model, arrival, reason=reason, actor=current_actor(platform))
    output.print(f"{result.arrival.name}  ({result.arrival.key}): quarantined", markup=False)


def quarantine_release(
    model: Model,
    arrivals: Annotated[
        list[str] | None, typer.Argument(help="Keys or file names of arrivals. Default: all quarantined ones.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Validate quarantined arrivals again and publish the rows that pass.

    Exit status 1 if rows stay quarantined.

    Example: ml-platform quarantine release churn customers.csv
    """
    from ml_platform.data import quarantine
    from ml_platform.platform import Platform
    from ml_platform.release.authentication import current_actor

    spec = discovery.load(model)
    platform = Platform()
    released = quarantine.release(platform, spec, arrivals or [], actor=current_actor(platform))
    if json:
        output.print_json(data=released)
    elif not released:
        output.print(f"No arrival of {model} is quarantined.")
    else:
        table = Table("file", "outcome", "released rows", "still quarantined", "reason")
        for row in released:
            counts = f"{row['released_rows']:,}", f"{row['quarantined_rows']:,}"
            table.add_row(row["name"], row["outcome"], *counts, row["reason"])
        output.print(table)
    if any(row["stays"] for row in released):
        raise typer.Exit(REFUSED)


def forget(
    model: Model,
    entity: Annotated[str, typer.Argument(help="Entity to delete: a value of the model's entity column.")],
    reason: Annotated[str, typer.Option(help="Reason, stored in the record. It must not identify the person.")],
    json: AsJson = False,
) -> None:
    """Delete an entity's data from every version, permanently.

    Overrides every retention period. Exit status 1 if no data of the entity was found, or if a file could not be
    searched; 2 for a value that the entity column cannot have.
    """
    from ml_platform.governance import forget as governance_forget
    from ml_platform.orchestration import run_history
    from ml_platform.platform import Platform
    from ml_platform.release.authentication import current_actor

    platform, spec = Platform(), discovery.load(model)
    require_dagster_home()
    done = governance_forget.forget(platform, spec, entity, reason=reason, actor=current_actor(platform))
    if done["found"]:
        done["figures"]["runs_of_dagster"] = run_history.forget_runs(platform, spec)
    if json:
        output.print_json(data=done)
    else:
        for name, count in done["figures"].items():
            output.print(f"{count:>8,} {name.replace('_', ' ')}")
    for file in done["unsearched"]:
        progress.print(f"could not be searched, check it by hand: {file}", style="red", markup=False)
    for file in done["unmatched"]:
        text = f"the table had rows from this file, and none was found in it, check it by hand: {file}"
        progress.print(text, style="red", markup=False)
    if not done["found"]:
        progress.print(f"No data of {entity} was found in {model}: nothing was recorded.", style="red", markup=False)
    if done["unsearched"] or done["unmatched"] or not done["found"]:
        raise typer.Exit(REFUSED)
