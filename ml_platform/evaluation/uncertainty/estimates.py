"""Intervals and differences, and the reasons why rows give none."""

from dataclasses import dataclass
from typing import Any

from ml_platform.errors import ConfigurationError

CONFIDENCE = 0.90
RESAMPLES = 1_000
MIN_RESAMPLES = 100
MIN_ROWS = 5

NO_SPREAD = "every resample gives the same number, so the rows give no bounds"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A metric with its bounds.

    Parameters
    ----------
    value : float or None
        The metric on the rows. None if it is undefined.
    low, high : float or None
        Two-sided bounds at the caller's confidence: at 0.90, the default, `low` alone and `high` alone are one-sided
        95 % bounds. None if the rows give no bounds.
    method : str
        The method that gave the bounds.
    rows : int
        The number of rows behind the bounds: the denominator of a share, else all.
    reason : str
        Why a number is None; empty if none is.
    """

    value: float | None
    low: float | None
    high: float | None
    method: str
    rows: int
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The gain of our model over theirs on the same rows.

    Parameters
    ----------
    value : float or None
        Ours minus theirs for a metric that improves upwards, else theirs minus ours: above 0, ours is better.
    low, high : float or None
        Two-sided bounds, as in `Interval`. `low` above a minimum gain is evidence of that gain; `low` above minus a
        margin is evidence that ours is not worse by more than the margin.
    p_better : float or None
        One-sided p-value of "ours is not better": small if ours is. Two models with equal answers have 0.5.
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


def check_options(function: str, confidence: float, resamples: int = MIN_RESAMPLES) -> None:
    """Raise a ConfigurationError for a confidence outside 0 to 1 or too few resamples; it names `function`."""
    if not 0 < confidence < 1:
        raise ConfigurationError(
            f"The 'confidence' parameter of {function} must be between 0 and 1. Got {confidence!r} instead."
        )
    if resamples < MIN_RESAMPLES:
        raise ConfigurationError(
            f"The 'resamples' parameter of {function} must be at least {MIN_RESAMPLES}. Got {resamples!r} instead."
        )


def no_interval(method: str, rows: Any, reason: str) -> Interval:
    """Return an interval without numbers and the reason."""
    return Interval(value=None, low=None, high=None, method=method, rows=len(rows), reason=reason)


def no_difference(method: str, rows: Any, reason: str) -> Difference:
    """Return a difference without numbers and the reason."""
    return Difference(value=None, low=None, high=None, p_better=None, method=method, rows=len(rows), reason=reason)


def rows_problem(labels: Any, answers: Any) -> str:
    """Return the problem of labels and answers that are missing or not finite; an empty text if there is none."""
    import numpy as np

    if not len(labels):
        return "there are no rows"
    if len(answers) != len(labels):
        return f"the model answers for {len(answers)} rows of {len(labels)}"
    for name, array in (("labels", labels), ("answers", answers)):
        if array.dtype.kind not in "biuf":
            return f"the {name} are no numbers"
        if not np.isfinite(array).all():
            return f"not all {name} are finite"
    return ""


def _classes_problem(name: str, numbers: Any, classes: int) -> str:
    import numpy as np

    outside = ~np.isin(numbers, np.arange(classes))
    return f"the {name} must be 0 to {classes - 1}, and {numbers[outside][0]} is among them" if outside.any() else ""


def ranks_problem(labels: Any, scores: Any) -> str:
    """Return the reason for undefined areas under ROC curves or variances; an empty text if they are defined."""
    import numpy as np

    classes = scores.shape[1] if scores.ndim == 2 else 2
    reason = rows_problem(labels, scores) or _classes_problem("labels", labels, classes)
    if reason:
        return reason
    counts = np.bincount(labels.astype("int64"), minlength=classes)
    if np.count_nonzero(counts) == 1:
        return "the rows hold one class only"
    return f"each class needs 2 rows, and one has {counts.min()}" if counts.min() < 2 else ""


def answers_problem(task: str, reads: str, labels: Any, answers: Any) -> str:
    """Return the problem of answers that a task's metric cannot read; an empty text if there is none.

    `reads` is "predictions" or "probabilities".
    """
    if answers is None:
        return f"the model gives no {reads}"
    reason = rows_problem(labels, answers)
    if reason or task == "regression":
        return reason
    if reads == "probabilities":
        return _probabilities_problem(labels, answers)
    classes = 2 if task == "binary" else int(max(labels.max(), answers.max(), 0)) + 1
    return _classes_problem("labels", labels, classes) or _classes_problem("predictions", answers, classes)


def _probabilities_problem(labels: Any, probabilities: Any) -> str:
    import numpy as np

    if probabilities.min() < 0 or probabilities.max() > 1:
        return "the probabilities must be 0 to 1"
    if probabilities.ndim == 1:
        return _classes_problem("labels", labels, 2)
    if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-6):
        return "the probabilities of a row must sum to 1"
    return _classes_problem("labels", labels, probabilities.shape[1])
