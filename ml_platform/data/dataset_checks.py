"""Checks on a pinned dataset: volume, balance, leakage."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ml_platform.data.datasets import split
from ml_platform.model_spec import ModelSpec, Task
from ml_platform.records.data import DatasetVersion

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

# A single feature with this score is probably derived from the label.
GIVEAWAY = 0.99
MIN_ROWS_PER_CATEGORY = 5
# Number of equal-sized bins of a numeric feature when it is tested against more than two classes.
BINS = 200


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """Size, balance and problems of a dataset version before training.

    `share_positive` is None except for binary tasks. `problems` gives, by check, the reasons that block training; it is
    empty if training may start.
    """

    dataset: DatasetVersion
    training_rows: int
    holdout_rows: int
    share_positive: float | None
    problems: dict[str, str]


def build_dataset_report(
    dataset: DatasetVersion, rows: "pd.DataFrame", labels: "NDArray[Any]", spec: ModelSpec
) -> DatasetReport:
    """Check a dataset version's size, class balance, split and features, given its labels as training uses them."""
    training, holdout = split(rows, spec)
    # A split by time separates an entity's rows by their times, if it has several.
    keys = [spec.entity, spec.event_time] if (spec.rows, spec.split) == ("all", "time") else [spec.entity]
    shared = training[keys].drop_duplicates().merge(holdout[keys].drop_duplicates())
    leaks = find_leaking_features(rows[spec.features], labels, spec.task)
    problems = {}
    if len(rows) < spec.min_rows or not len(training) or not len(holdout):
        problems["min_rows"] = f"it has {len(rows)} rows, at least {spec.min_rows} are required"
    if imbalance := _describe_imbalance(labels, spec):
        problems["class_balance"] = imbalance
    if len(shared):
        problems["disjoint_split"] = f"{len(shared)} entities are in both the training rows and the holdout"
    if leaks:
        scores = ", ".join(f"{name} ({score:.3f})" for name, score in leaks.items())
        problems["leakage"] = f"a single feature gives the label away: {scores}"
    return DatasetReport(
        dataset=dataset,
        training_rows=len(training),
        holdout_rows=len(holdout),
        share_positive=_share_positive(labels) if spec.task == "binary" else None,
        problems=problems,
    )


def _share_positive(labels: "NDArray[Any]") -> float:
    return float(labels.mean()) if len(labels) else 0.0


def _describe_imbalance(labels: "NDArray[Any]", spec: ModelSpec) -> str:
    """Return the reason why the labels vary too little for training; an empty string if they vary enough."""
    import numpy as np

    values, counts = np.unique(labels, return_counts=True)
    if spec.task == "regression":
        return "" if len(values) > 1 else "its label never varies"
    minimum, share = spec.min_class_share, _share_positive(labels) if spec.task == "binary" else 0.0
    if spec.task == "binary" and min(share, 1 - share) < minimum:
        return f"{share:.1%} of its rows are positive, a class must have at least {minimum:.1%}"
    if spec.task == "multiclass" and len(values) < 3:
        return f"it has {len(values)} classes, the multiclass task needs at least three"
    if spec.task == "multiclass" and counts.min() < minimum * len(labels):
        rarest, rare = values[counts.argmin()], counts.min() / len(labels)
        return f"{rare:.1%} of its rows are {rarest}, a class must have at least {minimum:.1%}"
    return ""


def find_leaking_features(features: "pd.DataFrame", labels: "NDArray[Any]", task: Task = "binary") -> dict[str, float]:
    """Return the features that predict the label almost perfectly on their own, with their scores.

    A feature leaks if its score is at least `GIVEAWAY`. The score of a numeric feature is its AUC, in the better
    direction, for two classes, and its absolute rank correlation for a numeric label. The score of a categorical
    feature, or of a binned numeric one for more than two classes, is the accuracy of predicting each category's
    majority class, provided that it removes at least half of the errors of the overall majority; for a numeric label it
    is the share of variance between the categories.

    Parameters
    ----------
    features : DataFrame of shape (n_samples, n_features)
    labels : ndarray of shape (n_samples,)
        0 and 1, classes, or numbers.
    task : "binary", "multiclass" or "regression"

    Returns
    -------
    dict
        AUC, accuracy, rank correlation or share of variance by column.
    """
    import pandas as pd

    label = pd.Series(labels, index=features.index)
    if label.nunique() < 2:
        return {}
    scores = {str(name): _score_leak(column, label, task) for name, column in features.items()}
    return {name: score for name, score in scores.items() if score >= GIVEAWAY}


def _score_leak(column: "pd.Series[Any]", label: "pd.Series[Any]", task: Task) -> float:
    """Return the score of one feature as a predictor of the label, 0 to 1; see `find_leaking_features`."""
    import pandas as pd
    from pandas.api.types import is_numeric_dtype

    numeric = is_numeric_dtype(column)
    if task == "binary" and numeric:
        # The Mann-Whitney form of the AUC, by mean ranks: Hanley and McNeil, Radiology 143 (1982), 29-36.
        ranks, positives = column.rank(), int(label.sum())
        pairs = positives * (len(column) - positives)
        area = (ranks[label == 1].sum() - positives * (positives + 1) / 2) / pairs
        return float(max(area, 1 - area))
    if task == "regression" and numeric:
        ranks = column.astype("float64").rank()
        return 0.0 if ranks.nunique() < 2 else abs(float(ranks.corr(label.rank())))
    bins = min(BINS, len(column) // MIN_ROWS_PER_CATEGORY)
    if numeric:
        binned = column if column.nunique() <= bins else pd.qcut(column.astype("float64"), bins, duplicates="drop")
        column = binned.astype("str")
    if column.nunique() * MIN_ROWS_PER_CATEGORY > len(column):
        return 0.0  # categories of about one row each predict their own label
    if task == "regression":
        return float(label.groupby(column.fillna("")).transform("mean").var() / label.var())
    table = pd.crosstab(column.fillna(""), label)
    accuracy, base = table.max(axis=1).sum() / len(label), table.sum().max() / len(label)
    return float(accuracy) if accuracy >= (1 + base) / 2 else 0.0


def target(rows: "pd.DataFrame", spec: ModelSpec) -> "NDArray[Any]":
    """Return the training target, shape (n_samples,).

    For ``binary``, int64: 1 where the label equals `spec.positive`, else 0. For ``multiclass``, the label as text or
    integers. For ``regression``, float64.
    """
    labels = rows[spec.label]
    if spec.task == "binary":
        return (labels == spec.positive).to_numpy().astype("int64")
    if spec.task == "regression":
        return labels.to_numpy().astype("float64")
    values = labels.to_numpy()
    # No object arrays: they would be saved in the model's file, which may hold plain arrays only.
    return values if values.dtype.kind in "iu" else values.astype("str")
