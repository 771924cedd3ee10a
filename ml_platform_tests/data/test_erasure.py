"""Erasure removes the rows of one entity from every format, and nothing else."""

import contextlib
import csv
import errno
import gzip
import io
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_platform.data import erasure, row_removal
from ml_platform.errors import ConfigurationError, DataError, StorageError
from ml_platform.storage import atomic_files, erasure_key
from ml_platform_tests.support import fakes
from ml_platform_tests.support.simulated_death import ProcessDiedError

SPEC = fakes.visits_spec()
CSV = 'visitor,plan\n"007","a\nb"\n8,"say ""x"""\n\n7.0,c\n'


@pytest.mark.parametrize("value", [7, 7.0, "7", "007", " 7", "7.0", "7.00", "0x7", "0X07", b"7", Decimal("7.0000")])
def test_canonical_equal_numbers_are_one_entity(value: object) -> None:
    assert erasure.canonical(value, SPEC) == "7"


def test_canonical_great_float_equals_integer() -> None:
    assert erasure.canonical(1e16, SPEC) == erasure.canonical(10**16, SPEC) == "1" + "0" * 16


@pytest.mark.parametrize("value", ["7.5", "seven", "", None, "nan", "inf", "1e999999999", "0e999999999", "9" * 5_000])
def test_canonical_other_text_is_unchanged(value: object) -> None:
    assert erasure.canonical(value, SPEC) == str(value)


@pytest.mark.parametrize("packed", [False, True])
def test_read_csv_text_is_unchanged(tmp_path: Path, packed: bool) -> None:
    file = tmp_path / ("a.csv.gz" if packed else "a.csv")
    file.write_bytes(gzip.compress(CSV.encode()) if packed else CSV.encode())

    data, removed = row_removal.read_without_entities(file, SPEC, "7".__eq__)

    assert (gzip.decompress(data) if packed else data).decode() == 'visitor,plan\n8,"say ""x"""\n'
    assert removed == [0, 2]
    assert row_removal.read_without_entities(file, SPEC, "9".__eq__) == (b"", [])


def test_read_json_lines_removes_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"visitor": 7}\n\n{"visitor": 8, "plan": "007"}\n{"plan": "a"}\n')

    assert row_removal.read_without_entities(file, SPEC, "7".__eq__) == (
        b'{"visitor": 8, "plan": "007"}\n{"plan": "a"}\n',
        [0],
    )


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", b"plan\na\n"),
        ("a.csv", b'visitor\n7\n"8\n'),
        ("a.csv", b"visitor\n7\xff\n"),
        ("a.csv.gz", b"noise"),
        ("a.parquet", b"noise"),
        ("a.jsonl", b"\xff\n"),
    ],
)
def test_read_unsearchable_file_is_an_error(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)

    with pytest.raises(DataError, match="cannot be searched"):
        row_removal.read_without_entities(tmp_path / name, SPEC, "7".__eq__)


def test_key_is_created_once_for_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "home" / "forget.key"

    with pytest.raises(ConfigurationError, match="Restore it"):
        erasure_key.read_key(file, make=False)
    key = erasure_key.read_key(file, make=True)
    assert [path.name for path in file.parent.iterdir()] == ["forget.key"]

    assert erasure_key.read_key(file, make=True) == erasure_key.read_key(file, make=False) == key
    assert file.stat().st_mode & 0o777 == 0o600
    assert len({erasure.keyed_digest(key, *entity) for entity in [("a", "1"), ("a", "2"), ("b", "1")]}) == 3
    assert erasure.keyed_digest(key, "a", "1") != erasure.keyed_digest(b"another", "a", "1")


@pytest.mark.fault("S1")
def test_key_failed_write_leaves_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "forget.key"

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match="full"):
            erasure_key.read_key(file, make=True)
    assert list(tmp_path.iterdir()) == []
    file.write_bytes(b"")
    with pytest.raises(ConfigurationError, match="must have 32 bytes"):
        erasure_key.read_key(file, make=True)


def test_read_parquet_drops_unused_categories(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    plans = pa.array(["secret", "b", None], pa.dictionary(pa.int8(), pa.string(), ordered=True))
    visitors = pa.array(["7", "8", "9"]).dictionary_encode()
    pq.write_table(pa.table({"visitor": visitors, "plan": plans}), file)

    data, removed = row_removal.read_without_entities(file, SPEC, "7".__eq__)

    assert removed == [0]
    assert b"secret" not in data
    left = pq.read_table(io.BytesIO(data))
    assert left.to_pydict() == {"visitor": ["8", "9"], "plan": ["b", None]}
    assert left.schema == pq.read_table(file).schema


def test_read_csv_duplicate_columns_are_both_searched(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("visitor,visitor\n1,7\n7,1\n1\n")

    assert row_removal.read_without_entities(file, SPEC, "7".__eq__)[1] == [0, 1]


@pytest.mark.fault("D21")
@pytest.mark.parametrize("size", [10, 2**17 + 1, 2**21])
def test_read_csv_other_bytes_are_unchanged(tmp_path: Path, size: int) -> None:
    rows = [b'007,"a\r\nb"', b"8," + b"x" * size, b"0x7,", b'8,"say ""7"""', b"9,7", b"a,7,b", b'b,"8,9"', b"8, ok "]
    file = tmp_path / "a.csv"
    file.write_bytes(b"\r\n".join([b"visitor,plan", *rows]))

    data, removed = row_removal.read_without_entities(file, SPEC, "7".__eq__)

    assert removed == [0, 2, 5]
    kept = [row for number, row in enumerate(rows) if number not in removed]
    assert data == b"\r\n".join([b"visitor,plan", *kept])


@pytest.mark.fault("D21")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"visitor": 7e0}', True),
        ('{"visitor": "007"}', True),
        ('{"visitor": 8, "visitor": 7}', True),
        ('{"visitor": {"id": [1, 7]}}', True),
        ('[{"visitor": 7}]', True),
        ('{"visitor": 7', True),
        ("null", False),
        ('{"visitor": 8, "plan": "7"}', False),
    ],
)
def test_read_json_any_line_is_searched(tmp_path: Path, line: str, found: bool) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"visitor": 9}}\n{line}\n{{"visitor": 8}}\n')

    data, removed = row_removal.read_without_entities(file, SPEC, "7".__eq__)

    assert removed == ([1] if found else [])
    assert data == (b'{"visitor": 9}\n{"visitor": 8}\n' if found else b"")


