"""The graph of a model in real Dagster runs, in this process and on a temporary instance."""

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from ml_platform.cli.launch import QUIET
from ml_platform.data.arrivals import Manifest
from ml_platform.data.landing import ignored_files, land_files, waiting_arrivals
from ml_platform.definitions import defs
from ml_platform.errors import ApprovalRefusedError, EvidenceError, LandingZoneError
from ml_platform.evaluation import gates
from ml_platform.evaluation.judge import Judgement
from ml_platform.model_spec import Gate, GoldenSet, ModelSpec
from ml_platform.orchestration.metadata import arrival_metadata, gate_checks
from ml_platform.orchestration.resources import ACTOR_TAG, REASON_TAG
from ml_platform.orchestration.run_monitoring import PROCESS_TAG, process_tag
from ml_platform.orchestration.sensors import range_tags
from ml_platform.pipeline import DATA_CHECKS, model_definitions
from ml_platform.platform import Platform
from ml_platform.records.ledger import Person
from ml_platform.records.verdict import Measurement
from ml_platform.release import integration_test
from ml_platform.release.authentication import current_actor, os_user
from ml_platform.release.promote import approve_version
from ml_platform.storage.landing_zone import open_zone
from ml_platform.system import isolated_process
from ml_platform_tests.support import fakes, s3_server
from ml_platform_tests.support.dagster_runs import (
    ingest,
    list_partition_keys,
    materialised,
    read_checks,
    repository,
    run,
    tick,
    tick_after,
    why,
)
from ml_platform_tests.support.steps import publish

GRAPH = Path(__file__).parent / "snapshots" / "graph.txt"


def test_graph_equals_reviewed_snapshot() -> None:
    graph = defs().resolve_asset_graph()
    lines = [
        f"{node.key.to_user_string()} [{node.group_name}] <- "
        + (", ".join(sorted(key.to_user_string() for key in node.parent_keys)) or "nothing")
        for node in graph.asset_nodes
    ]
    blocking = {
        key.to_user_string()
        for definition in graph.assets_defs
        for spec in definition.check_specs
        if spec.blocking
        for key in [spec.key]
    }
    lines += [
        f"{key.to_user_string()} {'blocking' if key.to_user_string() in blocking else 'reports'}"
        for key in graph.asset_check_keys
    ]
    text = "\n".join(sorted(lines)) + "\n"

    assert text == GRAPH.read_text(), f"The graph changed. If this is intended, write to {GRAPH}:\n{text}"


