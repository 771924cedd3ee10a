"""The metrics of each task: scikit-learn's functions for reported values, NumPy kernels for resampling.

A bootstrap computes a metric 1,000 times, and scikit-learn's checks of its arguments take longer than the sums. The
kernels make no checks; each names its source, and tests compare it with scikit-learn's function.

Every function takes labels of shape (n_samples,) and a model's answers and returns a float; kernels return NaN where
the metric is undefined. Answers are predictions of the same kind as the labels, or probabilities: of shape (n_samples,)
for class 1, or of shape (n_samples, n_classes) for the classes 0 to n_classes - 1.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from numpy.typing import NDArray

Measure = Callable[[Any, Any], float]

CALIBRATION_BINS = 10


class Better(StrEnum):
    """The direction in which a metric improves."""

    MORE = "more"
    LESS = "less"


# Counts, of which Clopper-Pearson gives exact bounds


def accuracy_counts(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> tuple[int, int]:
    """Return the number of correct rows and the number of rows."""
    return int((labels == predictions).sum()), len(labels)


def precision_counts(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> tuple[int, int]:
    """Return the number of true positives and the number of predicted positives."""
    return int(((labels == 1) & (predictions == 1)).sum()), int((predictions == 1).sum())


def recall_counts(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> tuple[int, int]:
    """Return the number of true positives and the number of positives."""
    return int(((labels == 1) & (predictions == 1)).sum()), int((labels == 1).sum())


def jaccard_counts(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> tuple[int, int]:
    """Return the number of true positives and the number of rows that are positive or predicted positive."""
    return int(((labels == 1) & (predictions == 1)).sum()), int(((labels == 1) | (predictions == 1)).sum())


def share(counts: tuple[int, int]) -> float:
    """Return the first count divided by the second; NaN if the second is 0."""
    return counts[0] / counts[1] if counts[1] else float("nan")


def f1_of_jaccard(jaccard: float) -> float:
    """Return the F1 of a Jaccard index: 2 TP / (2 TP + FP + FN) rises with TP / (TP + FP + FN)."""
    return 2 * jaccard / (1 + jaccard)


# Kernels


def accuracy(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> float:
    """Return the share of correct rows, as `sklearn.metrics.accuracy_score`."""
    return share(accuracy_counts(labels, predictions))


def precision(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> float:
    """Return TP / (TP + FP), as `sklearn.metrics.precision_score`."""
    return share(precision_counts(labels, predictions))


def recall(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> float:
    """Return TP / (TP + FN), as `sklearn.metrics.recall_score`."""
    return share(recall_counts(labels, predictions))


def f1_score(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> float:
    """Return the harmonic mean of precision and recall, as `sklearn.metrics.f1_score`; 0 without true positives."""
    return f1_of_jaccard(share(jaccard_counts(labels, predictions)))


def f1_macro(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> float:
    """Return the mean F1 of the classes in labels or predictions, as `sklearn.metrics.f1_score(average="macro")`."""
    import numpy as np

    classes = int(max(labels.max(), predictions.max())) + 1
    cells = (labels * classes + predictions).astype("int64")
    table = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
    either = table.sum(axis=0) + table.sum(axis=1)
    return float((2 * table.diagonal()[either > 0] / either[either > 0]).mean())


def average_precision(labels: "NDArray[Any]", scores: "NDArray[Any]") -> float:
    """Return the sum of P(n) (R(n) - R(n - 1)) over thresholds n, as `sklearn.metrics.average_precision_score`."""
    import numpy as np

    order = np.argsort(-scores)
    true_positives, ordered = labels[order].cumsum(), scores[order]
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    if not true_positives[-1]:
        return float("nan")
    gained = np.diff(true_positives[last], prepend=0)
    return float((gained * true_positives[last] / (last + 1)).sum() / true_positives[-1])


def brier_score(labels: "NDArray[Any]", probabilities: "NDArray[Any]") -> float:
    """Return the mean of (probability - label) ** 2, as `sklearn.metrics.brier_score_loss`."""
    return float(((probabilities - labels) ** 2).mean())


def log_loss(labels: "NDArray[Any]", probabilities: "NDArray[Any]") -> float:
    """Return the mean of -log(probability of the true class), as `sklearn.metrics.log_loss`; 0 counts as epsilon."""
    import numpy as np

    if probabilities.ndim == 1:
        given = np.where(labels == 1, probabilities, 1 - probabilities)
    else:
        given = probabilities[np.arange(len(labels)), labels.astype("int64")]
    return float(-np.log(given.clip(np.finfo(given.dtype).eps, 1)).mean())


def expected_calibration_error(labels: "NDArray[Any]", probabilities: "NDArray[Any]") -> float:
    """Return the mean distance of probability and share positive over ten bins of equal width, weighted by rows.

    Naeini, Cooper and Hauskrecht (AAAI 2015); scikit-learn has no such function. The bins are those of
    `sklearn.calibration.calibration_curve`.
    """
    import numpy as np

    bins = np.searchsorted(np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1], probabilities)
    return float(np.abs(np.bincount(bins, weights=probabilities - labels)).sum() / len(labels))


def r2(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> float:
    """Return the explained share of the labels' variance, as `sklearn.metrics.r2_score`; NaN for constant labels."""
    spread = ((labels - labels.mean()) ** 2).sum()
    return float(1 - ((labels - predictions) ** 2).sum() / spread) if spread > 0 else float("nan")


