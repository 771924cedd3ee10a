"""Measure a candidate on rows that it has not seen."""

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.predictor import Predictor

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

WARM_UP_CALLS = 5
TIMED_CALLS = 50


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of one candidate, with the scores that they were computed from.

    A metric that cannot be computed, AUC on one class for instance, is missing from `metrics`: its gate is then
    INCONCLUSIVE.
    """

    metrics: dict[str, float]
    labels: "NDArray[np.int64]"
    scores: "NDArray[np.float64]"


def evaluate(
    predictor: Predictor, features: "pd.DataFrame", labels: "NDArray[np.int64]", model_file: Path
) -> Evaluation:
    """Compute a binary classifier's metrics on the holdout.

    Parameters
    ----------
    predictor : Predictor
        The candidate, loaded from its stored bytes.
    features : DataFrame of shape (n_samples, n_features)
    labels : ndarray of shape (n_samples,) of 0 and 1
    model_file : Path
        Its size is a metric.

    Returns
    -------
    Evaluation
    """
    import numpy as np

    scores = predictor.scores(features) if len(labels) else np.empty(0)
    positive = predictor.positive(features).astype("int64") if len(labels) else np.empty(0, "int64")
    metrics = {
        **_quality(labels, scores, positive),
        "inference_time_ms": latency_p95_ms(predictor, features),
        "model_size_mb": model_file.stat().st_size / 1e6,
        "holdout_rows": float(len(labels)),
        "holdout_positives": float(labels.sum()),
    }
    return Evaluation(metrics=metrics, labels=labels, scores=scores)


def _quality(labels: Any, scores: Any, positive: Any) -> dict[str, float]:
    import numpy as np
    from sklearn import metrics

    if not len(labels) or not labels.shape == scores.shape == positive.shape or not np.isfinite(scores).all():
        return {}
    found = {
        "accuracy": metrics.accuracy_score(labels, positive),
        "precision": metrics.precision_score(labels, positive, zero_division=0.0),
        "recall": metrics.recall_score(labels, positive, zero_division=0.0),
        "f1_score": metrics.f1_score(labels, positive, zero_division=0.0),
        "brier_score": metrics.brier_score_loss(labels, scores),
    }
    if 0 < labels.sum() < len(labels):
        found["auc_roc"] = metrics.roc_auc_score(labels, scores)
        found["average_precision"] = metrics.average_precision_score(labels, scores)
    return {name: float(value) for name, value in found.items()}


def latency_p95_ms(predictor: Predictor, features: "pd.DataFrame") -> float:
    """Return the 95th percentile of the warm time to score one record, in milliseconds."""
    import numpy as np

    records = features.head(WARM_UP_CALLS + TIMED_CALLS).to_dict("records")
    if not records:
        return float("nan")
    times = [_seconds_of(predictor, records[i % len(records)]) for i in range(WARM_UP_CALLS + TIMED_CALLS)]
    return float(np.percentile(times[WARM_UP_CALLS:], 95) * 1000)


def _seconds_of(predictor: Predictor, record: Mapping[Any, Any]) -> float:
    start = time.perf_counter()
    predictor.score_record(record)
    return time.perf_counter() - start


def draw_curves(evaluation: Evaluation) -> bytes | None:
    """Draw the ROC curve and the calibration curve beside it as a PNG; ``None`` where one class is absent."""
    if "auc_roc" not in evaluation.metrics:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    roc, calibration = figure.subplots(1, 2)
    _draw_roc(roc, evaluation)
    _draw_calibration(calibration, evaluation)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=70)
    return png.getvalue()


def _draw_roc(axes: Any, evaluation: Evaluation) -> None:
    from sklearn.metrics import roc_curve

    false_positive, true_positive, _ = roc_curve(evaluation.labels, evaluation.scores)
    axes.plot([0, 1], [0, 1], color="0.7", linestyle=":", label="chance")
    axes.plot(false_positive, true_positive, label=f"AUC {evaluation.metrics['auc_roc']:.3f}")
    axes.set(title="ROC on the holdout", xlabel="False positive rate", ylabel="True positive rate")
    axes.legend(loc="lower right")


def _draw_calibration(axes: Any, evaluation: Evaluation) -> None:
    from sklearn.calibration import calibration_curve

    observed, predicted = calibration_curve(evaluation.labels, evaluation.scores, n_bins=10, strategy="quantile")
    axes.plot([0, 1], [0, 1], color="0.7", linestyle=":", label="perfect")
    axes.plot(predicted, observed, marker="o", label=f"Brier {evaluation.metrics['brier_score']:.3f}")
    axes.set(title="Calibration, tenths of the holdout", xlabel="Mean score", ylabel="Share positive")
    axes.legend(loc="upper left")
