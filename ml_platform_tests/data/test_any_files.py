"""Rows in are rows published, quarantined and passed over, for any file; the next file is always processed."""

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_platform.records.data import BatchResult, Outcome
from ml_platform.storage.delta_table import ARRIVAL
from ml_platform_tests.support import fakes
from ml_platform_tests.support.steps import publish

NAMES = ["visitor", "seen_at", "pages", "seconds", "plan", "bought"]
GOOD = st.fixed_dictionaries(
    {
        "visitor": st.integers(1, 6),
        "seen_at": st.sampled_from([f"2024-01-0{day}T00:00:00Z" for day in range(1, 4)]),
        "pages": st.integers(0, 3),
        "seconds": st.sampled_from([0.5, 1.5]),
        "plan": st.sampled_from(["free", "paid"]),
        "bought": st.sampled_from(["yes", "no"]),
    }
)
ODD = st.sampled_from(
    [
        "",
        " ",
        "x",
        '"',
        '""',
        'a"b',
        "\n",
        "\r\n",
        ",",
        "0x7",
        "+1",
        "1.0",
        "-1",
        "nan",
        "inf",
        "1e400",
        "é",
        "null",
        "2024-01-01",
    ]
) | st.text(st.characters(codec="utf-8"), max_size=3)
ROWS = st.lists(
    st.tuples(GOOD, st.just({}) | st.dictionaries(st.sampled_from(NAMES), ODD, max_size=2)), min_size=1, max_size=12
)
DAMAGE = st.none() | st.tuples(st.integers(0, 2_000), st.integers(0, 4), st.binary(max_size=4))
KINDS = st.sampled_from([".csv", ".csv.gz", ".jsonl", ".parquet"])
LINES = st.sampled_from(["null", "[]", "{", "{}", '"a', "\x00", "1,2", "", ",,,,,,,,"])
FILES = st.lists(st.tuples(KINDS, ROWS, st.lists(LINES, max_size=2), DAMAGE), min_size=1, max_size=3)

Rows = Sequence[tuple[dict[str, Any], dict[str, Any]]]


def write(
    kind: str, rows: Rows, lines: Sequence[str], damage: tuple[int, int, bytes] | None
) -> tuple[bytes, int | None]:
    """Return the bytes of a file, and the number of its rows; ``None`` if damage or odd lines leave it open."""
    records = [{**row, **changes} for row, changes in rows]
    if kind == ".parquet":
        frame = pd.DataFrame(records)
        frame["seen_at"] = pd.to_datetime(frame["seen_at"], utc=True, errors="coerce", format="ISO8601").astype(
            "datetime64[us, UTC]"
        )
        frame = frame.assign(**{name: frame[name].astype(str) for name in NAMES[2:] if frame[name].dtype == object})
        frame["visitor"] = (
            pd.to_numeric(frame["visitor"], errors="coerce").fillna(9).astype(float).clip(-9, 9).astype(int)
        )
        written = io.BytesIO()
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), written)
        data = written.getvalue()
    else:
        data = (write_json if kind == ".jsonl" else write_csv)(records, lines)
    if damage is not None:
        start, size, new = damage
        data = data[:start] + new + data[start + size :]
    return (gzip.compress(data) if kind == ".csv.gz" else data), None if damage or lines else len(records)


def write_csv(records: list[dict[str, Any]], lines: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    # Python leaves a lone "\r" unquoted by itself, and reads it as the end of a line.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([NAMES, *([row[name] for name in NAMES] for row in records)])
    return (text.getvalue() + "".join(f"{line}\n" for line in lines)).encode()


def write_json(records: list[dict[str, Any]], lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in [*map(json.dumps, records), *lines]).encode()


def ingest(folder: Path, files: list[tuple[str, bytes]], tolerance: float) -> tuple[list[BatchResult], dict[str, int]]:
    """Ingest files in one run; return their outcomes by name, and the number of rows in the table by arrival."""
    platform = fakes.platform_in(folder)
    spec = fakes.visits_spec(min_batch_rows=1, quarantine_tolerance=tolerance)
    for name, data in files:
        (fakes.landing(platform) / "visits" / name).write_bytes(data)
    try:
        results = publish(platform, spec)
        table = platform.rows("visits")
        arrivals = DeltaTable(table).to_pyarrow_table(columns=[ARRIVAL])[ARRIVAL].to_pylist() if table.exists() else []
    finally:
        platform.database.close()
    return results, {key: arrivals.count(key) for key in set(arrivals)}


def check_files(files: list[tuple[str, Rows, list[str], Any]], tolerance: float) -> None:
    written = [(f"{number}{kind}", *write(kind, *rest)) for number, (kind, *rest) in enumerate(files)]
    last = fakes.visits(20, first=1_000).to_csv(index=False, date_format="%Y-%m-%dT%H:%M:%SZ").encode()
    with tempfile.TemporaryDirectory() as folder:
        named = [(name, data) for name, data, _ in written]
        results, published = ingest(Path(folder), [*named, ("last.csv", last)], tolerance)

    by_name = {result.arrival.name: result for result in results}
    assert set(by_name) == {"last.csv", *(name for name, _ in named)}
    assert (by_name["last.csv"].outcome, by_name["last.csv"].published_rows) == (Outcome.PUBLISHED, 20)
    assert {key: count for key, count in published.items() if count} == {
        result.arrival.key: result.published_rows for result in results if result.published_rows
    }
    for name, _, rows in written:
        result = by_name[name]
        assert min(result.rows, result.quarantined_rows, result.passed_over_rows, result.published_rows) >= 0
        if rows is not None and result.outcome is not Outcome.DUPLICATE:
            assert result.rows == rows, (result, result.reason)


@pytest.mark.slow
@pytest.mark.fault("D19")
@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(FILES, st.sampled_from([0.05, 1.0]))
def test_any_files_lose_no_row(files: Any, tolerance: float) -> None:
    check_files(files, tolerance)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@settings(max_examples=3_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(FILES, st.sampled_from([0.05, 1.0]))
def test_many_files_lose_no_row(files: Any, tolerance: float) -> None:
    check_files(files, tolerance)
