"""The report as one page that a reviewer reads: it loads nothing, runs nothing and escapes every text."""

from collections.abc import Iterator, Sequence

from ml_platform.quality.comment import SENTENCES, WORDS, changed_files, corners_of, figures, nothing_moved, said
from ml_platform.quality.documents import Asked, CheckState, Corner, FigureDone, GateDone, Outcome, Trial
from ml_platform.quality.moved import Moved, asked_metrics, gates_on, moved, name_of, sentences
from ml_platform.stages import _drawings
from ml_platform.stages._curves import LEAST_ROWS
from ml_platform.stages._drawings import Bound, Interval, bar, plot, scale_of
from ml_platform.stages._elements import STYLE, badge, code, key, number, section, table, words
from ml_platform.stages._page import Html, document, tag, together
from ml_platform.stages.verdict_pages import COSTS, LEAST_SHOWN

OURS, THEIRS = "this change", "base"
COLOUR = {Outcome.PASS: "PASS", Outcome.FAIL: "FAIL", Outcome.BROKEN: "FAIL"}
MORE = """
.said li{overflow-wrap:anywhere}.worse,.better{font-weight:600;white-space:nowrap}
.worse{color:#d0483a}.better{color:#2e8b57}
"""
MOST_ROWS = 40
Where = tuple[str, str, str]


def draw(trials: Sequence[Trial]) -> str:
    """Write the report on all trials as one page of HTML."""
    title = "Quality gates: " + (", ".join(map(_name, trials)) or "no model is affected")
    body = together(tag("h1", title), *(_trial(trial) for trial in trials))
    return document(title, _drawings.STYLE + STYLE + MORE, body)


def _name(trial: Trial) -> str:
    return f"{trial.model} on {trial.golden}" if trial.golden else trial.model


def _trial(trial: Trial) -> Html:
    end, them = trial.corner("new", "new"), trial.corner("old", "new")
    parts = [_headline(trial), section("What moved it", *_moved(trial))]
    if trial.changes:
        parts.append(section("Gates that changed", _changes(trial)))
    if end:
        parts += [
            section("The gates", _keys(trial, them), _gates(trial, end, them)),
            section("Slices", *_slices(trial, end, them)),
            section("Curves", *_curves(trial, end, them)),
            section("Time, memory and size", _costs(trial, end, them)),
        ]
    parts += [section("Asset checks", *_checks(trial)), section("What it rests on", _rests(trial))]
    return together(*parts)


def _headline(trial: Trial) -> Html:
    word, _, rest = WORDS[trial.outcome].partition(" ")
    found = [tag("li", problem) for problem in trial.problems]
    notes = [tag("p", tag("small", note)) for note in trial.notes]
    said = tag("p", tag("strong", f"{_name(trial)}: {word}"), f" {rest}")
    return tag("div", said, tag("ul", *found) if found else None, *notes, class_=f"said {COLOUR[trial.outcome]}")


def _keys(trial: Trial, them: Corner | None) -> Html:
    their = f"{THEIRS}: its code on the data of this change" if trial.data_changed else THEIRS
    return tag("p", key(0, f"{OURS} "), key(1, their) if them else "The base was not judged on these data.")


# What moved it


def _moved(trial: Trial) -> Iterator[Html]:
    worse = sentences(trial)
    yield tag("ul", *(tag("li", one) for one in worse[:SENTENCES])) if worse else tag("p", nothing_moved(trial))
    if trial.changed:
        yield tag("p", changed_files(trial))
    found = moved(trial)
    if not found:
        return
    yield tag(
        "p",
        tag("small", "Marked is what moved further than its interval, or the machine's noise, explains. "),
        tag("small", _how(trial)),
    )
    asked = asked_metrics(trial)
    told = [one for one in found if one.told and one.where[2] in asked]
    if told:
        yield _moved_table(trial, told)
    yield tag("details", tag("summary", f"All {len(found)} figures, the furthest first"), _moved_table(trial, found))


def _how(trial: Trial) -> str:
    if not trial.data_changed:
        return "The data are the same, so that the code did all of it."
    return (
        "The code's part is the mean of what new code changes on old and on new data; the data's part the mean of what "
        "new data change under old and under new code. The two add up."
    )


def _moved_table(trial: Trial, found: Sequence[Moved]) -> Html:
    places = corners_of(trial)
    heads = [
        "figure",
        *(f"{code} code, {data} data" for code, data in places),
        "by the code",
        "by the data",
        "together",
    ]
    return table(heads, [_moved_row(one, places) for one in found], "stack")


