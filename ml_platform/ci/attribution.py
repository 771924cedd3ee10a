"""Compare a model's measurements before and after a change, and attribute each difference to code or data.

A model is run with up to four combinations of old and new code and data. The code's part of a difference is the mean of
its effects on old and on new data, the data's part the mean of its effects under old and under new code: the Shapley
values of two players. Both parts add up to the difference.
"""

from dataclasses import dataclass

from ml_platform.ci.result_schema import (
    ChangeResult,
    CodeDataRun,
    DeclaredGate,
    ReportedMeasurement,
    ReportedReference,
)
from ml_platform.evaluation.metrics import CATALOGUE, Better
from ml_platform.evaluation.verdict_view import COSTS, MIN_SHOWN

Where = tuple[str, str, str]
MIN_SHARE = 0.25  # a second cause with a smaller share of the difference is not reported
MIN_COST = 0.1  # relative change of a time or size below which it counts as noise
NAMED = 3
# Measured only once, on a shared machine: shown, but never reported as a change.
ONCE = {"cold_load_seconds", "first_prediction_ms", "machine_noise"}


@dataclass(frozen=True, kw_only=True)
class MetricChange:
    """A measurement before and after a change.

    Parameters
    ----------
    where : (str, str, str)
        Dataset, slice and metric. The slice of all rows is empty.
    before, after : ReportedMeasurement
        With the base's code on the base's data, and with the new code on the new data.
    code, data : float or None
        Parts of the difference. None if a run that would separate them is missing.
    corners : dict of (str, str) to float
        Measured values by code and data.
    worse : bool
    told : bool
        True if the difference exceeds sampling error or the machine's noise, or fails a gate.
    closes : str
        Condition of a gate that passed before and fails now; empty if there is none.
    """

    where: Where
    before: ReportedMeasurement
    after: ReportedMeasurement
    code: float | None
    data: float | None
    corners: dict[tuple[str, str], float]
    worse: bool
    told: bool
    closes: str = ""

    @property
    def by(self) -> float:
        """Difference: the value after minus the value before."""
        return _value(self.after) - _value(self.before)

    @property
    def cause(self) -> str:
        """``code``, ``data``, ``both``, or ``unknown`` if a run is missing."""
        if self.code is None or self.data is None:
            return "unknown"
        shares = {name: part / self.by for name, part in (("code", self.code), ("data", self.data)) if self.by}
        largest = max(shares, key=lambda name: shares[name], default="unknown")
        return "both" if len(shares) == 2 and min(shares.values()) >= MIN_SHARE else largest

    @property
    def weight(self) -> float:
        """Size of the difference, in half widths of the interval before."""
        spread = [number for number in (self.before.low, self.before.high) if number is not None]
        half = (max(spread) - min(spread)) / 2 if len(spread) == 2 else 0.0
        return abs(self.by) / max(half, abs(_value(self.before)) * 1e-3, 1e-9)


def find_metric_changes(result: ChangeResult) -> list[MetricChange]:
    """Return all measurements known before and after a change: failed gates first, then by size of the difference."""
    start, end = find_base_run(result), result.corner("new", "new")
    if start is None or end is None:
        return []
    changes = (_metric_change(result, where, start, end) for where in _by_place(end))
    return sorted((one for one in changes if one), key=lambda one: (not one.closes, not one.told, -one.weight))


def find_base_run(result: ChangeResult) -> CodeDataRun | None:
    """Return the run that a change starts from; ``None`` if the base's code has no verdict there."""
    return result.corner("old", "old") if result.data_changed else result.corner("old", "new")


def _by_place(run: CodeDataRun) -> dict[Where, ReportedMeasurement]:
    return {(m.dataset, m.slice, m.metric): m for m in run.measurements}


def _metric_change(result: ChangeResult, where: Where, start: CodeDataRun, end: CodeDataRun) -> MetricChange | None:
    before, after = _by_place(start).get(where), _by_place(end)[where]
    if before is None or not (_is_shown(before) and _is_shown(after)):
        return None
    runs: dict[tuple[str, str], ReportedMeasurement | None] = {
        (run.code, run.data): _by_place(run).get(where) for run in result.corners
    }
    values = {place: m.value for place, m in runs.items() if m is not None and m.value is not None}
    code, data = _parts(values, data_changed=result.data_changed)
    metric = CATALOGUE[result.task].get(where[2])
    direction = 1 if metric is not None and metric.better is Better.MORE else -1
    gates = (gate for gate in gates_on(result, where) if _holds(gate, before) and not _holds(gate, after))
    closes = next((gate.condition for gate in gates), "")
    # Identical model files take the same time: a difference is the machine's.
    same_file = start.model_digest == end.model_digest and where[2] in COSTS
    return MetricChange(
        where=where,
        before=before,
        after=after,
        code=code,
        data=data,
        corners=values,
        worse=(_value(after) - _value(before)) * direction < 0,
        told=not same_file and (bool(closes) or _is_significant(before, after, where, end.reference)),
        closes=closes,
    )


