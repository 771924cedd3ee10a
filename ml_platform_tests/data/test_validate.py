import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
import pyarrow.parquet
import pytest

from ml_platform.data import datasets
from ml_platform.data.ingest import publish_batches, store_raw_batches
from ml_platform.data.landing import land_files, waiting_arrivals
from ml_platform.data.validation import schema_scan
from ml_platform.data.validation import validate as validation_validate
from ml_platform.errors import StorageError, UnreadableFileError
from ml_platform.platform import Platform
from ml_platform.records.canonical import now
from ml_platform.records.data import BatchResult, Outcome
from ml_platform_tests.support import fakes

SPEC = fakes.visits_spec()
ROWS = fakes.visits(60)
TOLERATED = int(len(ROWS) * SPEC.quarantine_tolerance)
HEADER = ",".join(ROWS.columns)


def arrow(frame: pd.DataFrame) -> Any:
    return pa.Table.from_pandas(frame, preserve_index=False)


def as_csv(rows: pd.DataFrame = ROWS) -> str:
    return rows.to_csv(index=False)


def as_jsonl(rows: pd.DataFrame = ROWS) -> str:
    return rows.to_json(orient="records", lines=True, date_format="iso", double_precision=15)


def as_parquet(rows: pd.DataFrame = ROWS) -> bytes:
    file = io.BytesIO()
    pa.parquet.write_table(arrow(rows), file, write_page_checksum=True)
    return file.getvalue()


def with_cell(column: str, value: object, rows: int = 1) -> pd.DataFrame:
    """Return the visits with another value in the first rows of a column."""
    return ROWS.assign(**{column: ROWS[column].mask(np.arange(len(ROWS)) < rows, value)})


def validate(rows: pd.DataFrame) -> validation_validate.Report:
    return validation_validate.validate(arrow(rows), SPEC)


def write_file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# Reading


def test_read_parquet_is_unchanged(tmp_path: Path) -> None:
    table = validation_validate.read_rows(write_file(tmp_path, "a.parquet", as_parquet()), SPEC)

    assert table.equals(arrow(ROWS))


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl"])
def test_read_text_formats_have_equal_values(tmp_path: Path, name: str) -> None:
    writers: dict[str, Callable[[], bytes]] = {
        "a.csv": as_csv().encode,
        "a.csv.gz": lambda: gzip.compress(as_csv().encode()),
        "a.jsonl": as_jsonl().encode,
    }

    table = validation_validate.read_rows(write_file(tmp_path, name, writers[name]()), SPEC)

    pd.testing.assert_frame_equal(table.to_pandas(), ROWS)


@pytest.mark.fault("D9")
def test_read_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    plain, marked = (
        validation_validate.read_rows(write_file(tmp_path, f"{codec}.csv", as_csv().encode(codec)), SPEC)
        for codec in ("utf-8", "utf-8-sig")
    )

    assert marked.equals(plain)


def test_read_only_empty_field_is_missing(tmp_path: Path) -> None:
    table = validation_validate.read_rows(write_file(tmp_path, "a.csv", b'plan\nNA\nnull\nNaN\n""\nfree\n'), SPEC)

    assert table["plan"].to_pylist()[:3] == ["NA", "null", "NaN"]


@pytest.mark.fault("D4")
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz", ".jsonl"])
def test_read_empty_file_is_unreadable(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UnreadableFileError, match="it is no readable"):
        validation_validate.read_rows(write_file(tmp_path, f"a{suffix}", b""), SPEC)


@pytest.mark.fault("D4")
@pytest.mark.parametrize(
    ("name", "data"),
    [("a.csv", f"{HEADER}\n".encode()), ("a.parquet", as_parquet(ROWS.head(0)))],
    ids=["csv", "parquet"],
)
def test_validate_header_without_rows_is_quarantined(tmp_path: Path, name: str, data: bytes) -> None:
    report = validation_validate.validate(validation_validate.read_rows(write_file(tmp_path, name, data), SPEC), SPEC)

    assert (report.problem, report.rows, report.valid.num_rows) == ("it has no rows", 0, 0)


