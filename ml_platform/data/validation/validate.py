"""Validate a batch against a model's contract: valid rows, bad rows and the reasons."""

import errno
import os
from collections import Counter
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ml_platform.data.validation.parquet_pages import verify_pages
from ml_platform.data.validation.size_limits import require_bounded
from ml_platform.data.validation.time_zones import use_known_zones
from ml_platform.errors import StorageError, TooLargeError, UnreadableFileError, shorten
from ml_platform.model_spec import ModelSpec
from ml_platform.settings import MAX_FILE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from ml_platform.data.datasets import PublishedState
    from ml_platform.data.validation.schema_compiler import UniqueRule
    from ml_platform.data.validation.schema_scan import BatchScan, BrokenRule
    from ml_platform.data.validation.text_rows import TextRows

EXAMPLES = 5
# Maximum number of rows named per broken rule: enough to explain a batch of ten million bad rows.
FINDINGS = 1_000
# Maximum number of characters of a reader's error.
LONGEST_SENTENCE = 500
DISK_ERRORS = frozenset({errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN})


class Violation(NamedTuple):
    """One broken rule; `row` is None if the whole batch breaks it."""

    row: int | None
    column: str
    check: str
    rule: str
    value: str

    def __str__(self) -> str:
        """Return the violation as a sentence."""
        from ml_platform.data.validation.schema_compiler import in_words

        if self.row is None:
            return self.rule
        subject = f"{self.column} " if self.column else ""
        return f"row {self.row}: {subject}{in_words(self.rule)}: got {self.value}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of the validation of one batch.

    Parameters
    ----------
    rows : int
        Number of rows in the batch.
    whole : list of Violation
        Violations of the batch as a whole.
    broken : list of BrokenRule
        Rules that single rows break, each with its named rows.
    counts : Counter
        Exact number of rows that break a rule, by column, data check and rule.
    problem : str or None
        Reason for quarantining the whole batch; ``None`` if its valid rows may be published.
    read : callable
        Returns all rows, unchanged.
    bad, passed : ndarray of shape (rows,) or None
        True for rows that break a rule, and for rows to pass over; ``None`` if no row was checked.
    """

    rows: int
    whole: list[Violation] = field(default_factory=list)
    broken: "list[BrokenRule]" = field(default_factory=list)
    counts: Counter[tuple[str, str, str]]
    problem: str | None = None
    read: "Callable[[], pa.Table]"
    bad: "NDArray[np.bool_] | None" = None
    passed: "NDArray[np.bool_] | None" = None

    @cached_property
    def violations(self) -> list[Violation]:
        """A violation for each named row of every broken rule, and one per rule for the number of further rows."""
        from ml_platform.data.validation.schema_compiler import in_words

        violations = list(self.whole)
        for broken in self.broken:
            columns, check = ", ".join(broken.columns), broken.check
            for row, value in zip(broken.rows, broken.values, strict=True):
                violations.append(Violation(row, columns, check, broken.name, value))
            more = broken.count - len(broken.rows)
            if more and broken.rows:
                rule = f"{more:,} more rows: {columns} {in_words(broken.name)}"
                violations.append(Violation(None, columns, check, rule, ""))
        return violations

    @cached_property
    def valid(self) -> "pa.Table":
        """The rows that may be published, unchanged; no rows or columns if the whole batch is quarantined."""
        import pyarrow as pa

        if self.problem is not None or self.bad is None:
            return pa.table({})  # not read: such a file may be too large for memory
        left_out = self.bad if self.passed is None else self.bad | self.passed
        return self.read().filter(pa.array(~left_out)) if left_out.any() else self.read()

    @property
    def passed_over_rows(self) -> int:
        """Number of rows whose entity, event time and all values are published already, or come twice in the batch."""
        return 0 if self.passed is None else int(self.passed.sum())

    @property
    def quarantined_rows(self) -> int:
        """Number of rows that must not be published."""
        whole = self.problem is not None or self.bad is None
        return self.rows - self.passed_over_rows if whole else int(self.bad.sum())  # type: ignore[union-attr]

    @property
    def valid_rows(self) -> int:
        """Number of rows that may be published."""
        return self.rows - self.quarantined_rows - self.passed_over_rows

    @property
    def rules(self) -> dict[str, dict[str, int]]:
        """Number of rows that break a rule, by data check and rule."""
        by_check: dict[str, dict[str, int]] = {}
        for (_, check, rule), count in self.counts.items():
            rules = by_check.setdefault(check, {})
            rules[rule] = rules.get(rule, 0) + count
        return by_check

    @property
    def examples(self) -> dict[str, list[str]]:
        """Up to five violations per data check, as sentences."""
        by_check: dict[str, list[str]] = {}
        for violation in self.violations:
            sentences = by_check.setdefault(violation.check, [])
            if len(sentences) < EXAMPLES:
                sentences.append(str(violation))
        return by_check


def read_rows(path: Path, spec: ModelSpec, max_bytes: int = MAX_FILE_BYTES) -> "pa.Table":
    """Read a Parquet, CSV or JSON Lines file without changing values.

    Parquet files declare their types. Text has the contract's types: ``007`` stays text in a column of text. A row of
    text with a value of another type, such as ``1.9`` in a column of integers, is null in every column.

    Parameters
    ----------
    path : Path
        Its suffix gives the format.
    spec : ModelSpec
        Declares the contract and the maximum number of rows of a batch.
    max_bytes : int
        Maximum number of bytes, compressed and decompressed.

    Raises
    ------
    UnreadableFileError
        The bytes do not have the suffix's format; the message gives the reader's error.
    TooLargeError
        The file exceeds a limit and was not read.
    """
    if path.suffix != ".parquet":
        return _read_text(path, spec, max_bytes, 0).table
    with _unreadable_as(path):
        require_bounded(path, spec.max_batch_rows, max_bytes)
        table = _read_parquet(path, spec)
        _require_unique(table.column_names)
        return table


def _read_text(path: Path, spec: ModelSpec, max_bytes: int, limit: int) -> "TextRows":
    from ml_platform.data.validation import text_rows

    with _unreadable_as(path):
        if path.suffix != ".jsonl":
            return text_rows.read_csv(path, arrow_types(spec), limit, spec.max_batch_rows, max_bytes)
        require_bounded(path, spec.max_batch_rows, max_bytes)
        return text_rows.read_json_lines(path, arrow_types(spec), limit, max_bytes)


@contextmanager
def _unreadable_as(path: Path) -> "Iterator[None]":
    """Raise errors of the reader as `UnreadableFileError`, with the file's format."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        _require_working_disk(path, error)
        kind = path.name.partition(".")[2]
        raise UnreadableFileError(f"it is no readable {kind} file: {_first_line(error)}") from error


