"""Predictions of models and baselines for labelled rows, slices of rows, and drawn curves."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from ml_platform.data import dataset_checks
from ml_platform.evaluation import predictions
from ml_platform.inference.predictor import Predictor
from ml_platform.model_spec import Equals, InRange
from ml_platform_tests.support import fakes

SPEC = fakes.visits_spec()
LABELS = np.array([0, 0, 0, 1, 1, 1, 1, 0])
SCORES = np.array([0.1, 0.4, 0.6, 0.35, 0.8, 0.9, 0.6, 0.2])


class FixedScores:
    """A pipeline with fixed scores for each row; the column ``position`` has the row's index."""

    def __init__(self, scores: Any, classes: Any = (0, 1)) -> None:
        self.fixed = np.asarray(scores, dtype=float)
        self.classes_ = np.asarray(classes)

    def predict_proba(self, frame: pd.DataFrame) -> Any:
        scores = self.fixed[frame["position"].to_numpy()]
        return scores if scores.ndim == 2 else np.column_stack([1 - scores, scores])

    def predict(self, frame: pd.DataFrame) -> Any:
        answers = self.predict_proba(frame)
        return self.classes_[answers.argmax(axis=1)]


def positions(count: int) -> pd.DataFrame:
    return pd.DataFrame({"position": np.arange(count)})


def predict(scores: Any = SCORES, labels: Any = LABELS) -> predictions.PredictionsWithLabels:
    return predictions.predict_rows(
        Predictor(FixedScores(scores), ""), positions(len(labels)), np.asarray(labels), "binary"
    )


# Answers


def test_binary_model_gives_probabilities_and_thresholded_predictions() -> None:
    predicted = predict()

    np.testing.assert_array_equal(predicted.labels, LABELS)
    np.testing.assert_array_equal(predicted.probabilities, SCORES)
    np.testing.assert_array_equal(predicted.predictions, (SCORES > 0.5).astype("int64"))


def test_classes_are_numbered_in_the_models_order() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2]])
    predictor = Predictor(FixedScores(probabilities, ["blue", "green", "red"]), "")

    predicted = predictions.predict_rows(predictor, positions(3), np.array(["green", "red", "green"]), "multiclass")

    assert predicted.labels.tolist() == [1, 2, 1]
    assert predicted.predictions.tolist() == [0, 2, 1]
    np.testing.assert_array_equal(predicted.probabilities, probabilities)


@pytest.mark.parametrize("unknown", ["aqua", "olive", "violet"])
def test_unknown_class_has_the_number_minus_one(unknown: str) -> None:
    probabilities = np.full((2, 3), 1 / 3)
    predictor = Predictor(FixedScores(probabilities, ["blue", "green", "red"]), "")

    predicted = predictions.predict_rows(predictor, positions(2), np.array([unknown, "red"]), "multiclass")

    assert predicted.labels.tolist() == [-1, 2]


def test_regression_model_has_no_probabilities() -> None:
    class Doubling:
        def predict(self, frame: pd.DataFrame) -> Any:
            return frame["position"].to_numpy() * 2.0

    predicted = predictions.predict_rows(
        Predictor(Doubling(), ""), positions(3), np.array([0.0, 1.0, 5.0]), "regression"
    )

    assert predicted.predictions.tolist() == [0.0, 2.0, 4.0]
    assert predicted.probabilities is None


def test_empty_rows_give_empty_predictions() -> None:
    predicted = predict(labels=np.empty(0, "int64"))

    assert (len(predicted.labels), len(predicted.predictions), len(predicted.at(np.empty(0, bool)).labels)) == (0, 0, 0)


def test_selected_rows_keep_their_predictions() -> None:
    inside = np.array([True, False, False, True, False, False, False, True])

    part = predict().at(inside)

    assert part.labels.tolist() == [0, 1, 0]
    assert part.probabilities is not None
    assert part.probabilities.tolist() == [0.1, 0.35, 0.2]


@pytest.mark.fault("M1")
def test_predictions_of_another_length_match_no_slice() -> None:
    predicted = predictions.PredictionsWithLabels(labels=LABELS, predictions=LABELS[:4], probabilities=SCORES[:4])

    part = predicted.at(np.arange(8) < 4)

    assert (len(part.labels), len(part.predictions)) == (4, 0)
    assert part.probabilities is not None
    assert len(part.probabilities) == 0


