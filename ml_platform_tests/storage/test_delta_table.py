"""Publish batches in a Delta table once, also with concurrent writers."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import deltalake
import pytest
from deltalake import DeltaTable

from ml_platform.data import datasets
from ml_platform.errors import ConflictError, DatasetError
from ml_platform.storage import delta_table
from ml_platform.storage.delta_table import Publication
from ml_platform_tests.support import fakes
from ml_platform_tests.support.delta_tables import arrow, publish

SPEC = fakes.visits_spec()


def test_publish_rows_carry_their_arrival(tmp_path: Path) -> None:
    done = publish(tmp_path / "rows", fakes.visits(10), "a")

    stored = DeltaTable(tmp_path / "rows").to_pyarrow_table()
    rows = stored.drop_columns([delta_table.ARRIVAL])
    assert done == Publication(version=DeltaTable(tmp_path / "rows").version(), notes={"rows": 10})
    assert rows.equals(arrow(fakes.visits(10)).cast(rows.schema))
    assert set(stored[delta_table.ARRIVAL].to_pylist()) == {"a-key"}


@pytest.mark.fault("D2")
def test_publish_same_bytes_commits_once(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    first = publish(table, fakes.visits(10), "a")
    publish(table, fakes.visits(10, first=11), "b")

    again = delta_table.publish(
        table, arrow(fakes.visits(10)), arrival="another-key", sha256="a" * 64, notes={"rows": 99}
    )

    assert again == first == delta_table.published(table, "a" * 64)
    assert DeltaTable(table).to_pyarrow_table().num_rows == 20


@pytest.mark.fault("D28")
@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_publish_unicode_line_break_is_text(tmp_path: Path, mark: str) -> None:
    table = tmp_path / "rows"
    done = publish(table, fakes.visits(2).assign(plan=f"a{mark}b"), "a")
    publish(table, fakes.visits(1, first=3), "b")

    rows = delta_table.open_dataset(table, DeltaTable(table), in_order=True).to_table()

    assert delta_table.published(table, "a" * 64) == done
    assert rows["visitor"].to_pylist() == [1, 2, 3]
    assert rows["plan"].to_pylist()[:2] == [f"a{mark}b"] * 2


def test_publish_batch_is_found_by_digest(tmp_path: Path) -> None:
    table = tmp_path / "rows"

    done = {name: publish(table, fakes.visits(i + 1, first=10 * i + 1), name) for i, name in enumerate("abc")}

    assert [publication.version for publication in done.values()] == [1, 2, 3]
    assert {name: delta_table.published(table, name * 64) for name in "abc"} == done


def test_published_unknown_bytes_is_none(tmp_path: Path) -> None:
    assert delta_table.published(tmp_path / "rows", "a" * 64) is None
    publish(tmp_path / "rows", fakes.visits(1), "a")
    assert delta_table.published(tmp_path / "rows", "b" * 64) is None


def test_publish_after_lost_commit_commits_again(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    publish(table, fakes.visits(5), "a")
    before = {path for path in table.rglob("*") if path.is_file()}
    publish(table, fakes.visits(5, first=6), "b")
    commit = table / "_delta_log" / f"{2:020}.json"
    assert commit not in before
    commit.unlink()  # a writer that is killed before its commit leaves only the file of the rows

    assert delta_table.published(table, "b" * 64) is None
    assert datasets.pin(table, SPEC)[0].rows == 5
    assert publish(table, fakes.visits(5, first=6), "b").version == 2
    assert datasets.pin(table, SPEC)[0].rows == 10


def at_once(*tasks: Callable[[], Publication]) -> list[Publication]:
    """Start the tasks at the same moment in a thread each; return their results."""
    start = threading.Barrier(len(tasks))

    def run(task: Callable[[], Publication]) -> Publication:
        start.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(run, tasks))


@pytest.mark.parametrize("attempt", range(10))
@pytest.mark.parametrize("table_exists", [False, True])
def test_publish_same_bytes_concurrently_commits_once(tmp_path: Path, table_exists: bool, attempt: int) -> None:
    table, rows = tmp_path / "rows", fakes.visits(10, seed=attempt)
    if table_exists:
        publish(table, fakes.visits(10, first=11), "a")

    done = at_once(*[partial(publish, table, rows, "b")] * 3)

    assert done == [delta_table.published(table, "b" * 64)] * 3
    assert done[0].notes == {"rows": 10}
    assert DeltaTable(table).to_pyarrow_table().num_rows == 10 * (1 + table_exists)


@pytest.mark.parametrize("attempt", range(10))
def test_publish_concurrently_returns_right_versions(tmp_path: Path, attempt: int) -> None:
    table = tmp_path / "rows"

    done = at_once(*(partial(publish, table, fakes.visits(i, seed=attempt), name) for i, name in enumerate("abc", 1)))

    assert done == [delta_table.published(table, name * 64) for name in "abc"]
    assert sorted(publication.version for publication in done) == [1, 2, 3]
    for publication in done:
        before, after = (DeltaTable(table, version=publication.version - back) for back in (1, 0))
        added = after.to_pyarrow_table().num_rows - before.to_pyarrow_table().num_rows
        assert added == publication.notes["rows"]


@pytest.fixture
def overtake(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that makes another writer commit first, before each of the next n writes."""
    write = deltalake.write_deltalake

    def overtake_writes(times: int) -> None:
        remaining = iter(range(times))

        def write_second(table: DeltaTable, data: Any, **options: Any) -> None:
            if next(remaining, None) is not None:
                write(table.table_uri, data.slice(0, 0), mode="append")
            write(table, data, **options)

        monkeypatch.setattr(deltalake, "write_deltalake", write_second)

    return overtake_writes


