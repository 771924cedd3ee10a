"""Compare a candidate with the champion or the baseline, on rows that neither was trained on."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.data import dataset_checks, datasets
from ml_platform.database.decided import decided_candidate, decided_verdict
from ml_platform.errors import DatasetError, EvidenceError, ModelError, RegistryError
from ml_platform.evaluation import predictions
from ml_platform.evaluation.measure import measure_metrics, predict_dataset, to_interval_answers
from ml_platform.evaluation.predictions import PredictFunction, PredictionsWithLabels
from ml_platform.evaluation.uncertainty import intervals
from ml_platform.inference.predictor import load
from ml_platform.model_spec import HOLDOUT, Comparison, ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.ledger import LedgerEntry
from ml_platform.records.verdict import Candidate, Reference

if TYPE_CHECKING:
    import pandas as pd

# A reference's measurements are shown next to the candidate's; no gate reads their bounds.
RESAMPLES = 200
SAME_BYTES = "its bytes equal the candidate's, so there is no gain"


@dataclass(frozen=True, kw_only=True)
class ComparisonInputs:
    """Training rows, and the rows of each dataset with the candidate's answers, by the dataset's name."""

    training: "pd.DataFrame"
    data: "Mapping[str, pd.DataFrame]"
    answers: Mapping[str, PredictionsWithLabels]


@dataclass(frozen=True, kw_only=True)
class ComparisonResult:
    """A reference with the comparison's numbers, and the answers that were compared.

    `ours` and `theirs` are the candidate's and the reference's answers on the rows of the holdout that neither was
    trained on; None if the comparison failed.
    """

    reference: Reference
    ours: PredictionsWithLabels | None = None
    theirs: PredictionsWithLabels | None = None


def compare_with_reference(
    platform: Platform, spec: ModelSpec, candidate: Candidate, inputs: ComparisonInputs, champion: LedgerEntry | None
) -> ComparisonResult | None:
    """Compare a candidate with the champion, or with the baseline if there is none. None if the spec asks for neither.

    A champion with the candidate's bytes is no reference: the baseline takes its place, unless the author asks for a
    gain over the champion.

    Parameters
    ----------
    platform : Platform
    spec : ModelSpec
    candidate : Candidate
    inputs : ComparisonInputs
    champion : LedgerEntry or None
        The decision that made the champion; None before the first promotion. If its verdict or record was changed
        since, the result gives this as the reason.
    """
    comparison = spec.comparison
    if comparison is None:
        return None
    if champion is None:
        return _compare_with_baseline(spec, comparison, inputs)
    reference = Reference(
        kind="champion", name=f"version {champion.version}", metric=comparison.metric, version=champion.version
    )
    try:
        theirs = decided_candidate(platform.database, champion)
    except EvidenceError as error:
        return ComparisonResult(reference=replace(reference, reason=str(error)))
    identity: dict[str, Any] = {"version": champion.version, "model_digest": theirs.model_digest}
    reference = replace(reference, **identity)
    if theirs.model_digest != candidate.model_digest:
        return _compare_with_champion(platform, spec, comparison, inputs, reference, champion)
    if comparison.min_gain is not None:
        return ComparisonResult(reference=replace(reference, reason=SAME_BYTES))
    return _compare_with_baseline(spec, comparison, inputs, **identity)


def _compare_with_baseline(
    spec: ModelSpec, comparison: Comparison, inputs: ComparisonInputs, **identity: Any
) -> ComparisonResult:
    import numpy as np

    rows = inputs.training
    predict = predictions.baseline(rows[spec.features], dataset_checks.target(rows, spec), spec)
    reference = Reference(kind="baseline", name=spec.stated_baseline, metric=comparison.metric, **identity)
    return _compare(spec, comparison, inputs, reference, predict, np.ones(len(inputs.data[HOLDOUT]), bool))


def _compare_with_champion(
    platform: Platform,
    spec: ModelSpec,
    comparison: Comparison,
    inputs: ComparisonInputs,
    reference: Reference,
    champion: LedgerEntry,
) -> ComparisonResult:
    """Compare with the champion's stored bytes. If that fails, return the error as the reason."""
    theirs, verdict = decided_candidate(platform.database, champion), decided_verdict(platform.database, champion)

    def predict(features: "pd.DataFrame", labels: Any) -> PredictionsWithLabels:
        try:
            return predictions.predict_rows(predictor, features, labels, spec.task)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ModelError(
                # Its class alone: the text may quote a person's value, and this message is stored in the verdict.
                f"the champion cannot predict rows of this contract ({type(error).__name__}). To stop comparing with "
                "it, declare comparison=None for the next version."
            ) from error

    try:
        if platform.model_file(theirs).is_file():
            predictor = load(platform.model_file(theirs), theirs.model_digest)
        else:  # the folder was cleaned up
            with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
                fetched = platform.registry.fetch(theirs.model, reference.version or 0, Path(folder))
                predictor = load(fetched, theirs.model_digest)
        unseen = _select_unseen_rows(platform, spec, theirs, verdict.split, inputs.data[HOLDOUT])
        return _compare(spec, comparison, inputs, reference, predict, unseen)
    except (ModelError, RegistryError, DatasetError, EvidenceError) as error:
        return ComparisonResult(reference=replace(reference, reason=str(error)))


