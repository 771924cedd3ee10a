"""The graph as Dagster runs it: real runs in this process, on an instance in a folder."""

import gzip
import io
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import pytest

from ml_platform import views, workflows
from ml_platform.database.tables import arrivals as arrivals_table
from ml_platform.definitions import defs
from ml_platform.errors import ApprovalRefusedError, EvidenceError, LandingZoneError
from ml_platform.liveness import PROCESS_TAG, process_tag
from ml_platform.model_spec import Gate, GoldenSet, ModelSpec
from ml_platform.pipeline import DATA_CHECKS, model_definitions
from ml_platform.records import Arrival, Figure, Person, now
from ml_platform.resources import ACTOR_TAG, REASON_TAG, PlatformResource, arrivals_partition
from ml_platform.runs import QUIET, root_cause
from ml_platform.stages import gates
from ml_platform.stages._landing import open_zone
from ml_platform.stages.arrivals import ARRIVALS_A_RUN, Manifest
from ml_platform.triggers import arrival_requests, range_tags
from ml_platform.workflows import Judgement, Platform
from ml_platform_tests import fakes, s3

if TYPE_CHECKING:
    import pandas as pd

GRAPH = Path(__file__).parent / "snapshots" / "graph.txt"


def repository(spec: ModelSpec) -> dg.RepositoryDefinition:
    resources = dg.Definitions(resources={"platform": PlatformResource()}, executor=dg.in_process_executor)
    return dg.Definitions.merge(model_definitions(spec), resources).get_repository_def()


def run(job: str, instance: dg.DagsterInstance, spec: ModelSpec | None = None, **options: Any) -> Any:
    definition = repository(spec or fakes.visits_spec()).get_job(job)
    return definition.execute_in_process(run_config=QUIET, instance=instance, raise_on_error=False, **options)


def why(result: Any) -> list[str]:
    """What the steps of a run failed with, for the message of an assertion."""
    return [root_cause(event) for event in result.get_step_failure_events()]


def ingest(platform: Platform, instance: dg.DagsterInstance) -> Any:
    keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, "visits")]
    instance.add_dynamic_partitions("visits_arrivals", keys)
    return run("visits_ingest", instance, tags=range_tags(keys[0], keys[-1]))


def checks_of(result: Any) -> dict[str, bool]:
    return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}


def materialised(result: Any) -> set[str]:
    return {event.asset_key.path[-1] for event in result.get_asset_materialization_events()}


def test_the_graph_is_the_one_that_was_reviewed() -> None:
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
    found = "\n".join(sorted(lines)) + "\n"

    assert found == GRAPH.read_text(), f"The graph changed. If it should have, write this into {GRAPH}:\n{found}"


