"""A verdict as a page that a person reads: what was decided and why, on which figures, of what; without scripts.

It holds figures of many rows and no row: a slice of fewer than `LEAST_SHOWN` rows is named without its figures.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ml_platform.model_spec import HOLDOUT, Comparison, Gate, ModelSpec
from ml_platform.records import Candidate, Figure, GateOutcome, GateResult, Rival, Verdict
from ml_platform.stages import _drawings
from ml_platform.stages._curves import LEAST_ROWS, Curves
from ml_platform.stages._drawings import Bound, Interval, bar, plot, scale_of
from ml_platform.stages._elements import STYLE, badge, code, key, section, table, words
from ml_platform.stages._metrics import CATALOGUE, Better
from ml_platform.stages._page import Html, document, tag, together

LEAST_SHOWN = 5
COSTS = {
    "inference_time_ms": "one record in a warm process, 95th percentile, in ms",
    "inference_p50_ms": "the same, median, in ms",
    "inference_p99_ms": "the same, 99th percentile, in ms",
    "first_prediction_ms": "the first record after the start, in ms",
    "cold_load_seconds": "the file loaded in a fresh process, in s",
    "resident_memory_mib": "memory of that process, in MiB",
    "machine_noise": "how far this machine's times spread, as a factor",
    "model_size_mb": "the model file, in MB",
}
GATES = "Each value with its interval; the line is the bound, and what is asked for is shaded."
WORDS = {
    GateOutcome.PASS: "It holds.",
    GateOutcome.FAIL: "It does not hold.",
    GateOutcome.INCONCLUSIVE: "It cannot be told, and what cannot be told does not pass.",
}
Where = tuple[str, str, str]


def draw(verdict: Verdict, candidate: Candidate, spec: ModelSpec, curves: Curves | None) -> str:
    """Write a verdict as one page of HTML that loads nothing from elsewhere.

    Parameters
    ----------
    verdict : Verdict
    candidate : Candidate
        Whom it speaks of.
    spec : ModelSpec
        The gates that it was judged by.
    curves : Curves or None
        The candidate's, and its rival's if there was one; None where nothing was kept.
    """
    shown = _Shown(verdict=verdict, candidate=candidate, spec=spec, curves=curves)
    body = together(
        tag("h1", f"{verdict.model}: the verdict on candidate {verdict.candidate}"),
        _headline(verdict, spec),
        section("The gates", tag("p", GATES), _gates(shown)),
        section("Beside whom", *_beside(shown)),
        section("Figures", *_figures(shown)),
        section("Slices", *_slices(shown)),
        section("Curves", *_curves(shown)),
        section("Time, memory and size", _costs(shown)),
        section("What it rests on", _lineage(shown)),
        section("How to check it", *_checking(shown)),
    )
    return document(f"{verdict.model}: verdict on {verdict.candidate}", _drawings.STYLE + STYLE, body)


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """What a page is drawn from."""

    verdict: Verdict
    candidate: Candidate
    spec: ModelSpec
    curves: Curves | None

    @cached_property
    def ours(self) -> dict[Where, Figure]:
        return _by_place(self.verdict.findings.figures)

    @cached_property
    def theirs(self) -> dict[Where, Figure]:
        return _by_place(self.rival.figures if self.rival else [])

    @property
    def rival(self) -> Rival | None:
        return self.verdict.findings.rival

    @property
    def them(self) -> str | None:
        """What the rival is called; None where there are no figures of one."""
        return _name_of(self.rival) if self.rival and self.theirs else None

    def gates_on(self, where: Where) -> list[Gate]:
        dataset, part, metric = where
        on = [gate for gate in self.spec.gates if (gate.dataset, gate.metric) == (dataset, metric)]
        return [gate for gate in on if part in _places(gate, self.spec)]

    @property
    def asked(self) -> list[str]:
        """The metrics that something is asked of, in the order in which they are declared."""
        compared = [self.spec.comparison.metric] if self.spec.comparison else []
        names = dict.fromkeys([*(gate.metric for gate in self.spec.gates), *compared])
        return [name for name in names if name in CATALOGUE[self.spec.task]]


def _by_place(figures: Iterable[Figure]) -> dict[Where, Figure]:
    return {(figure.dataset, figure.slice, figure.metric): figure for figure in figures}


def _places(gate: Gate, spec: ModelSpec) -> list[str]:
    return [part.name for part in spec.parts_of(gate.slices)] or [""]


def _name_of(rival: Rival) -> str:
    return f"{'champion, ' if rival.kind == 'champion' else 'baseline, '}{rival.name}"


# Elements


def _interval(figure: Figure | None) -> Interval:
    if figure is None or _hidden(figure):
        return Interval(value=None)
    return Interval(value=figure.value, low=figure.low, high=figure.high)


def _hidden(figure: Figure) -> bool:
    return figure.rows is not None and figure.rows < LEAST_SHOWN


def _said(figure: Figure | None) -> Html:
    """Return a figure with its bounds, or why there is none."""
    if figure is None:
        return together("not measured")
    if _hidden(figure):
        return tag("small", f"fewer than {LEAST_SHOWN} rows: no figures are shown")
    interval, missing = _interval(figure), None in (figure.value, figure.low, figure.high)
    why = tag("small", f" {figure.reason}") if figure.reason and missing else None
    return together(words(interval), why)


# What was decided


def _headline(verdict: Verdict, spec: ModelSpec) -> Html:
    by = {kind: [r for r in verdict.results if r.outcome is kind] for kind in GateOutcome}
    everything, then = len(verdict.results), " once somebody approves it" if spec.approval_needed else ""
    kind = _worst(by)
    sentence = {
        GateOutcome.PASS: f"PASS. All {everything} gates hold: it may be registered, and promoted{then}.",
        GateOutcome.FAIL: f"REFUSED. {_of(by[GateOutcome.FAIL], everything)} not hold. The champion stays.",
        GateOutcome.INCONCLUSIVE: f"REFUSED. {_of(by[GateOutcome.INCONCLUSIVE], everything)} not say "
        "either way, and what cannot be told does not pass. None says that the model is bad. The champion stays.",
    }[kind]
    if not everything:
        sentence = "REFUSED. No gate was applied. The champion stays."
    reasons = [
        tag("li", badge(r.outcome.value), " ", r.why) for r in verdict.results if r.outcome is not GateOutcome.PASS
    ]
    word, _, rest = sentence.partition(" ")
    return tag(
        "div", tag("strong", word), f" {rest}", tag("ul", *reasons) if reasons else None, class_=f"said {kind.value}"
    )


def _of(results: Sequence[GateResult], everything: int) -> str:
    return f"{len(results)} of {everything} gates {'does' if len(results) == 1 else 'do'}"


def _worst(by: Mapping[GateOutcome, Sequence[GateResult]]) -> GateOutcome:
    if by[GateOutcome.FAIL] or not any(by.values()):
        return GateOutcome.FAIL
    return GateOutcome.INCONCLUSIVE if by[GateOutcome.INCONCLUSIVE] else GateOutcome.PASS


def _gates(shown: _Shown) -> Html:
    declared: dict[str, Gate | Comparison] = {gate.name: gate for gate in shown.spec.gates}
    if shown.spec.comparison:
        declared[shown.spec.comparison.name] = shown.spec.comparison
    rows = [
        (
            result.condition,
            badge(result.outcome.value),
            _pictures(declared.get(result.name), shown),
            together(f"{WORDS[result.outcome]} ", tag("small", result.why)),
        )
        for result in shown.verdict.results
    ]
    return table(["condition", "result", "value", "why"], rows, "stack")


def _pictures(gate: Gate | Comparison | None, shown: _Shown) -> Html | None:
    if gate is None:
        return None
    if isinstance(gate, Comparison):
        return _gain(gate, shown.rival) if shown.rival else together("compared with nobody")
    places, bound = _places(gate, shown.spec), Bound(value=gate.bound, up=gate.at_least is not None)
    figures = {place: shown.ours.get((gate.dataset, place, gate.metric)) for place in places}
    scale = scale_of(map(_interval, figures.values()), bound)
    return together(*(_picture(place, figure, bound, scale) for place, figure in figures.items()))


def _picture(place: str, figure: Figure | None, bound: Bound, scale: tuple[float, float]) -> Html:
    interval, name = _interval(figure), tag("small", f"{place}: ") if place else None
    asked = f"{'at least' if bound.up else 'at most'} {bound.value:g}"
    said = f"{place or 'all rows'}: {words(interval)}, asked for is {asked}"
    picture = bar([interval], bound, scale, said) if interval.value is not None else None
    return tag("div", name, _said(figure), picture)


def _gain(comparison: Comparison, rival: Rival) -> Html:
    interval = Interval(value=rival.difference, low=rival.low, high=rival.high)
    if interval.value is None:
        return together("not told")
    bound = Bound(value=_least_gain(comparison, rival), up=True)
    said = f"gain {words(interval)}, its lower bound must reach {bound.value:g}"
    return tag("div", f"{words(interval)} over {rival.name}", bar([interval], bound, scale_of([interval], bound), said))


def _least_gain(comparison: Comparison, rival: Rival) -> float:
    if rival.kind == "baseline":
        return 0.0
    return -comparison.margin if comparison.minimum_gain is None else comparison.minimum_gain


# Beside whom


def _beside(shown: _Shown) -> Iterator[Html]:
    rival, comparison = shown.rival, shown.spec.comparison
    if comparison is None or rival is None:
        yield tag("p", "The author asks for no comparison.")
        return
    yield tag("p", _whom(shown, rival))
    where = (HOLDOUT, "", comparison.metric)
    rows = [(key(0, "candidate"), shown.candidate.id, code(shown.verdict.model_digest), _said(shown.ours.get(where)))]
    rows.append((key(1, rival.kind), rival.name, code(_digest_of(rival)), _said(shown.theirs.get(where))))
    yield table(["", "which", "sha256 of its bytes", f"{comparison.metric} on the holdout"], rows, "stack")
    yield tag("p", _difference(comparison, rival))


def _digest_of(rival: Rival) -> str:
    # A baseline in the place of a champion with the very bytes of the candidate carries that champion's digest.
    return (rival.model_digest if rival.kind == "champion" else None) or "a baseline has none"


def _whom(shown: _Shown, rival: Rival) -> str:
    champion = shown.verdict.findings.champion
    if champion is None:
        return "There is no champion yet: the candidate must beat the baseline that its author states."
    if rival.kind == "baseline":
        return f"Champion is version {champion}, which has the candidate's very bytes: the baseline takes its place."
    return f"Champion is version {champion}. Both answered the same rows, on which neither was trained."


def _difference(comparison: Comparison, rival: Rival) -> Html:
    if rival.difference is None or rival.reason:
        return together(f"They were not compared: {rival.reason or 'the difference cannot be told'}.")
    interval = Interval(value=rival.difference, low=rival.low, high=rival.high)
    odds = "" if rival.p_better is None else f"; p {_odds(rival.p_better)} for “it is not better”"
    return together(
        tag("strong", f"The candidate's {comparison.metric} is {_better(rival.difference)}: {words(interval)}"),
        f" on {rival.rows:,} rows that neither was trained on ({rival.method or 'no method named'}{odds}). "
        f"Each bound is {comparison.confidence:.0%} sure on its side.",
    )


def _better(difference: float) -> str:
    return "better" if difference > 0 else "worse" if difference < 0 else "as good"


def _odds(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.2g}"


# Figures


def _figures(shown: _Shown) -> Iterator[Html]:
    said = "Bounds at 90 %, so that each alone is 95 % sure. Every line has its own scale."
    yield tag("p", key(0, "candidate "), key(1, f"{shown.them} ") if shown.them else None, said)
    for dataset in dict.fromkeys(figure.dataset for figure in shown.verdict.findings.figures):
        rows = [
            _figure_row(where, shown) for where in shown.ours if where[:2] == (dataset, "") and where[2] not in COSTS
        ]
        if not rows:
            continue
        yield tag("h3", _dataset_name(dataset, shown))
        yield table(["metric", "candidate", *([shown.them] if shown.them else []), ""], rows, "stack")


def _dataset_name(dataset: str, shown: _Shown) -> str:
    rows = next(
        (f.rows for f in shown.verdict.findings.figures if f.dataset == dataset and not f.slice and f.rows), None
    )
    name = "On the holdout" if dataset == HOLDOUT else f"On the golden dataset {dataset}"
    return name if rows is None else f"{name}: {rows:,} rows"


def _figure_row(where: Where, shown: _Shown) -> list[object]:
    ours, theirs = shown.ours[where], shown.theirs.get(where)
    said = [_said(theirs)] if shown.them else []
    name = together(where[2], tag("small", _direction(where[2], shown.spec)))
    return [name, _said(ours), *said, _beside_each_other([ours, theirs], _bound_on(where, shown), where[2])]


def _direction(metric: str, spec: ModelSpec) -> str:
    found = CATALOGUE[spec.task].get(metric)
    return "" if found is None else " more is better" if found.better is Better.MORE else " less is better"


def _bound_on(where: Where, shown: _Shown) -> Bound | None:
    gates = shown.gates_on(where)
    return Bound(value=gates[0].bound, up=gates[0].at_least is not None) if gates else None


def _beside_each_other(
    figures: Sequence[Figure | None], bound: Bound | None, what: str, scale: tuple[float, float] | None = None
) -> Html | None:
    intervals = [_interval(figure) for figure in figures if figure is not None]
    if not any(interval.numbers for interval in intervals):
        return None
    said = f"{what}: " + " beside ".join(map(words, intervals))
    return bar(intervals, bound, scale or scale_of(intervals, bound), said)


# Slices


def _slices(shown: _Shown) -> Iterator[Html]:
    parts = list(dict.fromkeys((f.dataset, f.slice) for f in shown.verdict.findings.figures if f.slice))
    if not parts:
        yield tag("p", "The author names no slice: only all rows together were measured.")
        return
    mark = tag("span", "gate", class_="asks")
    yield tag("p", mark, " marks what a gate asks for; its bound is the line. One column has one scale.")
    scales = {metric: _scale_over(parts, metric, shown) for metric in shown.asked}
    rows = [_slice_row(part, scales, shown) for part in parts]
    yield table(["slice", "rows", *shown.asked], rows, "stack")
    yield _every_figure(shown)


def _scale_over(parts: Iterable[tuple[str, str]], metric: str, shown: _Shown) -> tuple[float, float]:
    places = [(*part, metric) for part in parts]
    figures = [found for place in places for found in (shown.ours.get(place), shown.theirs.get(place))]
    bounds = [bound.value for place in places if (bound := _bound_on(place, shown))]
    return scale_of([*map(_interval, figures), *(Interval(value=bound) for bound in bounds)], None)


def _slice_row(part: tuple[str, str], scales: Mapping[str, tuple[float, float]], shown: _Shown) -> list[object]:
    dataset, name = part
    found = [shown.ours.get((*part, metric)) for metric in scales]
    rows = next((figure.rows for figure in found if figure and figure.rows is not None), None)
    cells = [_slice_cell((*part, metric), scale, shown) for metric, scale in scales.items()]
    return [name if dataset == HOLDOUT else f"{name} ({dataset})", _rows_said(rows), *cells]


def _rows_said(rows: int | None) -> str:
    return "not told" if rows is None else f"{rows:,}" if rows >= LEAST_SHOWN else f"fewer than {LEAST_SHOWN}"


def _slice_cell(where: Where, scale: tuple[float, float], shown: _Shown) -> Html:
    ours, theirs = shown.ours.get(where), shown.theirs.get(where)
    mark = together(tag("span", "gate", class_="asks"), " ") if shown.gates_on(where) else None
    picture = _beside_each_other([ours, theirs], _bound_on(where, shown), where[2], scale)
    return tag("div", mark, _said(ours), picture)


def _every_figure(shown: _Shown) -> Html:
    figures = [figure for figure in shown.verdict.findings.figures if figure.slice]
    theirs = ["rival"] if shown.them else []
    rows = [
        [f.slice, f.dataset, f.metric, _said(f), *([_said(shown.theirs.get(where))] if theirs else []), f.method]
        for where, f in _by_place(figures).items()
    ]
    every = table(["slice", "dataset", "metric", "candidate", *theirs, "bounds by"], rows)
    return tag("details", tag("summary", f"All {len(rows)} figures of the slices"), every)


# Curves


def _curves(shown: _Shown) -> Iterator[Html]:
    curves = shown.curves
    if curves is None or not any(one.roc or one.calibration for one in curves.of):
        yield tag("p", "There are none: the model did not answer, or too few rows are held out to draw them.")
        return
    names = [key(place, f"{one.name} ") for place, one in enumerate(curves.of)]
    yield tag(
        "p", *names, f"on the same {curves.rows:,} rows of the holdout. A point stands for {LEAST_ROWS} rows or more."
    )
    pictures = [_roc(curves, shown.spec), _calibration(curves, shown.spec)]
    yield tag("div", *pictures, class_="curves")


def _roc(curves: Curves, spec: ModelSpec) -> Html | None:
    if not any(one.roc for one in curves.of):
        return None
    lines = [[(0.0, 0.0), *zip(_steps(one.roc), one.roc, strict=True)] if one.roc else [] for one in curves.of]
    title = "ROC" if spec.task == "binary" else "ROC, mean of each class against the rest"
    said = f"{title} of {' and '.join(one.name for one in curves.of)}; the diagonal is chance."
    return _figure(title, plot(lines, ("false positive rate", "true positive rate"), said, dots=False))


def _steps(rates: Sequence[float]) -> list[float]:
    return [place / (len(rates) - 1) for place in range(len(rates))]


def _calibration(curves: Curves, spec: ModelSpec) -> Html:
    axes = {
        "binary": ("mean probability", f"share that is {spec.positive}"),
        "multiclass": ("mean probability of the predicted class", "share that is right"),
        "regression": ("mean prediction", f"mean {spec.label}"),
    }[spec.task]
    said = f"Calibration of {' and '.join(one.name for one in curves.of)}; on the diagonal, what is said comes true."
    lines = [one.calibration for one in curves.of]
    return _figure("Calibration, a point a tenth of the rows", plot(lines, axes, said, dots=True))


def _figure(title: str, picture: Html) -> Html:
    return tag("figure", tag("figcaption", title), picture)


# What it costs, and what it rests on


def _costs(shown: _Shown) -> Html:
    found = [figure for figure in shown.verdict.findings.figures if figure.metric in COSTS]
    if not found:
        return tag("p", "None was measured.")
    rows = [(f.metric, _said(f), _asked_of(f, shown), COSTS[f.metric]) for f in found]
    return table(["", "value [range that noise leaves]", "asked for", "what it is"], rows, "stack")


def _asked_of(figure: Figure, shown: _Shown) -> str:
    gates = shown.gates_on((figure.dataset, figure.slice, figure.metric))
    return ", ".join(gate.asks for gate in gates) or "nothing"


def _lineage(shown: _Shown) -> Html:
    verdict, candidate = shown.verdict, shown.candidate
    split = f"{verdict.split} (how the holdout was chosen, and its share)"
    said: list[tuple[str, object]] = [
        ("candidate", f"{candidate.id}, trained {candidate.trained_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("why it was trained", candidate.lineage.reason),
        ("asked for by", candidate.actor or "a trigger"),
        ("model file, sha256", code(verdict.model_digest)),
        ("dataset", together(f"version {verdict.dataset_version}, digest ", code(verdict.dataset_digest))),
        ("split", split),
        ("golden datasets", ", ".join(f"{one.name} {one.sha256[:12]}" for one in shown.spec.golden) or "none"),
        ("code revision", code(verdict.code_revision)),
        ("lock file, sha256", code(verdict.lock_digest)),
        ("gates, sha256", code(verdict.gates_digest)),
        ("verdict, sha256", code(verdict.digest)),
    ]
    return tag("dl", *(together(tag("dt", name), tag("dd", value)) for name, value in said))


def _checking(shown: _Shown) -> Iterator[Html]:
    model = shown.verdict.model
    yield tag(
        "p",
        "This page is a picture of the verdict; the verdict itself is ",
        tag("code", "verdict.json"),
        " in the candidate's MLflow run. Nothing is decided by either: registration reads the platform's own database "
        "and judges the figures again.",
    )
    checks = [
        ("sha256sum verdict.json", "gives the digest of the verdict above"),
        ("sha256sum model.skops", "gives the digest of the model file above"),
        (f"ml-platform explain version {model} N", "says who made version N champion, and whether the ledger verifies"),
        (f"ml-platform reproduce {model} N", "trains and judges version N again and compares every prediction"),
    ]
    yield tag("ul", *(tag("li", tag("code", command), " ", what) for command, what in checks))