def test_run_promotes_published_rows_to_champion(
    platform: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(isolated_process, "start_early", started.append)
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    assert ingest(platform, instance).success

    result = run("visits_retrain", instance, tags={PROCESS_TAG: "the retried run@its process"})

    assert result.success, why(result)
    assert started == [integration_test.FRESH_MODULES]  # once, when the training starts
    (run_record, _) = instance.get_run_records()
    assert run_record.dagster_run.tags[PROCESS_TAG] == process_tag(result.run_id)
    champion = platform.database.champion("visits")
    assert champion is not None
    assert platform.registry.alias("visits", "champion") == champion.version == 1
    assert {"auc_roc", "f1_score", "model_size_mb", "auc_roc_compared", "integration_test"} < set(read_checks(result))
    assert all(read_checks(result).values())
    page = str(platform.verdict_page(platform.database.candidate(champion.candidate)))
    assert Path(page).is_file()
    shown = {event.asset_key.path[-1]: event.materialization for event in result.get_asset_materialization_events()}
    gates_shown = [c for c in result.get_asset_check_evaluations() if c.check_name in fakes.visits_spec().conditions]
    for shows in (shown["registered_version"], shown["champion_version"], *gates_shown):
        assert shows.metadata["verdict_page"] == dg.MetadataValue.path(page)
        assert "/#/runs/" in shows.metadata["mlflow_run"].value


def test_run_without_approval_fails_and_trains_once(platform: Platform, instance: dg.DagsterInstance) -> None:
    spec = fakes.visits_spec(approval="manual")
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    publish(platform)

    result = run("visits_retrain", instance, spec, tags={REASON_TAG: "manual: a test", ACTOR_TAG: "ada@desk"})

    assert not result.success
    (waiting,) = why(result)
    assert "waits for approval" in waiting
    assert "ml-platform approve visits 1 --reason" in waiting
    assert materialised(result) >= {"staging_version"}
    assert "champion_version" not in materialised(result)
    assert platform.database.champion("visits") is None
    assert platform.new_rows("visits") == 0
    ada, bob = (Person(name=f"{name}@token", authenticated_by="token", identity={}) for name in ("ada", "bob"))
    with pytest.raises(ApprovalRefusedError, match="ada@token asked for the training"):
        approve_version(platform, spec, None, ada, reason="mine")
    assert approve_version(platform, spec, None, bob, reason="fine")[1].version == 1


@pytest.mark.parametrize(
    ("tags", "actor"),
    [
        ({}, "the current user"),
        pytest.param({REASON_TAG: "schedule"}, "the current user", marks=pytest.mark.fault("A2")),
        pytest.param({REASON_TAG: "arrival", ACTOR_TAG: ""}, "the current user", marks=pytest.mark.fault("A2")),
        ({REASON_TAG: "manual: a test", ACTOR_TAG: "ada@desk"}, "ada@desk"),
    ],
    ids=["manual", "forged trigger", "forged actor", "command"],
)
def test_candidate_actor_by_kind_of_run(
    platform: Platform, instance: dg.DagsterInstance, tags: dict[str, str], actor: str
) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(100))
    publish(platform)
    selection = [dg.AssetKey(["visits", name]) for name in ("training_dataset", "trained_model")]

    run("visits_retrain", instance, tags=tags, asset_selection=selection)

    candidate = platform.database.newest_candidate("visits")
    assert candidate is not None
    assert candidate.actor == (current_actor(platform) if actor == "the current user" else actor)
    assert candidate.trained_by == os_user().name
    assert candidate.requested_at is not None
    assert candidate.requested_at < candidate.trained_at


@pytest.mark.fault("A1")
def test_variables_of_github_do_not_allow_self_approval(
    platform: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = fakes.visits_spec(approval="manual")
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    publish(platform)
    for name, value in {"ACTIONS": "true", "RUN_ID": "1", "TRIGGERING_ACTOR": "mallory"}.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)

    run("visits_retrain", instance, spec)

    candidate = platform.database.newest_candidate("visits")
    assert candidate is not None
    assert (candidate.actor, candidate.trained_by) == ("mallory@github", os_user().name)
    with pytest.raises(ApprovalRefusedError, match=r"trained candidate .*, in the name of mallory@github"):
        approve_version(platform, spec, None, os_user(), reason="mine")
    assert platform.database.champion("visits") is None


def test_quarantined_file_fails_check_not_run(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "a-good.parquet", fakes.visits(100))
    fakes.drop(platform, "b-bad.parquet", fakes.visits(100, first=1_000).drop(columns="pages"))

    result = ingest(platform, instance)

    assert result.success
    evaluations = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert set(evaluations) == set(DATA_CHECKS)
    assert not evaluations["schema"].passed
    assert evaluations["schema"].severity is dg.AssetCheckSeverity.ERROR
    assert "'pages' is missing" in evaluations["schema"].description
    outcomes = {row["name"]: row["outcome"] for row in platform.database.arrival_outcomes("visits")}
    assert outcomes == {"a-good.parquet": "published", "b-bad.parquet": "quarantined"}


def test_data_check_counts_rows_and_quotes_five(platform: Platform, instance: dg.DagsterInstance) -> None:
    for name, first in (("a.csv", 1), ("b.csv", 1_000)):
        rows = fakes.visits(100, first=first)
        rows.loc[:2, "pages"] = -first
        fakes.drop(platform, name, rows)

    result = ingest(platform, instance)

    (values,) = [check for check in result.get_asset_check_evaluations() if check.check_name == "values"]
    shown = {name: value.value for name, value in values.metadata.items()}
    assert shown["files"] == 2
    assert shown["rules"] == {"greater_than_or_equal_to(0)": 6}
    assert shown["examples"][0] == "a.csv, row 0: pages must be at least 0: got -1"
    (batch, *_) = platform.database.outcomes("visits", platform.database.known_arrivals("visits"))
    (first, *more) = arrival_metadata(batch)["examples"].records
    assert first.data == {"examples of bad rows": "row 0: pages must be at least 0: got -1"}
    assert len(more) == 2
    assert len(shown["examples"]) == 5