def test_a_run_takes_published_rows_to_the_champion(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    assert ingest(platform, instance).success

    result = run("visits_retrain", instance, tags={PROCESS_TAG: "the run that this one repeats@its process"})

    assert result.success, why(result)
    (run_record, _) = instance.get_run_records()
    assert run_record.dagster_run.tags[PROCESS_TAG] == process_tag(result.run_id)
    champion = platform.database.champion("visits")
    assert champion is not None
    assert platform.registry.alias("visits", "champion") == champion.version == 1
    assert {"auc_roc", "f1_score", "model_size_mb", "auc_roc_compared", "integration_test"} < set(checks_of(result))
    assert all(checks_of(result).values())
    page = str(platform.verdict_page(platform.database.candidate(champion.candidate)))
    assert Path(page).is_file()
    shown = {event.asset_key.path[-1]: event.materialization for event in result.get_asset_materialization_events()}
    gates_shown = [c for c in result.get_asset_check_evaluations() if c.check_name in fakes.visits_spec().conditions]
    for shows in (shown["registered_version"], shown["champion_version"], *gates_shown):
        assert shows.metadata["verdict_page"] == dg.MetadataValue.path(page)
        assert "/#/runs/" in shows.metadata["mlflow_run"].value


def test_a_version_waits_for_an_approval_in_a_red_run_and_is_not_trained_again(
    platform: Platform, instance: dg.DagsterInstance
) -> None:
    spec = fakes.visits_spec(approval="manual")
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    ingest(platform, instance)

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
        workflows.approve_version(platform, spec, None, ada, reason="mine")
    assert workflows.approve_version(platform, spec, None, bob, reason="fine")[1].version == 1


@pytest.mark.parametrize(
    ("tags", "actor"),
    [
        ({}, "who runs the process"),
        ({REASON_TAG: "schedule"}, None),
        ({REASON_TAG: "manual: a test", ACTOR_TAG: "ada@desk"}, "ada@desk"),
    ],
    ids=["by hand", "by a trigger", "by a command"],
)
def test_a_candidate_names_who_asked_for_it(
    platform: Platform, instance: dg.DagsterInstance, tags: dict[str, str], actor: str | None
) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(100))
    ingest(platform, instance)
    selection = [dg.AssetKey(["visits", name]) for name in ("training_dataset", "trained_model")]

    run("visits_retrain", instance, tags=tags, asset_selection=selection)

    candidate = platform.database.newest_candidate("visits")
    assert candidate is not None
    assert candidate.actor == (workflows.who(platform) if tags == {} else actor)


def test_a_quarantined_file_leaves_the_run_green_and_its_check_red(
    platform: Platform, instance: dg.DagsterInstance
) -> None:
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


def test_a_check_counts_the_rows_of_every_file_and_quotes_five(
    platform: Platform, instance: dg.DagsterInstance
) -> None:
    for name, first in (("a.csv", 1), ("b.csv", 1_000)):
        rows = fakes.visits(100, first=first)
        rows.loc[:2, "pages"] = -first
        fakes.drop(platform, name, rows)

    result = ingest(platform, instance)

    (values,) = [check for check in result.get_asset_check_evaluations() if check.check_name == "values"]
    said = {name: shown.value for name, shown in values.metadata.items()}
    assert said["files"] == 2
    assert said["rules"] == {"greater_than_or_equal_to(0)": 6}
    assert said["examples"][0] == "a.csv, row 0: pages must be at least 0: got -1"
    (batch, *_) = platform.database.outcomes("visits", platform.database.known_arrivals("visits"))
    (first, *more) = views.arrival_metadata(batch)["examples"].records
    assert first.data == {"examples of bad rows": "row 0: pages must be at least 0: got -1"}
    assert len(more) == 2
    assert len(said["examples"]) == 5


