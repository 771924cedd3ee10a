"""The report as Markdown, for one comment and a job's summary: bounded in size, no stranger's text unescaped."""

import re
from collections.abc import Iterable, Iterator, Sequence

from ml_platform.quality.documents import CheckState, Corner, FigureDone, Outcome, Trial
from ml_platform.quality.moved import Moved, moved, name_of, sentences, start_of
from ml_platform.stages.verdict_pages import COSTS

# By this line whoever posts finds the one comment that it updates.
MARKER = "<!-- ml-platform quality gates -->"
# GitHub takes 65,536 characters a comment.
MOST = 60_000
LONGEST = 300
ROWS = 20
SENTENCES = 5
FILES = 3
POINTS = 21
# Letters, and marks where they are neither markup nor part of an address.
PLAIN = re.compile(
    r"[A-Za-z0-9 ,;=+%()/'?!]|(?<=[A-Za-z0-9])_(?=[A-Za-z0-9])|(?<![A-Za-z])-(?=[0-9])|[.:](?![A-Za-z/])"
)
WORDS = {
    Outcome.PASS: "PASS. Every gate holds, and every expected check is on record as SUCCEEDED.",
    Outcome.FAIL: "REFUSED. Not every gate holds.",
    Outcome.BROKEN: "REFUSED. It could not be judged, and what cannot be judged does not pass.",
}


def plain(text: str) -> str:
    """Return a text so that Markdown and HTML show it as it is: nothing of it is markup, a mention or a link."""
    short = " ".join(text.split())
    short = short if len(short) <= LONGEST else short[: LONGEST - 1] + "…"
    return "".join(c if PLAIN.match(short, place) else _entity(c) for place, c in enumerate(short))


def _entity(character: str) -> str:
    # GitHub looks for names after @ and numbers after # and - in what was rendered: nothing visible keeps them apart.
    apart = "&#8203;" if character in "@#-" else ""
    return f"&#{ord(character)};{apart}" if character.isprintable() else "&#65533;"


def comment(trials: Sequence[Trial], *, most: int = MOST) -> str:
    """Return the report on all trials, at most so many characters long.

    What does not fit is left out from the end, details first, and the last line says so.
    """
    title = "No model is affected by this change." if not trials else ""
    parts = [MARKER, "## Quality gates", *([title] if title else [])]
    # All decisions come before any detail, so that no model's details push another's decision out.
    parts += [part for trial in trials for part in _decision(trial)]
    parts += [part for trial in trials for part in _details(trial)]
    return _fitting(parts, most)


def _fitting(parts: Iterable[str], most: int) -> str:
    kept, size, left = list[str](), 0, 0
    for part in parts:
        if left or size + len(part) + 2 > most - 200:
            left += 1
        else:
            kept.append(part)
            size += len(part) + 2
    if left:
        kept.append(f"*{left} parts more stand in the whole report, which this job keeps as an artifact.*")
    return "\n\n".join(kept) + "\n"


def _decision(trial: Trial) -> Iterator[str]:
    on = f", golden dataset {plain(trial.golden)}" if trial.golden else ""
    yield f"### {plain(trial.model)}{on}: {WORDS[trial.outcome]}"
    if trial.problems:
        yield _bullets(trial.problems)
    worse = sentences(trial)
    yield "**What moved it**\n\n" + (_bullets(worse, SENTENCES) if worse else _nothing(trial))
    if trial.changed:
        yield plain(changed_files(trial))
    if trial.notes:
        yield _bullets(trial.notes)


def _bullets(texts: Sequence[str], most: int = ROWS) -> str:
    lines = [f"- {plain(text)}" for text in texts[:most]]
    return "\n".join([*lines, *([f"- and {len(texts) - most} more"] if len(texts) > most else [])])


def _nothing(trial: Trial) -> str:
    return plain(nothing_moved(trial))


def changed_files(trial: Trial) -> str:
    """Return the files by which a change affects a model, as one sentence: the code or the data that did it."""
    left = len(trial.changed) - FILES
    return f"What changed: {'; '.join(trial.changed[:FILES])}{f'; and {left} more' if left > 0 else ''}."


def nothing_moved(trial: Trial) -> str:
    """Return the sentence for a change after which no figure is worse beyond noise."""
    start, end = start_of(trial), trial.corner("new", "new")
    if end is None:
        return "Nothing can be compared: this change was not judged."
    if start is None:
        return "Nothing can be compared: the base was not judged."
    if start.model_digest == end.model_digest:
        return "Nothing: the model is the same to the byte."
    return "Nothing became worse by more than luck with these rows explains."