def _moved_row(one: Moved, places: Sequence[tuple[str, str]]) -> list[object]:
    cells = [number(one.corners.get(place)) for place in places]
    kind = ("worse" if one.worse else "better") if one.told else None
    return [
        name_of(one.where),
        *cells,
        _part_of(one.code),
        _part_of(one.data),
        tag("span", _part_of(one.by), class_=kind),
    ]


def _part_of(number: float | None) -> str:
    return "not told" if number is None else f"{number:+.3g}" if number else "0"


def _changes(trial: Trial) -> Html:
    rows = [
        (
            change.check,
            change.kind,
            change.before,
            change.after or "nothing",
            change.declared or tag("span", "not declared", class_="badge FAIL"),
        )
        for change in trial.changes
    ]
    return table(["check", "what", "before", "now", "declared reason"], rows, "stack")


# Gates


def _gates(trial: Trial, end: Corner, them: Corner | None) -> Html:
    asked = {gate.name: gate for gate in trial.asked}
    rows = [
        (gate.condition, badge(gate.outcome), _picture(trial, gate, asked.get(gate.name), end, them), gate.why)
        for gate in end.gates
    ]
    return table(["condition", "result", "value", "why"], rows, "stack")


def _picture(trial: Trial, gate: GateDone, asked: Asked | None, end: Corner, them: Corner | None) -> Html | None:
    if asked is not None:
        return together(*(_place(place, asked, end, them) for place in asked.places))
    if trial.compared is None or trial.compared.name != gate.name or end.rival is None:
        return None
    rival = end.rival
    interval = Interval(value=rival.difference, low=rival.low, high=rival.high)
    if interval.value is None:
        return together(rival.reason or "not told")
    gain = 0.0 if rival.kind == "baseline" else -trial.compared.margin
    least = gain if trial.compared.minimum_gain is None else max(gain, trial.compared.minimum_gain)
    bound = Bound(value=least, up=True)
    drawn = bar([interval], bound, scale_of([interval], bound), f"gain {words(interval)}, asked for is {least:g}")
    return tag("div", f"{words(interval)} over the {rival.kind}, {rival.name}", drawn)


def _place(place: str, asked: Asked, end: Corner, them: Corner | None) -> Html:
    where = (asked.dataset, place, asked.metric)
    bound = Bound(value=asked.bound, up=asked.at_least is not None)
    name = tag("small", f"{place}: ") if place else None
    return tag("div", name, _both(where, end, them, bound))


def _both(where: Where, end: Corner, them: Corner | None, bound: Bound | None) -> Html:
    """Return a figure of this change beside the champion's, in words and as a picture."""
    ours, theirs = figures(end).get(where), figures(them).get(where)
    if _hidden(ours) or _hidden(theirs):
        return tag("small", f"fewer than {LEAST_SHOWN} rows: no figures are shown")
    both = [one for one in (ours, theirs) if one is not None]
    intervals = [Interval(value=one.value, low=one.low, high=one.high) for one in both]
    beside = f", {THEIRS} {said(theirs)}" if theirs is not None else ""
    sentence = f"{said(ours)}{beside}"
    if not any(interval.numbers for interval in intervals):
        return together(sentence)
    drawn = bar(intervals, bound, scale_of(intervals, bound), f"{where[2]}: {sentence}")
    return together(said(ours), tag("small", beside), drawn)


def _hidden(figure: FigureDone | None) -> bool:
    return figure is not None and figure.rows is not None and figure.rows < LEAST_SHOWN


# Slices, curves, costs


def _slices(trial: Trial, end: Corner, them: Corner | None) -> Iterator[Html]:
    parts = list(dict.fromkeys((f.dataset, f.slice) for f in end.figures if f.slice or f.dataset != "holdout"))
    if not parts:
        yield tag("p", "The author names no slice: only all rows together were measured.")
        return
    asked = [gate.metric for gate in trial.asked] + ([trial.compared.metric] if trial.compared else [])
    metrics = [metric for metric in dict.fromkeys(asked) if metric not in COSTS]
    marks = {one.where: one for one in moved(trial) if one.told and one.where[2] in metrics}
    yield tag("p", _moved_slices(list(marks.values())))
    rows = [[_part(part), *(_cell(trial, (*part, m), end, them, marks) for m in metrics)] for part in parts[:MOST_ROWS]]
    yield table(["slice", *metrics], rows, "stack")


