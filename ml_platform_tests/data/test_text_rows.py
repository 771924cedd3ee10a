"""Text files are read cell by cell: each row is published with the written values, or is a named bad row."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_platform.data.validation import text_rows
from ml_platform.data.validation.csv_structure import scan_csv
from ml_platform.data.validation.validate import Report, validate_file
from ml_platform_tests.support import fakes


class Notes(pandera.DataFrameModel):
    """Visitors with a free text, which holds any character."""

    visitor: int
    seen_at: Annotated[pd.DatetimeTZDtype, "us", "UTC"]
    seconds: float = pandera.Field(nullable=True)
    note: str = pandera.Field(nullable=True)
    bought: str

    class Config:
        strict = True


SPEC = fakes.visits_spec(contract=Notes, min_batch_rows=1, quarantine_tolerance=1.0, positive="yes")
NAMES = list(Notes.to_schema().columns)
TIME = "2024-01-01T00:00:{:02}Z"


def read(path: Path, data: bytes | str) -> Report:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return validate_file(path, SPEC)


def make_rows(n: int) -> list[list[str]]:
    return [[str(number + 1), TIME.format(number % 60), f"{number / 4}", f"note {number}", "no"] for number in range(n)]


def as_csv(rows: list[list[str]], end: str = "\n") -> str:
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator=end).writerows([NAMES, *rows])
    return written.getvalue()


def as_json_lines(rows: list[list[str]]) -> str:
    return "".join(
        json.dumps({**dict(zip(NAMES, row, strict=True)), "visitor": int(row[0]), "seconds": float(row[2])}) + "\n"
        for row in rows
    )


# CSV


@pytest.mark.fault("D19")
@pytest.mark.parametrize("packed", [False, True])
def test_open_quote_refuses_file_with_line(tmp_path: Path, packed: bool) -> None:
    lines = as_csv(make_rows(15_000)).splitlines()
    lines[2_000] = lines[2_000].replace("note", '"note')
    lines[2_000] = lines[2_000].replace(",no", ',"no')
    data = "\n".join(lines).replace('"note', "note").encode()

    report = read(tmp_path / ("a.csv.gz" if packed else "a.csv"), gzip.compress(data) if packed else data)

    assert report.problem == "the quote that opens a field in line 2001 does not close"
    assert report.valid.num_rows == 0


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_csv_any_line_end_is_accepted(tmp_path: Path, end: str, last: bool) -> None:
    data = as_csv(make_rows(20), end)

    report = read(tmp_path / "a.csv", data if last else data.rstrip())

    assert (report.rows, report.violations) == (20, [])
    assert report.valid["note"].to_pylist() == [f"note {number}" for number in range(20)]


@pytest.mark.fault("D20")
@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 2**22 - 50, 2**22, 3 * 10**6])
def test_csv_long_quoted_lines_are_one_cell(tmp_path: Path, size: int) -> None:
    rows = make_rows(5)
    rows[1][3] = ("x\n" * size)[:size] + '"'

    report = read(tmp_path / "a.csv", as_csv(rows))

    assert (report.rows, report.violations) == (5, [])
    assert report.valid["note"].to_pylist()[1] == rows[1][3]


@pytest.mark.fault("D19")
def test_csv_rows_are_held_against_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = text_rows.read_csv_batches
    monkeypatch.setattr(text_rows, "read_csv_batches", lambda *options: (part[:-1] for part in real(*options)))

    report = read(tmp_path / "a.csv", as_csv(make_rows(20)))

    assert report.problem == "it is no readable csv file: 19 of its 20 records were read"


@pytest.mark.parametrize(
    ("cell", "value"),
    [('5" pipe', '5" pipe'), ('"say ""x"""', 'say "x"'), ("a\0b", "a\0b"), ('""', None), ("NA", "NA")],
)
def test_csv_odd_cell_has_its_value(tmp_path: Path, cell: str, value: str | None) -> None:
    report = read(tmp_path / "a.csv", as_csv(make_rows(2)).replace("note 1", cell))

    assert report.violations == []
    assert report.valid["note"].to_pylist() == ["note 0", value]


