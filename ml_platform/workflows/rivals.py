"""Whom a candidate must stand up to, on rows that neither of the two was trained on."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.errors import DatasetError, EvidenceError, ModelError, RegistryError
from ml_platform.model_spec import HOLDOUT, Comparison, ModelSpec
from ml_platform.predictor import Predictor, load
from ml_platform.records import Candidate, LedgerEntry, Rival
from ml_platform.stages import datasets, evaluation, intervals, training
from ml_platform.stages.evaluation import Answered, Answering
from ml_platform.workflows.measuring import answers_in, as_intervals, figures_of
from ml_platform.workflows.platform import Platform

if TYPE_CHECKING:
    import pandas as pd

# A rival's figures are for people to look at beside the candidate's; no gate stands on their bounds.
RESAMPLES = 200
SAME_BYTES = "it has the very bytes of the candidate, so there is no gain"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a rival needs: training rows, and, by dataset, rows and the candidate's answers to them."""

    training: "pd.DataFrame"
    data: "Mapping[str, pd.DataFrame]"
    answers: Mapping[str, Answered]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What came of a comparison, and the answers on the holdout's rows that count; None where there was none."""

    rival: Rival
    ours: Answered | None = None
    theirs: Answered | None = None


def contest_of(
    platform: Platform, spec: ModelSpec, candidate: Candidate, trial: Trial, champion: LedgerEntry | None
) -> Contest | None:
    """Compare a candidate with the champion, or with the baseline where there is none; None if nobody asks for it.

    A champion that has the candidate's very bytes is no rival: the baseline takes its place, unless a gain over the
    champion is asked for.
    """
    comparison = spec.comparison
    if comparison is None:
        return None
    if champion is None:
        return _against_baseline(spec, comparison, trial)
    theirs = platform.database.candidate(champion.candidate)
    seen_as: dict[str, Any] = {"version": champion.version, "model_digest": theirs.model_digest}
    if theirs.model_digest != candidate.model_digest:
        return _against_champion(platform, spec, comparison, trial, _champion(comparison, **seen_as), theirs)
    if comparison.minimum_gain is not None:
        return Contest(rival=replace(_champion(comparison, **seen_as), reason=SAME_BYTES))
    return _against_baseline(spec, comparison, trial, **seen_as)


def _champion(comparison: Comparison, version: int, model_digest: str) -> Rival:
    name = f"version {version}"
    return Rival(kind="champion", name=name, metric=comparison.metric, version=version, model_digest=model_digest)


def _against_baseline(spec: ModelSpec, comparison: Comparison, trial: Trial, **seen_as: Any) -> Contest:
    import numpy as np

    rows = trial.training
    answering = evaluation.baseline(rows[spec.features], training.target(rows, spec), spec)
    rival = Rival(kind="baseline", name=spec.stated_baseline, metric=comparison.metric, **seen_as)
    return _compare(spec, comparison, trial, rival, answering, np.ones(len(trial.data[HOLDOUT]), bool))


def _against_champion(
    platform: Platform, spec: ModelSpec, comparison: Comparison, trial: Trial, rival: Rival, theirs: Candidate
) -> Contest:
    """Compare with the champion's stored bytes; whatever keeps it from answering is the reason why there is none."""
    try:
        predictor = _load_champion(platform, theirs, rival.version or 0)
        unseen = _unseen(platform, spec, theirs, trial.data[HOLDOUT])
        return _compare(spec, comparison, trial, rival, partial(_ask_champion, predictor, spec), unseen)
    except (ModelError, RegistryError, DatasetError, EvidenceError) as error:
        return Contest(rival=replace(rival, reason=str(error)))


def _load_champion(platform: Platform, theirs: Candidate, version: int) -> Predictor:
    """Load the champion by its recorded digest, from its own folder or, where that was cleaned up, the registry."""
    if platform.model_file(theirs).is_file():
        return load(platform.model_file(theirs), theirs.model_digest)
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        return load(platform.registry.fetch(theirs.model, version, Path(folder)), theirs.model_digest)


def _ask_champion(predictor: Predictor, spec: ModelSpec, features: "pd.DataFrame", labels: Any) -> Answered:
    try:
        return evaluation.ask(predictor, features, labels, spec.task)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            # Its class alone: the text may quote a person's value, and what is said here stays in the verdict.
            f"the champion cannot answer rows of this contract ({type(error).__name__}). If it should no longer be "
            "compared with, declare comparison=None for the next version."
        ) from error


def _unseen(platform: Platform, spec: ModelSpec, theirs: Candidate, holdout: "pd.DataFrame") -> Any:
    """Return which rows of the holdout the champion was not trained on; ndarray of shape (n_samples,) of bool.

    By entity and at an unchanged share the sides never change. Otherwise its own split is made again from its own
    dataset version: rows that came late may be older than what it was trained on.
    """
    import numpy as np

    verdict = platform.database.verdict_on(theirs.id)
    if verdict is None:
        raise EvidenceError("it has no verdict that says how its training rows were chosen")
    if verdict.split == spec.stated_split and spec.split == "entity":
        return np.ones(len(holdout), bool)
    kind, share = verdict.split.split()
    as_then = spec.model_copy(update={"split": kind, "holdout_share": float(share)})
    rows = datasets.read_version(platform.rows(spec.name), as_then, theirs.lineage.dataset_version)
    trained, _ = datasets.split(rows, as_then)
    keys = [spec.entity, spec.event_time]
    seen = holdout[keys].merge(trained[keys], how="left", on=keys, indicator=True)["_merge"] == "both"
    return ~seen.to_numpy()


def _compare(
    spec: ModelSpec, comparison: Comparison, trial: Trial, rival: Rival, answering: Answering, unseen: Any
) -> Contest:
    theirs = {name: answers_in(rows, spec, answering) for name, rows in trial.data.items()}
    figures = figures_of(spec, trial.data, theirs, resamples=RESAMPLES)
    mine, its = trial.answers[HOLDOUT].at(unseen), theirs[HOLDOUT].at(unseen)
    found = _difference(spec, comparison, mine, its)
    compared = replace(
        rival,
        rows=found.rows,
        difference=found.value,
        low=found.low,
        high=found.high,
        p_better=found.p_better,
        method=found.method,
        reason=found.reason,
        figures=figures,
    )
    return Contest(rival=compared, ours=mine, theirs=its)


def _difference(spec: ModelSpec, comparison: Comparison, ours: Answered, theirs: Answered) -> intervals.Difference:
    import numpy as np

    if not np.array_equal(ours.labels, theirs.labels):
        raise ModelError("it knows other classes, whose probabilities cannot be compared")
    # One-sided at the author's confidence: a tail of as much on the other side.
    sure = 2 * comparison.confidence - 1
    found: Callable[..., dict[str, intervals.Difference]] = intervals.differences
    return found(spec.task, ours.labels, as_intervals(ours), as_intervals(theirs), confidence=sure)[comparison.metric]
