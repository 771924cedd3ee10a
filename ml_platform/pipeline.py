"""The page to read: a ModelSpec becomes assets, checks, jobs, sensors and a schedule, in the order of a model's life.

::

    landing zone -> raw_batches -> validated_batches                       group <model>_data, a partition an arrival
    training_dataset -> trained_model -> registered_version -> staging_version -> champion_version    group <model>

An asset's body calls one function of `workflows` and says what a person wants to know of the result. What one asset
leaves for the next stands in the platform's database; no IO manager is involved.
"""

import base64
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from ml_platform import workflows
from ml_platform.errors import EvidenceError
from ml_platform.model_spec import ModelSpec
from ml_platform.records import BatchResult, Candidate, GateOutcome, LedgerEntry, Outcome, Registration
from ml_platform.settings import keeps_runs
from ml_platform.stages.arrivals import Look
from ml_platform.stages.datasets import DatasetReport
from ml_platform.stages.profiles import Profile
from ml_platform.workflows import Judgement, Platform

if TYPE_CHECKING:
    Result = dg.MaterializeResult[Any]
else:  # Dagster reads the annotation of an asset's function and knows the bare class only
    Result = dg.MaterializeResult

Decorator = Callable[[Callable[..., Result]], dg.AssetsDefinition]

REASON_TAG = "ml_platform/reason"
MODEL_TAG = "ml_platform/model"
DATA_CHECKS = {
    "schema": "Every file is readable and has the contract's columns and types, nothing more and nothing less.",
    "values": "Every value is within the contract's ranges and categories.",
    "keys": "Every row is newer than what is published of its entity, and none comes twice.",
    "volume": "Every file has as many rows as its author asks for, and no more rows or bytes than are taken.",
    "freshness": "No row is from the future.",
    "quarantined_share": "No file has a greater share of bad rows than the author tolerates.",
}
DATASET_CHECKS = {
    "least_rows": "There are enough rows to train on.",
    "class_balance": "No class is rarer than the author allows.",
    "disjoint_split": "No entity is both in the training rows and in the holdout.",
    "leakage": "No single feature gives the label away.",
}
PROCESS_TAG = "ml_platform/process"
# How often a dataset version is trained on by itself when runs die between the candidate and its promotion.
TRIES = 3
PROMOTING = {"registered_version", "staging_version", "champion_version"}


class PlatformResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The deployment that the environment describes."""

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Note which process executes a run, so that others can tell when it has died."""
        if context.run is not None and context.instance and PROCESS_TAG not in context.run.tags:
            context.instance.add_run_tags(context.run.run_id, {PROCESS_TAG: process_tag()})

    def open(self) -> Platform:
        """Return the platform; nothing is opened before it is needed."""
        return Platform()


def model_definitions(spec: ModelSpec) -> dg.Definitions:
    """Return everything that Dagster needs to know of one model."""
    data = [_raw_batches(spec), _validated_batches(spec)]
    life = [
        _training_dataset(spec),
        _trained_model(spec),
        _registered_version(spec),
        _staging_version(spec),
        _champion_version(spec),
    ]
    data_job = dg.define_asset_job(f"{spec.name}_ingest", dg.AssetSelection.assets(*data), tags={MODEL_TAG: spec.name})
    life_job = dg.define_asset_job(f"{spec.name}_retrain", dg.AssetSelection.assets(*life), tags={MODEL_TAG: spec.name})
    return dg.Definitions(
        assets=[*data, *life],
        asset_checks=[_gates(spec)],
        jobs=[data_job, life_job],
        sensors=[_arrival_sensor(spec, data_job), _retraining_sensor(spec, life_job)],
        schedules=[_weekly(spec, life_job)],
    )


