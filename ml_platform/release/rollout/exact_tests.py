"""Traffic statistics of a version, and sequential statistical tests of two versions.

The tests count units: a key by the first outcome of its requests, or a request without a key. Requests of one key, and
records of one request, usually succeed or fail together, so they are no independent evidence; keys are.

A rollout is looked at every few seconds, so every test is valid at all looks together: under its hypothesis the
probability that its p-value is *ever* at most `a` is at most `a`. For k failures of n units and a failure rate r, the
ratio of the likelihood under a prior to that at r,

    e(r) = B(k + 1/2, n - k + 20) / (B(1/2, 20) r^k (1 - r)^(n - k)),

has the mean 1 at each n if r is true, and exceeds 1/a at any time with a probability of at most a (Ville 1939; Robbins
1970, Annals of Mathematical Statistics 41). For two versions the ratios are multiplied, and the smallest product over
all pairs of rates that the hypothesis allows is taken (Wasserman, Ramdas and Balakrishnan 2020, PNAS 117, "Universal
inference"). The p-value is 1 divided by that.

Other sources: Wilson (1927) for intervals of shares; Newcombe (1998), Statistics in Medicine 17, method 10, for their
difference; Howard and Ramdas (2022), Bernoulli 28, corollary 2, for distributions of scores; Lindon and Malek (2022),
NeurIPS, for the sample-ratio test; Cochran (1954), Biometrics 10, for the minimum expected counts of a chi-square
test; Bergsma (2013), Journal of the Korean Statistical Society 42, for the bias correction of Cramer's V.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import exp, inf, lgamma, log, log1p, sqrt

from ml_platform.records.traffic import LATENCY_BUCKETS, UNIT_CELLS, TrafficStats, unpack_cells

CONFIDENCE = 0.95
TAIL = 0.95
# Buckets with fewer expected units are merged with their neighbours (Cochran).
MIN_EXPECTED = 5
# Prior of a failure rate: rates of a few per cent and below are likely. It decides how fast a test is, not its level.
PRIOR = (0.5, 20.0)
# Weight of the planned split in the prior of the sample-ratio test, in units.
RATIO_PRIOR = 100.0
# The bound of a distribution holds from this number of units on.
MIN_SCORED = 20
# Steps of a bisection: to 1e-12.
BISECTIONS = 40


@dataclass(frozen=True, kw_only=True)
class VersionStats:
    """One version's statistics, summed over all servers; fields as in `TrafficStats`."""

    version: int
    requests: int = 0
    records: int = 0
    failures: int = 0
    units: int = 0
    failed_units: int = 0
    latencies: tuple[int, ...] = field(default=(0,) * (len(LATENCY_BUCKETS) + 1))
    scores: tuple[float, ...] = ()

    @property
    def error_share(self) -> float:
        """Share of the units that failed, 0 to 1; 0 without units."""
        return self.failed_units / self.units if self.units else 0.0

    @property
    def error_interval(self) -> tuple[float, float]:
        """Wilson's interval of the share of failures at `CONFIDENCE`; 0 to 1 without units."""
        return share_interval(self.failed_units, self.units)

    @property
    def p95(self) -> float | None:
        """95th percentile of the time of a unit, in seconds; ``None`` without units."""
        return quantile(self.latencies, TAIL)


def sum_version_stats(version: int, figures: Iterable[TrafficStats]) -> VersionStats:
    """Sum the statistics of a version over all servers.

    Scores in other buckets, from servers with another request contract, are left out. A unit that several servers have
    seen counts once, with the outcome at the first of them.
    """
    own = [stats for stats in figures if stats.version == version]
    buckets = max((len(stats.scores) for stats in own), default=0)
    seen, failed = 0, 0
    for stats in own:
        failed |= unpack_cells(stats.failed) & ~seen
        seen |= unpack_cells(stats.seen)
    return VersionStats(
        version=version,
        requests=sum(stats.requests for stats in own),
        records=sum(stats.records for stats in own),
        failures=sum(stats.failures for stats in own),
        units=seen.bit_count(),
        failed_units=failed.bit_count(),
        latencies=tuple(map(int, _sum_buckets([stats.latencies for stats in own], len(LATENCY_BUCKETS) + 1))),
        scores=_sum_buckets([stats.scores for stats in own], buckets),
    )


def _sum_buckets(counts: Iterable[Sequence[float]], length: int) -> tuple[float, ...]:
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


def p_more_errors(one: VersionStats, other: VersionStats, margin: float, *, paired: bool = False) -> float:
    """Return the p-value of "the error rate of `one` exceeds that of `other` by at most `margin`", at all looks.

    With ``paired`` both versions answered the same requests, and the larger of both ratios replaces their product: it
    is valid for dependent versions at half the level. Without units of `other`, its error rate is taken as 0.
    """
    if not one.units or one.error_share <= other.error_share + margin:
        return 1.0
    return _p_on_boundary(one, other, margin, paired)


def p_fewer_errors(one: VersionStats, other: VersionStats, margin: float, *, paired: bool = False) -> float:
    """Return the p-value of "the error rate of `one` exceeds that of `other` by at least `margin`", as above."""
    if not one.units or one.error_share >= other.error_share + margin:
        return 1.0
    return _p_on_boundary(one, other, margin, paired)


