"""The metrics of each task on plain arrays: scikit-learn's numbers, without its checks, which cost more than the sums.

Every function takes labels of shape (n_samples,) and answers, and returns a float, NaN where it is undefined. Answers
are predictions of the labels' kind, probabilities of shape (n_samples,) of the class 1, or of shape
(n_samples, n_classes) with the classes 0 to n_classes - 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from ml_platform.stages import _ranks

if TYPE_CHECKING:
    from numpy.typing import NDArray

Measure = Callable[[Any, Any], float]

CALIBRATION_BINS = 10


class Better(StrEnum):
    """Which way a metric is better."""

    MORE = "more"
    LESS = "less"


def accuracy_counts(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> tuple[int, int]:
    """Return how many rows are right, of how many."""
    return int((labels == predictions).sum()), len(labels)


def precision_counts(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> tuple[int, int]:
    """Return how many alarms are right, of how many alarms."""
    return int(((labels == 1) & (predictions == 1)).sum()), int((predictions == 1).sum())


def recall_counts(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> tuple[int, int]:
    """Return how many positives are found, of how many positives."""
    return int(((labels == 1) & (predictions == 1)).sum()), int((labels == 1).sum())


def jaccard_counts(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> tuple[int, int]:
    """Return how many positives are found, of all rows that are positive or predicted so."""
    return int(((labels == 1) & (predictions == 1)).sum()), int(((labels == 1) | (predictions == 1)).sum())


def share(counts: tuple[int, int]) -> float:
    """Return a part of a whole; NaN where there is no whole."""
    return counts[0] / counts[1] if counts[1] else float("nan")


def f1_of_jaccard(jaccard: float) -> float:
    """Return the F1 that belongs to a Jaccard index: 2 TP / (2 TP + FP + FN), rising with TP / (TP + FP + FN)."""
    return 2 * jaccard / (1 + jaccard)


def accuracy(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> float:
    """Return the share of rows that are right."""
    return share(accuracy_counts(labels, predictions))


def precision(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> float:
    """Return the share of alarms that are right."""
    return share(precision_counts(labels, predictions))


def recall(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> float:
    """Return the share of positives that are found."""
    return share(recall_counts(labels, predictions))


def f1_score(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> float:
    """Return the harmonic mean of precision and recall; 0 where nothing is found of what there is."""
    return f1_of_jaccard(share(jaccard_counts(labels, predictions)))


def f1_macro(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> float:
    """Return the mean F1 of the classes that are there or are predicted."""
    import numpy as np

    classes = int(max(labels.max(), predictions.max())) + 1
    cells = (labels * classes + predictions).astype("int64")
    table = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
    either = table.sum(axis=0) + table.sum(axis=1)
    return float((2 * table.diagonal()[either > 0] / either[either > 0]).mean())


def average_precision(labels: "NDArray[Any]", scores: "NDArray[Any]") -> float:
    """Return the mean of the precisions at each threshold, weighted by what each adds to the recall."""
    import numpy as np

    order = np.argsort(-scores)
    found, ordered = labels[order].cumsum(), scores[order]
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    if not found[-1]:
        return float("nan")
    return float((np.diff(found[last], prepend=0) * found[last] / (last + 1)).sum() / found[-1])


def brier_score(labels: "NDArray[Any]", probabilities: "NDArray[Any]") -> float:
    """Return the mean square of probability minus label."""
    return float(((probabilities - labels) ** 2).mean())


def log_loss(labels: "NDArray[Any]", probabilities: "NDArray[Any]") -> float:
    """Return the mean of minus the logarithm of what was given to the class that came, in nats; 0 counts as epsilon."""
    import numpy as np

    if probabilities.ndim == 1:
        given = np.where(labels == 1, probabilities, 1 - probabilities)
    else:
        given = probabilities[np.arange(len(labels)), labels.astype("int64")]
    return float(-np.log(given.clip(np.finfo(given.dtype).eps, 1)).mean())


def expected_calibration_error(labels: "NDArray[Any]", probabilities: "NDArray[Any]") -> float:
    """Return the mean distance of probability and share positive over ten bins of equal width, weighted by rows.

    The bins are those of scikit-learn's ``calibration_curve``.
    """
    import numpy as np

    bins = np.searchsorted(np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1], probabilities)
    return float(np.abs(np.bincount(bins, weights=probabilities - labels)).sum() / len(labels))


def r2(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> float:
    """Return the share of the labels' variance that is explained; NaN where they do not vary."""
    spread = ((labels - labels.mean()) ** 2).sum()
    return float(1 - ((labels - predictions) ** 2).sum() / spread) if spread > 0 else float("nan")