def arrivals_partition(model: str) -> dg.DynamicPartitionsDefinition:
    """Return a model's arrivals as Dagster knows them: one dynamic partition each."""
    return dg.DynamicPartitionsDefinition(name=f"{model}_arrivals")


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
            context.add_asset_metadata(
                {"source": batch.arrival.name, "bytes": batch.arrival.size, "sha256": batch.sha256},
                partition_key=batch.arrival.key,
            )
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
            context.add_asset_metadata(_arrival_metadata(result), partition_key=result.arrival.key)
        checks = [_data_check(name, results) for name in DATA_CHECKS]
        return Result(metadata=_arrivals_metadata(results), check_results=checks)

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


def _arrival_metadata(result: BatchResult) -> dict[str, Any]:
    return {
        "outcome": result.outcome.value,
        "reason": result.reason,
        "rows": result.rows,
        "quarantined_rows": result.quarantined_rows,
        "examples": dg.MetadataValue.json(result.examples),
    }


def _arrivals_metadata(results: Sequence[BatchResult]) -> dict[str, Any]:
    records = [
        dg.TableRecord({"file": r.arrival.name, "outcome": r.outcome.value, "rows": r.rows, "reason": r.reason})
        for r in results[:50]
    ]
    return {
        "published_rows": sum(r.rows - r.quarantined_rows for r in results if r.outcome is Outcome.PUBLISHED),
        "quarantined_rows": sum(r.quarantined_rows for r in results),
        "arrivals": dg.MetadataValue.table(records) if records else "none was new",
    }


def _data_check(name: str, results: Sequence[BatchResult]) -> dg.AssetCheckResult:
    whole = [r for r in results if r.outcome is Outcome.QUARANTINED]
    hit = whole if name == "quarantined_share" else [r for r in results if r.rules.get(name)]
    counts = {rule: n for r in results for rule, n in r.rules.get(name, {}).items()}
    said = {r.arrival.name: r.reason for r in hit[:5]}
    return dg.AssetCheckResult(
        check_name=name,
        passed=not hit,
        severity=dg.AssetCheckSeverity.ERROR if set(map(id, hit)) & set(map(id, whole)) else dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{file}: {reason}" for file, reason in said.items()) or None,
        metadata={"files": len(hit), "rules": dg.MetadataValue.json(counts)},
    )


# Life: from the training dataset to the champion


