"""A candidate's evaluation and its verdict."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ml_platform import durable
from ml_platform.errors import ForgottenError
from ml_platform.model_spec import HOLDOUT, ModelSpec
from ml_platform.predictor import load
from ml_platform.records import Candidate, DatasetVersion, Findings, Verdict
from ml_platform.stages import datasets, evaluation, gates, staging, verdict_pages
from ml_platform.stages._curves import Curves, curve
from ml_platform.stages.evaluation import Answered
from ml_platform.stages.parity import Parity
from ml_platform.stages.registry import run_files
from ml_platform.workflows.candidates import pinned_rows
from ml_platform.workflows.measuring import answers_in, costs_of, datasets_to_judge, figures_of
from ml_platform.workflows.platform import Platform
from ml_platform.workflows.promotion import show_champion
from ml_platform.workflows.rivals import Contest, Trial, contest_of
from ml_platform.workflows.served import keep_served_files, remove_served_list, served_bytes

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ml_platform")


CURVES, POINTS = "curves.png", "curves.json"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict with what shows it: a picture, a page, an MLflow run. ``curves`` is None where there is none.

    `parity` says whether a server may take the fast way with the candidate; no gate asks for it.
    """

    verdict: Verdict
    curves: bytes | None
    page: Path
    mlflow_run_id: str
    parity: Parity


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
        remove_served_list(platform.candidate_folder(candidate))
        raise
    parity = keep_served_files(platform, spec, candidate, predictor, (trained, holdout))
    champion = platform.database.champion(spec.name)
    trial = Trial(training=trained, data=data, answers=answers)
    contest = contest_of(platform, spec, candidate, trial, champion)
    findings = Findings(
        figures=[*figures_of(spec, data, answers), *costs_of(platform, spec, candidate)],
        rival=contest.rival if contest else None,
        champion=champion.version if champion else None,
    )
    verdict = gates.judge(candidate, findings, spec)
    platform.database.record_verdict(verdict)
    curves = _keep_curves(platform, candidate, answers[HOLDOUT], verdict)
    _keep_page(platform, spec, candidate, verdict, _points(spec, answers[HOLDOUT], contest))
    run_id = _show_in_mlflow(platform, candidate, verdict, features)
    show_champion(platform, spec.name)
    for result in verdict.results:
        log.info("gate %s: %s", result.outcome.value, result.why)
    page = platform.verdict_page(candidate)
    return Judgement(verdict=verdict, curves=curves, page=page, mlflow_run_id=run_id, parity=parity)


def _pinned(candidate: Candidate) -> DatasetVersion:
    lineage = candidate.lineage
    return DatasetVersion(model=candidate.model, version=lineage.dataset_version, digest=lineage.dataset_digest, rows=0)


def _keep_curves(platform: Platform, candidate: Candidate, answered: Answered, verdict: Verdict) -> bytes | None:
    curves, path = evaluation.draw_curves(answered, verdict.metrics), platform.candidate_folder(candidate) / CURVES
    if curves is None:
        path.unlink(missing_ok=True)  # of an earlier judgement
    else:
        durable.write(path, curves)
    return curves


def _points(spec: ModelSpec, answered: Answered, contest: Contest | None) -> Curves:
    """Return the candidate's curves beside its rival's on the same rows, or alone where nobody was compared."""
    ours, theirs = (contest.ours or answered, contest.theirs) if contest else (answered, None)
    beside = [] if theirs is None or contest is None else [(f"{contest.rival.kind}, {contest.rival.name}", theirs)]
    of = [
        curve(name, spec.task, each.labels, each.predictions, each.probabilities)
        for name, each in [("candidate", ours), *beside]
    ]
    return Curves(rows=len(ours.labels), of=of)


def _keep_page(platform: Platform, spec: ModelSpec, candidate: Candidate, verdict: Verdict, points: Curves) -> None:
    durable.write(platform.candidate_folder(candidate) / POINTS, points.document.encode())
    page = verdict_pages.draw(verdict, candidate, spec, points)
    durable.write(platform.verdict_page(candidate), page.encode())


def _show_in_mlflow(platform: Platform, candidate: Candidate, verdict: Verdict, features: "pd.DataFrame") -> str:
    folder = platform.candidate_folder(candidate)
    kept = [folder / name for name in (CURVES, POINTS)] + [platform.verdict_page(candidate)]
    extra = {path.name: path.read_bytes() for path in kept if path.is_file()}
    extra["verdict.json"] = verdict.document.encode()
    extra.update(shown := served_bytes(platform, candidate))
    with run_files(platform.model_file(candidate), features.head(staging.GOLDEN_ROWS), extra) as files:
        run_id = platform.registry.record_run(candidate, verdict, files)
    platform.database.link_mlflow_run(candidate.id, run_id)
    if shown != (now_there := served_bytes(platform, candidate)):  # somebody was forgotten meanwhile
        platform.registry.show_files(run_id, now_there)
    return run_id


def curves_of(platform: Platform, candidate: Candidate) -> bytes | None:
    """Return the picture of a candidate's ROC and calibration curves as PNG; ``None`` where there is none."""
    path = platform.candidate_folder(candidate) / CURVES
    return path.read_bytes() if path.is_file() else None