def _p_on_boundary(one: VersionStats, other: VersionStats, margin: float, paired: bool) -> float:
    """Return the p-value of the most likely rates that differ by `margin`: no other allowed pair has a larger one."""
    k, n, j, m = one.failed_units, one.units, other.failed_units, other.units
    if m == 0:
        return _p_value(_log_ratio(k, n, margin))
    low, high = 0.0, 1.0 - margin
    more = k > (j / m + margin) * n
    for _ in range(BISECTIONS):
        q = (low + high) / 2
        if paired:  # where both ratios are equal, between the two observed rates
            rises = (_log_ratio(k, n, q + margin) > _log_ratio(j, m, q)) is more
            rises = q <= min(j / m, k / n - margin) or (rises and q < max(j / m, k / n - margin))
        else:  # the derivative of the joint likelihood, which is concave
            rises = k / (q + margin) + j / q > (n - k) / (1 - q - margin) + (m - j) / (1 - q)
        low, high = (q, high) if rises else (low, q)
    q = (low + high) / 2
    ours, theirs = _log_ratio(k, n, q + margin), _log_ratio(j, m, q)
    return _p_value(max(ours, theirs) - log(2) if paired else ours + theirs)


def _log_ratio(hits: int, of: int, rate: float, prior: tuple[float, float] = PRIOR) -> float:
    """Return the logarithm of e(rate) of the module's docstring."""
    a, b = prior
    misses = of - hits
    likelihood = (hits * log(rate) if hits else 0.0) + (misses * log1p(-rate) if misses else 0.0)
    return _log_beta(hits + a, misses + b) - _log_beta(a, b) - likelihood


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def _p_value(log_ratio: float) -> float:
    return min(1.0, exp(-log_ratio)) if log_ratio > 0 else 1.0


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
    """Return an upper bound of the 95th percentile in seconds that is ever wrong with probability `level`.

    It is the time that so few units exceed that 5 % of all do not. ``None`` if there are too few units.
    """
    total = sum(one.latencies)
    low, high = -1, int(total * (1 - TAIL))  # `low` units are few enough, `high` are not
    if total == 0 or _log_ratio(0, total, 1 - TAIL) < -log(level):
        return None
    while high - low > 1:
        few = (low + high) // 2
        low, high = (few, high) if _log_ratio(few, total, 1 - TAIL) >= -log(level) else (low, few)
    return quantile(one.latencies, 1 - max(low, 0) / total)


def p_slower(one: VersionStats, limit: float) -> float:
    """Return the p-value of "at most 5 % of the units take longer than `limit` seconds", at all looks."""
    total, beyond = sum(one.latencies), 0.0
    for low, high, count in zip((0.0, *LATENCY_BUCKETS), (*LATENCY_BUCKETS, inf), one.latencies, strict=True):
        if high == inf:
            beyond += count if limit <= low else 0  # times in the last bucket are not known exactly
        else:
            beyond += count * min(1.0, max(0.0, (high - limit) / (high - low)))
    slow = round(beyond)
    return _p_value(_log_ratio(slow, total, 1 - TAIL)) if slow > total * (1 - TAIL) else 1.0


# Scores


def score_shift(one: VersionStats, other: VersionStats) -> tuple[float, float] | None:
    """Return the distance between the score distributions of two versions, and the p-value of "they are the same".

    Returns
    -------
    v : float
        Cramer's V of both distributions with equal weights, so that it does not depend on the split of traffic, and
        corrected for bias. 0 for equal distributions, 1 for distributions without a common bucket.
    p : float
        p-value of "the distributions are the same", at all looks, from the largest difference of both cumulative
        distributions and their bounds.

    ``None`` if a version has no scores, or the versions count scores in different buckets.
    """
    if not any(one.scores) or not any(other.scores) or len(one.scores) != len(other.scores):
        return None
    first, second = one.scores, other.scores
    # Merge neighbouring buckets until both versions expect at least `MIN_EXPECTED` units in each.
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
    n, m = (list(accumulate(column))[-1] for column in zip(*merged, strict=True))
    squared = sum((a / n - b / m) ** 2 / (a / n + b / m) for a, b in merged) / 2
    by_chance = (len(merged) - 1) * (1 / n + 1 / m) / 4
    return sqrt(max(0.0, squared - by_chance)), _p_distributions(first, second)


def _p_distributions(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the p-value of the largest difference of two cumulative distributions, counted in buckets."""
    n, m = sum(first), sum(second)
    if min(n, m) < MIN_SCORED:
        return 1.0
    distance = max(abs(a / n - b / m) for a, b in zip(accumulate(first), accumulate(second), strict=True))
    low, high = 0.0, 2 * max(n, m)
    for _ in range(BISECTIONS):
        c = (low + high) / 2
        bounds = (0.85 * sqrt((log(log(size / MIN_SCORED) + 1) + c) / size) for size in (n, m))
        low, high = (c, high) if sum(bounds) < distance else (low, c)
    return min(1.0, 2 * 1612 * exp(-low / 0.8))


# Split of traffic


def p_ratio(one: VersionStats, other: VersionStats, share: float) -> float:
    """Return the p-value of "`one` received `share` of the units of both", at all looks.

    Keys that share a cell count once, which happens more often to the version with more units: the counts are
    corrected for it, and 1 is returned once half of a version's cells are taken.
    """
    if max(one.units, other.units) > UNIT_CELLS / 2 or not one.units + other.units:
        return 1.0
    ours, theirs = (round(-UNIT_CELLS * log1p(-each.units / UNIT_CELLS)) for each in (one, other))
    prior = (RATIO_PRIOR * share, RATIO_PRIOR * (1 - share))
    return _p_value(_log_ratio(ours, ours + theirs, share, prior))
