"""The page to read: a ModelSpec becomes assets, checks, jobs, sensors and a schedule, in the order of a model's life.

::

    landing zone -> raw_batches -> validated_batches                       group <model>_data, a partition an arrival
    training_dataset -> trained_model -> registered_version -> staging_version -> champion_version    group <model>
    champion_version -> rollout -> prediction_log                          group <model>_live, never touched by CI

An asset's body calls one function of `workflows` and says what a person wants to know of the result. What one asset
leaves for the next stands in the platform's database; no IO manager is involved.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from ml_platform import own_checks, triggers, views, workflows
from ml_platform.errors import EvidenceError
from ml_platform.model_spec import ModelSpec
from ml_platform.records import Slot
from ml_platform.resources import ACTOR_TAG, MODEL_TAG, REASON_TAG, SLOT_TAG, PlatformResource, arrivals_partition
from ml_platform.settings import keeps_runs
from ml_platform.workflows import Platform

if TYPE_CHECKING:
    Result = dg.MaterializeResult[Any]
else:  # Dagster reads the annotation of an asset's function and knows the bare class only
    Result = dg.MaterializeResult

Decorator = Callable[[Callable[..., Result]], dg.AssetsDefinition]

DATA_CHECKS = {
    "schema": "Every file is readable and has the contract's columns and types, nothing more and nothing less.",
    "values": "Every value is within the contract's ranges and categories.",
    "keys": "Every row is newer than what is published of its entity, and none comes twice.",
    "volume": "Every file has as many rows as its author asks for, and no more rows or bytes than are taken.",
    "freshness": "No row is from the future.",
    "quarantined_share": "No file has a greater share of bad rows than the author tolerates.",
}
PROMOTING = {"registered_version", "staging_version", "champion_version"}


def model_definitions(spec: ModelSpec, checks: Sequence[dg.AssetChecksDefinition] = ()) -> dg.Definitions:
    """Return everything that Dagster needs to know of one model.

    Parameters
    ----------
    spec : ModelSpec
    checks : sequence of AssetChecksDefinition
        The author's own asset checks. A blocking one is on ``training_dataset`` or ``trained_model``; no version is
        registered unless its success is on record in the run that trained it. The others report.

    Raises
    ------
    ConfigurationError
        A blocking check is on another asset.
    """
    gates = [_gates(spec), *checks]
    data = [_raw_batches(spec), _validated_batches(spec)]
    life = [
        _training_dataset(spec),
        _trained_model(spec),
        _registered_version(spec, gates, own_checks.blocking_of(spec.name, checks)),
        _staging_version(spec),
        _champion_version(spec),
    ]
    moves = _rollout(spec)
    data_job = dg.define_asset_job(f"{spec.name}_ingest", dg.AssetSelection.assets(*data), tags={MODEL_TAG: spec.name})
    life_job = dg.define_asset_job(f"{spec.name}_retrain", dg.AssetSelection.assets(*life), tags={MODEL_TAG: spec.name})
    move_job = dg.define_asset_job(f"{spec.name}_rollout", dg.AssetSelection.assets(moves), tags={MODEL_TAG: spec.name})
    log = _prediction_log(spec)
    log_job = dg.define_asset_job(
        f"{spec.name}_predictions", dg.AssetSelection.assets(log), tags={MODEL_TAG: spec.name}
    )
    return dg.Definitions(
        assets=[*data, *life, moves, log],
        asset_checks=gates,
        jobs=[data_job, life_job, move_job, log_job],
        sensors=[
            triggers.arrival_sensor(spec, data_job),
            triggers.retraining_sensor(spec, life_job),
            triggers.registry_sensor(spec),
            triggers.prediction_sensor(spec, log_job),
            triggers.traffic_sensor(spec, move_job),
        ],
        schedules=[triggers.weekly_schedule(spec, life_job)],
    )


# Data: from the landing zone to valid rows


def _raw_batches(spec: ModelSpec) -> dg.AssetsDefinition:
    @_data_asset(
        spec,
        "raw_batches",
        kinds={"file"},
        description="The bytes of every arrival as they came, kept once under their sha256.",
    )
    def raw_batches(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        opened = platform.open()
        batches, gone = workflows.keep_raw_batches(opened, spec.name, context.partition_keys)
        for batch in batches:
            preview = workflows.preview_batch(opened, spec, batch)
            context.add_asset_metadata(views.batch_metadata(batch, preview), partition_key=batch.arrival.key)
        return Result(metadata={"files": len(batches), "gone": dg.MetadataValue.json(gone)})

    return raw_batches


def _validated_batches(spec: ModelSpec) -> dg.AssetsDefinition:
    specs = [
        dg.AssetCheckSpec(name, asset=[spec.name, "validated_batches"], description=text)
        for name, text in DATA_CHECKS.items()
    ]

    @_data_asset(
        spec,
        "validated_batches",
        kinds={"deltalake", "pandera"},
        deps=[[spec.name, "raw_batches"]],
        check_specs=specs,
        description="Rows that keep the contract, appended to the model's Delta table; the others are quarantined "
        "with the reason.",
    )
    def validated_batches(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        results = workflows.publish_batches(platform.open(), spec, context.partition_keys)
        for result in results:
            context.add_asset_metadata(views.arrival_metadata(result), partition_key=result.arrival.key)
        checks = [views.data_check(name, results) for name in DATA_CHECKS]
        return Result(check_results=checks)

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
    @_life_asset(
        spec,
        "training_dataset",
        kinds={"deltalake"},
        deps=[[spec.name, "validated_batches"]],
        check_specs=_dataset_check_specs(spec),
        description="A version of the model's Delta table, pinned by number and digest, and split by entity or time.",
    )
    def training_dataset(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        _refuse_ephemeral(context)
        opened = platform.open()
        _claim_slot(context, opened, spec.name)
        report = workflows.pin_dataset(opened, spec)
        profile = workflows.profile_dataset(opened, spec, report.dataset)
        metadata = {**views.dataset_metadata(report), **views.profile_metadata(opened, report, profile)}
        checks = [*views.dataset_checks(report), views.change_check(profile), *views.golden_check(opened, spec)]
        return Result(metadata=metadata, check_results=checks)

    return training_dataset


def _dataset_check_specs(spec: ModelSpec) -> list[dg.AssetCheckSpec]:
    blocking = [_blocking(spec, "training_dataset", name, text) for name, text in views.DATASET_CHECKS.items()]
    if spec.golden:
        blocking.append(_blocking(spec, "training_dataset", "golden", "Every golden dataset is what was frozen."))
    text = "No column's distribution moved far from the version before. Reported; it stops nothing."
    return [*blocking, dg.AssetCheckSpec("change", asset=[spec.name, "training_dataset"], description=text)]


def _trained_model(spec: ModelSpec) -> dg.AssetsDefinition:
    @_life_asset(
        spec,
        "trained_model",
        kinds={"scikitlearn"},
        deps=[[spec.name, "training_dataset"]],
        description="A candidate: the author's pipeline fitted on the training rows, stored as skops.",
    )
    def trained_model(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        opened, reason = platform.open(), context.run.tags.get(REASON_TAG, "manual: materialised")
        actor, run_id = _actor(context, opened), _root_run(context)
        candidate = workflows.train_candidate(opened, spec, reason=reason, run_id=run_id, actor=actor)
        return Result(metadata=views.candidate_metadata(candidate))

    return trained_model


def _gates(spec: ModelSpec) -> dg.AssetChecksDefinition:
    """Make one blocking check a gate, all from one step that evaluates the candidate and stores its verdict.

    The step cannot be subset and yields a result for every gate: Dagster fails the run when one is left out, and
    registration judges the stored verdict again, so that a run that starts behind the gates meets them there.
    """
    specs = [
        _blocking(spec, "trained_model", name, f"{condition}, on rows the model has not seen")
        for name, condition in spec.conditions.items()
    ]
    fast = "Compiled preprocessing answers as the pipeline does, to the bit; where not, a server is slower."
    specs.append(dg.AssetCheckSpec("fast_path", asset=[spec.name, "trained_model"], description=fast))

    @dg.multi_asset_check(name=f"{spec.name}_gates", specs=specs, can_subset=False)
    def gates(context: dg.AssetCheckExecutionContext, platform: PlatformResource) -> Iterator[dg.AssetCheckResult]:
        opened = platform.open()
        candidate = workflows.current_candidate(opened, spec.name, _root_run(context))
        judgement = workflows.judge_candidate(opened, spec, candidate)
        yield from views.gate_checks(opened, spec, judgement)
        yield views.fast_path_check(judgement)

    return gates


def _registered_version(
    spec: ModelSpec, gates: Sequence[dg.AssetChecksDefinition], own: Sequence[dg.AssetCheckKey]
) -> dg.AssetsDefinition:
    @_life_asset(
        spec,
        "registered_version",
        metadata=own_checks.taken_by(gates),
        kinds={"mlflow"},
        deps=[[spec.name, "trained_model"]],
        description="The candidate in the registry, alias challenger; refused unless its verdict holds.",
    )
    def registered_version(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        _refuse_ephemeral(context)
        opened = platform.open()
        candidate = workflows.current_candidate(opened, spec.name, _root_run(context))
        own_checks.require_recorded(context.instance, candidate, own)
        registration = workflows.register_candidate(opened, spec, candidate)
        evidence = views.evidence_metadata(opened, candidate)
        return Result(metadata={**views.version_metadata(opened, registration), **evidence})

    return registered_version


def _staging_version(spec: ModelSpec) -> dg.AssetsDefinition:
    test = "The registry's bytes, loaded in a fresh process, answer the golden requests as the gated ones did."

    @_life_asset(
        spec,
        "staging_version",
        kinds={"mlflow"},
        deps=[[spec.name, "registered_version"]],
        check_specs=[_blocking(spec, "staging_version", "integration_test", test)],
        description="The version whose bytes passed the integration test, alias staging.",
    )
    def staging_version(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        _refuse_ephemeral(context)
        opened = platform.open()
        candidate = workflows.current_candidate(opened, spec.name, _root_run(context))
        registration, problem = workflows.stage_version(opened, candidate, most_ms=spec.most_inference_ms)
        tested = dg.AssetCheckResult(check_name="integration_test", passed=problem is None, description=problem)
        return Result(metadata=views.version_metadata(opened, registration), check_results=[tested])

    return staging_version


def _champion_version(spec: ModelSpec) -> dg.AssetsDefinition:
    @_life_asset(
        spec,
        "champion_version",
        kinds={"mlflow"},
        deps=[[spec.name, "staging_version"]],
        description="The version in production: written into the ledger, alias champion.",
    )
    def champion_version(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        _refuse_ephemeral(context)
        opened = platform.open()
        candidate = workflows.current_candidate(opened, spec.name, _root_run(context))
        promote = partial(workflows.promote_version, opened, spec, candidate)
        entry = promote(reason=candidate.lineage.reason, actor=f"dagster run {context.run.run_id}")
        return Result(metadata=views.entry_metadata(opened, entry))

    return champion_version


def _life_asset(spec: ModelSpec, name: str, **options: Any) -> Decorator:
    return _asset(spec, name, group_name=spec.name, **options)


def _blocking(spec: ModelSpec, asset: str, name: str, description: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(name, asset=[spec.name, asset], blocking=True, description=description)


def _root_run(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> str:
    """Return the first of a chain of retries: each acts on the candidate that its chain trained."""
    return context.run.root_run_id or context.run.run_id


def _actor(context: dg.AssetExecutionContext, platform: Platform) -> str | None:
    """Return who asked for a run, None where a trigger did: a run without a reason was started here by hand."""
    tags = context.run.tags
    return tags.get(ACTOR_TAG) or (None if REASON_TAG in tags else workflows.who(platform))


def _claim_slot(context: dg.AssetExecutionContext, platform: Platform, model: str) -> None:
    """Refuse to train for a slot that another run has; a run that is tried again has it already."""
    tags = context.run.tags
    if SLOT_TAG in tags:
        slot = Slot(model=model, reason=tags.get(REASON_TAG, ""), slot=tags[SLOT_TAG])
        workflows.claim_slot(platform, slot, _root_run(context))


def _refuse_ephemeral(context: dg.AssetExecutionContext) -> None:
    """Refuse, before anything is trained, to promote in a run that Dagster forgets when it ends."""
    selected = context.run.asset_selection or context.job_def.asset_layer.executable_asset_keys
    promotes = {key.path[-1] for key in selected} & PROMOTING
    if promotes and (context.instance.is_ephemeral or not keeps_runs()):
        raise EvidenceError(
            "A version is promoted on evidence only, and Dagster would keep no record of this run, or keep it "
            "elsewhere. Run it in the folder that holds dagster.yaml, with DAGSTER_HOME set to that folder: "
            "export DAGSTER_HOME=$PWD"
        )


# Live: from the champion to all traffic, and what is answered


def _rollout(spec: ModelSpec) -> dg.AssetsDefinition:
    @_live_asset(
        spec,
        "rollout",
        deps=[[spec.name, "champion_version"]],
        description="The champion's way to all traffic: what servers counted lets it wait, go on or go back.",
    )
    def rollout(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        opened = platform.open()
        found = workflows.step_rollout(opened, spec, actor=f"dagster run {context.run.run_id}")
        if found.entry is not None:
            context.log_event(views.champion_event(opened, found.entry))
        return Result(metadata=views.traffic_metadata(opened, found))

    return rollout


def _prediction_log(spec: ModelSpec) -> dg.AssetsDefinition:
    @_live_asset(
        spec,
        "prediction_log",
        kinds={"deltalake"},
        deps=[[spec.name, "rollout"]],
        description="What the servers answered, a row a prediction, taken from the files that they log into.",
    )
    def prediction_log(platform: PlatformResource) -> Result:
        return Result(metadata=views.prediction_metadata(workflows.take_predictions(platform.open(), spec)))

    return prediction_log


def _live_asset(spec: ModelSpec, name: str, **options: Any) -> Decorator:
    return _asset(spec, name, group_name=f"{spec.name}_live", **options)