def champion_then_noise(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    ingest(platform, instance)
    first = run("visits_retrain", instance)
    assert first.success, why(first)
    fakes.drop(platform, "noise.parquet", fakes.visits(600, day=2, signal=0.0, seed=1))
    ingest(platform, instance)


def test_a_model_that_learnt_nothing_stops_at_its_gates(platform: Platform, instance: dg.DagsterInstance) -> None:
    champion_then_noise(platform, instance)

    result = run("visits_retrain", instance)

    assert not result.success
    failed = {name for name, passed in checks_of(result).items() if not passed}
    assert failed == {"auc_roc", "f1_score", "auc_roc_compared"}
    assert materialised(result) == {"training_dataset", "trained_model"}
    assert platform.registry.alias("visits", "champion") == 1
    assert [entry.version for entry in platform.database.history("visits")] == [1]


def test_a_run_that_starts_behind_a_failed_gate_is_refused(platform: Platform, instance: dg.DagsterInstance) -> None:
    champion_then_noise(platform, instance)
    run("visits_retrain", instance)
    behind = [dg.AssetKey(["visits", name]) for name in ("registered_version", "staging_version", "champion_version")]

    result = run("visits_retrain", instance, asset_selection=behind)

    assert not result.success
    assert materialised(result) == set()
    assert "auc_roc" in str(result.get_step_failure_events()[0].step_failure_data.error)
    assert platform.registry.alias("visits", "champion") == 1


def test_a_metric_that_nobody_computes_blocks(platform: Platform, instance: dg.DagsterInstance) -> None:
    spec = fakes.visits_spec(gates=(Gate(metric="auc_rok", at_least=0.1),))
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    ingest(platform, instance)

    result = run("visits_retrain", instance, spec)

    assert not result.success
    assert checks_of(result)["auc_rok"] is False
    assert platform.database.champion("visits") is None


def judgement_of(spec: ModelSpec, **metrics: float | None) -> Judgement:
    verdict = gates.judge(fakes.candidate(), fakes.findings(spec, **metrics), spec)
    page = Path("verdict.html")
    return Judgement(verdict=verdict, curves=None, page=page, mlflow_run_id="run", parity=fakes.parity())


def test_all_gates_and_no_other_checks_block_in_one_step_that_cannot_be_subset() -> None:
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
def test_a_gate_is_an_asset_check_result_with_a_real_bool_and_never_a_warning(
    platform: Platform, value: Any, passed: bool
) -> None:
    spec = fakes.visits_spec()

    (first, *others) = views.gate_checks(platform, spec, judgement_of(spec, auc_roc=value))

    assert {type(check) for check in (first, *others)} == {dg.AssetCheckResult}
    assert {check.severity for check in (first, *others)} == {dg.AssetCheckSeverity.ERROR}
    assert first.passed is passed


@pytest.mark.fault("C5")
@pytest.mark.parametrize(
    "results", [[], [0], [0, 0, 1, 2], [0, 1, 2]], ids=["none", "one", "twice", "without the last"]
)
def test_a_verdict_that_does_not_answer_every_gate_gives_no_check_at_all(
    platform: Platform, results: list[int]
) -> None:
    spec = fakes.visits_spec()
    whole = judgement_of(spec)
    kept = replace(whole.verdict, results=[whole.verdict.results[i] for i in results])

    with pytest.raises(EvidenceError, match="must answer"):
        list(views.gate_checks(platform, spec, replace(whole, verdict=kept)))


def test_the_first_check_shows_all_figures_beside_the_rivals(platform: Platform) -> None:
    spec = fakes.visits_spec()
    made = judgement_of(spec)
    theirs = fakes.beaten(spec, figures=[Figure(metric="auc_roc", value=0.5)])
    shown = replace(made, verdict=replace(made.verdict, findings=replace(made.verdict.findings, rival=theirs)))

    checks = {check.check_name: check for check in views.gate_checks(platform, spec, shown)}

    table = checks["auc_roc"].metadata["figures"]
    assert isinstance(table, dg.TableMetadataValue)
    first = table.records[0].data
    assert (first["metric"], first["slice"], first["value"], first["rival"]) == ("auc_roc", "all rows", "0.8", "0.5")
    assert checks["auc_roc_compared"].metadata["against"].value == "DummyClassifier(prior)"
    assert "figures" not in checks["f1_score"].metadata


@pytest.mark.fault("D13")
def test_a_feature_that_equals_the_label_stops_before_training(
    platform: Platform, instance: dg.DagsterInstance
) -> None:
    rows = fakes.visits(600)
    fakes.drop(platform, "leak.parquet", rows.assign(pages=(rows["bought"] == "yes").astype("int64")))
    ingest(platform, instance)

    result = run("visits_retrain", instance)

    assert not result.success
    assert checks_of(result)["leakage"] is False
    assert platform.database.newest_candidate("visits") is None


def test_too_few_rows_stop_before_training(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "few.parquet", fakes.visits(40))
    ingest(platform, instance)

    result = run("visits_retrain", instance)

    assert not result.success
    assert checks_of(result)["least_rows"] is False
    assert platform.database.newest_candidate("visits") is None


def test_nothing_is_promoted_by_a_run_that_dagster_forgets(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    ingest(platform, instance)
    monkeypatch.delenv("DAGSTER_HOME")

    with pytest.raises(EvidenceError, match="keep no record of this run"):
        repository(fakes.visits_spec()).get_job("visits_retrain").execute_in_process(QUIET, instance)

    assert platform.database.newest_candidate("visits") is None


def test_a_run_that_starts_behind_a_failed_dataset_check_is_refused(
    platform: Platform, instance: dg.DagsterInstance
) -> None:
    rows = fakes.visits(600)
    fakes.drop(platform, "leak.parquet", rows.assign(pages=(rows["bought"] == "yes").astype("int64")))
    ingest(platform, instance)
    run("visits_retrain", instance)
    behind = ("trained_model", "registered_version", "staging_version", "champion_version")

    result = run("visits_retrain", instance, asset_selection=[dg.AssetKey(["visits", name]) for name in behind])

    assert not result.success
    assert "gives the label away" in why(result)[0]
    assert platform.database.champion("visits") is None


def test_a_dataset_version_is_trained_on_three_times_at_most(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    ingest(platform, instance)
    spec, asked = fakes.visits_spec(), []
    workflows.pin_dataset(platform, spec)
    for _ in range(3):
        asked.append(tick(spec, "visits_retraining", instance).run_key)
        workflows.train_candidate(platform, spec, reason="arrival")

    gives_up = tick(spec, "visits_retraining", instance)

    assert len(set(asked)) == 3
    assert "3 candidates of dataset version 1 came to nothing" in str(gives_up.skip_message)


def tick(spec: ModelSpec, sensor: str, instance: dg.DagsterInstance) -> Any:
    return tick_after(None, spec, sensor, instance)[0]


def tick_after(
    cursor: str | None, spec: ModelSpec, sensor: str, instance: dg.DagsterInstance
) -> tuple[Any, str | None]:
    """What a tick asks for, and the cursor that it leaves to the next one."""
    definition = repository(spec).get_sensor_def(sensor)
    context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"platform": PlatformResource()})
    return definition(context), context.cursor


def second_tick(instance: dg.DagsterInstance) -> Any:
    _, cursor = tick_after(None, fakes.visits_spec(), "visits_arrivals", instance)
    return tick_after(cursor, fakes.visits_spec(), "visits_arrivals", instance)[0]


def keys_of(found: Any) -> list[str]:
    return list(found.dynamic_partitions_requests[0].partition_keys)


def test_the_arrival_sensor_requests_one_run_for_all_new_files(
    platform: Platform, instance: dg.DagsterInstance
) -> None:
    for number in range(3):
        fakes.drop(platform, f"{number}.parquet", fakes.visits(100, first=1 + number * 100))

    found = second_tick(instance)

    keys = keys_of(found)
    assert len(keys) == 3
    assert [request.tags for request in found.run_requests] == [
        {**range_tags(keys[0], keys[-1]), "ml_platform/model": "visits"}
    ]


def test_the_arrival_sensor_leaves_handled_files_alone(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(100))
    ingest(platform, instance)

    assert second_tick(instance).skip_message == "No new files."


def test_the_arrival_sensor_names_what_it_ignores(platform: Platform, instance: dg.DagsterInstance) -> None:
    for number in range(7):
        (fakes.landing(platform) / "visits" / f"march {number}.xlsx").write_bytes(b"")

    said = tick(fakes.visits_spec(), "visits_arrivals", instance).skip_message

    assert said.startswith("Ignored, for want of a safe name that ends in .parquet, .csv, .csv.gz, .jsonl: 'march 0.")
    assert said.endswith(", 'march 4.xlsx' and 2 more.")


@pytest.mark.fault("D1")
def test_a_file_is_asked_for_when_two_ticks_found_it_unchanged(
    platform: Platform, instance: dg.DagsterInstance
) -> None:
    sensor = fakes.visits_spec(), "visits_arrivals", instance
    path = fakes.drop(platform, "monday.csv", fakes.visits(100))

    first, cursor = tick_after(None, *sensor)
    with path.open("a") as writer:
        writer.write("the writer goes on\n")
    second, cursor = tick_after(cursor, *sensor)
    third, cursor = tick_after(cursor, *sensor)

    for skipped in (first, second):
        assert str(skipped.skip_message).startswith("1 files are not complete yet. monday.csv: no manifest")
    assert keys_of(third) == [arrival.key for arrival in workflows.waiting_arrivals(platform, "visits")]
    assert cursor == ""


@pytest.mark.fault("D1")
def test_a_landed_file_is_asked_for_at_the_first_tick(platform: Platform, instance: dg.DagsterInstance) -> None:
    workflows.land_files(platform, "visits", {"monday.csv": b"a,b\n1,2\n"})

    assert len(keys_of(tick(fakes.visits_spec(), "visits_arrivals", instance))) == 1


def test_a_tick_changes_nothing_but_its_cursor(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.csv", fakes.visits(100))

    requests = [second_tick(instance).run_requests for _ in range(2)]

    assert requests[0] == requests[1]
    assert instance.get_dynamic_partitions("visits_arrivals") == []
    assert platform.database.raw_batches("visits", keys_of(second_tick(instance))) == []


@pytest.mark.fault("D16")
def test_a_hundred_thousand_files_drain_a_bounded_number_a_tick(
    platform: Platform, instance: dg.DagsterInstance
) -> None:
    folder = fakes.landing(platform) / "visits"
    for number in range(100_000):
        # Links to few files are quicker to make than files, and look the same.
        name = folder / f"{number:06}.csv"
        if number % 10_000:
            os.link(folder / f"{number // 10_000 * 10_000:06}.csv", name)
        else:
            name.touch()
    sensor = fakes.visits_spec(), "visits_arrivals", instance
    waiting = {arrival.key: arrival for arrival in workflows.waiting_arrivals(platform, "visits")}

    _, cursor = tick_after(None, *sensor)
    asked: list[str] = []
    for _ in range(2):
        found, cursor = tick_after(cursor, *sensor)
        keys = keys_of(found)
        asked += keys
        handle(platform, [waiting[key] for key in keys])
        assert len(keys) == ARRIVALS_A_RUN
        assert len(found.run_requests) == 1
        assert len(cursor or "") < 100 * ARRIVALS_A_RUN

    assert asked == list(waiting)[: 2 * ARRIVALS_A_RUN]
    assert len(workflows.waiting_arrivals(platform, "visits")) == 100_000 - len(asked)


def handle(platform: Platform, handled: list[Arrival]) -> None:
    """Give arrivals an outcome without reading them."""
    rows = [
        {
            **asdict(arrival),
            "key": arrival.key,
            "sha256": "0" * 64,
            "raw_path": "",
            "found_at": now(),
            "outcome": "quarantined",
        }
        for arrival in handled
    ]
    with platform.database.engine.begin() as connection:
        connection.execute(arrivals_table.insert(), rows)


@pytest.mark.fault("P8")
def test_deleting_the_run_history_publishes_nothing_again(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(100))
    ingest(platform, instance)
    for record in instance.get_run_records():
        instance.delete_run(record.dagster_run.run_id)

    assert isinstance(second_tick(instance), dg.SkipReason)


def test_a_missing_landing_zone_is_an_error_and_not_no_new_files(
    platform: Platform, instance: dg.DagsterInstance
) -> None:
    (fakes.landing(platform) / "visits").rmdir()

    with pytest.raises(LandingZoneError, match="cannot be listed"):
        tick(fakes.visits_spec(), "visits_arrivals", instance)


def test_ranges_cover_the_waiting_arrivals_and_no_other(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("visits_arrivals", ["a", "b", "c", "d"])

    assert arrival_requests(instance, "visits", ["b", "c", "e", "a"]) == [("a", "c"), ("e", "e")]
    assert arrivals_partition("visits").name == "visits_arrivals"


@pytest.mark.fault("P5")
def test_files_are_not_asked_for_again_while_the_run_that_takes_them_waits(
    platform: Platform, instance: dg.DagsterInstance
) -> None:
    workflows.land_files(platform, "visits", {"monday.csv": fakes.visits(60).to_csv(index=False).encode()})
    assert isinstance(tick(fakes.visits_spec(), "visits_arrivals", instance), dg.SensorResult)
    job = repository(fakes.visits_spec()).get_job("visits_ingest")
    instance.create_run_for_job(job, status=dg.DagsterRunStatus.NOT_STARTED)

    waits = tick(fakes.visits_spec(), "visits_arrivals", instance)

    assert waits == dg.SkipReason("The files of the last tick are being published.")


def test_retraining_waits_for_enough_new_rows(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    ingest(platform, instance)

    waits = tick(fakes.visits_spec(min_new_rows=601), "visits_retraining", instance)
    asks = tick(fakes.visits_spec(min_new_rows=600), "visits_retraining", instance)

    assert isinstance(waits, dg.SkipReason)
    assert "600 new rows" in str(waits.skip_message)
    assert asks.tags["ml_platform/reason"] == "arrival"


@pytest.mark.fault("P6")
def test_a_retraining_that_two_daemons_ask_for_is_made_once_a_dataset_version(
    platform: Platform, instance: dg.DagsterInstance
) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    ingest(platform, instance)
    asked = [tick(fakes.visits_spec(), "visits_retraining", instance) for _ in range(2)]

    first, second = (run("visits_retrain", instance, tags=request.tags) for request in asked)

    assert first.success, why(first)
    assert f"Run {first.run_id} retrains 'visits'" in why(second)[0]
    assert platform.database.candidates_of("visits", platform.database.newest_publication("visits") or 0) == 1
    assert isinstance(tick(fakes.visits_spec(), "visits_retraining", instance), dg.SkipReason)


def test_every_monday_at_two_utc_a_retraining_is_due() -> None:
    schedule = defs().get_repository_def().get_schedule_def("churn_weekly")

    assert schedule.cron_schedule == "0 2 * * 1"
    assert schedule.execution_timezone == "UTC"
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


# Every kind of landing zone


def parquet(rows: "pd.DataFrame") -> bytes:
    buffer = io.BytesIO()
    rows.to_parquet(buffer, index=False)
    return buffer.getvalue()


def ingest_what_is_asked_for(instance: dg.DagsterInstance, cursor: str | None = None) -> str | None:
    """Do what the daemon does with a tick: partitions first, then the runs. Return the cursor."""
    found, cursor = tick_after(cursor, fakes.visits_spec(), "visits_arrivals", instance)
    if isinstance(found, dg.SkipReason):
        return cursor
    instance.add_dynamic_partitions("visits_arrivals", keys_of(found))
    for request in found.run_requests or []:
        result = run("visits_ingest", instance, tags=request.tags)
        assert result.success, why(result)
    return cursor


def test_from_any_landing_zone_arrivals_are_published_once_or_quarantined(
    any_zone: str, platform: Platform, instance: dg.DagsterInstance
) -> None:
    zone = open_zone(any_zone)
    good, bad = fakes.visits(100), fakes.visits(100, first=1_000).drop(columns="pages")
    zone.write("visits", "good.parquet", parquet(good))
    zone.write("visits", "bad.parquet", parquet(bad))
    zone.write("visits", "twin.parquet", parquet(good))
    zone.write("visits", "good.csv.gz", gzip.compress(fakes.visits(10, first=5_000).to_csv(index=False).encode()))
    workflows.land_files(Platform(), "visits", {"landed.parquet": parquet(fakes.visits(50, first=9_000))})
    zone.write("visits", "promised.parquet.manifest.json", Manifest(len(parquet(bad)), "0" * 64).data)
    zone.write("visits", "promised.parquet", parquet(bad))
    zone.write("visits", "not for us.txt", b"x")

    cursor = None
    for _ in range(3):
        cursor = ingest_what_is_asked_for(instance, cursor)

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
    assert workflows.ignored_files(Platform(), "visits") == ["not for us.txt"]
    assert workflows.waiting_arrivals(Platform(), "visits") == []
    assert platform.new_rows("visits") == 160


@pytest.mark.fault("S5")
@pytest.mark.parametrize("wrong", ["secret", "bucket"])
def test_a_bucket_that_refuses_makes_the_tick_red(
    seaweedfs: str, platform: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    del platform
    for name, value in s3.environment(seaweedfs, "another" if wrong == "secret" else s3.SECRET).items():
        monkeypatch.setenv(name, value)
    bucket = "nowhere" if wrong == "bucket" else s3.BUCKET
    monkeypatch.setenv("ML_PLATFORM_LANDING_ZONE", f"s3://{bucket}/zone")

    with pytest.raises(LandingZoneError, match=r"could not be listed: .*(SignatureDoesNotMatch|NoSuchBucket)"):
        tick(fakes.visits_spec(), "visits_arrivals", instance)


@pytest.mark.fault("S4")
def test_a_bucket_that_fails_in_a_run_makes_it_red_and_loses_nothing(
    platform: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = s3.FaultyS3({"zone/visits/monday.parquet": parquet(fakes.visits(100))})
    monkeypatch.setenv("ML_PLATFORM_LANDING_ZONE", f"s3://{s3.BUCKET}/zone")
    with server.running() as endpoint:
        for name, value in s3.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        keys = keys_of(tick(fakes.visits_spec(), "visits_arrivals", instance))
        instance.add_dynamic_partitions("visits_arrivals", keys)
        server.spared, server.for_ever = 1, "503"
        red = run("visits_ingest", instance, tags=range_tags(keys[0], keys[-1]))
        server.for_ever = ""
        again = ingest_what_is_asked_for(instance)

    assert not red.success
    assert "could not give visits/monday.parquet" in why(red)[0]
    assert again == ""
    assert [row["outcome"] for row in platform.database.arrival_outcomes("visits")] == ["published"]


def test_a_dataset_version_is_profiled_and_its_change_is_reported_only(
    platform: Platform, instance: dg.DagsterInstance
) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    ingest(platform, instance)
    first = run("visits_retrain", instance)
    moved = fakes.visits(600, day=2)
    fakes.drop(platform, "tuesday.parquet", moved.assign(seconds=moved["seconds"] + 500))
    ingest(platform, instance)

    second = run("visits_retrain", instance)

    assert (first.success, second.success) == (True, True), why(first) + why(second)
    assert (checks_of(first)["change"], checks_of(second)["change"]) == (True, False)
    pages = platform.settings.model_home("visits") / "profiles"
    newest = platform.database.newest_dataset("visits")
    assert newest is not None
    assert len(list(pages.iterdir())) == 2
    (event,) = (e for e in second.get_asset_materialization_events() if e.asset_key.path[-1] == "training_dataset")
    metadata = event.materialization.metadata
    assert metadata["profile"].value == str(platform.profile_page(newest))
    assert [record.data["column"] for record in metadata["columns"].records] == ["bought", "pages", "seconds", "plan"]


def test_a_golden_set_that_is_missing_stops_the_training(platform: Platform, instance: dg.DagsterInstance) -> None:
    spec = fakes.visits_spec(golden=(GoldenSet(name="holiday", sha256="0" * 64),))
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    ingest(platform, instance)

    result = run("visits_retrain", instance, spec)

    assert not result.success
    assert checks_of(result)["golden"] is False
    assert "trained_model" not in materialised(result)