@pytest.mark.parametrize(("separator", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_csv_other_separator_is_named(tmp_path: Path, separator: str, word: str) -> None:
    report = read(tmp_path / "a.csv", as_csv(make_rows(3)).replace(",", separator))

    assert report.problem == f"its fields are separated by {word}, and must be by commas"


# JSON Lines


@pytest.mark.fault("D19")
@pytest.mark.parametrize(
    "line",
    [
        "null",
        "true",
        "1",
        '"x"',
        "[]",
        "[[1]]",
        "{",
        "{}{}",
        "[" * 100_000,
        '{"note":' * 100_000,
        "\x00",
        "{} x",
        "nul",
    ],
    ids=str.__len__,
)
@pytest.mark.parametrize("place", [0, 30])
def test_json_line_without_object_is_bad_row(tmp_path: Path, line: str, place: int) -> None:
    lines = as_json_lines(make_rows(40)).splitlines()
    lines.insert(place, line)

    report = read(tmp_path / "a.jsonl", "\n".join(lines))

    assert (report.problem, report.rows, report.quarantined_rows) == (None, 41, 1)
    (violation,) = report.violations
    assert (violation.row, violation.rule) == (place, "object")
    assert len(violation.value) < 300
    assert report.valid["visitor"].to_pylist() == [*range(1, 41)]


@pytest.mark.fault("D19")
def test_json_object_over_lines_is_refused(tmp_path: Path) -> None:
    objects = [json.loads(line) for line in as_json_lines(make_rows(3)).splitlines()]
    strict = SPEC.model_copy(update={"quarantine_tolerance": 0.5})
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(one, indent=1) for one in objects))

    report = validate_file(tmp_path / "a.jsonl", strict)

    assert report.problem == "21 of 21 rows are bad (100.0%, tolerance 50.0%), most often: must be one JSON object"


@pytest.mark.fault("D20")
@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ('"visitor": 3', '"visitor": NaN', "row 2: visitor must be an integer of 64 bits: got 'NaN'"),
        ('"visitor": 3', '"visitor": 9223372036854775808', "row 2: visitor must be an integer of 64 bits: got '92"),
        ('"visitor": 3', '"visitor": 3, "visitor": 4', "row 2: visitor must come once in an object: got '4'"),
        ('"seconds": 0.5', '"seconds": Infinity', "row 2: seconds must be a number: got 'Infinity'"),
        ('"seconds": 0.5', '"seconds": 1e400', "row 2: seconds must be a number: got '1e400'"),
        ('"note": "note 2"', '"note": {"a": [1]}', "row 2: note must be text: got '{…}'"),
        ('"note": "note 2"', '"note": [1]', "row 2: note must be text: got '[…]'"),
        ('"note": "note 2"', '"note": "\\ud800"', "row 2: note must be text: got '?'"),
        (
            "00:00:02Z",
            "00:00:02",
            "row 2: seen_at must be a time with an offset, of unit us: got '2024",
        ),
        ('"note": "note 2"', '"notes": 1', "row 2: must have only keys of the contract: got 'notes'"),
    ],
)
def test_json_bad_cell_is_one_bad_row(tmp_path: Path, old: str, new: str, shown: str) -> None:
    report = read(tmp_path / "a.jsonl", as_json_lines(make_rows(40)).replace(old, new, 1))

    assert (report.problem, report.rows, report.quarantined_rows) == (None, 40, 1)
    assert report.examples["schema"][0].startswith(shown)
    assert report.valid["visitor"].to_pylist() == [1, 2, *range(4, 41)]


def test_json_lines_without_whole_block_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_rows, "AT_ONCE", 1_000)
    rows = make_rows(200)
    rows[150][3] = "x\n" * 3_000

    report = read(tmp_path / "a.jsonl", "\ufeff" + as_json_lines(rows).replace("\n", "\r\n \n"))

    assert (report.rows, report.violations) == (200, [])
    assert report.valid["note"].to_pylist() == [row[3] for row in rows]


@pytest.mark.fault("D9")
def test_json_other_encoding_names_its_line(tmp_path: Path) -> None:
    data = as_json_lines(make_rows(40)).encode().replace(b"note 2", b"not\xe9 2", 1)

    assert (
        read(tmp_path / "a.jsonl", data).problem
        == "line 3 is not UTF-8 text: invalid continuation byte. Save it as UTF-8"
    )


# Any file

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
CELLS = st.one_of(
    TEXT, st.sampled_from(['"', '""', "\n", "\r\n", ",", "0x1F", " 5", "+5", "007", "nan", "1e400", "-0"])
)
GOOD = st.fixed_dictionaries(
    {
        "visitor": st.integers(-(2**63), 2**63 - 1),
        "seen_at": st.datetimes(pd.Timestamp("1900-01-01"), pd.Timestamp("2025-01-01")).map(
            lambda t: f"{t.isoformat()}Z"
        ),
        "seconds": st.floats(allow_nan=False, allow_infinity=False) | st.none(),
        "note": TEXT | st.none(),
        "bought": st.sampled_from(["yes", "no"]),
    }
)
BAD = st.dictionaries(st.sampled_from(NAMES), CELLS | st.booleans() | st.floats() | st.lists(st.integers()), max_size=3)
ROWS = st.lists(st.tuples(GOOD, BAD | st.just({})), min_size=1, max_size=30)


