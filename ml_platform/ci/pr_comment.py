"""The results of a change as Markdown, for a comment and a job's summary: bounded in size, every text escaped."""

import re
from collections.abc import Iterator, Sequence

from ml_platform.ci.attribution import find_metric_changes, sentences
from ml_platform.ci.change_view import (
    HEADLINES,
    OURS,
    THEIRS,
    change_cells,
    change_heads,
    explain_no_change,
    format_changed_files,
    plot_change,
    view_change,
)
from ml_platform.ci.result_schema import ChangeResult, CheckState
from ml_platform.evaluation.verdict_view import NOT_MEASURED

# The workflow finds the comment that it updates by this line.
MARKER = "<!-- ml-platform quality gates -->"
# GitHub's limit is 65,536 characters a comment.
MAX_CHARACTERS = 60_000
MAX_TEXT = 300
MAX_ROWS = 20
MAX_SENTENCES = 5
MAX_POINTS = 21
# Letters, and marks where they are neither markup nor part of an address.
PLAIN = re.compile(
    r"[A-Za-z0-9 ,;=+%()/'?!]|(?<=[A-Za-z0-9])_(?=[A-Za-z0-9])|(?<![A-Za-z])-(?=[0-9])|[.:](?![A-Za-z/])"
)


def plain(text: str) -> str:
    """Return a text escaped, so that Markdown and HTML show it as it is: no markup, no mention, no link."""
    short = " ".join(text.split())
    short = short if len(short) <= MAX_TEXT else short[: MAX_TEXT - 1] + "…"
    # GitHub looks for names after @ and numbers after # and - in the rendered text: an invisible mark separates them.
    escaped = {c: f"&#{ord(c)};" + ("&#8203;" if c in "@#-" else "") if c.isprintable() else "&#65533;" for c in short}
    return "".join(c if PLAIN.match(short, place) else escaped[c] for place, c in enumerate(short))


def comment(results: Sequence[ChangeResult], *, max_characters: int = MAX_CHARACTERS) -> str:
    """Return the results of all models in at most `max_characters` characters.

    Parts that do not fit are left out from the end, details first, and the last line says so.
    """
    title = "No model is affected by this change." if not results else ""
    parts = [MARKER, "## Quality gates", *([title] if title else [])]
    # All decisions come before any detail, so that no model's details push another's decision out.
    parts += [part for result in results for part in _decision(result)]
    parts += [part for result in results for part in _details(result)]
    kept, size = list[str](), 0
    for part in parts:
        size += len(part) + 2
        if size > max_characters - 200:
            break
        kept.append(part)
    if left := len(parts) - len(kept):
        kept.append(f"*{left} more parts are in the whole report, which this job stores as an artifact.*")
    return "\n\n".join(kept) + "\n"


def _decision(result: ChangeResult) -> Iterator[str]:
    golden = f", golden dataset {plain(result.golden)}" if result.golden else ""
    yield f"### {plain(result.model)}{golden}: {HEADLINES[result.outcome]}"
    if result.problems:
        yield _bullets(result.problems)
    worse = sentences(result)
    yield "**What became worse**\n\n" + (_bullets(worse, MAX_SENTENCES) if worse else plain(explain_no_change(result)))
    if result.changed:
        yield plain(format_changed_files(result))
    if result.notes:
        yield _bullets(result.notes)


def _bullets(texts: Sequence[str], limit: int = MAX_ROWS) -> str:
    lines = [f"- {plain(text)}" for text in texts[:limit]]
    return "\n".join([*lines, *([f"- and {len(texts) - limit} more"] if len(texts) > limit else [])])


def _details(result: ChangeResult) -> Iterator[str]:
    """Yield a model's tables and curves, each folded."""
    view = view_change(result)
    if result.changes:
        rows = [[c.check, c.kind, c.before, c.after, c.declared or "NOT DECLARED"] for c in result.changes]
        yield _fold(result, "changed gates", _table(["check", "change", "before", "now", "reason"], rows))
    bad = [[c.check, c.state.value, c.said] for c in result.checks if c.state is not CheckState.SUCCEEDED]
    if bad:
        yield _fold(result, "checks without success", _table(["check", "record", "why"], bad))
    if result.corner("new", "new") is None:
        return
    gates = []
    for gate in view.gates:
        ours = "; ".join(reading.measurement.text for reading in gate.readings)
        theirs = "; ".join(one.over or view.theirs.get(one.where, NOT_MEASURED).text for one in gate.readings)
        gates.append([gate.condition, gate.outcome, ours, theirs, gate.why])
    yield _fold(result, "gates", _table(["gate", "result", OURS, THEIRS, "why"], gates))
    changes = [one for one in find_metric_changes(result) if one.told]
    if changes:
        causes = [f"{'worse' if one.worse else 'better'}: {one.cause}" for one in changes]
        rows = [[*change_cells(result, one), cause] for one, cause in zip(changes, causes, strict=True)]
        yield _fold(result, "measurements that moved", _table([*change_heads(result), "cause"], rows))
    costs = [[cost.meaning, cost.ours.text, cost.theirs.text] for cost in view.costs]
    yield _fold(result, "time and size", _table(["", OURS, THEIRS], costs))
    yield from _curves(result)


def _fold(result: ChangeResult, title: str, text: str) -> str:
    return f"<details><summary>{plain(result.model)}: {title}</summary>\n\n{text}\n\n</details>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([plain(cell) for cell in row] for row in rows[:MAX_ROWS])]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text + (f"\n\nand {len(rows) - MAX_ROWS} more" if len(rows) > MAX_ROWS else "")


def _curves(result: ChangeResult) -> Iterator[str]:
    """Yield ROC curves as a chart that GitHub draws itself, so that no picture is stored; only numbers are written."""
    roc = next((plot for plot in plot_change(result) if plot.title.startswith("ROC")), None)
    lines = [line for line in roc.lines if line] if roc else []
    if not lines:
        return
    # The first point is the start of the line; the rates follow.
    rates = [[y for _, y in line[1:]] for line in lines]
    step = max(1, (len(rates[0]) - 1) // (MAX_POINTS - 1))
    drawn = [f"    line [{', '.join(f'{rate:.3f}' for rate in line[::step])}]" for line in rates]
    chart = ["xychart-beta", '    title "ROC: true positive rate over false positive rate"', "    x-axis 0 --> 1"]
    code = "\n".join(["```mermaid", *chart, "    y-axis 0 --> 1", *drawn, "```"])
    names = f"{OURS}, then the {THEIRS}" if len(lines) > 1 else OURS
    yield _fold(result, "ROC curves", f"Of {names}.\n\n{code}")
