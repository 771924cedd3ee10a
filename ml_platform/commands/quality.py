"""The commands of quality gates on a change: what it affects, whether its gates hold, a page for its reviewer."""

from json import dumps as to_json
from pathlib import Path
from typing import Annotated

import typer

from ml_platform.commands.shared import Model, output, progress
from ml_platform.settings import PROJECT_ROOT

Base = Annotated[str, typer.Option(help="The branch, tag or commit that the change is compared with.")]
TRIALS = Path("var/quality")
# Exit status by outcome: a gate does not hold; it could not be done. Neither is 0.
STATUS = {"PASS": 0, "FAIL": 1, "BROKEN": 2}


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (affected, quality, report):
        app.command()(command)


def affected(
    base: Base = "main",
    json: Annotated[bool, typer.Option("--json", help="Print a list for a matrix of jobs.")] = False,
) -> None:
    """Say which models a change affects, and why; all when in doubt."""
    from ml_platform.quality.affected import affected as find

    found = find(base, PROJECT_ROOT)
    if json:
        # On one line: a job's output takes no more.
        output.out(to_json([cell for model in found for cell in model.cells]))
        return
    for model in found:
        output.print(f"{model.model}  {', '.join(model.golden) or 'no golden datasets'}", markup=False)
        for reason in model.reasons[:5]:
            output.print(f"  {reason}", markup=False)
        if len(model.reasons) > 5:
            output.print(f"  and {len(model.reasons) - 5} more")
    if not found:
        output.print(f"No model is affected by what changed since {base}.", markup=False)


def quality(
    model: Model,
    base: Base = "main",
    out: Annotated[Path, typer.Option(help="The folder that gets MODEL.json, pictures and a log.")] = TRIALS,
    golden: Annotated[str, typer.Option(help="A golden dataset that must have been judged.")] = "",
) -> None:
    """Judge a change of a model against the base's champion on the same data; exit status 1 unless every gate holds."""
    from ml_platform.quality.trial import try_change

    trial = try_change(model, base, PROJECT_ROOT, out, golden=golden, say=_say)
    for problem in trial.problems:
        progress.print(f"refused: {problem}", style="red", markup=False)
    output.print(f"{model}: {trial.outcome.value}", markup=False)
    raise typer.Exit(STATUS[trial.outcome.value])


def report(
    base: Base = "main",
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    sources: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="Folders that `quality` left: a trial that the change asks for and that is not there is red. "
            "Without, `quality` is run first.",
        ),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also the text of a comment, bounded in size.")] = None,
) -> None:
    """Draw one page of what a change does to every model that it affects; exit status 1 unless every gate holds."""
    from ml_platform.quality import report as reports

    trials = (
        reports.collect(sources, base, PROJECT_ROOT) if sources else reports.judge(base, PROJECT_ROOT, TRIALS, say=_say)
    )
    reports.write(trials, page=out, markdown=markdown)
    for trial in trials:
        on = f" on {trial.golden}" if trial.golden else ""
        output.print(f"{trial.model}{on}: {trial.outcome.value}", markup=False)
    output.print(f"{out}: {len(trials)} trials" if trials else f"{out}: no model is affected", markup=False)
    raise typer.Exit(max((STATUS[trial.outcome.value] for trial in trials), default=0))


def _say(said: str) -> None:
    progress.print(f"  {said} …", markup=False)
