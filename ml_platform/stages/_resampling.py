"""Resamples of rows: the same for the same seed, whatever order the rows came in."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def in_order(strata: "NDArray[Any] | None", *arrays: "NDArray[Any]") -> "tuple[NDArray[Any], ...]":
    """Return strata and arrays in an order of the rows that depends on nothing but what the rows hold.

    Parameters
    ----------
    strata : ndarray of shape (n_samples,) or None
        They are sorted first. None makes all rows one stratum.
    *arrays : ndarray of shape (n_samples,) or (n_samples, n_columns)
    """
    import numpy as np

    groups = np.zeros(len(arrays[0])) if strata is None else strata
    keys = [groups, *(column for array in arrays for column in (array.T if array.ndim == 2 else [array]))]
    order = np.lexsort(keys[::-1])
    return groups[order], *(array[order] for array in arrays)


def turned(
    strata: "NDArray[Any] | None", labels: "NDArray[Any]", ours: "NDArray[Any]", theirs: "NDArray[Any]"
) -> tuple[int, Any, Any, Any, Any]:
    """Return a sign, strata, labels and two models' answers, ordered so that swapping the models turns only the sign.

    The sign is -1 where the models come back swapped, and 0 where swapping them gives the same rows.
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
    """Return what a measure says of each resample; shape (resamples,).

    Parameters
    ----------
    measure : callable
        Takes row numbers, returns a float.
    groups : ndarray of shape (n_samples,)
        Sorted strata: a resample has as many rows of each.
    """
    import numpy as np

    _, first, group, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    start, size, random = first[group], sizes[group], np.random.default_rng(seed)
    return np.array([measure(start + (random.random(len(size)) * size).astype("int64")) for _ in range(resamples)])


def percentiles(drawn: "NDArray[Any]", confidence: float) -> tuple[float, float]:
    """Return the bounds between which the middle share of the draws lies."""
    import numpy as np

    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low) + 0.0, float(high) + 0.0  # no minus zero