@pytest.mark.fault("D9")
def test_read_latin_1_header_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="line 1 is not UTF-8 text: invalid"):
        validation_validate.read_rows(write_file(tmp_path, "a.csv", "pagés\n1\n".encode("latin-1")), SPEC)


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"index_columns": ["pages"], "columns": []}'])
def test_read_parquet_pandas_metadata_is_ignored(tmp_path: Path, metadata: bytes) -> None:
    table = arrow(ROWS).replace_schema_metadata({b"pandas": metadata})
    pa.parquet.write_table(table, tmp_path / "a.parquet")

    report = validation_validate.validate(validation_validate.read_rows(tmp_path / "a.parquet", SPEC), SPEC)

    assert report.problem is None
    assert report.valid.equals(arrow(ROWS))


class Coded(fakes.Visits):
    """Visits whose plan is a code of digits."""

    plan: str = pandera.Field(str_matches=r"^\d{3}$")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_read_text_of_digits_keeps_zeros(tmp_path: Path, name: str) -> None:
    coded = ROWS.assign(plan="007")
    data = as_csv(coded) if name == "a.csv" else as_jsonl(coded)
    spec = fakes.visits_spec(contract=Coded)

    report = validation_validate.validate(
        validation_validate.read_rows(write_file(tmp_path, name, data.encode()), spec), spec
    )

    assert report.problem is None
    pd.testing.assert_frame_equal(report.valid.to_pandas(), coded)


@pytest.mark.fault("D8")
@pytest.mark.fault("D20")
@pytest.mark.parametrize(
    ("column", "value"), [("pages", 1.9), ("pages", "7"), ("pages", True), ("plan", 7), ("seen_at", "yesterday")]
)
def test_json_other_type_is_one_bad_row(tmp_path: Path, column: str, value: object) -> None:
    other = {**json.loads(as_jsonl(ROWS.tail(1))), column: value}
    path = write_file(tmp_path, "a.jsonl", f"{as_jsonl(ROWS.head(59))}{json.dumps(other)}\n".encode())

    report = validation_validate.validate_file(path, SPEC)

    assert report.problem is None
    (violation,) = report.violations
    assert (violation.row, violation.column) == (59, column)
    assert violation.value == repr(json.dumps(value).strip('"'))
    pd.testing.assert_frame_equal(report.valid.to_pandas(), ROWS.head(59))


@pytest.mark.fault("D8")
@pytest.mark.fault("D20")
@pytest.mark.parametrize(
    ("column", "value"), [("pages", "1.9"), ("pages", "seven"), ("seconds", " "), ("seen_at", "2024-01-01 00:00:00")]
)
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv_other_type_is_one_bad_row(tmp_path: Path, name: str, column: str, value: str) -> None:
    data = text_with(column, value).encode()
    path = write_file(tmp_path, name, gzip.compress(data) if name.endswith(".gz") else data)

    report = validation_validate.validate_file(path, SPEC)

    assert report.problem is None
    (violation,) = report.violations
    assert (violation.row, violation.column, violation.value) == (0, column, repr(value))
    pd.testing.assert_frame_equal(report.valid.to_pandas(), ROWS.tail(-1).reset_index(drop=True))


@pytest.mark.fault("D5")
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_read_truncated_parquet_is_unreadable(tmp_path: Path, share: float) -> None:
    data = as_parquet()

    with pytest.raises(UnreadableFileError, match=r"it is no readable parquet file"):
        validation_validate.read_rows(write_file(tmp_path, "a.parquet", data[: int(len(data) * share)]), SPEC)


@pytest.mark.fault("D5")
@pytest.mark.parametrize("column", [0, 2, 3])
def test_read_parquet_flipped_bit_fails_checksum(tmp_path: Path, column: int) -> None:
    data = bytearray(as_parquet())
    place = pa.parquet.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(column)
    data[place.data_page_offset + place.total_compressed_size // 2] ^= 1

    with pytest.raises(UnreadableFileError, match=r"it is no readable parquet file"):
        validation_validate.read_rows(write_file(tmp_path, "a.parquet", bytes(data)), SPEC)
    report = validation_validate.validate_file(tmp_path / "a.parquet", SPEC)
    assert report.problem is not None
    assert report.problem.startswith("it is no readable parquet file")


@pytest.mark.fault("D5")
def test_read_truncated_gzip_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match=r"it is no readable csv\.gz file"):
        validation_validate.read_rows(write_file(tmp_path, "a.csv.gz", gzip.compress(as_csv().encode())[:-50]), SPEC)


