"""Rows of one entity are taken out of every format, and nothing else is touched."""

import gzip
from pathlib import Path

import pytest

from ml_platform.errors import ConfigurationError, DataError
from ml_platform.stages import erasure
from ml_platform_tests import fakes

SPEC = fakes.visits_spec()
CSV = 'visitor,plan\n"007","a\nb"\n8,"say ""x"""\n\n7.0,c\n'


@pytest.mark.parametrize("value", [7, 7.0, "7", "007", " 7", "7.0"])
def test_equal_numbers_are_the_same_entity_however_they_are_written(value: object) -> None:
    assert erasure.canonical(value, SPEC) == "7"


@pytest.mark.parametrize("value", ["7.5", "seven", "", None])
def test_what_is_no_whole_number_stays_text(value: object) -> None:
    assert erasure.canonical(value, SPEC) == str(value)


@pytest.mark.parametrize("packed", [False, True])
def test_text_stays_as_it_was_written(tmp_path: Path, packed: bool) -> None:
    file = tmp_path / ("a.csv.gz" if packed else "a.csv")
    file.write_bytes(gzip.compress(CSV.encode()) if packed else CSV.encode())

    data, removed = erasure.without(file, SPEC, "7".__eq__)

    assert (gzip.decompress(data) if packed else data).decode() == 'visitor,plan\n8,"say ""x"""\n'
    assert removed == [0, 2]
    assert erasure.without(file, SPEC, "9".__eq__) == (b"", [])


def test_lines_of_json_go_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"visitor": 7}\n\n{"visitor": 8, "plan": "007"}\n{"plan": "a"}\n')

    assert erasure.without(file, SPEC, "7".__eq__) == (b'{"visitor": 8, "plan": "007"}\n{"plan": "a"}\n', [0])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b"[7]\n"),
        ("a.csv", b"plan\na\n"),
        ("a.csv.gz", b"noise"),
        ("a.parquet", b"noise"),
        ("a.jsonl", b"{\n"),
    ],
)
def test_a_file_that_cannot_be_searched_says_so(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)

    with pytest.raises(DataError, match="cannot be searched"):
        erasure.without(tmp_path / name, SPEC, "7".__eq__)


def test_the_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "home" / "forget.key"

    with pytest.raises(ConfigurationError, match="Restore it"):
        erasure.read_key(file, make=False)
    key = erasure.read_key(file, make=True)

    assert erasure.read_key(file, make=True) == erasure.read_key(file, make=False) == key
    assert file.stat().st_mode & 0o777 == 0o600
    assert len({erasure.keyed_digest(key, *who) for who in [("a", "1"), ("a", "2"), ("b", "1")]}) == 3
    assert erasure.keyed_digest(key, "a", "1") != erasure.keyed_digest(b"another", "a", "1")


def test_a_byte_order_mark_hides_nobody(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"\xef\xbb\xbfvisitor,plan\n7,a\n8,b\n")

    assert erasure.without(file, SPEC, "7".__eq__) == (b"visitor,plan\n8,b\n", [0])
