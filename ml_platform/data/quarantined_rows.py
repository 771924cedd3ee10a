"""Validate the quarantined rows of a batch again, from its stored bytes."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.data.validation import validate
from ml_platform.errors import UnreadableFileError
from ml_platform.model_spec import ModelSpec

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def validate_again(
    path: Path,
    spec: ModelSpec,
    newest: "pd.Series[Any] | None",
    published: "pa.Table | None",
    removed: Sequence[int],
    max_bytes: int,
) -> validate.Report:
    """Validate the quarantined rows of a batch: all of them, or those that were not published.

    Parameters
    ----------
    path, spec, newest, max_bytes
        As of `validate.validate_file`.
    published : pyarrow Table or None
        Entity and time of the batch's published rows; ``None`` if the batch was quarantined whole.
    removed : sequence of int
        Numbers of the rows that an erasure removed from the stored bytes.

    Returns
    -------
    Report
        Rows are numbered as in the bytes before any removal.
    """
    import polars as pl

    try:
        rows = validate.read_rows(path, spec, max_bytes)
    except UnreadableFileError as error:
        return validate.unreadable(str(error))
    numbers = original_numbers(removed, range(rows.num_rows))
    if published is None:
        return _renumber(validate.validate(rows, spec, newest), numbers)
    # Violations name the first thousand rows of a rule only: the quarantined rows are those that are not published.
    # Of several rows with the same entity and time, only the first can have been published.
    names = [spec.entity, spec.event_time]
    known = pl.DataFrame(pl.from_arrow(published))
    batch = pl.DataFrame(pl.from_arrow(rows.select(names))).with_row_index("_row")
    first = batch.filter(pl.struct(names).is_first_distinct()).cast(known.schema)
    good = first.join(known, on=names, how="semi", nulls_equal=True)
    bad = batch.filter(~pl.col("_row").is_in(good["_row"].implode()))["_row"].to_list()
    # The batch as a whole was within its tolerance.
    tolerant = spec.model_copy(update={"quarantine_tolerance": 1.0, "min_batch_rows": 1})
    report = validate.validate(rows.take(bad), tolerant, newest)
    return _renumber(report, [numbers[row] for row in bad])


def _renumber(report: validate.Report, numbers: list[int]) -> validate.Report:
    return replace(report, broken=[replace(one, rows=[numbers[row] for row in one.rows]) for one in report.broken])


def original_numbers(removed: Iterable[int], rows: Iterable[int]) -> list[int]:
    """Return the numbers that rows of stored bytes had before any removal, as violations count them."""
    import itertools

    wanted, gone = sorted(rows), set(removed)
    left = (number for number in itertools.count() if number not in gone)
    numbers = list(itertools.islice(left, wanted[-1] + 1)) if wanted else []
    return [numbers[row] for row in wanted]
