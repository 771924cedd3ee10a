"""Latency of one record, measured in a fresh process that loads the model as a server does: digest first.

Run as a program, it is that process. It measures and judges nothing::

    python -m ml_platform.evaluation.latency MODEL.skops DIGEST RECORDS.parquet SECONDS TIMES.json

A busy machine makes a model slow, never fast. A control, a fixed amount of work that no model changes, runs between
the predictions; the spread of its times bounds the error of the measured latency.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ml_platform.errors import ModelError
from ml_platform.inference.predictor import load
from ml_platform.records.verdict import GateOutcome
from ml_platform.system import fork_server, isolated_process

if TYPE_CHECKING:
    from ml_platform.inference.predictor import Predictor

PROGRAM = "ml_platform.evaluation.latency"
# Imports of a process that loads a model. A fork server imports them first; their time is a part of the cold load.
LIBRARIES = ("pandas", "pyarrow.dataset", "skops.io", "ml_platform.inference.predictor")
TIMEOUT_SECONDS = 120.0
WARM_SECONDS = 3.0
TRIES = 3

RECORDS = 200
WARM_UP_CALLS = 5
MIN_CALLS = 2
MAX_CALLS = 500
CALLS_BETWEEN = 10
CONTROLS_BETWEEN = 5
CONTROLS_AROUND = 50
CONTROL_ADDITIONS = 20_000
L = TypeVar("L", bound="WarmLatency")


@dataclass(frozen=True, kw_only=True)
class WarmLatency:
    """Time of one record, and the machine's noise during its measurement.

    Parameters
    ----------
    p50_ms, p95_ms : float
        Percentiles of the warm time of one record, in milliseconds.
    calls : int
        Number of timed records. It is small if a record takes seconds: the percentiles are then near the maximum.
    noise : float
        Rare time of the control divided by its usual time; 1 on an idle machine.
    """

    p50_ms: float
    p95_ms: float
    calls: int
    noise: float

    @property
    def low_ms(self) -> float:
        """Lower bound of `p95_ms` on an idle machine."""
        return self.p95_ms / self.noise

    @property
    def high_ms(self) -> float:
        """Upper bound of `p95_ms` on an idle machine: the measured value."""
        return self.p95_ms


@dataclass(frozen=True, kw_only=True)
class Latency(WarmLatency):
    """Latency, memory and size of a model; `WarmLatency` describes the other fields.

    Parameters
    ----------
    cold_load_seconds : float
        Time from an interpreter without imports to a verified model in memory, in seconds.
    first_prediction_ms : float
        Time of the first record after that, in milliseconds.
    p99_ms : float
        99th percentile of the warm time of one record, in milliseconds.
    resident_memory_mib : float
        Peak resident memory of the process, in MiB.
    model_size_mb : float
        Size of the model file, in MB (millions of bytes).
    """

    cold_load_seconds: float
    first_prediction_ms: float
    p99_ms: float
    resident_memory_mib: float
    model_size_mb: float


@dataclass(frozen=True, kw_only=True)
class LatencyDecision(Generic[L]):
    """Result of a bound on the warm p95, with all measurements that it took.

    ``outcome`` is INCONCLUSIVE if the bound lies in the range of every measurement, `low_ms` to `high_ms`.
    """

    outcome: GateOutcome
    tries: tuple[L, ...]
    why: str


def measure_until_decided(bound_ms: float, measure: Callable[[], L], *, tries: int = TRIES) -> LatencyDecision[L]:
    """Measure until the result is conclusive, or `tries` times.

    PASS if a measured p95 is within the bound; FAIL if it is beyond the bound even without the machine's noise.

    Parameters
    ----------
    bound_ms : float
        Maximum of the warm p95, in milliseconds.
    measure : callable
        Measures once. Its errors are not caught.
    tries : int
        Maximum number of measurements, at least 1.
    """
    measured: list[L] = []
    outcome = GateOutcome.INCONCLUSIVE
    while outcome is GateOutcome.INCONCLUSIVE and len(measured) < tries:
        last = measure()
        measured.append(last)
        if not isfinite(last.high_ms) or not isfinite(last.low_ms):
            outcome = GateOutcome.INCONCLUSIVE
        elif last.high_ms <= bound_ms:
            outcome = GateOutcome.PASS
        elif last.low_ms > bound_ms:
            outcome = GateOutcome.FAIL
    why = (
        f"a warm record takes {last.p95_ms:.4g} ms (p95 of {last.calls}), {last.low_ms:.4g} ms without the machine's "
        f"noise; the bound is {bound_ms:g} ms"
    )
    return LatencyDecision(outcome=outcome, tries=tuple(measured), why=why)


def measure(
    model_file: Path,
    digest: str,
    records: Path,
    *,
    warm_seconds: float = WARM_SECONDS,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Latency:
    """Measure a model file in a fresh process.

    Parameters
    ----------
    model_file : Path
    digest : str
        Expected sha256 of its bytes, in hex.
    records : Path
        Parquet file of features by name. Its first 200 rows are predicted one at a time, in turn.
    warm_seconds : float
        Time after which no further prediction starts, in seconds. At least two warm ones are made.
    timeout_seconds : float
        Time after which the process is killed, in seconds.

    Raises
    ------
    ModelTimeoutError
        The process did not end in time.
    ModelError
        The process failed: wrong bytes, a model that raises, or no records. The message names the cause.
    """
    arguments = [str(model_file), digest, str(records), str(warm_seconds)]
    times = isolated_process.run_isolated(
        PROGRAM, arguments, seconds=timeout_seconds, environment=isolated_process.AS_SERVED
    )
    return _read(times, model_file)


def measure_noise(control_seconds: Sequence[float], *, usual: float = 50, rare: float = 95) -> float:
    """Return the ratio of two percentiles of the control's times; 1 on an idle machine.

    Parameters
    ----------
    control_seconds : sequence of float
        Times of the same work, in seconds.
    usual, rare : float
        Percentiles, from 0 to 100: the time of an idle machine, and the time that a busy one may take.
    """
    import numpy as np

    undisturbed, disturbed = np.percentile(control_seconds, [usual, rare])
    return float(disturbed / undisturbed)


def _read(times: dict[str, Any], model_file: Path) -> Latency:
    import numpy as np

    p50, p95, p99 = np.percentile(times["warm"], [50, 95, 99]) * 1000
    return Latency(
        cold_load_seconds=times["load"],
        first_prediction_ms=times["first"] * 1000,
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
        calls=len(times["warm"]),
        noise=measure_noise(times["control"]),
        resident_memory_mib=times["memory"] / 2**20,
        model_size_mb=model_file.stat().st_size / 1e6,
    )


# --- the fresh process --------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Load a model, time its predictions and the control, and write the times, in seconds, as JSON."""
    model, digest, records, warm_seconds, result = arguments
    load_seconds, predictor = _timed(lambda: load(Path(model), digest))
    load_seconds += max((fork_server.import_seconds.get(name, 0.0) for name in LIBRARIES), default=0.0)
    predict = _predict_in_turn(predictor, Path(records))
    control = list(_controls(CONTROLS_AROUND))
    first, warm = _calls(predict, control, float(warm_seconds))
    control += _controls(CONTROLS_AROUND)
    times = {"load": load_seconds, "first": first, "warm": warm, "control": control, "memory": peak_memory()}
    isolated_process.write_answer(Path(result), times)


