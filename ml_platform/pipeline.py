"""The page to read: the assets, checks, jobs, sensors and schedule of a model, in the order of its life.

::

    landing zone -> raw_batches -> validated_batches                       group <model>_data, a partition for each file
    training_dataset -> trained_model -> registered_version -> staging_version -> champion_version    group <model>
    champion_version -> rollout -> prediction_log                          group <model>_live, never run by CI

The body of an asset calls a function of another package and returns its result as metadata. Assets pass data through
the platform's database and tables, never through IO managers.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from ml_platform.data.ingest import preview_batch, publish_batches, store_raw_batches
from ml_platform.data.pin import pin_dataset, profile_dataset
from ml_platform.errors import EvidenceError
from ml_platform.evaluation.judge import judge_candidate
from ml_platform.model_spec import ModelSpec
from ml_platform.monitoring.prediction_log.collect import take_predictions
from ml_platform.orchestration import custom_checks, sensors
from ml_platform.orchestration.metadata import (
    DATASET_CHECKS,
    arrival_metadata,
    batch_metadata,
    candidate_metadata,
    champion_event,
    change_check,
    data_check,
    dataset_checks,
    dataset_metadata,
    entry_metadata,
    evidence_metadata,
    fast_path_check,
    gate_checks,
    golden_check,
    prediction_metadata,
    profile_metadata,
    traffic_metadata,
    version_metadata,
)
from ml_platform.orchestration.resources import (
    ACTOR_TAG,
    MODEL_TAG,
    REASON_TAG,
    SLOT_TAG,
    PlatformResource,
    arrivals_partition,
)
from ml_platform.orchestration.trigger_record import request_time, was_triggered
from ml_platform.platform import Platform
from ml_platform.records.retraining import Slot
from ml_platform.release import integration_test
from ml_platform.release.authentication import current_actor, os_user
from ml_platform.release.ledger.follow import sync_alias
from ml_platform.release.promote import promote_version
from ml_platform.release.register import register_candidate, stage_version
from ml_platform.release.rollout.steps import step_rollout
from ml_platform.settings import keeps_runs
from ml_platform.system import isolated_process
from ml_platform.training.retraining import claim_slot
from ml_platform.training.train import current_candidate, train_candidate

if TYPE_CHECKING:
    Result = dg.MaterializeResult[Any]
else:  # Dagster accepts only the bare class as the annotation of an asset's function
    Result = dg.MaterializeResult

Decorator = Callable[[Callable[..., Result]], dg.AssetsDefinition]

DATA_CHECKS = {
    "schema": "Every file is readable and has exactly the contract's columns and types.",
    "values": "Every value is within the contract's ranges and categories.",
    "keys": "No row has the entity and time of another row, published or in its file, with other values.",
    "volume": "The number of rows in every file is between the model's minimum and maximum, and its size is allowed.",
    "freshness": "No row is from the future.",
    "quarantined_share": "The share of bad rows in every file is at most the model's tolerance.",
}
PROMOTING = {"registered_version", "staging_version", "champion_version"}


def model_definitions(spec: ModelSpec) -> dg.Definitions:
    """Build the assets, checks, jobs, sensors and schedule of one model.

    Raises
    ------
    ConfigurationError
        The model's `asset_checks` cannot be built, or a blocking one is on an asset after the registration.
    """
    checks = custom_checks.build_checks(spec)
    data = [_raw_batches(spec), _validated_batches(spec)]
    life = [
        _training_dataset(spec),
        _trained_model(spec),
        _registered_version(spec, custom_checks.find_blocking_checks(spec.name, checks)),
        _staging_version(spec),
        _champion_version(spec),
    ]
    rollout, log = _rollout(spec), _prediction_log(spec)
    make_job = partial(dg.define_asset_job, tags={MODEL_TAG: spec.name})
    ingest_job = make_job(f"{spec.name}_ingest", dg.AssetSelection.assets(*data))
    retrain_job = make_job(f"{spec.name}_retrain", dg.AssetSelection.assets(*life))
    rollout_job = make_job(f"{spec.name}_rollout", dg.AssetSelection.assets(rollout))
    log_job = make_job(f"{spec.name}_predictions", dg.AssetSelection.assets(log))
    return dg.Definitions(
        assets=[*data, *life, rollout, log],
        asset_checks=[_gates(spec), *checks],
        jobs=[ingest_job, retrain_job, rollout_job, log_job],
        sensors=[
            sensors.arrival_sensor(spec, ingest_job),
            sensors.retraining_sensor(spec, retrain_job),
            sensors.registry_sensor(spec),
            sensors.prediction_sensor(spec, log_job),
            sensors.traffic_sensor(spec, rollout_job),
        ],
        schedules=[sensors.weekly_schedule(spec, retrain_job)],
    )


# Data: from the landing zone to valid rows


def _raw_batches(spec: ModelSpec) -> dg.AssetsDefinition:
    @_data_asset(
        spec,
        "raw_batches",
        kinds={"file"},
        description="The unchanged bytes of every file from the landing zone, stored once under their sha256.",
    )
    def raw_batches(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        opened = platform.open()
        batches, gone = store_raw_batches(opened, spec.name, context.partition_keys)
        for batch in batches:
            preview = preview_batch(opened, spec, batch)
            context.add_asset_metadata(batch_metadata(batch, preview), partition_key=batch.arrival.key)
        return Result(metadata={"files": len(batches), "gone": dg.MetadataValue.json(gone)})

    return raw_batches


def _validated_batches(spec: ModelSpec) -> dg.AssetsDefinition:
    @_data_asset(
        spec,
        "validated_batches",
        kinds={"deltalake", "pandera"},
        deps=[[spec.name, "raw_batches"]],
        check_specs=[
            dg.AssetCheckSpec(name, asset=[spec.name, "validated_batches"], description=text)
            for name, text in DATA_CHECKS.items()
        ],
        description="The rows that conform to the contract, appended to the model's Delta table. The other rows are "
        "quarantined with the reason.",
    )
    def validated_batches(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        results = publish_batches(platform.open(), spec, context.partition_keys)
        for result in results:
            context.add_asset_metadata(arrival_metadata(result), partition_key=result.arrival.key)
        return Result(check_results=[data_check(name, results) for name in DATA_CHECKS])

    return validated_batches


def _data_asset(spec: ModelSpec, name: str, **options: Any) -> Decorator:
    return _asset(
        spec,
        name,
        group_name=f"{spec.name}_data",
        partitions_def=arrivals_partition(spec.name),
        backfill_policy=dg.BackfillPolicy.single_run(),
        **options,
    )


def _asset(spec: ModelSpec, name: str, **options: Any) -> Decorator:
    return cast(Decorator, dg.asset(key=[spec.name, name], owners=list(spec.owners), **options))


# Life: from the training dataset to the champion


def _training_dataset(spec: ModelSpec) -> dg.AssetsDefinition:
    checks = [_blocking(spec, "training_dataset", name, text) for name, text in DATASET_CHECKS.items()]
    if spec.golden:
        text = "Every golden dataset is present, unchanged and conforms to the contract."
        checks.append(_blocking(spec, "training_dataset", "golden", text))
    change = "No column's distribution moved far from the previous dataset version. A failure is reported only."
    checks.append(dg.AssetCheckSpec("change", asset=[spec.name, "training_dataset"], description=change))

    @_asset(
        spec,
        "training_dataset",
        group_name=spec.name,
        kinds={"deltalake"},
        deps=[[spec.name, "validated_batches"]],
        check_specs=checks,
        description="A version of the model's Delta table, pinned by number and digest, and split by entity or time.",
    )
    def training_dataset(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        _refuse_ephemeral(context)
        opened = platform.open()
        _claim_slot(context, opened, spec.name)
        report = pin_dataset(opened, spec)
        profile = profile_dataset(opened, spec, report.dataset)
        metadata = {**dataset_metadata(report), **profile_metadata(opened, report, profile)}
        results = [*dataset_checks(report), change_check(profile), *golden_check(opened, spec)]
        return Result(metadata=metadata, check_results=results)

    return training_dataset


def _trained_model(spec: ModelSpec) -> dg.AssetsDefinition:
    @_asset(
        spec,
        "trained_model",
        group_name=spec.name,
        kinds={"scikitlearn"},
        deps=[[spec.name, "training_dataset"]],
        description="A candidate: the author's pipeline, fitted on the training rows and stored as skops.",
    )
    def trained_model(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        isolated_process.start_early(integration_test.FRESH_MODULES)  # it imports while the model is fitted
        opened, tags = platform.open(), context.run.tags
        triggered, root = was_triggered(context.instance, context.run, spec.name), _root_run(context)
        candidate = train_candidate(
            opened,
            spec,
            reason=tags.get(REASON_TAG, "manual: materialised"),
            run_id=root,
            # Tags are only a claim, so that the user of this process is recorded beside it.
            actor=None if triggered else tags.get(ACTOR_TAG) or current_actor(opened),
            trained_by=os_user().name,
            requested_at=request_time(context.instance, root),
        )
        return Result(metadata=candidate_metadata(candidate))

    return trained_model


def _gates(spec: ModelSpec) -> dg.AssetChecksDefinition:
    """Make each gate a blocking check; one step evaluates the candidate, stores its verdict and yields all results.

    The step cannot be subset, and Dagster fails the run if a result is missing. The registration judges the stored
    verdict again, so that a run that starts after the gates cannot bypass them.
    """
    specs = [
        _blocking(spec, "trained_model", name, f"{condition}, on rows the model has not seen")
        for name, condition in spec.conditions.items()
    ]
    fast = "The compiled preprocessing predicts exactly the same bits as the pipeline. If not, serving is slower."
    specs.append(dg.AssetCheckSpec("fast_path", asset=[spec.name, "trained_model"], description=fast))

    @dg.multi_asset_check(name=f"{spec.name}_gates", specs=specs, can_subset=False)
    def gates(context: dg.AssetCheckExecutionContext, platform: PlatformResource) -> Iterator[dg.AssetCheckResult]:
        opened = platform.open()
        candidate = current_candidate(opened, spec.name, _root_run(context))
        judgement = judge_candidate(opened, spec, candidate)
        sync_alias(opened, spec.name)
        yield from gate_checks(opened, spec, judgement)
        yield fast_path_check(judgement)

    return gates


def _registered_version(spec: ModelSpec, blocking: Sequence[dg.AssetCheckKey]) -> dg.AssetsDefinition:
    @_asset(
        spec,
        "registered_version",
        group_name=spec.name,
        kinds={"mlflow"},
        deps=[[spec.name, "trained_model"]],
        description="The candidate in the registry, with the alias challenger. Requires a passing verdict.",
    )
    def registered_version(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        _refuse_ephemeral(context)
        opened = platform.open()
        candidate = current_candidate(opened, spec.name, _root_run(context))
        custom_checks.require_recorded(context.instance, candidate, blocking)
        registration = register_candidate(opened, spec, candidate)
        evidence = evidence_metadata(opened, candidate)
        return Result(metadata={**version_metadata(opened, registration), **evidence})

    return registered_version


def _staging_version(spec: ModelSpec) -> dg.AssetsDefinition:
    test = "The registry's model file, loaded in a new process, answers the golden requests exactly as the gated model."

    @_asset(
        spec,
        "staging_version",
        group_name=spec.name,
        kinds={"mlflow"},
        deps=[[spec.name, "registered_version"]],
        check_specs=[_blocking(spec, "staging_version", "integration_test", test)],
        description="The version that passed the integration test, with the alias staging.",
    )
    def staging_version(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        _refuse_ephemeral(context)
        opened = platform.open()
        candidate = current_candidate(opened, spec.name, _root_run(context))
        registration, problem = stage_version(opened, candidate, max_ms=spec.max_inference_ms)
        tested = dg.AssetCheckResult(check_name="integration_test", passed=problem is None, description=problem)
        return Result(metadata=version_metadata(opened, registration), check_results=[tested])

    return staging_version


def _champion_version(spec: ModelSpec) -> dg.AssetsDefinition:
    @_asset(
        spec,
        "champion_version",
        group_name=spec.name,
        kinds={"mlflow"},
        deps=[[spec.name, "staging_version"]],
        description="The version in production: the ledger's last promotion, with the alias champion.",
    )
    def champion_version(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        _refuse_ephemeral(context)
        opened = platform.open()
        candidate = current_candidate(opened, spec.name, _root_run(context))
        reason, actor = candidate.lineage.reason, f"dagster run {context.run.run_id}"
        entry = promote_version(opened, spec, candidate, reason=reason, actor=actor)
        return Result(metadata=entry_metadata(opened, entry))

    return champion_version


def _blocking(spec: ModelSpec, asset: str, name: str, description: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(name, asset=[spec.name, asset], blocking=True, description=description)


def _root_run(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> str:
    """Return the id of the first run in a chain of retries, which names the candidate of the whole chain."""
    return context.run.root_run_id or context.run.run_id


def _claim_slot(context: dg.AssetExecutionContext, platform: Platform, model: str) -> None:
    """Claim the run's time slot, and refuse to train if another run has it; a retry has the slot of its first run."""
    tags = context.run.tags
    if SLOT_TAG in tags:
        slot = Slot(model=model, reason=tags.get(REASON_TAG, ""), slot=tags[SLOT_TAG])
        claim_slot(platform, slot, _root_run(context))


