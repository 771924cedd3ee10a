"""Only a record written by Dagster counts as a success: each check here is executed."""

from typing import Any

import dagster as dg
import pytest

from ml_platform.ci.compare_change import problems_of_checks
from ml_platform.ci.dagster_records import CheckRecord, failures, read_check_record
from ml_platform.ci.result_schema import CheckState, ReportedCheck
from ml_platform.errors import ApprovalNeededError


def materialise(instance: dg.DagsterInstance, checks: list[Any], *, body: Any = lambda: None) -> str:
    @dg.asset(key=["visits", "trained_model"])
    def trained_model() -> None:
        body()

    job = dg.define_asset_job("job", dg.AssetSelection.all())
    found = dg.Definitions(assets=[trained_model], asset_checks=checks, jobs=[job], executor=dg.in_process_executor)
    done = found.get_repository_def().get_job("job").execute_in_process(instance=instance, raise_on_error=False)
    return str(done.run_id)


def check(name: str, answer: Any, *, blocking: bool = True) -> Any:
    @dg.asset_check(asset=["visits", "trained_model"], name=name, blocking=blocking)
    def checked() -> Any:
        return answer

    return checked


def own_that(acts: Any) -> Any:
    @dg.asset_check(asset=["visits", "trained_model"], name="gate", blocking=True)
    def checked() -> Any:
        return acts()

    return checked


def state(instance: dg.DagsterInstance, name: str, *runs: str) -> CheckState:
    return found(instance, name, *runs).state


def found(instance: dg.DagsterInstance, name: str, *runs: str) -> CheckRecord:
    return read_check_record(instance, ["visits", "trained_model"], name, list(runs))


PASSED, REFUSED = dg.AssetCheckResult(passed=True), dg.AssetCheckResult(passed=False, description="0.4 is too low")
WARNED = dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN)


@pytest.mark.fault("C5")
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (PASSED, CheckState.SUCCEEDED),
        (REFUSED, CheckState.FAILED),
        (WARNED, CheckState.FAILED),
        (None, CheckState.SKIPPED),
        (False, CheckState.SKIPPED),
        ({"passed": True}, CheckState.SKIPPED),
    ],
)
def test_check_record_only_succeeded_is_success(
    instance: dg.DagsterInstance, answer: Any, expected: CheckState
) -> None:
    run = materialise(instance, [check("gate", answer), check("other", PASSED)])

    assert state(instance, "gate", run) is expected
    assert state(instance, "other", run) is CheckState.SUCCEEDED
    assert bool(problems_of_checks([ReportedCheck(check="gate", state=expected)])) is (
        expected is not CheckState.SUCCEEDED
    )


@pytest.mark.fault("C5")
def test_check_record_of_another_run_is_missing(instance: dg.DagsterInstance) -> None:
    before = materialise(instance, [check("gate", PASSED)])
    after = materialise(instance, [])

    assert state(instance, "gate", before) is CheckState.SUCCEEDED
    assert state(instance, "gate", after) is CheckState.MISSING
    assert state(instance, "gate", before, after) is CheckState.MISSING
    assert state(instance, "gate") is CheckState.MISSING


def test_check_record_keeps_description(instance: dg.DagsterInstance) -> None:
    run = materialise(instance, [check("gate", REFUSED)])

    assert found(instance, "gate", run).said == "0.4 is too low"


def test_failures_exclude_missing_approval(instance: dg.DagsterInstance) -> None:
    def die() -> None:
        raise ZeroDivisionError("no rows")

    def wait() -> None:
        raise ApprovalNeededError("version 1 needs an approval")

    runs = [materialise(instance, [check("gate", PASSED)], body=body) for body in (die, wait, lambda: None)]

    assert failures(instance, runs[0]) == ["ZeroDivisionError: no rows"]
    assert failures(instance, runs[1]) == failures(instance, runs[2]) == []
    assert found(instance, "gate", runs[0]) == CheckRecord(
        state=CheckState.SKIPPED, said="it was planned, and the run ended before it had a result"
    )


@pytest.mark.fault("C5")
def test_check_record_without_result_names_reason(instance: dg.DagsterInstance) -> None:
    def die() -> Any:
        raise ZeroDivisionError("no rows")

    silent, dead = (materialise(instance, [made]) for made in (check("gate", None), own_that(die)))

    assert found(instance, "gate", silent).said == "it was run and gave no result, as one that returns None or False"
    assert found(instance, "gate", dead).said == "it was planned, and the run ended before it had a result"


def test_failures_canceled_run_is_a_failure(instance: dg.DagsterInstance) -> None:
    run = instance.get_run_by_id(materialise(instance, []))
    assert run is not None
    assert failures(instance, run.run_id) == []

    instance.report_run_canceled(run)

    assert failures(instance, run.run_id) == ["the run has the status CANCELED, but no step failed"]
    assert failures(instance, "unknown") == ["the run has the status unknown, but no step failed"]
