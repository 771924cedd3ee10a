import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
import pyarrow.parquet
import pytest

from ml_platform import scans, workflows
from ml_platform.errors import UnreadableFileError
from ml_platform.records import BatchResult, Outcome, now
from ml_platform.stages import datasets, validation
from ml_platform.workflows import Platform
from ml_platform_tests import fakes

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
    """Return the visits with a value in the first rows of a column."""
    return ROWS.assign(**{column: ROWS[column].mask(np.arange(len(ROWS)) < rows, value)})


def validate(rows: pd.DataFrame, newest: "pd.Series[Any] | None" = None) -> validation.Report:
    return validation.validate(arrow(rows), SPEC, newest)


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# Reading


def test_a_parquet_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = validation.read_rows(written(tmp_path, "a.parquet", as_parquet()), SPEC)

    assert table.equals(arrow(ROWS))


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl"])
def test_the_text_formats_hold_the_same_values(tmp_path: Path, name: str) -> None:
    writers: dict[str, Callable[[], bytes]] = {
        "a.csv": as_csv().encode,
        "a.csv.gz": lambda: gzip.compress(as_csv().encode()),
        "a.jsonl": as_jsonl().encode,
    }

    table = validation.read_rows(written(tmp_path, name, writers[name]()), SPEC)

    pd.testing.assert_frame_equal(table.to_pandas(), ROWS)


@pytest.mark.fault("D9")
def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    plain, marked = (
        validation.read_rows(written(tmp_path, f"{codec}.csv", as_csv().encode(codec)), SPEC)
        for codec in ("utf-8", "utf-8-sig")
    )

    assert marked.equals(plain)


def test_only_an_empty_field_is_missing(tmp_path: Path) -> None:
    table = validation.read_rows(written(tmp_path, "a.csv", b'plan\nNA\nnull\nNaN\n""\nfree\n'), SPEC)

    assert table["plan"].to_pylist()[:3] == ["NA", "null", "NaN"]


@pytest.mark.fault("D4")
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz", ".jsonl"])
def test_an_empty_file_is_unreadable(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UnreadableFileError, match="it is no readable"):
        validation.read_rows(written(tmp_path, f"a{suffix}", b""), SPEC)


@pytest.mark.fault("D4")
@pytest.mark.parametrize(
    ("name", "data"),
    [("a.csv", f"{HEADER}\n".encode()), ("a.parquet", as_parquet(ROWS.head(0)))],
    ids=["csv", "parquet"],
)
def test_a_header_without_rows_is_a_batch_without_rows(tmp_path: Path, name: str, data: bytes) -> None:
    report = validation.validate(validation.read_rows(written(tmp_path, name, data), SPEC), SPEC)

    assert (report.problem, report.rows, report.valid.num_rows) == ("it has no rows", 0, 0)


@pytest.mark.fault("D9")
def test_a_header_in_latin_1_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="it is no readable csv file: 'utf-8' codec can't decode"):
        validation.read_rows(written(tmp_path, "a.csv", "pagés\n1\n".encode("latin-1")), SPEC)


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"index_columns": ["pages"], "columns": []}'])
def test_what_a_parquet_file_tells_pandas_does_not_matter(tmp_path: Path, metadata: bytes) -> None:
    told = arrow(ROWS).replace_schema_metadata({b"pandas": metadata})
    pa.parquet.write_table(told, tmp_path / "a.parquet")

    report = validation.validate(validation.read_rows(tmp_path / "a.parquet", SPEC), SPEC)

    assert report.problem is None
    assert report.valid.equals(arrow(ROWS))


class Coded(fakes.Visits):
    """Visits whose plan is a code of digits."""

    plan: str = pandera.Field(str_matches=r"^\d{3}$")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_text_of_digits_stays_text_and_keeps_its_zeros(tmp_path: Path, name: str) -> None:
    coded = ROWS.assign(plan="007")
    data = as_csv(coded) if name == "a.csv" else as_jsonl(coded)
    spec = fakes.visits_spec(table=Coded)

    report = validation.validate(validation.read_rows(written(tmp_path, name, data.encode()), spec), spec)

    assert report.problem is None
    pd.testing.assert_frame_equal(report.valid.to_pandas(), coded)


