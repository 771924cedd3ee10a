"""A file that ends its reader, or raises any error, is that file's outcome; the next good file is published."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml_platform.data import reading
from ml_platform.data.ingest import READINGS, preview_batch, publish_batches, store_raw_batches
from ml_platform.data.landing import list_arrivals
from ml_platform.errors import LONGEST_VALUE, ConfigurationError, PlatformError
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.data import BatchResult
from ml_platform.settings import Settings
from ml_platform.storage import delta_table
from ml_platform_tests.support import deadly_contract, fakes

SPEC = fakes.visits_spec()
DEADLY = fakes.visits_spec(contract=deadly_contract.DeadlyVisits)


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return make_platform(tmp_path)


def make_platform(home: Path, **settings: Any) -> Platform:
    (home / "landing" / "visits").mkdir(parents=True, exist_ok=True)
    return Platform(Settings(home=home, **settings))


def make_table(*, pages: int | None = None, first: int = 1) -> pa.Table:
    rows = fakes.visits(60, first=first)
    if pages is not None:
        rows.loc[0, "pages"] = pages
    return pa.Table.from_pandas(rows, preserve_index=False)


def land(platform: Platform, name: str, content: pa.Table | bytes) -> None:
    path = Path(platform.zone.address) / "visits" / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(content, path)


def ingest(platform: Platform, spec: ModelSpec = SPEC) -> dict[str, BatchResult]:
    keys = [arrival.key for arrival in list_arrivals(platform, "visits")]
    batches, _ = store_raw_batches(platform, "visits", keys)
    for batch in batches:
        preview_batch(platform, spec, batch)
    return {result.arrival.name: result for result in publish_batches(platform, spec, keys)}


def require_outcomes(results: dict[str, BatchResult], reason: str) -> None:
    """Require that the bad file was quarantined for a reason, and the good one published."""
    assert results["a.parquet"].outcome.value == "quarantined"
    assert reason in results["a.parquet"].reason
    assert results["b.parquet"].outcome.value == "published"


@pytest.mark.fault("D22")
@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        (deadly_contract.CRASHES, "it ended the process that read it, 2 times: it was ended by SIGSEGV"),
        (deadly_contract.HANGS, "it took longer than 1 s"),
        (deadly_contract.BLOATS, "it needed more than 268,435,456 bytes"),
        (deadly_contract.EXITS, "it ended the process that read it, 2 times: it ended with status 3"),
    ],
)
def test_file_ending_reader_is_quarantined(tmp_path: Path, pages: int, reason: str) -> None:
    seconds = 1.0 if pages == deadly_contract.HANGS else 60.0
    platform = make_platform(tmp_path, reader_seconds=seconds, reader_memory_bytes=2**28)
    land(platform, "a.parquet", make_table(pages=pages))
    land(platform, "b.parquet", make_table(first=100))
    require_outcomes(ingest(platform, DEADLY), reason)
    assert len(ingest(platform, DEADLY)) == 2


@pytest.mark.fault("D22")
def test_null_first_json_line_is_quarantined(platform: Platform) -> None:
    land(platform, "a.jsonl", b'null\n{"visitor": 1}\n')
    land(platform, "b.parquet", make_table())
    results = ingest(platform)
    assert {name: result.outcome.value for name, result in results.items()} == {
        "a.jsonl": "quarantined",
        "b.parquet": "published",
    }


@pytest.mark.fault("D22")
@pytest.mark.parametrize("zone", ["Z", "UTC+0", "+00:00", "Etc/UTC", "Zulu", "GMT"])
def test_other_name_of_utc_is_published(platform: Platform, zone: str) -> None:
    land(platform, "a.parquet", with_zone(zone))
    assert [result.rows for result in ingest(platform).values()] == [60]
    published = pq.read_table(next(platform.rows("visits").glob("*.parquet")))
    assert published["seen_at"].equals(make_table()["seen_at"])


@pytest.mark.fault("D22")
@pytest.mark.parametrize("zone", ["Mars/Olympus", "\0", "UTC+25"])
def test_unknown_time_zone_is_quarantined(platform: Platform, zone: str) -> None:
    land(platform, "a.parquet", with_zone(zone))
    land(platform, "b.parquet", make_table(first=100))
    require_outcomes(ingest(platform), "column 'seen_at' has the unknown time zone")


def with_zone(zone: str) -> pa.Table:
    rows = make_table()
    times = rows["seen_at"].cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.timestamp("us", tz=zone))
    return rows.set_column(rows.schema.get_field_index("seen_at"), "seen_at", times)


def test_killed_idle_reader_is_replaced(platform: Platform) -> None:
    land(platform, "a.parquet", make_table())
    assert ingest(platform)["a.parquet"].rows == 60
    first = reading.reader_pid()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    land(platform, "b.parquet", make_table(first=100))
    assert ingest(platform)["b.parquet"].rows == 60
    assert reading.reader_pid() not in {None, first}


def test_one_reader_serves_all_files(platform: Platform) -> None:
    reading.start_early()
    first = reading.reader_pid()
    for number in range(5):
        land(platform, f"{number}.parquet", make_table(first=1 + 100 * number))
    assert len(ingest(platform)) == 5
    assert reading.reader_pid() == first


@pytest.mark.fault("D22")
def test_reading_that_never_ended_is_quarantined(platform: Platform) -> None:
    land(platform, "a.parquet", make_table())
    keys = [arrival.key for arrival in list_arrivals(platform, "visits")]
    store_raw_batches(platform, "visits", keys)
    for _ in range(READINGS):
        platform.database.begin_reading("visits", keys[0])
    land(platform, "b.parquet", make_table(first=100))
    require_outcomes(ingest(platform), "its reading began 5 times and never ended")


@pytest.mark.fault("D22")
@pytest.mark.parametrize("seed", range(2))
def test_reader_killed_while_reading_loses_no_file(platform: Platform, seed: int) -> None:
    for number in range(8):
        land(platform, f"{number}.parquet", make_table(first=1 + 100 * number))
    stop, moments = threading.Event(), random.Random(seed)  # noqa: S311

    def kill_readers() -> None:
        killed = set[int]()
        # Three deaths at random moments: no file can have more than one of two readings ended by each.
        while len(killed) < 3 and not stop.wait(moments.random() / 5):
            pid = reading.reader_pid()
            if pid is not None and pid not in killed:
                killed.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_readers)
    killer.start()
    try:
        results = ingest(platform)
    except ConfigurationError:  # two readers were killed before they had started
        results = ingest(platform)
    finally:
        stop.set()
        killer.join()
    results = ingest(platform)
    bad = [result for result in results.values() if result.outcome.value != "published"]
    assert len(results) == 8
    assert len(bad) <= 1
    assert all("SIGKILL" in result.reason for result in bad)
    opened = delta_table._open(platform.rows("visits"))
    assert opened.count() == 60 * (8 - len(bad))


@pytest.mark.fault("D22")
def test_two_ingestions_at_once_publish_once(platform: Platform) -> None:
    for number in range(6):
        land(platform, f"{number}.parquet", make_table(first=1 + 100 * number))
    land(platform, "null.jsonl", b"null\n")
    program = (
        "import sys; from ml_platform.settings import Settings; from ml_platform.platform import Platform; "
        "from pathlib import Path; from ml_platform_tests.data.test_reading import ingest; "
        "ingest(Platform(Settings(home=Path(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", program, str(platform.settings.home)]
    platform.database.close()
    others = [subprocess.Popen(command) for _ in range(2)]
    assert [other.wait(120) for other in others] == [0, 0]
    results = ingest(platform)
    assert {name for name, result in results.items() if result.outcome.value == "published"} == set(results) - {
        "null.jsonl"
    }
    assert delta_table._open(platform.rows("visits")).count() == 360


def test_failed_publication_counts_no_reading(platform: Platform) -> None:
    land(platform, "a.parquet", make_table())
    other = make_table(first=1000).drop_columns(["plan"])
    delta_table.publish(platform.rows("visits"), other, arrival="x", sha256="x", notes={"quarantined_rows": 0})
    for _ in range(READINGS + 1):
        with pytest.raises(PlatformError):
            ingest(platform)
    shutil.rmtree(platform.rows("visits"))
    assert ingest(platform)["a.parquet"].outcome.value == "published"


def test_large_bad_values_are_cut(platform: Platform) -> None:
    rows = make_table()
    texts = pa.array(["x" * 2_000_000] * 10 + ["free"] * 50)
    land(platform, "a.parquet", rows.set_column(rows.schema.get_field_index("plan"), "plan", texts))
    result = ingest(platform)["a.parquet"]
    assert f"{'x' * LONGEST_VALUE}… (2,000,000 characters)" in str(result.examples)
    assert len(str(result.examples)) < 10_000


def test_ten_thousand_columns_are_summarized(platform: Platform) -> None:
    land(platform, "a.parquet", pa.table({f"column_{number}": [1] for number in range(10_000)}))
    land(platform, "b.parquet", make_table())
    results = ingest(platform)
    require_outcomes(results, "column 'bought' is missing")
    assert len(str(results["a.parquet"].rules)) < 20_000
    assert sum(results["a.parquet"].rules["schema"].values()) == 10_006