@pytest.mark.fault("D14")
@pytest.mark.fault("D20")
@pytest.mark.parametrize("line", ["1,2,3", "1," * 50 + "1", "1,2,3,4,5,6,7"])
@pytest.mark.parametrize("place", [1, 30, 61])
def test_csv_row_of_other_length_is_bad(tmp_path: Path, line: str, place: int) -> None:
    lines = as_csv().splitlines()
    lines.insert(place, line)

    report = validation_validate.validate_file(write_file(tmp_path, "a.csv", "\n".join(lines).encode()), SPEC)

    assert (report.problem, report.rows) == (None, 61)
    fields = line.count(",") + 1
    assert report.examples == {"schema": [f"row {place - 1}: the number of fields must be 6: got {fields}"]}
    pd.testing.assert_frame_equal(report.valid.to_pandas(), ROWS)


@pytest.mark.fault("D12")
def test_read_duplicate_column_name_is_unreadable(tmp_path: Path) -> None:
    twice = arrow(ROWS).append_column("pages", arrow(ROWS)["pages"])
    pa.parquet.write_table(twice, tmp_path / "a.parquet")
    csv = "\n".join(f"{line},{line.split(',')[2]}" for line in as_csv().splitlines())

    for path in (tmp_path / "a.parquet", write_file(tmp_path, "a.csv", csv.encode())):
        with pytest.raises(UnreadableFileError, match="pages"):
            validation_validate.read_rows(path, SPEC)


# Rows


def test_validate_good_rows_are_valid() -> None:
    report = validate(ROWS)

    assert (report.rows, report.quarantined_rows, report.violations, report.problem) == (len(ROWS), 0, [], None)
    assert report.valid.equals(arrow(ROWS))


@pytest.mark.parametrize(
    ("column", "value", "check", "rule"),
    [
        ("pages", -1, "values", "greater_than_or_equal_to(0)"),
        ("plan", "gratis", "values", "isin(['free', 'paid'])"),
        pytest.param("seconds", np.nan, "values", "not_nullable", marks=pytest.mark.fault("D10")),
        pytest.param("seconds", np.inf, "values", "finite", marks=pytest.mark.fault("D10")),
        ("plan", None, "values", "not_nullable"),
        pytest.param(
            "seen_at",
            pd.Timestamp("2200-01-01", tz="UTC"),
            "freshness",
            "not in the future",
            marks=pytest.mark.fault("D13"),
        ),
    ],
)
def test_validate_bad_row_has_violation(column: str, value: object, check: str, rule: str) -> None:
    rows = with_cell(column, value)

    report = validate(rows)

    assert report.problem is None
    assert report.rules == {check: {rule: 1}}
    assert report.violations[0].row == 0
    assert report.valid.equals(arrow(rows.drop(index=0)))


class NamedVisits(fakes.Visits):
    """Visits whose visitors have names."""

    visitor: str  # type: ignore[assignment]


def test_validate_empty_name_of_entity_is_bad() -> None:
    rows = ROWS.assign(visitor=["", " ", *map("v{}".format, ROWS["visitor"][2:])])

    report = validation_validate.validate(arrow(rows), fakes.visits_spec(contract=NamedVisits))

    assert report.problem is None
    assert report.rules == {"values": {"not an empty text": 1}}
    assert str(report.violations[0]).startswith("row 0: visitor must not be an empty text")


@pytest.mark.fault("D13")
def test_validate_year_beyond_python_is_future() -> None:
    microseconds = [2_777_000_000_000_000_000, *arrow(ROWS)["seen_at"].cast(pa.int64()).to_pylist()[1:]]
    position = ROWS.columns.get_loc("seen_at")
    rows = arrow(ROWS).set_column(position, "seen_at", pa.array(microseconds, pa.timestamp("us", "UTC")))

    report = validation_validate.validate(rows, SPEC)

    assert report.problem is None
    assert report.rules == {"freshness": {"not in the future": 1}}
    assert report.violations[0].value.startswith("89969-")
    assert report.valid.equals(arrow(ROWS.tail(-1)))


