"""Traffic statistics of a version, and exact statistical tests of two versions.

Records of one request usually succeed or fail together, so the tests count them as one independent answer. This leaves
shares unchanged; `VersionStats.weight` is the number of independent answers.

Sources: Wilson (1927) for intervals of shares; Newcombe (1998), Statistics in Medicine 17, method 10, for their
difference; Berger and Boos (1994), JASA 89, for the exact test of a share against a share that is itself estimated;
Conover (1999), section 3.2, for bounds of quantiles by order statistics; Cochran (1954), Biometrics 10, for the minimum
expected counts of a chi-square test; Bergsma (2013), Journal of the Korean Statistical Society 42, for the bias
correction of Cramer's V. scipy computes the distributions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf, sqrt

from ml_platform.records.traffic import LATENCY_BUCKETS, TrafficStats

CONFIDENCE = 0.95
TAIL = 0.95
# Buckets with fewer expected answers are merged with their neighbours (Cochran).
MIN_EXPECTED = 5


@dataclass(frozen=True, kw_only=True)
class VersionStats:
    """One version's statistics, summed over all servers; fields as in `TrafficStats`."""

    version: int
    requests: int = 0
    records: int = 0
    failures: int = 0
    latencies: tuple[int, ...] = field(default=(0,) * (len(LATENCY_BUCKETS) + 1))
    scores: tuple[int, ...] = ()

    @property
    def weight(self) -> int:
        """Number of independent answers: requests; or records, if each request has one or they are shadow copies."""
        return min(self.requests, self.records) if self.requests else self.records

    @property
    def error_share(self) -> float:
        """Share of the records that failed, 0 to 1; 0 without records."""
        return self.failures / self.records if self.records else 0.0

    @property
    def errors(self) -> int:
        """Number of failures among the independent answers."""
        return round(self.error_share * self.weight)

    @property
    def error_interval(self) -> tuple[float, float]:
        """Wilson's interval of the share of failures at `CONFIDENCE`; 0 to 1 without records."""
        return share_interval(self.errors, self.weight)

    @property
    def p95(self) -> float | None:
        """95th percentile of the time of a record, in seconds; ``None`` without records."""
        return quantile(self.latencies, TAIL)


def sum_version_stats(version: int, figures: Iterable[TrafficStats]) -> VersionStats:
    """Sum the statistics of a version over all servers.

    Scores in other buckets, from servers with another request contract, are left out.
    """
    own = [stats for stats in figures if stats.version == version]
    buckets = max((len(stats.scores) for stats in own), default=0)
    return VersionStats(
        version=version,
        requests=sum(stats.requests for stats in own),
        records=sum(stats.records for stats in own),
        failures=sum(stats.failures for stats in own),
        latencies=_sum_buckets([stats.latencies for stats in own], len(LATENCY_BUCKETS) + 1),
        scores=_sum_buckets([stats.scores for stats in own], buckets),
    )


def _sum_buckets(counts: Iterable[Sequence[int]], length: int) -> tuple[int, ...]:
    same_length = [row for row in counts if len(row) == length]
    return tuple(map(sum, zip(*same_length, strict=True))) if same_length else (0,) * length


# Shares


def share_interval(hits: int, of: int) -> tuple[float, float]:
    """Return Wilson's two-sided interval of a share at `CONFIDENCE`; 0 to 1 if `of` is 0."""
    from scipy.stats import binomtest

    if of == 0:
        return 0.0, 1.0
    interval = binomtest(hits, of).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def error_difference(one: VersionStats, other: VersionStats) -> tuple[float, float, float]:
    """Return the error share of `one` minus that of `other`, and the ends of Newcombe's interval of it."""
    (low, high), (other_low, other_high) = one.error_interval, other.error_interval
    p, q = one.error_share, other.error_share
    below, above = sqrt((p - low) ** 2 + (other_high - q) ** 2), sqrt((high - p) ** 2 + (q - other_low) ** 2)
    return p - q, p - q - below, p - q + above


