"""Simulated rollouts: how often a canary of an equal version is aborted, and that of a worse one is promoted.

Keys send requests with a heavy tail: the first of 20,000 sends about 4 % of them. Half of the keys are sticky in their
failures too: all their requests fail, or none. A tenth of the requests are batches of up to 10,000 records. Two servers
count the requests, and the policy looks at their counts again and again, as the sensor does.
"""

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pytest
from scipy.stats import beta

from ml_platform.model_spec import Rollout
from ml_platform.records.canonical import now
from ml_platform.records.traffic import LATENCY_BUCKETS, UNIT_CELLS, Mode, TrafficPlan, TrafficStats, pack_cells
from ml_platform.release.rollout.policy import Step, judge

ROLLOUT = Rollout(kind="canary", hold_minutes=0)
KEYS, SKEW, SCORE_BUCKETS, SERVERS = 20_000, 3.0, 20, 2
# Units of the successor in a step within which nine of ten rollouts are decided, as the documentation says.
UNITS_TO_DECIDE = 3_000
MORE_FAILURES = 0.02
Generator = np.random.Generator


@dataclass(frozen=True)
class Requests:
    """The requests to one version in a step, in the order of their arrival: one entry for each."""

    cells: np.ndarray
    failed: np.ndarray
    records: np.ndarray
    servers: np.ndarray

    def count(self, rng: Generator, version: int, first: int) -> list[TrafficStats]:
        """Return the statistics of each server after the first requests."""
        result = []
        for server in range(SERVERS):
            own = np.flatnonzero(self.servers[:first] == server)
            cells, places = np.unique(self.cells[own], return_index=True)
            failures = self.failed[own[places]]
            succeeded = int(len(cells) - failures.sum())
            latencies = rng.multinomial(len(cells), [0.2, 0.5, 0.25, 0.04, 0.01, *[0.0] * (len(LATENCY_BUCKETS) - 4)])
            scores = rng.multinomial(succeeded, [1 / SCORE_BUCKETS] * SCORE_BUCKETS)
            stats = TrafficStats(
                model="visits",
                plan=1,
                server=str(server),
                version=version,
                requests=len(own),
                records=int(self.records[own].sum()),
                failures=int(self.records[own][self.failed[own]].sum()),
                latencies=latencies.tolist(),
                scores=scores.tolist(),
                seen=pack(cells),
                failed=pack(cells[failures]),
            )
            result.append(stats)
        return result


def pack(cells: np.ndarray) -> str:
    bits = np.zeros(UNIT_CELLS, dtype=bool)
    bits[cells] = True
    return pack_cells(np.packbits(bits, bitorder="little").tobytes())


def send_requests(rng: Generator, number: int, rate: float) -> Requests:
    """Return requests to one version, which fail at a rate."""
    keys = (KEYS * rng.random(number) ** SKEW).astype(int)
    sticky, fails_always, cells = rng.random(KEYS) < 0.5, rng.random(KEYS) < rate, rng.integers(UNIT_CELLS, size=KEYS)
    failed = np.where(sticky[keys], fails_always[keys], rng.random(number) < rate)
    records = np.where(rng.random(number) < 0.1, rng.integers(2, 10_001, number), 1)
    return Requests(cells[keys], failed, records, rng.integers(SERVERS, size=number))


def roll_out(rng: Generator, stable_rate: float, successor_rate: float) -> tuple[Step, int]:
    """Return the end of a rollout, HOLD if it is undecided, and the successor's most units in a step."""
    since, before, most = now(), list[TrafficStats](), 0
    for step, share in enumerate(ROLLOUT.steps):
        plan = TrafficPlan(
            model="visits",
            sequence=1,
            decision=1,
            mode=Mode.CANARY,
            stable=1,
            successor=2,
            share=share,
            step=step,
            since=since,
            reason="test",
            actor="test",
        )
        successor = send_requests(rng, 8 * UNITS_TO_DECIDE, successor_rate)
        stable = send_requests(rng, int(8 * UNITS_TO_DECIDE * min(1 / share - 1, 4)), stable_rate)
        for look in np.geomspace(ROLLOUT.min_requests, 8 * UNITS_TO_DECIDE, 30).astype(int):
            theirs = stable.count(rng, 1, int(look * min(1 / share - 1, 4)))
            report = judge(
                plan,
                [*theirs, *successor.count(rng, 2, look)],
                ROLLOUT,
                at=since + timedelta(seconds=1),
                before=before,
            )
            if report.step is not Step.HOLD or report.arms[1].units > UNITS_TO_DECIDE:
                break
        most = max(most, report.arms[1].units)
        if report.step is not Step.ADVANCE:
            return report.step, most
        before = theirs if share < 1 else before
    return Step.ADVANCE, most


def simulate(runs: int, rate: float, increase: float, seed: int) -> dict[Step, int]:
    rng = np.random.default_rng(seed)
    ends = [roll_out(rng, rate, rate + increase)[0] for _ in range(runs)]
    return {step: ends.count(step) for step in Step}


def upper_bound(hits: int, runs: int) -> float:
    """Return the upper end of the one-sided 99 % interval of Clopper and Pearson (1934)."""
    return float(beta.ppf(0.99, hits + 1, runs - hits))


@pytest.mark.fault("R19")
@pytest.mark.parametrize(("increase", "right", "wrong"), [(0, "advance", "abort"), (MORE_FAILURES, "abort", "advance")])
def test_simulated_rollouts_end_with_the_right_version(increase: float, right: str, wrong: str) -> None:
    ends = simulate(30, 0.01, increase, seed=7)

    assert ends[Step(wrong)] == 0
    assert ends[Step(right)] >= 27


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.fault("R19")
@pytest.mark.parametrize("rate", [0.001, 0.01])
@pytest.mark.parametrize(("increase", "wrong"), [(0, "abort"), (MORE_FAILURES, "advance")])
def test_simulated_rollouts_keep_both_error_rates(rate: float, increase: float, wrong: str) -> None:
    runs = 5_000
    ends = simulate(runs, rate, increase, seed=1)

    assert upper_bound(ends[Step(wrong)], runs) <= 0.01, ends
    assert 1 - upper_bound(ends[Step.HOLD], runs) >= 0.9, ends
