"""Predict labelled rows with a model or a baseline, select slices, and draw curves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ml_platform.inference.predictor import Predictor
from ml_platform.model_spec import InRange, ModelSpec, Task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

PredictFunction = Callable[["pd.DataFrame", "NDArray[Any]"], "PredictionsWithLabels"]


@dataclass(frozen=True, kw_only=True)
class PredictionsWithLabels:
    """A model's predictions for labelled rows, as numbers.

    Parameters
    ----------
    labels : ndarray of shape (n_samples,)
        0 and 1; class numbers from 0, in the model's order, and -1 for a class unknown to it; or values.
    predictions : ndarray of shape (n_samples,)
        As the labels; of another length if the model returns another number of rows.
    probabilities : ndarray of shape (n_samples,) of class 1, or (n_samples, n_classes); or None
        None for a regression.
    """

    labels: "NDArray[Any]"
    predictions: "NDArray[Any]"
    probabilities: "NDArray[Any] | None"

    def at(self, rows: "NDArray[np.bool_]") -> "PredictionsWithLabels":
        """Return the predictions of the selected rows; `rows` is of shape (n_samples,)."""

        def select(answers: "NDArray[Any]") -> "NDArray[Any]":
            # Answers of another length match no rows; a slice must not have that length by chance.
            return answers[rows] if len(answers) == len(rows) else answers[:0]

        return PredictionsWithLabels(
            labels=self.labels[rows],
            predictions=select(self.predictions),
            probabilities=None if self.probabilities is None else select(self.probabilities),
        )


def predict_rows(
    predictor: Predictor, features: "pd.DataFrame", labels: "NDArray[Any]", task: Task
) -> PredictionsWithLabels:
    """Predict labelled rows with a model.

    Parameters
    ----------
    predictor : Predictor
        The model, loaded from its stored bytes.
    features : DataFrame of shape (n_samples, n_features)
    labels : ndarray of shape (n_samples,)
        Labels as training uses them.
    task : "binary", "multiclass" or "regression"
    """
    import numpy as np

    if not len(labels):
        return PredictionsWithLabels(labels=labels, predictions=labels, probabilities=np.empty(0))
    predictions, scores = predictor.predictions(features), predictor.scores(features)
    if task == "regression":
        return PredictionsWithLabels(labels=labels, predictions=scores, probabilities=None)
    if task == "binary":
        return PredictionsWithLabels(labels=labels, predictions=predictions.astype("int64"), probabilities=scores)
    classes = predictor.classes
    return PredictionsWithLabels(
        labels=_number_classes(labels, classes),
        predictions=_number_classes(predictions, classes),
        probabilities=scores,
    )


def _number_classes(values: "NDArray[Any]", classes: "NDArray[Any]") -> "NDArray[np.int64]":
    """Return the index of each value in sorted classes; -1 for a value that is not a class."""
    import numpy as np

    places = np.searchsorted(classes, values).clip(0, len(classes) - 1)
    return np.where(classes[places] == values, places, -1)


def slices(rows: "pd.DataFrame", spec: ModelSpec) -> "dict[str, NDArray[np.bool_]]":
    """Return a mask of the rows of each slice, of shape (n_samples,), by its name; the empty name has all rows."""
    import numpy as np

    masks: dict[str, NDArray[np.bool_]] = {"": np.ones(len(rows), bool)}
    for part in spec.parts:
        column = rows[part.column]
        if not isinstance(part, InRange):
            masks[part.name] = column.eq(part.equals).fillna(False).to_numpy(bool)
            continue
        inside = column.notna()
        if part.at_least is not None:
            inside &= column.ge(part.at_least).fillna(False)
        if part.below is not None:
            inside &= column.lt(part.below).fillna(False)
        masks[part.name] = inside.to_numpy(bool)
    return masks


def baseline(features: "pd.DataFrame", labels: "NDArray[Any]", spec: ModelSpec) -> PredictFunction:
    """Return the baseline's prediction function: of scikit-learn's dummy, fitted on these rows, or the author's rule.

    Parameters
    ----------
    features : DataFrame of shape (n_samples, n_features)
        Training rows.
    labels : ndarray of shape (n_samples,)
    spec : ModelSpec
    """
    import numpy as np
    from sklearn.dummy import DummyClassifier, DummyRegressor

    if callable(spec.baseline):
        rule, classes = spec.baseline, np.unique(labels)
        return lambda rows, truth: _predict_by_rule(rule, rows, truth, classes, spec.task)
    strategy = spec.stated_baseline.partition("(")[2].rstrip(")")
    dummy = DummyRegressor(strategy=strategy)
    if spec.task != "regression":
        dummy = DummyClassifier(strategy=strategy, random_state=0)
    predictor = Predictor(dummy.fit(features, labels), "")
    return lambda rows, truth: predict_rows(predictor, rows, truth, spec.task)


def _predict_by_rule(
    rule: Callable[[Any], Any], features: "pd.DataFrame", labels: "NDArray[Any]", classes: "NDArray[Any]", task: Task
) -> PredictionsWithLabels:
    """Predict with a rule: probabilities from 0.5 mean class 1; a named class has the probability 1."""
    import numpy as np

    answers = np.asarray(rule(features))
    if task == "regression":
        return PredictionsWithLabels(labels=labels, predictions=answers, probabilities=None)
    if task == "binary":
        return PredictionsWithLabels(
            labels=labels, predictions=(answers >= 0.5).astype("int64"), probabilities=answers.astype("float64")
        )
    numbers = _number_classes(answers, classes)
    return PredictionsWithLabels(
        labels=_number_classes(labels, classes), predictions=numbers, probabilities=np.eye(len(classes))[numbers]
    )
