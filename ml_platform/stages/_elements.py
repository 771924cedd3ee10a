"""What pages of results are made of: parts, tables, words for results, numbers, and the style of them all."""

from collections.abc import Iterable, Sequence

from ml_platform.stages._drawings import Interval
from ml_platform.stages._page import Html, tag, together

STYLE = """
section{margin:1rem 0}h3{font-size:.95rem;margin:.9rem 0 .2rem}ul{margin:.3rem 0;padding-left:1.2rem}
.said{border-left:6px solid;border-radius:6px;padding:.5rem .9rem;background:#8881}
.said strong{font-size:1.25rem}.said.PASS{border-color:#2e8b57}.said.FAIL{border-color:#c0392b}
.said.INCONCLUSIVE{border-color:#b7791f}
.badge{font-weight:700;font-size:.8rem;white-space:nowrap}
.badge.PASS{color:#2e8b57}.badge.FAIL{color:#d0483a}.badge.INCONCLUSIVE{color:#b7791f}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.3rem .7rem .3rem 0;border-bottom:1px solid var(--line)}
th{font-weight:600}thead th{font-size:.85rem;opacity:.8}tbody tr:last-child>*{border-bottom:0}
tbody td,tbody th{overflow-wrap:anywhere}td,th{font-variant-numeric:tabular-nums}
.asks{font-size:.75rem;border:1px solid currentColor;border-radius:3px;padding:0 .25rem}
.key{display:inline-block;width:.8rem;height:.55rem;margin-right:.3rem}
.key0{background:var(--now)}.key1{background:var(--then)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:.3rem 0}
dt{opacity:.8}dd{margin:0;min-width:0}
.curves{display:flex;flex-wrap:wrap;gap:1rem}.curves figure{margin:0;flex:1 1 16rem;max-width:24rem}
figcaption{font-weight:600;font-size:.9rem}
@media(max-width:44rem){body{margin:1rem auto;padding:0 .6rem}dl{grid-template-columns:1fr}dd{margin-bottom:.3rem}
.stack thead{display:none}.stack tr{display:block;padding:.4rem 0;border-bottom:1px solid var(--line)}
.stack td,.stack th{display:block;border:0;padding:.1rem 0}
.stack td[data-head]::before{content:attr(data-head);opacity:.8}}
@media print{:root{color-scheme:light}body{margin:0;max-width:none;font-size:11px}section{border:0;padding:0}
tr,figure,.said{break-inside:avoid}h2,h3{break-after:avoid}*{print-color-adjust:exact}.wide{overflow:visible}}
"""


def section(title: str, *inside: object) -> Html:
    """Return a part of a page under its heading."""
    return tag("section", tag("h2", title), *inside)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], kind: str | None = None) -> Html:
    """Return a table; the first cell of a row names the row."""
    head = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in heads)))
    body = [tag("tr", tag("th", row[0], scope="row"), *map(_cell, heads[1:], row[1:])) for row in rows]
    return tag("div", tag("table", head, tag("tbody", *body), class_=kind), class_="wide")


def _cell(head: str, cell: object) -> Html:
    # On a narrow screen cells stand under each other, and each says of which column it is.
    return tag("td", cell, data_head=f"{head}: " if head else None)


def badge(outcome: str) -> Html:
    """Return the word for a result, in its colour."""
    return tag("span", outcome, class_=f"badge {outcome}")


def number(value: float | None) -> str:
    """Return a number as people read it; ``None`` is not told."""
    return "not told" if value is None else f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def words(interval: Interval) -> str:
    """Return a number with its bounds, where there are any."""
    if interval.value is None or interval.low is None or interval.high is None:
        return number(interval.value)
    return f"{number(interval.value)} [{number(interval.low)},\N{NO-BREAK SPACE}{number(interval.high)}]"


def key(place: int, name: str) -> Html:
    """Return the colour of the first or second thing in a picture, before its name."""
    return together(tag("span", "", class_=f"key key{place}"), name)


def code(text: str | None) -> Html:
    """Return a text as code; ``None`` and an empty one as none."""
    return tag("code", text or "none")
