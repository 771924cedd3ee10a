"""A rollout in Dagster: the asset, its sensor, and decisions that were made outside runs."""

import json
from typing import Any

import dagster as dg
import pytest
from mlflow import MlflowClient

from ml_platform.database import PlatformDatabase
from ml_platform.inference.golden_requests import GOLDEN_REQUESTS
from ml_platform.orchestration.resources import PlatformResource
from ml_platform.platform import Platform
from ml_platform.records.traffic import Mode, TrafficStats
from ml_platform.release.rollback import roll_back
from ml_platform_tests.support import fakes
from ml_platform_tests.support.dagster_runs import repository, run, why
from ml_platform_tests.support.rollouts import SPEC, beats, count, promoted, read_plan

CHAMPION = dg.AssetKey(["visits", "champion_version"])


def tick(instance: dg.DagsterInstance, sensor: str, cursor: str | None = None) -> Any:
    context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"platform": PlatformResource()})
    return repository(SPEC).get_sensor_def(sensor)(context)


def step(instance: dg.DagsterInstance) -> dict[str, Any]:
    """Take the step in a run; return the asset's metadata."""
    result = run("visits_rollout", instance, SPEC)
    assert result.success, why(result)
    (shown,) = [e for e in result.get_asset_materialization_events() if e.asset_key.path[-1] == "rollout"]
    return {name: value.value for name, value in shown.materialization.metadata.items()}


def shown_decisions(instance: dg.DagsterInstance) -> list[tuple[object, object]]:
    """Return action and version of the decisions that Dagster shows, oldest first."""
    records = instance.fetch_materializations(CHAMPION, limit=50, ascending=True).records
    metadata = [record.asset_materialization.metadata for record in records if record.asset_materialization]
    return [(row["action"].value, row["version"].value) for row in metadata]


@pytest.mark.fault("M1")
def test_due_step_is_requested_and_carried_out(platform: Platform, instance: dg.DagsterInstance) -> None:
    assert tick(instance, "visits_traffic") == dg.SkipReason("visits never had a champion.")
    promoted(platform)
    assert tick(instance, "visits_traffic") == dg.SkipReason("version 1 serves all traffic.")
    promoted(platform)
    beats(platform)
    waiting = tick(instance, "visits_traffic")
    assert isinstance(waiting, dg.SkipReason)
    assert "version 2 has answered 0 of 100 requests" in str(waiting.skip_message)
    count(platform, 1, 400)
    count(platform, 2, 40, failures=40)  # each of them NaN

    request = tick(instance, "visits_traffic")
    assert isinstance(request, dg.RunRequest)
    assert request.run_key is not None
    assert request.run_key.startswith("visits-plan-2-abort-")
    shown = step(instance)

    assert (shown["step"], shown["now"]) == ("abort", "all to version 1")
    assert shown["before"] == "canary, step 1: 10% to version 2, the rest to version 1"
    assert (shown["error_share_of_stable"], shown["error_share_of_successor"]) == (0.0, 1.0)
    assert "| error_share | 0 | 1 |" in shown["measurements"]
    assert "**errors** FAIL: version 2 fails 100.00% of 40 units" in shown["measurements"]
    assert shown_decisions(instance) == [("rollback", 1)]
    assert tick(instance, "visits_traffic") == dg.SkipReason("version 1 serves all traffic.")


def test_step_stores_a_plan_of_the_ledger(
    platform: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(platform)
    with monkeypatch.context() as killed:
        killed.setattr(PlatformDatabase, "append_traffic_plan", lambda *_: None)
        promoted(platform)

    assert isinstance(tick(instance, "visits_traffic"), dg.RunRequest)
    assert step(instance)["now"] == "canary, step 1: 10% to version 2, the rest to version 1"
    assert read_plan(platform).mode is Mode.CANARY


def test_step_in_progress_requests_no_second_run(platform: Platform, instance: dg.DagsterInstance) -> None:
    promoted(platform, 2)
    count(platform, 1, 400)
    count(platform, 2, 40, failures=40)
    instance.create_run_for_job(
        repository(SPEC).get_job("visits_rollout"), status=dg.DagsterRunStatus.STARTED, tags={"dagster/x": "y"}
    )

    assert tick(instance, "visits_traffic") == dg.SkipReason("A step is in progress.")


def test_registry_sensor_shows_decisions_outside_runs(platform: Platform, instance: dg.DagsterInstance) -> None:
    def registry_tick() -> list[Any]:
        result = tick(instance, "visits_registry")
        for event in result.asset_events:
            instance.report_runless_asset_event(event)
        return list(result.asset_events)

    promoted(platform, 2)
    assert len(registry_tick()) == 1  # only the last one if Dagster shows none
    roll_back(platform, "visits", load_spec=lambda _: SPEC, to=None, reason="I saw it", actor="ada@desk", show=False)
    (rollback,) = registry_tick()
    assert rollback.metadata["by"].value == "ada@desk"
    assert platform.registry.alias("visits", "champion") == 1  # the command left it to the sensor
    restorable = platform.candidate_folder(platform.database.candidate("candidate-1")) / GOLDEN_REQUESTS
    fakes.visits(5)[SPEC.features].to_parquet(restorable)
    MlflowClient(platform.settings.tracking_uri, platform.settings.tracking_uri).delete_model_version("visits", "1")

    registry_tick()

    assert shown_decisions(instance) == [("promotion", 2), ("rollback", 1), ("replacement", 3)]
    assert registry_tick() == []


def test_retraining_waits_for_the_rollout(
    platform: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(platform, 2)
    monkeypatch.setattr(Platform, "new_rows", lambda *_: 10_000)
    assert isinstance(tick(instance, "visits_retraining"), dg.RunRequest)

    beats(platform)

    assert tick(instance, "visits_retraining") == dg.SkipReason(
        "A new candidate could not be promoted during a rollout: "
        "canary, step 1: 10% to version 2, the rest to version 1."
    )


def test_rollout_metadata_are_valid_json(platform: Platform, instance: dg.DagsterInstance) -> None:
    promoted(platform, 2)
    platform.database.count_traffic(TrafficStats(model="visits", plan=2, server="a", version=2))

    shown = step(instance)

    assert shown["step"] == "hold"
    assert json.dumps(shown, allow_nan=False)
