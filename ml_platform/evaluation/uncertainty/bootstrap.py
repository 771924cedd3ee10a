"""Exact bounds of a share, and the bootstrap of any other metric and of a paired difference.

SciPy's `bootstrap` draws the rows of all strata alike, has no paired difference, and its module takes a second to
import.
"""

from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

from ml_platform.errors import ConfigurationError
from ml_platform.evaluation.metrics import Better, Measure
from ml_platform.evaluation.uncertainty import estimates
from ml_platform.evaluation.uncertainty.estimates import (
    CONFIDENCE,
    MIN_ROWS,
    NO_SPREAD,
    RESAMPLES,
    Difference,
    Interval,
    check_options,
    no_difference,
    no_interval,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

EXACT = "Clopper-Pearson"


def proportion_interval(hits: int, of: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Return a share with exact binomial bounds: neither errs more often than its confidence allows.

    Clopper and Pearson (Biometrika 26, 1934): the values of ``scipy.stats.binomtest(...).proportion_ci("exact")``, from
    the incomplete beta function, because `scipy.stats` takes a second to import.

    Parameters
    ----------
    hits, of : int
        The part and the whole. The share is None if the whole is 0.
    confidence : float
        Two-sided.

    Raises
    ------
    ConfigurationError
        `confidence` is not between 0 and 1, or `hits` is not between 0 and `of`.
    """
    from scipy.special import betaincinv

    check_options("proportion_interval", confidence)
    if not 0 <= hits <= of:
        raise ConfigurationError(
            f"The 'hits' parameter of proportion_interval must be between 0 and 'of', {of}. Got {hits} instead."
        )
    if of == 0:
        return no_interval(EXACT, [], "there are no rows to take a share of")
    tail = (1 - confidence) / 2
    low = float(betaincinv(hits, of - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, of - hits, 1 - tail)) if hits < of else 1.0
    return Interval(value=hits / of, low=low, high=high, method=EXACT, rows=of)


def bootstrap_interval(
    metric: Measure,
    labels: "NDArray[Any]",
    predictions: "NDArray[Any]",
    *,
    strata: "NDArray[Any] | None" = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    biased: bool = False,
) -> Interval:
    """Return a metric with bootstrap bounds: the same for the same seed and for any order of the rows.

    Percentiles, as in Efron and Tibshirani (1993), chapter 13.

    Parameters
    ----------
    metric : callable
        Takes labels and predictions, returns a float; NaN if it is undefined.
    labels : ndarray of shape (n_samples,)
    predictions : ndarray of shape (n_samples,) or (n_samples, n_outputs)
    strata : ndarray of shape (n_samples,) or None
        Resamples keep the number of rows of each value. None draws from all rows alike, which is right for a metric
        that depends on the classes' shares, as these vary by chance too.
    resamples : int
        At least 100.
    seed : int
    confidence : float
        Two-sided.
    biased : bool
        True if resampling shifts the metric, as it raises a calibration error; for a metric within 0 and 1. The bounds
        are then the outer ones of the percentiles and of their mirror images at the value.

    Returns
    -------
    Interval
        Without bounds if a stratum has fewer than five rows, a resample is undefined or all resamples are alike.

    Raises
    ------
    ConfigurationError
        `confidence` is not between 0 and 1, or `resamples` is too small.
    """
    check_options("bootstrap_interval", confidence, resamples)
    method = f"{'outer percentile' if biased else 'percentile'} {_bootstrap_name(strata, resamples)}"
    reason = estimates.rows_problem(labels, predictions)
    if reason:
        return no_interval(method, labels, reason)
    groups, labels, predictions = in_order(strata, labels, predictions)
    value, drawn, reason = _draw(lambda rows: metric(labels[rows], predictions[rows]), groups, resamples, seed)
    if not reason and drawn.min() == drawn.max():
        reason = NO_SPREAD
    if reason:
        return Interval(value=value, low=None, high=None, method=method, rows=len(labels), reason=reason)
    low, high = percentiles(drawn, confidence)
    if biased:
        low, high = max(0.0, min(low, 2 * value - high)), min(1.0, max(high, 2 * value - low))
    return Interval(value=value, low=min(low, value), high=max(high, value), method=method, rows=len(labels))


def bootstrap_difference(
    metric: Measure,
    labels: "NDArray[Any]",
    ours: "NDArray[Any]",
    theirs: "NDArray[Any]",
    *,
    better: Better = Better.MORE,
    strata: "NDArray[Any] | None" = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Return the gain of our predictions over theirs, with percentiles over resamples that both models share.

    Swapping the models changes the signs and nothing else.

    Parameters
    ----------
    metric, labels, strata, resamples, seed, confidence
        As in `bootstrap_interval`.
    ours, theirs : ndarray of shape (n_samples,) or (n_samples, n_outputs)
    better : Better
        The direction in which the metric improves.

    Returns
    -------
    Difference
        Without bounds as `bootstrap_interval`; models with equal answers differ by 0, with bounds of 0.

    Raises
    ------
    ConfigurationError
        `confidence` is not between 0 and 1, or `resamples` is too small.
    """
    import numpy as np

    check_options("bootstrap_difference", confidence, resamples)
    method = f"paired percentile {_bootstrap_name(strata, resamples)}"
    if reason := estimates.rows_problem(labels, ours) or estimates.rows_problem(labels, theirs):
        return no_difference(method, labels, reason)
    difference = partial(Difference, method=method, rows=len(labels))
    sign, groups, labels, first, second = in_pair_order(strata, labels, ours, theirs)
    if np.array_equal(first, second) and isfinite(metric(labels, first)):
        return difference(value=0.0, low=0.0, high=0.0, p_better=0.5)
    up = (sign or 1) * (1 if better is Better.MORE else -1)
    value, drawn, reason = _draw(
        lambda rows: up * (metric(labels[rows], first[rows]) - metric(labels[rows], second[rows])),
        groups,
        resamples,
        seed,
    )
    # If swapping the models gives the same rows, the differences are symmetric around 0.
    drawn = drawn if sign else np.concatenate([drawn, -drawn])
    if not reason and value != 0 and drawn.min() == drawn.max():
        reason = NO_SPREAD
    low = high = p_better = None
    if not reason:
        bounds = percentiles(drawn, confidence)
        low, high = min(bounds[0], value), max(bounds[1], value)
        # Half a draw on either side: no number of resamples makes a p-value of 0.
        p_better = float((0.5 + (drawn < 0).sum() + (drawn == 0).sum() / 2) / (1 + len(drawn)))
    return difference(value=value, low=low, high=high, p_better=p_better, reason=reason)


def _draw(measure: Any, groups: Any, resamples: int, seed: int) -> tuple[Any, Any, str]:
    """Return a measure of all rows, its values on the resamples, and why it has no bounds (empty if it has).

    The value is None if the measure is undefined on all rows.
    """
    import numpy as np

    value, smallest = measure(slice(None)), int(np.unique(groups, return_counts=True)[1].min())
    if not isfinite(value):
        return None, np.empty(0), "it is undefined on these rows"
    if smallest < MIN_ROWS:
        return value, np.empty(0), f"a bootstrap needs {MIN_ROWS} rows of each kind, and there are {smallest}"
    drawn = resampled(measure, groups, resamples, seed)
    undefined = int((~np.isfinite(drawn)).sum())
    return value, drawn, f"it is undefined on {undefined} of {resamples} resamples" if undefined else ""


def _bootstrap_name(strata: Any, resamples: int) -> str:
    return f"{'bootstrap' if strata is None else 'stratified bootstrap'}, {resamples} resamples"


def in_order(strata: "NDArray[Any] | None", *arrays: "NDArray[Any]") -> "tuple[NDArray[Any], ...]":
    """Return strata and arrays in an order of the rows that depends on their values alone.

    Parameters
    ----------
    strata : ndarray of shape (n_samples,) or None
        The first sort key. None makes all rows one stratum.
    *arrays : ndarray of shape (n_samples,) or (n_samples, n_columns)
    """
    import numpy as np

    groups = np.zeros(len(arrays[0])) if strata is None else strata
    keys = [groups, *(column for array in arrays for column in (array.T if array.ndim == 2 else [array]))]
    order = np.lexsort(keys[::-1])
    return groups[order], *(array[order] for array in arrays)


def in_pair_order(
    strata: "NDArray[Any] | None", labels: "NDArray[Any]", ours: "NDArray[Any]", theirs: "NDArray[Any]"
) -> tuple[int, Any, Any, Any, Any]:
    """Return a sign, strata, labels and two models' answers, so ordered that swapping the models flips only the sign.

    The sign is -1 if the models are returned swapped, and 0 if swapping them gives the same rows.
    """
    import numpy as np

    kind = np.result_type(ours, theirs)
    ours, theirs = (array.astype(kind) + kind.type(0) for array in (ours, theirs))  # one zero: the bytes are compared
    straight, swapped = in_order(strata, labels, ours, theirs), in_order(strata, labels, theirs, ours)
    ahead, behind = (b"".join(array.tobytes() for array in rows) for rows in (straight, swapped))
    sign = (ahead < behind) - (ahead > behind)
    groups, labels, first, second = swapped if sign < 0 else straight
    return sign, groups, labels, first, second


def resampled(
    measure: "Callable[[NDArray[Any]], float]", groups: "NDArray[Any]", resamples: int, seed: int
) -> "NDArray[Any]":
    """Return a measure of each resample; shape (resamples,).

    Parameters
    ----------
    measure : callable
        Takes row numbers, returns a float.
    groups : ndarray of shape (n_samples,)
        Sorted strata: a resample has the same number of rows of each.
    """
    import numpy as np

    _, first, group, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    start, size, random = first[group], sizes[group], np.random.default_rng(seed)
    return np.array([measure(start + (random.random(len(size)) * size).astype("int64")) for _ in range(resamples)])


def percentiles(drawn: "NDArray[Any]", confidence: float) -> tuple[float, float]:
    """Return the bounds of the middle share of the draws."""
    import numpy as np

    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low) + 0.0, float(high) + 0.0  # no minus zero