# Slices


def test_slices_select_their_rows() -> None:
    spec = fakes.visits_spec(slices=("plan", Equals(column="pages", equals=7), InRange(column="pages", below=10)))
    rows = fakes.visits(300)

    masks = predictions.slices(rows, spec)

    assert list(masks) == ["", "plan = free", "plan = paid", "pages = 7", "pages < 10"]
    assert masks[""].all()
    np.testing.assert_array_equal(masks["plan = paid"], rows["plan"] == "paid")
    np.testing.assert_array_equal(masks["pages = 7"], rows["pages"] == 7)
    np.testing.assert_array_equal(masks["pages < 10"], rows["pages"] < 10)


def test_range_slice_includes_lower_end_only() -> None:
    spec = fakes.visits_spec(slices=(InRange(column="pages", at_least=3, below=5),))
    rows = fakes.visits(5).assign(pages=[2, 3, 4, 5, 6])

    assert predictions.slices(rows, spec)["3 <= pages < 5"].tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("part", [InRange(column="pages", below=10), InRange(column="pages", at_least=0)])
@pytest.mark.parametrize("dtype", ["float64", "Int64"])
def test_range_slice_excludes_missing_values(part: InRange, dtype: str) -> None:
    rows = fakes.visits(3).assign(pages=pd.Series([1, None, 2], dtype=dtype))

    masks = predictions.slices(rows, fakes.visits_spec(slices=(part,)))

    assert masks[part.name].tolist() == [True, False, True]
    assert masks[part.name].dtype == bool


def test_column_slices_exclude_missing_values() -> None:
    rows = fakes.visits(2).assign(plan=pd.Series(["paid", None], dtype="str"))

    masks = predictions.slices(rows, fakes.visits_spec(slices=("plan",)))

    assert [inside.tolist() for inside in masks.values()] == [[True, True], [False, False], [True, False]]


# The baseline


def test_default_baseline_predicts_the_training_share() -> None:
    rows, others = fakes.visits(400), fakes.visits(100, seed=1, first=1_000)
    labels = dataset_checks.target(rows, SPEC)

    predict_baseline = predictions.baseline(rows[SPEC.features], labels, SPEC)
    predicted = predict_baseline(others[SPEC.features], dataset_checks.target(others, SPEC))

    assert predicted.probabilities is not None
    assert set(predicted.probabilities) == {labels.mean()}
    np.testing.assert_array_equal(predicted.labels, dataset_checks.target(others, SPEC))


def test_stratified_baseline_is_reproducible() -> None:
    spec = fakes.visits_spec(baseline="stratified")
    rows = fakes.visits(400)
    labels = dataset_checks.target(rows, spec)

    first, second = (
        predictions.baseline(rows[spec.features], labels, spec)(rows[spec.features], labels) for _ in range(2)
    )

    np.testing.assert_array_equal(first.predictions, second.predictions)
    assert set(first.predictions) == {0, 1}


def test_rule_baseline_predicts_one_from_one_half() -> None:
    def rule(frame: pd.DataFrame) -> Any:
        assert list(frame.columns) == SPEC.features
        return frame["pages"] / 50

    spec, rows = fakes.visits_spec(baseline=rule), fakes.visits(200)
    labels = dataset_checks.target(rows, spec)

    predicted = predictions.baseline(rows[spec.features], labels, spec)(rows[spec.features], labels)

    np.testing.assert_array_equal(predicted.probabilities, rows["pages"] / 50)
    np.testing.assert_array_equal(predicted.predictions, rows["pages"] >= 25)


def test_rule_baseline_of_classes_has_probability_one() -> None:
    labels = np.array(["b", "a", "c", "a"])
    spec = fakes.kinds_spec(baseline=lambda _: np.array(["a", "a", "c", "b"]))

    predicted = predictions.baseline(positions(4), labels, spec)(positions(4), labels)

    assert predicted.labels.tolist() == [1, 0, 2, 0]
    assert predicted.predictions.tolist() == [0, 0, 2, 1]
    assert predicted.probabilities is not None
    assert predicted.probabilities.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_regression_baseline_predicts_the_mean() -> None:
    labels = np.array([1.0, 2.0, 6.0])

    predicted = predictions.baseline(positions(3), labels, fakes.spending_spec())(positions(3), labels)

    assert predicted.predictions.tolist() == [3.0, 3.0, 3.0]
