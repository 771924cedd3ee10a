"""Rows against a model's contract: which are valid, which are not, and why."""

from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_platform.errors import TooLargeError, UnreadableFileError
from ml_platform.model_spec import ModelSpec
from ml_platform.pages import verify_pages
from ml_platform.settings import MOST_BYTES
from ml_platform.volumes import require_bounded

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    from ml_platform.contracts import Rule  # it and `scans` import polars, which takes half a second
    from ml_platform.scans import Batch, Broken

EXAMPLES = 5
# So many rows are named of each broken rule: a batch of ten million bad rows is explained by fewer.
FINDINGS = 1_000


class Finding(NamedTuple):
    """One broken rule; `row` is None where the whole batch breaks it."""

    row: int | None
    column: str
    check: str
    rule: str
    value: str

    def __str__(self) -> str:
        """Say it as a sentence."""
        from ml_platform.contracts import in_words

        if self.row is None:
            return self.rule
        return f"row {self.row}: {self.column} {in_words(self.rule)}: got {self.value}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What validation found in one batch.

    Parameters
    ----------
    rows : int
        Rows that came.
    whole : list of Finding
        What is wrong with the batch as a whole.
    broken : list of Broken
        The rules that rows break, each with its named rows.
    counts : Counter
        How many rows break a rule, exactly, by column, data check and rule.
    problem : str or None
        Why the batch is quarantined whole; ``None`` where it is not.
    read : callable
        Returns the rows that came, as they came.
    bad : ndarray of shape (rows,) or None
        True where a row breaks a rule; ``None`` where no row was looked at.
    """

    rows: int
    whole: list[Finding] = field(default_factory=list)
    broken: "list[Broken]" = field(default_factory=list)
    counts: Counter[tuple[str, str, str]]
    problem: str | None = None
    read: "Callable[[], pa.Table]"
    bad: "NDArray[np.bool_] | None" = None

    @cached_property
    def findings(self) -> list[Finding]:
        """Every broken rule with its named rows; one finding more a rule counts those that are not named."""
        return [*self.whole, *(finding for one in self.broken for finding in _findings(one))]

    @cached_property
    def valid(self) -> "pa.Table":
        """The rows that may be published, as they came; no rows or columns where the batch is quarantined whole."""
        import pyarrow as pa

        if self.problem is not None or self.bad is None:
            return pa.table({})  # nobody may read such a file as a whole: it can be too large for that
        return self.read().filter(pa.array(~self.bad)) if self.bad.any() else self.read()

    @property
    def quarantined_rows(self) -> int:
        """Rows that may not be published."""
        return self.rows if self.problem is not None or self.bad is None else int(self.bad.sum())

    @property
    def rules(self) -> dict[str, dict[str, int]]:
        """Rows that break a rule, by data check and rule."""
        by_check: dict[str, dict[str, int]] = {}
        for (_, check, rule), count in self.counts.items():
            rules = by_check.setdefault(check, {})
            rules[rule] = rules.get(rule, 0) + count
        return by_check

    @property
    def examples(self) -> dict[str, list[str]]:
        """Up to five findings a data check, as sentences."""
        by_check: dict[str, list[str]] = {}
        for finding in self.findings:
            said = by_check.setdefault(finding.check, [])
            if len(said) < EXAMPLES:
                said.append(str(finding))
        return by_check


def read_rows(path: Path, spec: ModelSpec, most_bytes: int = MOST_BYTES) -> "pa.Table":
    """Read a Parquet, CSV or JSON Lines file as it is.

    Parquet brings its types. Text has none, so that the contract's are read there: ``007`` stays text in a column of
    text, and ``1.9`` in a column of integers makes the file unreadable, not 1.

    Parameters
    ----------
    path : Path
        Its suffix says what it is.
    spec : ModelSpec
        Its table is the contract; it says how many rows a batch may have.
    most_bytes : int
        The most bytes, of the file and of what it decompresses to.

    Raises
    ------
    UnreadableFileError
        The bytes are not what the name says; the message says what the reader found.
    TooLargeError
        It holds too much, and was not read.
    """
    import pyarrow as pa

    try:
        require_bounded(path, spec.most_rows_a_batch, most_bytes)
        # A file's pandas metadata would decide how its columns are read: only the columns themselves may.
        table = _read(path, spec).replace_schema_metadata(None)
        names = list(table.column_names)
    except (pa.ArrowException, OSError, ValueError) as error:
        kind = path.name.partition(".")[2]
        raise UnreadableFileError(f"it is no readable {kind} file: {_first_line(error)}") from error
    _require_unique(names)
    return table


def _require_unique(names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise UnreadableFileError(f"column names must be unique. Got {names} instead.")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _read_parquet(path: Path) -> "pa.Table":
    import pyarrow.parquet as pq

    return pq.read_table(path, page_checksum_verification=True).replace_schema_metadata(None)


def _read(path: Path, spec: ModelSpec) -> "pa.Table":
    if path.suffix == ".parquet":
        return _read_parquet(path)
    types = arrow_types(spec)
    if path.suffix == ".jsonl":
        import pyarrow.json as pj

        return pj.read_json(path, parse_options=pj.ParseOptions(explicit_schema=types))
    import pyarrow.csv as pc

    # Only an empty field is missing: a customer called NA is one.
    options = pc.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True)
    return pc.read_csv(path, convert_options=options)


def arrow_types(spec: ModelSpec) -> "pa.Schema":
    """Return the contract's columns as Arrow types; a column whose type Arrow does not know is left out."""
    import pandas as pd
    import pyarrow as pa

    fields = []
    for name, column in spec.table.to_schema().columns.items():
        dtype = column.dtype.type if column.dtype is not None else None
        if isinstance(dtype, pd.StringDtype):
            fields.append(pa.field(name, pa.string()))
        elif dtype is not None:
            fields.append(pa.field(name, pa.array(pd.Series([], dtype=dtype)).type))
    return pa.schema(fields)


