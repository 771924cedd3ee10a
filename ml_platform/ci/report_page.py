"""The results of a change as one HTML page for its reviewer: it loads nothing and runs nothing."""

from collections.abc import Sequence
from typing import Any

from ml_platform.ci.attribution import MetricChange, asked_metrics, find_metric_changes, sentences
from ml_platform.ci.change_view import (
    HEADLINES,
    OURS,
    THEIRS,
    ChangeView,
    change_cells,
    change_heads,
    explain_no_change,
    format_changed_files,
    format_contribution,
    plot_change,
    view_change,
)
from ml_platform.ci.result_schema import ChangeResult, CheckState, Outcome
from ml_platform.evaluation.curves import MIN_ROWS
from ml_platform.evaluation.verdict_view import COSTS, NOT_MEASURED, Where, draw_readings
from ml_platform.model_spec import HOLDOUT
from ml_platform.reporting.charts import Bar, build_bar, format_number
from ml_platform.reporting.render import render

COLOUR = {Outcome.PASS: "PASS", Outcome.FAIL: "FAIL", Outcome.BROKEN: "FAIL"}
MAX_SENTENCES = 5
MAX_ROWS = 40


def draw(results: Sequence[ChangeResult]) -> str:
    """Write the results of all models as one page of HTML."""
    names = [f"{result.model} on {result.golden}" if result.golden else result.model for result in results]
    title = "Quality gates: " + (", ".join(names) or "no model is affected")
    shown = [{"name": name, **_values(result)} for name, result in zip(names, results, strict=True)]
    return render("change.html.j2", title=title, results=shown, curve_min_rows=MIN_ROWS, OURS=OURS, THEIRS=THEIRS)


def _values(result: ChangeResult) -> dict[str, Any]:
    """Return the template's values for one result."""
    view, end = view_change(result), result.corner("new", "new")
    changes = find_metric_changes(result)
    marked = [one for one in changes if one.told and one.where[2] in asked_metrics(result)]
    return {
        "result": result,
        "headline": HEADLINES[result.outcome],
        "colour": COLOUR[result.outcome],
        "worse": sentences(result)[:MAX_SENTENCES],
        "nothing_worse": explain_no_change(result),
        "files": format_changed_files(result) if result.changed else "",
        "heads": [*change_heads(result), "by the code", "by the data", "together"],
        "marked": [_change_row(result, one) for one in marked],
        "changes": [_change_row(result, one) for one in changes],
        "end": end,
        "base": result.corner("old", "new"),
        "gates": [
            (gate, draw_readings(gate.readings))
            if any(reading.over for reading in gate.readings)
            else (gate, [(reading, _draw_pair(view, reading.where)) for reading in gate.readings])
            for gate in view.gates
        ],
        "theirs": view.theirs,
        "slices": _slices(view, changes),
        "plots": plot_change(result) if end else [],
        "costs": view.costs,
        "succeeded": sum(check.state is CheckState.SUCCEEDED for check in result.checks),
        "failed_checks": [check for check in result.checks if check.state is not CheckState.SUCCEEDED],
    }


def _change_row(result: ChangeResult, change: MetricChange) -> tuple[list[str], list[str], str, str]:
    """Return a changed measurement's first cells, its contributions, the whole change, and the whole's CSS class."""
    parts = [format_contribution(part) for part in (change.code, change.data)]
    kind = ("worse" if change.worse else "better") if change.told else ""
    return change_cells(result, change), parts, format_contribution(change.by), kind


def _draw_pair(view: ChangeView, where: Where) -> Bar | None:
    """Return the chart of a measurement of the change and of the base; ``None`` if one may not be shown."""
    pair = [side[where] for side in (view.ours, view.theirs) if where in side]
    if any(measurement.hidden for measurement in pair):
        return None
    label = f"{where[2]}: {f', {THEIRS} '.join(measurement.text for measurement in pair)}"
    return build_bar([measurement.interval for measurement in pair], view.find_bound(where), label)


def _slices(view: ChangeView, changes: Sequence[MetricChange]) -> dict[str, Any]:
    """Return the metrics of gates, a row of cells for each slice, and the names of the slices that moved."""
    parts = list(dict.fromkeys(where[:2] for where in view.ours if where[1] or where[0] != HOLDOUT))
    metrics = [name for name in dict.fromkeys(one.metric for one in view.requirements) if name not in COSTS]
    marks = {one.where: one for one in changes if one.told and one.where[2] in metrics}
    rows = []
    for dataset, place in parts[:MAX_ROWS]:
        cells = []
        for metric in metrics:
            where = (dataset, place, metric)
            change = marks.get(where)
            moved = f"{format_contribution(change.by)}, it was {format_number(change.before.value)}" if change else ""
            ours, theirs = view.ours.get(where, NOT_MEASURED), view.theirs.get(where)
            gate = view.find_bound(where) is not None
            kind = "worse" if change and change.worse else "better"
            cells.append((metric, gate, ours, theirs, _draw_pair(view, where), moved, kind))
        rows.append(((place or "all rows") + ("" if dataset == HOLDOUT else f" ({dataset})"), cells))
    moved_names = list(dict.fromkeys(where[1] for where in marks if where[1]))
    return {"metrics": metrics, "rows": rows, "moved": moved_names}
