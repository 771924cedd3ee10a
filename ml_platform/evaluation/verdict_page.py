"""A verdict as an HTML page without scripts: the decision, its reasons, all measurements and the lineage."""

from collections.abc import Iterator
from typing import Any

from ml_platform.evaluation.curve_plots import plot_curves
from ml_platform.evaluation.curves import MIN_ROWS, Curves
from ml_platform.evaluation.metrics import CATALOGUE, Better
from ml_platform.evaluation.verdict_view import (
    COSTS,
    NOT_MEASURED,
    VerdictView,
    Where,
    draw_readings,
    view_verdict,
)
from ml_platform.model_spec import HOLDOUT, Comparison, ModelSpec
from ml_platform.records.verdict import Candidate, Reference, Verdict
from ml_platform.reporting.charts import Bar, Bound, Interval, build_bar, compute_scale
from ml_platform.reporting.render import render


def draw(verdict: Verdict, candidate: Candidate, spec: ModelSpec, curves: Curves | None) -> str:
    """Write a verdict as one page of HTML that loads nothing from elsewhere.

    Parameters
    ----------
    verdict : Verdict
    candidate : Candidate
        The candidate that was judged.
    spec : ModelSpec
        The gates that it was judged by.
    curves : Curves or None
        The candidate's, and its reference's if there was one; None if none were stored.
    """
    view = view_verdict(verdict, spec)
    curves = curves or Curves(rows=0, of=[])
    return render(
        "verdict.html.j2",
        verdict=verdict,
        candidate=candidate,
        spec=spec,
        view=view,
        gates=[(gate, draw_readings(gate.readings)) for gate in view.gates],
        comparison=_comparison(verdict, spec, view),
        datasets=list(_datasets(verdict, spec, view)),
        slices=_slices(spec, view),
        curves=curves,
        curve_min_rows=MIN_ROWS,
        plots=plot_curves(curves.of, spec.task, spec.positive, spec.label),
        costs=[
            (
                where[2],
                measurement,
                ", ".join(r.asks for r in view.requirements_of(where)) or "nothing",
                COSTS[where[2]],
            )
            for where, measurement in view.ours.items()
            if where[2] in COSTS
        ],
    )


def _comparison(verdict: Verdict, spec: ModelSpec, view: VerdictView) -> dict[str, Any] | None:
    """Return the template's values for the comparison; ``None`` without one."""
    reference, comparison = verdict.evaluation.reference, spec.comparison
    if comparison is None or reference is None:
        return None
    where = (HOLDOUT, "", comparison.metric)
    # A baseline that replaces a champion with the candidate's bytes carries that champion's digest.
    digest = (reference.model_digest if reference.kind == "champion" else None) or "a baseline has none"
    champion = verdict.evaluation.champion
    if champion is None:
        role = "There is no champion yet: the candidate must beat the declared baseline."
    elif reference.kind == "baseline":
        role = f"Champion is version {champion}, which has the same bytes as the candidate: the baseline replaces it."
    else:
        role = f"Champion is version {champion}. Both predicted the same rows, which are in neither's training data."
    return {
        "role": role,
        "metric": comparison.metric,
        "reference": reference,
        "digest": digest,
        "ours": view.ours.get(where, NOT_MEASURED),
        "theirs": view.theirs.get(where, NOT_MEASURED),
        **_difference(comparison, reference),
    }


def _difference(comparison: Comparison, reference: Reference) -> dict[str, str]:
    """Return the difference to a reference, and how it was computed."""
    if reference.difference is None or reference.reason:
        why = reference.reason or "the difference is not available"
        return {"difference": "", "evidence": f"They were not compared: {why}."}
    interval = Interval(value=reference.difference, low=reference.low, high=reference.high)
    way = "better" if reference.difference > 0 else "worse" if reference.difference < 0 else "as good"
    odds = ""
    if (p := reference.p_better) is not None:
        odds = f"; p {'< 0.0001' if p < 0.0001 else f'= {p:.2g}'} for “it is not better”"
    return {
        "difference": f"The candidate's {comparison.metric} is {way}: {interval.text}",
        "evidence": f" on {reference.rows:,} rows that are in neither's training data "
        f"({reference.method or 'method not recorded'}{odds}). "
        f"Each bound has a one-sided confidence of {comparison.confidence:.0%}.",
    }


# Measurements


def _datasets(verdict: Verdict, spec: ModelSpec, view: VerdictView) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """Yield a heading and the measurements on all rows of each dataset, each with direction, reference and chart."""
    for dataset in dict.fromkeys(where[0] for where in view.ours):
        places = [where for where in view.ours if where[:2] == (dataset, "") and where[2] not in COSTS]
        measured = (m for m in verdict.evaluation.measurements if m.dataset == dataset and not m.slice)
        rows = next((m.rows for m in measured if m.rows), None)
        name = "On the holdout" if dataset == HOLDOUT else f"On the golden dataset {dataset}"
        found = []
        for where in places:
            known = CATALOGUE[spec.task].get(where[2])
            way = "" if known is None else "more is better" if known.better is Better.MORE else "less is better"
            ours, theirs = view.ours[where], view.theirs.get(where)
            found.append((where[2], way, ours, theirs or NOT_MEASURED, _pair_bar(view, where, None)))
        if found:
            yield name if rows is None else f"{name}: {rows:,} rows", found


def _pair_bar(view: VerdictView, where: Where, scale: tuple[float, float] | None) -> Bar | None:
    """Return the chart of a measurement, and of the reference's if there is one, with the bound of the first gate."""
    measurements = [found for found in (view.ours.get(where), view.theirs.get(where)) if found is not None]
    label = f"{where[2]}: {', reference '.join(measurement.text for measurement in measurements)}"
    return build_bar([measurement.interval for measurement in measurements], _bound(view, where), label, scale)


def _bound(view: VerdictView, where: Where) -> Bound | None:
    return next((requirement.bound for requirement in view.requirements_of(where)), None)


def _slices(spec: ModelSpec, view: VerdictView) -> dict[str, Any]:
    """Return the template's values for the slices: the metrics with a gate, a row for each slice, all measurements."""
    # The comparison is the last of the requirements.
    metrics = [m for m in dict.fromkeys(r.metric for r in view.requirements) if m in CATALOGUE[spec.task]]
    parts = list(dict.fromkeys(where[:2] for where in view.ours if where[1]))
    scales = {}
    for metric in metrics:
        places = [(*part, metric) for part in parts]
        intervals = [side[where].interval for side in (view.ours, view.theirs) for where in places if where in side]
        scales[metric] = compute_scale(intervals, filter(None, (_bound(view, where) for where in places)))
    rows: list[tuple[str, str, list[tuple[Any, ...]]]] = []
    for dataset, part in parts:
        cells = []
        for metric in metrics:
            where = (dataset, part, metric)
            bar = _pair_bar(view, where, scales[metric])
            cells.append((metric, bool(view.requirements_of(where)), view.ours.get(where, NOT_MEASURED), bar))
        counted = (measurement.rows for _, _, measurement, _ in cells if measurement.rows != NOT_MEASURED.rows)
        rows.append((part if dataset == HOLDOUT else f"{part} ({dataset})", next(counted, NOT_MEASURED.rows), cells))
    every = [(where, one, view.theirs.get(where, NOT_MEASURED)) for where, one in view.ours.items() if where[1]]
    return {"metrics": metrics, "rows": rows, "every": every}