@pytest.mark.fault("D12")
def test_validate_repeated_entity_and_time_is_bad() -> None:
    last = ROWS.tail(1)
    report = validate(pd.concat([ROWS, last.assign(pages=last["pages"] + 1)], ignore_index=True))

    assert report.rules == {"keys": {"one row a time": 1}}
    assert report.violations[0].row == len(ROWS)
    assert report.valid.equals(arrow(ROWS))


def test_violation_text_has_row_column_rule_value() -> None:
    assert validate(with_cell("pages", -7)).examples == {"values": ["row 0: pages must be at least 0: got -7"]}


def test_report_has_at_most_five_examples() -> None:
    report = validate(with_cell("pages", -7, rows=20))

    assert len(report.violations) == 20
    assert report.examples == {"values": [str(violation) for violation in report.violations[:5]]}


def test_validate_two_broken_rules_count_one_row() -> None:
    report = validate(with_cell("pages", -7).assign(plan=with_cell("plan", "gratis")["plan"]))

    assert len(report.violations) == 2
    assert report.quarantined_rows == 1


def test_validate_entity_at_other_time_is_valid() -> None:
    later = ROWS.assign(seen_at=ROWS["seen_at"] + pd.Timedelta(days=1))

    assert validate(pd.concat([ROWS, later])).violations == []


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_validate_empty_integer_is_one_bad_row(tmp_path: Path, name: str) -> None:
    position = ROWS.columns.get_loc("pages")
    pages = pa.array([None, *ROWS["pages"].tolist()[1:]], pa.int64())
    rows = arrow(ROWS).set_column(position, "pages", pages)
    path = tmp_path / name
    if name == "a.parquet":
        pa.parquet.write_table(rows, path)
    else:
        emptied = rows.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        path.write_text(as_csv(emptied) if name == "a.csv" else as_jsonl(emptied))

    report = validation_validate.validate_file(path, SPEC)

    assert report.problem is None
    assert report.rules == {"values": {"not_nullable": 1}}
    assert report.examples == {"values": ["row 0: pages must not be empty: got None"]}
    assert report.valid["visitor"].to_pylist() == ROWS["visitor"].tolist()[1:]


class Checked(fakes.Visits):
    """Visits with checks that only pandera can run, on a column, on rows and on the batch."""

    visitor: int = pandera.Field(ge=1, unique=True)

    @pandera.check("pages")
    def even(cls, pages: "pd.Series[int]") -> Any:  # noqa: N805
        return pages % 2 == 0

    @pandera.dataframe_check
    def quick(cls, frame: pd.DataFrame) -> Any:  # type: ignore[misc]  # noqa: N805
        return frame["seconds"] <= frame["pages"] * 10.0 + 100.0

    @pandera.check("seconds")
    def busy(cls, seconds: "pd.Series[float]") -> bool:  # noqa: N805
        return bool(seconds.mean() > 1)


CHECKED = fakes.visits_spec(contract=Checked, quarantine_tolerance=0.2)