def expect(row: dict[str, Any], missing: str | None) -> list[Any]:
    time = pd.Timestamp(row["seen_at"]).as_unit("us")
    return [
        row["visitor"],
        time,
        row["seconds"],
        row["note"] or (missing if row["note"] is not None else None),
        row["bought"],
    ]


def check_report(report: Report, rows: list[tuple[dict[str, Any], dict[str, Any]]], missing: str | None = None) -> None:
    """Check that all rows are reported, and that rows without changes are published with their values."""
    assert report.rows == len(rows)
    bad = np.zeros(len(rows), dtype=bool) if report.bad is None else report.bad
    passed = np.zeros(len(rows), dtype=bool) if report.passed is None else report.passed
    assert report.valid.num_rows == (~bad & ~passed).sum()
    published = report.valid.to_pandas(date_as_object=False).itertuples(index=False)
    repeated, seen = set[int](), set[tuple[Any, Any]]()
    for number, (row, changes) in enumerate(rows):
        key = (row["visitor"], pd.Timestamp(row["seen_at"]))
        if not changes:
            repeated |= {number} if key in seen else set()
            seen.add(key)
    for number, (row, changes) in enumerate(rows):
        if bad[number]:
            assert changes or number in repeated or any(other for _, other in rows), (row, report.violations)
        if passed[number]:
            assert changes or number in repeated or any(other for _, other in rows), row
        if bad[number] or passed[number]:
            continue
        values = [None if value is None or value != value else value for value in next(published)]
        if not changes:
            assert values == expect(row, missing)


def write_and_check_csv(path: Path, rows: list[tuple[dict[str, Any], dict[str, Any]]], end: str) -> None:
    cells = [[{**row, **bad}[name] for name in NAMES] for row, bad in rows]
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([NAMES, *cells])
    texts = [row for row in csv.reader(io.StringIO(written.getvalue(), newline=""), strict=True) if row]
    assert len(texts) == len(rows) + 1

    check_report(read(path, written.getvalue()), rows)