def _moved_slices(found: Sequence[Moved]) -> str:
    names = dict.fromkeys(one.where[1] for one in found if one.where[1])
    return f"Slices that moved: {', '.join(names)}." if names else "No slice moved beyond its intervals."


def _part(part: tuple[str, str]) -> str:
    dataset, name = part
    return (name or "all rows") if dataset == "holdout" else f"{name or 'all rows'} ({dataset})"


def _cell(trial: Trial, where: Where, end: Corner, them: Corner | None, marks: dict[Where, Moved]) -> Html:
    gate = next(iter(gates_on(trial, where)), None)
    bound = Bound(value=gate.bound, up=gate.at_least is not None) if gate else None
    mark = together(tag("span", "gate", class_="asks"), " ") if gate else None
    one = marks.get(where)
    was = f" {_part_of(one.by)}, it was {number(one.before.value)}" if one else ""
    way = tag("span", was, class_="worse" if one.worse else "better") if one else None
    return tag("div", mark, _both(where, end, them, bound), way)


def _curves(trial: Trial, end: Corner, them: Corner | None) -> Iterator[Html]:
    lines = [corner.curves[0] for corner in (end, them) if corner and corner.curves]
    if not any(line.roc or line.calibration for line in lines):
        yield tag("p", "There are none: too few rows are held out to draw them.")
        return
    yield tag("p", f"On {end.curve_rows:,} rows of the holdout. A point stands for {LEAST_ROWS} rows or more.")
    roc = [
        [(0.0, 0.0), *((place / (len(line.roc) - 1), rate) for place, rate in enumerate(line.roc))] for line in lines
    ]
    pictures = []
    if any(len(line.roc) > 1 for line in lines):
        axes = ("false positive rate", "true positive rate")
        pictures.append(_figure("ROC", plot(roc, axes, "ROC of this change and of the base", dots=False)))
    calibration = plot([line.calibration for line in lines], _axes(trial), "Calibration of both", dots=True)
    pictures.append(_figure("Calibration, a point a tenth of the rows", calibration))
    yield tag("div", *pictures, class_="curves")


def _axes(trial: Trial) -> tuple[str, str]:
    return {
        "binary": ("mean probability", f"share that is {trial.positive}"),
        "multiclass": ("mean probability of the predicted class", "share that is right"),
        "regression": ("mean prediction", "mean label"),
    }[trial.task]


def _figure(title: str, picture: Html) -> Html:
    return tag("figure", tag("figcaption", title), picture)


def _costs(trial: Trial, end: Corner, them: Corner | None) -> Html:
    rows = [
        (COSTS[where[2]], said(figure), said(figures(them).get(where)), _asks(trial, where))
        for where, figure in figures(end).items()
        if where[2] in COSTS
    ]
    return table(["", f"{OURS} [range that noise leaves]", THEIRS, "asked for"], rows, "stack")


def _asks(trial: Trial, where: Where) -> str:
    return ", ".join(gate.condition for gate in gates_on(trial, where)) or "nothing"


# What it rests on


def _checks(trial: Trial) -> Iterator[Html]:
    good = sum(check.state is CheckState.SUCCEEDED for check in trial.checks)
    yield tag("p", f"{good} of {len(trial.checks)} expected checks are on record as SUCCEEDED in Dagster's event log.")
    bad = [check for check in trial.checks if check.state is not CheckState.SUCCEEDED]
    for found, name in ((bad, ""), (trial.checks, "All of them")):
        rows = [(check.check, _state(check.state), check.declared or check.said) for check in found]
        drawn = table(["check", "record", "what it said"], rows, "stack") if rows else None
        yield tag("details", tag("summary", name), drawn) if name else together(drawn)


def _state(state: CheckState) -> Html:
    return tag("span", state.value, class_=f"badge {'PASS' if state is CheckState.SUCCEEDED else 'FAIL'}")


def _rests(trial: Trial) -> Html:
    lines: list[tuple[str, object]] = [
        ("base", together(f"{trial.base}, from commit ", code(trial.base_commit))),
        ("this change", code(trial.head)),
        ("data", "changed" if trial.data_changed else "the same as the base's"),
    ]
    for corner in trial.corners:
        what = together("model ", code(corner.model_digest[:12]), ", dataset ", code(corner.dataset_digest[:12]))
        lines.append((f"{corner.code} code, {corner.data} data", what if corner.judged else corner.why))
    return tag("dl", *(together(tag("dt", name), tag("dd", value)) for name, value in lines))
