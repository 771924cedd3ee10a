"""Measure one model: its metrics on every dataset and slice, its latency, memory and size."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from ml_platform.data import dataset_checks, golden_datasets
from ml_platform.errors import ModelError
from ml_platform.evaluation import latency, predictions
from ml_platform.evaluation.predictions import PredictFunction, PredictionsWithLabels
from ml_platform.evaluation.uncertainty import estimates, intervals
from ml_platform.inference import golden_requests
from ml_platform.model_spec import HOLDOUT, ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.verdict import Candidate, Measurement

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ml_platform")

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
    """Return the rows of the holdout and of the golden datasets, by the dataset's name.

    Raises
    ------
    DatasetError, DigestMismatchError
        A golden dataset is missing, or its bytes are not those that were frozen.
    """
    frozen = {one.name: golden_datasets.read_golden(platform.settings.golden_dir, spec, one) for one in spec.golden}
    return {HOLDOUT: holdout, **frozen}


def predict_dataset(rows: "pd.DataFrame", spec: ModelSpec, predict: PredictFunction) -> PredictionsWithLabels:
    """Predict rows that have the columns of the contract."""
    return predict(rows[spec.features], dataset_checks.target(rows, spec))


def to_interval_answers(answers: PredictionsWithLabels) -> intervals.Answers:
    """Return answers without labels, as `intervals` takes them."""
    return intervals.Answers(predictions=answers.predictions, probabilities=answers.probabilities)


def measure_metrics(
    spec: ModelSpec,
    data: "Mapping[str, pd.DataFrame]",
    answers: Mapping[str, PredictionsWithLabels],
    *,
    resamples: int = estimates.RESAMPLES,
) -> list[Measurement]:
    """Return every metric of the task for every dataset, on all rows and on every slice, with its bounds.

    Parameters
    ----------
    spec : ModelSpec
    data : mapping of str to DataFrame of shape (n_samples, n_columns)
    answers : mapping of str to PredictionsWithLabels
        The model's predictions for these rows.
    resamples : int
        Resamples of each bootstrap.
    """
    result = []
    for dataset, rows in data.items():
        for name, inside in predictions.slices(rows, spec).items():
            part = answers[dataset].at(inside)
            found = intervals.measurements(spec.task, part.labels, to_interval_answers(part), resamples=resamples)
            result += [
                Measurement(
                    metric=metric,
                    value=interval.value,
                    low=interval.low,
                    high=interval.high,
                    rows=len(part.labels),
                    dataset=dataset,
                    slice=name,
                    method=interval.method,
                    reason=interval.reason,
                )
                for metric, interval in found.items()
            ]
    return result


def measure_costs(platform: Platform, spec: ModelSpec, candidate: Candidate) -> list[Measurement]:
    """Return a candidate's size and, if a gate asks for time or memory, the measurements of a fresh process.

    That process loads the file as serving does. If it fails, the candidate has no times, and their gates are
    INCONCLUSIVE.
    """
    model_file = platform.model_file(candidate)
    size = Measurement(metric="model_size_mb", value=model_file.stat().st_size / 1e6)
    if not any(gate.metric in IN_A_FRESH_PROCESS for gate in spec.gates):
        return [size]
    records = platform.candidate_folder(candidate) / golden_requests.GOLDEN_REQUESTS
    measure = partial(latency.measure, model_file, candidate.model_digest, records, warm_seconds=WARM_SECONDS)
    bounds = [gate.at_most for gate in spec.gates if gate.metric == LATENCY and gate.at_most is not None]
    try:
        # Without a bound there is nothing to decide, and one try is enough.
        measured = latency.measure_until_decided(min(bounds), measure).tries[-1] if bounds else measure()
    except ModelError as error:
        log.warning("Could not measure the latency of candidate %s: %s", candidate.id, error)
        return [size, Measurement(metric=LATENCY, value=None, reason=str(error))]
    ranges = {LATENCY: measured.p95_ms, "inference_p50_ms": measured.p50_ms, "inference_p99_ms": measured.p99_ms}
    plain = {
        "first_prediction_ms": measured.first_prediction_ms,
        "cold_load_seconds": measured.cold_load_seconds,
        "resident_memory_mib": measured.resident_memory_mib,
        "machine_noise": measured.noise,
    }
    times = [
        Measurement(metric=name, value=value, low=value / measured.noise, high=value, method=NOISE)
        for name, value in ranges.items()
    ]
    return [size, *times, *(Measurement(metric=name, value=value) for name, value in plain.items())]
