"""Metrics with the uncertainty that their rows leave, and paired differences of two models on the same rows.

Plain arrays in, no spec. What cannot be told is None, with the reason beside it: no function makes a number up. Rows
count as independent of each other: a holdout with many rows of one entity has less to say than its bounds claim.

Areas under ROC curves follow DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988) by the midranks of Sun and Xu
(IEEE Signal Processing Letters 21, 2014); shares follow Clopper and Pearson (Biometrika 26, 1934); F1 follows Lam,
Gopal and Qian (arXiv:2309.14621), as F / (2 - F) is a share; all else is a bootstrap (Efron and Tibshirani, 1993).
`docs/decisions/0014-intervals.md` says why, with the error rates that were measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import exp, isfinite, log
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

from ml_platform.errors import ConfigurationError
from ml_platform.stages import _problems, _ranks, _resampling
from ml_platform.stages._metrics import CATALOGUE, Better, Measure, Metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CATALOGUE",
    "Answers",
    "Better",
    "Difference",
    "Interval",
    "Metric",
    "auc_difference",
    "auc_interval",
    "bootstrap_difference",
    "bootstrap_interval",
    "differences",
    "figures",
    "proportion_interval",
]

Task = Literal["binary", "multiclass", "regression"]

CONFIDENCE = 0.90
RESAMPLES = 1_000
LEAST_RESAMPLES = 100
LEAST_ROWS = 5

DELONG = "DeLong, logit"
PAIRED_DELONG = "paired DeLong"
PAIRS = "independent pairs"
EXACT = "Clopper-Pearson"

NO_SPREAD = "every resample gives the same number, so the rows do not show how far it may be off"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A metric and where it may lie.

    Parameters
    ----------
    value : float or None
        The metric on the rows, as scikit-learn computes it. None where it is undefined.
    low, high : float or None
        Two-sided bounds at the confidence that the caller gave: at 0.90, the default, `low` alone and `high` alone
        are one-sided 95 % bounds. None where the rows do not tell.
    method : str
        How the bounds were found.
    rows : int
        How many rows the bounds rest on: the denominator of a share, else all.
    reason : str
        Why a number is None; empty where all are there.
    """

    value: float | None
    low: float | None
    high: float | None
    method: str
    rows: int
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better our model is than theirs on the same rows.

    Parameters
    ----------
    value : float or None
        Ours minus theirs where more is better, theirs minus ours where less is: above 0, ours is better.
    low, high : float or None
        Two-sided bounds, as in `Interval`. `low` above a minimum gain is evidence of that gain; `low` above minus a
        margin is evidence that ours is not worse by more than the margin.
    p_better : float or None
        One-sided p-value of "ours is not better": small where ours is. Two models that answer alike have 0.5.
    method, rows, reason
        As in `Interval`.
    """

    value: float | None
    low: float | None
    high: float | None
    p_better: float | None
    method: str
    rows: int
    reason: str = ""


# --- areas under ROC curves ---------------------------------------------------------------------------------------


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
    _check("auc_interval", confidence)
    reason = _problems.ranks_problem(labels, scores)
    return _no_interval(DELONG, labels, reason) if reason else _area(labels, scores, confidence)


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
    _check("auc_difference", confidence)
    reason = _problems.ranks_problem(labels, ours) or _problems.ranks_problem(labels, theirs)
    if not reason and ours.shape != theirs.shape:
        reason = f"the two models answer with shapes {ours.shape} and {theirs.shape}"
    if reason:
        return _no_difference(PAIRED_DELONG, labels, reason)
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


# --- shares of a whole --------------------------------------------------------------------------------------------


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

    _check("proportion_interval", confidence)
    if not 0 <= hits <= of:
        raise ConfigurationError(
            f"The 'hits' parameter of proportion_interval must be between 0 and 'of', {of}. Got {hits} instead."
        )
    if of == 0:
        return _no_interval(EXACT, [], "there is nothing that it could be a share of")
    tail = (1 - confidence) / 2
    low = float(betaincinv(hits, of - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, of - hits, 1 - tail)) if hits < of else 1.0
    return Interval(value=hits / of, low=low, high=high, method=EXACT, rows=of)


# --- the bootstrap ------------------------------------------------------------------------------------------------


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
    _check("bootstrap_interval", confidence, resamples)
    method = f"{'outer percentile' if biased else 'percentile'} {_bootstrap_name(strata, resamples)}"
    reason = _problems.rows_problem(labels, predictions)
    if reason:
        return _no_interval(method, labels, reason)
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

    _check("bootstrap_difference", confidence, resamples)
    method = f"paired percentile {_bootstrap_name(strata, resamples)}"
    reason = _problems.rows_problem(labels, ours) or _problems.rows_problem(labels, theirs)
    if reason:
        return _no_difference(method, labels, reason)
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


# --- the metrics of each task -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model says of some rows.

    Parameters
    ----------
    predictions : ndarray of shape (n_samples,)
        0 and 1, at the model's own threshold; the numbers of classes, from 0; or values in the label's unit.
    probabilities : ndarray of shape (n_samples,) of class 1, or (n_samples, n_classes); or None
        None where the model gives none: the metrics that need them are then None.
    """

    predictions: "NDArray[Any]"
    probabilities: "NDArray[Any] | None" = None