@pytest.mark.parametrize("at_once", [7, 250_000])
def test_validate_python_check_names_rows(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(schema_scan, "ROWS_AT_ONCE", at_once)
    rows = ROWS.assign(pages=ROWS["pages"] // 2 * 2, visitor=[2, *range(2, 61)])
    rows.loc[9, "pages"], rows.loc[11, "seconds"] = 7, 5_000.0

    report = validation_validate.validate(arrow(rows), CHECKED)

    assert {(violation.row, violation.rule) for violation in report.violations} == {
        (9, "even"), (11, "quick"), (0, "field_uniqueness"), (1, "field_uniqueness")
    }  # fmt: skip
    assert report.valid.equals(arrow(rows.drop(index=[0, 1, 9, 11])))


@pytest.mark.parametrize("at_once", [7, 250_000])
def test_validate_batch_check_gets_whole_batch(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(schema_scan, "ROWS_AT_ONCE", at_once)
    rows = ROWS.assign(pages=0, seconds=[0.0] * 40 + [60.0] * 20)

    assert validation_validate.validate(arrow(rows), CHECKED).problem is None
    report = validation_validate.validate(arrow(rows.assign(seconds=0.5)), CHECKED)

    assert report.problem == "the rows together break seconds busy"
    assert report.valid.num_rows == 0


def test_validate_named_rows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation_validate, "FINDINGS", 10)

    report = validate(with_cell("pages", -7, rows=50))

    assert report.rules == {"values": {"greater_than_or_equal_to(0)": 50}}
    assert [violation.row for violation in report.violations] == [*range(10), None]
    assert str(report.violations[-1]) == "40 more rows: pages must be at least 0"


def test_validate_named_rows_follow_the_option(tmp_path: Path) -> None:
    for name, data in {
        "a.parquet": as_parquet(with_cell("pages", -7, rows=3)),
        "a.csv": as_csv(with_cell("pages", -7, rows=3)).encode(),
    }.items():
        report = validation_validate.validate_file(write_file(tmp_path, name, data), SPEC, named=2)

        assert [violation.row for violation in report.violations] == [0, 1, None]


class Keyed(fakes.Visits):
    """Visits whose author declares the platform's own key rule, with another column order."""

    class Config:
        strict = True
        unique = ["seen_at", "visitor"]  # noqa: RUF012


@pytest.mark.parametrize("name", ["KEYS_AT_ONCE", "TWINS_AT_ONCE", "ROWS_AT_ONCE"])
@pytest.mark.parametrize("at_once", [2, 10, 2**24])
def test_validate_repeated_keys_in_any_pass_size(monkeypatch: pytest.MonkeyPatch, name: str, at_once: int) -> None:
    monkeypatch.setattr(schema_scan, name, at_once)
    rows = pd.concat([ROWS, ROWS.head(7), ROWS.head(3)], ignore_index=True)
    rows.loc[60, "pages"] = 1_000

    report = validation_validate.validate(arrow(rows), fakes.visits_spec(contract=Keyed))
    unkeyed = validate(rows)

    named: dict[str, list[int | None]] = {}
    for violation in report.violations:
        named.setdefault(violation.rule, []).append(violation.row)
    assert {rule: sorted(filter(None, rows)) for rule, rows in named.items()} == {
        "multiple_fields_uniqueness": [*range(1, 7), *range(60, 70)],
    }
    assert report.bad is not None
    assert report.bad[0]
    assert unkeyed.bad is not None
    assert unkeyed.passed is not None
    assert (unkeyed.bad.nonzero()[0].tolist(), unkeyed.passed.nonzero()[0].tolist()) == ([60], [*range(61, 70)])


class Counted(pandera.DataFrameModel):
    """Visits without fractions: minimum and maximum of each column would decide every rule."""

    visitor: int = pandera.Field(ge=1)
    seen_at: Annotated[pd.DatetimeTZDtype, "us", "UTC"]
    pages: int = pandera.Field(ge=0)
    bought: str

    class Config:
        strict = True


@pytest.mark.fault("D5")
def test_validate_parquet_statistics_are_ignored(tmp_path: Path) -> None:
    data = as_parquet(with_cell("pages", -7).drop(columns=["seconds", "plan"]))
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    minimum = (-7).to_bytes(8, "little", signed=True)
    assert minimum in data[footer:]
    path = write_file(tmp_path, "a.parquet", data[:footer] + data[footer:].replace(minimum, bytes(8)))

    report = validation_validate.validate_file(path, fakes.visits_spec(contract=Counted))

    assert report.rules == {"values": {"greater_than_or_equal_to(0)": 1}}


# Batches


@pytest.mark.parametrize(("bad", "whole"), [(TOLERATED, False), (TOLERATED + 1, True)])
def test_validate_above_tolerance_quarantines_whole_batch(bad: int, whole: bool) -> None:
    report = validate(with_cell("pages", -1, rows=bad))

    assert (report.problem is not None) == whole
    assert report.quarantined_rows == (len(ROWS) if whole else bad)
    assert len(report.violations) == bad


def test_validate_reason_has_count_and_worst_rule() -> None:
    report = validate(with_cell("pages", -1, rows=30).assign(plan=with_cell("plan", "gratis")["plan"]))

    assert report.problem == ("30 of 60 rows are bad (50.0%, tolerance 5.0%), most often: pages must be at least 0")


@pytest.mark.fault("D7")
@pytest.mark.parametrize("column", list(ROWS.columns))
def test_validate_missing_column_quarantines_batch(column: str) -> None:
    report = validate(ROWS.drop(columns=column))

    assert report.problem == f"column '{column}' is missing"
    assert report.valid.num_rows == 0


@pytest.mark.fault("D7")
def test_validate_extra_column_quarantines_batch() -> None:
    report = validate(ROWS.assign(extra=1))

    assert report.problem == "column 'extra' is not in the contract"
    assert report.valid.num_rows == 0


@pytest.mark.fault("D8")
@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        ("visitor", "float64"),
        ("visitor", "str"),
        ("visitor", "int32"),
        ("visitor", "uint64"),
        ("seconds", "int64"),
        ("seconds", "float32"),
        ("plan", "category"),
        ("seen_at", "datetime64[ns, UTC]"),
        ("seen_at", "datetime64[us, Europe/Rome]"),
        ("seen_at", "str"),
    ],
)
def test_validate_column_type_is_not_coerced(column: str, dtype: Any) -> None:
    frame = ROWS.astype({column: dtype})

    report = validate(frame)

    assert report.problem is not None
    sentence, _, advice = report.problem.partition(" In pandas: ")
    assert re.fullmatch(rf"column '{column}' must be [a-z0-9]+(\[us, UTC\])?\. Got .+ instead\.", sentence)
    assert report.valid.num_rows == 0
    assert validate(frame.assign(**{column: eval(advice)})).problem is None  # noqa: S307 - our own advice