def write_and_check_json(path: Path, rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    check_report(read(path, "".join(f"{json.dumps({**row, **bad})}\n" for row, bad in rows)), rows, "")


@pytest.mark.fault("D19")
@pytest.mark.fault("D20")
@settings(max_examples=60, derandomize=True, deadline=None)
@given(ROWS, st.sampled_from(["\n", "\r\n"]))
def test_any_csv_publishes_or_names_rows(tmp_path_factory: Any, rows: Any, end: str) -> None:
    write_and_check_csv(tmp_path_factory.getbasetemp() / "any.csv", rows, end)


@pytest.mark.fault("D19")
@pytest.mark.fault("D20")
@settings(max_examples=60, derandomize=True, deadline=None)
@given(ROWS)
def test_any_json_publishes_or_names_rows(tmp_path_factory: Any, rows: Any) -> None:
    write_and_check_json(tmp_path_factory.getbasetemp() / "any.jsonl", rows)


@pytest.mark.fault("D19")
@settings(max_examples=60, derandomize=True, deadline=None)
@given(ROWS, st.integers(0, 3_000), st.binary(max_size=3), st.booleans())
def test_any_damage_never_crashes(tmp_path_factory: Any, rows: Any, place: int, damage: bytes, lines: bool) -> None:
    good = [[str({**row, **bad}[name]) for name in NAMES] for row, bad in rows]
    text = "".join(f"{json.dumps({**row, **bad})}\n" for row, bad in rows) if lines else as_csv(good)
    data = text.encode()

    path = tmp_path_factory.getbasetemp() / ("damaged.jsonl" if lines else "damaged.csv")
    report = read(path, data[:place] + damage + data[place + 1 :])

    assert report.problem is not None or (
        report.valid.num_rows + report.quarantined_rows + report.passed_over_rows == report.rows
    )
    assert isinstance(report.violations, list)
    assert isinstance(report.valid, pa.Table)


EVERY_TYPE = pa.schema(
    {
        "big": pa.int64(),
        "small": pa.int8(),
        "natural": pa.uint16(),
        "number": pa.float64(),
        "rough": pa.float32(),
        "flag": pa.bool_(),
        "at": pa.timestamp("us", "UTC"),
        "local": pa.timestamp("ns"),
        "second": pa.timestamp("s"),
    }
)
PIECES = st.sampled_from(
    [
        *("0", "1", "9", "-", "+", ".", "e", "E", "x", "_", " ", "\t", "0x1F", "true", "False", "\u0661"),
        *("nan", "NAN", "nan(a)", "inf", "Infinity", "1e400", "1e-400"),
        *("2024-02-29", "2023-02-29", "T", "Z", "10:00", ":00", ".123456", "+02:00", "+0230"),
    ]
)
ODD_CELLS = st.lists(PIECES, min_size=1, max_size=4).map("".join)


CELL_ROWS = st.lists(st.tuples(*[ODD_CELLS] * len(EVERY_TYPE)), min_size=1, max_size=3)
ReadTwice = tuple[text_rows.TextRows, text_rows.TextRows]


def read_twice(path: Path, field: pa.Field, cells: list[str], *, quoted: bool) -> ReadTwice | None:
    """Read a column by Arrow's conversion and by the grammar; ``None`` if Arrow's conversion is not used for it."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
        writer.writerows([[field.name], *([cell] for cell in cells)])
    structure, schema = scan_csv([path.read_bytes()], 100), pa.schema([field])
    by_grammar = text_rows.read_csv_rows(path, structure, schema, 10, converted=False)
    if not structure.plain:
        return None
    try:
        return text_rows.read_csv_rows(path, structure, schema, 10, converted=True), by_grammar
    except pa.ArrowInvalid:
        return None


def read_columns_twice(path: Path, rows: list[tuple[str, ...]], *, quoted: bool) -> list[ReadTwice]:
    columns = zip(EVERY_TYPE, zip(*rows, strict=True), strict=True)
    return [both for field, cells in columns if (both := read_twice(path, field, list(cells), quoted=quoted))]


@pytest.mark.fault("D21")
@settings(max_examples=300, derandomize=True, deadline=None)
@given(CELL_ROWS, st.booleans())
def test_converted_rows_equal_rows_by_grammar(tmp_path_factory: Any, rows: Any, quoted: bool) -> None:
    for converted, by_grammar in read_columns_twice(tmp_path_factory.getbasetemp() / "typed.csv", rows, quoted=quoted):
        assert not by_grammar.unread.any()
        assert converted.table.equals(by_grammar.table)


@pytest.mark.fault("D21")
@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("big", "-007"),
        ("small", "12"),
        ("natural", "65535"),
        ("number", "+1.5e3"),
        ("rough", ".5"),
        ("flag", "TRUE"),
        ("at", "2024-02-29T10:00:00.123456+02:30"),
        ("local", "2024-02-29"),
        ("second", "2024-02-29 10:00"),
    ],
)
def test_plain_column_is_converted_by_arrow(tmp_path: Path, name: str, cell: str, quoted: bool) -> None:
    both = read_twice(tmp_path / "plain.csv", EVERY_TYPE.field(name), [cell, cell], quoted=quoted)

    assert both is not None
    assert both[0].table.equals(both[1].table)
    assert (both[0].table.num_rows, both[0].table[name].null_count) == (2, 0)


@pytest.mark.fault("D21")
@pytest.mark.parametrize("cell", ["0x5", " 5", "5 ", "\t5", '" 5"', '"5\t"', '"0X5"'])
@pytest.mark.parametrize("size", [1, 3, 2**20])
def test_number_of_arrow_alone_is_not_plain(cell: str, size: int) -> None:
    data = f"a,b\nxerox x,{cell}\n".encode()

    assert not scan_csv([data[place : place + size] for place in range(0, len(data), size)], 10).plain


def test_spaces_within_text_are_plain() -> None:
    assert scan_csv([b"a,b\nx 0,0 xerox\n"], 10).plain


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@settings(max_examples=20_000, deadline=None)
@given(CELL_ROWS, st.booleans())
def test_many_conversions_equal_grammar(tmp_path_factory: Any, rows: Any, quoted: bool) -> None:
    for converted, by_grammar in read_columns_twice(tmp_path_factory.getbasetemp() / "many.csv", rows, quoted=quoted):
        assert not by_grammar.unread.any()
        assert converted.table.equals(by_grammar.table)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@settings(max_examples=20_000, deadline=None)
@given(ROWS, st.sampled_from(["\n", "\r\n"]))
def test_many_files_publish_or_name_rows(tmp_path_factory: Any, rows: Any, end: str) -> None:
    write_and_check_csv(tmp_path_factory.getbasetemp() / "many.csv", rows, end)
    write_and_check_json(tmp_path_factory.getbasetemp() / "many.jsonl", rows)
