"""Rows against a model's contract: which are valid, which are not, and why."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_platform.errors import UnreadableFileError
from ml_platform.model_spec import ModelSpec

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

EXAMPLES = 5


class Finding(NamedTuple):
    """One broken rule; `row` is None where the whole batch breaks it."""

    row: int | None
    column: str
    check: str
    rule: str
    value: str

    def __str__(self) -> str:
        """Say it as a sentence."""
        return self.rule if self.row is None else f"row {self.row}: {self.column} {self.rule}: got {self.value}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What validation found in one batch.

    Parameters
    ----------
    rows : int
        Rows that came.
    valid : pyarrow Table
        Rows that may be published, as they were read; none where the batch is quarantined whole.
    findings : list of Finding
        Every broken rule, row by row.
    problem : str or None
        Why the batch is quarantined whole; ``None`` where it is not.
    """

    rows: int
    valid: "pa.Table"
    findings: list[Finding]
    problem: str | None = None

    @property
    def quarantined_rows(self) -> int:
        """Rows that may not be published."""
        return self.rows - int(self.valid.num_rows)

    @property
    def rules(self) -> dict[str, dict[str, int]]:
        """Findings by data check and rule."""
        counts: dict[str, dict[str, int]] = {}
        for finding in self.findings:
            rules = counts.setdefault(finding.check, {})
            rules[finding.rule] = rules.get(finding.rule, 0) + 1
        return counts

    @property
    def examples(self) -> list[str]:
        """Up to five findings as sentences."""
        return [str(finding) for finding in self.findings[:EXAMPLES]]


def read_rows(path: Path, spec: ModelSpec) -> "pa.Table":
    """Read a Parquet, CSV or JSON Lines file as it is.

    Parquet brings its types. Text has none, so that the contract's are read there: ``007`` stays text in a column of
    text, and ``1.9`` in a column of integers makes the file unreadable, not 1.

    Parameters
    ----------
    path : Path
        Its suffix says what it is.
    spec : ModelSpec
        Its table is the contract.

    Raises
    ------
    UnreadableFileError
        The bytes are not what the name says; the message says what the reader found.
    """
    import pyarrow as pa

    try:
        # A file's pandas metadata would decide how its columns are read: only the columns themselves may.
        table = _read(path, spec).replace_schema_metadata(None)
        names = list(table.column_names)
    except (pa.ArrowException, OSError, ValueError) as error:
        kind = path.name.partition(".")[2]
        raise UnreadableFileError(f"it is no readable {kind} file: {str(error).splitlines()[0]}") from error
    if len(set(names)) < len(names):
        raise UnreadableFileError(f"column names must be unique. Got {names} instead.")
    return table


def _read(path: Path, spec: ModelSpec) -> "pa.Table":
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path, page_checksum_verification=True)
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


def unreadable(problem: str) -> Report:
    """Return the report on a file that could not be read."""
    import pyarrow as pa

    finding = Finding(None, "", "schema", problem, "")
    return Report(rows=0, valid=pa.table({}), findings=[finding], problem=problem)


def validate(rows: "pa.Table", spec: ModelSpec, newest: "pd.Series[Any] | None" = None) -> Report:
    """Hold a batch against the contract and against what a contract cannot say.

    Parameters
    ----------
    rows : pyarrow Table of shape (n_rows, n_columns)
        The batch as it was read.
    spec : ModelSpec
        Its table is the contract; its `quarantine_tolerance` decides when a batch is quarantined whole.
    newest : Series or None
        The newest published event time by entity: a row must be newer. ``None`` where nothing was published.

    Returns
    -------
    Report
    """
    import pyarrow as pa

    frame = rows.to_pandas()
    findings = _contract_findings(frame, spec)
    if all(finding.row is not None for finding in findings):
        findings += [*_infinite(frame), *_known(frame, spec, newest), *_in_the_future(frame, spec)]
    bad_rows = {finding.row for finding in findings if finding.row is not None}
    problem = _problem_of_the_batch(frame, spec, findings, len(bad_rows))
    keep = [problem is None and row not in bad_rows for row in range(rows.num_rows)]
    valid = rows.filter(pa.array(keep, pa.bool_()))
    return Report(rows=rows.num_rows, valid=valid, findings=findings, problem=problem)


def _contract_findings(frame: "pd.DataFrame", spec: ModelSpec) -> list[Finding]:
    from pandera.errors import SchemaErrors

    try:
        spec.table.validate(frame, lazy=True)
    except SchemaErrors as errors:
        return [_finding(case) for case in errors.failure_cases.to_dict("records")]
    return []


def _finding(case: dict[str, Any]) -> Finding:
    import pandas as pd

    rule, value = str(case["check"]), str(case["failure_case"])
    if case["schema_context"] == "Column" and not pd.isna(case["index"]) and not rule.startswith("dtype"):
        return Finding(int(case["index"]), str(case["column"]), "values", rule, value)
    column = str(case["column"]) if case["schema_context"] == "Column" else value
    sentences = {
        "column_in_schema": f"column {column!r} is not in the contract",
        "column_in_dataframe": f"column {column!r} is missing",
    }
    sentence = sentences.get(rule, f"column {column!r} must be {rule}. Got {value} instead.")
    return Finding(None, column, "schema", sentence, value)


def _infinite(frame: "pd.DataFrame") -> Iterator[Finding]:
    import numpy as np

    for column in frame.select_dtypes("float"):
        for row in np.flatnonzero(np.isinf(frame[column])):
            yield Finding(int(row), str(column), "values", "finite", str(frame[column].iloc[row]))


def _known(frame: "pd.DataFrame", spec: ModelSpec, newest: "pd.Series[Any] | None") -> Iterator[Finding]:
    import numpy as np

    twice = frame.duplicated([spec.entity, spec.event_time])
    for row in np.flatnonzero(twice):
        yield Finding(int(row), spec.entity, "keys", "one row a time", str(frame[spec.entity].iloc[row]))
    if newest is None:
        return
    published = frame[spec.entity].map(newest)
    for row in np.flatnonzero(~twice & (frame[spec.event_time] <= published)):
        yield Finding(int(row), spec.entity, "keys", "newer than published", str(frame[spec.entity].iloc[row]))


def _in_the_future(frame: "pd.DataFrame", spec: ModelSpec) -> Iterator[Finding]:
    import numpy as np
    import pandas as pd

    times = frame[spec.event_time]
    # NumPy can write a year that Python's datetime cannot.
    plain = times.dt.tz_localize(None).to_numpy()
    for row in np.flatnonzero(times > pd.Timestamp.now(times.dt.tz)):
        yield Finding(int(row), spec.event_time, "freshness", "not in the future", str(plain[row]))


def _problem_of_the_batch(frame: "pd.DataFrame", spec: ModelSpec, findings: list[Finding], bad_rows: int) -> str | None:
    structural = sorted({finding.rule for finding in findings if finding.row is None})
    if structural:
        return "; ".join(structural[:EXAMPLES])
    if frame.empty:
        return "it has no rows"
    share = bad_rows / len(frame)
    if share <= spec.quarantine_tolerance:
        return None
    worst, _ = Counter(f"{finding.column} {finding.rule}" for finding in findings).most_common(1)[0]
    return (
        f"{bad_rows} of {len(frame)} rows are bad ({share:.1%}, tolerance {spec.quarantine_tolerance:.1%}), "
        f"most often: {worst}"
    )
