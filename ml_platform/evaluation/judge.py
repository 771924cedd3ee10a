"""Judge a candidate: measure it, decide on its gates, publish the verdict."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ml_platform.data import datasets
from ml_platform.errors import ForgottenError
from ml_platform.evaluation import gates, predictions, verdict_page
from ml_platform.evaluation.compare import ComparisonInputs, ComparisonResult, compare_with_reference
from ml_platform.evaluation.curve_plots import draw_curves
from ml_platform.evaluation.curves import Curves, curve
from ml_platform.evaluation.measure import datasets_to_judge, measure_costs, measure_metrics, predict_dataset
from ml_platform.evaluation.predictions import PredictionsWithLabels
from ml_platform.inference import golden_requests
from ml_platform.inference.parity import Parity
from ml_platform.inference.predictor import load
from ml_platform.inference.publish_served_files import remove_served_list, served_bytes, store_served_files
from ml_platform.model_spec import HOLDOUT, ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.data import DatasetVersion
from ml_platform.records.verdict import Candidate, Evaluation, Verdict
from ml_platform.storage import atomic_files
from ml_platform.storage.mlflow_registry import VERDICT_FILE, run_files
from ml_platform.training.train import pinned_rows

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ml_platform")

CURVES, POINTS = "curves.svg", "curves.json"


@dataclass(frozen=True, kw_only=True)
class MeasuredCandidate:
    """A candidate's evaluation, and the data that its page and its MLflow run show.

    Parameters
    ----------
    evaluation : Evaluation
    features : DataFrame of shape (n_samples, n_features)
        Features of the holdout.
    predictions : PredictionsWithLabels
        The candidate's predictions on the holdout.
    comparison : ComparisonResult or None
        None if the author asks for no comparison.
    parity : Parity
    """

    evaluation: Evaluation
    features: "pd.DataFrame"
    predictions: PredictionsWithLabels
    comparison: ComparisonResult | None
    parity: Parity


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict with its picture, page and MLflow run. ``curves`` is None if the task has no such curves.

    `parity` says if a server may use the compiled preprocessing for the candidate; no gate reads it.
    """

    verdict: Verdict
    curves: bytes | None
    page: Path
    mlflow_run_id: str
    parity: Parity


def judge_candidate(platform: Platform, spec: ModelSpec, candidate: Candidate) -> Judgement:
    """Measure a candidate from its stored bytes, decide on its gates, and store and publish the verdict.

    A verdict that does not pass is stored and published like one that does.
    """
    measured = measure_candidate(platform, spec, candidate)
    verdict = decide(platform, spec, candidate, measured.evaluation)
    return publish(platform, spec, candidate, measured, verdict)


def measure_candidate(platform: Platform, spec: ModelSpec, candidate: Candidate) -> MeasuredCandidate:
    """Measure the file that will be registered on rows that it was not trained on, and compare it on the same rows.

    The file is loaded digest first. The golden requests and the files that a server needs are stored on the way, as
    the latency is measured with them.

    Raises
    ------
    ForgottenError
        A person's data was erased since the rows were read. The stored requests, which may hold it, are removed.
    """
    lineage, folder = candidate.lineage, platform.candidate_folder(candidate)
    pinned = DatasetVersion(
        model=candidate.model, version=lineage.dataset_version, digest=lineage.dataset_digest, rows=0
    )
    predictor = load(platform.model_file(candidate), candidate.model_digest)
    trained, holdout = datasets.split(pinned_rows(platform, spec, pinned), spec)
    data = datasets_to_judge(platform, spec, holdout)
    predict = partial(predictions.predict_rows, predictor, task=spec.task)
    answers = {name: predict_dataset(rows, spec, predict) for name, rows in data.items()}
    features = holdout[spec.features]
    golden_requests.store_golden_requests(predictor, features, folder)
    try:
        platform.database.record_dataset(pinned)
    except ForgottenError:  # since the rows were read: the requests may hold the person's data
        golden_requests.remove_golden_requests(folder)
        remove_served_list(folder)
        raise
    parity = store_served_files(platform, spec, candidate, predictor, (trained, holdout))
    champion = platform.database.champion(spec.name)
    inputs = ComparisonInputs(training=trained, data=data, answers=answers)
    comparison = compare_with_reference(platform, spec, candidate, inputs, champion)
    evaluation = Evaluation(
        measurements=[*measure_metrics(spec, data, answers), *measure_costs(platform, spec, candidate)],
        reference=comparison.reference if comparison else None,
        champion=champion.version if champion else None,
    )
    return MeasuredCandidate(
        evaluation=evaluation, features=features, predictions=answers[HOLDOUT], comparison=comparison, parity=parity
    )


