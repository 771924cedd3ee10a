"""An author's own asset checks: which the platform takes, and that a version rests on what they recorded.

A gate is a condition of `ModelSpec` and stands in the verdict. What no metric says, an author may write as an asset
check of Dagster and hand to `pipeline.model_definitions`. Dagster goes on behind a blocking check that answers None,
False or anything else that is no AssetCheckResult, and behind one that was not run: so registration, which no version
comes around, asks for the record of each.
"""

from collections.abc import Iterable, Iterator, Sequence

import dagster as dg
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)
from dagster._core.storage.tags import ROOT_RUN_ID_TAG

from ml_platform.errors import ConfigurationError, EvidenceError
from ml_platform.records import Candidate

# What a run makes before it registers a version.
BEFORE_REGISTRATION = ("training_dataset", "trained_model")
# By this asset's metadata a code location is searched for checks that nobody asks for.
ASKS, TAKEN = "registered_version", "checks"
MOST_RECORDS = 1_000
SILENT = "it was run and gave no result, as one that returns None or False"
UNREACHED = "it was planned, and the run ended before it had a result"
HOW = "model_definitions(spec, checks=[…])"


def blocking_of(model: str, checks: Sequence[dg.AssetChecksDefinition]) -> list[dg.AssetCheckKey]:
    """Return the author's own checks that must have succeeded before a version of a model is registered.

    Raises
    ------
    ConfigurationError
        A blocking check is not on what a run makes before registration: nothing would wait for it.
    """
    keys = [spec.key for definition in checks for spec in definition.check_specs if spec.blocking]
    for key in keys:
        if key.asset_key.path not in [[model, name] for name in BEFORE_REGISTRATION]:
            raise ConfigurationError(
                f"The blocking check {_words(key)} must be on {' or '.join(BEFORE_REGISTRATION)} of {model!r}: only "
                "there can a version still be refused. Move it, or let it report with blocking=False; what rows must "
                "fulfil belongs in the contract, as a pandera check."
            )
    return keys


def refuse_unasked(definitions: dg.Definitions) -> dg.Definitions:
    """Return a code location, unless it has a blocking check on a model's assets whose record nobody would ask for.

    Raises
    ------
    ConfigurationError
        It has one: it was put beside what `model_definitions` returned, instead of being given to it.
    """
    taken = {model: names for asset in definitions.assets or () for model, names in _asking(asset)}
    for definition in definitions.asset_checks or ():
        for spec in definition.check_specs:
            model = spec.asset_key.path[0]
            if spec.blocking and model in taken and _words(spec.key) not in taken[model]:
                raise ConfigurationError(
                    f"The blocking check {_words(spec.key)} must be given to {HOW}, so that no version is registered "
                    "without its success. It was added beside it: Dagster goes on behind a check that gives no result."
                )
    return definitions


def _asking(asset: object) -> Iterator[tuple[str, list[str]]]:
    for spec in asset.specs if isinstance(asset, dg.AssetsDefinition) else ():
        if spec.key.path[-1] == ASKS and TAKEN in spec.metadata:
            yield spec.key.path[0], spec.metadata[TAKEN]


def taken_by(definitions: Iterable[dg.AssetChecksDefinition]) -> dict[str, list[str]]:
    """Return the metadata by which `refuse_unasked` knows the checks that a model's registration asks for."""
    return {TAKEN: [_words(spec.key) for definition in definitions for spec in definition.check_specs]}


def require_recorded(instance: dg.DagsterInstance, candidate: Candidate, keys: Sequence[dg.AssetCheckKey]) -> None:
    """Refuse a candidate unless each check has a record of success in the run that trained it, or a retry of that.

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
    said = [f"{_words(key)}: {why}" for key in keys if (why := _missing(instance, key, runs))]
    if said:
        raise EvidenceError(
            f"Candidate {candidate.id} must have a record of success for each of its author's blocking checks in the "
            f"run that trained it. {'; '.join(said)}. A check returns dg.AssetCheckResult(passed=…); materialise the "
            "whole group again."
        )


def _missing(instance: dg.DagsterInstance, key: dg.AssetCheckKey, runs: set[str]) -> str:
    """Return why a check is no success in these runs; empty where the newest of its records there is one."""
    history = instance.event_log_storage.get_asset_check_execution_history(key, limit=MOST_RECORDS)
    newest = next((record for record in history if record.run_id in runs), None)
    if newest is None:
        return "it was not run"
    if newest.status is AssetCheckExecutionRecordStatus.SUCCEEDED:
        return ""
    failed = newest.status is AssetCheckExecutionRecordStatus.FAILED
    return "it failed" if failed else why_no_result(instance, newest)


def why_no_result(instance: dg.DagsterInstance, record: AssetCheckExecutionRecord) -> str:
    """Return why a check that was planned in a run has no result: its function gave none, or it did not end."""
    step = record.event.step_key if record.event else None
    ended = instance.all_logs(record.run_id, of_type=dg.DagsterEventType.STEP_SUCCESS)
    return SILENT if step in {event.step_key for event in ended} else UNREACHED


def _words(key: dg.AssetCheckKey) -> str:
    return f"{'/'.join(key.asset_key.path)}:{key.name}"