@pytest.mark.fault("D8")
@pytest.mark.parametrize(
    ("column", "value"), [("pages", 1.9), ("pages", "7"), ("pages", "1e3"), ("plan", 7), ("seen_at", "yesterday")]
)
def test_a_json_value_of_another_type_makes_the_file_unreadable(tmp_path: Path, column: str, value: object) -> None:
    other = {**json.loads(as_jsonl(ROWS.tail(1))), column: value}

    with pytest.raises(UnreadableFileError, match="it is no readable jsonl file"):
        validation.read_rows(written(tmp_path, "a.jsonl", f"{as_jsonl()}{json.dumps(other)}\n".encode()), SPEC)


@pytest.mark.fault("D8")
@pytest.mark.parametrize(
    ("column", "value"), [("pages", "1.9"), ("pages", "seven"), ("seen_at", "2024-01-01 00:00:00")]
)
def test_a_csv_field_of_another_type_makes_the_file_unreadable(tmp_path: Path, column: str, value: str) -> None:
    with pytest.raises(UnreadableFileError, match="it is no readable csv file: In CSV column"):
        validation.read_rows(written(tmp_path, "a.csv", text_with(column, value).encode()), SPEC)


@pytest.mark.fault("D5")
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_cut_parquet_file_is_unreadable(tmp_path: Path, share: float) -> None:
    data = as_parquet()

    with pytest.raises(UnreadableFileError, match=r"it is no readable parquet file"):
        validation.read_rows(written(tmp_path, "a.parquet", data[: int(len(data) * share)]), SPEC)


@pytest.mark.fault("D5")
@pytest.mark.parametrize("column", [0, 2, 3])
def test_a_bit_flipped_in_a_page_is_noticed_by_its_checksum(tmp_path: Path, column: int) -> None:
    data = bytearray(as_parquet())
    place = pa.parquet.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(column)
    data[place.data_page_offset + place.total_compressed_size // 2] ^= 1

    with pytest.raises(UnreadableFileError, match=r"it is no readable parquet file"):
        validation.read_rows(written(tmp_path, "a.parquet", bytes(data)), SPEC)
    report = validation.validate_file(tmp_path / "a.parquet", SPEC)
    assert report.problem is not None
    assert report.problem.startswith("it is no readable parquet file")


@pytest.mark.fault("D5")
def test_a_cut_gzip_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match=r"it is no readable csv\.gz file"):
        validation.read_rows(written(tmp_path, "a.csv.gz", gzip.compress(as_csv().encode())[:-50]), SPEC)


@pytest.mark.fault("D14")
@pytest.mark.parametrize("line", ["1,2,3", "1," * 50 + "1", "1,2,3,4,5,6,7"])
def test_a_row_that_is_longer_or_shorter_than_the_header_makes_the_file_unreadable(tmp_path: Path, line: str) -> None:
    with pytest.raises(UnreadableFileError, match="Expected 6 columns"):
        validation.read_rows(written(tmp_path, "a.csv", f"{as_csv()}{line}\n".encode()), SPEC)


@pytest.mark.fault("D12")
def test_a_column_name_that_comes_twice_is_unreadable(tmp_path: Path) -> None:
    twice = arrow(ROWS).append_column("pages", arrow(ROWS)["pages"])
    pa.parquet.write_table(twice, tmp_path / "a.parquet")
    csv = "\n".join(f"{line},{line.split(',')[2]}" for line in as_csv().splitlines())

    for path in (tmp_path / "a.parquet", written(tmp_path, "a.csv", csv.encode())):
        with pytest.raises(UnreadableFileError, match="pages"):
            validation.read_rows(path, SPEC)


# Rows


def test_good_rows_are_all_valid() -> None:
    report = validate(ROWS)

    assert (report.rows, report.quarantined_rows, report.findings, report.problem) == (len(ROWS), 0, [], None)
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
def test_a_bad_row_is_quarantined_with_its_reason_and_the_others_are_not(
    column: str, value: object, check: str, rule: str
) -> None:
    rows = with_cell(column, value)

    report = validate(rows)

    assert report.problem is None
    assert report.rules == {check: {rule: 1}}
    assert report.findings[0].row == 0
    assert report.valid.equals(arrow(rows.drop(index=0)))