def champion_then_noise(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    publish(platform)
    first = run("visits_retrain", instance)
    assert first.success, why(first)
    fakes.drop(platform, "noise.parquet", fakes.visits(600, day=2, signal=0.0, seed=1))
    publish(platform)


def test_model_without_signal_stops_at_gates(platform: Platform, instance: dg.DagsterInstance) -> None:
    champion_then_noise(platform, instance)

    result = run("visits_retrain", instance)

    assert not result.success
    failed = {name for name, passed in read_checks(result).items() if not passed}
    assert failed == {"auc_roc", "f1_score", "auc_roc_compared"}
    assert materialised(result) == {"training_dataset", "trained_model"}
    assert platform.registry.alias("visits", "champion") == 1
    assert [entry.version for entry in platform.database.history("visits")] == [1]


def test_run_after_failed_gate_is_refused(platform: Platform, instance: dg.DagsterInstance) -> None:
    champion_then_noise(platform, instance)
    run("visits_retrain", instance)
    behind = [dg.AssetKey(["visits", name]) for name in ("registered_version", "staging_version", "champion_version")]

    result = run("visits_retrain", instance, asset_selection=behind)

    assert not result.success
    assert materialised(result) == set()
    assert "auc_roc" in str(result.get_step_failure_events()[0].step_failure_data.error)
    assert platform.registry.alias("visits", "champion") == 1


def test_gate_on_unknown_metric_blocks(platform: Platform, instance: dg.DagsterInstance) -> None:
    spec = fakes.visits_spec(gates=(Gate(metric="auc_rok", at_least=0.1),))
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    publish(platform)

    result = run("visits_retrain", instance, spec)

    assert not result.success
    assert read_checks(result)["auc_rok"] is False
    assert platform.database.champion("visits") is None


def make_judgement(spec: ModelSpec, **metrics: float | None) -> Judgement:
    verdict = gates.judge(fakes.candidate(), fakes.evaluation(spec, **metrics), spec)
    page = Path("verdict.html")
    return Judgement(verdict=verdict, curves=None, page=page, mlflow_run_id="run", parity=fakes.parity())


def test_gates_alone_block_in_one_unsubsettable_step() -> None:
    spec = fakes.visits_spec(gates=(*fakes.visits_spec().gates, Gate(metric="recall", at_least=0.5, slices=("plan",))))

    (step,) = model_definitions(spec).asset_checks or []

    assert isinstance(step, dg.AssetChecksDefinition)
    blocking = {check.name: check.blocking for check in step.check_specs}
    assert blocking == {**dict.fromkeys(spec.conditions, True), "fast_path": False}
    assert not step.can_subset


@pytest.mark.fault("C5")
@pytest.mark.parametrize(
    ("value", "passed"), [(0.8, True), (np.float64(0.9), True), (0.79, False), (np.float32(0.1), False), (None, False)]
)
def test_gate_check_is_bool_error_never_warning(platform: Platform, value: Any, passed: bool) -> None:
    spec = fakes.visits_spec()

    (first, *others) = gate_checks(platform, spec, make_judgement(spec, auc_roc=value))

    assert {type(check) for check in (first, *others)} == {dg.AssetCheckResult}
    assert {check.severity for check in (first, *others)} == {dg.AssetCheckSeverity.ERROR}
    assert first.passed is passed


@pytest.mark.fault("C5")
@pytest.mark.parametrize(
    "results", [[], [0], [0, 0, 1, 2], [0, 1, 2]], ids=["none", "one", "twice", "without the last"]
)
def test_incomplete_verdict_yields_no_checks(platform: Platform, results: list[int]) -> None:
    spec = fakes.visits_spec()
    whole = make_judgement(spec)
    partial = replace(whole.verdict, results=[whole.verdict.results[i] for i in results])

    with pytest.raises(EvidenceError, match="Expected a result of each gate"):
        list(gate_checks(platform, spec, replace(whole, verdict=partial)))


def test_first_check_shows_measurements_and_references(platform: Platform) -> None:
    spec = fakes.visits_spec()
    judgement = make_judgement(spec)
    reference = fakes.beaten(spec, measurements=[Measurement(metric="auc_roc", value=0.5)])
    evaluation = replace(judgement.verdict.evaluation, reference=reference)
    shown = replace(judgement, verdict=replace(judgement.verdict, evaluation=evaluation))

    checks = {check.check_name: check for check in gate_checks(platform, spec, shown)}

    table = checks["auc_roc"].metadata["measurements"]
    assert isinstance(table, dg.TableMetadataValue)
    first = table.records[0].data
    assert (first["metric"], first["slice"], first["value"], first["reference"]) == (
        "auc_roc",
        "all rows",
        "0.8",
        "0.5",
    )
    assert checks["auc_roc_compared"].metadata["against"].value == "DummyClassifier(prior)"
    assert "measurements" not in checks["f1_score"].metadata


@pytest.mark.fault("D13")
def test_leaking_feature_stops_before_training(platform: Platform, instance: dg.DagsterInstance) -> None:
    rows = fakes.visits(600)
    fakes.drop(platform, "leak.parquet", rows.assign(pages=(rows["bought"] == "yes").astype("int64")))
    publish(platform)

    result = run("visits_retrain", instance)

    assert not result.success
    assert read_checks(result)["leakage"] is False
    assert platform.database.newest_candidate("visits") is None


def test_too_few_rows_stop_before_training(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "few.parquet", fakes.visits(40))
    publish(platform)

    result = run("visits_retrain", instance)

    assert not result.success
    assert read_checks(result)["min_rows"] is False
    assert platform.database.newest_candidate("visits") is None


def test_run_without_dagster_home_trains_nothing(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    publish(platform)
    monkeypatch.delenv("DAGSTER_HOME")

    with pytest.raises(EvidenceError, match="not store its record in this deployment"):
        repository(fakes.visits_spec()).get_job("visits_retrain").execute_in_process(QUIET, instance)

    assert platform.database.newest_candidate("visits") is None


def test_run_after_failed_dataset_check_is_refused(platform: Platform, instance: dg.DagsterInstance) -> None:
    rows = fakes.visits(600)
    fakes.drop(platform, "leak.parquet", rows.assign(pages=(rows["bought"] == "yes").astype("int64")))
    publish(platform)
    run("visits_retrain", instance)
    behind = ("trained_model", "registered_version", "staging_version", "champion_version")

    result = run("visits_retrain", instance, asset_selection=[dg.AssetKey(["visits", name]) for name in behind])

    assert not result.success
    assert "gives the label away" in why(result)[0]
    assert platform.database.champion("visits") is None


# Every kind of landing zone


def ingest_requested_partitions(instance: dg.DagsterInstance, cursor: str | None = None) -> str | None:
    """Add the partitions that a tick requests, then run its requests, as the daemon does; return the cursor."""
    requests, cursor = tick_after(cursor, fakes.visits_spec(), "visits_arrivals", instance)
    if isinstance(requests, dg.SkipReason):
        return cursor
    instance.add_dynamic_partitions("visits_arrivals", list_partition_keys(requests))
    for request in requests.run_requests or []:
        result = run("visits_ingest", instance, tags=request.tags)
        assert result.success, why(result)
    return cursor


def test_arrivals_are_published_once_or_quarantined(
    any_zone: str, platform: Platform, instance: dg.DagsterInstance
) -> None:
    zone = open_zone(any_zone)
    good, bad = fakes.visits(100), fakes.visits(100, first=1_000).drop(columns="pages")
    zone.write("visits", "good.parquet", fakes.parquet_bytes(good))
    zone.write("visits", "bad.parquet", fakes.parquet_bytes(bad))
    zone.write("visits", "twin.parquet", fakes.parquet_bytes(good))
    zone.write("visits", "good.csv.gz", gzip.compress(fakes.visits(10, first=5_000).to_csv(index=False).encode()))
    land_files(Platform(), "visits", {"landed.parquet": fakes.parquet_bytes(fakes.visits(50, first=9_000))})
    zone.write("visits", "promised.parquet.manifest.json", Manifest(len(fakes.parquet_bytes(bad)), "0" * 64).data)
    zone.write("visits", "promised.parquet", fakes.parquet_bytes(bad))
    zone.write("visits", "not for us.txt", b"x")

    cursor = None
    for _ in range(3):
        cursor = ingest_requested_partitions(instance, cursor)

    handled = {row["name"]: row for row in platform.database.arrival_outcomes("visits")}
    twins = sorted(handled[name]["outcome"] for name in ("good.parquet", "twin.parquet"))
    assert twins == ["duplicate", "published"]
    assert {name: row["outcome"] for name, row in handled.items() if name not in {"good.parquet", "twin.parquet"}} == {
        "bad.parquet": "quarantined",
        "good.csv.gz": "published",
        "landed.parquet": "published",
        "promised.parquet": "quarantined",
    }
    assert "its manifest names sha256 000" in handled["promised.parquet"]["reason"]
    assert ignored_files(Platform(), "visits") == ["not for us.txt"]
    assert waiting_arrivals(Platform(), "visits") == []
    assert platform.new_rows("visits") == 160


@pytest.mark.fault("S5")
@pytest.mark.parametrize("wrong", ["secret", "bucket"])
def test_refusing_bucket_fails_the_tick(
    seaweedfs: str, platform: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    del platform
    for name, value in s3_server.environment(seaweedfs, "another" if wrong == "secret" else s3_server.SECRET).items():
        monkeypatch.setenv(name, value)
    bucket = "nowhere" if wrong == "bucket" else s3_server.BUCKET
    monkeypatch.setenv("ML_PLATFORM_LANDING_ZONE", f"s3://{bucket}/zone")

    with pytest.raises(LandingZoneError, match=r"could not be listed: .*(SignatureDoesNotMatch|NoSuchBucket)"):
        tick(fakes.visits_spec(), "visits_arrivals", instance)


@pytest.mark.fault("S4")
def test_failing_bucket_fails_run_and_loses_nothing(
    platform: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = s3_server.FaultyS3({"zone/visits/monday.parquet": fakes.parquet_bytes(fakes.visits(100))})
    monkeypatch.setenv("ML_PLATFORM_LANDING_ZONE", f"s3://{s3_server.BUCKET}/zone")
    with server.running() as endpoint:
        for name, value in s3_server.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        keys = list_partition_keys(tick(fakes.visits_spec(), "visits_arrivals", instance))
        instance.add_dynamic_partitions("visits_arrivals", keys)
        server.spared, server.for_ever = 1, "503"
        failed = run("visits_ingest", instance, tags=range_tags(keys[0], keys[-1]))
        server.for_ever = ""
        again = ingest_requested_partitions(instance)

    assert not failed.success
    assert "could not provide visits/monday.parquet" in why(failed)[0]
    assert again == ""
    assert [row["outcome"] for row in platform.database.arrival_outcomes("visits")] == ["published"]


def test_dataset_is_profiled_and_change_only_reported(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    publish(platform)
    first = run("visits_retrain", instance)
    moved = fakes.visits(600, day=2)
    fakes.drop(platform, "tuesday.parquet", moved.assign(seconds=moved["seconds"] + 500))
    publish(platform)

    second = run("visits_retrain", instance)

    assert (first.success, second.success) == (True, True), why(first) + why(second)
    assert (read_checks(first)["change"], read_checks(second)["change"]) == (True, False)
    pages = platform.settings.model_home("visits") / "profiles"
    newest = platform.database.newest_dataset("visits")
    assert newest is not None
    assert len(list(pages.iterdir())) == 2
    (event,) = (e for e in second.get_asset_materialization_events() if e.asset_key.path[-1] == "training_dataset")
    metadata = event.materialization.metadata
    assert metadata["profile"].value == str(platform.profile_page(newest))
    assert [record.data["column"] for record in metadata["columns"].records] == ["bought", "pages", "seconds", "plan"]


def test_missing_golden_dataset_stops_training(platform: Platform, instance: dg.DagsterInstance) -> None:
    spec = fakes.visits_spec(golden=(GoldenSet(name="holiday", sha256="0" * 64),))
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    publish(platform)

    result = run("visits_retrain", instance, spec)

    assert not result.success
    assert read_checks(result)["golden"] is False
    assert "trained_model" not in materialised(result)