def _predict_in_turn(predictor: "Predictor", records: Path) -> Callable[[], Any]:
    """Return a function that scores the next record, and the first one again after the last."""
    from itertools import cycle

    import pandas as pd

    rows = pd.read_parquet(records).head(RECORDS).to_dict("records")
    if not rows:
        raise ModelError(f"{records} has no records to predict. Keep at least one golden request.")
    in_turn = cycle(rows)
    return lambda: predictor.score_record(next(in_turn))


def _calls(predict: Callable[[], Any], control: list[float], seconds: float) -> tuple[float, list[float]]:
    """Return the times of the first call and of the warm ones, in seconds; append the control's times to its list."""
    begin, (first, _) = time.perf_counter(), _timed(predict)
    for _ in range(WARM_UP_CALLS):
        if time.perf_counter() < begin + seconds / 2:
            predict()
    warm: list[float] = []
    while len(warm) < MIN_CALLS or (len(warm) < MAX_CALLS and time.perf_counter() < begin + seconds):
        warm.append(_timed(predict)[0])
        if len(warm) % CALLS_BETWEEN == 0:
            control += _controls(CONTROLS_BETWEEN)
    return first, warm


def _controls(count: int) -> Iterator[float]:
    return (_timed(_control)[0] for _ in range(count))


def _control() -> int:
    total = 0
    for number in range(CONTROL_ADDITIONS):
        total += number
    return total


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def peak_memory() -> int:
    """Return the peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss: on Linux a process inherits that of its parent.
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        shared = fork_server.resident_file_bytes  # 0 in a process that no server forked
        return int(peak.split()[1]) * 1024 + (max(0, shared - fork_server.read_resident_file_bytes()) if shared else 0)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(sys.argv[1:])