def p_more_errors(one: VersionStats, other: VersionStats, margin: float) -> float:
    """Return the p-value of "the error share of `one` exceeds that of `other` by at most `margin`".

    Exact by Berger and Boos: the largest p-value over all error shares of `other` up to a bound that is wrong with
    probability 0.0001, plus that probability. Without answers of `other`, its error share is taken as 0.
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
    """Return a quantile of times in seconds, interpolated within its bucket; ``None`` if all counts are 0.

    The result is at most the end of the last bucket, because longer times are not measured.
    """
    if not any(counts):
        return None
    ends, rank, below = (0.0, *LATENCY_BUCKETS), share * sum(counts), 0
    for bucket, count in enumerate(counts[:-1]):
        if count and below + count >= rank:
            return ends[bucket] + (ends[bucket + 1] - ends[bucket]) * (rank - below) / count
        below += count
    return ends[-1]


def p95_bound(one: VersionStats, level: float) -> float | None:
    """Return an upper bound of the 95th percentile in seconds that is wrong with probability `level`.

    It is an order statistic, its rank a quantile of a binomial distribution. ``None`` if there are too few records.
    """
    from scipy.stats import binom

    if one.weight == 0:
        return None
    rank = int(binom.ppf(1 - level, one.weight, TAIL)) + 1
    return quantile(one.latencies, rank / one.weight) if rank <= one.weight else None


def p_slower(one: VersionStats, limit: float) -> float:
    """Return the p-value of "at most 5 % of the records take longer than `limit` seconds", by a binomial test."""
    from scipy.stats import binom

    total, beyond = sum(one.latencies), 0.0
    for low, high, count in zip((0.0, *LATENCY_BUCKETS), (*LATENCY_BUCKETS, inf), one.latencies, strict=True):
        if high == inf:
            beyond += count if limit <= low else 0  # times in the last bucket are not known exactly
        else:
            beyond += count * min(1.0, max(0.0, (high - limit) / (high - low)))
    slow = (beyond / total if total else 0.0) * one.weight
    return float(binom.sf(round(slow) - 1, one.weight, 1 - TAIL))


# Scores


def score_shift(one: VersionStats, other: VersionStats) -> tuple[float, float] | None:
    """Return the distance between the score distributions of two versions, and the p-value of "they are the same".

    Returns
    -------
    v : float
        Cramer's V of both distributions with equal weights, so that it does not depend on the split of traffic, and
        corrected for bias. 0 for equal distributions, 1 for distributions without a common bucket.
    p : float
        p-value of the chi-square test of homogeneity, over neighbouring buckets merged until each version expects
        `MIN_EXPECTED` answers in each.

    ``None`` if a version has no scores, or the versions count scores in different buckets.
    """
    from scipy.stats import chi2_contingency

    if not any(one.scores) or not any(other.scores) or len(one.scores) != len(other.scores):
        return None
    first, second = ([n * each.weight / max(each.records, 1) for n in each.scores] for each in (one, other))
    # Merge neighbouring buckets until both versions expect at least `MIN_EXPECTED` answers in each.
    smaller = min(sum(first), sum(second)) / (sum(first) + sum(second))
    merged, left, right = list[tuple[float, float]](), 0.0, 0.0
    for a, b in zip(first, second, strict=True):
        left, right = left + a, right + b
        if (left + right) * smaller >= MIN_EXPECTED:
            merged.append((left, right))
            left = right = 0.0
    if merged and (left or right):
        merged[-1] = (merged[-1][0] + left, merged[-1][1] + right)
    if len(merged) < 2:
        return 0.0, 1.0
    test = chi2_contingency(list(zip(*merged, strict=True)), correction=False)
    n, m = (list(accumulate(column))[-1] for column in zip(*merged, strict=True))
    squared = sum((a / n - b / m) ** 2 / (a / n + b / m) for a, b in merged) / 2
    by_chance = (len(merged) - 1) * (1 / n + 1 / m) / 4
    return sqrt(max(0.0, squared - by_chance)), float(test.pvalue)


# Split of traffic


def p_ratio(one: VersionStats, other: VersionStats, share: float) -> float:
    """Return the p-value of "`one` received `share` of the requests of both", by a two-sided exact test."""
    from scipy.stats import binomtest

    total = one.requests + other.requests
    return float(binomtest(one.requests, total, share).pvalue) if total else 1.0
