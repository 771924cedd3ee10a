"""From what trials left, or from trials of everything that a change affects, to a page and a comment."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ml_platform import durable
from ml_platform.errors import DataError
from ml_platform.quality import documents
from ml_platform.quality.affected import affected
from ml_platform.quality.comment import comment
from ml_platform.quality.documents import Outcome, Trial
from ml_platform.quality.git import start_of
from ml_platform.quality.page import draw

MOST_TRIALS = 200


def collect(folders: Sequence[Path], base: str, root: Path) -> list[Trial]:
    """Read what trials of a change left in folders, at any depth, by model; what should be there and is not is red.

    A trial that left no file, as that of a job which died, is BROKEN, and so is one that was held against another
    commit. One that nothing asks for, since the change does not affect it, is kept and says so.

    Parameters
    ----------
    folders : sequence of Path
    base : str
        The ref that the change is compared with: what it affects is what must be there.
    root : Path
        The top of the checkout.

    Raises
    ------
    DataError
        There is nothing at all, a file is no trial's, or there are too many.
    ConfigurationError
        git knows no such commit.
    """
    trials, cells = read_all(folders), _cells(base, root)
    if not trials and not cells:
        named = ", ".join(map(str, folders))
        raise DataError(f"{named} must hold what `ml-platform quality --out` leaves. There is no JSON file.")
    commit = start_of(base, root)
    there = {(trial.model, trial.golden) for trial in trials}
    found = [_held_against(trial, commit, asked=(trial.model, trial.golden) in cells) for trial in trials]
    found += [_missing(model, golden, base, commit) for model, golden in cells if (model, golden) not in there]
    return sorted(found, key=lambda trial: (trial.model, trial.golden))


def _cells(base: str, root: Path) -> list[tuple[str, str]]:
    return [(cell["model"], cell["golden"]) for model in affected(base, root) for cell in model.cells]


def _missing(model: str, golden: str, base: str, commit: str) -> Trial:
    on = f" on the golden dataset {golden}" if golden else ""
    why = f"{model}{on} was not tried, or what was found was not kept: no file says what came of it. See its job's log."
    said = {"base": documents.bounded(base), "base_commit": commit, "head": "unknown"}
    return Trial(model=model, golden=golden, outcome=Outcome.BROKEN, problems=[why], **said)


def _held_against(trial: Trial, commit: str, *, asked: bool) -> Trial:
    """Return a trial with what is wrong with its being here."""
    if trial.base_commit != commit:
        short = trial.base_commit[:12]
        why = f"it was held against commit {short}, and this change starts from {commit[:12]}: try it again"
        trial = trial.model_copy(update={"outcome": Outcome.BROKEN, "problems": [why, *trial.problems]})
    if not asked:
        note = "nothing that changed affects it: no job was asked for this trial"
        trial = trial.model_copy(update={"notes": [*trial.notes, note]})
    return trial


def read_all(folders: Sequence[Path]) -> list[Trial]:
    """Read what trials left in folders, at any depth; a folder that is not there holds none.

    Raises
    ------
    DataError
        A file is no trial's, or there are too many.
    """
    files = [file for folder in folders for file in _files(folder)]
    if len(files) > MOST_TRIALS:
        raise DataError(f"A report must have at most {MOST_TRIALS} trials. Got {len(files)} in {len(folders)} folders.")
    return list(map(documents.read, files))


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*.json") if file.is_file() and not file.is_symlink())


def judge(base: str, root: Path, out: Path, *, say: Callable[[str], None]) -> list[Trial]:
    """Try the change of every model that it affects; `out` gets what `try_change` leaves."""
    # Dagster comes along: whoever draws what others left does without.
    from ml_platform.quality.trial import try_change

    return [try_change(model, base, root, out, golden=golden, say=say) for model, golden in _cells(base, root)]


def write(trials: Sequence[Trial], *, page: Path, markdown: Path | None) -> None:
    """Write the page and, where one is asked for, the comment."""
    page.parent.mkdir(parents=True, exist_ok=True)
    durable.write(page, draw(trials).encode())
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        durable.write(markdown, comment(trials).encode())
