"""ROC and calibration curves as a few numbers that say nothing of a single row."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ml_platform.model_spec import Task
from ml_platform.records import canonical_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

POINTS = 101
TENTHS = 10
# A point that stood for fewer rows would say too much of them, and little of the model.
LEAST_ROWS = 10


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What one model's answers look like beside the truth.

    Parameters
    ----------
    name : str
        Whose answers.
    roc : list of float
        True positive rate at `POINTS` false positive rates from 0 to 1; of several classes the mean of each against
        the rest. Empty for a regression, and where a class has fewer than `LEAST_ROWS` rows.
    calibration : list of (float, float)
        What was said and what came, as means over each tenth of the rows by what was said: probability and share of
        the positive class; of several classes the predicted one's probability and the share that is right; of numbers
        prediction and label, in the label's unit. Tenths of fewer than `LEAST_ROWS` rows are left out.
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
    """Return the curves of one model's answers, without points where it did not answer every row with a number.

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
    """Return the mean of ROC curves; no curve where a side has too few rows."""
    import numpy as np

    if any(min(positive.sum(), (~positive).sum()) < LEAST_ROWS for positive, _ in sides):
        return []
    return _plain(np.mean([_rates(positive, scores) for positive, scores in sides], axis=0))


def _rates(positive: "NDArray[Any]", scores: "NDArray[Any]") -> "NDArray[Any]":
    import numpy as np

    order = np.argsort(-scores)
    ordered, found = scores[order], positive[order].cumsum()
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    alarms = last + 1 - found[last]
    true, false = np.append(0, found[last] / found[-1]), np.append(0, alarms / alarms[-1])
    rates: NDArray[Any] = np.interp(np.linspace(0, 1, POINTS), false, true)
    return rates


def _tenths(said: "NDArray[Any]", came: "NDArray[Any]") -> list[tuple[float, float]]:
    import numpy as np

    ordered = np.sort(said)
    # Rows of which the same was said stay together: a rule that knows two answers has two points.
    ranks = (np.searchsorted(ordered, said, "left") + np.searchsorted(ordered, said, "right")) // 2
    bins = np.minimum(ranks * TENTHS // len(said), TENTHS - 1)
    rows = np.bincount(bins)
    kept = rows >= LEAST_ROWS
    means = [np.bincount(bins, weights=values)[kept] / rows[kept] for values in (said, came)]
    return list(zip(*map(_plain, means), strict=True))


def _plain(values: "NDArray[Any]") -> list[float]:
    # More digits than a picture shows would be of no use.
    return [float(f"{value:.5g}") for value in values]
