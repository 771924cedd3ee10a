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
from typing import TYPE_CHECKING, Any, Literal

from ml_platform.errors import ConfigurationError
from ml_platform.stages import _problems
from ml_platform.stages._areas import auc_difference, auc_interval
from ml_platform.stages._bootstrap import bootstrap_difference, bootstrap_interval, proportion_interval
from ml_platform.stages._estimates import (
    CONFIDENCE,
    RESAMPLES,
    Difference,
    Interval,
    check_options,
    no_difference,
    no_interval,
)
from ml_platform.stages._metrics import CATALOGUE, Better, Metric

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
    "figures",
    "proportion_interval",
]

Task = Literal["binary", "multiclass", "regression"]


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
    check_options("figures", confidence, resamples)
    options = {"confidence": confidence, "resamples": resamples, "seed": seed}
    found = {}
    for name, metric in _catalogue(task).items():
        (given,), reason = _given(task, metric, labels, answers)
        found[name] = no_interval("", labels, reason) if reason else _figure(metric, labels, given, options)
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
    check_options("differences", confidence, resamples)
    options = {"confidence": confidence, "resamples": resamples, "seed": seed}
    found = {}
    for name, metric in _catalogue(task).items():
        pair, reason = _given(task, metric, labels, ours, theirs)
        found[name] = no_difference("", labels, reason) if reason else _compared(metric, labels, *pair, options=options)
    return found


def _given(task: str, metric: Metric, labels: Any, *answers: Answers) -> tuple[list[Any], str]:
    """Return what a metric reads of answers, and the first reason why it cannot; empty if there is none."""
    given = [getattr(each, metric.reads) for each in answers]
    reasons = (_problems.answers_problem(task, metric.reads, labels, each) for each in given)
    return given, next(filter(None, reasons), "")


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
