"""ROC and calibration curves as a few numbers, which reveal no single row."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ml_platform.model_spec import Task
from ml_platform.records.canonical import canonical_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

POINTS = 101
TENTHS = 10
# A point of fewer rows would reveal too much of them and little of the model.
MIN_ROWS = 10


@dataclass(frozen=True, kw_only=True)
class Curve:
    """ROC and calibration curve of one model.

    Parameters
    ----------
    name : str
        Name of the model.
    roc : list of float
        True positive rate at `POINTS` false positive rates from 0 to 1; with several classes the mean of each against
        the rest. Empty for a regression, and if a class has fewer than `MIN_ROWS` rows.
    calibration : list of (float, float)
        Mean prediction and mean outcome of each tenth of the rows, ordered by prediction: probability and share of
        the positive class; with several classes the predicted class's probability and the share of correct rows; for
        numbers prediction and label, in the label's unit. Tenths of fewer than `MIN_ROWS` rows are left out.
    """

    name: str
    roc: list[float]
    calibration: list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Curves on the same rows of the holdout; the candidate's comes first."""

    rows: int
    of: list[Curve]

    @property
    def document(self) -> str:
        """The curves as canonical JSON."""
        return canonical_json(asdict(self))


def curve(
    name: str, task: Task, labels: "NDArray[Any]", predictions: "NDArray[Any]", probabilities: "NDArray[Any] | None"
) -> Curve:
    """Return the curves of one model's answers; without points unless it answers every row with a finite number.

    Parameters
    ----------
    name : str
    task : "binary", "multiclass" or "regression"
    labels, predictions : ndarray of shape (n_samples,)
    probabilities : ndarray of shape (n_samples,) or (n_samples, n_classes), or None for a regression
    """
    import numpy as np

    answers = predictions if probabilities is None else probabilities
    if not len(labels) or len(answers) != len(labels) or not np.isfinite(answers).all():
        return Curve(name=name, roc=[], calibration=[])
    if task == "regression" or probabilities is None:
        return Curve(name=name, roc=[], calibration=_tenths(predictions, labels))
    if task == "binary":
        return Curve(name=name, roc=_roc([(labels == 1, probabilities)]), calibration=_tenths(probabilities, labels))
    sides = [(labels == place, probabilities[:, place]) for place in range(probabilities.shape[1])]
    return Curve(name=name, roc=_roc(sides), calibration=_tenths(probabilities.max(axis=1), predictions == labels))


def _roc(sides: "list[tuple[NDArray[Any], NDArray[Any]]]") -> list[float]:
    """Return the mean of the ROC curves of some classes; an empty list if a side has too few rows.

    Each pair has the rows of the class, and the scores; both of shape (n_samples,).
    """
    import numpy as np
    from sklearn.metrics import roc_curve

    if any(min(positive.sum(), (~positive).sum()) < MIN_ROWS for positive, _ in sides):
        return []
    grid, rates = np.linspace(0, 1, POINTS), []
    for positive, scores in sides:
        false_positive, true_positive, _ = roc_curve(positive, scores, drop_intermediate=False)
        rates.append(np.interp(grid, false_positive, true_positive))
    return _round_points(np.mean(rates, axis=0))


def _tenths(predicted: "NDArray[Any]", outcomes: "NDArray[Any]") -> list[tuple[float, float]]:
    import numpy as np

    ordered = np.sort(predicted)
    # Equal predictions share a tenth: a rule with two answers has two points.
    ranks = (np.searchsorted(ordered, predicted, "left") + np.searchsorted(ordered, predicted, "right")) // 2
    bins = np.minimum(ranks * TENTHS // len(predicted), TENTHS - 1)
    rows = np.bincount(bins)
    kept = rows >= MIN_ROWS
    means = [np.bincount(bins, weights=values)[kept] / rows[kept] for values in (predicted, outcomes)]
    return list(zip(*map(_round_points, means), strict=True))


def _round_points(values: "NDArray[Any]") -> list[float]:
    # A picture shows no more digits.
    return [float(f"{value:.5g}") for value in values]
