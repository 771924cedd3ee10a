"""The pass over the quotes of a CSV file, compared with Python's reader."""

import csv
import io
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ml_platform.data.validation.csv_structure import CsvStructure, scan_csv
from ml_platform.errors import TooLargeError, UnreadableFileError

PARTS = st.sampled_from(["a", '"', ",", "\n", "\r", "\r\n", '""', "é", ',"', '",', '"\n', "x,y"])


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def scan(data: bytes, size: int = 1 << 20) -> CsvStructure:
    return scan_csv(cut(data, size), 10**9, offsets=True)


def read_with_python(text: str) -> list[list[str]] | None:
    """Return the rows that are not empty lines; None if a quote does not close or text follows it."""
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error:
        return None


def check_like_python(text: str, size: int, mark: bytes = b"") -> None:
    data, rows = mark + text.encode(), read_with_python(text)
    if not rows:
        with pytest.raises(UnreadableFileError):
            scan(data, size)
        return
    structure = scan(data, size)

    assert (structure.rows, structure.fields) == (len(rows) - 1, len(rows[0]))
    ragged = [[number, len(row)] for number, row in enumerate(rows[1:]) if len(row) != len(rows[0])]
    assert structure.ragged.tolist() == ragged
    parts = [data[start:end].decode() for start, end in [structure.header, *structure.offsets.tolist()]]
    assert [next(csv.reader(io.StringIO(part, newline=""))) for part in parts] == rows


@pytest.mark.fault("D19")
@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.lists(PARTS, max_size=14).map("".join), st.sampled_from([1, 2, 3, 7, 100]), st.booleans())
@example('a,b\n1,x"y\n2,""\n', 1, False)
@example('a"",b\n1,"x""y"\n', 2, True)
def test_scan_any_text_agrees_with_python(text: str, size: int, marked: bool) -> None:
    check_like_python(text, size, b"\xef\xbb\xbf" if marked else b"")


@pytest.mark.soak
@settings(max_examples=50_000, deadline=None)
@given(st.lists(PARTS, max_size=40).map("".join), st.integers(1, 50))
def test_scan_much_text_agrees_with_python(text: str, size: int) -> None:
    check_like_python(text, size)


@pytest.mark.fault("D19")
@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_scan_open_quote_names_its_line(size: int) -> None:
    with pytest.raises(UnreadableFileError, match="the quote that opens a field in line 4 does not close"):
        scan(b'a,b\n1,"x\ny"\n2,"z""\n3,4\n', size)


@pytest.mark.fault("D19")
@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_scan_text_behind_quote_names_both_lines(size: int) -> None:
    with pytest.raises(UnreadableFileError, match="opens in line 2 is followed by text in line 3"):
        scan(b'a,b\n1,"x\n2,"y"\n3,4\n', size)


@pytest.mark.fault("D9")
@pytest.mark.parametrize(("data", "line"), [(b"a\nb\xe9\n", 2), (b"a\nb\n\xc3", 3), (b"a\n\n\xc3\n", 3)])
@pytest.mark.parametrize("size", [1, 100])
def test_scan_other_encoding_names_its_line(data: bytes, line: int, size: int) -> None:
    with pytest.raises(UnreadableFileError, match=f"line {line} is not UTF-8 text"):
        scan(data, size)


def test_scan_lines_within_quotes_are_not_counted() -> None:
    data = b'a,b\n1,"x\n\n\n\n"\n'

    assert scan_csv([data], 1).rows == 1
    with pytest.raises(TooLargeError, match="more than 2 lines, at most 1 rows are taken"):
        scan_csv([data + b"2,y\n"], 1)