@pytest.mark.fault("D13")
def test_a_year_that_python_cannot_write_is_in_the_future() -> None:
    microseconds = [2_777_000_000_000_000_000, *arrow(ROWS)["seen_at"].cast(pa.int64()).to_pylist()[1:]]
    position = ROWS.columns.get_loc("seen_at")
    rows = arrow(ROWS).set_column(position, "seen_at", pa.array(microseconds, pa.timestamp("us", "UTC")))

    report = validation.validate(rows, SPEC)

    assert report.problem is None
    assert report.rules == {"freshness": {"not in the future": 1}}
    assert report.findings[0].value.startswith("89969-")
    assert report.valid.equals(arrow(ROWS.tail(-1)))


@pytest.mark.fault("D12")
def test_the_second_row_of_an_entity_at_the_same_time_is_quarantined() -> None:
    report = validate(pd.concat([ROWS, ROWS.tail(1)], ignore_index=True))

    assert report.rules == {"keys": {"one row a time": 1}}
    assert report.findings[0].row == len(ROWS)
    assert report.valid.equals(arrow(ROWS))


def test_a_finding_is_a_sentence_with_row_column_rule_and_value() -> None:
    assert validate(with_cell("pages", -7)).examples == {"values": ["row 0: pages must be at least 0: got -7"]}


def test_at_most_five_findings_are_shown() -> None:
    report = validate(with_cell("pages", -7, rows=20))

    assert len(report.findings) == 20
    assert report.examples == {"values": [str(finding) for finding in report.findings[:5]]}


def test_one_row_that_breaks_two_rules_is_one_bad_row() -> None:
    report = validate(with_cell("pages", -7).assign(plan=with_cell("plan", "gratis")["plan"]))

    assert len(report.findings) == 2
    assert report.quarantined_rows == 1


def test_a_row_must_be_newer_than_what_is_published_of_its_entity() -> None:
    older, same, newer, unknown = ROWS["visitor"][:4]
    second = pd.Timedelta(seconds=1)
    newest = pd.Series(
        [ROWS["seen_at"][0] + second, ROWS["seen_at"][1], ROWS["seen_at"][2] - second], index=[older, same, newer]
    )

    report = validate(ROWS, newest)

    assert report.rules == {"keys": {"newer than published": 2}}
    assert {finding.value for finding in report.findings} == {str(older), str(same)}
    assert {newer, unknown} <= set(report.valid["visitor"].to_pylist())


def test_the_same_entity_at_another_time_is_no_duplicate() -> None:
    later = ROWS.assign(seen_at=ROWS["seen_at"] + pd.Timedelta(days=1))

    assert validate(pd.concat([ROWS, later])).findings == []


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_an_empty_integer_quarantines_its_row_only(tmp_path: Path, name: str) -> None:
    position = ROWS.columns.get_loc("pages")
    pages = pa.array([None, *ROWS["pages"].tolist()[1:]], pa.int64())
    rows = arrow(ROWS).set_column(position, "pages", pages)
    path = tmp_path / name
    if name == "a.parquet":
        pa.parquet.write_table(rows, path)
    else:
        emptied = rows.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        path.write_text(as_csv(emptied) if name == "a.csv" else as_jsonl(emptied))

    report = validation.validate_file(path, SPEC)

    assert report.problem is None
    assert report.rules == {"values": {"not_nullable": 1}}
    assert report.examples == {"values": ["row 0: pages must not be empty: got None"]}
    assert report.valid["visitor"].to_pylist() == ROWS["visitor"].tolist()[1:]


class Checked(fakes.Visits):
    """Visits with rules that only pandera can run, on a column, on rows and on the batch."""

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


CHECKED = fakes.visits_spec(table=Checked, quarantine_tolerance=0.2)


