"""From what trials left, or from trials of everything that a change affects, to a page and a comment."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ml_platform import durable
from ml_platform.errors import DataError
from ml_platform.quality import documents
from ml_platform.quality.affected import affected
from ml_platform.quality.comment import comment
from ml_platform.quality.documents import Trial
from ml_platform.quality.page import draw

MOST_TRIALS = 200


def collect(folders: Sequence[Path]) -> list[Trial]:
    """Read what trials left in folders, at any depth, by model.

    Raises
    ------
    DataError
        A folder holds none, a file is no trial's, or there are too many.
    """
    files = [file for folder in folders for file in _files(folder)]
    if len(files) > MOST_TRIALS:
        raise DataError(f"A report must have at most {MOST_TRIALS} trials. Got {len(files)} in {len(folders)} folders.")
    return sorted(map(documents.read, files), key=lambda trial: (trial.model, trial.golden))


def _files(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.rglob("*.json") if file.is_file() and not file.is_symlink())
    if not found:
        raise DataError(f"{folder} must hold what `ml-platform quality --out` leaves. It holds no JSON file.")
    return found


def judge(base: str, root: Path, out: Path, *, say: Callable[[str], None]) -> list[Trial]:
    """Try the change of every model that it affects; `out` gets what `try_change` leaves."""
    # Dagster comes along: whoever draws what others left does without.
    from ml_platform.quality.trial import try_change

    cells = [cell for model in affected(base, root) for cell in model.cells]
    return [try_change(cell["model"], base, root, out, golden=cell["golden"], say=say) for cell in cells]


def write(trials: Sequence[Trial], *, page: Path, markdown: Path | None) -> None:
    """Write the page and, where one is asked for, the comment."""
    page.parent.mkdir(parents=True, exist_ok=True)
    durable.write(page, draw(trials).encode())
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        durable.write(markdown, comment(trials).encode())