def _details(trial: Trial) -> Iterator[str]:
    end, them = trial.corner("new", "new"), trial.corner("old", "new")
    if trial.changes:
        rows = [[c.check, c.kind, c.before, c.after, c.declared or "NOT DECLARED"] for c in trial.changes]
        yield _folded(trial, "gates that changed", ["check", "what", "before", "now", "reason"], rows)
    bad = [[c.check, c.state.value, c.said] for c in trial.checks if c.state is not CheckState.SUCCEEDED]
    if bad:
        yield _folded(trial, "checks without success", ["check", "record", "why"], bad)
    if end is None:
        return
    yield _folded(trial, "gates", ["gate", "result", "this change", "base", "why"], _gates(trial, end, them))
    found = [one for one in moved(trial) if one.told]
    if found:
        yield _folded(trial, "figures that moved", _heads(trial), [_row(trial, one) for one in found])
    yield _folded(trial, "time and size", ["", "this change", "base"], _costs(end, them))
    yield from _curves(trial, end, them)


def _folded(trial: Trial, title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = _table(heads, rows)
    return f"<details><summary>{plain(trial.model)}: {title}</summary>\n\n{table}\n\n</details>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([plain(cell) for cell in row] for row in rows[:ROWS])]
    said = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return said + (f"\n\nand {len(rows) - ROWS} more" if len(rows) > ROWS else "")


def said(figure: FigureDone | None) -> str:
    """Return a figure with its interval."""
    if figure is None or figure.value is None:
        return "not told"
    bounds = "" if figure.low is None or figure.high is None else f" [{figure.low:.4g}, {figure.high:.4g}]"
    return f"{figure.value:.4g}{bounds}"


def _gates(trial: Trial, end: Corner, them: Corner | None) -> list[list[str]]:
    return [[gate.condition, gate.outcome, *_values(trial, gate.name, end, them), gate.why] for gate in end.gates]


def _values(trial: Trial, gate: str, end: Corner, them: Corner | None) -> tuple[str, str]:
    """Return what a gate decided on, of this change and of the base."""
    if trial.compared and gate == trial.compared.name and end.rival:
        rival = end.rival
        gain = FigureDone(metric=rival.metric, value=rival.difference, low=rival.low, high=rival.high)
        return f"gains {said(gain)}", f"over the {rival.kind}, {rival.name}"
    asked = next((asked for asked in trial.asked if asked.name == gate), None)
    places = [(asked.dataset, place, asked.metric) for place in asked.places] if asked else []
    ours, theirs = ("; ".join(said(figures(corner).get(place)) for place in places) for corner in (end, them))
    return ours, theirs


def figures(corner: Corner | None) -> dict[tuple[str, str, str], FigureDone]:
    """Return a corner's figures by dataset, slice and metric; sizes and times stand on the holdout."""
    return {(f.dataset, f.slice, f.metric): f for f in corner.figures} if corner else {}


CORNERS = (("old", "old"), ("new", "old"), ("old", "new"), ("new", "new"))


def corners_of(trial: Trial) -> list[tuple[str, str]]:
    """Return the corners that are told apart: two where the data are the same."""
    return list(CORNERS) if trial.data_changed else list(CORNERS[2:])


def _heads(trial: Trial) -> list[str]:
    return ["figure", *(f"{code} code, {data} data" for code, data in corners_of(trial)), "cause"]


def _row(trial: Trial, one: Moved) -> list[str]:
    numbers = [one.corners.get(place) for place in corners_of(trial)]
    way = "worse" if one.worse else "better"
    cells = ["not told" if number is None else f"{number:.4g}" for number in numbers]
    return [name_of(one.where), *cells, f"{way}: {one.cause}"]


def _costs(end: Corner, them: Corner | None) -> list[list[str]]:
    theirs = figures(them)
    return [
        [COSTS[where[2]], said(figure), said(theirs.get(where))]
        for where, figure in figures(end).items()
        if where[2] in COSTS
    ]


def _curves(trial: Trial, end: Corner, them: Corner | None) -> Iterator[str]:
    """Draw ROC curves as GitHub draws them itself: no picture has to be kept anywhere. Numbers alone are written."""
    lines = [corner.curves[0].roc for corner in (end, them) if corner and corner.curves and corner.curves[0].roc]
    if not lines:
        return
    step = max(1, (len(lines[0]) - 1) // (POINTS - 1))
    drawn = [f"    line [{', '.join(f'{rate:.3f}' for rate in line[::step])}]" for line in lines]
    chart = ["xychart-beta", '    title "ROC: true positive rate over false positive rate"', "    x-axis 0 --> 1"]
    code = "\n".join(["```mermaid", *chart, "    y-axis 0 --> 1", *drawn, "```"])
    whose = "this change, then the base" if len(lines) > 1 else "this change"
    yield f"<details><summary>{plain(trial.model)}: ROC curves</summary>\n\nOf {whose}.\n\n{code}\n\n</details>"