@pytest.mark.parametrize("at_once", [7, 250_000])
def test_a_rule_in_python_names_its_rows(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(scans, "ROWS_AT_ONCE", at_once)
    rows = ROWS.assign(pages=ROWS["pages"] // 2 * 2, visitor=[2, *range(2, 61)])
    rows.loc[9, "pages"], rows.loc[11, "seconds"] = 7, 5_000.0

    report = validation.validate(arrow(rows), CHECKED)

    assert {(finding.row, finding.rule) for finding in report.findings} == {
        (9, "even"), (11, "quick"), (0, "field_uniqueness"), (1, "field_uniqueness")
    }  # fmt: skip
    assert report.valid.equals(arrow(rows.drop(index=[0, 1, 9, 11])))


@pytest.mark.parametrize("at_once", [7, 250_000])
def test_a_rule_of_the_whole_batch_sees_the_whole_batch(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(scans, "ROWS_AT_ONCE", at_once)
    rows = ROWS.assign(pages=0, seconds=[0.0] * 40 + [60.0] * 20)

    assert validation.validate(arrow(rows), CHECKED).problem is None
    report = validation.validate(arrow(rows.assign(seconds=0.5)), CHECKED)

    assert report.problem == "the rows together break seconds busy"
    assert report.valid.num_rows == 0


def test_a_bad_batch_of_any_size_names_a_bounded_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "FINDINGS", 10)

    report = validate(with_cell("pages", -7, rows=50))

    assert report.rules == {"values": {"greater_than_or_equal_to(0)": 50}}
    assert [finding.row for finding in report.findings] == [*range(10), None]
    assert str(report.findings[-1]) == "40 more rows: pages must be at least 0"


def test_as_many_rows_are_named_as_the_caller_asks_for(tmp_path: Path) -> None:
    for name, data in {
        "a.parquet": as_parquet(with_cell("pages", -7, rows=3)),
        "a.csv": as_csv(with_cell("pages", -7, rows=3)).encode(),
    }.items():
        report = validation.validate_file(written(tmp_path, name, data), SPEC, named=2)

        assert [finding.row for finding in report.findings] == [0, 1, None]


class Keyed(fakes.Visits):
    """Visits whose author says what the platform asks anyway, in another way."""

    class Config:
        strict = True
        unique = ["seen_at", "visitor"]  # noqa: RUF012


@pytest.mark.parametrize("name", ["KEYS_AT_ONCE", "TWINS_AT_ONCE", "ROWS_AT_ONCE"])
@pytest.mark.parametrize("at_once", [2, 10, 2**24])
def test_repeated_keys_are_found_however_many_are_compared_at_once(
    monkeypatch: pytest.MonkeyPatch, name: str, at_once: int
) -> None:
    monkeypatch.setattr(scans, name, at_once)
    rows = pd.concat([ROWS, ROWS.head(7), ROWS.head(3)], ignore_index=True)

    report = validation.validate(arrow(rows), fakes.visits_spec(table=Keyed))

    named: dict[str, list[int | None]] = {}
    for finding in report.findings:
        named.setdefault(finding.rule, []).append(finding.row)
    assert {rule: sorted(filter(None, found)) for rule, found in named.items()} == {
        "multiple_fields_uniqueness": [*range(1, 7), *range(60, 70)],
        "one row a time": [*range(60, 70)],
    }
    assert report.bad is not None
    assert report.bad[0]


class Counted(pandera.DataFrameModel):
    """Visits without fractions: every rule could be answered from the least and the greatest value."""

    visitor: int = pandera.Field(ge=1)
    seen_at: Annotated[pd.DatetimeTZDtype, "us", "UTC"]
    pages: int = pandera.Field(ge=0)
    bought: str

    class Config:
        strict = True


@pytest.mark.fault("D5")
def test_what_a_file_says_of_its_values_is_not_believed(tmp_path: Path) -> None:
    data = as_parquet(with_cell("pages", -7).drop(columns=["seconds", "plan"]))
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    least = (-7).to_bytes(8, "little", signed=True)
    assert least in data[footer:]
    path = written(tmp_path, "a.parquet", data[:footer] + data[footer:].replace(least, bytes(8)))

    report = validation.validate_file(path, fakes.visits_spec(table=Counted))

    assert report.rules == {"values": {"greater_than_or_equal_to(0)": 1}}


# Batches


@pytest.mark.parametrize(("bad", "whole"), [(TOLERATED, False), (TOLERATED + 1, True)])
def test_more_bad_rows_than_are_tolerated_quarantine_the_whole_batch(bad: int, whole: bool) -> None:
    report = validate(with_cell("pages", -1, rows=bad))

    assert (report.problem is not None) == whole
    assert report.quarantined_rows == (len(ROWS) if whole else bad)
    assert len(report.findings) == bad


def test_the_reason_of_a_whole_batch_says_how_many_and_what_most_often() -> None:
    report = validate(with_cell("pages", -1, rows=30).assign(plan=with_cell("plan", "gratis")["plan"]))

    assert report.problem == ("30 of 60 rows are bad (50.0%, tolerance 5.0%), most often: pages must be at least 0")


@pytest.mark.fault("D7")
@pytest.mark.parametrize("column", list(ROWS.columns))
def test_a_missing_column_quarantines_the_batch(column: str) -> None:
    report = validate(ROWS.drop(columns=column))

    assert report.problem == f"column '{column}' is missing"
    assert report.valid.num_rows == 0


@pytest.mark.fault("D7")
def test_an_extra_column_quarantines_the_batch() -> None:
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
def test_a_column_of_another_type_is_not_coerced(column: str, dtype: Any) -> None:
    report = validate(ROWS.astype({column: dtype}))

    assert report.problem is not None
    assert f"column '{column}' must be dtype(" in report.problem
    assert report.valid.num_rows == 0


def test_findings_become_a_table_with_one_line_each() -> None:
    findings = [validation.Finding(3, "pages", "values", "finite", "inf"), *validation.unreadable("it is cut").findings]

    table = validation.findings_table(findings)

    assert [validation.Finding(**line) for line in table.to_pylist()] == findings
    assert table.column_names == list(validation.Finding._fields)


def test_no_findings_become_an_empty_table_of_the_same_columns() -> None:
    some = validation.findings_table([validation.Finding(None, "", "schema", "it is cut", "")])

    assert validation.findings_table([]).schema == some.schema
    assert validation.findings_table([]).num_rows == 0


# From the landing zone: quarantined once, with the reason; nothing published; the next good file is processed.


def with_decimals() -> pd.DataFrame:
    """Return the visits with an integer of 30 digits, in the only type that Parquet has for it."""
    digits = pd.Series([10**29, *ROWS["visitor"][1:]], dtype=pd.ArrowDtype(pa.decimal128(38, 0)))
    return ROWS.assign(visitor=digits)


def ingest(platform: Platform) -> list[BatchResult]:
    keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, "visits")]
    workflows.keep_raw_batches(platform, "visits", keys)
    return workflows.publish_batches(platform, SPEC, keys)