def test_publish_overtaken_writer_retries(tmp_path: Path, overtake: Callable[[int], None]) -> None:
    overtake(delta_table.ATTEMPTS - 2)

    done = publish(tmp_path / "rows", fakes.visits(10), "a")

    assert done.version == DeltaTable(tmp_path / "rows").version() == delta_table.ATTEMPTS - 1
    assert delta_table.published(tmp_path / "rows", "a" * 64) == done


def test_publish_always_overtaken_writes_nothing(tmp_path: Path, overtake: Callable[[int], None]) -> None:
    overtake(delta_table.ATTEMPTS)

    with pytest.raises(ConflictError, match=rf"{delta_table.ATTEMPTS} times while a-key was published. Run it again"):
        publish(tmp_path / "rows", fakes.visits(10), "a")
    assert delta_table.published(tmp_path / "rows", "a" * 64) is None
    assert DeltaTable(tmp_path / "rows").to_pyarrow_table().num_rows == 0


def test_published_cleaned_up_commit_is_an_error(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    for i, name in enumerate("ab"):
        publish(table, fakes.visits(10, first=1 + 10 * i), name)
    DeltaTable(table).create_checkpoint()
    for version in (0, 1):
        (table / "_delta_log" / f"{version:020}.json").unlink()

    with pytest.raises(DatasetError, match="was cleaned up"):
        delta_table.published(table, "a" * 64)


@pytest.mark.slow
def test_old_version_stays_readable_after_many_commits(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    publish(table, fakes.visits(10), "a")
    long_ago = 1_500_000_000
    for file in (table / "_delta_log").iterdir():
        os.utime(file, (long_ago, long_ago))

    # Every hundred commits, Delta writes a checkpoint of its log and may delete older entries.
    for number in range(1, 106):
        publish(table, fakes.visits(1, first=1_000 + number), f"{number:03}")

    assert list((table / "_delta_log").glob("*.checkpoint.parquet"))
    assert datasets.pin(table, SPEC, 1)[0].rows == 10
    assert delta_table.published(table, "a" * 64) == Publication(version=1, notes={"rows": 10})