def test_validate_times_without_zone_name_their_conversion() -> None:
    frame = ROWS.assign(seen_at=ROWS["seen_at"].dt.tz_localize(None))

    problem = validate(frame).problem

    assert problem is not None
    advice = problem.partition(" In pandas: ")[2].removesuffix(", if it is in UTC")
    assert validate(frame.assign(seen_at=eval(advice))).problem is None  # noqa: S307 - our own advice


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "__index_level_1__"])
def test_validate_index_column_names_its_cause(name: str) -> None:
    problem = validate(ROWS.assign(**{name: 1})).problem

    assert problem == (
        f"column '{name}' is not in the contract (an index that pandas wrote, or a comma at the end of lines: write "
        "with index=False)"
    )


def test_violations_table_has_one_row_each() -> None:
    violations = [
        validation_validate.Violation(3, "pages", "values", "finite", "inf"),
        *validation_validate.unreadable("it is cut").violations,
    ]

    table = validation_validate.make_violations_table(violations)

    assert [validation_validate.Violation(**line) for line in table.to_pylist()] == violations
    assert table.column_names == list(validation_validate.Violation._fields)


def test_violations_table_without_violations_is_empty() -> None:
    some = validation_validate.make_violations_table(
        [validation_validate.Violation(None, "", "schema", "it is cut", "")]
    )

    assert validation_validate.make_violations_table([]).schema == some.schema
    assert validation_validate.make_violations_table([]).num_rows == 0


# Ingestion of bad files: quarantined once with the reason, nothing published; the next good file is published.


def with_decimals() -> pd.DataFrame:
    """Return the visits with an integer of 30 digits, as a decimal: Parquet has no other type for it."""
    digits = pd.Series([10**29, *ROWS["visitor"][1:]], dtype=pd.ArrowDtype(pa.decimal128(38, 0)))
    return ROWS.assign(visitor=digits)


def ingest(platform: Platform) -> list[BatchResult]:
    keys = [arrival.key for arrival in waiting_arrivals(platform, "visits")]
    store_raw_batches(platform, "visits", keys)
    return publish_batches(platform, SPEC, keys)


