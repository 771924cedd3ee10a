"""Bombs: files that are small and hold much, or say that they do not."""

import gzip
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml_platform import corrections, workflows
from ml_platform.errors import DataError, TooLargeError, UnreadableFileError
from ml_platform.records import Arrival, BatchResult, Outcome
from ml_platform.stages import datasets, erasure, validation
from ml_platform.stages._landing import LocalZone
from ml_platform.volumes import require_bounded
from ml_platform.workflows import Platform
from ml_platform_tests import fakes

MOST_BYTES, MOST_ROWS = 100_000, 1_000
SPEC = fakes.visits_spec(most_rows_a_batch=MOST_ROWS, least_rows_a_batch=50)
ROWS = fakes.visits(60)
HEADER = ",".join(map(str, ROWS))
LINE = b"1,2024-01-01T00:00:00Z,2,3,free,no\n"


def parquet(rows: pd.DataFrame | pa.Table, **options: object) -> bytes:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(rows, preserve_index=False)
    written = pa.BufferOutputStream()
    pq.write_table(table, written, **options)
    return bytes(written.getvalue())


def varint(number: int) -> bytes:
    """Write a number as Thrift's compact protocol does."""
    left, written = number << 1, b""
    while left > 127:
        written += bytes([left & 127 | 128])
        left >>= 7
    return written + bytes([left])


def lying(data: bytes, truth: int, lie: int) -> bytes:
    """Replace a number wherever a Parquet file's footer says it."""
    length = struct.unpack("<I", data[-8:-4])[0]
    footer = data[-8 - length : -8]
    assert footer.count(varint(truth)) > 0
    assert len(varint(truth)) == len(varint(lie))
    return data[: -8 - length] + footer.replace(varint(truth), varint(lie)) + data[-8:]


def with_plan(rows: pd.DataFrame, plans: pa.Array) -> pa.Table:
    return pa.Table.from_pandas(rows, preserve_index=False).set_column(4, "plan", plans)


def repeated_text(rows: int, length: int) -> bytes:
    """Return rows that share a long text, which their file has once."""
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["x" * length])
    return parquet(with_plan(fakes.visits(rows), shared), store_schema=False)


def long_texts() -> pa.Table:
    return with_plan(ROWS, pa.array([chr(ord("A") + number) * 10_000 for number in range(len(ROWS))]))


def size_hidden() -> bytes:
    data = parquet(long_texts(), compression="zstd", use_dictionary=False)
    group = pq.read_metadata(pa.BufferReader(data)).row_group(0)
    hidden = lying(data, group.total_byte_size, 9_000)
    return lying(hidden, group.column(4).total_uncompressed_size, 9_000)


BOMBS: dict[str, tuple[str, Callable[[], bytes], str, str]] = {
    "file": ("a.parquet", lambda: os.urandom(MOST_BYTES + 1), "volume", "it has 100,001 bytes, and .* most 100,000 "),
    "gzip": ("a.csv.gz", lambda: gzip.compress(HEADER.encode() + b"\n" + b"1" * 10**7), "volume", "than 100,000 bytes"),
    "gzip members": (
        "a.csv.gz",
        lambda: gzip.compress(HEADER.encode() + b"\n") + gzip.compress(LINE * 100) * 100,
        "volume",
        "more than 100,000 bytes once it is decompressed",
    ),
    "lines": ("a.csv.gz", lambda: gzip.compress(b"\n" * 90_000), "volume", "than 1,001 lines, at most 1,000 rows"),
    "old lines": ("a.csv.gz", lambda: gzip.compress(b"\r" * 90_000), "volume", "than 1,001 lines, at most 1,000 rows"),
    "rows": ("a.parquet", lambda: parquet(fakes.visits(1_001)), "volume", "it has 1,001 rows, at most 1,000 are taken"),
    "few rows": ("a.parquet", lambda: parquet(fakes.visits(49)), "volume", "it has 49 rows, at least 50 are asked for"),
    "pages": (
        "a.parquet",
        lambda: parquet(long_texts(), compression="zstd"),
        "volume",
        "bytes once it is decompressed, at most 100,000 are taken",
    ),
    "one text": ("a.parquet", lambda: repeated_text(60, 10_000), "volume", "its texts have 600,[0-9]+ bytes in all"),
    "rows that are none": ("a.parquet", lambda: lying(parquet(ROWS), 60, 61), "schema", "61 values .* pages have 60"),
    "hidden rows": (
        "a.parquet",
        lambda: lying(parquet(fakes.visits(1_500)), 1_500, 500),
        "schema",
        "its footer names 500 values of column 'visitor', and its pages have 1,500",
    ),
    "hidden bytes": ("a.parquet", size_hidden, "volume", "its pages decompress to more than 100,000 bytes"),
}


def ingest(platform: Platform) -> list[BatchResult]:
    keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, "visits")]
    workflows.keep_raw_batches(platform, "visits", keys)
    return workflows.publish_batches(platform, SPEC, keys)


def drop(platform: Platform, name: str, data: bytes) -> None:
    (fakes.landing(platform) / "visits" / name).write_bytes(data)


class TakesLittle(LocalZone):
    """A landing zone out of which nobody may copy a file that is too large."""

    def copy(self, arrival: Arrival, target: Path) -> str:
        assert arrival.size <= MOST_BYTES
        return super().copy(arrival, target)


@pytest.fixture
def careful(platform: Platform) -> Platform:
    """Return a platform that takes few bytes."""
    return Platform(platform.settings.model_copy(update={"most_bytes": MOST_BYTES}))