def figures(
    task: Task,
    labels: "NDArray[Any]",
    answers: Answers,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return every metric of a task with its bounds, by name.

    Parameters
    ----------
    task : "binary", "multiclass" or "regression"
    labels : ndarray of shape (n_samples,)
        0 and 1; the numbers of classes, from 0; or values.
    answers : Answers
    confidence, resamples, seed
        As in `bootstrap_interval`.

    Raises
    ------
    ConfigurationError
        `task` has no catalogue, `confidence` is not between 0 and 1, or `resamples` is too small.
    """
    _check("figures", confidence, resamples)
    options = {"confidence": confidence, "resamples": resamples, "seed": seed}
    found = {}
    for name, metric in _catalogue(task).items():
        given = getattr(answers, metric.reads)
        reason = _problems.answers_problem(task, metric.reads, labels, given)
        found[name] = _no_interval("", labels, reason) if reason else _figure(metric, labels, given, options)
    return found


def differences(
    task: Task,
    labels: "NDArray[Any]",
    ours: Answers,
    theirs: Answers,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Return how much better our answers are than theirs, for every metric of a task, by name.

    Parameters
    ----------
    ours, theirs : Answers
        For the same rows.
    task, labels, confidence, resamples, seed
        As in `figures`.

    Raises
    ------
    ConfigurationError
        As `figures`.
    """
    _check("differences", confidence, resamples)
    options = {"confidence": confidence, "resamples": resamples, "seed": seed}
    found = {}
    for name, metric in _catalogue(task).items():
        pair = getattr(ours, metric.reads), getattr(theirs, metric.reads)
        reason = next(
            filter(None, (_problems.answers_problem(task, metric.reads, labels, given) for given in pair)), ""
        )
        found[name] = (
            _no_difference("", labels, reason) if reason else _compared(metric, labels, *pair, options=options)
        )
    return found


def _catalogue(task: str) -> Mapping[str, Metric]:
    if task not in CATALOGUE:
        raise ConfigurationError(f"The 'task' parameter must be one of {sorted(CATALOGUE)}. Got {task!r} instead.")
    return CATALOGUE[task]


def _figure(metric: Metric, labels: Any, answers: Any, options: dict[str, Any]) -> Interval:
    if metric.ranks:
        return auc_interval(labels, answers, confidence=options["confidence"])
    if metric.counts is None:
        strata = labels if metric.stratified else None
        return bootstrap_interval(metric.of, labels, answers, strata=strata, biased=metric.biased, **options)
    found = proportion_interval(*metric.counts(labels, answers), confidence=options["confidence"])
    turn = metric.from_share
    if turn is None or found.value is None or found.low is None or found.high is None:
        return found
    return replace(found, value=turn(found.value), low=turn(found.low), high=turn(found.high))


def _compared(metric: Metric, labels: Any, ours: Any, theirs: Any, *, options: dict[str, Any]) -> Difference:
    if metric.ranks:
        return auc_difference(labels, ours, theirs, confidence=options["confidence"])
    strata = labels if metric.stratified else None
    return bootstrap_difference(metric.of, labels, ours, theirs, better=metric.better, strata=strata, **options)


# --- what cannot be told ------------------------------------------------------------------------------------------


def _check(function: str, confidence: float, resamples: int = LEAST_RESAMPLES) -> None:
    if not 0 < confidence < 1:
        raise ConfigurationError(
            f"The 'confidence' parameter of {function} must be between 0 and 1. Got {confidence!r} instead."
        )
    if resamples < LEAST_RESAMPLES:
        raise ConfigurationError(
            f"The 'resamples' parameter of {function} must be at least {LEAST_RESAMPLES}. Got {resamples!r} instead."
        )


def _no_interval(method: str, rows: Any, reason: str) -> Interval:
    return Interval(value=None, low=None, high=None, method=method, rows=len(rows), reason=reason)


def _no_difference(method: str, rows: Any, reason: str) -> Difference:
    return Difference(value=None, low=None, high=None, p_better=None, method=method, rows=len(rows), reason=reason)
