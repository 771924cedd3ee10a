"""An author's own asset checks, really run: no version rests on one that has no success on record."""

from typing import Any

import dagster as dg
import pytest

from ml_platform import own_checks, workflows
from ml_platform.definitions import defs
from ml_platform.errors import ConfigurationError, EvidenceError
from ml_platform.pipeline import model_definitions
from ml_platform.resources import PlatformResource, arrivals_partition
from ml_platform.runs import QUIET, root_cause
from ml_platform.workflows import Platform
from ml_platform_tests import fakes

TRAINED = ["visits", "trained_model"]
PASSED = dg.AssetCheckResult(passed=True)
LIFE = dg.AssetSelection.groups("visits")


def own(answer: Any, *, asset: list[str] = TRAINED, blocking: bool = True) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=asset, blocking=blocking, name="own")
    def check() -> Any:
        return answer() if callable(answer) else answer

    return check


def location(*checks: dg.AssetChecksDefinition) -> dg.Definitions:
    without = LIFE - dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey(TRAINED), "own"))
    rest = dg.Definitions(
        resources={"platform": PlatformResource()},
        executor=dg.in_process_executor,
        jobs=[dg.define_asset_job("without_own", without)],
    )
    return dg.Definitions.merge(model_definitions(fakes.visits_spec(), checks=checks), rest)


def run(made: dg.Definitions, job: str, instance: dg.DagsterInstance, **options: Any) -> Any:
    definition = made.get_repository_def().get_job(job)
    return definition.execute_in_process(run_config=QUIET, instance=instance, raise_on_error=False, **options)


def why(result: Any) -> list[str]:
    return [root_cause(event) for event in result.get_step_failure_events()]


@pytest.fixture
def published(platform: Platform, instance: dg.DagsterInstance) -> Platform:
    """A platform with the rows of a model, published."""
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, "visits")]
    instance.add_dynamic_partitions(arrivals_partition("visits").name or "", keys)
    assert run(location(), "visits_ingest", instance, partition_key=keys[0]).success
    return platform


def test_a_check_that_passes_lets_the_version_become_champion(
    published: Platform, instance: dg.DagsterInstance
) -> None:
    result = run(location(own(PASSED)), "visits_retrain", instance)

    assert result.success, why(result)
    assert {"own", "auc_roc"} < {check.check_name for check in result.get_asset_check_evaluations()}
    assert published.database.champion("visits") is not None


@pytest.mark.fault("C5")
@pytest.mark.parametrize("answer", [None, False])
def test_a_check_that_leaves_no_record_stops_the_version(
    answer: Any, published: Platform, instance: dg.DagsterInstance
) -> None:
    """Dagster goes on behind it, in its run and in one that starts behind it."""
    made = location(own(answer))

    result = run(made, "visits_retrain", instance)
    behind = [dg.AssetKey(["visits", name]) for name in ("registered_version", "staging_version", "champion_version")]
    again = run(made, "visits_retrain", instance, asset_selection=behind)

    for failed in (result, again):
        assert not failed.success
        (said,) = why(failed)
        assert said.startswith("Candidate ")
        assert "visits/trained_model:own: it was run and gave no result, as one that returns None or False." in said
    assert published.database.champion("visits") is None
    candidate = published.database.newest_candidate("visits")
    assert candidate is not None
    assert published.database.registration_of(candidate.id) is None


@pytest.mark.fault("C5")
def test_a_check_that_was_not_run_or_failed_stops_the_version(
    published: Platform, instance: dg.DagsterInstance
) -> None:
    left_out = run(location(own(PASSED)), "without_own", instance)
    answers = iter([dg.AssetCheckResult(passed=False)])
    made = location(own(lambda: next(answers)))
    run(made, "visits_retrain", instance)
    behind = run(made, "visits_retrain", instance, asset_selection=[dg.AssetKey(["visits", "registered_version"])])

    assert why(left_out)[0].endswith("materialise the whole group again.")
    assert "visits/trained_model:own: it was not run." in why(left_out)[0]
    assert "visits/trained_model:own: it failed." in why(behind)[0]
    assert published.database.champion("visits") is None


def test_a_check_that_only_reports_stops_nothing(published: Platform, instance: dg.DagsterInstance) -> None:
    assert run(location(own(None, blocking=False)), "visits_retrain", instance).success
    assert published.database.champion("visits") is not None


def test_what_passed_in_a_retry_counts_and_in_another_run_does_not(
    published: Platform, instance: dg.DagsterInstance
) -> None:
    run(location(own(None)), "visits_retrain", instance)
    first = published.database.newest_candidate("visits")
    assert first is not None
    key = dg.AssetCheckKey(dg.AssetKey(TRAINED), "own")
    assert run(location(own(PASSED)), "visits_retrain", instance).success

    with pytest.raises(EvidenceError, match="gave no result"):
        own_checks.require_recorded(instance, first, [key])

    retry = {"dagster/root_run_id": first.run_id or "", "dagster/parent_run_id": first.run_id or ""}
    only = dg.define_asset_job("only_own", dg.AssetSelection.checks(key))
    with_job = dg.Definitions.merge(location(own(PASSED)), dg.Definitions(jobs=[only]))
    assert run(with_job, "only_own", instance, tags=retry).success
    own_checks.require_recorded(instance, first, [key])


# What is refused when the code location is loaded


@pytest.mark.parametrize("name", ["validated_batches", "registered_version", "champion_version", "rollout"])
def test_a_blocking_check_where_no_version_can_be_refused_any_more_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"visits/{name}:own must be on training_dataset or trained_model"):
        location(own(PASSED, asset=["visits", name]))
    location(own(PASSED, asset=["visits", name], blocking=False))
    location(own(PASSED, asset=["visits", "training_dataset"]))


@pytest.mark.fault("C5")
def test_a_blocking_check_beside_the_models_definitions_is_refused_and_told_where_it_belongs() -> None:
    beside = dg.Definitions.merge(location(), dg.Definitions(asset_checks=[own(PASSED)]))

    with pytest.raises(ConfigurationError, match=r"visits/trained_model:own must be given to model_definitions\(spec,"):
        own_checks.refuse_unasked(beside)
    own_checks.refuse_unasked(location(own(PASSED)))
    reports = dg.Definitions(asset_checks=[own(PASSED, blocking=False)])
    own_checks.refuse_unasked(dg.Definitions.merge(location(), reports))


def test_the_code_location_that_is_loaded_was_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    found = dg.Definitions.merge(location(), dg.Definitions(asset_checks=[own(PASSED)]))
    monkeypatch.setattr(dg, "load_from_defs_folder", lambda **_: found)

    with pytest.raises(ConfigurationError, match="must be given to"):
        defs()
