"""A change's result as people read it: the page and the comment take their words and figures from here."""

from dataclasses import dataclass

from ml_platform.ci.attribution import MetricChange, find_base_run, format_metric_name
from ml_platform.ci.result_schema import ChangeResult, Outcome, ReportedCurve
from ml_platform.evaluation.curve_plots import plot_curves
from ml_platform.evaluation.curves import Curve
from ml_platform.evaluation.verdict_view import (
    COSTS,
    NOT_MEASURED,
    GateView,
    MeasurementView,
    Requirement,
    Where,
    gain_bound,
    view_gates,
    view_measurements,
)
from ml_platform.model_spec import HOLDOUT
from ml_platform.records.verdict import GateOutcome, GateResult, Measurement, Reference
from ml_platform.reporting.charts import Bound, Plot, format_number

OURS, THEIRS = "this change", "base"
HEADLINES = {
    Outcome.PASS: "PASS. Every gate holds, and every expected check is on record as SUCCEEDED.",
    Outcome.FAIL: "REFUSED. Not every gate holds.",
    Outcome.BROKEN: "REFUSED. It could not be judged, which blocks the change.",
}
MAX_FILES = 3
PAIRS = (("old", "old"), ("new", "old"), ("old", "new"), ("new", "new"))


@dataclass(frozen=True, kw_only=True)
class CostView:
    """A time, memory or size of the change and of the base, with its gates' bounds (``<= 100``)."""

    meaning: str
    ours: MeasurementView
    theirs: MeasurementView
    asks: str


@dataclass(frozen=True, kw_only=True)
class ChangeView:
    """The change's candidate beside the base's, as people read them.

    Parameters
    ----------
    gates : list of GateView
        Empty if the change was not judged.
    requirements : list of Requirement
    ours, theirs : dict of (str, str, str) to MeasurementView
        Measurements by dataset, slice and metric.
    costs : list of CostView
    """

    gates: list[GateView]
    requirements: list[Requirement]
    ours: dict[Where, MeasurementView]
    theirs: dict[Where, MeasurementView]
    costs: list[CostView]

    def find_bound(self, where: Where) -> Bound | None:
        """Return the bound of the first gate on a measurement; ``None`` without a gate."""
        return next((one.bound for one in self.requirements if one.applies_to(where)), None)


def view_change(result: ChangeResult) -> ChangeView:
    """Return the gates and measurements of a change's candidate, beside the base's."""
    end = result.corner("new", "new")
    reported = end.reference if end else None
    reference = Reference(**reported.model_dump()) if reported else None
    requirements = _requirements(result, reference)
    ours, theirs = (
        view_measurements(Measurement(**one.model_dump()) for one in (run.measurements if run else []))
        for run in (end, result.corner("old", "new"))
    )
    results = [
        GateResult(**{**gate.model_dump(), "outcome": GateOutcome(gate.outcome)}) for gate in (end.gates if end else [])
    ]
    costs = [
        CostView(
            meaning=COSTS[where[2]],
            ours=measurement,
            theirs=theirs.get(where, NOT_MEASURED),
            asks=", ".join(one.asks for one in requirements if one.applies_to(where)) or "nothing",
        )
        for where, measurement in ours.items()
        if where[2] in COSTS
    ]
    gates = view_gates(results, requirements, ours, reference)
    return ChangeView(gates=gates, requirements=requirements, ours=ours, theirs=theirs, costs=costs)


def _requirements(result: ChangeResult, reference: Reference | None) -> list[Requirement]:
    requirements = [
        Requirement(
            name=gate.name,
            metric=gate.metric,
            dataset=gate.dataset,
            places=tuple(gate.places),
            bound=Bound(value=gate.bound, up=gate.at_least is not None),
        )
        for gate in result.asked
    ]
    if compared := result.compared:
        bound = gain_bound(reference, compared.margin, compared.min_gain)
        gain = Requirement(
            name=compared.name, metric=compared.metric, dataset=HOLDOUT, places=("",), bound=bound, is_gain=True
        )
        requirements.append(gain)
    return requirements


def plot_change(result: ChangeResult) -> list[Plot]:
    """Return the charts of the change's curves and the base's; none if the change was not judged."""
    runs = {OURS: result.corner("new", "new"), THEIRS: result.corner("old", "new")}
    reported: dict[str, ReportedCurve] = {name: run.curves[0] for name, run in runs.items() if run and run.curves}
    curves = [Curve(name=name, roc=one.roc, calibration=one.calibration) for name, one in reported.items()]
    return plot_curves(curves, result.task, result.positive)


# Sentences and tables


def format_changed_files(result: ChangeResult) -> str:
    """Return, as one sentence, the files whose code or data affect the model."""
    left = len(result.changed) - MAX_FILES
    return f"What changed: {'; '.join(result.changed[:MAX_FILES])}{f'; and {left} more' if left > 0 else ''}."


def explain_no_change(result: ChangeResult) -> str:
    """Return the sentence for a change after which no measurement is worse beyond noise."""
    start, end = find_base_run(result), result.corner("new", "new")
    if end is None:
        return "Nothing can be compared: this change was not judged."
    if start is None:
        return "Nothing can be compared: the base was not judged."
    if start.model_digest == end.model_digest:
        return "Nothing: the model is the same to the byte."
    return "Nothing became worse by more than luck with these rows explains."


def select_code_data_pairs(result: ChangeResult) -> list[tuple[str, str]]:
    """Return the pairs of code and data that differ: four, or two if the data are the same."""
    return list(PAIRS) if result.data_changed else list(PAIRS[2:])


def change_heads(result: ChangeResult) -> list[str]:
    """Return the first heads of a table of changed measurements; `change_cells` returns the cells."""
    return ["measurement", *(f"{code} code, {data} data" for code, data in select_code_data_pairs(result))]


def change_cells(result: ChangeResult, change: MetricChange) -> list[str]:
    """Return a measurement's name, and its value for every pair of code and data."""
    values = [format_number(change.corners.get(pair)) for pair in select_code_data_pairs(result)]
    return [format_metric_name(change.where), *values]


def format_contribution(number: float | None) -> str:
    """Return a difference with its sign: ``+0.02``, and ``0`` for none."""
    return "not available" if number is None else f"{number:+.3g}" if number else "0"