def mean_absolute_error(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> float:
    """Return the mean distance of prediction and label, in the label's unit."""
    return float(abs(labels - predictions).mean())


def root_mean_squared_error(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> float:
    """Return the root of the mean square of prediction minus label, in the label's unit."""
    return float(((labels - predictions) ** 2).mean() ** 0.5)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of a task.

    Parameters
    ----------
    better : Better
    reads : "predictions" or "probabilities"
        Which answers of a model it takes.
    of : callable
        Labels and answers to a float; NaN where it is undefined.
    counts : callable or None
        Labels and answers to a part and a whole, which exact bounds follow from.
    from_share : callable or None
        The rising function of that share that is the metric. None where the share is the metric itself.
    ranks : bool
        Whether it is an area under ROC curves, which has DeLong's bounds.
    stratified, biased : bool
        How it is resampled; see `bootstrap_interval`.
    """

    better: Better
    reads: Literal["predictions", "probabilities"]
    of: Measure
    counts: Callable[[Any, Any], tuple[int, int]] | None = None
    from_share: Callable[[float], float] | None = None
    ranks: bool = False
    stratified: bool = False
    biased: bool = False


def _more(reads: Literal["predictions", "probabilities"], of: Measure, **how: Any) -> Metric:
    return Metric(better=Better.MORE, reads=reads, of=of, **how)


def _less(reads: Literal["predictions", "probabilities"], of: Measure, **how: Any) -> Metric:
    return Metric(better=Better.LESS, reads=reads, of=of, **how)


def auc(labels: "NDArray[Any]", scores: "NDArray[Any]") -> float:
    """Return the area under the ROC curve; with a column a class, the mean of each class's against the rest."""
    sides = _ranks.sides_of(labels, scores)
    return _ranks.mean_area(sides, _ranks.wins_of(sides, scores))


CATALOGUE: Mapping[str, Mapping[str, Metric]] = MappingProxyType(
    {
        "binary": {
            "auc_roc": _more("probabilities", auc, ranks=True),
            "average_precision": _more("probabilities", average_precision, biased=True),
            "f1_score": _more(
                "predictions",
                f1_score,
                counts=jaccard_counts,
                from_share=f1_of_jaccard,
            ),
            "precision": _more("predictions", precision, counts=precision_counts),
            "recall": _more("predictions", recall, counts=recall_counts),
            "accuracy": _more("predictions", accuracy, counts=accuracy_counts),
            "brier_score": _less("probabilities", brier_score),
            "log_loss": _less("probabilities", log_loss),
            "expected_calibration_error": _less("probabilities", expected_calibration_error, biased=True),
        },
        "multiclass": {
            "accuracy": _more("predictions", accuracy, counts=accuracy_counts),
            "f1_macro": _more("predictions", f1_macro, stratified=True),
            "auc_ovr": _more("probabilities", auc, ranks=True),
            "log_loss": _less("probabilities", log_loss),
        },
        "regression": {
            "r2": _more("predictions", r2),
            "mean_absolute_error": _less("predictions", mean_absolute_error),
            "root_mean_squared_error": _less("predictions", root_mean_squared_error),
        },
    }
)
