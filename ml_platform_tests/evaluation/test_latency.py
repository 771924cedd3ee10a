import os
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_platform.errors import ModelError, ModelTimeoutError
from ml_platform.evaluation import latency
from ml_platform.evaluation.latency import Latency
from ml_platform.records.verdict import GateOutcome
from ml_platform.training import fit
from ml_platform_tests.support import fakes, misbehaving_models
from ml_platform_tests.support.misbehaving_models import Odd

pytestmark = pytest.mark.slow

SPEC = fakes.visits_spec()
QUIET = Latency(
    cold_load_seconds=1.0,
    first_prediction_ms=20.0,
    p50_ms=8.0,
    p95_ms=10.0,
    p99_ms=12.0,
    calls=500,
    noise=1.0,
    resident_memory_mib=200.0,
    model_size_mb=1.0,
)


def a_try(p95_ms: float, noise: float = 1.0) -> Latency:
    return replace(QUIET, p95_ms=p95_ms, noise=noise)


# --- deciding on a bound ---------------------------------------------------------------------------------------------


def settled(bound: float, *tries: Latency) -> latency.LatencyDecision[Latency]:
    left = iter(tries)
    return latency.measure_until_decided(bound, lambda: next(left))


@pytest.mark.parametrize(
    ("tries", "outcome", "made"),
    [
        ([a_try(100)], "PASS", 1),
        ([a_try(100, 50)], "PASS", 1),  # noise only adds time: a model that is fast on a noisy machine is fast
        ([a_try(100.1)], "FAIL", 1),
        ([a_try(301, 3)], "FAIL", 1),  # too slow even without the noise
        ([a_try(300, 3), a_try(99)], "PASS", 2),
        ([a_try(300, 3), a_try(150, 1.2)], "FAIL", 2),
        ([a_try(300, 3), a_try(101, 1.02), a_try(90, 9)], "PASS", 3),
        ([a_try(300, 3), a_try(300, 3), a_try(300, 3), a_try(1)], "INCONCLUSIVE", 3),
        ([a_try(float("nan"))] * 3, "INCONCLUSIVE", 3),
        ([a_try(50, float("nan"))] * 3, "INCONCLUSIVE", 3),
    ],
)
def test_latency_is_decided_beyond_the_noise(tries: list[Latency], outcome: str, made: int) -> None:
    found = settled(100, *tries)

    assert found.outcome is GateOutcome(outcome)
    assert found.tries == tuple(tries[:made])


@pytest.mark.fault("M2")
def test_very_slow_model_fails_at_first_try() -> None:
    assert settled(100, a_try(5_000, 40)).outcome is GateOutcome.FAIL


def test_why_names_the_measurements_and_the_bound() -> None:
    assert settled(100, a_try(301, 3)).why == (
        "a warm record takes 301 ms (p95 of 500), 100.3 ms without the machine's noise; the bound is 100 ms"
    )


def test_error_of_measuring_is_raised() -> None:
    def broken() -> Latency:
        raise ModelError("gone")

    with pytest.raises(ModelError, match="gone"):
        latency.measure_until_decided(100, broken)


# --- the meaning of the times -------------------------------------------------------------------------------------


class Clock:
    """A clock that moves only when a test advances it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def read(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("time.perf_counter", made.read)
    return made


def costing(clock: Clock, *costs: float) -> Any:
    """Return a call that takes the given times in turn; the last one repeats."""
    left = list(costs)

    def call() -> float:
        clock.seconds += left.pop(0) if len(left) > 1 else left[0]
        return 0.5

    return call


def test_warm_times_exclude_first_call_and_warm_up(clock: Clock) -> None:
    call = costing(clock, 0.2, *[0.1] * latency.WARM_UP_CALLS, 0.001)

    first, warm = latency._calls(call, [], 3.0)

    assert first == pytest.approx(0.2)
    assert warm == pytest.approx([0.001] * latency.MAX_CALLS)


@pytest.mark.parametrize(("cost", "calls"), [(5.0, 2), (1.0, 2), (0.1, 24)])
def test_slow_model_is_called_at_least_twice(clock: Clock, cost: float, calls: int) -> None:
    _, warm = latency._calls(costing(clock, cost), [], 3.0)

    assert len(warm) == pytest.approx(calls, abs=1)
    assert clock.seconds <= max(3 * cost, 3.0 + cost)


def test_control_runs_between_calls(clock: Clock) -> None:
    control: list[float] = []

    latency._calls(costing(clock, 0.001), control, 3.0)

    assert len(control) == latency.MAX_CALLS // latency.CALLS_BETWEEN * latency.CONTROLS_BETWEEN


def test_percentiles_use_warm_times_and_control_noise(tmp_path: Path) -> None:
    file = tmp_path / "model.skops"
    file.write_bytes(bytes(250_000))
    warm = [0.001] * 94 + [0.1] * 4 + [1.0] * 2
    control = [0.002] * 90 + [0.006] * 10

    found = latency._read({"load": 1.5, "first": 0.03, "warm": warm, "control": control, "memory": 2**28}, file)

    assert [found.p50_ms, found.p95_ms, found.p99_ms, found.calls] == pytest.approx([1, 100, 1_000, 100])
    assert found.noise == pytest.approx(3)
    assert [found.low_ms, found.high_ms] == pytest.approx([100 / 3, 100])
    assert [found.cold_load_seconds, found.first_prediction_ms] == pytest.approx([1.5, 30])
    assert (found.resident_memory_mib, found.model_size_mb) == (256, 0.25)


# --- real processes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("records") / "records.parquet"
    fakes.visits(30)[SPEC.features].to_parquet(file, index=False)
    return file


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the fresh process load the models of this test package; its program is unchanged."""
    monkeypatch.setattr(latency, "PROGRAM", misbehaving_models.NAME)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