def text_with(column: str, value: str) -> str:
    return as_csv(ROWS.astype({column: "object"}).assign(**{column: [value, *ROWS[column].astype(str)[1:]]}))


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
    "fraction": ("D8", "a.csv", lambda: text_with("pages", "1.9").encode(), "conversion error to int64"),
    "utf-16": ("D9", "a.csv", lambda: as_csv().encode("utf-16"), "no readable csv file"),
    "latin-1": ("D9", "a.csv", lambda: text_with("plan", "frée").encode("latin-1"), "invalid UTF8 data"),
    "latin-1 header": ("D9", "a.csv", f"{HEADER},pagés\n".encode("latin-1").strip, "no readable csv file"),
    "nan": ("D10", "a.parquet", lambda: as_parquet(with_cell("seconds", np.nan, 30)), "seconds must not be empty"),
    "inf": ("D10", "a.parquet", lambda: as_parquet(with_cell("seconds", np.inf, 30)), "seconds must be finite"),
    "2^63": ("D11", "a.csv", lambda: text_with("visitor", str(2**63)).encode(), "conversion error to int64"),
    "30 digits": ("D11", "a.csv", lambda: text_with("visitor", "9" * 30).encode(), "conversion error to int64"),
    "json": ("D11", "a.jsonl", lambda: as_jsonl().replace(":1,", f":{2**63},", 1).encode(), "Failed to convert JSON"),
    "30 digits json": (
        "D11",
        "a.jsonl",
        lambda: as_jsonl().replace(":1,", f":{'9' * 30},", 1).encode(),
        "couldn't parse:999",
    ),
    "30 digits decimal": (
        "D11",
        "a.parquet",
        lambda: as_parquet(with_decimals()),
        "must be dtype('int64'). Got object",
    ),
    "unsigned": ("D11", "a.parquet", lambda: as_parquet(ROWS.astype({"visitor": "uint64"})), "Got uint64"),
    "doubled ids": (
        "D12",
        "a.parquet",
        lambda: as_parquet(pd.concat([ROWS, ROWS])),
        "visitor must come once at a time",
    ),
    "doubled name": ("D12", "a.csv", f"{HEADER},plan\n1,,2,3,free,no,free\n".encode, "must be unique"),
    "ragged": ("D14", "a.csv", f"{as_csv()}1,2\n".encode, "Expected 6 columns"),
    "wide": ("D14", "a.csv", f"{as_csv()}{'1,' * 500}\n".encode, "Expected 6 columns"),
}
AS_PARAMETERS = [pytest.param(*case[1:], id=name, marks=pytest.mark.fault(case[0])) for name, case in FAULTS.items()]


