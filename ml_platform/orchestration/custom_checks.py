"""An author's own asset checks: their validation, and the records that a registration requires.

A gate is a condition of `ModelSpec` and is part of the verdict. For conditions that no metric expresses, an author may
write an asset check of Dagster and name it in `ModelSpec.asset_checks`. Dagster continues after a blocking check that
returns None, False or any other value than an AssetCheckResult, and after one that was not run. Registration, which
every version passes, therefore requires a record of success for each.
"""

from collections.abc import Sequence

import dagster as dg

from ml_platform.errors import ConfigurationError, EvidenceError, one_line
from ml_platform.model_spec import ModelSpec
from ml_platform.orchestration.dagster_internals import (
    ROOT_RUN_ID_TAG,
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)
from ml_platform.records.verdict import Candidate

# Assets that a run materializes before it registers a version.
BEFORE_REGISTRATION = ("training_dataset", "trained_model")
MAX_RECORDS = 1_000
SILENT = "it was run and gave no result, as one that returns None or False"
UNREACHED = "it was planned, and the run ended before it had a result"
# How an author adds a check.
HOW = "ModelSpec(asset_checks=…)"


def build_checks(spec: ModelSpec) -> list[dg.AssetChecksDefinition]:
    """Return an author's own asset checks, made by the function that the model's file names.

    Raises
    ------
    ConfigurationError
        The function fails, returns other objects than asset checks, or a check is not on the model's own assets.
    """
    if spec.asset_checks is None:
        return []
    try:
        checks = list(spec.asset_checks())
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # as in discovery: a SystemExit must not end the process
        raise ConfigurationError(
            f"asset_checks of the model {spec.name!r} failed: {one_line(error)}. It must be a function without "
            "arguments that returns a list of dagster.AssetChecksDefinition."
        ) from error
    wrong = [check for check in checks if not isinstance(check, dg.AssetChecksDefinition)]
    if wrong:
        raise ConfigurationError(
            f"asset_checks of the model {spec.name!r} must return dagster.AssetChecksDefinition, as @dg.asset_check "
            f"makes them. Got {type(wrong[0]).__name__} instead."
        )
    _require_own(spec.name, checks)
    return checks


def _require_own(model: str, checks: Sequence[dg.AssetChecksDefinition]) -> None:
    """Reject checks on other models' assets, and steps with the name of a step of the platform."""
    for definition in checks:
        foreign = [key for key in definition.check_keys if key.asset_key.path[:1] != [model]]
        if foreign:
            raise ConfigurationError(
                f"asset_checks of the model {model!r} must be on its own assets, asset=[{model!r}, …]. "
                f"Got {_format_key(foreign[0])} instead."
            )
        step = definition.node_def.name
        if not step.startswith(f"{model}_") or step == f"{model}_gates":
            raise ConfigurationError(
                f"asset_checks of the model {model!r}: the name of a step must begin with {model!r} and an underscore, "
                f"and {model}_gates is taken. Got {step!r} instead."
            )


def find_blocking_checks(model: str, checks: Sequence[dg.AssetChecksDefinition]) -> list[dg.AssetCheckKey]:
    """Return the author's own blocking checks, which must succeed before a version is registered.

    Raises
    ------
    ConfigurationError
        A blocking check is on an asset that is materialized after registration, and would block nothing.
    """
    keys = [spec.key for definition in checks for spec in definition.check_specs if spec.blocking]
    for key in keys:
        if key.asset_key.path not in [[model, name] for name in BEFORE_REGISTRATION]:
            raise ConfigurationError(
                f"The blocking check {_format_key(key)} must be on {' or '.join(BEFORE_REGISTRATION)} of {model!r}, "
                "before a version is registered. Move it, or set blocking=False. Conditions on rows belong in the "
                "contract, as pandera checks."
            )
    return keys


def require_recorded(instance: dg.DagsterInstance, candidate: Candidate, keys: Sequence[dg.AssetCheckKey]) -> None:
    """Reject a candidate unless each check has a record of success in the run that trained it, or in its retry.

    Raises
    ------
    EvidenceError
        A check failed, was not run or gave no result.
    """
    if not keys:
        return
    root = candidate.run_id or ""
    retries = instance.get_runs(filters=dg.RunsFilter(tags={ROOT_RUN_ID_TAG: root}))
    runs = {root, *(run.run_id for run in retries)}
    problems = [f"{_format_key(key)}: {why}" for key in keys if (why := _explain_failure(instance, key, runs))]
    if problems:
        raise EvidenceError(
            f"Candidate {candidate.id} must have a record of success for each of its author's blocking checks in the "
            f"run that trained it. {'; '.join(problems)}. A check returns dg.AssetCheckResult(passed=…); "
            "materialise the whole group again."
        )


def _explain_failure(instance: dg.DagsterInstance, key: dg.AssetCheckKey, runs: set[str]) -> str:
    """Return the reason why a check's newest record in these runs is not a success; empty if it is one."""
    history = instance.event_log_storage.get_asset_check_execution_history(key, limit=MAX_RECORDS)
    newest = next((record for record in history if record.run_id in runs), None)
    if newest is None:
        return "it was not run"
    if newest.status is AssetCheckExecutionRecordStatus.SUCCEEDED:
        return ""
    failed = newest.status is AssetCheckExecutionRecordStatus.FAILED
    return "it failed" if failed else explain_missing_result(instance, newest)


def explain_missing_result(instance: dg.DagsterInstance, record: AssetCheckExecutionRecord) -> str:
    """Return the reason why a check that was planned in a run has no result: none was returned, or it did not end."""
    step = record.event.step_key if record.event else None
    ended = instance.all_logs(record.run_id, of_type=dg.DagsterEventType.STEP_SUCCESS)
    return SILENT if step in {event.step_key for event in ended} else UNREACHED


def _format_key(key: dg.AssetCheckKey) -> str:
    return f"{'/'.join(key.asset_key.path)}:{key.name}"