def decide(platform: Platform, spec: ModelSpec, candidate: Candidate, evaluation: Evaluation) -> Verdict:
    """Apply the gates to a candidate's evaluation, and store the verdict in the log of heads and the database.

    The verdict binds the candidate's stored record, with the list of served files that its measurement wrote.
    """
    verdict = gates.judge(platform.database.candidate(candidate.id), evaluation, spec)
    # The log is written first: a stored verdict without a line in it was not stored by the platform.
    platform.ledger_anchor.append_verdict(verdict)
    platform.database.record_verdict(verdict)
    return verdict


def publish(
    platform: Platform, spec: ModelSpec, candidate: Candidate, measured: MeasuredCandidate, verdict: Verdict
) -> Judgement:
    """Store a verdict's curves and page in the candidate's folder, record its MLflow run, and log its gates."""
    folder, page = platform.candidate_folder(candidate), platform.verdict_page(candidate)
    curves = _compute_curves(spec, measured)
    picture = draw_curves(curves.of, spec.task, spec.positive, spec.label)
    if picture is None:
        (folder / CURVES).unlink(missing_ok=True)  # of an earlier judgement
    else:
        atomic_files.write(folder / CURVES, picture)
    atomic_files.write(folder / POINTS, curves.document.encode())
    atomic_files.write(page, verdict_page.draw(verdict, candidate, spec, curves).encode())
    run_id = _record_mlflow_run(platform, candidate, verdict, measured.features)
    for result in verdict.results:
        log.info("gate %s: %s", result.outcome.value, result.why)
    return Judgement(verdict=verdict, curves=picture, page=page, mlflow_run_id=run_id, parity=measured.parity)


def _compute_curves(spec: ModelSpec, measured: MeasuredCandidate) -> Curves:
    """Return the curves of the candidate and its reference on the same rows; without a reference, the candidate's."""
    comparison, ours = measured.comparison, measured.predictions
    if comparison is not None and comparison.ours is not None:
        ours = comparison.ours
    named = [("candidate", ours)]
    if comparison is not None and comparison.theirs is not None:
        named.append((f"{comparison.reference.kind}, {comparison.reference.name}", comparison.theirs))
    return Curves(
        rows=len(ours.labels),
        of=[curve(name, spec.task, each.labels, each.predictions, each.probabilities) for name, each in named],
    )


def _record_mlflow_run(platform: Platform, candidate: Candidate, verdict: Verdict, features: "pd.DataFrame") -> str:
    folder = platform.candidate_folder(candidate)
    stored = [folder / name for name in (CURVES, POINTS)] + [platform.verdict_page(candidate)]
    extra = {path.name: path.read_bytes() for path in stored if path.is_file()}
    extra[VERDICT_FILE] = verdict.document.encode()
    served = served_bytes(platform, candidate)
    extra.update(served)
    with run_files(platform.model_file(candidate), features.head(golden_requests.GOLDEN_ROWS), extra) as files:
        run_id = platform.registry.record_run(candidate, verdict, files)
    platform.database.link_mlflow_run(candidate.id, run_id)
    now_served = served_bytes(platform, candidate)
    if now_served != served:  # a person's data was erased meanwhile
        platform.registry.show_files(run_id, now_served)
    return run_id


def read_curves(platform: Platform, candidate: Candidate) -> bytes | None:
    """Return the picture of a candidate's ROC and calibration curves as SVG; ``None`` if it has none."""
    path = platform.candidate_folder(candidate) / CURVES
    return path.read_bytes() if path.is_file() else None
