"""Ask a model about rows that it has not seen, and cut the answers into slices."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ml_platform.model_spec import ModelSpec, Range, Slice, Task
from ml_platform.predictor import Predictor

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

Answering = Callable[["pd.DataFrame", "NDArray[Any]"], "Answered"]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a model says of rows whose labels are known, in numbers.

    Parameters
    ----------
    labels : ndarray of shape (n_samples,)
        0 and 1; the numbers of the model's classes, from 0, and -1 for a class that it does not know; or values.
    predictions : ndarray of shape (n_samples,)
        As the labels; of another shape where the model answers for another number of rows.
    probabilities : ndarray of shape (n_samples,) of class 1, or (n_samples, n_classes); or None
        None where the model predicts numbers.
    """

    labels: "NDArray[Any]"
    predictions: "NDArray[Any]"
    probabilities: "NDArray[Any] | None"

    def at(self, rows: "NDArray[np.bool_]") -> "Answered":
        """Return the answers for some of the rows; `rows` of shape (n_samples,)."""
        return Answered(
            labels=self.labels[rows],
            predictions=_at(self.predictions, rows),
            probabilities=None if self.probabilities is None else _at(self.probabilities, rows),
        )


def _at(answers: "NDArray[Any]", rows: "NDArray[np.bool_]") -> "NDArray[Any]":
    # Answers for another number of rows belong to nobody: no slice may have as many by chance.
    return answers[rows] if len(answers) == len(rows) else answers[:0]


def ask(predictor: Predictor, features: "pd.DataFrame", labels: "NDArray[Any]", task: Task) -> Answered:
    """Ask a model about rows.

    Parameters
    ----------
    predictor : Predictor
        Loaded from its stored bytes.
    features : DataFrame of shape (n_samples, n_features)
    labels : ndarray of shape (n_samples,)
        As training sees them.
    task : "binary", "multiclass" or "regression"
    """
    import numpy as np

    if not len(labels):
        return Answered(labels=labels, predictions=labels, probabilities=np.empty(0))
    predictions, scores = predictor.predictions(features), predictor.scores(features)
    if task == "regression":
        return Answered(labels=labels, predictions=scores, probabilities=None)
    if task == "binary":
        return Answered(labels=labels, predictions=predictions.astype("int64"), probabilities=scores)
    known = predictor.classes
    return Answered(labels=_numbers(labels, known), predictions=_numbers(predictions, known), probabilities=scores)


def _numbers(values: "NDArray[Any]", classes: "NDArray[Any]") -> "NDArray[np.int64]":
    """Return the places of values among sorted classes; -1 for a value that is none of them."""
    import numpy as np

    places = np.searchsorted(classes, values).clip(0, len(classes) - 1)
    return np.where(classes[places] == values, places, -1)


def slices(rows: "pd.DataFrame", spec: ModelSpec) -> "dict[str, NDArray[np.bool_]]":
    """Return which rows are in each slice, shape (n_samples,), by its name; all rows are the slice without a name."""
    import numpy as np

    return {"": np.ones(len(rows), bool), **{part.name: _rows_of(part, rows) for part in spec.parts}}


def _rows_of(part: Slice, rows: "pd.DataFrame") -> "NDArray[np.bool_]":
    column = rows[part.column]
    if not isinstance(part, Range):
        return column.eq(part.equals).fillna(False).to_numpy(bool)
    inside = column.notna()
    if part.at_least is not None:
        inside &= column.ge(part.at_least).fillna(False)
    if part.below is not None:
        inside &= column.lt(part.below).fillna(False)
    return inside.to_numpy(bool)


# The baseline


def baseline(features: "pd.DataFrame", labels: "NDArray[Any]", spec: ModelSpec) -> Answering:
    """Return what answers in the baseline's place: scikit-learn's dummy, fitted on these rows, or the author's rule.

    Parameters
    ----------
    features : DataFrame of shape (n_samples, n_features)
        Training rows.
    labels : ndarray of shape (n_samples,)
    """
    import numpy as np
    from sklearn.dummy import DummyClassifier, DummyRegressor

    if callable(spec.baseline):
        rule, classes = spec.baseline, np.unique(labels)
        return lambda asked, truth: _ask_rule(rule, asked, truth, classes, spec.task)
    strategy = spec.stated_baseline.partition("(")[2].rstrip(")")
    dummy = DummyRegressor(strategy=strategy)
    if spec.task != "regression":
        dummy = DummyClassifier(strategy=strategy, random_state=0)
    predictor = Predictor(dummy.fit(features, labels), "")
    return lambda asked, truth: ask(predictor, asked, truth, spec.task)


def _ask_rule(
    rule: Callable[[Any], Any], features: "pd.DataFrame", labels: "NDArray[Any]", classes: "NDArray[Any]", task: Task
) -> Answered:
    """Ask a rule: its probabilities count from one half on, and one that names classes is sure of them."""
    import numpy as np

    said = np.asarray(rule(features))
    if task == "regression":
        return Answered(labels=labels, predictions=said, probabilities=None)
    if task == "binary":
        return Answered(labels=labels, predictions=(said >= 0.5).astype("int64"), probabilities=said.astype("float64"))
    places = _numbers(said, classes)
    sure = np.eye(len(classes))[places]
    return Answered(labels=_numbers(labels, classes), predictions=places, probabilities=sure)


# The curves


def draw_curves(answered: Answered, metrics: Mapping[str, float]) -> bytes | None:
    """Draw the ROC curve and the calibration curve beside it as a PNG; ``None`` where there is no AUC to show."""
    if "auc_roc" not in metrics or "brier_score" not in metrics:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    roc, calibration = figure.subplots(1, 2)
    _draw_roc(roc, answered, metrics["auc_roc"])
    _draw_calibration(calibration, answered, metrics["brier_score"])
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=70)
    return png.getvalue()


def _draw_roc(axes: Any, answered: Answered, auc: float) -> None:
    from sklearn.metrics import roc_curve

    false_positive, true_positive, _ = roc_curve(answered.labels, answered.probabilities)
    axes.plot([0, 1], [0, 1], color="0.7", linestyle=":", label="chance")
    axes.plot(false_positive, true_positive, label=f"AUC {auc:.3f}")
    axes.set(title="ROC on the holdout", xlabel="False positive rate", ylabel="True positive rate")
    axes.legend(loc="lower right")


def _draw_calibration(axes: Any, answered: Answered, brier: float) -> None:
    from sklearn.calibration import calibration_curve

    observed, predicted = calibration_curve(answered.labels, answered.probabilities, n_bins=10, strategy="quantile")
    axes.plot([0, 1], [0, 1], color="0.7", linestyle=":", label="perfect")
    axes.plot(predicted, observed, marker="o", label=f"Brier {brier:.3f}")
    axes.set(title="Calibration, tenths of the holdout", xlabel="Mean score", ylabel="Share positive")
    axes.legend(loc="upper left")
