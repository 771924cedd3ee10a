"""Quality gates on a change (`ci affected`, `ci compare`, `ci report`) and on a version (`ci check-version`)."""

from dataclasses import asdict
from json import dumps as to_json
from pathlib import Path
from typing import Annotated

import typer

from ml_platform.cli.common import REFUSED, AsJson, Model, Version, output, progress
from ml_platform.models import discovery
from ml_platform.settings import PROJECT_ROOT
from ml_platform.system.file_modes import users_file_modes

Base = Annotated[str, typer.Option(help="Branch, tag or commit to compare with.")]
RESULTS = Path("var/quality")
STATUS = {"PASS": 0, "FAIL": 1, "BROKEN": 2}  # exit statuses by outcome


def affected(
    base: Base = "main",
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list for a job matrix.")] = False,
) -> None:
    """List the models that a change affects, with reasons.

    A change that cannot be attributed affects all models.
    """
    from ml_platform.ci.affected_models import find_affected_models

    models = find_affected_models(base, PROJECT_ROOT)
    if json:
        # A GitHub job's output is one line.
        output.out(to_json([cell for model in models for cell in model.cells]))
        return
    for model in models:
        output.print(f"{model.model}  {', '.join(model.golden) or 'no golden datasets'}")
        for reason in model.reasons[:5]:
            output.print(f"  {reason}")
        if len(model.reasons) > 5:
            output.print(f"  and {len(model.reasons) - 5} more")
    if not models:
        output.print(f"No model is affected by the changes since {base}.")


def compare(
    model: Model,
    base: Base = "main",
    out: Annotated[Path, typer.Option(help="Folder for MODEL.json, pictures and a log.")] = RESULTS,
    golden: Annotated[str, typer.Option(help="Golden dataset that the comparison must evaluate.")] = "",
) -> None:
    """Compare a changed model with the base's champion on the same data.

    Exit status 1 if a gate fails, 2 if the comparison fails.

    Example: ml-platform ci compare churn --base main
    """
    from ml_platform.ci.compare_change import run_comparison

    with users_file_modes():
        result = run_comparison(model, base, PROJECT_ROOT, out, golden=golden, say=_say)
    for problem in result.problems:
        progress.print(f"refused: {problem}", style="red")
    output.print(f"{model}: {result.outcome.value}")
    raise typer.Exit(STATUS[result.outcome.value])


def report(
    base: Base = "main",
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    sources: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="Folder with results of `ci compare`; may be repeated. A missing result fails the report. "
            "Default: run `ci compare` first.",
        ),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Markdown file to write too, short enough for a pull request's comment.")
    ] = None,
) -> None:
    """Write an HTML report on every affected model.

    Exit status 1 if a gate fails, 2 if a comparison fails.
    """
    from ml_platform.ci import report as reports

    results = (
        reports.collect(sources, base, PROJECT_ROOT)
        if sources
        else reports.compare_all(base, PROJECT_ROOT, RESULTS, say=_say)
    )
    with users_file_modes():
        reports.write(results, page=out, markdown=markdown)
    for result in results:
        dataset = f" on {result.golden}" if result.golden else ""
        output.print(f"{result.model}{dataset}: {result.outcome.value}")
    output.print(f"{out}: {len(results)} comparisons" if results else f"{out}: no model is affected")
    raise typer.Exit(max((STATUS[result.outcome.value] for result in results), default=0))


def check_version(model: Model, version: Version, json: AsJson = False) -> None:
    """Run a registered version's integration test again.

    Prints the digest of the verdict on the version's bytes. Exit status 1 if the test fails.
    """
    from ml_platform.platform import Platform
    from ml_platform.release import check_version as release_check_version

    tested = release_check_version.check_version(Platform(), discovery.load(model), version)
    if json:
        output.print_json(data=asdict(tested))
    elif tested.problem is None:
        state = "waits for an approval" if tested.waits else f"needs no approval, champion is {tested.champion}"
        output.print(f"{model} version {version}: passed, verdict {tested.verdict}, {state}")
    if tested.problem is not None:
        progress.print(f"refused: {tested.problem}", style="red")
        raise typer.Exit(REFUSED)


def _say(message: str) -> None:
    progress.print(f"  {message} …")
