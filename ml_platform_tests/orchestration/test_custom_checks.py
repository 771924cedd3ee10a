"""An author's own asset checks in real runs: no version is registered without their recorded success."""

from typing import Any

import dagster as dg
import pytest

from ml_platform.cli.launch import QUIET, describe_failure
from ml_platform.errors import ConfigurationError, EvidenceError
from ml_platform.orchestration import custom_checks
from ml_platform.orchestration.resources import PlatformResource
from ml_platform.pipeline import model_definitions
from ml_platform.platform import Platform
from ml_platform_tests.support import fakes
from ml_platform_tests.support.steps import publish

TRAINED = ["visits", "trained_model"]
PASSED = dg.AssetCheckResult(passed=True)
LIFE = dg.AssetSelection.groups("visits")


def build_check(result: Any, *, asset: list[str] = TRAINED, blocking: bool = True) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=asset, blocking=blocking, name="own")
    def check() -> Any:
        return result() if callable(result) else result

    return check


def location(*checks: dg.AssetChecksDefinition) -> dg.Definitions:
    without = LIFE - dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey(TRAINED), "own"))
    rest = dg.Definitions(
        resources={"platform": PlatformResource()},
        executor=dg.in_process_executor,
        jobs=[dg.define_asset_job("without_own", without)],
    )
    return dg.Definitions.merge(model_definitions(fakes.visits_spec(asset_checks=lambda: checks)), rest)


def run(made: dg.Definitions, job: str, instance: dg.DagsterInstance, **options: Any) -> Any:
    definition = made.get_repository_def().get_job(job)
    return definition.execute_in_process(run_config=QUIET, instance=instance, raise_on_error=False, **options)


def why(result: Any) -> list[str]:
    return [describe_failure(event) for event in result.get_step_failure_events()]


@pytest.fixture
def published(platform: Platform) -> Platform:
    """A platform with the rows of a model, published."""
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    publish(platform)
    return platform


def test_passed_check_allows_promotion(published: Platform, instance: dg.DagsterInstance) -> None:
    result = run(location(build_check(PASSED)), "visits_retrain", instance)

    assert result.success, why(result)
    assert {"own", "auc_roc"} < {check.check_name for check in result.get_asset_check_evaluations()}
    assert published.database.champion("visits") is not None


@pytest.mark.fault("C5")
@pytest.mark.parametrize("answer", [None, False])
def test_check_without_result_blocks_registration(
    answer: Any, published: Platform, instance: dg.DagsterInstance
) -> None:
    """Dagster continues after it, in its run and in a run of the assets behind it."""
    made = location(build_check(answer))

    result = run(made, "visits_retrain", instance)
    behind = [dg.AssetKey(["visits", name]) for name in ("registered_version", "staging_version", "champion_version")]
    again = run(made, "visits_retrain", instance, asset_selection=behind)

    for failed in (result, again):
        assert not failed.success
        (message,) = why(failed)
        assert message.startswith("Candidate ")
        assert "visits/trained_model:own: it was run and gave no result, as one that returns None or False." in message
    assert published.database.champion("visits") is None
    candidate = published.database.newest_candidate("visits")
    assert candidate is not None
    assert published.database.find_registration(candidate.id) is None


@pytest.mark.fault("C5")
def test_skipped_or_failed_check_blocks_registration(published: Platform, instance: dg.DagsterInstance) -> None:
    left_out = run(location(build_check(PASSED)), "without_own", instance)
    answers = iter([dg.AssetCheckResult(passed=False)])
    made = location(build_check(lambda: next(answers)))
    run(made, "visits_retrain", instance)
    behind = run(made, "visits_retrain", instance, asset_selection=[dg.AssetKey(["visits", "registered_version"])])

    assert why(left_out)[0].endswith("materialise the whole group again.")
    assert "visits/trained_model:own: it was not run." in why(left_out)[0]
    assert "visits/trained_model:own: it failed." in why(behind)[0]
    assert published.database.champion("visits") is None


def test_reporting_check_blocks_nothing(published: Platform, instance: dg.DagsterInstance) -> None:
    assert run(location(build_check(None, blocking=False)), "visits_retrain", instance).success
    assert published.database.champion("visits") is not None


def test_check_counts_in_retry_only(published: Platform, instance: dg.DagsterInstance) -> None:
    run(location(build_check(None)), "visits_retrain", instance)
    first = published.database.newest_candidate("visits")
    assert first is not None
    key = dg.AssetCheckKey(dg.AssetKey(TRAINED), "own")
    assert run(location(build_check(PASSED)), "visits_retrain", instance).success

    with pytest.raises(EvidenceError, match="gave no result"):
        custom_checks.require_recorded(instance, first, [key])

    retry = {"dagster/root_run_id": first.run_id or "", "dagster/parent_run_id": first.run_id or ""}
    only = dg.define_asset_job("only_own", dg.AssetSelection.checks(key))
    with_job = dg.Definitions.merge(location(build_check(PASSED)), dg.Definitions(jobs=[only]))
    assert run(with_job, "only_own", instance, tags=retry).success
    custom_checks.require_recorded(instance, first, [key])


# Errors when the code location is loaded


@pytest.mark.parametrize("name", ["validated_batches", "registered_version", "champion_version", "rollout"])
def test_blocking_check_after_registration_is_rejected(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"visits/{name}:own must be on training_dataset or trained_model"):
        location(build_check(PASSED, asset=["visits", name]))
    location(build_check(PASSED, asset=["visits", name], blocking=False))
    location(build_check(PASSED, asset=["visits", "training_dataset"]))


def fail() -> list[dg.AssetChecksDefinition]:
    raise KeyError("threshold")


@pytest.mark.parametrize(
    ("asset_checks", "words"),
    [
        (fail, "asset_checks of the model 'visits' failed: KeyError: 'threshold'"),
        (lambda: [PASSED], "must return dagster.AssetChecksDefinition, .* Got AssetCheckResult instead"),
    ],
)
def test_invalid_asset_checks_are_rejected(asset_checks: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        model_definitions(fakes.visits_spec(asset_checks=asset_checks))
