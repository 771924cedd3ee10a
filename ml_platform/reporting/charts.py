"""Numbers with bounds, as text and as data of the charts that ``templates/charts.html.j2`` draws."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def format_number(value: float | None, missing: str = "not available") -> str:
    """Return a number with four significant digits, from 10,000 on without decimals; `missing` if it is None."""
    return missing if value is None else f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and its bounds; None for a number that is not available."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def numbers(self) -> list[float]:
        """The available numbers of the three."""
        return [number for number in (self.value, self.low, self.high) if number is not None]

    @property
    def text(self) -> str:
        """The number with its bounds: ``0.91 [0.88, 0.94]``; without brackets if one of the three is None."""
        if self.value is None or self.low is None or self.high is None:
            return format_number(self.value)
        return f"{format_number(self.value)} [{format_number(self.low)}, {format_number(self.high)}]"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A gate's bound: numbers from here up pass, or from here down."""

    value: float
    up: bool


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Intervals one below the other on one scale, with the bound and the range that passes.

    Parameters
    ----------
    intervals : list of Interval
        The candidate's, then its reference's.
    bound : Bound or None
    scale : (float, float)
        The smallest and the greatest number that the chart has room for.
    label : str
        The same in words, for screen readers.
    """

    intervals: list[Interval]
    bound: Bound | None
    scale: tuple[float, float]
    label: str


def compute_scale(intervals: Iterable[Interval], bounds: Iterable[Bound] = ()) -> tuple[float, float]:
    """Return the smallest and the greatest number of a chart that has room for these, with a margin."""
    numbers = [number for interval in intervals for number in interval.numbers] + [bound.value for bound in bounds]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    margin = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def build_bar(
    intervals: Sequence[Interval], bound: Bound | None, label: str, scale: tuple[float, float] | None = None
) -> Bar | None:
    """Return a bar, on its own scale if none is given; ``None`` if there is no number to draw."""
    if not any(interval.numbers for interval in intervals):
        return None
    own = compute_scale(intervals, [bound] if bound else [])
    return Bar(intervals=list(intervals), bound=bound, scale=scale or own, label=label)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Lines in a square frame with its diagonal, on the same scale both ways.

    Parameters
    ----------
    title : str
    lines : list of lists of (float, float)
        The candidate's, then its reference's.
    axes : (str, str)
        Names of the horizontal and of the vertical axis.
    label : str
        The chart in words, for screen readers.
    dots : bool
        True draws every point as a dot too.
    """

    title: str
    lines: list[list[tuple[float, float]]]
    axes: tuple[str, str]
    label: str
    dots: bool

    @property
    def scale(self) -> tuple[float, float]:
        """The smallest and the greatest number of the frame: 0 and 1 if all numbers are shares."""
        numbers = [number for line in self.lines for point in line for number in point]
        shares = not numbers or (min(numbers) >= 0 and max(numbers) <= 1)
        return (0.0, 1.0) if shares else (min(numbers), max(numbers))