def _training_dataset(spec: ModelSpec) -> dg.AssetsDefinition:
    @_life_asset(
        spec,
        "training_dataset",
        kinds={"deltalake"},
        deps=[[spec.name, "validated_batches"]],
        check_specs=_dataset_check_specs(spec),
        description="A version of the model's Delta table, pinned by number and digest, and split by entity.",
    )
    def training_dataset(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        _refuse_ephemeral(context)
        opened = platform.open()
        report = workflows.pin_dataset(opened, spec)
        profile = workflows.profile_dataset(opened, spec, report.dataset)
        metadata = {**_dataset_metadata(report), **_profile_metadata(opened, report, profile)}
        checks = [*_dataset_checks(report), _change_check(profile), *_golden_check(opened, spec)]
        return Result(metadata=metadata, check_results=checks)

    return training_dataset


def _dataset_check_specs(spec: ModelSpec) -> list[dg.AssetCheckSpec]:
    blocking = [_blocking(spec, "training_dataset", name, text) for name, text in DATASET_CHECKS.items()]
    if spec.golden:
        blocking.append(_blocking(spec, "training_dataset", "golden", "Every golden dataset is what was frozen."))
    text = "No column's distribution moved far from the version before. Reported; it stops nothing."
    return [*blocking, dg.AssetCheckSpec("change", asset=[spec.name, "training_dataset"], description=text)]


def _dataset_metadata(report: DatasetReport) -> dict[str, Any]:
    return {
        "dagster/row_count": report.dataset.rows,
        "version": report.dataset.version,
        "digest": report.dataset.digest,
        "training_rows": report.training_rows,
        "holdout_rows": report.holdout_rows,
        "share_positive": report.share_positive,
    }


def _profile_metadata(platform: Platform, report: DatasetReport, profile: Profile) -> dict[str, Any]:
    records = [
        dg.TableRecord({"column": c.name, "missing": c.missing, "figures": c.figures, "stability_index": c.psi or 0.0})
        for c in profile.columns
    ]
    page = platform.profile_page(report.dataset)
    return {"profile": dg.MetadataValue.path(page), "columns": dg.MetadataValue.table(records)}


def _change_check(profile: Profile) -> dg.AssetCheckResult:
    change = profile.change
    figures: dict[str, Any] = {} if change is None else {**vars(change)}
    return dg.AssetCheckResult(
        check_name="change",
        passed=not profile.moved,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"moved far: {', '.join(profile.moved)}" if profile.moved else None,
        metadata={**figures, "stability_index": {c.name: c.psi for c in profile.columns if c.psi is not None}},
    )


def _golden_check(platform: Platform, spec: ModelSpec) -> list[dg.AssetCheckResult]:
    if not spec.golden:
        return []
    problems = workflows.golden_problems(platform, spec)
    said = "; ".join(problems.values()) or None
    return [dg.AssetCheckResult(check_name="golden", passed=not problems, description=said)]


def _dataset_checks(report: DatasetReport) -> list[dg.AssetCheckResult]:
    return [
        dg.AssetCheckResult(check_name=name, passed=name not in report.problems, description=report.problems.get(name))
        for name in DATASET_CHECKS
    ]


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
        candidate = workflows.train_candidate(opened, spec, reason=reason, run_id=_root_run(context))
        return Result(metadata=_candidate_metadata(candidate))

    return trained_model


def _candidate_metadata(candidate: Candidate) -> dict[str, Any]:
    lineage = candidate.lineage
    return {
        "candidate": candidate.id,
        "model_digest": candidate.model_digest,
        "dataset_version": lineage.dataset_version,
        "dataset_digest": lineage.dataset_digest,
        "code_revision": lineage.code_revision,
        "lock_digest": lineage.lock_digest,
        "reason": lineage.reason,
    }


def _gates(spec: ModelSpec) -> dg.AssetChecksDefinition:
    """Make one blocking check a gate, all from one step that evaluates the candidate and stores its verdict.

    The step cannot be subset and yields a result for every gate: Dagster fails the run when one is left out, and
    registration judges the stored verdict again, so that a run that starts behind the gates meets them there.
    """
    specs = [
        _blocking(spec, "trained_model", gate.metric, f"{gate.condition}, on rows the model has not seen")
        for gate in spec.gates
    ]

    @dg.multi_asset_check(name=f"{spec.name}_gates", specs=specs, can_subset=False)
    def gates(context: dg.AssetCheckExecutionContext, platform: PlatformResource) -> Iterator[dg.AssetCheckResult]:
        opened = platform.open()
        candidate = workflows.current_candidate(opened, spec.name, _root_run(context))
        judgement = workflows.judge_candidate(opened, spec, candidate)
        yield from _gate_checks(opened, judgement)

    return gates


def _gate_checks(platform: Platform, judgement: Judgement) -> Iterator[dg.AssetCheckResult]:
    evidence: dict[str, Any] = {
        "verdict": judgement.verdict.digest,
        "mlflow_run": dg.MetadataValue.url(_mlflow_run(platform, judgement)),
    }
    for position, result in enumerate(judgement.verdict.results):
        figures: dict[str, Any] = {
            "result": result.outcome.value,
            "gate": result.condition,
            "value": result.value,
            "why": result.why,
        }
        # One picture is enough: each copy would stand in the event log.
        pictures = {"curves": _picture(judgement.curves)} if position == 0 and judgement.curves else {}
        yield dg.AssetCheckResult(
            check_name=result.metric,
            passed=result.outcome is GateOutcome.PASS,
            description=f"{result.outcome.value}: {result.why}",
            metadata={**figures, **evidence, **pictures},
        )


def _registered_version(spec: ModelSpec) -> dg.AssetsDefinition:
    @_life_asset(
        spec,
        "registered_version",
        kinds={"mlflow"},
        deps=[[spec.name, "trained_model"]],
        description="The candidate in the registry, alias challenger; refused unless its verdict holds.",
    )
    def registered_version(context: dg.AssetExecutionContext, platform: PlatformResource) -> Result:
        _refuse_ephemeral(context)
        opened = platform.open()
        candidate = workflows.current_candidate(opened, spec.name, _root_run(context))
        registration = workflows.register_candidate(opened, spec, candidate)
        evidence = _evidence_metadata(opened, candidate)
        return Result(metadata={**_version_metadata(opened, registration), **evidence})

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
        registration, problem = workflows.stage_version(opened, candidate)
        tested = dg.AssetCheckResult(check_name="integration_test", passed=problem is None, description=problem)
        return Result(metadata=_version_metadata(opened, registration), check_results=[tested])

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
        return Result(metadata=_entry_metadata(entry))

    return champion_version


def _life_asset(spec: ModelSpec, name: str, **options: Any) -> Decorator:
    return _asset(spec, name, group_name=spec.name, **options)


def _blocking(spec: ModelSpec, asset: str, name: str, description: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(name, asset=[spec.name, asset], blocking=True, description=description)


def _root_run(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> str:
    """Return the first of a chain of retries: each acts on the candidate that its chain trained."""
    return context.run.root_run_id or context.run.run_id


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


def _version_metadata(platform: Platform, registration: Registration) -> dict[str, Any]:
    page = f"{platform.settings.mlflow_ui}/#/models/{registration.model}/versions/{registration.version}"
    return {
        "version": registration.version,
        "candidate": registration.candidate,
        "mlflow": dg.MetadataValue.url(page),
    }


def _evidence_metadata(platform: Platform, candidate: Candidate) -> dict[str, Any]:
    verdict = platform.database.verdict_on(candidate.id)
    curves = workflows.curves_of(platform, candidate)
    metrics: dict[str, Any] = dict(verdict.metrics) if verdict else {}
    return {**metrics, **({"curves": _picture(curves)} if curves else {})}


def _entry_metadata(entry: LedgerEntry) -> dict[str, Any]:
    return {
        "version": entry.version,
        "instead_of": entry.previous_version or "none: it is the first",
        "ledger_entry": entry.sequence,
        "verdict": entry.verdict_digest,
        "reason": entry.reason,
    }


def _mlflow_run(platform: Platform, judgement: Judgement) -> str:
    return f"{platform.settings.mlflow_ui}/#/runs/{judgement.mlflow_run_id}"


def _picture(png: bytes) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![ROC and calibration](data:image/png;base64,{base64.b64encode(png).decode()})")


# Triggers


def arrival_requests(instance: dg.DagsterInstance, model: str, keys: Sequence[str]) -> list[tuple[str, str]]:
    """Return ranges, as first and last key, that cover the arrivals with these keys and no other.

    A range follows the order in which partitions were added. Keys that Dagster does not know yet will be added at
    the end, in the order given.
    """
    existing = list(instance.get_dynamic_partitions(arrivals_partition(model).name or ""))
    order = existing + [key for key in keys if key not in set(existing)]
    wanted, ranges, previous = set(keys), list[tuple[str, str]](), False
    for key in order:
        if key in wanted:
            ranges = [*ranges[:-1], (ranges[-1][0], key)] if previous else [*ranges, (key, key)]
        previous = key in wanted
    return ranges


def range_tags(first: str, last: str) -> dict[str, str]:
    """Return the tags that make one run of a range of arrivals."""
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def _arrival_sensor(spec: ModelSpec, job: Any) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{spec.name}_arrivals",
        job=job,
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Complete files in the landing zone without an outcome and without a run are published.",
    )
    def arrivals(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.SensorResult | dg.SkipReason:
        if _is_running(context.instance, job.name):
            return dg.SkipReason("The files of the last tick are being published.")
        # The cursor is what this look saw and the next one compares with: nothing is lost where it is lost.
        look = workflows.look_for_arrivals(platform.open(), spec.name, seen=(context.cursor or "").split())
        context.update_cursor(" ".join(look.held))
        keys = [arrival.key for arrival in look.complete]
        if not keys:
            return dg.SkipReason(_nothing_complete(look))
        runs = [
            dg.RunRequest(tags={**range_tags(*ends), MODEL_TAG: spec.name})
            for ends in arrival_requests(context.instance, spec.name, keys)
        ]
        return dg.SensorResult(
            run_requests=runs,
            dynamic_partitions_requests=[arrivals_partition(spec.name).build_add_request(keys)],
        )

    return arrivals


def _nothing_complete(look: Look) -> str:
    if not look.incomplete:
        return "No new files."
    return f"{look.incomplete:,} files are not complete yet. {'; '.join(look.examples)}."


def _retraining_sensor(spec: ModelSpec, job: Any) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{spec.name}_retraining",
        job=job,
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Retrains when enough rows were published since the newest candidate's dataset version.",
    )
    def retraining(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.RunRequest | dg.SkipReason:
        opened = platform.open()
        rows = opened.new_rows(spec.name)
        if rows < spec.min_new_rows:
            return dg.SkipReason(f"{rows} new rows; retraining waits for {spec.min_new_rows}.")
        if _is_running(context.instance, job.name) or _is_running(context.instance, f"{spec.name}_ingest"):
            return dg.SkipReason("A run of this model is under way.")
        newest = opened.database.newest_publication(spec.name) or 0
        tried = opened.database.candidates_of(spec.name, newest)
        if tried >= TRIES:
            return dg.SkipReason(f"{tried} candidates of dataset version {newest} came to nothing: look at their runs.")
        # The key: a dataset version on which nothing can be trained is not tried for ever either.
        key = f"{spec.name}-arrival-{newest}-{tried}"
        return dg.RunRequest(run_key=key, tags={REASON_TAG: "arrival", MODEL_TAG: spec.name})

    return retraining


def _is_running(instance: dg.DagsterInstance, job: str) -> bool:
    live = [
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ]
    runs = instance.get_runs(dg.RunsFilter(job_name=job, statuses=live))
    return any(not process_is_gone(run.tags.get(PROCESS_TAG)) for run in runs)


def report_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs as failed whose process was killed, for the queue and the sensors wait for them; return their ids.

    Dagster notices by itself only when `max_runtime_seconds` is over. A failed run is retried where its deployment
    says so; a run that goes on is left alone.
    """
    started = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    dead = [run for run in started if process_is_gone(run.tags.get(PROCESS_TAG))]
    for run in dead:
        instance.report_run_failed(run, "Its process has died.")
    return [run.run_id for run in dead]


def process_tag() -> str:
    """Return host, id and start of this process, for the tags of a run that it executes."""
    return f"{socket.gethostname()}:{os.getpid()}:{_start_of(os.getpid())}"


def process_is_gone(tag: str | None) -> bool:
    """Whether a run was executed by a process of this host that has died since; None is a run that has not begun."""
    host, pid, start = (tag or "::").rsplit(":", 2)
    return bool(pid) and host == socket.gethostname() and not _is_alive(int(pid), start)


def _is_alive(pid: int, start: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's process is a process too
    # Ids come round again, after a reboot above all: it must be the process that started then.
    return _start_of(pid) == start


def _start_of(pid: int) -> str:
    """Return when a process started, in clock ticks since boot (proc(5)); an empty text where there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _weekly(spec: ModelSpec, job: Any) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name=f"{spec.name}_weekly",
        job=job,
        cron_schedule=spec.schedule,
        execution_timezone="UTC",
        tags={REASON_TAG: "schedule", MODEL_TAG: spec.name},
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Retrains whether or not data came.",
    )
