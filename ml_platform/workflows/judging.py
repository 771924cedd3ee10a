"""A candidate's evaluation and its verdict."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ml_platform import durable
from ml_platform.errors import ForgottenError
from ml_platform.model_spec import ModelSpec
from ml_platform.predictor import load
from ml_platform.records import Candidate, DatasetVersion, Verdict
from ml_platform.stages import datasets, evaluation, gates, staging, training
from ml_platform.stages.registry import run_files
from ml_platform.workflows.candidates import pinned_rows
from ml_platform.workflows.platform import Platform
from ml_platform.workflows.promotion import show_champion

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ml_platform")


CURVES = "curves.png"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict with the picture and the MLflow run that show it. ``curves`` is None where there is none."""

    verdict: Verdict
    curves: bytes | None
    mlflow_run_id: str


def judge_candidate(platform: Platform, spec: ModelSpec, candidate: Candidate) -> Judgement:
    """Evaluate a candidate from its stored bytes and store its verdict, whatever it says.

    The evaluation reads the file that will be registered, digest first, and rows that the candidate has not seen.
    """
    model_file = platform.model_file(candidate)
    predictor = load(model_file, candidate.model_digest)
    pinned = DatasetVersion(
        model=spec.name,
        version=candidate.lineage.dataset_version,
        digest=candidate.lineage.dataset_digest,
        rows=0,
    )
    _, holdout = datasets.split(pinned_rows(platform, spec, pinned), spec)
    features, labels = holdout[spec.features], training.target(holdout, spec)
    measured = evaluation.evaluate(predictor, features, labels, model_file)
    verdict = gates.judge(candidate, measured.metrics, spec)
    staging.keep_golden_requests(predictor, features, platform.candidate_folder(candidate))
    try:
        platform.database.record_dataset(pinned)
    except ForgottenError:  # somebody was forgotten since the rows were read: they may be in the requests
        staging.remove_golden_requests(platform.candidate_folder(candidate))
        raise
    platform.database.record_verdict(verdict)
    curves = evaluation.draw_curves(measured)
    if curves is not None:
        durable.write(platform.candidate_folder(candidate) / CURVES, curves)
    run_id = _show_in_mlflow(platform, candidate, verdict, features, curves)
    show_champion(platform, spec.name)
    for result in verdict.results:
        log.info("gate %s: %s", result.outcome.value, result.why)
    return Judgement(verdict=verdict, curves=curves, mlflow_run_id=run_id)


def _show_in_mlflow(
    platform: Platform, candidate: Candidate, verdict: Verdict, features: "pd.DataFrame", curves: bytes | None
) -> str:
    extra = {"verdict.json": verdict.document.encode()}
    if curves is not None:
        extra[CURVES] = curves
    with run_files(platform.model_file(candidate), features.head(staging.GOLDEN_ROWS), extra) as files:
        run_id = platform.registry.record_run(candidate, verdict, files)
    platform.database.link_mlflow_run(candidate.id, run_id)
    return run_id


def curves_of(platform: Platform, candidate: Candidate) -> bytes | None:
    """Return the picture of a candidate's ROC and calibration curves as PNG; ``None`` where there is none."""
    path = platform.candidate_folder(candidate) / CURVES
    return path.read_bytes() if path.is_file() else None
