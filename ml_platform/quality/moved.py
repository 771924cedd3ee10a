"""What a change moved, and whether code or data did it: one model measured in up to four corners.

The part of the code is the mean of what new code changes on old data and on new data, that of the data the mean of what
new data change under old code and under new code (the two players' Shapley values): together they are the whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ml_platform.quality.documents import Asked, Corner, FigureDone, Trial
from ml_platform.stages._metrics import CATALOGUE, Better
from ml_platform.stages.verdict_pages import COSTS, LEAST_SHOWN

Where = tuple[str, str, str]
# Of two causes that pull the same way, one with a smaller share than this is not worth a reviewer's time.
LEAST_SHARE = 0.25
# Times and sizes move by themselves: so much of the figure before is a change.
LEAST_COST = 0.1
NAMED = 3
# Measured once, on a machine that others use: they are shown, and tell nothing.
ONCE = {"cold_load_seconds", "first_prediction_ms", "machine_noise"}


@dataclass(frozen=True, kw_only=True)
class Moved:
    """One figure before and after a change.

    Parameters
    ----------
    where : (str, str, str)
        Dataset, slice and metric; the empty slice are all rows.
    before, after : FigureDone
        Of the base's code on the base's data, and of both new ones.
    code, data : float or None
        What each of the two adds to the figure. None where a corner is missing that would tell.
    corners : dict of (str, str) to float
        The figure by code and data.
    worse : bool
    told : bool
        Whether it moved further than luck with the rows, or a machine's noise, explains; or closed a gate.
    closes : str
        The condition of a gate that held before and does not now; empty where there is none.
    """

    where: Where
    before: FigureDone
    after: FigureDone
    code: float | None
    data: float | None
    corners: dict[tuple[str, str], float]
    worse: bool
    told: bool
    closes: str = ""

    @property
    def by(self) -> float:
        """How much was added to the figure."""
        return (self.after.value or 0.0) - (self.before.value or 0.0)

    @property
    def cause(self) -> str:
        """``code``, ``data``, ``both``, or ``unknown`` where a corner is missing."""
        if self.code is None or self.data is None:
            return "unknown"
        shares = {name: part / self.by for name, part in (("code", self.code), ("data", self.data)) if self.by}
        most = max(shares, key=lambda name: shares[name], default="unknown")
        return "both" if len(shares) == 2 and min(shares.values()) >= LEAST_SHARE else most

    @property
    def weight(self) -> float:
        """How far it moved, in half widths of the interval that it had."""
        spread = [number for number in (self.before.low, self.before.high) if number is not None]
        half = (max(spread) - min(spread)) / 2 if len(spread) == 2 else 0.0
        return abs(self.by) / max(half, abs(self.before.value or 0.0) * 1e-3, 1e-9)


def moved(trial: Trial) -> list[Moved]:
    """Return every figure that can be told before and after a change: what closes a gate first, then the furthest."""
    start, end = start_of(trial), trial.corner("new", "new")
    if start is None or end is None:
        return []
    found = (_moved(trial, where, start, end) for where in _by_place(end))
    return sorted((one for one in found if one), key=lambda one: (not one.closes, not one.told, -one.weight))


def start_of(trial: Trial) -> Corner | None:
    """Return the corner that a change starts from; ``None`` where the base's code was not judged there."""
    return trial.corner("old", "old") if trial.data_changed else trial.corner("old", "new")


def _by_place(corner: Corner | None) -> dict[Where, FigureDone]:
    return {(f.dataset, f.slice, f.metric): f for f in corner.figures} if corner else {}


def _moved(trial: Trial, where: Where, start: Corner, end: Corner) -> Moved | None:
    before, after = _by_place(start).get(where), _by_place(end)[where]
    if before is None or not (_shown(before) and _shown(after)):
        return None
    corners = dict(_corners(trial, where))
    code, data = _parts(corners, data_changed=trial.data_changed)
    worse = (_value(after) - _value(before)) * (1 if _more_is_better(trial, where[2]) else -1) < 0
    closes = next((gate.condition for gate in gates_on(trial, where) if _closes(gate, before, after)), "")
    # The same bytes take the same time: what differs then is the machine.
    same = start.model_digest == end.model_digest and where[2] in COSTS
    told = not same and (bool(closes) or _told(before, after) or _told_by_pairs(end, where))
    found = {"before": before, "after": after, "code": code, "data": data, "corners": corners}
    return Moved(where=where, worse=worse, told=told, closes=closes, **found)  # type: ignore[arg-type]


def _shown(figure: FigureDone) -> bool:
    return figure.value is not None and (figure.rows is None or figure.rows >= LEAST_SHOWN)


def _value(figure: FigureDone) -> float:
    return figure.value or 0.0


def _corners(trial: Trial, where: Where) -> Iterator[tuple[tuple[str, str], float]]:
    for corner in trial.corners:
        figure = _by_place(corner).get(where)
        if figure is not None and figure.value is not None:
            yield (corner.code, corner.data), figure.value