def findings_table(findings: list[Finding]) -> "pa.Table":
    """Return findings as a table with the fields of `Finding`; ``row`` is null where it is the whole batch."""
    import pyarrow as pa

    text = [pa.field(name, pa.string()) for name in Finding._fields[1:]]
    schema = pa.schema([pa.field("row", pa.int64()), *text])
    return pa.Table.from_pylist([finding._asdict() for finding in findings], schema=schema)


def unreadable(problem: str, check: str = "schema") -> Report:
    """Return the report on a file that could not be read, which is what a data check found."""
    import pyarrow as pa

    finding = Finding(None, "", check, problem, "")
    counts = Counter({("", check, problem): 1})
    return Report(rows=0, whole=[finding], counts=counts, problem=problem, read=lambda: pa.table({}))


def validate_file(
    path: Path,
    spec: ModelSpec,
    newest: "pd.Series[Any] | None" = None,
    most_bytes: int = MOST_BYTES,
    *,
    named: int | None = None,
) -> Report:
    """Hold a file against the contract, as `validate` does; a Parquet file is never in memory as a whole.

    A file that holds, or decompresses to, more than `most_bytes` is not read.

    Parameters
    ----------
    path, spec, newest
        As of `read_rows` and `validate`.
    most_bytes : int
        The most bytes, of the file and of what it decompresses to.
    named : int or None
        So many rows are named of each broken rule, the others are counted; ``None`` names `FINDINGS`.

    Returns
    -------
    Report
        Of an unreadable file too: its problem says what the reader found.
    """
    try:
        if path.suffix != ".parquet":
            return validate(read_rows(path, spec, most_bytes), spec, newest, most_bytes, named=named)
        return _validate_parquet(path, spec, newest, most_bytes, named)
    except TooLargeError as error:
        return unreadable(str(error), "volume")
    except UnreadableFileError as error:
        return unreadable(str(error))


