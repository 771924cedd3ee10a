"""Areas under ROC curves and their standard errors, by midranks: arrays of shape (n_samples, n_columns).

A column is one question, "is the row of this class?": one for two classes, one a class for more. `sides` says whether
it is; `wins` counts the rows of the other side that a row stands on the right side of, a tie half: exact in floats.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def sides_of(labels: "NDArray[Any]", scores: "NDArray[Any]") -> "NDArray[Any]":
    """Return whether each row is of a column's class; scores of one dimension speak for the class 1."""
    import numpy as np

    classes = np.arange(scores.shape[1]) if scores.ndim == 2 else np.ones(1)
    return np.asarray(labels[:, None] == classes)


def midranks(values: "NDArray[Any]") -> "NDArray[Any]":
    """Return the rank of each value from 1, equal values at the middle of their ranks; shape (n,)."""
    import numpy as np

    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def wins_of(sides: "NDArray[Any]", scores: "NDArray[Any]") -> "NDArray[Any]":
    """Return the wins of each row in each column."""
    import numpy as np

    found = np.empty(sides.shape)
    for column, positive in enumerate(sides.T):
        own = scores if scores.ndim == 1 else scores[:, column]
        ranks = midranks(own)
        found[positive, column] = ranks[positive] - midranks(own[positive])
        found[~positive, column] = positive.sum() - (ranks[~positive] - midranks(own[~positive]))
    return found


def mean_area(sides: "NDArray[Any]", wins: "NDArray[Any]") -> float:
    """Return the mean of the columns' areas; of their differences, where `wins` are differences."""
    return float(((wins * sides).sum(axis=0) / _all_pairs(sides)).mean())


def standard_error(labels: "NDArray[Any]", sides: "NDArray[Any]", wins: "NDArray[Any]") -> float:
    """Return DeLong's standard error of `mean_area`; 0 only where nothing varies. Each label needs two rows."""
    import numpy as np

    if not any(np.ptp(w[side]) for w, s in zip(wins.T, sides.T, strict=True) for side in (s, ~s)):
        return 0.0
    influence = (wins / _all_pairs(sides)).mean(axis=1)
    classes = [influence[labels == label] for label in np.unique(labels)]
    return float(np.sqrt(sum(len(rows) * rows.var(ddof=1) for rows in classes)))


def _all_pairs(sides: "NDArray[Any]") -> "NDArray[Any]":
    import numpy as np

    positives = sides.sum(axis=0)
    return np.asarray(positives * (len(sides) - positives))


def independent_pairs(sides: "NDArray[Any]") -> int:
    """Return how many pairs can be made that share no row, in the column that has fewest."""
    import numpy as np

    positives = sides.sum(axis=0)
    return int(np.minimum(positives, len(sides) - positives).min())
