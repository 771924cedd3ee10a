"""Small pictures as SVG: intervals beside a bound, and curves in a frame."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ml_platform.stages._page import Html, tag, together

STYLE = """
.plot text{font-size:9px;fill:currentColor}.frame{fill:none;stroke:var(--line)}
.even{stroke:var(--line);stroke-dasharray:3}
polyline{fill:none;stroke-width:1.6}.at0{stroke:var(--now)}.at1{stroke:var(--then);stroke-dasharray:5 2}
circle.at0{fill:var(--now)}circle.at1{fill:var(--then)}
svg.bar{margin:.1rem 0;min-width:8rem;max-width:16rem}.asked{fill:#2e8b5726}.bound{stroke:currentColor;stroke-width:1.5}
.whole{stroke:var(--line)}.of0{fill:var(--now)}.of1{fill:var(--then)}rect.of0,rect.of1{opacity:.35}
"""
WIDTH, HEIGHT, ROW = 200, 16, 12
SIDE, LEFT, TOP = 190, 34, 6


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and its bounds; None for what cannot be told."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def numbers(self) -> list[float]:
        """What there is of the three."""
        return [number for number in (self.value, self.low, self.high) if number is not None]


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What is asked for: numbers from here up, or down."""

    value: float
    up: bool


def scale_of(intervals: Iterable[Interval], bound: Bound | None) -> tuple[float, float]:
    """Return the least and greatest number that a picture of these must hold, with a margin."""
    numbers = [number for interval in intervals for number in interval.numbers] + ([bound.value] if bound else [])
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    margin = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def bar(intervals: Sequence[Interval], bound: Bound | None, scale: tuple[float, float], said: str) -> Html:
    """Draw intervals under each other: a dot in a band each, the bound as a line, what is asked for shaded.

    Parameters
    ----------
    intervals : sequence of Interval
        The candidate's, then its rival's.
    bound : Bound or None
    scale : (float, float)
    said : str
        The same in words, for those who hear the page.
    """
    height = ROW * (len(intervals) - 1) + HEIGHT
    drawn = [_asked(bound, scale, height)] if bound else []
    for place, interval in enumerate(intervals):
        drawn.append(_interval(interval, scale, place))
    return tag("svg", *drawn, viewBox=f"0 0 {WIDTH} {height}", class_="bar", role="img", aria_label=said, width=WIDTH)


def _at(number: float, scale: tuple[float, float]) -> float:
    low, high = scale
    return WIDTH * (number - low) / (high - low)


def _asked(bound: Bound, scale: tuple[float, float], height: int) -> Html:
    place = _at(bound.value, scale)
    left, right = (place, WIDTH) if bound.up else (0, place)
    area = tag("rect", class_="asked", x=f"{left:.1f}", y=0, width=f"{right - left:.1f}", height=height)
    return together(area, tag("line", class_="bound", x1=f"{place:.1f}", x2=f"{place:.1f}", y1=0, y2=height))


def _interval(interval: Interval, scale: tuple[float, float], place: int) -> Html:
    middle = place * ROW + HEIGHT / 2
    parts = [tag("line", class_="whole", x1=0, x2=WIDTH, y1=middle, y2=middle)]
    if interval.low is not None and interval.high is not None:
        left, right = _at(interval.low, scale), _at(interval.high, scale)
        size = {"width": f"{max(right - left, 1):.1f}", "height": 6}
        parts.append(tag("rect", class_=f"of{place}", x=f"{left:.1f}", y=middle - 3, **size))
    if interval.value is not None:
        parts.append(tag("circle", class_=f"of{place}", cx=f"{_at(interval.value, scale):.1f}", cy=middle, r=3.2))
    return together(*parts)


# Curves


def plot(lines: Sequence[Sequence[tuple[float, float]]], axes: tuple[str, str], said: str, *, dots: bool) -> Html:
    """Draw lines in a square frame with its diagonal, on the same scale both ways.

    Parameters
    ----------
    lines : sequence of sequences of (float, float)
    axes : (str, str)
        What stands below and beside the frame.
    said : str
        What the picture shows, for those who hear the page.
    dots : bool
        Whether every point is drawn too.
    """
    numbers = [number for line in lines for point in line for number in point]
    shares = not numbers or (min(numbers) >= 0 and max(numbers) <= 1)
    scale = (0.0, 1.0) if shares else (min(numbers), max(numbers))
    drawn = [_line([_point(x, y, scale) for x, y in line], place, dots) for place, line in enumerate(lines)]
    box = f"0 0 {LEFT + SIDE + 12} {TOP + SIDE + 32}"
    return tag("svg", _frame(axes, scale), *drawn, viewBox=box, class_="plot", role="img", aria_label=said)


def _point(x: float, y: float, scale: tuple[float, float]) -> tuple[float, float]:
    low, high = scale
    span = (high - low) or 1.0
    return LEFT + SIDE * (x - low) / span, TOP + SIDE * (1 - (y - low) / span)


def _line(points: Sequence[tuple[float, float]], place: int, dots: bool) -> Html:
    kind = f"at{place}"
    line = tag("polyline", class_=kind, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points))
    marks = [tag("circle", class_=kind, cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.4) for x, y in points] if dots else []
    return together(line, *marks)


def _frame(axes: tuple[str, str], scale: tuple[float, float]) -> Html:
    low, high = scale
    bottom, right, middle = TOP + SIDE, LEFT + SIDE, TOP + SIDE / 2
    parts = [
        tag("rect", class_="frame", x=LEFT, y=TOP, width=SIDE, height=SIDE),
        tag("line", class_="even", x1=LEFT, y1=bottom, x2=right, y2=TOP),
        tag("text", axes[0], x=LEFT + SIDE / 2, y=bottom + 26, text_anchor="middle"),
        tag("text", axes[1], x=0, y=0, text_anchor="middle", transform=f"translate(9 {middle:g}) rotate(-90)"),
    ]
    for number in (low, (low + high) / 2, high):
        x, y = _point(number, number, scale)
        parts.append(tag("text", f"{number:.3g}", x=f"{x:.1f}", y=bottom + 12, text_anchor="middle"))
        parts.append(tag("text", f"{number:.3g}", x=LEFT - 4, y=f"{y + 3:.1f}", text_anchor="end"))
    return together(*parts)
