"""Bombs: small files with large content, or with wrong sizes in their headers."""

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

from ml_platform.data import datasets, quarantine, row_removal
from ml_platform.data.ingest import publish_batches, store_raw_batches
from ml_platform.data.landing import waiting_arrivals
from ml_platform.data.validation import validate
from ml_platform.data.validation.size_limits import require_bounded
from ml_platform.errors import DataError, TooLargeError, UnreadableFileError
from ml_platform.governance import forget
from ml_platform.platform import Platform
from ml_platform.records.data import Arrival, BatchResult, Outcome
from ml_platform.storage.landing_zone import LocalZone
from ml_platform_tests.support import fakes

MAX_BYTES, MAX_ROWS = 100_000, 1_000
SPEC = fakes.visits_spec(max_batch_rows=MAX_ROWS, min_batch_rows=50)
ROWS = fakes.visits(60)
HEADER = ",".join(map(str, ROWS))
LINE = b"1,2024-01-01T00:00:00Z,2,3,free,no\n"


def parquet(rows: pd.DataFrame | pa.Table, **options: object) -> bytes:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(rows, preserve_index=False)
    written = pa.BufferOutputStream()
    pq.write_table(table, written, **options)
    return bytes(written.getvalue())


def varint(number: int) -> bytes:
    """Encode a number as in Thrift's compact protocol."""
    remaining, written = number << 1, b""
    while remaining > 127:
        written += bytes([remaining & 127 | 128])
        remaining >>= 7
    return written + bytes([remaining])


def with_wrong_number(data: bytes, right: int, wrong: int) -> bytes:
    """Replace all occurrences of a number in a Parquet file's footer."""
    length = struct.unpack("<I", data[-8:-4])[0]
    footer = data[-8 - length : -8]
    assert footer.count(varint(right)) > 0
    assert len(varint(right)) == len(varint(wrong))
    return data[: -8 - length] + footer.replace(varint(right), varint(wrong)) + data[-8:]


def with_plan(rows: pd.DataFrame, plans: pa.Array) -> pa.Table:
    return pa.Table.from_pandas(rows, preserve_index=False).set_column(4, "plan", plans)


def repeated_text(rows: int, length: int) -> bytes:
    """Return rows that share a long text, which the file stores once."""
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["x" * length])
    return parquet(with_plan(fakes.visits(rows), shared), store_schema=False)


def long_texts() -> pa.Table:
    return with_plan(ROWS, pa.array([chr(ord("A") + number) * 10_000 for number in range(len(ROWS))]))


def size_hidden() -> bytes:
    data = parquet(long_texts(), compression="zstd", use_dictionary=False)
    group = pq.read_metadata(pa.BufferReader(data)).row_group(0)
    hidden = with_wrong_number(data, group.total_byte_size, 9_000)
    return with_wrong_number(hidden, group.column(4).total_uncompressed_size, 9_000)


BOMBS: dict[str, tuple[str, Callable[[], bytes], str, str]] = {
    "file": ("a.parquet", lambda: os.urandom(MAX_BYTES + 1), "volume", "it has 100,001 bytes, and .* most 100,000 "),
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
    "missing rows": (
        "a.parquet",
        lambda: with_wrong_number(parquet(ROWS), 60, 61),
        "schema",
        "61 values .* pages have 60",
    ),
    "hidden rows": (
        "a.parquet",
        lambda: with_wrong_number(parquet(fakes.visits(1_500)), 1_500, 500),
        "schema",
        "its footer names 500 values of column 'visitor', and its pages have 1,500",
    ),
    "hidden bytes": ("a.parquet", size_hidden, "volume", "its pages decompress to more than 100,000 bytes"),
}


def ingest(platform: Platform) -> list[BatchResult]:
    keys = [arrival.key for arrival in waiting_arrivals(platform, "visits")]
    store_raw_batches(platform, "visits", keys)
    return publish_batches(platform, SPEC, keys)


def drop(platform: Platform, name: str, data: bytes) -> None:
    (fakes.landing(platform) / "visits" / name).write_bytes(data)


class SmallFilesZone(LocalZone):
    """A landing zone that fails if a too large file is copied."""

    def copy(self, arrival: Arrival, target: Path) -> str:
        assert arrival.size <= MAX_BYTES
        return super().copy(arrival, target)


@pytest.fixture
def limited(platform: Platform) -> Platform:
    """Return a platform with a small limit on file sizes."""
    return Platform(platform.settings.model_copy(update={"max_file_bytes": MAX_BYTES}))


@pytest.mark.slow
@pytest.mark.fault("D18")
@pytest.mark.parametrize("case", BOMBS.values(), ids=list(BOMBS))
def test_bomb_is_quarantined_and_next_file_published(
    limited: Platform, case: tuple[str, Callable[[], bytes], str, str]
) -> None:
    name, make, check, reason = case
    drop(limited, name, make())

    (bad,) = ingest(limited)

    assert bad.outcome is Outcome.QUARANTINED
    assert set(bad.rules) == {check}
    assert re.search(reason, bad.reason), bad.reason
    assert not limited.rows("visits").exists()
    assert ingest(limited) == []
    drop(limited, "good.parquet", parquet(ROWS))
    (good,) = ingest(limited)
    assert (good.outcome, good.rows, good.quarantined_rows) == (Outcome.PUBLISHED, 60, 0)
    assert datasets.pin(limited.rows("visits"), SPEC)[0].rows == 60