def text_with(column: str, value: str, rows: int = 1) -> str:
    """Return the visits as CSV with another text in the first rows of a column."""
    texts = [*[value] * rows, *ROWS[column].astype(str)[rows:]]
    return as_csv(ROWS.astype({column: "object"}).assign(**{column: texts}))


FAULTS: dict[str, tuple[str, str, Callable[[], bytes], str]] = {
    "empty csv": ("D4", "a.csv", lambda: b"", "no readable csv file"),
    "header csv": ("D4", "a.csv", f"{HEADER}\n".encode, "it has no rows"),
    "header parquet": ("D4", "a.parquet", lambda: as_parquet(ROWS.head(0)), "it has no rows"),
    "empty parquet": ("D4", "a.parquet", lambda: b"", "no readable parquet file"),
    "cut": ("D5", "a.parquet", lambda: as_parquet()[:-100], "no readable parquet file"),
    "missing": ("D7", "a.parquet", lambda: as_parquet(ROWS.drop(columns="pages")), "column 'pages' is missing"),
    "extra": ("D7", "a.parquet", lambda: as_parquet(ROWS.assign(more=1)), "column 'more' is not in the contract"),
    "integer as float": ("D8", "a.parquet", lambda: as_parquet(ROWS.astype({"pages": float})), "Got float64"),
    "integer as text": ("D8", "a.parquet", lambda: as_parquet(ROWS.astype({"pages": str})), "Got str"),
    "fraction": ("D8", "a.csv", lambda: text_with("pages", "1.9", 4).encode(), "most often: pages must be an integer"),
    "utf-16": ("D9", "a.csv", lambda: as_csv().encode("utf-16"), "line 1 is not UTF-8 text"),
    "latin-1": ("D9", "a.csv", lambda: text_with("plan", "frée").encode("latin-1"), "line 2 is not UTF-8 text"),
    "latin-1 header": ("D9", "a.csv", f"{HEADER},pagés\n".encode("latin-1").strip, "line 1 is not UTF-8 text"),
    "nan": ("D10", "a.parquet", lambda: as_parquet(with_cell("seconds", np.nan, 30)), "seconds must not be empty"),
    "inf": ("D10", "a.parquet", lambda: as_parquet(with_cell("seconds", np.inf, 30)), "seconds must be finite"),
    "2^63": ("D11", "a.csv", lambda: text_with("visitor", str(2**63), 4).encode(), "must be an integer of 64 bits"),
    "30 digits": ("D11", "a.csv", lambda: text_with("visitor", "9" * 30, 4).encode(), "must be an integer of 64 bits"),
    "json": (
        "D11",
        "a.jsonl",
        lambda: re.sub(r"(?<=\"visitor\":)[1-4],", f"{2**63},", as_jsonl()).encode(),
        "must be an integer",
    ),
    "30 digits json": (
        "D11",
        "a.jsonl",
        lambda: re.sub(r'(?<="visitor":)[1-4],', f"{'9' * 30},", as_jsonl()).encode(),
        "must be an integer of 64 bits",
    ),
    "30 digits decimal": (
        "D11",
        "a.parquet",
        lambda: as_parquet(with_decimals()),
        "must be int64. Got object",
    ),
    "unsigned": ("D11", "a.parquet", lambda: as_parquet(ROWS.astype({"visitor": "uint64"})), "Got uint64"),
    "doubled ids": (
        "D12",
        "a.parquet",
        lambda: as_parquet(pd.concat([ROWS, ROWS.assign(seconds=0.5)])),
        "visitor must come once at a time",
    ),
    "doubled name": ("D12", "a.csv", f"{HEADER},plan\n1,,2,3,free,no,free\n".encode, "must be unique"),
    "ragged": ("D14", "a.csv", (as_csv() + "1,2\n" * 4).encode, "the number of fields must be 6"),
    "wide": ("D14", "a.csv", (as_csv() + f"{'1,' * 500}\n" * 4).encode, "the number of fields must be 6"),
}
AS_PARAMETERS = [pytest.param(*case[1:], id=name, marks=pytest.mark.fault(case[0])) for name, case in FAULTS.items()]


