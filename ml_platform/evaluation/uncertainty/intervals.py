"""Metrics with their uncertainty, and paired differences of two models on the same rows.

The functions take plain arrays and no spec. Values are scikit-learn's. A number that the rows do not determine is None,
with the reason. Rows count as independent of each other: if an entity has many rows, the bounds are too narrow.

Bounds of areas under ROC curves follow DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988) by the midranks of Sun
and Xu (IEEE Signal Processing Letters 21, 2014); shares follow Clopper and Pearson (Biometrika 26, 1934); F1 follows
Lam, Gopal and Qian (arXiv:2309.14621), as F / (2 - F) is a share; other metrics have a bootstrap (Efron and Tibshirani,
1993). `docs/decisions/0014-intervals.md` explains the choice, with measured error rates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ml_platform.errors import ConfigurationError
from ml_platform.evaluation.metrics import CATALOGUE, Better, Metric
from ml_platform.evaluation.uncertainty import estimates
from ml_platform.evaluation.uncertainty.bootstrap import (
    bootstrap_difference,
    bootstrap_interval,
    in_order,
    proportion_interval,
)
from ml_platform.evaluation.uncertainty.delong import auc_difference, auc_interval
from ml_platform.evaluation.uncertainty.estimates import (
    CONFIDENCE,
    RESAMPLES,
    Difference,
    Interval,
    check_options,
    no_difference,
    no_interval,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CATALOGUE",
    "RESAMPLES",
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
    "measurements",
    "proportion_interval",
]

Task = Literal["binary", "multiclass", "regression"]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A model's answers for some rows.

    Parameters
    ----------
    predictions : ndarray of shape (n_samples,)
        0 and 1, at the model's own threshold; class numbers from 0; or values in the label's unit.
    probabilities : ndarray of shape (n_samples,) of class 1, or (n_samples, n_classes); or None
        None if the model gives none: the metrics that need them are then None.
    """

    predictions: "NDArray[Any]"
    probabilities: "NDArray[Any] | None" = None


def measurements(
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
        0 and 1; class numbers from 0; or values.
    answers : Answers
    confidence, resamples, seed
        As in `bootstrap_interval`.

    Raises
    ------
    ConfigurationError
        `task` has no catalogue, `confidence` is not between 0 and 1, or `resamples` is too small.
    """
    check_options("measurements", confidence, resamples)
    options = {"confidence": confidence, "resamples": resamples, "seed": seed}
    result = {}
    for name, metric in _catalogue(task).items():
        (given,), reason = _read_answers(task, metric, labels, answers)
        result[name] = no_interval("", labels, reason) if reason else _measurement(metric, labels, given, options)
    return result


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
    """Return the gain of our answers over theirs for every metric of a task, by name.

    The differences are those of the kernels that are resampled; they agree with scikit-learn's to rounding.

    Parameters
    ----------
    ours, theirs : Answers
        For the same rows.
    task, labels, confidence, resamples, seed
        As in `measurements`.

    Raises
    ------
    ConfigurationError
        As `measurements`.
    """
    check_options("differences", confidence, resamples)
    result = {}
    for name, metric in _catalogue(task).items():
        (mine, others), reason = _read_answers(task, metric, labels, ours, theirs)
        if reason:
            result[name] = no_difference("", labels, reason)
        elif metric.kernel is None:
            result[name] = auc_difference(labels, mine, others, confidence=confidence)
        else:
            result[name] = bootstrap_difference(
                metric.kernel,
                labels,
                mine,
                others,
                better=metric.better,
                strata=labels if metric.stratified else None,
                resamples=resamples,
                seed=seed,
                confidence=confidence,
            )
    return result


def _read_answers(task: str, metric: Metric, labels: Any, *answers: Answers) -> tuple[list[Any], str]:
    """Return the predictions or probabilities that a metric reads, and why it cannot (empty if it can)."""
    arrays = [getattr(each, metric.reads) for each in answers]
    reasons = (estimates.answers_problem(task, metric.reads, labels, each) for each in arrays)
    return arrays, next(filter(None, reasons), "")


def _catalogue(task: str) -> Mapping[str, Metric]:
    if task not in CATALOGUE:
        raise ConfigurationError(f"The 'task' parameter must be one of {sorted(CATALOGUE)}. Got {task!r} instead.")
    return CATALOGUE[task]


def _measurement(metric: Metric, labels: Any, answers: Any, options: dict[str, Any]) -> Interval:
    """Return a metric with scikit-learn's value, between the bounds of its method."""
    if metric.kernel is None:
        interval = auc_interval(labels, answers, confidence=options["confidence"])
    elif metric.counts is None:
        strata = labels if metric.stratified else None
        interval = bootstrap_interval(metric.kernel, labels, answers, strata=strata, biased=metric.biased, **options)
    else:
        interval = proportion_interval(*metric.counts(labels, answers), confidence=options["confidence"])
    if interval.value is None:
        return interval
    # In one order of the rows: floating-point sums depend on it.
    _, labels, answers = in_order(None, labels, answers)
    value = metric.score(labels, answers)
    low, high = interval.low, interval.high
    if low is not None and high is not None:
        if metric.from_share is not None:
            low, high = metric.from_share(low), metric.from_share(high)
        low, high = min(low, value), max(high, value)
    return replace(interval, value=value, low=low, high=high)