def test_fast_model_is_measured_as_served(records: Path, tmp_path: Path) -> None:
    digest = fit.store(fit.fit(fakes.visits(100), SPEC), tmp_path)
    file = tmp_path / "model.skops"

    found = latency.measure(file, digest, records, warm_seconds=1.0)

    assert 0 < found.p50_ms <= found.p95_ms <= found.p99_ms
    assert found.calls >= latency.MIN_CALLS
    assert found.noise >= 1
    assert found.low_ms <= found.high_ms == found.p95_ms
    assert found.cold_load_seconds > 0.01  # scikit-learn was imported within it
    assert 50 < found.resident_memory_mib < 2_000
    assert found.model_size_mb == file.stat().st_size / 1e6


@pytest.mark.usefixtures("trusting")
def test_sleeping_model_has_its_sleep_as_latency(records: Path, tmp_path: Path) -> None:
    found = latency.measure(*misbehaving_models.store(tmp_path, Odd(seconds=0.05)), records, warm_seconds=1.0)

    assert found.p95_ms >= found.p50_ms >= 50
    assert found.first_prediction_ms >= 50
    assert 2 <= found.calls <= 20
    assert found.cold_load_seconds < 60


@pytest.mark.fault("M2")
@pytest.mark.usefixtures("trusting")
def test_model_slower_than_warm_time_is_measured(records: Path, tmp_path: Path) -> None:
    mark = tmp_path / "calls"

    found = latency.measure(
        *misbehaving_models.store(tmp_path, Odd(seconds=0.6, mark=str(mark))), records, warm_seconds=0.3
    )

    assert found.calls == latency.MIN_CALLS
    assert found.p50_ms >= 600
    assert len(mark.read_text().split()) == 1 + latency.MIN_CALLS


@pytest.mark.fault("M2")
@pytest.mark.usefixtures("trusting")
def test_endless_model_is_killed(records: Path, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    model = misbehaving_models.store(tmp_path, Odd(seconds=3_600, mark=str(mark)))

    with pytest.raises(ModelTimeoutError, match=r"must answer within 10 s\. It did not and was killed"):
        latency.measure(*model, records, timeout_seconds=10)

    for pid in mark.read_text().split() if mark.exists() else []:
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.fault("M1")
@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize(("what", "words"), [("raises", "status 1: ValueError: no plan fits"), ("dies", "status 7")])
def test_failing_model_is_a_typed_error(records: Path, tmp_path: Path, what: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        latency.measure(*misbehaving_models.store(tmp_path, Odd(what)), records)


def test_latency_uses_the_threads_of_a_worker(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setattr(latency, "PROGRAM", "ml_platform_tests.support.print_threads")

    with pytest.raises(ModelError, match=r"threads: 1$"):
        latency.measure(tmp_path / "model.skops", "0" * 64, records)


@pytest.mark.usefixtures("trusting")
def test_output_of_model_is_ignored(records: Path, tmp_path: Path) -> None:
    found = latency.measure(*misbehaving_models.store(tmp_path, Odd("writes", seconds=0.01)), records, warm_seconds=0.3)

    assert found.p50_ms >= 10
    assert found.resident_memory_mib > 50


@pytest.mark.fault("M3")
def test_other_bytes_are_not_loaded(records: Path, tmp_path: Path) -> None:
    digest = fit.store(fit.fit(fakes.visits(100), SPEC), tmp_path)
    file = tmp_path / "model.skops"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")

    with pytest.raises(ModelError, match=r"DigestMismatchError.*It was not loaded\."):
        latency.measure(file, digest, records)


def test_no_records_are_a_typed_error(tmp_path: Path) -> None:
    digest = fit.store(fit.fit(fakes.visits(100), SPEC), tmp_path)
    fakes.visits(1)[SPEC.features].head(0).to_parquet(tmp_path / "none.parquet")

    with pytest.raises(ModelError, match="no records"):
        latency.measure(tmp_path / "model.skops", digest, tmp_path / "none.parquet")


@pytest.mark.skipif(sys.platform != "linux", reason="compares with Linux's own count")
def test_peak_memory_does_not_fall() -> None:
    before = latency.peak_memory()
    filled = bytearray(before + 2**24)  # more than any earlier peak
    filled[:: 2**12] = b"\1" * len(filled[:: 2**12])
    del filled

    peak = latency.peak_memory()

    assert peak > before
    assert peak == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.05)
