"""What servers counted of one version, and exact tests of two versions against each other.

Records of one request share its fate more often than not, so that they count together as one: shares stay what they
are, and `Arm.weight` says how many independent answers they rest on.

Sources: Wilson (1927) for intervals of shares, Newcombe (1998), Statistics in Medicine 17, method 10, for their
difference; Berger and Boos (1994), JASA 89, for the exact test of a share beside another one that is known from a
sample only; Conover (1999), section 3.2, for bounds of quantiles by order statistics; Cochran (1954), Biometrics 10,
for the least expected counts of a chi-square test; Bergsma (2013), Journal of the Korean Statistical Society 42, for
Cramer's V less what chance makes of it. scipy computes the distributions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf, sqrt

from ml_platform.traffic import LATENCY_BUCKETS, TrafficFigures

CONFIDENCE = 0.95
TAIL = 0.95
# Fewer expected answers than this in a bucket: it is counted with its neighbours (Cochran).
LEAST_EXPECTED = 5


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One version's figures, all servers together; fields as in `TrafficFigures`."""

    version: int
    requests: int = 0
    records: int = 0
    failures: int = 0
    latencies: tuple[int, ...] = field(default=(0,) * (len(LATENCY_BUCKETS) + 1))
    scores: tuple[int, ...] = ()

    @property
    def weight(self) -> int:
        """Independent answers: requests, or records where they come one a request or were asked as shadow copies."""
        return min(self.requests, self.records) if self.requests else self.records

    @property
    def error_share(self) -> float:
        """Share of the records that were not answered; 0 without records."""
        return self.failures / self.records if self.records else 0.0

    @property
    def errors(self) -> int:
        """Failures among the independent answers."""
        return round(self.error_share * self.weight)

    @property
    def error_interval(self) -> tuple[float, float]:
        """Wilson's interval of the share of failures, at `CONFIDENCE`; the whole range without records."""
        return share_interval(self.errors, self.weight)

    @property
    def p95(self) -> float | None:
        """The 95th percentile of the time of a record in seconds; ``None`` without records."""
        return quantile(self.latencies, TAIL)


def arm(version: int, figures: Iterable[TrafficFigures]) -> Arm:
    """Add up what all servers counted of a version.

    Scores that were counted between other ends, as a server with another request contract does, are left out.
    """
    own = [counted for counted in figures if counted.version == version]
    buckets = max((len(counted.scores) for counted in own), default=0)
    return Arm(
        version=version,
        requests=sum(counted.requests for counted in own),
        records=sum(counted.records for counted in own),
        failures=sum(counted.failures for counted in own),
        latencies=_added([c.latencies for c in own], len(LATENCY_BUCKETS) + 1),
        scores=_added([c.scores for c in own], buckets),
    )


def _added(counts: Iterable[Sequence[int]], length: int) -> tuple[int, ...]:
    fitting = [row for row in counts if len(row) == length]
    return tuple(map(sum, zip(*fitting, strict=True))) if fitting else (0,) * length


# Shares


def share_interval(hits: int, of: int) -> tuple[float, float]:
    """Return Wilson's two-sided interval of a share at `CONFIDENCE`; 0 to 1 where nothing was counted."""
    from scipy.stats import binomtest

    if of == 0:
        return 0.0, 1.0
    found = binomtest(hits, of).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def error_difference(one: Arm, other: Arm) -> tuple[float, float, float]:
    """Return by how much more of its records `one` fails than `other`, with Newcombe's interval."""
    (low, high), (other_low, other_high) = one.error_interval, other.error_interval
    p, q = one.error_share, other.error_share
    below, above = sqrt((p - low) ** 2 + (other_high - q) ** 2), sqrt((high - p) ** 2 + (q - other_low) ** 2)
    return p - q, p - q - below, p - q + above


def p_more_errors(one: Arm, other: Arm, margin: float) -> float:
    """Return the p-value of "`one` fails at most `margin` more often than `other`", as a share of its records.

    Exact by Berger and Boos: the greatest p-value over the shares that `other` may have, within a bound that is wrong
    in one of 10,000 cases, and that chance added. Without answers of `other` its share is taken as 0.
    """
    from scipy.stats import beta, binom

    doubt = 1e-4 if other.weight else 0.0
    worst = 0.0
    if other.weight:
        k, n = other.errors, other.weight
        worst = 1.0 if k == n else float(beta.ppf(1 - doubt, k + 1, n - k))
    return min(1.0, float(binom.sf(one.errors - 1, one.weight, min(1.0, worst + margin))) + doubt)