def _parts(corners: dict[tuple[str, str], float], *, data_changed: bool) -> tuple[float | None, float | None]:
    """Return what code and data each add; None where that cannot be told."""
    if not data_changed:
        return corners["new", "new"] - corners["old", "new"], 0.0
    if len(corners) < 4:
        return None, None
    a, b, c, d = (corners[place] for place in (("old", "old"), ("old", "new"), ("new", "old"), ("new", "new")))
    return ((c - a) + (d - b)) / 2, ((b - a) + (d - c)) / 2


def _more_is_better(trial: Trial, metric: str) -> bool:
    known = CATALOGUE[trial.task].get(metric)
    return known is not None and known.better is Better.MORE


def gates_on(trial: Trial, where: Where) -> list[Asked]:
    """Return the gates that ask something of a figure."""
    dataset, part, metric = where
    return [gate for gate in trial.asked if (gate.dataset, gate.metric) == (dataset, metric) and part in gate.places]


def _closes(gate: Asked, before: FigureDone, after: FigureDone) -> bool:
    return _holds(gate, before) and not _holds(gate, after)


def _holds(gate: Asked, figure: FigureDone) -> bool:
    up = gate.at_least is not None
    number = figure.value if gate.on == "point" else figure.low if up else figure.high
    return number is not None and (number >= gate.bound if up else number <= gate.bound)


def _told(before: FigureDone, after: FigureDone) -> bool:
    if before.metric in COSTS:
        far = abs(_value(after) - _value(before)) > LEAST_COST * abs(_value(before))
        return far and not _meet(before, after) and before.metric not in ONCE
    return not _within(after, before) and not _within(before, after)


def _meet(one: FigureDone, other: FigureDone) -> bool:
    low, high = (_bounds(figure) for figure in (one, other))
    return low[0] <= high[1] and high[0] <= low[1]


def _bounds(figure: FigureDone) -> tuple[float, float]:
    value = _value(figure)
    return (value if figure.low is None else figure.low, value if figure.high is None else figure.high)


def _within(figure: FigureDone, other: FigureDone) -> bool:
    low, high = _bounds(other)
    return low <= _value(figure) <= high


def _told_by_pairs(end: Corner, where: Where) -> bool:
    """Whether the paired comparison with the champion tells that this figure moved: it sees what intervals do not."""
    rival = end.rival
    if rival is None or rival.kind != "champion" or where != ("holdout", "", rival.metric):
        return False
    return (rival.high is not None and rival.high < 0) or (rival.low is not None and rival.low > 0)


# Words


def sentences(trial: Trial) -> list[str]:
    """Return, a sentence a metric, where it became worse and what did it: closed gates first, then what gates ask for.

    The place where it moved furthest is the one that is told; the others are named.
    """
    worse = [one for one in moved(trial) if one.worse and one.told]
    asked = asked_metrics(trial)
    metrics = dict.fromkeys(one.where[2] for one in worse)
    # What closes a gate is asked for, and comes first already.
    order = sorted(metrics, key=lambda name: name not in asked)
    return [_of_metric([one for one in worse if one.where[2] == metric]) for metric in order]


def asked_metrics(trial: Trial) -> set[str]:
    """Return the metrics that a gate or the comparison asks for."""
    return {gate.metric for gate in trial.asked} | ({trial.compared.metric} if trial.compared else set())


def _of_metric(found: list[Moved]) -> str:
    worst, others = found[0], [_place(one.where) for one in found[1:]]
    names = ", ".join(others[:NAMED]) + (f" and {len(others) - NAMED} more" if len(others) > NAMED else "")
    return sentence(worst) + (f" Worse too: {names}." if others else "")


def sentence(one: Moved) -> str:
    """Return what became of one figure, and the cause."""
    way = "became worse" if one.worse else "became better"
    gate = f", which closes the gate {one.closes}" if one.closes else ""
    return f"{name_of(one.where)} {way}: {_numbers(one)}{gate}. {_cause(one)}"


def name_of(where: Where) -> str:
    """Return a figure's metric, slice and dataset as people say them."""
    metric = where[2]
    if metric in COSTS:
        return metric
    return f"{metric} of {_place(where)}"


def _place(where: Where) -> str:
    dataset, part, _ = where
    return (part or "all rows") + (f" on {dataset}" if dataset != "holdout" else "")


def _numbers(one: Moved) -> str:
    return f"{_value(one.before):.4g} before, {_value(one.after):.4g} now ({one.by:+.4g})"


def _cause(one: Moved) -> str:
    if one.code is None or one.data is None:
        return "Code and data both changed, and not every corner could be judged that would tell which of them did it."
    if ("old", "old") not in one.corners:
        return "The cause is the code: the data are the same."
    parts = f"the code moves it by {one.code:+.4g}, the data by {one.data:+.4g}"
    return (
        f"The causes are both, code and data: {parts}."
        if one.cause == "both"
        else f"The cause is the {one.cause}: {parts}."
    )
