"""Bounds of a share, and the bootstrap of any other metric and of a paired difference."""

from math import isfinite
from typing import TYPE_CHECKING, Any

from ml_platform.errors import ConfigurationError
from ml_platform.stages import _problems, _resampling
from ml_platform.stages._estimates import (
    CONFIDENCE,
    LEAST_ROWS,
    NO_SPREAD,
    RESAMPLES,
    Difference,
    Interval,
    check_options,
    no_difference,
    no_interval,
)
from ml_platform.stages._metrics import Better, Measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXACT = "Clopper-Pearson"


def proportion_interval(hits: int, of: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Return a share with exact binomial bounds: neither is wrong more often than it says.

    Parameters
    ----------
    hits, of : int
        The part and the whole. Without a whole, the share is None.
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
        return no_interval(EXACT, [], "there is nothing that it could be a share of")
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
    """Return a metric with the bounds of a bootstrap: the same for the same seed and for any order of the rows.

    Parameters
    ----------
    metric : callable
        Takes labels and predictions, returns a float; NaN where it is undefined.
    labels : ndarray of shape (n_samples,)
    predictions : ndarray of shape (n_samples,) or (n_samples, n_outputs)
    strata : ndarray of shape (n_samples,) or None
        Resamples keep the number of rows of each value. None draws from all rows alike, as is right where the classes'
        shares are chance too and the metric depends on them.
    resamples : int
        At least 100.
    seed : int
    confidence : float
        Two-sided.
    biased : bool
        Whether resampling moves the metric, as it raises a calibration error; for a metric within 0 and 1. The bounds
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
    reason = _problems.rows_problem(labels, predictions)
    if reason:
        return no_interval(method, labels, reason)
    groups, labels, predictions = _resampling.in_order(strata, labels, predictions)
    value, drawn, reason = _draws(lambda rows: metric(labels[rows], predictions[rows]), groups, resamples, seed)
    if not reason and drawn.min() == drawn.max():
        reason = NO_SPREAD
    if reason:
        return Interval(value=value, low=None, high=None, method=method, rows=len(labels), reason=reason)
    low, high = _resampling.percentiles(drawn, confidence)
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
    """Return how much better our predictions are than theirs: percentiles over resamples that both models share.

    Swapping the models turns the signs and nothing else.

    Parameters
    ----------
    metric, labels, strata, resamples, seed, confidence
        As in `bootstrap_interval`.
    ours, theirs : ndarray of shape (n_samples,) or (n_samples, n_outputs)
    better : Better
        Which way the metric is better.

    Returns
    -------
    Difference
        Without bounds as `bootstrap_interval`; models that answer alike differ by 0, with bounds of 0.

    Raises
    ------
    ConfigurationError
        `confidence` is not between 0 and 1, or `resamples` is too small.
    """
    import numpy as np

    check_options("bootstrap_difference", confidence, resamples)
    method = f"paired percentile {_bootstrap_name(strata, resamples)}"
    reason = _problems.rows_problem(labels, ours) or _problems.rows_problem(labels, theirs)
    if reason:
        return no_difference(method, labels, reason)
    sign, groups, labels, first, second = _resampling.turned(strata, labels, ours, theirs)
    if np.array_equal(first, second) and isfinite(metric(labels, first)):
        return Difference(value=0.0, low=0.0, high=0.0, p_better=0.5, method=method, rows=len(labels))
    up = (sign or 1) * (1 if better is Better.MORE else -1)

    def gain(rows: Any) -> float:
        return up * (metric(labels[rows], first[rows]) - metric(labels[rows], second[rows]))

    value, drawn, reason = _draws(gain, groups, resamples, seed)
    # Models that mirror each other on these rows have differences that lie alike on both sides of 0.
    drawn = drawn if sign else np.concatenate([drawn, -drawn])
    return _gain(value, drawn, reason, method, len(labels), confidence)


def _gain(value: Any, drawn: Any, reason: str, method: str, rows: int, confidence: float) -> Difference:
    if not reason and value != 0 and drawn.min() == drawn.max():
        reason = NO_SPREAD
    if reason:
        return Difference(value=value, low=None, high=None, p_better=None, method=method, rows=rows, reason=reason)
    low, high = _resampling.percentiles(drawn, confidence)
    # Half a draw on either side: no number of resamples makes a p-value of 0.
    p_better = float((0.5 + (drawn < 0).sum() + (drawn == 0).sum() / 2) / (1 + len(drawn)))
    return Difference(
        value=value, low=min(low, value), high=max(high, value), p_better=p_better, method=method, rows=rows
    )


def _draws(measure: Any, groups: Any, resamples: int, seed: int) -> tuple[Any, Any, str]:
    """Return a measure of all rows, of each resample, and why it cannot be bounded; None and nothing if undefined."""
    import numpy as np

    value, smallest = measure(slice(None)), int(np.unique(groups, return_counts=True)[1].min())
    if not isfinite(value):
        return None, np.empty(0), "it is undefined on these rows"
    if smallest < LEAST_ROWS:
        return value, np.empty(0), f"a bootstrap needs {LEAST_ROWS} rows of each kind, and there are {smallest}"
    drawn = _resampling.resampled(measure, groups, resamples, seed)
    undefined = int((~np.isfinite(drawn)).sum())
    return value, drawn, f"it is undefined on {undefined} of {resamples} resamples" if undefined else ""


def _bootstrap_name(strata: Any, resamples: int) -> str:
    return f"{'bootstrap' if strata is None else 'stratified bootstrap'}, {resamples} resamples"
