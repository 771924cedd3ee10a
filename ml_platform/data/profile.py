"""Profile of a dataset version: statistics by column, the change since the version before, and an HTML page."""

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ml_platform.model_spec import ModelSpec
from ml_platform.records.data import DatasetVersion
from ml_platform.reporting.render import render

if TYPE_CHECKING:
    import pandas as pd

BINS = 20
CATEGORIES = 60
# Distributions with a lower stability index are usually called stable. Siddiqi, Credit Risk Scorecards (2006), 369.
MOVED = 0.25


@dataclass(frozen=True, kw_only=True)
class ColumnProfile:
    """One column: its share of missing values, a summary, and the share of each label, now and before.

    A label is a value, or a bin of numbers. `then` and `psi`, the population stability index, are None for the first
    version.
    """

    name: str
    missing: float
    figures: str
    labels: list[str]
    now: list[float]
    then: list[float] | None
    psi: float | None


@dataclass(frozen=True, kw_only=True)
class Change:
    """Numbers of new, removed and changed entities since the version before, and their share of all of both.

    With all rows of each entity, they are numbers of rows.
    """

    came: int
    went: int
    changed: int
    share_changed: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A dataset version by column, and its change; `change` is None for the first version."""

    columns: list[ColumnProfile]
    change: Change | None

    @property
    def moved(self) -> list[str]:
        """Columns with a stability index above `MOVED`."""
        return [column.name for column in self.columns if column.psi is not None and column.psi > MOVED]


def profile(rows: "pd.DataFrame", before: "pd.DataFrame | None", spec: ModelSpec) -> Profile:
    """Describe the features and the label of a dataset version.

    Parameters
    ----------
    rows : DataFrame of shape (n_entities, n_columns)
    before : DataFrame or None
        The version before; ``None`` for the first one.
    """
    columns = [
        _column(name, rows[name], None if before is None else before[name]) for name in [spec.label, *spec.features]
    ]
    return Profile(columns=columns, change=None if before is None else _change(rows, before, spec))


def _column(name: str, now: "pd.Series[Any]", then: "pd.Series[Any] | None") -> ColumnProfile:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    columns = [column for column in (now, then) if column is not None]
    numeric = all(is_numeric_dtype(column) and not is_bool_dtype(column) for column in columns)
    labels, counts = (_histogram if numeric else _categories)(now, then)
    shares = [[number / (sum(count) or 1) for number in count] for count in counts]
    span = (
        f"{now.min():.4g} to {now.max():.4g}, mean {now.mean():.4g}" if numeric and now.notna().any() else "no values"
    )
    return ColumnProfile(
        name=name,
        missing=float(now.isna().mean()) if len(now) else 0.0,
        figures=span if numeric else f"{now.nunique():,} values",
        labels=labels,
        now=shares[0],
        then=shares[1] if then is not None else None,
        psi=population_stability_index(shares[0], shares[1]) if then is not None else None,
    )


def _histogram(now: "pd.Series[Any]", then: "pd.Series[Any] | None") -> tuple[list[str], list[list[float]]]:
    import numpy as np

    columns = [column.dropna().to_numpy(dtype=float) for column in (now, then) if column is not None]
    everything = np.concatenate(columns)
    low, high = (everything.min(), everything.max()) if everything.size else (0.0, 1.0)
    # Halves, as the range of two floats may exceed the largest float.
    edges = 2 * np.linspace(low / 2, (high if high > low else low + 1) / 2, BINS + 1)
    labels = [f"{a:.4g} to {b:.4g}" for a, b in itertools.pairwise(edges)]
    return labels, [np.histogram(column, edges)[0].tolist() for column in columns]


def _categories(now: "pd.Series[Any]", then: "pd.Series[Any] | None") -> tuple[list[str], list[list[float]]]:
    counts = [column.astype(str).value_counts() for column in (now, then) if column is not None]
    named = list(counts[0].index[:CATEGORIES])
    rest = [float(count.sum() - count.reindex(named, fill_value=0).sum()) for count in counts]
    bars = [count.reindex(named, fill_value=0).astype(float).tolist() for count in counts]
    if any(rest):
        return [*named, "all others"], [[*bar, more] for bar, more in zip(bars, rest, strict=True)]
    return named, bars


def population_stability_index(now: list[float], then: list[float]) -> float:
    """Return the population stability index of two lists of shares, one share per bin, each list with the sum 1.

    It is the sum of (a - b) ln(a / b) over the bins: the symmetric Kullback-Leibler divergence. An empty bin counts as
    0.0001, so that the index is finite.
    """
    pairs = [(max(a, 1e-4), max(b, 1e-4)) for a, b in zip(now, then, strict=True)]
    return sum((a - b) * math.log(a / b) for a, b in pairs)


def _change(rows: "pd.DataFrame", before: "pd.DataFrame", spec: ModelSpec) -> Change:
    import pandas as pd

    keys = [spec.entity] if spec.rows == "newest" else [spec.entity, spec.event_time]
    now, then = (
        pd.Series(
            pd.util.hash_pandas_object(frame[[spec.label, *spec.features]], index=False).to_numpy(),
            pd.MultiIndex.from_frame(frame[keys]),
        )
        for frame in (rows, before)
    )
    both = now.index.intersection(then.index)
    changed = int((now.loc[both] != then.loc[both]).sum())
    came, went = len(now) - len(both), len(then) - len(both)
    total = len(now) + went
    share = (came + went + changed) / total if total else 0.0
    return Change(came=came, went=went, changed=changed, share_changed=share)


# The page


def draw(profile: Profile, dataset: DatasetVersion, before: DatasetVersion | None) -> str:
    """Write a profile as one page of HTML that loads nothing from elsewhere; `before` is None for the first version."""
    title = f"{dataset.model}, dataset version {dataset.version}"
    return render("profile.html.j2", title=title, profile=profile, dataset=dataset, before=before, max_psi=MOVED)