def _validate_parquet(
    path: Path, spec: ModelSpec, newest: "pd.Series[Any] | None", most_bytes: int, named: int | None
) -> Report:
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ml_platform.scans import Batch

    try:
        require_bounded(path, spec.most_rows_a_batch, most_bytes)
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema().remove_metadata()
        _require_unique(schema.names)
        verify_pages(path)
        # What a file says of the values in it is not covered by a checksum: no row is skipped because of it.
        source = pl.scan_parquet(path, glob=False, use_statistics=False)
        batch = Batch(source, metadata.num_rows, schema, FINDINGS if named is None else named)
        return _validate(batch, spec, newest, partial(_read_parquet, path), most_bytes)
    except (pa.ArrowException, OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UnreadableFileError(f"it is no readable parquet file: {_first_line(error)}") from error


def validate(
    rows: "pa.Table",
    spec: ModelSpec,
    newest: "pd.Series[Any] | None" = None,
    most_bytes: int = MOST_BYTES,
    *,
    named: int | None = None,
) -> Report:
    """Hold a batch against the contract and against what a contract cannot say.

    Parameters
    ----------
    rows : pyarrow Table of shape (n_rows, n_columns)
        The batch as it was read.
    spec : ModelSpec
        Its table is the contract; its `quarantine_tolerance` decides when a batch is quarantined whole.
    newest : Series or None
        The newest published event time by entity: a row must be newer. ``None`` where nothing was published.
    most_bytes : int
        The most bytes of text that the rows may hold in all.
    named : int or None
        So many rows are named of each broken rule, the others are counted; ``None`` names `FINDINGS`.

    Returns
    -------
    Report
    """
    import polars as pl

    from ml_platform.scans import Batch

    rows = rows.replace_schema_metadata(None)
    source = pl.LazyFrame(pl.from_arrow(rows))
    batch = Batch(source, rows.num_rows, rows.schema, FINDINGS if named is None else named)
    return _validate(batch, spec, newest, lambda: rows, most_bytes)


def _validate(
    batch: "Batch",
    spec: ModelSpec,
    newest: "pd.Series[Any] | None",
    read: "Callable[[], pa.Table]",
    most_bytes: int,
) -> Report:
    structural = _structural(batch.schema, spec) or list(_volume(batch, spec, most_bytes))
    if structural:
        return _quarantined_whole(batch, structural, read)
    broken = _hold(batch, spec, newest)
    whole = [_finding_of_all(one) for one in broken if not one.rows]
    if whole:
        return _quarantined_whole(batch, whole, read)
    return Report(
        rows=batch.rows,
        broken=broken,
        counts=Counter({(", ".join(one.columns), one.check, one.name): one.count for one in broken}),
        problem=_problem_of_the_rows(batch, spec, broken),
        read=read,
        bad=batch.bad,
    )


def _quarantined_whole(batch: "Batch", findings: list[Finding], read: "Callable[[], pa.Table]") -> Report:
    counts = Counter((finding.column, finding.check, finding.rule) for finding in findings)
    problem = "; ".join(sorted({finding.rule for finding in findings})[:EXAMPLES])
    return Report(rows=batch.rows, whole=findings, counts=counts, problem=problem, read=read)


def _structural(schema: "pa.Schema", spec: ModelSpec) -> list[Finding]:
    """Hold the columns and their types against the contract, as pandera sees them in a frame without rows."""
    from pandera.errors import SchemaErrors

    # pandera hands out the one schema that it keeps.
    contract = deepcopy(spec.table.to_schema())
    contract.checks, contract.unique = [], None
    for column in contract.columns.values():
        column.checks = []
    try:
        contract.validate(schema.empty_table().to_pandas(), lazy=True)
    except SchemaErrors as errors:
        return [_structural_finding(case) for case in errors.failure_cases.to_dict("records")]
    return []


def _volume(batch: "Batch", spec: ModelSpec, most_bytes: int) -> Iterator[Finding]:
    rows = batch.rows
    if rows < spec.least_rows_a_batch:
        said = f"it has {rows:,} rows, at least {spec.least_rows_a_batch:,} are asked for" if rows else "it has no rows"
        yield Finding(None, "", "volume", said, "")
    elif rows > spec.most_rows_a_batch:
        said = f"it has {rows:,} rows, at most {spec.most_rows_a_batch:,} are taken"
        yield Finding(None, "", "volume", said, "")
    # A Parquet file names a text once for all of its rows: pages that are small can be long columns.
    elif (long := batch.bytes_of_text()) > most_bytes:
        said = f"its texts have {long:,} bytes in all, at most {most_bytes:,} are taken"
        yield Finding(None, "", "volume", said, "")


def _structural_finding(case: dict[str, Any]) -> Finding:
    rule, value = str(case["check"]), str(case["failure_case"])
    column = str(case["column"]) if case["schema_context"] == "Column" else value
    sentences = {
        "column_in_schema": f"column {column!r} is not in the contract",
        "column_in_dataframe": f"column {column!r} is missing",
    }
    sentence = sentences.get(rule, f"column {column!r} must be {rule}. Got {value} instead.")
    return Finding(None, column, "schema", sentence, value)


def _hold(batch: "Batch", spec: ModelSpec, newest: "pd.Series[Any] | None") -> "list[Broken]":
    from ml_platform.contracts import UniqueRule, compile_contract

    contract = compile_contract(spec.table.to_schema(), batch.schema.names)
    contract.rules.extend([*_finite(batch.schema), *_not_in_the_future(batch.schema, spec)])
    columns = (spec.entity, spec.event_time)
    key = UniqueRule(columns=columns, check="keys", name="one row a time", keep="first", shown=(spec.entity,))
    return [*batch.hold(contract), *batch.hold_keys(key, newest, "newer than published")]


def _finite(schema: "pa.Schema") -> "Iterator[Rule]":
    import polars as pl
    import pyarrow.types as types

    from ml_platform.contracts import Rule

    for column in schema:
        if types.is_floating(column.type):
            broken = pl.col(column.name).is_infinite()
            yield Rule(columns=(column.name,), check="values", name="finite", broken=broken)


def _not_in_the_future(schema: "pa.Schema", spec: ModelSpec) -> "Iterator[Rule]":
    import pandas as pd
    import polars as pl
    import pyarrow.types as types

    from ml_platform.contracts import Rule

    kind = schema.field(spec.event_time).type
    if types.is_timestamp(kind):
        moment = pl.lit(pd.Timestamp.now(kind.tz).to_pydatetime())
        broken = pl.col(spec.event_time) > moment
        yield Rule(columns=(spec.event_time,), check="freshness", name="not in the future", broken=broken)


def _finding_of_all(broken: "Broken") -> Finding:
    columns = ", ".join(broken.columns)
    return Finding(
        None, columns, broken.check, f"the rows together break {columns or 'the contract'} {broken.name}", ""
    )


def _findings(broken: "Broken") -> Iterator[Finding]:
    """Return the named rows of a broken rule, and one line more for those that were only counted."""
    from ml_platform.contracts import in_words

    columns = ", ".join(broken.columns)
    for row, value in zip(broken.rows, broken.values, strict=True):
        yield Finding(row, columns, broken.check, broken.name, value)
    more = broken.count - len(broken.rows)
    if more and broken.rows:
        yield Finding(None, columns, broken.check, f"{more:,} more rows: {columns} {in_words(broken.name)}", "")


def _problem_of_the_rows(batch: "Batch", spec: ModelSpec, broken: "list[Broken]") -> str | None:
    from ml_platform.contracts import in_words

    bad_rows = int(batch.bad.sum())
    share = bad_rows / batch.rows
    if share <= spec.quarantine_tolerance:
        return None
    worst = max(broken, key=lambda one: one.count)
    return (
        f"{bad_rows} of {batch.rows} rows are bad ({share:.1%}, tolerance {spec.quarantine_tolerance:.1%}), "
        f"most often: {', '.join(worst.columns)} {in_words(worst.name)}"
    )
