"""Areas under ROC curves: DeLong's bounds, and the paired difference of two."""

from math import exp, log
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from ml_platform.stages import _problems, _ranks
from ml_platform.stages._estimates import (
    CONFIDENCE,
    NO_SPREAD,
    Difference,
    Interval,
    check_options,
    no_difference,
    no_interval,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

DELONG = "DeLong, logit"
PAIRED_DELONG = "paired DeLong"
PAIRS = "independent pairs"


def auc_interval(labels: "NDArray[Any]", scores: "NDArray[Any]", *, confidence: float = CONFIDENCE) -> Interval:
    """Return the area under the ROC curve with DeLong's bounds on the logit scale, which stay within 0 and 1.

    No sample claims more than a perfect one of its size. There, min(positives, negatives) independent pairs are all
    in the right order, which has at most the probability area ** pairs. This bounds perfect separation, for which
    DeLong's variance is 0, and what is nearly perfect.

    Parameters
    ----------
    labels : ndarray of shape (n_samples,) of 0 and 1, or of 0 to n_classes - 1
    scores : ndarray of shape (n_samples,) or (n_samples, n_classes)
        Higher where the class is likelier, on any scale. With a column a class the value is the mean of each class's
        area against the rest.
    confidence : float
        Two-sided.

    Returns
    -------
    Interval
        Empty if a class has fewer than two rows, or a score is not finite.

    Raises
    ------
    ConfigurationError
        `confidence` is not between 0 and 1.
    """
    check_options("auc_interval", confidence)
    reason = _problems.ranks_problem(labels, scores)
    return no_interval(DELONG, labels, reason) if reason else _area(labels, scores, confidence)


def auc_difference(
    labels: "NDArray[Any]", ours: "NDArray[Any]", theirs: "NDArray[Any]", *, confidence: float = CONFIDENCE
) -> Difference:
    """Return the difference of two areas under the ROC curve on the same rows, by DeLong's paired test.

    Two models that rank every pair alike differ by exactly 0, with bounds of 0. Where no pair varies but the
    difference is not 0, the bounds are those of min(positives, negatives) independent pairs that all say the same.

    Parameters
    ----------
    labels : ndarray of shape (n_samples,) of 0 and 1, or of 0 to n_classes - 1
    ours, theirs : ndarray of shape (n_samples,) or (n_samples, n_classes)
        As `scores` of `auc_interval`.

    Returns
    -------
    Difference
        Empty if a class has fewer than two rows, or a score is not finite.

    Raises
    ------
    ConfigurationError
        `confidence` is not between 0 and 1.
    """
    check_options("auc_difference", confidence)
    reason = _problems.ranks_problem(labels, ours) or _problems.ranks_problem(labels, theirs)
    if not reason and ours.shape != theirs.shape:
        reason = f"the two models answer with shapes {ours.shape} and {theirs.shape}"
    if reason:
        return no_difference(PAIRED_DELONG, labels, reason)
    return _area_difference(labels, ours, theirs, confidence)


def _area(labels: Any, scores: Any, confidence: float) -> Interval:
    sides = _ranks.sides_of(labels, scores)
    wins = _ranks.wins_of(sides, scores)
    value, error = _ranks.mean_area(sides, wins), _ranks.standard_error(labels, sides, wins)
    agreement = _agreement(sides, confidence)
    if error == 0:
        low, high = value * agreement, 1 - (1 - value) * agreement
    else:
        reach, middle = _quantile(confidence) * error / (value * (1 - value)), log(value / (1 - value))
        low = min(_expit(middle - reach), agreement, value)
        high = max(_expit(middle + reach), 1 - agreement, value)
    return Interval(value=value, low=low, high=high, method=DELONG if error else PAIRS, rows=len(labels))


def _area_difference(labels: Any, ours: Any, theirs: Any, confidence: float) -> Difference:
    sides = _ranks.sides_of(labels, ours)
    gains = _ranks.wins_of(sides, ours) - _ranks.wins_of(sides, theirs)
    value, error = _ranks.mean_area(sides, gains), _ranks.standard_error(labels, sides, gains)
    if error == 0 and value != 0:
        return _constant_gain(value, sides, len(labels), confidence)
    reach = _quantile(confidence) * error
    return Difference(
        value=value,
        low=max(value - reach, -1.0),
        high=min(value + reach, 1.0),
        p_better=NormalDist().cdf(-value / error) if error else 0.5,
        method=PAIRED_DELONG,
        rows=len(labels),
    )


def _constant_gain(value: float, sides: Any, rows: int, confidence: float) -> Difference:
    """Return the difference where every pair shows the same gain; a pair that was not seen may show any."""
    if sides.shape[1] > 1:
        return Difference(value=value, low=None, high=None, p_better=None, method=PAIRS, rows=rows, reason=NO_SPREAD)
    agreement, chance = _agreement(sides, confidence), (1 + abs(value)) ** -_ranks.independent_pairs(sides)
    return Difference(
        value=value,
        low=max(-1.0, value * agreement - (1 - agreement)),
        high=min(1.0, value * agreement + (1 - agreement)),
        p_better=chance if value > 0 else 1 - chance,
        method=PAIRS,
        rows=rows,
    )


def _agreement(sides: Any, confidence: float) -> float:
    """Return the least probability of what all independent pairs show, in every column at once."""
    tail = (1 - confidence) / 2 / sides.shape[1]
    return float(tail ** (1 / _ranks.independent_pairs(sides)))


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _expit(value: float) -> float:
    return 1 / (1 + exp(-value)) if value >= 0 else exp(value) / (1 + exp(value))