def _refuse_ephemeral(context: dg.AssetExecutionContext) -> None:
    """Refuse to promote in a run that Dagster does not store; checked before training, which takes longest."""
    selected = context.run.asset_selection or context.job_def.asset_layer.executable_asset_keys
    promotes = {key.path[-1] for key in selected} & PROMOTING
    if promotes and (context.instance.is_ephemeral or not keeps_runs()):
        raise EvidenceError(
            "This run would promote a version, but Dagster would not store its record in this deployment. Start it in "
            "the folder that holds dagster.yaml, with DAGSTER_HOME set to that folder: export DAGSTER_HOME=$PWD"
        )


# Live: the champion's traffic and predictions


def _rollout(spec: ModelSpec) -> dg.AssetsDefinition:
    @_asset(
        spec,
        "rollout",
        group_name=f"{spec.name}_live",
        deps=[[spec.name, "champion_version"]],
        description="The move of traffic to the champion. Counts from the servers decide each step: wait, continue or "
        "roll back.",
    )
    def rollout(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        opened = platform.open()
        step = step_rollout(opened, spec, actor=f"dagster run {context.run.run_id}")
        if step.entry is not None:
            context.log_event(champion_event(opened, step.entry))
        return Result(metadata=traffic_metadata(opened, step))

    return rollout


def _prediction_log(spec: ModelSpec) -> dg.AssetsDefinition:
    @_asset(
        spec,
        "prediction_log",
        group_name=f"{spec.name}_live",
        kinds={"deltalake"},
        deps=[[spec.name, "rollout"]],
        description="The predictions of the servers, one row each, collected from the servers' log files.",
    )
    def prediction_log(platform: PlatformResource) -> Result:
        return Result(metadata=prediction_metadata(take_predictions(platform.open(), spec)))

    return prediction_log
