"""What a dataset version looks like, and how it differs from the one before: figures, and a page without scripts."""

import html
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ml_platform.model_spec import ModelSpec
from ml_platform.records import DatasetVersion
from ml_platform.stages._page import Html, document

if TYPE_CHECKING:
    import pandas as pd

BINS = 20
CATEGORIES = 60
# Below, distributions are usually called stable; above, moved far. Siddiqi, Credit Risk Scorecards (2006), 369.
MOVED = 0.25
WIDTH, HEIGHT = 240, 72
STYLE = """
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(16.5rem,1fr));gap:1rem}
.far{color:#c0392b;font-weight:600}.now{fill:var(--now)}.then{fill:none;stroke:var(--then);stroke-width:1.5}
"""


@dataclass(frozen=True, kw_only=True)
class ColumnProfile:
    """One column: share of missing values, its figures as a sentence, and shares by label, now and before.

    `then` and `psi`, the population stability index, are None where there is no version before.
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
    """Entities that came, went, or have other values than in the version before, and their share of all of both."""

    came: int
    went: int
    changed: int
    share_changed: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A dataset version by column, and its change; None for the first one."""

    columns: list[ColumnProfile]
    change: Change | None

    @property
    def moved(self) -> list[str]:
        """The columns whose distribution moved far."""
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

    numeric = is_numeric_dtype(now) and not is_bool_dtype(now)
    labels, counts = (_histogram if numeric else _categories)(now, then)
    shares = [_shares(count) for count in counts]
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
        psi=_psi(shares[0], shares[1]) if then is not None else None,
    )


def _histogram(now: "pd.Series[Any]", then: "pd.Series[Any] | None") -> tuple[list[str], list[list[float]]]:
    import numpy as np

    columns = [column.dropna().to_numpy(dtype=float) for column in (now, then) if column is not None]
    everything = np.concatenate(columns)
    low, high = (everything.min(), everything.max()) if everything.size else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
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


def _shares(counts: list[float]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _psi(now: list[float], then: list[float]) -> float:
    """Return the population stability index; an empty bin counts as a ten-thousandth, so that it stays finite."""
    pairs = [(max(a, 1e-4), max(b, 1e-4)) for a, b in zip(now, then, strict=True)]
    return sum((a - b) * math.log(a / b) for a, b in pairs)


def _change(rows: "pd.DataFrame", before: "pd.DataFrame", spec: ModelSpec) -> Change:
    import pandas as pd

    now, then = (
        pd.Series(
            pd.util.hash_pandas_object(frame[[spec.label, *spec.features]], index=False).to_numpy(), frame[spec.entity]
        )
        for frame in (rows, before)
    )
    both = now.index.intersection(then.index)
    changed = int((now.loc[both] != then.loc[both]).sum())
    came, went = len(now) - len(both), len(then) - len(both)
    everybody = len(now) + went
    share = (came + went + changed) / everybody if everybody else 0.0
    return Change(came=came, went=went, changed=changed, share_changed=share)


# The page


def draw(profile: Profile, dataset: DatasetVersion, before: DatasetVersion | None) -> str:
    """Write a profile as one page of HTML that loads nothing from elsewhere."""
    title = f"{dataset.model}, dataset version {dataset.version}"
    columns = "\n".join(_section(column) for column in profile.columns)
    body = (
        f"<h1>{html.escape(title)}</h1>"
        f"<p>{dataset.rows:,} rows, each entity's newest · digest <code>{dataset.digest}</code></p>"
        f"<p>{_said_of(profile, before)}</p><main>\n{columns}\n</main>"
    )
    return document(title, STYLE, Html(body))


def _said_of(profile: Profile, before: DatasetVersion | None) -> str:
    if before is None or profile.change is None:
        return "The first version: there is none to compare it with."
    change = profile.change
    far = f' <span class="far">Moved far: {html.escape(", ".join(profile.moved))}.</span>' if profile.moved else ""
    return (
        f"Against version {before.version} (outlined): {change.came:,} entities came, {change.went:,} went, "
        f"{change.changed:,} have other values: {change.share_changed:.1%} of all.{far}"
    )


def _section(column: ColumnProfile) -> str:
    psi = ""
    if column.psi is not None:
        far = ' class="far"' if column.psi > MOVED else ""
        psi = f" · <span{far}>stability index {column.psi:.3f}</span>"
    name, figures = html.escape(column.name), html.escape(column.figures)
    return (
        f"<section><h2>{name}</h2>{_bars(column)}<p>{figures}</p>"
        f"<p><small>{column.missing:.1%} missing{psi}</small></p></section>"
    )


def _bars(column: ColumnProfile) -> str:
    highest = max([*column.now, *(column.then or [])], default=0.0) or 1.0
    step = WIDTH / max(len(column.labels), 1)
    drawn = []
    for position, label in enumerate(column.labels):
        shares = [("now", column.now[position]), *([("then", column.then[position])] if column.then else [])]
        said = html.escape(f"{label}: " + ", ".join(f"{share:.1%} {when}" for when, share in shares))
        bars = "".join(_bar(when, share / highest, position * step, step) for when, share in shares)
        drawn.append(f"<g><title>{said}</title>{bars}</g>")
    name = html.escape(f"Histogram of {column.name}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join(drawn)}</svg>'


def _bar(kind: str, share: float, left: float, width: float) -> str:
    height = share * (HEIGHT - 2)
    box = f'x="{left + 1:.1f}" y="{HEIGHT - height:.1f}" width="{width - 2:.1f}" height="{height:.1f}"'
    return f'<rect class="{kind}" {box}/>'