@pytest.mark.parametrize(("name", "make", "reason"), AS_PARAMETERS)
def test_ingest_bad_file_quarantined_next_file_published(
    platform: Platform, name: str, make: Callable[[], bytes], reason: str
) -> None:
    land_files(platform, "visits", {name: make()})

    (bad,) = ingest(platform)

    assert bad.outcome is Outcome.QUARANTINED
    assert reason in bad.reason
    assert not platform.rows("visits").exists()
    assert ingest(platform) == []
    fakes.drop(platform, "good.parquet", fakes.visits(60))
    (good,) = ingest(platform)
    assert (good.outcome, good.rows, good.quarantined_rows) == (Outcome.PUBLISHED, 60, 0)
    assert datasets.pin(platform.rows("visits"), SPEC)[0].rows == 60


@pytest.mark.fault("D9")
@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(("name", "write"), [("a.csv", as_csv), ("a.jsonl", as_jsonl)], ids=["csv", "jsonl"])
def test_ingest_byte_order_mark_is_optional(
    platform: Platform, name: str, write: Callable[[], str], codec: str
) -> None:
    land_files(platform, "visits", {name: write().encode(codec)})

    (result,) = ingest(platform)

    assert (result.outcome, result.rows, result.quarantined_rows) == (Outcome.PUBLISHED, len(ROWS), 0)
    pd.testing.assert_frame_equal(datasets.pin(platform.rows("visits"), SPEC)[1], ROWS)


@pytest.mark.fault("D11")
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_ingest_largest_integer_keeps_all_digits(platform: Platform, name: str) -> None:
    largest = 2**63 - 1
    rows = ROWS.assign(visitor=[largest, *ROWS["visitor"][1:]])
    data = {".csv": as_csv(rows).encode(), ".jsonl": as_jsonl(rows).encode(), ".parquet": as_parquet(rows)}
    land_files(platform, "visits", {name: data[Path(name).suffix]})

    (result,) = ingest(platform)

    assert (result.outcome, result.rows, result.quarantined_rows) == (Outcome.PUBLISHED, len(ROWS), 0)
    assert largest in set(datasets.pin(platform.rows("visits"), SPEC)[1]["visitor"])


@pytest.mark.fault("D2")
def test_ingest_equal_bytes_are_published_once(platform: Platform) -> None:
    for name in ("a.parquet", "b.parquet"):
        fakes.drop(platform, name, ROWS)

    outcomes = [result.outcome for result in ingest(platform)]

    assert sorted(outcomes) == [Outcome.DUPLICATE, Outcome.PUBLISHED]
    assert datasets.pin(platform.rows("visits"), SPEC)[0].rows == len(ROWS)


@pytest.mark.fault("D3")
def test_ingest_new_bytes_same_name_are_published(platform: Platform) -> None:
    for first in (1, 61):
        fakes.drop(platform, "a.parquet", fakes.visits(60, first=first))
        (result,) = ingest(platform)
        assert result.outcome is Outcome.PUBLISHED

    assert datasets.pin(platform.rows("visits"), SPEC)[0].rows == 120


@pytest.mark.fault("D10")
def test_ingest_tolerated_bad_rows_others_are_published(platform: Platform) -> None:
    fakes.drop(platform, "a.parquet", with_cell("seconds", np.inf, rows=TOLERATED))

    (result,) = ingest(platform)

    assert (result.outcome, result.quarantined_rows) == (Outcome.PUBLISHED, TOLERATED)
    dataset, rows = datasets.pin(platform.rows("visits"), SPEC)
    assert dataset.rows == len(ROWS) - TOLERATED
    assert np.isfinite(rows["seconds"]).all()


def test_validate_rows_of_this_moment_are_valid() -> None:
    moment = pd.Timestamp(now()).as_unit("us")

    assert validate(with_cell("seen_at", moment)).violations == []


@pytest.mark.fault("S3")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_validate_broken_disk_is_no_unreadable_file(tmp_path: Path, suffix: str) -> None:
    # Linux answers EIO to a process that reads its own memory at an address without memory.
    file = tmp_path / f"a{suffix}"
    file.symlink_to("/proc/self/mem")

    with pytest.raises(StorageError, match=f"{file} could not be read: Input/output error"):
        validation_validate.validate_file(file, fakes.visits_spec())