def mean_absolute_error(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> float:
    """Return the mean of abs(prediction - label) in the label's unit, as `sklearn.metrics.mean_absolute_error`."""
    return float(abs(labels - predictions).mean())


def root_mean_squared_error(labels: "NDArray[Any]", predictions: "NDArray[Any]") -> float:
    """Return the root of the mean squared error in the label's unit, as `sklearn.metrics.root_mean_squared_error`."""
    return float(((labels - predictions) ** 2).mean() ** 0.5)


# Reported values


def scikit_learn(name: str, **options: Any) -> Measure:
    """Return a function of `sklearn.metrics`; the module, whose import takes seconds, is imported at the first call."""

    def score(labels: "NDArray[Any]", answers: "NDArray[Any]") -> float:
        from sklearn import metrics

        return float(getattr(metrics, name)(labels, answers, **options))

    return score


def roc_auc_score(labels: "NDArray[Any]", scores: "NDArray[Any]") -> float:
    """Return scikit-learn's area under the ROC curve; with a column per class the mean of each class against the rest.

    The columns may be on any scale: scikit-learn's own ``multi_class="ovr"`` takes probabilities only.
    """
    import numpy as np
    from sklearn import metrics

    if scores.ndim == 1:
        return float(metrics.roc_auc_score(labels, scores))
    return float(np.mean([metrics.roc_auc_score(labels == place, column) for place, column in enumerate(scores.T)]))


def log_loss_score(labels: "NDArray[Any]", probabilities: "NDArray[Any]") -> float:
    """Return scikit-learn's log loss, also where the rows lack a class."""
    from sklearn import metrics

    classes = range(2 if probabilities.ndim == 1 else probabilities.shape[1])
    with warnings.catch_warnings():
        # `estimates.answers_problem` has checked the sums: a float32 model's are off by more than scikit-learn expects.
        warnings.filterwarnings("ignore", "The y_prob values do not sum to one", UserWarning)
        return float(metrics.log_loss(labels, probabilities, labels=list(classes)))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of a task.

    Parameters
    ----------
    better : Better
    reads : "predictions" or "probabilities"
        The answers of a model that it takes.
    score : callable
        Labels and answers to the reported value.
    kernel : callable or None
        The same metric for resampling. None for an area under ROC curves, which has DeLong's bounds.
    counts : callable or None
        Labels and answers to a part and a whole, which have exact bounds. None bounds the metric by a bootstrap.
    from_share : callable or None
        Rising function from that share to the metric. None if the share is the metric.
    stratified, biased : bool
        Options of its bootstrap; see `bootstrap_interval`.
    """

    better: Better
    reads: Literal["predictions", "probabilities"]
    score: Measure
    kernel: Measure | None
    counts: Callable[[Any, Any], tuple[int, int]] | None = None
    from_share: Callable[[float], float] | None = None
    stratified: bool = False
    biased: bool = False


def _more(
    reads: Literal["predictions", "probabilities"], score: Measure, kernel: Measure | None, **options: Any
) -> Metric:
    return Metric(better=Better.MORE, reads=reads, score=score, kernel=kernel, **options)


def _less(
    reads: Literal["predictions", "probabilities"], score: Measure, kernel: Measure | None, **options: Any
) -> Metric:
    return Metric(better=Better.LESS, reads=reads, score=score, kernel=kernel, **options)


ACCURACY = _more("predictions", scikit_learn("accuracy_score"), accuracy, counts=accuracy_counts)
AREA = _more("probabilities", roc_auc_score, None)
LOG_LOSS = _less("probabilities", log_loss_score, log_loss)
CALIBRATION_ERROR = _less("probabilities", expected_calibration_error, expected_calibration_error, biased=True)

CATALOGUE: Mapping[str, Mapping[str, Metric]] = MappingProxyType(
    {
        "binary": {
            "auc_roc": AREA,
            "average_precision": _more(
                "probabilities", scikit_learn("average_precision_score"), average_precision, biased=True
            ),
            "f1_score": _more(
                "predictions", scikit_learn("f1_score"), f1_score, counts=jaccard_counts, from_share=f1_of_jaccard
            ),
            "precision": _more("predictions", scikit_learn("precision_score"), precision, counts=precision_counts),
            "recall": _more("predictions", scikit_learn("recall_score"), recall, counts=recall_counts),
            "accuracy": ACCURACY,
            "brier_score": _less("probabilities", scikit_learn("brier_score_loss", pos_label=1), brier_score),
            "log_loss": LOG_LOSS,
            "expected_calibration_error": CALIBRATION_ERROR,
        },
        "multiclass": {
            "accuracy": ACCURACY,
            "f1_macro": _more("predictions", scikit_learn("f1_score", average="macro"), f1_macro, stratified=True),
            "auc_ovr": AREA,
            "log_loss": LOG_LOSS,
        },
        "regression": {
            "r2": _more("predictions", scikit_learn("r2_score"), r2),
            "mean_absolute_error": _less("predictions", scikit_learn("mean_absolute_error"), mean_absolute_error),
            "root_mean_squared_error": _less(
                "predictions", scikit_learn("root_mean_squared_error"), root_mean_squared_error
            ),
        },
    }
)
