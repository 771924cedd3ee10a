"""A candidate's evaluation and its verdict."""

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ml_platform import durable
from ml_platform.errors import ForgottenError
from ml_platform.model_spec import HOLDOUT, ModelSpec
from ml_platform.predictor import load
from ml_platform.records import Candidate, DatasetVersion, Findings, Verdict
from ml_platform.stages import datasets, evaluation, gates, staging
from ml_platform.stages.evaluation import Answered
from ml_platform.stages.registry import run_files
from ml_platform.workflows.candidates import pinned_rows
from ml_platform.workflows.measuring import answers_in, costs_of, datasets_to_judge, figures_of
from ml_platform.workflows.platform import Platform
from ml_platform.workflows.promotion import show_champion
from ml_platform.workflows.rivals import Trial, rival_of

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
    """Measure a candidate from its stored bytes and store its verdict, whatever it says.

    What is measured is the file that will be registered, loaded digest first, on rows that the candidate has not seen,
    beside the champion or the baseline on the same rows.
    """
    predictor = load(platform.model_file(candidate), candidate.model_digest)
    trained, holdout = datasets.split(pinned_rows(platform, spec, _pinned(candidate)), spec)
    data = datasets_to_judge(platform, spec, holdout)
    answering = partial(evaluation.ask, predictor, task=spec.task)
    answers = {name: answers_in(rows, spec, answering) for name, rows in data.items()}
    features = holdout[spec.features]
    staging.keep_golden_requests(predictor, features, platform.candidate_folder(candidate))
    try:
        platform.database.record_dataset(_pinned(candidate))
    except ForgottenError:  # somebody was forgotten since the rows were read: they may be in the requests
        staging.remove_golden_requests(platform.candidate_folder(candidate))
        raise
    champion = platform.database.champion(spec.name)
    trial = Trial(training=trained, data=data, answers=answers)
    findings = Findings(
        figures=[*figures_of(spec, data, answers), *costs_of(platform, spec, candidate)],
        rival=rival_of(platform, spec, candidate, trial, champion),
        champion=champion.version if champion else None,
    )
    verdict = gates.judge(candidate, findings, spec)
    platform.database.record_verdict(verdict)
    curves = _keep_curves(platform, candidate, answers[HOLDOUT], verdict)
    run_id = _show_in_mlflow(platform, candidate, verdict, features, curves)
    show_champion(platform, spec.name)
    for result in verdict.results:
        log.info("gate %s: %s", result.outcome.value, result.why)
    return Judgement(verdict=verdict, curves=curves, mlflow_run_id=run_id)


def _pinned(candidate: Candidate) -> DatasetVersion:
    lineage = candidate.lineage
    return DatasetVersion(model=candidate.model, version=lineage.dataset_version, digest=lineage.dataset_digest, rows=0)


def _keep_curves(platform: Platform, candidate: Candidate, answered: Answered, verdict: Verdict) -> bytes | None:
    curves = evaluation.draw_curves(answered, verdict.metrics)
    if curves is not None:
        durable.write(platform.candidate_folder(candidate) / CURVES, curves)
    return curves


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