@pytest.mark.fault("D18")
def test_too_large_file_is_stored_as_note(limited: Platform) -> None:
    drop(limited, "a.csv", LINE * (MAX_BYTES // len(LINE) + 1))
    ingest(limited)

    (stored,) = (limited.settings.model_home("visits") / "raw").iterdir()
    assert json.loads(stored.read_bytes())["name"] == "a.csv"
    assert row_removal.read_without_entities(stored, SPEC, lambda _: True) == (b"", [])
    (released,) = quarantine.release(limited, SPEC, [], actor="test")
    assert (released["outcome"], released["released_rows"], released["stays"]) == ("quarantined", 0, True)
    assert "at most 100,000 (ML_PLATFORM_MAX_FILE_BYTES)" in released["reason"]


@pytest.mark.fault("D18")
def test_forget_names_too_large_file(limited: Platform) -> None:
    drop(limited, "good.parquet", parquet(ROWS))
    drop(limited, "a.csv", LINE * (MAX_BYTES // len(LINE) + 1))
    ingest(limited)
    limited.__dict__["zone"] = SmallFilesZone(fakes.landing(limited))

    forgotten = forget.forget(limited, SPEC, "1", reason="asked", actor="test")

    assert forgotten["unsearched"] == [f"{limited.zone.address}/visits/a.csv"]


@pytest.mark.fault("D18")
def test_two_too_large_files_are_two_arrivals(limited: Platform) -> None:
    for name in ("a.csv", "b.csv"):
        drop(limited, name, LINE * (MAX_BYTES // len(LINE) + 1))

    assert [result.outcome for result in ingest(limited)] == [Outcome.QUARANTINED] * 2


@pytest.mark.fault("D18")
def test_forget_does_not_search_bomb(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(LINE * 10_000))

    with pytest.raises(DataError, match="more than 100,000 bytes once it is decompressed"):
        row_removal.read_without_entities(tmp_path / "a.csv.gz", SPEC, lambda _: True, MAX_BYTES)


@pytest.mark.fault("D18")
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet"])
def test_file_at_limit_is_accepted(tmp_path: Path, name: str) -> None:
    rows = fakes.visits(MAX_ROWS)
    text = rows.to_csv(index=False).encode()
    data = {"a.csv": text, "a.csv.gz": gzip.compress(text), "a.parquet": parquet(rows)}[name]
    (tmp_path / name).write_bytes(data)
    size = len(data) if name == "a.parquet" else len(text)

    report = validate.validate_file(tmp_path / name, SPEC, None, max(size, MAX_BYTES))

    assert (report.problem, report.rows) == (None, MAX_ROWS)
    with pytest.raises(TooLargeError, match=f"at most {len(data) - 1:,} are taken"):
        require_bounded(tmp_path / name, MAX_ROWS, len(data) - 1)
    with pytest.raises(TooLargeError, match="at most 999 "):
        require_bounded(tmp_path / name, MAX_ROWS - 1)


@pytest.mark.fault("D18")
def test_bomb_rows_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(repeated_text(60, 10_000))
    report = validate.validate_file(tmp_path / "a.parquet", SPEC, None, MAX_BYTES)

    def read() -> pa.Table:
        raise AssertionError

    assert replace(report, read=read).valid.num_rows == 0


def test_footer_with_wrong_row_count_is_refused(tmp_path: Path) -> None:
    data = parquet(fakes.visits(200), row_group_size=100)
    (tmp_path / "a.parquet").write_bytes(with_wrong_number(data, 200, 150))

    with pytest.raises(UnreadableFileError, match="counts other rows than its row groups do"):
        require_bounded(tmp_path / "a.parquet", MAX_ROWS)


MEASURE = """
import sys
from pathlib import Path
from ml_platform.data.validation.validate import validate_file
from ml_platform_tests.support import fakes

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

spec = fakes.visits_spec()
folder = Path(sys.argv[1])
validate_file(folder / "good.parquet", spec)
before = peak()
for bomb in sorted(folder.glob("bomb*")):
    print(validate_file(bomb, spec, None, 2**28).problem)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.fault("D18")
@pytest.mark.skipif(sys.platform != "linux", reason="the peak memory of a process is read from /proc")
def test_bomb_memory_is_bounded(tmp_path: Path) -> None:
    member = gzip.compress(LINE * 500_000)
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(HEADER.encode() + b"\n") + member * 60)  # 1 GB
    (tmp_path / "bomb.parquet").write_bytes(repeated_text(2_000, 1_000_000))  # 2 GB
    (tmp_path / "good.parquet").write_bytes(parquet(ROWS))

    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)

    *problems, megabytes = done.stdout.splitlines()
    assert ["268,435,456" in problem for problem in problems] == [True, True]
    assert float(megabytes) < 100
