"""Checks on a pinned dataset: volume, balance, leakage."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ml_platform.data.datasets import split
from ml_platform.data.leakage import find_leaking_features
from ml_platform.model_spec import ModelSpec
from ml_platform.records.data import DatasetVersion

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


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
        scores = ", ".join(f"{name} ({f'{leak.score:.3f} {leak.clue}'.strip()})" for name, leak in leaks.items())
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
