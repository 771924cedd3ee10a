"""What an interval and a difference are, and what cannot be told."""

from dataclasses import dataclass
from typing import Any

from ml_platform.errors import ConfigurationError

CONFIDENCE = 0.90
RESAMPLES = 1_000
LEAST_RESAMPLES = 100
LEAST_ROWS = 5

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


def check_options(function: str, confidence: float, resamples: int = LEAST_RESAMPLES) -> None:
    """Refuse a confidence that is no share, or too few resamples; `function` is the name that the error says."""
    if not 0 < confidence < 1:
        raise ConfigurationError(
            f"The 'confidence' parameter of {function} must be between 0 and 1. Got {confidence!r} instead."
        )
    if resamples < LEAST_RESAMPLES:
        raise ConfigurationError(
            f"The 'resamples' parameter of {function} must be at least {LEAST_RESAMPLES}. Got {resamples!r} instead."
        )


def no_interval(method: str, rows: Any, reason: str) -> Interval:
    """Return an interval without numbers, for a reason."""
    return Interval(value=None, low=None, high=None, method=method, rows=len(rows), reason=reason)


def no_difference(method: str, rows: Any, reason: str) -> Difference:
    """Return a difference without numbers, for a reason."""
    return Difference(value=None, low=None, high=None, p_better=None, method=method, rows=len(rows), reason=reason)
