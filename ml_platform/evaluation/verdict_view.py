"""A verdict as people read it: pages, comments, tables and Dagster take their words and figures from here.

A measurement of fewer than `MIN_SHOWN` rows is named without its numbers: they would say too much of single rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ml_platform.model_spec import HOLDOUT, ModelSpec, exact
from ml_platform.records.verdict import GateOutcome, GateResult, Measurement, Reference, Verdict
from ml_platform.reporting.charts import Bar, Bound, Interval, build_bar, compute_scale, format_number

MIN_SHOWN = 5
COSTS = {
    "inference_time_ms": "one record in a warm process, 95th percentile, in ms",
    "inference_p50_ms": "the same, median, in ms",
    "inference_p99_ms": "the same, 99th percentile, in ms",
    "first_prediction_ms": "the first record after the start, in ms",
    "cold_load_seconds": "the file loaded in a fresh process, in s",
    "resident_memory_mib": "memory of that process, in MiB",
    "machine_noise": "spread of this machine's times, as a factor",
    "model_size_mb": "the model file, in MB",
}
EXPLANATIONS = {
    GateOutcome.PASS: "The gate holds.",
    GateOutcome.FAIL: "The gate does not hold.",
    GateOutcome.INCONCLUSIVE: "The result is inconclusive, which blocks promotion.",
}
NO_INTERVAL = Interval(value=None)
# Dataset, slice (empty for all rows) and metric.
Where = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class MeasurementView:
    """A measurement as people read it.

    Parameters
    ----------
    text : str
        ``0.91 [0.88, 0.94]``, or the words for a missing number.
    interval : Interval
        The numbers for a chart; None in all three if none may be shown.
    note : str
        The reason of a missing number or bound; empty if there is none.
    rows : str
        ``1,234``, ``fewer than 5`` or ``not available``.
    hidden : bool
        True for fewer than `MIN_SHOWN` rows.
    method : str
        The method that computed the bounds.
    """

    text: str = "not measured"
    interval: Interval = NO_INTERVAL
    note: str = ""
    rows: str = "not available"
    hidden: bool = False
    method: str = ""


NOT_MEASURED = MeasurementView()
FEW_ROWS = MeasurementView(
    text=f"fewer than {MIN_SHOWN} rows: no measurements are shown", rows=f"fewer than {MIN_SHOWN}", hidden=True
)


def view_measurements(measurements: Iterable[Measurement]) -> dict[Where, MeasurementView]:
    """Return measurements as people read them, by dataset, slice and metric."""
    views = {}
    for measurement in measurements:
        interval = Interval(value=measurement.value, low=measurement.low, high=measurement.high)
        shown = measurement.rows is None or measurement.rows >= MIN_SHOWN
        views[measurement.dataset, measurement.slice, measurement.metric] = (
            MeasurementView(
                text=interval.text,
                interval=interval,
                note=measurement.reason if len(interval.numbers) < 3 else "",
                rows="not available" if measurement.rows is None else f"{measurement.rows:,}",
                method=measurement.method,
            )
            if shown
            else FEW_ROWS
        )
    return views


# Gates


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A declared gate: its bound, and the measurements that it applies to.

    Parameters
    ----------
    name : str
        The name of the gate's check.
    metric, dataset : str
    places : tuple of str
        Slices; the empty name is all rows.
    bound : Bound
    is_gain : bool
        True for the comparison: the bound is of the lower bound of the gain over the reference.
    """

    name: str
    metric: str
    dataset: str
    places: tuple[str, ...]
    bound: Bound
    is_gain: bool = False

    @property
    def asks(self) -> str:
        """The bound with its sign: ``>= 0.8``."""
        return f"{'>=' if self.bound.up else '<='} {exact(self.bound.value)}"

    def applies_to(self, where: Where) -> bool:
        """Return True if the gate compares this measurement with its bound."""
        dataset, place, metric = where
        return not self.is_gain and (self.dataset, self.metric) == (dataset, metric) and place in self.places


def gain_bound(reference: Reference | None, margin: float, min_gain: float | None) -> Bound:
    """Return the bound of the gain over a reference: 0 over a baseline, else `min_gain`, else minus the margin."""
    if reference is not None and reference.kind == "baseline":
        return Bound(value=0.0, up=True)
    return Bound(value=-margin if min_gain is None else min_gain, up=True)