@pytest.mark.fault("D21")
@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.text(st.characters(codec="utf-8"), max_size=5)), max_size=20),
    st.sampled_from(["\n", "\r\n"]),
)
def test_read_csv_removes_what_python_finds(tmp_path_factory: Any, rows: list[tuple[int, str]], end: str) -> None:
    file, text = tmp_path_factory.getbasetemp() / "any.csv", io.StringIO(newline="")
    csv.writer(text, lineterminator=end).writerows([["visitor", "plan"], *rows])
    file.write_text(text.getvalue(), newline="")

    data, removed = row_removal.read_without_entities(file, SPEC, "7".__eq__)

    left = [[str(visitor), plan] for visitor, plan in rows if visitor != 7]
    assert removed == [number for number, (visitor, _) in enumerate(rows) if visitor == 7]
    if removed:
        assert list(csv.reader(io.StringIO(data.decode(), newline=""))) == [["visitor", "plan"], *left]


def test_erase_compacted_table_changes_every_version(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    rows = [pa.table({"visitor": [number, number + 10], "pages": [1, 2]}) for number in (7, 8)]
    for number, part in enumerate(rows):
        write_deltalake(table, part, mode="append" if number else "error")
    DeltaTable(table).optimize.compact()

    lost = erasure.erase(table, erasure.make_entity_remover(SPEC, "7"), set())

    assert lost == 2
    assert sorted(DeltaTable(table).to_pyarrow_table()["visitor"].to_pylist()) == [8, 17, 18]
    assert DeltaTable(table, version=0).to_pyarrow_table()["visitor"].to_pylist() == [17]


@pytest.mark.fault("D28")
@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_erase_unicode_line_break_keeps_log(tmp_path: Path, mark: str) -> None:
    table = tmp_path / "rows"
    for number in (7, 8):
        rows = pa.table({"visitor": [number, 9], "plan": [f"a{mark}b", f"c{mark}d"]})
        write_deltalake(table, rows, mode="append" if number == 8 else "error")
    remove = erasure.make_entity_remover(SPEC, "8")

    assert erasure.first_version_with(table, remove) == 1
    assert erasure.erase(table, remove, set()) == 1
    assert sorted(DeltaTable(table).to_pyarrow_table()["plan"].to_pylist()) == [f"a{mark}b", *[f"c{mark}d"] * 2]


REQUESTS = pd.DataFrame({"pages": [1, 2, 3], "plan": ["a", "b", "c"]})
RESPONSES = {"scores": [0.1, 0.2, 0.3], "positive": [0, 1, 1]}


def write_candidate(folder: Path) -> tuple[Path, Path]:
    REQUESTS.to_parquet(folder / "requests.parquet", index=False)
    (folder / "answers.json").write_text(json.dumps(RESPONSES))
    return folder / "requests.parquet", folder / "answers.json"


@pytest.mark.parametrize("call", [(atomic_files, "sync"), (Path, "replace")])
@pytest.mark.parametrize("when", range(4))
def test_erase_golden_crash_keeps_files_consistent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[object, str], when: int
) -> None:
    requests, responses = write_candidate(tmp_path)
    left, real = iter(range(when)), getattr(*call)

    def die_at_call(target: object, *options: object) -> object:
        if next(left, None) is None:
            if call[0] is atomic_files and Path(str(target)).is_file():
                os.truncate(str(target), 10)  # bytes that were not on the disk yet
            raise ProcessDiedError
        return real(target, *options)

    with monkeypatch.context() as died:
        died.setattr(*call, die_at_call)
        with contextlib.suppress(ProcessDiedError):
            erasure.erase_golden_requests(tmp_path, (requests.name, responses.name), REQUESTS.iloc[[0]])
    # Another entity is erased first.
    erasure.erase_golden_requests(tmp_path, (requests.name, responses.name), REQUESTS.iloc[[1]])
    erasure.erase_golden_requests(tmp_path, (requests.name, responses.name), REQUESTS.iloc[[0]])

    assert pd.read_parquet(requests)["pages"].tolist() == [3]
    assert json.loads(responses.read_text()) == {"scores": [0.3], "positive": [1]}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["answers.json", "requests.parquet"]


def test_erase_golden_older_contract_compares_shared_columns(tmp_path: Path) -> None:
    requests, responses = write_candidate(tmp_path)

    removed = erasure.erase_golden_requests(
        tmp_path, (requests.name, responses.name), REQUESTS.iloc[[0]].rename(columns={"plan": "tariff"})
    )

    assert removed == 1
    assert pd.read_parquet(requests)["pages"].tolist() == [2, 3]


def test_read_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"\xef\xbb\xbfvisitor,plan\n7,a\n8,b\n")

    assert row_removal.read_without_entities(file, SPEC, "7".__eq__) == (b"visitor,plan\n8,b\n", [0])