# Times


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Return a quantile of times in seconds, evenly spread within each bucket; ``None`` where nothing was counted."""
    return _at_rank(counts, share * sum(counts)) if any(counts) else None


def _at_rank(counts: Sequence[int], rank: float) -> float:
    ends = (0.0, *LATENCY_BUCKETS)
    behind = 0
    for place, count in enumerate(counts[:-1]):
        if count and behind + count >= rank:
            return ends[place] + (ends[place + 1] - ends[place]) * (rank - behind) / count
        behind += count
    return ends[-1]  # beyond the last end nothing is known but that


def p95_bound(one: Arm, level: float) -> float | None:
    """Return an upper bound of the 95th percentile in seconds, wrong with the chance `level`.

    It is the order statistic whose rank a binomial gives; ``None`` where there are too few records for one.
    """
    from scipy.stats import binom

    if one.weight == 0:
        return None
    rank = int(binom.ppf(1 - level, one.weight, TAIL)) + 1
    return quantile(one.latencies, rank / one.weight) if rank <= one.weight else None


def p_slower(one: Arm, limit: float) -> float:
    """Return the p-value of "at most 5 % of the records take longer than `limit` seconds", by a binomial test."""
    from scipy.stats import binom

    slow = _share_beyond(one.latencies, limit) * one.weight
    return float(binom.sf(round(slow) - 1, one.weight, 1 - TAIL))


def _share_beyond(counts: Sequence[int], limit: float) -> float:
    total, beyond = sum(counts), 0.0
    for low, high, count in zip((0.0, *LATENCY_BUCKETS), (*LATENCY_BUCKETS, inf), counts, strict=True):
        if high == inf:
            beyond += count if limit <= low else 0  # how long they took is not known
        else:
            beyond += count * min(1.0, max(0.0, (high - limit) / (high - low)))
    return beyond / total if total else 0.0


# Scores


def score_shift(one: Arm, other: Arm) -> tuple[float, float] | None:
    """Return how far apart the scores of two versions are, and the p-value of "they are not".

    Returns
    -------
    v : float
        Cramer's V of both distributions weighed alike, so that it does not depend on how traffic was divided, less
        what chance alone makes of it; 0 for the same, 1 for distributions without a common bucket.
    p : float
        Of the chi-square test of homogeneity, over buckets merged until each is expected often enough.

    ``None`` where one of them has no scores, or not between the same ends.
    """
    from scipy.stats import chi2_contingency

    if not any(one.scores) or not any(other.scores) or len(one.scores) != len(other.scores):
        return None
    rows = [[count * a.weight / max(a.records, 1) for count in a.scores] for a in (one, other)]
    merged = _merged(*rows)
    if len(merged) < 2:
        return 0.0, 1.0
    test = chi2_contingency(list(zip(*merged, strict=True)), correction=False)
    return _v(merged), float(test.pvalue)


def _merged(one: Sequence[float], other: Sequence[float]) -> list[tuple[float, float]]:
    """Merge neighbouring buckets until both versions expect enough answers in each."""
    smaller = min(sum(one), sum(other)) / (sum(one) + sum(other))
    merged, left, right = list[tuple[float, float]](), 0.0, 0.0
    for a, b in zip(one, other, strict=True):
        left, right = left + a, right + b
        if (left + right) * smaller >= LEAST_EXPECTED:
            merged.append((left, right))
            left = right = 0.0
    if merged and (left or right):
        last = merged.pop()
        merged.append((last[0] + left, last[1] + right))
    return merged


def _v(buckets: Sequence[tuple[float, float]]) -> float:
    n, m = (list(accumulate(column))[-1] for column in zip(*buckets, strict=True))
    squared = sum((a / n - b / m) ** 2 / (a / n + b / m) for a, b in buckets) / 2
    by_chance = (len(buckets) - 1) * (1 / n + 1 / m) / 4
    return sqrt(max(0.0, squared - by_chance))


# How traffic was divided


def p_ratio(one: Arm, other: Arm, share: float) -> float:
    """Return the p-value of "`one` got `share` of the requests of both", by a two-sided exact test."""
    from scipy.stats import binomtest

    total = one.requests + other.requests
    return float(binomtest(one.requests, total, share).pvalue) if total else 1.0