def find_requirements(spec: ModelSpec, reference: Reference | None) -> list[Requirement]:
    """Return the gates that a model declares, its comparison last."""
    requirements = [
        Requirement(
            name=gate.name,
            metric=gate.metric,
            dataset=gate.dataset,
            places=tuple(part.name for part in spec.expand_slices(gate.slices)) or ("",),
            bound=Bound(value=gate.bound, up=gate.at_least is not None),
        )
        for gate in spec.gates
    ]
    if comparison := spec.comparison:
        bound = gain_bound(reference, comparison.margin, comparison.min_gain)
        where = {"metric": comparison.metric, "dataset": HOLDOUT, "places": ("",)}
        requirements.append(Requirement(name=comparison.name, bound=bound, is_gain=True, **where))  # type: ignore[arg-type]
    return requirements


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A number that a gate compares with its bound.

    Parameters
    ----------
    place : str
        The slice; empty for all rows.
    where : (str, str, str)
        Dataset, slice and metric; empty texts for the gain over a reference.
    measurement : MeasurementView
    over : str
        The reference of a gain: ``over the champion, version 1``; else empty.
    bound : Bound
    label : str
        The reading in words, for screen readers.
    """

    place: str
    where: Where
    measurement: MeasurementView
    over: str = ""
    bound: Bound
    label: str


@dataclass(frozen=True, kw_only=True)
class GateView:
    """A gate's result as people read it.

    Parameters
    ----------
    name, condition : str
        The name of its check, and the gate as its author writes it.
    outcome, explanation : str
        ``PASS``, ``FAIL`` or ``INCONCLUSIVE``, and the same as a sentence.
    value : float or None
        The number that decided; None if the result is inconclusive.
    why : str
    readings : list of Reading
        A number for each slice; empty without the gate's declaration.
    """

    name: str
    condition: str
    outcome: str
    explanation: str
    value: float | None
    why: str
    readings: list[Reading]


def gate_record(gate: GateView) -> dict[str, str | float | None]:
    """Return a gate as the plain values that `ml-platform status` and `explain` print as JSON."""
    return {"gate": gate.condition, "value": gate.value, "result": gate.outcome}


def view_gates(
    results: Iterable[GateResult],
    requirements: Sequence[Requirement] = (),
    measurements: Mapping[Where, MeasurementView] | None = None,
    reference: Reference | None = None,
) -> list[GateView]:
    """Return gates' results as people read them.

    Parameters
    ----------
    results : iterable of GateResult
    requirements : sequence of Requirement
        Their declarations. Without them the gates have no readings.
    measurements : mapping of (str, str, str) to MeasurementView
        The candidate's.
    reference : Reference or None
    """
    declared = {requirement.name: requirement for requirement in requirements}
    return [
        GateView(
            name=result.name,
            condition=result.condition,
            outcome=result.outcome.value,
            explanation=EXPLANATIONS[result.outcome],
            value=result.value,
            why=result.why,
            readings=_readings(declared.get(result.name), measurements or {}, reference),
        )
        for result in results
    ]


def _readings(
    requirement: Requirement | None, measurements: Mapping[Where, MeasurementView], reference: Reference | None
) -> list[Reading]:
    if requirement is None or (requirement.is_gain and reference is None):
        return []
    bound = requirement.bound
    if requirement.is_gain and reference is not None:
        gain = Interval(value=reference.difference, low=reference.low, high=reference.high)
        text = f"gains {gain.text}" if gain.value is not None else reference.reason or gain.text
        label = f"{text}, its lower bound must reach {bound.value:g}"
        over = f"over the {reference.kind}, {reference.name}"
        shown = MeasurementView(text=text, interval=gain)
        return [Reading(place="", where=("", "", ""), measurement=shown, over=over, bound=bound, label=label)]
    required = f"required is {'at least' if bound.up else 'at most'} {bound.value:g}"
    readings = []
    for place in requirement.places:
        where = (requirement.dataset, place, requirement.metric)
        measurement = measurements.get(where, NOT_MEASURED)
        label = f"{place or 'all rows'}: {measurement.text}, {required}"
        readings.append(Reading(place=place, where=where, measurement=measurement, bound=bound, label=label))
    return readings


def draw_readings(readings: Sequence[Reading]) -> list[tuple[Reading, Bar | None]]:
    """Return each reading of a gate with its chart, all on one scale."""
    intervals = [reading.measurement.interval for reading in readings]
    scale = compute_scale(intervals, [reading.bound for reading in readings])
    return [(one, build_bar([one.measurement.interval], one.bound, one.label, scale)) for one in readings]


# The verdict


@dataclass(frozen=True, kw_only=True)
class VerdictView:
    """A verdict as people read it.

    Parameters
    ----------
    outcome : str
        The worst outcome of its gates; ``FAIL`` without any gate.
    headline : str
        The decision as a sentence that starts with ``PASS`` or ``REFUSED``.
    gates : list of GateView
    requirements : list of Requirement
    ours, theirs : dict of (str, str, str) to MeasurementView
        The candidate's measurements and the reference's, by dataset, slice and metric.
    reference : str
        ``champion, version 3``; empty if no reference was measured.
    bindings : list of (str, str)
        Names and values of the digests and versions that the verdict is bound to.
    """

    outcome: str
    headline: str
    gates: list[GateView]
    requirements: list[Requirement]
    ours: dict[Where, MeasurementView]
    theirs: dict[Where, MeasurementView]
    reference: str
    bindings: list[tuple[str, str]]

    def requirements_of(self, where: Where) -> list[Requirement]:
        """Return the gates that compare a measurement with their bound."""
        return [requirement for requirement in self.requirements if requirement.applies_to(where)]


def view_verdict(verdict: Verdict, spec: ModelSpec) -> VerdictView:
    """Return a verdict as people read it; `spec` declares the gates that it was judged by."""
    reference = verdict.evaluation.reference
    requirements, ours = find_requirements(spec, reference), view_measurements(verdict.evaluation.measurements)
    theirs = view_measurements(reference.measurements if reference else [])
    outcome, headline = _decide_headline(verdict, approval_needed=spec.approval_needed is not None)
    return VerdictView(
        outcome=outcome,
        headline=headline,
        gates=view_gates(verdict.results, requirements, ours, reference),
        requirements=requirements,
        ours=ours,
        theirs=theirs,
        reference=f"{reference.kind}, {reference.name}" if reference and theirs else "",
        bindings=[
            ("model file, sha256", verdict.model_digest),
            (f"dataset version {verdict.dataset_version}, digest", verdict.dataset_digest),
            ("code revision", verdict.code_revision),
            ("lock file, sha256", verdict.lock_digest),
            ("gates, sha256", verdict.gates_digest),
            ("verdict, sha256", verdict.digest),
        ],
    )


def _decide_headline(verdict: Verdict, *, approval_needed: bool) -> tuple[str, str]:
    """Return the worst outcome, and the decision as a sentence."""
    outcomes = [result.outcome for result in verdict.results]
    total, failed, unclear = len(outcomes), outcomes.count(GateOutcome.FAIL), outcomes.count(GateOutcome.INCONCLUSIVE)
    stays = "The champion stays."
    if not outcomes:
        return "FAIL", f"REFUSED. No gate was applied. {stays}"
    if failed:
        return "FAIL", f"REFUSED. {failed} of {total} gates {'does' if failed == 1 else 'do'} not hold. {stays}"
    if unclear:
        verb = "is" if unclear == 1 else "are"
        text = f"{unclear} of {total} gates {verb} inconclusive, which blocks promotion. No gate failed."
        return "INCONCLUSIVE", f"REFUSED. {text} {stays}"
    then = " after an approval" if approval_needed else ""
    return "PASS", f"PASS. All {total} gates hold: the candidate may be registered, and promoted{then}."


def measurement_table(verdict: Verdict) -> list[dict[str, str]]:
    """Return all measurements as rows of text, with the reference's value; cells without a number are empty."""
    reference = verdict.evaluation.reference
    theirs = view_measurements(reference.measurements if reference else [])
    rows = []
    for (dataset, place, metric), measurement in view_measurements(verdict.evaluation.measurements).items():
        their = theirs.get((dataset, place, metric), NOT_MEASURED)
        interval = measurement.interval
        numbers = {name: format_number(getattr(interval, name), "") for name in ("value", "low", "high")}
        where = {"dataset": dataset, "slice": place or "all rows", "metric": metric}
        rows_text = "" if measurement.rows == "not available" else measurement.rows
        rows.append({**where, **numbers, "rows": rows_text, "reference": format_number(their.interval.value, "")})
    return rows
