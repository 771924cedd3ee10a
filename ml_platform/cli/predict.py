"""`ml-platform predict`: score a file or Delta table with the version that servers use."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ml_platform.cli.common import REFUSED, Model, progress
from ml_platform.system.file_modes import users_file_modes


def predict(
    model: Model,
    file: Annotated[Path, typer.Argument(help="Parquet, CSV, CSV.GZ or JSON Lines file, or folder of a Delta table.")],
    out: Annotated[
        Path | None, typer.Option(help="Parquet, CSV or JSON Lines file. Default: JSON Lines on standard output.")
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="Current or former champion to score with. Default: the champion.")
    ] = None,
) -> None:
    """Score a file or Delta table in bulk.

    Rows that violate the contract are skipped and reported, with exit status 1.

    Example: ml-platform predict churn customers.csv --out scores.csv
    """
    from ml_platform.platform import Platform
    from ml_platform.serving import batch_scoring

    platform = Platform()
    served = batch_scoring.load_model(platform, model, version)
    target = sys.stdout.buffer if out is None else out
    with users_file_modes():
        scored = batch_scoring.score_file(file, served, target, platform.settings.max_file_bytes)
    _say(f"{scored.rows:,} rows scored by version {served.version} of {model}, {scored.refused:,} refused")
    if scored.ignored:
        _say(f"columns that the model does not use were ignored: {', '.join(scored.ignored[:10])}")
    for problem in scored.problems:
        _say(problem)
    if scored.refused > len(scored.problems):
        _say(f"and more: only the first {len(scored.problems)} problems are listed")
    if scored.refused:
        raise typer.Exit(REFUSED)


def _say(text: str) -> None:
    progress.print(text)
