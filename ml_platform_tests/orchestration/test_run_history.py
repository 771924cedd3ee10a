"""Dagster's records after an entity was forgotten: real runs, and a search through all files."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from ml_platform.cli.launch import QUIET
from ml_platform.data.landing import waiting_arrivals
from ml_platform.governance import forget
from ml_platform.orchestration import run_history
from ml_platform.orchestration.resources import PlatformResource
from ml_platform.orchestration.run_monitoring import open_instance
from ml_platform.orchestration.sensors import range_tags
from ml_platform.pipeline import model_definitions
from ml_platform.platform import Platform
from ml_platform.settings import PROJECT_ROOT
from ml_platform_tests.support import fakes

SPEC = fakes.visits_spec()
WHO, VALUE = 424_242, "-98765"


@pytest.fixture
def dagster_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(PROJECT_ROOT / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path / "var" / "dagster"


@pytest.fixture
def sqlite_that_leaves_what_it_deletes() -> Iterator[None]:
    """Leave deleted rows in SQLite's files, as some builds do; others overwrite them."""

    def leave(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA secure_delete = OFF")

    sa.event.listen(sa.Engine, "connect", leave)
    yield
    sa.event.remove(sa.Engine, "connect", leave)


def ingest(platform: Platform) -> str:
    resources = dg.Definitions(resources={"platform": PlatformResource()}, executor=dg.in_process_executor)
    repository = dg.Definitions.merge(model_definitions(SPEC), resources).get_repository_def()
    keys = [arrival.key for arrival in waiting_arrivals(platform, SPEC.name)]
    with open_instance() as instance:
        instance.add_dynamic_partitions("visits_arrivals", keys)
        tags = range_tags(keys[0], keys[-1])
        result = repository.get_job("visits_ingest").execute_in_process(QUIET, instance, tags=tags)
    assert result.success
    return result.run_id


def files_that_quote(folder: Path, *values: str) -> list[Path]:
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and any(value.encode() in file.read_bytes() for value in values)
    ]


def drop_who_and_others(platform: Platform) -> None:
    rows = fakes.visits(100)
    rows.loc[0, ["visitor", "pages"]] = [WHO, int(VALUE)]
    fakes.drop(platform, "a.csv", rows)
    fakes.drop(platform, "b.csv", fakes.visits(50, first=1_000))


def shown(instance: dg.DagsterInstance, asset: str) -> dict[str, dict[str, Any]]:
    events = instance.fetch_materializations(dg.AssetKey(["visits", asset]), limit=100).records
    found = [(e.partition_key, e.asset_materialization) for e in reversed(events)]
    return {str(key): {k: v.value for k, v in made.metadata.items()} for key, made in found if made}


@pytest.mark.usefixtures("sqlite_that_leaves_what_it_deletes")
def test_forgotten_entity_is_absent_from_dagster(platform: Platform, dagster_home: Path) -> None:
    drop_who_and_others(platform)
    run = ingest(platform)
    assert files_that_quote(dagster_home, VALUE, str(WHO))

    forget.forget(platform, SPEC, str(WHO), reason="request 17", actor="test")
    deleted = [run_history.forget_runs(platform, SPEC) for _ in range(2)]

    assert deleted == [1, 0]
    assert files_that_quote(dagster_home, VALUE, str(WHO)) == []
    with open_instance() as instance:
        assert not instance.has_run(run)
        raw, validated = shown(instance, "raw_batches"), shown(instance, "validated_batches")
    assert sorted(metadata["source"] for metadata in raw.values()) == ["a.csv", "b.csv"]
    assert [metadata["outcome"] for metadata in validated.values()] == ["published", "published"]


def test_runs_without_forgotten_entity_remain(platform: Platform, dagster_home: Path) -> None:
    drop_who_and_others(platform)
    ingest(platform)
    fakes.drop(platform, "c.csv", fakes.visits(50, first=2_000))
    other = ingest(platform)

    forget.forget(platform, SPEC, str(WHO), reason="request 17", actor="test")
    run_history.forget_runs(platform, SPEC)

    assert files_that_quote(dagster_home, other)
    with open_instance() as instance:
        assert instance.has_run(other)


def test_preview_omits_a_forgotten_entity(platform: Platform, dagster_home: Path) -> None:
    drop_who_and_others(platform)
    ingest(platform)
    forget.forget(platform, SPEC, str(WHO), reason="request 17", actor="test")
    run_history.forget_runs(platform, SPEC)

    fakes.drop(platform, "again.parquet", fakes.visits(30, day=3).assign(visitor=range(WHO, WHO + 30)))
    ingest(platform)

    assert files_that_quote(dagster_home, str(WHO)) == []
    assert files_that_quote(dagster_home, str(WHO + 1))
