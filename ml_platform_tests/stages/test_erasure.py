"""Rows of one entity are taken out of every format, and nothing else is touched."""

import contextlib
import errno
import gzip
import io
import json
import os
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from ml_platform import durable
from ml_platform.errors import ConfigurationError, DataError, StorageError
from ml_platform.stages import erasure
from ml_platform_tests import fakes

SPEC = fakes.visits_spec()
CSV = 'visitor,plan\n"007","a\nb"\n8,"say ""x"""\n\n7.0,c\n'


@pytest.mark.parametrize("value", [7, 7.0, "7", "007", " 7", "7.0", "7.00", b"7", Decimal("7.0000")])
def test_equal_numbers_are_the_same_entity_however_they_are_written(value: object) -> None:
    assert erasure.canonical(value, SPEC) == "7"


def test_a_great_number_is_the_same_entity_as_a_float() -> None:
    assert erasure.canonical(1e16, SPEC) == erasure.canonical(10**16, SPEC) == "1" + "0" * 16


@pytest.mark.parametrize("value", ["7.5", "seven", "", None, "nan", "inf", "1e999999999", "0e999999999", "9" * 5_000])
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
    assert [made.name for made in file.parent.iterdir()] == ["forget.key"]

    assert erasure.read_key(file, make=True) == erasure.read_key(file, make=False) == key
    assert file.stat().st_mode & 0o777 == 0o600
    assert len({erasure.keyed_digest(key, *who) for who in [("a", "1"), ("a", "2"), ("b", "1")]}) == 3
    assert erasure.keyed_digest(key, "a", "1") != erasure.keyed_digest(b"another", "a", "1")


@pytest.mark.fault("S1")
def test_a_key_that_could_not_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "forget.key"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="full"):
            erasure.read_key(file, make=True)
    assert list(tmp_path.iterdir()) == []
    file.write_bytes(b"")
    with pytest.raises(ConfigurationError, match="must have 32 bytes"):
        erasure.read_key(file, make=True)


def test_categories_that_nobody_has_any_more_are_not_written(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    plans = pa.array(["secret", "b", None], pa.dictionary(pa.int8(), pa.string(), ordered=True))
    who = pa.array(["7", "8", "9"]).dictionary_encode()
    pq.write_table(pa.table({"visitor": who, "plan": plans}), file)

    data, removed = erasure.without(file, SPEC, "7".__eq__)

    assert removed == [0]
    assert b"secret" not in data
    left = pq.read_table(io.BytesIO(data))
    assert left.to_pydict() == {"visitor": ["8", "9"], "plan": ["b", None]}
    assert left.schema == pq.read_table(file).schema


def test_a_column_that_comes_twice_hides_nobody(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("visitor,visitor\n1,7\n7,1\n1\n")

    assert erasure.without(file, SPEC, "7".__eq__)[1] == [0, 1]


def test_files_that_were_replaced_by_one_are_not_counted_again(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    rows = [pa.table({"visitor": [number, number + 10], "pages": [1, 2]}) for number in (7, 8)]
    for number, some in enumerate(rows):
        write_deltalake(table, some, mode="append" if number else "error")
    DeltaTable(table).optimize.compact()

    lost = erasure.erase(table, erasure.rows_without(SPEC, "7"), set())

    assert lost == 2
    assert sorted(DeltaTable(table).to_pyarrow_table()["visitor"].to_pylist()) == [8, 17, 18]
    assert DeltaTable(table, version=0).to_pyarrow_table()["visitor"].to_pylist() == [17]


class ProcessDiedError(Exception):
    """A process that died at this very call."""


REQUESTS = pd.DataFrame({"pages": [1, 2, 3], "plan": ["a", "b", "c"]})
ANSWERS = {"scores": [0.1, 0.2, 0.3], "positive": [0, 1, 1]}


def candidate_in(folder: Path) -> tuple[Path, Path]:
    REQUESTS.to_parquet(folder / "requests.parquet", index=False)
    (folder / "answers.json").write_text(json.dumps(ANSWERS))
    return folder / "requests.parquet", folder / "answers.json"


@pytest.mark.parametrize("call", [(durable, "sync"), (Path, "replace")])
@pytest.mark.parametrize("when", range(4))
def test_requests_and_answers_go_together_wherever_a_process_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[object, str], when: int
) -> None:
    requests, answers = candidate_in(tmp_path)
    left, real = iter(range(when)), getattr(*call)

    def die_at_last(target: object, *options: object) -> object:
        if next(left, None) is None:
            if call[0] is durable and Path(str(target)).is_file():
                os.truncate(str(target), 10)  # what was not on the disk yet
            raise ProcessDiedError
        return real(target, *options)

    with monkeypatch.context() as died:
        died.setattr(*call, die_at_last)
        with contextlib.suppress(ProcessDiedError):
            erasure.requests_without(tmp_path, (requests.name, answers.name), REQUESTS.iloc[[0]])
    # Somebody else is forgotten first.
    erasure.requests_without(tmp_path, (requests.name, answers.name), REQUESTS.iloc[[1]])
    erasure.requests_without(tmp_path, (requests.name, answers.name), REQUESTS.iloc[[0]])

    assert pd.read_parquet(requests)["pages"].tolist() == [3]
    assert json.loads(answers.read_text()) == {"scores": [0.3], "positive": [1]}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["answers.json", "requests.parquet"]


def test_requests_of_an_older_contract_are_compared_by_what_they_share(tmp_path: Path) -> None:
    requests, answers = candidate_in(tmp_path)

    taken = erasure.requests_without(
        tmp_path, (requests.name, answers.name), REQUESTS.iloc[[0]].rename(columns={"plan": "tariff"})
    )

    assert taken == 1
    assert pd.read_parquet(requests)["pages"].tolist() == [2, 3]


def test_a_byte_order_mark_hides_nobody(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"\xef\xbb\xbfvisitor,plan\n7,a\n8,b\n")

    assert erasure.without(file, SPEC, "7".__eq__) == (b"visitor,plan\n8,b\n", [0])