@pytest.mark.parametrize(("name", "make", "reason"), AS_PARAMETERS)
def test_a_bad_file_is_quarantined_once_and_the_next_good_one_is_published(
    platform: Platform, name: str, make: Callable[[], bytes], reason: str
) -> None:
    workflows.land_files(platform, "visits", {name: make()})

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
def test_a_text_file_is_published_with_and_without_a_byte_order_mark(
    platform: Platform, name: str, write: Callable[[], str], codec: str
) -> None:
    workflows.land_files(platform, "visits", {name: write().encode(codec)})

    (result,) = ingest(platform)

    assert (result.outcome, result.rows, result.quarantined_rows) == (Outcome.PUBLISHED, len(ROWS), 0)
    pd.testing.assert_frame_equal(datasets.pin(platform.rows("visits"), SPEC)[1], ROWS)


@pytest.mark.fault("D11")
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_the_largest_integer_is_published_to_the_last_digit(platform: Platform, name: str) -> None:
    most = 2**63 - 1
    rows = ROWS.assign(visitor=[most, *ROWS["visitor"][1:]])
    data = {".csv": as_csv(rows).encode(), ".jsonl": as_jsonl(rows).encode(), ".parquet": as_parquet(rows)}
    workflows.land_files(platform, "visits", {name: data[Path(name).suffix]})

    (result,) = ingest(platform)

    assert (result.outcome, result.rows, result.quarantined_rows) == (Outcome.PUBLISHED, len(ROWS), 0)
    assert most in set(datasets.pin(platform.rows("visits"), SPEC)[1]["visitor"])


@pytest.mark.fault("D2")
def test_the_same_bytes_under_two_names_are_published_once(platform: Platform) -> None:
    for name in ("a.parquet", "b.parquet"):
        fakes.drop(platform, name, ROWS)

    outcomes = [result.outcome for result in ingest(platform)]

    assert sorted(outcomes) == [Outcome.DUPLICATE, Outcome.PUBLISHED]
    assert datasets.pin(platform.rows("visits"), SPEC)[0].rows == len(ROWS)


@pytest.mark.fault("D3")
def test_new_bytes_under_the_same_name_are_published_beside_the_old(platform: Platform) -> None:
    for first in (1, 61):
        fakes.drop(platform, "a.parquet", fakes.visits(60, first=first))
        (result,) = ingest(platform)
        assert result.outcome is Outcome.PUBLISHED

    assert datasets.pin(platform.rows("visits"), SPEC)[0].rows == 120


@pytest.mark.fault("D10")
def test_the_rows_of_a_tolerated_burst_are_quarantined_and_the_others_published(platform: Platform) -> None:
    fakes.drop(platform, "a.parquet", with_cell("seconds", np.inf, rows=TOLERATED))

    (result,) = ingest(platform)

    assert (result.outcome, result.quarantined_rows) == (Outcome.PUBLISHED, TOLERATED)
    dataset, rows = datasets.pin(platform.rows("visits"), SPEC)
    assert dataset.rows == len(ROWS) - TOLERATED
    assert np.isfinite(rows["seconds"]).all()


def test_rows_of_this_very_moment_are_not_in_the_future() -> None:
    moment = pd.Timestamp(now()).as_unit("us")

    assert validate(with_cell("seen_at", moment)).findings == []
