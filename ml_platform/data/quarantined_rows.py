"""Validate the quarantined rows of a batch again, from its stored bytes."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ml_platform.data.datasets import PublishedState
from ml_platform.data.validation import validate
from ml_platform.errors import UnreadableFileError
from ml_platform.model_spec import ModelSpec


def validate_again(
    path: Path,
    spec: ModelSpec,
    before: PublishedState,
    removed: Sequence[int],
    max_bytes: int,
    *,
    known: int | None,
    corrects: bool,
) -> tuple[validate.Report, int]:
    """Validate the quarantined rows of a batch: all of them, or those that were not published.

    Parameters
    ----------
    path, spec, before, max_bytes, corrects
        As of `validate.validate_file`.
    removed : sequence of int
        Numbers of the rows that an erasure removed from the stored bytes.
    known : int or None
        Number of the batch's rows that were published or passed over before; ``None`` if it was quarantined whole.

    Returns
    -------
    report : Report
        Rows are numbered as in the bytes before any removal.
    published_since : int
        Number of quarantined rows that another arrival has published since; 0 if the batch was quarantined whole.
    """
    if known is None:
        report = validate.validate_file(path, spec, before, max_bytes, corrects=corrects)
        return _renumber(report, original_numbers(removed, range(report.rows))), 0
    try:
        rows = validate.read_rows(path, spec, max_bytes)
    except UnreadableFileError as error:
        return validate.unreadable(str(error)), 0
    # Violations name the first thousand rows of a rule only: the quarantined rows are those that are not published.
    published = validate.find_published_rows(rows, spec, before)
    bad = (~published).nonzero()[0].tolist()
    # The batch as a whole was within its tolerance.
    tolerant = spec.model_copy(update={"quarantine_tolerance": 1.0, "min_batch_rows": 1})
    report = validate.make_empty_report(rows)
    if bad:
        report = validate.validate_file(path, tolerant, before, max_bytes, corrects=corrects, only=bad)
    numbers = original_numbers(removed, bad)
    return _renumber(report, numbers), max(int(published.sum()) - known, 0)


def _renumber(report: validate.Report, numbers: list[int]) -> validate.Report:
    return replace(report, broken=[replace(one, rows=[numbers[row] for row in one.rows]) for one in report.broken])


def original_numbers(removed: Iterable[int], rows: Iterable[int]) -> list[int]:
    """Return the numbers that rows of stored bytes had before any removal, as violations count them."""
    import itertools

    wanted, gone = sorted(rows), set(removed)
    left = (number for number in itertools.count() if number not in gone)
    numbers = list(itertools.islice(left, wanted[-1] + 1)) if wanted else []
    return [numbers[row] for row in wanted]