def _select_unseen_rows(
    platform: Platform, spec: ModelSpec, theirs: Candidate, split: str, holdout: "pd.DataFrame"
) -> Any:
    """Select the rows of the holdout that the champion was not trained on; ndarray of shape (n_samples,) of bool.

    A split by entity with an unchanged share always puts an entity on the same side. Any other split is repeated on the
    champion's own dataset version, because rows that arrived late may be older than its training rows.
    """
    import numpy as np

    if split == spec.stated_split and spec.split == "entity":
        return np.ones(len(holdout), bool)
    kind, share, *rows_taken = split.split()
    declared = {"split": kind, "holdout_share": float(share), "rows": "".join(rows_taken) or "newest"}
    champion_spec = spec.model_copy(update=declared)
    rows = datasets.read_version(platform.rows(spec.name), champion_spec, theirs.lineage.dataset_version)
    trained, _ = datasets.split(rows, champion_spec)
    keys = [spec.entity, spec.event_time]
    seen = holdout[keys].merge(trained[keys], how="left", on=keys, indicator=True)["_merge"] == "both"
    return ~seen.to_numpy()


def _compare(
    spec: ModelSpec,
    comparison: Comparison,
    inputs: ComparisonInputs,
    reference: Reference,
    predict: PredictFunction,
    unseen: Any,
) -> ComparisonResult:
    import numpy as np

    answers = {name: predict_dataset(rows, spec, predict) for name, rows in inputs.data.items()}
    measurements = measure_metrics(spec, inputs.data, answers, resamples=RESAMPLES)
    ours, theirs = inputs.answers[HOLDOUT].at(unseen), answers[HOLDOUT].at(unseen)
    if not np.array_equal(ours.labels, theirs.labels):
        raise ModelError("it has other classes, so their probabilities cannot be compared")
    differences = intervals.differences(
        spec.task,
        ours.labels,
        to_interval_answers(ours),
        to_interval_answers(theirs),
        # The author's confidence is that of the lower bound alone; these are two-sided bounds.
        confidence=2 * comparison.confidence - 1,
    )
    difference = differences[comparison.metric]
    compared = replace(
        reference,
        rows=difference.rows,
        difference=difference.value,
        low=difference.low,
        high=difference.high,
        p_better=difference.p_better,
        method=difference.method,
        reason=difference.reason,
        measurements=measurements,
    )
    return ComparisonResult(reference=compared, ours=ours, theirs=theirs)