@pytest.mark.fault("D18")
@pytest.mark.parametrize("case", BOMBS.values(), ids=list(BOMBS))
def test_a_bomb_is_quarantined_once_and_the_next_good_file_is_published(
    careful: Platform, case: tuple[str, Callable[[], bytes], str, str]
) -> None:
    name, make, check, reason = case
    drop(careful, name, make())

    (bad,) = ingest(careful)

    assert bad.outcome is Outcome.QUARANTINED
    assert set(bad.rules) == {check}
    assert re.search(reason, bad.reason), bad.reason
    assert not careful.rows("visits").exists()
    assert ingest(careful) == []
    drop(careful, "good.parquet", parquet(ROWS))
    (good,) = ingest(careful)
    assert (good.outcome, good.rows, good.quarantined_rows) == (Outcome.PUBLISHED, 60, 0)
    assert datasets.pin(careful.rows("visits"), SPEC)[0].rows == 60


@pytest.mark.fault("D18")
def test_of_a_file_that_is_too_large_a_note_is_kept_that_is_no_batch(careful: Platform) -> None:
    drop(careful, "a.csv", LINE * (MOST_BYTES // len(LINE) + 1))
    ingest(careful)

    (kept,) = (careful.settings.model_home("visits") / "raw").iterdir()
    assert json.loads(kept.read_bytes())["name"] == "a.csv"
    assert erasure.without(kept, SPEC, lambda _: True) == (b"", [])
    (released,) = corrections.release(careful, SPEC, [], actor="test")
    assert (released["outcome"], released["released_rows"], released["stays"]) == ("quarantined", 0, True)
    assert "at most 100,000 (ML_PLATFORM_MOST_BYTES)" in released["reason"]


@pytest.mark.fault("D18")
def test_a_file_that_is_too_large_is_named_when_somebody_is_forgotten(careful: Platform) -> None:
    drop(careful, "good.parquet", parquet(ROWS))
    drop(careful, "a.csv", LINE * (MOST_BYTES // len(LINE) + 1))
    ingest(careful)
    careful.__dict__["zone"] = TakesLittle(fakes.landing(careful))

    forgotten = corrections.forget(careful, SPEC, "1", reason="asked", actor="test")

    assert forgotten["unsearched"] == [f"{careful.zone.address}/visits/a.csv"]


@pytest.mark.fault("D18")
def test_two_files_that_are_too_large_are_two_arrivals(careful: Platform) -> None:
    for name in ("a.csv", "b.csv"):
        drop(careful, name, LINE * (MOST_BYTES // len(LINE) + 1))

    assert [result.outcome for result in ingest(careful)] == [Outcome.QUARANTINED] * 2


@pytest.mark.fault("D18")
def test_a_bomb_is_not_searched_for_somebody(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(LINE * 10_000))

    with pytest.raises(DataError, match="more than 100,000 bytes once it is decompressed"):
        erasure.without(tmp_path / "a.csv.gz", SPEC, lambda _: True, MOST_BYTES)


@pytest.mark.fault("D18")
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet"])
def test_a_file_with_exactly_what_is_taken_is_taken(tmp_path: Path, name: str) -> None:
    rows = fakes.visits(MOST_ROWS)
    text = rows.to_csv(index=False).encode()
    data = {"a.csv": text, "a.csv.gz": gzip.compress(text), "a.parquet": parquet(rows)}[name]
    (tmp_path / name).write_bytes(data)
    most = len(data) if name == "a.parquet" else len(text)

    report = validation.validate_file(tmp_path / name, SPEC, None, max(most, MOST_BYTES))

    assert (report.problem, report.rows) == (None, MOST_ROWS)
    with pytest.raises(TooLargeError, match=f"at most {len(data) - 1:,} are taken"):
        require_bounded(tmp_path / name, MOST_ROWS, len(data) - 1)
    with pytest.raises(TooLargeError, match="at most 999 "):
        require_bounded(tmp_path / name, MOST_ROWS - 1)


@pytest.mark.fault("D18")
def test_nobody_reads_the_rows_of_a_bomb(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(repeated_text(60, 10_000))
    report = validation.validate_file(tmp_path / "a.parquet", SPEC, None, MOST_BYTES)

    def read() -> pa.Table:
        raise AssertionError

    assert replace(report, read=read).valid.num_rows == 0


def test_a_footer_that_counts_other_rows_than_its_groups_is_refused(tmp_path: Path) -> None:
    data = parquet(fakes.visits(200), row_group_size=100)
    (tmp_path / "a.parquet").write_bytes(lying(data, 200, 150))

    with pytest.raises(UnreadableFileError, match="counts other rows than its row groups do"):
        require_bounded(tmp_path / "a.parquet", MOST_ROWS)


MEASURE = """
import sys
from pathlib import Path
from ml_platform.stages import validation
from ml_platform_tests import fakes

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

spec = fakes.visits_spec()
folder = Path(sys.argv[1])
validation.validate_file(folder / "good.parquet", spec)
before = peak()
for bomb in sorted(folder.glob("bomb*")):
    print(validation.validate_file(bomb, spec, None, 2**28).problem)
print(peak() - before)
"""


@pytest.mark.fault("D18")
@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory a process had at most")
def test_the_memory_that_a_bomb_takes_is_bounded(tmp_path: Path) -> None:
    member = gzip.compress(LINE * 500_000)
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(HEADER.encode() + b"\n") + member * 60)  # a gigabyte
    (tmp_path / "bomb.parquet").write_bytes(repeated_text(2_000, 1_000_000))  # two
    (tmp_path / "good.parquet").write_bytes(parquet(ROWS))

    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)

    *problems, megabytes = done.stdout.splitlines()
    assert ["268,435,456" in problem for problem in problems] == [True, True]
    assert float(megabytes) < 100
