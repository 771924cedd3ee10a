"""Areas under ROC curves: DeLong's bounds, and the paired difference of two areas.

DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988), computed by midranks as in Sun and Xu (IEEE Signal Processing
Letters 21, 2014). SciPy and scikit-learn have neither.

`positive` is an array of shape (n_samples, n_columns) of bool: True where a row has the column's class. `wins`, of the
same shape, counts for each row the rows of the other side that the scores rank correctly against it, ties as one half.
"""

from math import log
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from ml_platform.evaluation.uncertainty import estimates
from ml_platform.evaluation.uncertainty.estimates import (
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

    No sample claims more than a perfect one of its size. In a perfect sample min(positives, negatives) independent
    pairs are all in the right order, which has at most the probability area ** pairs. This bounds perfect separation,
    where DeLong's variance is 0, and nearly perfect separation.

    Parameters
    ----------
    labels : ndarray of shape (n_samples,) of 0 and 1, or of 0 to n_classes - 1
    scores : ndarray of shape (n_samples,) or (n_samples, n_classes)
        Higher for a likelier class, on any scale. With one column per class the value is the mean of the areas of each
        class against the rest.
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
    from scipy.special import expit

    check_options("auc_interval", confidence)
    reason = estimates.ranks_problem(labels, scores)
    if reason:
        return no_interval(DELONG, labels, reason)
    positive = encode_one_vs_rest(labels, scores)
    wins = count_wins(positive, scores)
    value, error = mean_area(positive, wins), standard_error(labels, positive, wins)
    agreement = _agreement(positive, confidence)
    if error == 0:
        low, high = value * agreement, 1 - (1 - value) * agreement
    else:
        reach, middle = _quantile(confidence) * error / (value * (1 - value)), log(value / (1 - value))
        low = min(float(expit(middle - reach)), agreement, value)
        high = max(float(expit(middle + reach)), 1 - agreement, value)
    return Interval(value=value, low=low, high=high, method=DELONG if error else PAIRS, rows=len(labels))


def auc_difference(
    labels: "NDArray[Any]", ours: "NDArray[Any]", theirs: "NDArray[Any]", *, confidence: float = CONFIDENCE
) -> Difference:
    """Return the difference of two areas under the ROC curve on the same rows, by DeLong's paired test.

    Two models that rank every pair alike differ by exactly 0, with bounds of 0. If the difference is the same for every
    pair and not 0, the bounds are those of min(positives, negatives) independent pairs that all agree.

    Parameters
    ----------
    labels : ndarray of shape (n_samples,) of 0 and 1, or of 0 to n_classes - 1
    ours, theirs : ndarray of shape (n_samples,) or (n_samples, n_classes)
        As `scores` of `auc_interval`.
    confidence : float
        Two-sided.

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
    reason = estimates.ranks_problem(labels, ours) or estimates.ranks_problem(labels, theirs)
    if not reason and ours.shape != theirs.shape:
        reason = f"the two models answer with shapes {ours.shape} and {theirs.shape}"
    if reason:
        return no_difference(PAIRED_DELONG, labels, reason)
    positive = encode_one_vs_rest(labels, ours)
    gains = count_wins(positive, ours) - count_wins(positive, theirs)
    value, error = mean_area(positive, gains), standard_error(labels, positive, gains)
    if error == 0 and value != 0:
        return _constant_gain(value, positive, len(labels), confidence)
    reach = _quantile(confidence) * error
    return Difference(
        value=value,
        low=max(value - reach, -1.0),
        high=min(value + reach, 1.0),
        p_better=NormalDist().cdf(-value / error) if error else 0.5,
        method=PAIRED_DELONG,
        rows=len(labels),
    )


def _constant_gain(value: float, positive: Any, rows: int, confidence: float) -> Difference:
    """Return a difference that is the same for every pair; a pair outside the sample may have any."""
    if positive.shape[1] > 1:
        return Difference(value=value, low=None, high=None, p_better=None, method=PAIRS, rows=rows, reason=NO_SPREAD)
    agreement, chance = _agreement(positive, confidence), (1 + abs(value)) ** -independent_pairs(positive)
    return Difference(
        value=value,
        low=max(-1.0, value * agreement - (1 - agreement)),
        high=min(1.0, value * agreement + (1 - agreement)),
        p_better=chance if value > 0 else 1 - chance,
        method=PAIRS,
        rows=rows,
    )


def _agreement(positive: Any, confidence: float) -> float:
    """Return the lowest probability of an order that all independent pairs show, in every column at once."""
    tail = (1 - confidence) / 2 / positive.shape[1]
    return float(tail ** (1 / independent_pairs(positive)))


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def encode_one_vs_rest(labels: "NDArray[Any]", scores: "NDArray[Any]") -> "NDArray[Any]":
    """Return `positive` for labels and scores; one-dimensional scores are those of class 1."""
    import numpy as np

    classes = np.arange(scores.shape[1]) if scores.ndim == 2 else np.ones(1)
    return np.asarray(labels[:, None] == classes)


def midranks(values: "NDArray[Any]") -> "NDArray[Any]":
    """Return the rank of each value from 1, equal values at the middle of their ranks; shape (n,).

    As `scipy.stats.rankdata`, whose import takes a second.
    """
    import numpy as np

    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def count_wins(positive: "NDArray[Any]", scores: "NDArray[Any]") -> "NDArray[Any]":
    """Return the wins of each row in each column."""
    import numpy as np

    wins = np.empty(positive.shape)
    for column, members in enumerate(positive.T):
        own = scores if scores.ndim == 1 else scores[:, column]
        ranks = midranks(own)
        wins[members, column] = ranks[members] - midranks(own[members])
        wins[~members, column] = members.sum() - (ranks[~members] - midranks(own[~members]))
    return wins


def mean_area(positive: "NDArray[Any]", wins: "NDArray[Any]") -> float:
    """Return the mean of the columns' areas; of their differences if `wins` are differences."""
    return float(((wins * positive).sum(axis=0) / _all_pairs(positive)).mean())


def standard_error(labels: "NDArray[Any]", positive: "NDArray[Any]", wins: "NDArray[Any]") -> float:
    """Return DeLong's standard error of `mean_area`; 0 only if no wins vary. Each label needs two rows."""
    import numpy as np

    if not any(np.ptp(w[side]) for w, s in zip(wins.T, positive.T, strict=True) for side in (s, ~s)):
        return 0.0
    influence = (wins / _all_pairs(positive)).mean(axis=1)
    classes = [influence[labels == label] for label in np.unique(labels)]
    return float(np.sqrt(sum(len(rows) * rows.var(ddof=1) for rows in classes)))


def _all_pairs(positive: "NDArray[Any]") -> "NDArray[Any]":
    import numpy as np

    positives = positive.sum(axis=0)
    return np.asarray(positives * (len(positive) - positives))


def independent_pairs(positive: "NDArray[Any]") -> int:
    """Return the number of pairs that share no row, in the column with the fewest."""
    import numpy as np

    positives = positive.sum(axis=0)
    return int(np.minimum(positives, len(positive) - positives).min())
