"""Everything that is measured of one model, as figures: its answers in every place, its time, its size."""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.errors import ModelError
from ml_platform.model_spec import HOLDOUT, ModelSpec
from ml_platform.records import Candidate, Figure
from ml_platform.stages import evaluation, golden, intervals, latency, staging, training
from ml_platform.stages.evaluation import Answered, Answering
from ml_platform.workflows.platform import Platform

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ml_platform")

Measure = Callable[[Any, intervals.Answers], dict[str, intervals.Interval]]

LATENCY = "inference_time_ms"
NOISE = "range that the machine's noise leaves"
WARM_SECONDS = 0.7
IN_A_FRESH_PROCESS = {
    LATENCY,
    "inference_p50_ms",
    "inference_p99_ms",
    "first_prediction_ms",
    "cold_load_seconds",
    "resident_memory_mib",
    "machine_noise",
}


def datasets_to_judge(platform: Platform, spec: ModelSpec, holdout: "pd.DataFrame") -> "dict[str, pd.DataFrame]":
    """Return the rows that a candidate is measured on by the name of their dataset: the holdout and the golden ones.

    Raises
    ------
    DatasetError, DigestMismatchError
        A golden dataset is missing, or is not what was frozen.
    """
    frozen = {one.name: golden.read_golden(platform.settings.golden, spec, one) for one in spec.golden}
    return {HOLDOUT: holdout, **frozen}


def answers_in(rows: "pd.DataFrame", spec: ModelSpec, answering: Answering) -> Answered:
    """Ask a model about rows with the columns of the contract."""
    return answering(rows[spec.features], training.target(rows, spec))


def as_intervals(answered: Answered) -> intervals.Answers:
    """Return answers as the stage takes them that knows how sure a metric is."""
    return intervals.Answers(predictions=answered.predictions, probabilities=answered.probabilities)


def figures_of(
    spec: ModelSpec,
    data: "Mapping[str, pd.DataFrame]",
    answers: Mapping[str, Answered],
    *,
    resamples: int = intervals.RESAMPLES,
) -> list[Figure]:
    """Return every metric of the task for every dataset, on all rows and on every slice, with its bounds.

    Parameters
    ----------
    spec : ModelSpec
    data : mapping of str to DataFrame of shape (n_samples, n_columns)
    answers : mapping of str to Answered
        What the model says of these rows.
    resamples : int
        How many a bootstrap takes for its bounds.
    """
    measure = partial(intervals.figures, spec.task, resamples=resamples)
    return [f for name, rows in data.items() for f in _figures_on(name, rows, spec, answers[name], measure)]


def _figures_on(
    dataset: str, rows: "pd.DataFrame", spec: ModelSpec, answered: Answered, measure: Measure
) -> Iterator[Figure]:
    for name, inside in evaluation.slices(rows, spec).items():
        part = answered.at(inside)
        place = partial(Figure, rows=len(part.labels), dataset=dataset, slice=name)
        for metric, found in measure(part.labels, as_intervals(part)).items():
            yield place(metric=metric, **_numbers(found))


def _numbers(found: intervals.Interval) -> dict[str, Any]:
    return {name: getattr(found, name) for name in ("value", "low", "high", "method", "reason")}


def costs_of(platform: Platform, spec: ModelSpec, candidate: Candidate) -> list[Figure]:
    """Return a candidate's size and, where a gate asks for time or memory, what a fresh process says of them.

    That process loads the file as serving does. A model that gives it no answer has no times, and their gates are
    INCONCLUSIVE.
    """
    model_file = platform.model_file(candidate)
    size = Figure(metric="model_size_mb", value=model_file.stat().st_size / 1e6)
    if not any(gate.metric in IN_A_FRESH_PROCESS for gate in spec.gates):
        return [size]
    try:
        measured = _settled(spec, candidate, model_file, platform.candidate_folder(candidate) / staging.GOLDEN_REQUESTS)
    except ModelError as error:
        log.warning("candidate %s could not be timed: %s", candidate.id, error)
        return [size, Figure(metric=LATENCY, value=None, reason=str(error))]
    return [size, *_times(measured)]


def _settled(spec: ModelSpec, candidate: Candidate, model_file: Path, records: Path) -> latency.Latency:
    measure = partial(latency.measure, model_file, candidate.model_digest, records, warm_seconds=WARM_SECONDS)
    bounds = [gate.at_most for gate in spec.gates if gate.metric == LATENCY and gate.at_most is not None]
    # Without a bound there is nothing to settle: one try says what it says.
    return latency.settle(min(bounds), measure).tries[-1] if bounds else measure()


def _times(measured: latency.Latency) -> list[Figure]:
    ranges = {
        LATENCY: measured.p95_ms,
        "inference_p50_ms": measured.p50_ms,
        "inference_p99_ms": measured.p99_ms,
    }
    plain = {
        "first_prediction_ms": measured.first_prediction_ms,
        "cold_load_seconds": measured.cold_load_seconds,
        "resident_memory_mib": measured.resident_memory_mib,
        "machine_noise": measured.noise,
    }
    timed = [
        Figure(metric=name, value=value, low=value / measured.noise, high=value, method=NOISE)
        for name, value in ranges.items()
    ]
    return timed + [Figure(metric=name, value=value) for name, value in plain.items()]
