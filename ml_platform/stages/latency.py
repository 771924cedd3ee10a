"""How long one record takes, measured in a fresh process that does what serving does: load digest first, then predict.

Run as a program it is that process, which times and judges nothing::

    python -m ml_platform.stages.latency MODEL.skops DIGEST RECORDS.parquet SECONDS TIMES.json

A busy machine makes a model slow, never fast. Beside the model runs a control, a fixed amount of work that no model
changes; how uneven it is says by how much the measured time may be too long.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform import fresh
from ml_platform.errors import ModelError
from ml_platform.predictor import load
from ml_platform.records import GateOutcome

if TYPE_CHECKING:
    from ml_platform.predictor import Predictor

PROGRAM = "ml_platform.stages.latency"
TIMEOUT_SECONDS = 120.0
WARM_SECONDS = 3.0
TRIES = 3

RECORDS = 200
WARM_UP_CALLS = 5
LEAST_CALLS = 2
MOST_CALLS = 500
CALLS_BETWEEN = 10
CONTROLS_BETWEEN = 5
CONTROLS_AROUND = 50
CONTROL_ADDITIONS = 20_000


@dataclass(frozen=True, kw_only=True)
class Latency:
    """What one record costs, and what the model needs.

    Parameters
    ----------
    cold_load_seconds : float
        From an interpreter that has imported nothing to a verified model in memory.
    first_prediction_ms : float
        The first record after that.
    p50_ms, p95_ms, p99_ms : float
        Percentiles of the warm time of one record.
    calls : int
        How many records were timed. Few, where one takes seconds: the percentiles are then near the slowest.
    noise : float
        95th percentile of the control's time over its median: 1 on a machine that does nothing else.
    resident_memory_mib : float
        The most memory that the process had resident, in MiB.
    model_size_mb : float
        The model file's size in MB, millions of bytes.
    """

    cold_load_seconds: float
    first_prediction_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    calls: int
    noise: float
    resident_memory_mib: float
    model_size_mb: float

    @property
    def low_ms(self) -> float:
        """The least that `p95_ms` may be on a quiet machine."""
        return self.p95_ms / self.noise

    @property
    def high_ms(self) -> float:
        """The most that `p95_ms` may be on a quiet machine: what was measured."""
        return self.p95_ms


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Whether a model keeps a bound on its warm p95, with every try that it took to tell.

    ``outcome`` is INCONCLUSIVE where each try's range, `low_ms` to `high_ms`, reached over the bound.
    """

    outcome: GateOutcome
    tries: tuple[Latency, ...]
    why: str


def settle(bound_ms: float, measure: Callable[[], Latency], *, tries: int = TRIES) -> Settled:
    """Measure until the noise leaves no doubt, at most so many times.

    PASS if a try is within the bound as measured, FAIL if it is beyond the bound even without its noise.

    Parameters
    ----------
    bound_ms : float
        The most milliseconds that the warm p95 may be.
    measure : callable
        Measures once; its errors are not caught.
    tries : int
        At least 1.

    Raises
    ------
    whatever `measure` raises
    """
    made: list[Latency] = []
    outcome = GateOutcome.INCONCLUSIVE
    while outcome is GateOutcome.INCONCLUSIVE and len(made) < tries:
        made.append(measure())
        outcome = _outcome(bound_ms, made[-1])
    last = made[-1]
    why = (
        f"a warm record takes {last.p95_ms:.4g} ms (p95 of {last.calls}), {last.low_ms:.4g} ms without the machine's "
        f"noise; the bound is {bound_ms:g} ms"
    )
    return Settled(outcome=outcome, tries=tuple(made), why=why)


def _outcome(bound_ms: float, found: Latency) -> GateOutcome:
    if not isfinite(found.high_ms) or not isfinite(found.low_ms):
        return GateOutcome.INCONCLUSIVE
    if found.high_ms <= bound_ms:
        return GateOutcome.PASS
    return GateOutcome.FAIL if found.low_ms > bound_ms else GateOutcome.INCONCLUSIVE


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
        Hex sha256 that its bytes must have.
    records : Path
        A Parquet file of features by name; its first 200 rows are asked one at a time, around and around.
    warm_seconds : float
        After so many no further call is made, but for two warm ones that are made in any case.
    timeout_seconds : float
        The process is killed after so many.

    Raises
    ------
    ModelTimeoutError
        It did not end in time.
    ModelError
        It died: other bytes, a model that raises, no records; the message says which.
    """
    arguments = [str(model_file), digest, str(records), str(warm_seconds)]
    said = fresh.ask(PROGRAM, arguments, seconds=timeout_seconds, environment=fresh.AS_SERVED)
    return _read(said, model_file)


def _read(times: dict[str, Any], model_file: Path) -> Latency:
    import numpy as np

    p50, p95, p99 = np.percentile(times["warm"], [50, 95, 99]) * 1000
    usual, rare = np.percentile(times["control"], [50, 95])
    return Latency(
        cold_load_seconds=times["load"],
        first_prediction_ms=times["first"] * 1000,
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
        calls=len(times["warm"]),
        noise=float(rare / usual),
        resident_memory_mib=times["memory"] / 2**20,
        model_size_mb=model_file.stat().st_size / 1e6,
    )


# --- the fresh process --------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Load a model, time its answers and the control, and write the times, in seconds, as JSON."""
    model, digest, records, warm_seconds, answers = arguments
    load_seconds, predictor = _timed(lambda: load(Path(model), digest))
    ask = _asking(predictor, Path(records))
    control = list(_controls(CONTROLS_AROUND))
    first, warm = _calls(ask, control, float(warm_seconds))
    control += _controls(CONTROLS_AROUND)
    times = {"load": load_seconds, "first": first, "warm": warm, "control": control, "memory": peak_memory()}
    fresh.answer(Path(answers), times)


def _asking(predictor: "Predictor", records: Path) -> Callable[[], Any]:
    """Return a function that scores the next record, around and around."""
    from itertools import cycle

    import pandas as pd

    rows = pd.read_parquet(records).head(RECORDS).to_dict("records")
    if not rows:
        raise ModelError(f"{records} has no records to ask: keep at least one golden request.")
    again = cycle(rows)
    return lambda: predictor.score_record(next(again))


def _calls(ask: Callable[[], Any], control: list[float], seconds: float) -> tuple[float, list[float]]:
    """Return the time of the first call and those of the warm ones; add the control's between them to its list."""
    begin, (first, _) = time.perf_counter(), _timed(ask)
    for _ in range(WARM_UP_CALLS):
        if time.perf_counter() < begin + seconds / 2:
            ask()
    warm: list[float] = []
    while len(warm) < LEAST_CALLS or (len(warm) < MOST_CALLS and time.perf_counter() < begin + seconds):
        warm.append(_timed(ask)[0])
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
    done = work()
    return time.perf_counter() - start, done


def peak_memory() -> int:
    """Return the most bytes that this process has had resident."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss: Linux hands a parent's on to the process that it starts.
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(sys.argv[1:])