def _is_shown(measurement: ReportedMeasurement) -> bool:
    return measurement.value is not None and (measurement.rows is None or measurement.rows >= MIN_SHOWN)


def _value(measurement: ReportedMeasurement) -> float:
    return measurement.value or 0.0


def _parts(values: dict[tuple[str, str], float], *, data_changed: bool) -> tuple[float | None, float | None]:
    """Return the code's and the data's part of a difference; None if a run that would separate them is missing."""
    if not data_changed:
        return values["new", "new"] - values["old", "new"], 0.0
    if len(values) < 4:
        return None, None
    a, b, c, d = (values[place] for place in (("old", "old"), ("old", "new"), ("new", "old"), ("new", "new")))
    return ((c - a) + (d - b)) / 2, ((b - a) + (d - c)) / 2


def gates_on(result: ChangeResult, where: Where) -> list[DeclaredGate]:
    """Return the gates on a measurement."""
    dataset, part, metric = where
    return [gate for gate in result.asked if (gate.dataset, gate.metric) == (dataset, metric) and part in gate.places]


def _holds(gate: DeclaredGate, measurement: ReportedMeasurement) -> bool:
    up = gate.at_least is not None
    number = measurement.value if gate.on == "value" else measurement.low if up else measurement.high
    return number is not None and (number >= gate.bound if up else number <= gate.bound)


def _is_significant(
    before: ReportedMeasurement, after: ReportedMeasurement, where: Where, reference: ReportedReference | None
) -> bool:
    if reference is not None and reference.kind == "champion" and where == ("holdout", "", reference.metric):
        # The paired comparison with the champion is sharper than two intervals.
        excludes_zero = (reference.high is not None and reference.high < 0) or (
            reference.low is not None and reference.low > 0
        )
        if excludes_zero:
            return True
    (low, high), (new_low, new_high) = _bounds(before), _bounds(after)
    if before.metric in COSTS:
        is_far = abs(_value(after) - _value(before)) > MIN_COST * abs(_value(before))
        overlap = low <= new_high and new_low <= high
        return is_far and not overlap and before.metric not in ONCE
    return not low <= _value(after) <= high and not new_low <= _value(before) <= new_high


def _bounds(measurement: ReportedMeasurement) -> tuple[float, float]:
    value, low, high = _value(measurement), measurement.low, measurement.high
    return value if low is None else low, value if high is None else high


# Sentences


def sentences(result: ChangeResult) -> list[str]:
    """Return a sentence for each metric that became worse, with the cause: failed gates first, then metrics of gates.

    A sentence describes the slice with the largest difference and names the others.
    """
    worse = [one for one in find_metric_changes(result) if one.worse and one.told]
    gated = asked_metrics(result)
    lines = []
    # Failed gates come first in `worse` already.
    for metric in sorted(dict.fromkeys(one.where[2] for one in worse), key=lambda name: name not in gated):
        worst, *rest = (one for one in worse if one.where[2] == metric)
        names = [_place(one.where) for one in rest]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        lines.append(sentence(worst) + (f" Also worse: {', '.join(names[:NAMED])}{more}." if names else ""))
    return lines


def asked_metrics(result: ChangeResult) -> set[str]:
    """Return the metrics of the gates and of the comparison."""
    return {gate.metric for gate in result.asked} | ({result.compared.metric} if result.compared else set())


def sentence(one: MetricChange) -> str:
    """Return a sentence on a measurement's change and its cause."""
    way = "became worse" if one.worse else "became better"
    numbers = f"{_value(one.before):.4g} before, {_value(one.after):.4g} now ({one.by:+.4g})"
    gate = f", which fails the gate {one.closes}" if one.closes else ""
    if one.code is None or one.data is None:
        cause = "Code and data both changed; a run that would separate their effects has no verdict."
    elif ("old", "old") not in one.corners:
        cause = "The cause is the code: the data are the same."
    else:
        causes = "The causes are code and data" if one.cause == "both" else f"The cause is the {one.cause}"
        cause = f"{causes}: the code moves it by {one.code:+.4g}, the data by {one.data:+.4g}."
    return f"{format_metric_name(one.where)} {way}: {numbers}{gate}. {cause}"


def format_metric_name(where: Where) -> str:
    """Return a measurement's metric, slice and dataset in words, such as ``auc_roc of plan = paid on holiday``."""
    metric = where[2]
    return metric if metric in COSTS else f"{metric} of {_place(where)}"


def _place(where: Where) -> str:
    dataset, part, _ = where
    return (part or "all rows") + (f" on {dataset}" if dataset != "holdout" else "")
