"""`ml-platform predict`: a file or table scored in bulk, by the version that the servers answer with."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ml_platform.commands.shared import REFUSED, Model, progress


def predict(
    model: Model,
    file: Annotated[Path, typer.Argument(help="Parquet, CSV, CSV.GZ or JSON Lines, or a Delta table's folder.")],
    out: Annotated[Path | None, typer.Option(help="Parquet, CSV or JSON Lines; JSON Lines to here by default.")] = None,
    version: Annotated[int | None, typer.Option(help="A champion or one before; the champion by default.")] = None,
) -> None:
    """Score a file or table in bulk; rows that break the contract are named and left out, with exit status 1."""
    from ml_platform.serving import bulk
    from ml_platform.workflows import Platform

    platform = Platform()
    asked = bulk.load_model(platform, model, version)
    target = sys.stdout.buffer if out is None else out
    scored = bulk.score_file(file, asked, target, platform.settings.most_bytes)
    _say(f"{scored.rows:,} rows scored by version {asked.version} of {model}, {scored.refused:,} refused")
    if scored.ignored:
        _say(f"columns that the model does not know were left out: {', '.join(scored.ignored[:10])}")
    for problem in scored.problems:
        _say(problem)
    if scored.refused > len(scored.problems):
        _say(f"and more: the first {len(scored.problems)} problems are named")
    if scored.refused:
        raise typer.Exit(REFUSED)


def _say(text: str) -> None:
    progress.print(text, markup=False)