def _require_working_disk(path: Path, error: BaseException) -> None:
    """Raise a StorageError if a file could not be read because of its disk, which says nothing about the file."""
    if isinstance(error, OSError) and error.errno is not None and error.errno in DISK_ERRORS:
        raise StorageError(
            f"{path} could not be read: {os.strerror(error.errno)}. Check the disk that holds it, then run the step "
            "again. The file is not judged by this."
        ) from error


def _require_unique(names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise UnreadableFileError(f"column names must be unique. Got {shorten(str(names), LONGEST_SENTENCE)} instead.")


def _first_line(error: BaseException) -> str:
    return shorten(next(iter(str(error).splitlines()), type(error).__name__), LONGEST_SENTENCE)


def _read_parquet(path: Path, spec: ModelSpec) -> "pa.Table":
    import pyarrow.parquet as pq

    table = pq.read_table(path, page_checksum_verification=True).replace_schema_metadata(None)
    return table.cast(use_known_zones(table.schema, arrow_types(spec)))


def arrow_types(spec: ModelSpec) -> "pa.Schema":
    """Return the contract's columns as Arrow types; columns with a type unknown to Arrow are omitted."""
    import pandas as pd
    import pyarrow as pa

    fields = []
    for name, column in spec.contract.to_schema().columns.items():
        dtype = column.dtype.type if column.dtype is not None else None
        if isinstance(dtype, pd.StringDtype):
            fields.append(pa.field(name, pa.string()))
        elif dtype is not None:
            fields.append(pa.field(name, pa.array(pd.Series([], dtype=dtype)).type))
    return pa.schema(fields)


def make_violations_table(violations: list[Violation]) -> "pa.Table":
    """Return violations as a table with the fields of `Violation`; ``row`` is null for the whole batch."""
    import pyarrow as pa

    text = [pa.field(name, pa.string()) for name in Violation._fields[1:]]
    schema = pa.schema([pa.field("row", pa.int64()), *text])
    return pa.Table.from_pylist([violation._asdict() for violation in violations], schema=schema)


def unreadable(problem: str, check: str = "schema") -> Report:
    """Return the report on an unreadable file, whose `problem` counts as a violation of a data check."""
    import pyarrow as pa

    violation = Violation(None, "", check, problem, "")
    counts = Counter({("", check, problem): 1})
    return Report(rows=0, whole=[violation], counts=counts, problem=problem, read=lambda: pa.table({}))


def validate_file(
    path: Path,
    spec: ModelSpec,
    published: "PublishedState | None" = None,
    max_bytes: int = MAX_FILE_BYTES,
    *,
    named: int | None = None,
    corrects: bool = False,
    only: "Sequence[int] | None" = None,
) -> Report:
    """Validate a file as `validate` does, without loading a whole Parquet file into memory.

    A file with more than `max_bytes` bytes, compressed or decompressed, is not read.

    Parameters
    ----------
    path, spec, published
        As of `read_rows` and `validate`.
    max_bytes : int
        Maximum number of bytes, compressed and decompressed.
    named : int or None
        Maximum number of rows named per broken rule, further ones are only counted; ``None`` is `FINDINGS`.
    corrects : bool
        True for a correction: a row replaces the published row of its entity and time, instead of contradicting it.
    only : sequence of int or None
        Numbers of the rows that are the batch, from 0; ``None`` for all rows of the file.

    Returns
    -------
    Report
        Also for an unreadable file: its `problem` is the reader's error.
    """
    try:
        if path.suffix != ".parquet":
            limit = FINDINGS if named is None else named
            text = _read_text(path, spec, max_bytes, limit)
            text = text if only is None else text.take(only)
            return _validate_text(text, spec, published, max_bytes, limit, corrects=corrects)
        if only is not None:
            rows = read_rows(path, spec, max_bytes).take(only)
            return validate(rows, spec, published, max_bytes, named=named, corrects=corrects)
        return _validate_parquet(path, spec, published, max_bytes, named, corrects=corrects)
    except TooLargeError as error:
        return unreadable(str(error), "volume")
    except UnreadableFileError as error:
        return unreadable(str(error))


def _validate_text(
    text: "TextRows",
    spec: ModelSpec,
    published: "PublishedState | None",
    max_bytes: int,
    limit: int,
    *,
    corrects: bool,
) -> Report:
    import polars as pl

    from ml_platform.data.validation.schema_scan import BatchScan

    source = pl.LazyFrame(pl.from_arrow(text.table))
    batch = BatchScan(source, text.table.num_rows, text.table.schema, limit, text.unread)
    return _validate(batch, spec, published, lambda: text.table, max_bytes, text.broken, corrects=corrects)


def _validate_parquet(
    path: Path,
    spec: ModelSpec,
    published: "PublishedState | None",
    max_bytes: int,
    named: int | None,
    *,
    corrects: bool,
) -> Report:
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ml_platform.data.validation.schema_scan import BatchScan

    try:
        require_bounded(path, spec.max_batch_rows, max_bytes)
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema().remove_metadata()
        _require_unique(schema.names)
        verify_pages(path)
        zones = use_known_zones(schema, arrow_types(spec))
        if zones != schema:  # Polars refuses the file's names: its rows are renamed in memory
            return validate(
                read_rows(path, spec, max_bytes), spec, published, max_bytes, named=named, corrects=corrects
            )
        # A file's statistics have no checksum, so no row is skipped because of them.
        source = pl.scan_parquet(path, glob=False, use_statistics=False)
        batch = BatchScan(source, metadata.num_rows, schema, FINDINGS if named is None else named)
        return _validate(batch, spec, published, partial(_read_parquet, path, spec), max_bytes, corrects=corrects)
    except (pa.ArrowException, OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        _require_working_disk(path, error)
        raise UnreadableFileError(f"it is no readable parquet file: {_first_line(error)}") from error


def validate(
    rows: "pa.Table",
    spec: ModelSpec,
    published: "PublishedState | None" = None,
    max_bytes: int = MAX_FILE_BYTES,
    *,
    named: int | None = None,
    corrects: bool = False,
) -> Report:
    """Validate a batch against the contract, the published rows and the platform's own rules.

    Parameters
    ----------
    rows : pyarrow Table of shape (n_rows, n_columns)
        The batch as `read_rows` returns it.
    spec : ModelSpec
        Declares the contract, and the `quarantine_tolerance` above which the whole batch is quarantined.
    published : PublishedState or None
        The version of the model's table that rows are compared with; ``None`` compares them with no table.
    max_bytes : int
        Maximum number of bytes of all text values together.
    named : int or None
        Maximum number of rows named per broken rule, further ones are only counted; ``None`` is `FINDINGS`.
    corrects : bool
        True for a correction: a row replaces the published row of its entity and time, instead of contradicting it.

    Returns
    -------
    Report
    """
    import polars as pl

    from ml_platform.data.validation.schema_scan import BatchScan

    rows = rows.replace_schema_metadata(None)
    source = pl.LazyFrame(pl.from_arrow(rows))
    batch = BatchScan(source, rows.num_rows, rows.schema, FINDINGS if named is None else named)
    return _validate(batch, spec, published, lambda: rows, max_bytes, corrects=corrects)


def find_published_rows(rows: "pa.Table", spec: ModelSpec, published: "PublishedState") -> "NDArray[np.bool_]":
    """Find the rows that are published with all their values, whether they meet the contract or not.

    Parameters
    ----------
    rows : pyarrow Table of shape (n_rows, n_columns)
        A batch with the columns of the contract; a batch with others has no published row.
    published : PublishedState
        The version of the model's table that rows are compared with.

    Returns
    -------
    ndarray of shape (n_rows,)
    """
    import polars as pl

    from ml_platform.data.validation.schema_scan import BatchScan

    rows = rows.replace_schema_metadata(None)
    batch = BatchScan(pl.LazyFrame(pl.from_arrow(rows)), rows.num_rows, rows.schema, 0)
    batch.compare_with_published(_key_rule(spec), published)
    return batch.passed


def make_empty_report(rows: "pa.Table") -> Report:
    """Return the report on a batch without rows that nothing is wrong with; `rows` gives its columns."""
    import numpy as np

    return Report(rows=0, counts=Counter(), read=lambda: rows.slice(0, 0), bad=np.zeros(0, dtype=bool))


def _validate(
    batch: "BatchScan",
    spec: ModelSpec,
    published: "PublishedState | None",
    read: "Callable[[], pa.Table]",
    max_bytes: int,
    unread: "Sequence[BrokenRule]" = (),
    *,
    corrects: bool,
) -> Report:
    """Check a batch; `unread` are the rules that rows break which could not be read."""
    broken: list[BrokenRule] = []
    whole = _check_batch(batch, spec, max_bytes)
    if not whole:
        broken = [*unread, *_check_rows(batch, spec, published, corrects=corrects)]
        for one in (rule for rule in broken if not rule.rows):
            columns = ", ".join(one.columns)
            sentence = f"the rows together break {columns or 'the contract'} {one.name}"
            whole.append(Violation(None, columns, one.check, sentence, ""))
    if whole:
        counts = Counter((violation.column, violation.check, violation.rule) for violation in whole)
        problem = "; ".join(sorted({violation.rule for violation in whole})[:EXAMPLES])
        return Report(rows=batch.rows, whole=whole, counts=counts, problem=problem, read=read)
    return Report(
        rows=batch.rows,
        broken=broken,
        counts=Counter({(", ".join(one.columns), one.check, one.name): one.count for one in broken}),
        problem=_judge_bad_share(batch, spec.quarantine_tolerance, broken),
        read=read,
        bad=batch.bad,
        passed=batch.passed,
    )


def _judge_bad_share(batch: "BatchScan", tolerance: float, broken: "list[BrokenRule]") -> str | None:
    """Return the reason for quarantining the whole batch if too many rows are bad, or else ``None``."""
    from ml_platform.data.validation.schema_compiler import in_words

    # Rows that are passed over neither dilute nor exceed the tolerance: a full dump is judged by its new rows.
    bad, new = int(batch.bad.sum()), batch.rows - int(batch.passed.sum())
    if not bad or bad / new <= tolerance:
        return None
    worst = max(broken, key=lambda one: one.count)
    subject = f"{', '.join(worst.columns)} " if worst.columns else ""
    return (
        f"{bad} of {new} rows are bad ({bad / new:.1%}, tolerance {tolerance:.1%}), "
        f"most often: {subject}{in_words(worst.name)}"
    )


def _describe_column(rule: str, name: str, value: str) -> str:
    """Return a sentence on a column that breaks a rule of pandera about columns, with a way to mend the file."""
    if rule == "column_in_dataframe":
        return f"column {name!r} is missing"
    if rule == "column_in_schema":
        index = " (an index that pandas wrote, or a comma at the end of lines: write with index=False)"
        unnamed = not name.strip() or name.startswith(("Unnamed: ", "__index_level_"))
        return f"column {name!r} is not in the contract{index if unnamed else ''}"
    expected = rule.removeprefix("dtype('").removesuffix("')")
    expected = "str" if expected.startswith("string") else expected
    naive = value.startswith("datetime64") and "UTC" in expected and "," not in value
    convert = ".dt.tz_localize('UTC'), if it is in UTC" if naive else f".astype({expected!r})"
    return f"column {name!r} must be {expected}. Got {value} instead. In pandas: frame[{name!r}]{convert}"


def _check_batch(batch: "BatchScan", spec: ModelSpec, max_bytes: int) -> list[Violation]:
    """Return the violations in columns and types, as pandera reports them for no rows; else those in size."""
    from pandera.errors import SchemaErrors

    # A copy: pandera returns its only instance of the schema.
    contract = deepcopy(spec.contract.to_schema())
    contract.checks, contract.unique = [], None
    for column in contract.columns.values():
        column.checks = []
    try:
        contract.validate(batch.schema.empty_table().to_pandas(), lazy=True)
    except SchemaErrors as errors:
        violations = []
        for case in errors.failure_cases.to_dict("records"):
            rule, value = str(case["check"]), shorten(str(case["failure_case"]))
            name = shorten(str(case["column"])) if case["schema_context"] == "Column" else value
            violations.append(Violation(None, name, "schema", _describe_column(rule, name, value), value))
        return violations
    rows, problem = batch.rows, ""
    if rows < spec.min_batch_rows:
        problem = f"it has {rows:,} rows, at least {spec.min_batch_rows:,} are asked for" if rows else "it has no rows"
    elif rows > spec.max_batch_rows:
        problem = f"it has {rows:,} rows, at most {spec.max_batch_rows:,} are taken"
    # A Parquet file stores a repeated text once: small pages can be long columns.
    elif (size := batch.bytes_of_text()) > max_bytes:
        problem = f"its texts have {size:,} bytes in all, at most {max_bytes:,} are taken"
    return [Violation(None, "", "volume", problem, "")] if problem else []


def _check_rows(
    batch: "BatchScan", spec: ModelSpec, published: "PublishedState | None", *, corrects: bool
) -> "list[BrokenRule]":
    """Return the rules that rows break: those of the contract and of the platform."""
    import pandas as pd
    import polars as pl
    import pyarrow.types as types

    from ml_platform.data.validation.schema_compiler import Rule, compile_contract

    contract = compile_contract(spec.contract.to_schema(), batch.schema.names)
    for column in batch.schema:
        if types.is_floating(column.type):
            infinite = pl.col(column.name).is_infinite()
            contract.rules.append(Rule(columns=(column.name,), check="values", name="finite", broken=infinite))
    kind = batch.schema.field(spec.event_time).type
    if types.is_timestamp(kind):
        future = pl.col(spec.event_time) > pl.lit(pd.Timestamp.now(kind.tz).to_pydatetime())
        contract.rules.append(
            Rule(columns=(spec.event_time,), check="freshness", name="not in the future", broken=future)
        )
    entity = batch.schema.field(spec.entity).type
    if types.is_string(entity) or types.is_large_string(entity):
        # Such rows would all be one entity, and `forget` refuses an empty id, which an unset variable of a shell gives.
        contract.rules.append(
            Rule(columns=(spec.entity,), check="values", name="not an empty text", broken=pl.col(spec.entity) == "")
        )
    held = batch.hold(contract)
    return [*held, *batch.check_keys(_key_rule(spec), published, "as published", corrects=corrects)]


def _key_rule(spec: ModelSpec) -> "UniqueRule":
    from ml_platform.data.validation.schema_compiler import UniqueRule

    columns = (spec.entity, spec.event_time)
    return UniqueRule(columns=columns, check="keys", name="one row a time", keep="first", shown=(spec.entity,))
