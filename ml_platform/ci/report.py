"""Collect or make the comparisons of all affected models, and write the report page and the comment."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ml_platform.ci import result_schema
from ml_platform.ci.affected_models import find_affected_models
from ml_platform.ci.git import find_merge_base
from ml_platform.ci.pr_comment import comment
from ml_platform.ci.report_page import draw
from ml_platform.ci.result_schema import ChangeResult, Outcome
from ml_platform.errors import DataError
from ml_platform.storage import atomic_files

MAX_RESULTS = 200


def collect(folders: Sequence[Path], base: str, root: Path) -> list[ChangeResult]:
    """Read the comparisons in folders, at any depth, and return one for each affected model, by name.

    A missing result, for instance of a job that crashed, is BROKEN; so is a comparison with another commit. A result
    of a model that the change does not affect is kept, with a note.

    Parameters
    ----------
    folders : sequence of Path
    base : str
        The ref that the change is compared with; it determines the affected models.
    root : Path
        Root of the checkout.

    Raises
    ------
    DataError
        No model is affected and there is no result, a file is not a result, or there are too many.
    ConfigurationError
        git has no such commit.
    """
    results, cells = read_all(folders), _cells(base, root)
    if not results and not cells:
        paths = ", ".join(map(str, folders))
        raise DataError(f"{paths} must contain the output of `ml-platform ci compare --out`. Got no JSON file.")
    commit = find_merge_base(base, root)
    present = {(result.model, result.golden) for result in results}
    checked = [_check(result, commit, affected=(result.model, result.golden) in cells) for result in results]
    checked += [_missing(model, golden, base, commit) for model, golden in cells if (model, golden) not in present]
    return sorted(checked, key=lambda result: (result.model, result.golden))


def _cells(base: str, root: Path) -> list[tuple[str, str]]:
    return [(cell["model"], cell["golden"]) for model in find_affected_models(base, root) for cell in model.cells]


def _missing(model: str, golden: str, base: str, commit: str) -> ChangeResult:
    dataset = f" on the golden dataset {golden}" if golden else ""
    why = f"{model}{dataset} has no result: the comparison did not run, or its file was not kept. See its job's log."
    fields = {"base": result_schema.bounded(base), "base_commit": commit, "head": "unknown"}
    return ChangeResult(model=model, golden=golden, outcome=Outcome.BROKEN, problems=[why], **fields)


def _check(result: ChangeResult, commit: str, *, affected: bool) -> ChangeResult:
    """Return a result, as BROKEN if it compares with another commit, and with a note if its model is not affected."""
    if result.base_commit != commit:
        actual = result.base_commit[:12]
        why = f"it compares with commit {actual}, but this change starts at {commit[:12]}: run the comparison again"
        result = result.model_copy(update={"outcome": Outcome.BROKEN, "problems": [why, *result.problems]})
    if not affected:
        note = "the change does not affect this model: no comparison was expected"
        result = result.model_copy(update={"notes": [*result.notes, note]})
    return result


def read_all(folders: Sequence[Path]) -> list[ChangeResult]:
    """Read all comparisons in folders, at any depth; a missing folder has none.

    Raises
    ------
    DataError
        A file is not a comparison's result, or there are too many.
    """
    found = (file for folder in folders for file in sorted(folder.rglob("*.json")))
    files = [file for file in found if file.is_file() and not file.is_symlink()]
    if len(files) > MAX_RESULTS:
        raise DataError(
            f"A report must have at most {MAX_RESULTS} comparisons. Got {len(files)} in {len(folders)} folders."
        )
    return list(map(result_schema.read, files))


def compare_all(base: str, root: Path, out: Path, *, say: Callable[[str], None]) -> list[ChangeResult]:
    """Compare every affected model with the base; `run_comparison` writes its files to `out`."""
    # Imported here because it imports Dagster, which a report of existing results does without.
    from ml_platform.ci.compare_change import run_comparison

    return [run_comparison(model, base, root, out, golden=golden, say=say) for model, golden in _cells(base, root)]


def write(results: Sequence[ChangeResult], *, page: Path, markdown: Path | None) -> None:
    """Write the report page and, unless `markdown` is None, the comment."""
    page.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write(page, draw(results).encode())
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write(markdown, comment(results).encode())
