"""What a model says of rows: in numbers, in slices, beside a baseline."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from ml_platform.model_spec import Range, Value
from ml_platform.predictor import Predictor
from ml_platform.stages import evaluation, training
from ml_platform_tests import fakes

SPEC = fakes.visits_spec()
LABELS = np.array([0, 0, 0, 1, 1, 1, 1, 0])
SCORES = np.array([0.1, 0.4, 0.6, 0.35, 0.8, 0.9, 0.6, 0.2])


class Recited:
    """A pipeline that says what it was told to say, row by row; it reads the row's position from ``position``."""

    def __init__(self, scores: Any, classes: Any = (0, 1)) -> None:
        self.told = np.asarray(scores, dtype=float)
        self.classes_ = np.asarray(classes)

    def predict_proba(self, frame: pd.DataFrame) -> Any:
        scores = self.told[frame["position"].to_numpy()]
        return scores if scores.ndim == 2 else np.column_stack([1 - scores, scores])

    def predict(self, frame: pd.DataFrame) -> Any:
        answers = self.predict_proba(frame)
        return self.classes_[answers.argmax(axis=1)]


def positions(count: int) -> pd.DataFrame:
    return pd.DataFrame({"position": np.arange(count)})


def ask(scores: Any = SCORES, labels: Any = LABELS) -> evaluation.Answered:
    return evaluation.ask(Predictor(Recited(scores), ""), positions(len(labels)), np.asarray(labels), "binary")


# Answers


def test_a_binary_model_answers_with_its_probabilities_and_at_its_own_threshold() -> None:
    answered = ask()

    np.testing.assert_array_equal(answered.labels, LABELS)
    np.testing.assert_array_equal(answered.probabilities, SCORES)
    np.testing.assert_array_equal(answered.predictions, (SCORES > 0.5).astype("int64"))


def test_classes_are_numbered_as_the_model_orders_its_probabilities() -> None:
    told = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2]])
    predictor = Predictor(Recited(told, ["blue", "green", "red"]), "")

    answered = evaluation.ask(predictor, positions(3), np.array(["green", "red", "green"]), "multiclass")

    assert answered.labels.tolist() == [1, 2, 1]
    assert answered.predictions.tolist() == [0, 2, 1]
    np.testing.assert_array_equal(answered.probabilities, told)


@pytest.mark.parametrize("stranger", ["aqua", "olive", "violet"])
def test_a_class_that_the_model_does_not_know_is_no_class_of_it(stranger: str) -> None:
    told = np.full((2, 3), 1 / 3)
    predictor = Predictor(Recited(told, ["blue", "green", "red"]), "")

    answered = evaluation.ask(predictor, positions(2), np.array([stranger, "red"]), "multiclass")

    assert answered.labels.tolist() == [-1, 2]


def test_a_model_of_numbers_has_no_probabilities() -> None:
    class Doubling:
        def predict(self, frame: pd.DataFrame) -> Any:
            return frame["position"].to_numpy() * 2.0

    answered = evaluation.ask(Predictor(Doubling(), ""), positions(3), np.array([0.0, 1.0, 5.0]), "regression")

    assert answered.predictions.tolist() == [0.0, 2.0, 4.0]
    assert answered.probabilities is None


def test_no_rows_have_no_answers() -> None:
    answered = ask(labels=np.empty(0, "int64"))

    assert (len(answered.labels), len(answered.predictions), len(answered.at(np.empty(0, bool)).labels)) == (0, 0, 0)


def test_answers_for_some_rows_are_those_of_these_rows() -> None:
    inside = np.array([True, False, False, True, False, False, False, True])

    part = ask().at(inside)

    assert part.labels.tolist() == [0, 1, 0]
    assert part.probabilities is not None
    assert part.probabilities.tolist() == [0.1, 0.35, 0.2]


@pytest.mark.fault("M1")
def test_answers_for_another_number_of_rows_belong_to_no_slice() -> None:
    answered = evaluation.Answered(labels=LABELS, predictions=LABELS[:4], probabilities=SCORES[:4])

    part = answered.at(np.arange(8) < 4)

    assert (len(part.labels), len(part.predictions)) == (4, 0)
    assert part.probabilities is not None
    assert len(part.probabilities) == 0


# Slices


def test_slices_hold_the_rows_that_they_name_and_the_unnamed_one_all() -> None:
    spec = fakes.visits_spec(slices=("plan", Value(column="pages", equals=7), Range(column="pages", below=10)))
    rows = fakes.visits(300)

    found = evaluation.slices(rows, spec)

    assert list(found) == ["", "plan = free", "plan = paid", "pages = 7", "pages < 10"]
    assert found[""].all()
    np.testing.assert_array_equal(found["plan = paid"], rows["plan"] == "paid")
    np.testing.assert_array_equal(found["pages = 7"], rows["pages"] == 7)
    np.testing.assert_array_equal(found["pages < 10"], rows["pages"] < 10)


def test_a_range_holds_its_lower_end_and_not_its_upper() -> None:
    spec = fakes.visits_spec(slices=(Range(column="pages", at_least=3, below=5),))
    rows = fakes.visits(5).assign(pages=[2, 3, 4, 5, 6])

    assert evaluation.slices(rows, spec)["3 <= pages < 5"].tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("part", [Range(column="pages", below=10), Range(column="pages", at_least=0)])
@pytest.mark.parametrize("dtype", ["float64", "Int64"])
def test_a_row_without_a_value_is_in_no_range(part: Range, dtype: str) -> None:
    rows = fakes.visits(3).assign(pages=pd.Series([1, None, 2], dtype=dtype))

    found = evaluation.slices(rows, fakes.visits_spec(slices=(part,)))

    assert found[part.name].tolist() == [True, False, True]
    assert found[part.name].dtype == bool


def test_a_row_without_a_value_is_in_no_slice_of_its_column() -> None:
    rows = fakes.visits(2).assign(plan=pd.Series(["paid", None], dtype="str"))

    found = evaluation.slices(rows, fakes.visits_spec(slices=("plan",)))

    assert [inside.tolist() for inside in found.values()] == [[True, True], [False, False], [True, False]]


# The baseline


def test_the_default_baseline_is_the_share_of_each_class_in_the_training_rows() -> None:
    rows, asked = fakes.visits(400), fakes.visits(100, seed=1, first=1_000)
    labels = training.target(rows, SPEC)

    answering = evaluation.baseline(rows[SPEC.features], labels, SPEC)
    answered = answering(asked[SPEC.features], training.target(asked, SPEC))

    assert answered.probabilities is not None
    assert set(answered.probabilities) == {labels.mean()}
    np.testing.assert_array_equal(answered.labels, training.target(asked, SPEC))


def test_a_stratified_baseline_gives_the_same_answers_again() -> None:
    spec = fakes.visits_spec(baseline="stratified")
    rows = fakes.visits(400)
    labels = training.target(rows, spec)

    first, second = (
        evaluation.baseline(rows[spec.features], labels, spec)(rows[spec.features], labels) for _ in range(2)
    )

    np.testing.assert_array_equal(first.predictions, second.predictions)
    assert set(first.predictions) == {0, 1}


def test_a_rule_is_asked_about_features_and_says_yes_from_one_half_on() -> None:
    def rule(frame: pd.DataFrame) -> Any:
        assert list(frame.columns) == SPEC.features
        return frame["pages"] / 50

    spec, rows = fakes.visits_spec(baseline=rule), fakes.visits(200)
    labels = training.target(rows, spec)

    answered = evaluation.baseline(rows[spec.features], labels, spec)(rows[spec.features], labels)

    np.testing.assert_array_equal(answered.probabilities, rows["pages"] / 50)
    np.testing.assert_array_equal(answered.predictions, rows["pages"] >= 25)


def test_a_rule_that_names_classes_is_sure_of_them() -> None:
    labels = np.array(["b", "a", "c", "a"])
    spec = fakes.kinds_spec(baseline=lambda _: np.array(["a", "a", "c", "b"]))

    answered = evaluation.baseline(positions(4), labels, spec)(positions(4), labels)

    assert answered.labels.tolist() == [1, 0, 2, 0]
    assert answered.predictions.tolist() == [0, 0, 2, 1]
    assert answered.probabilities is not None
    assert answered.probabilities.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_the_baseline_of_numbers_is_their_mean() -> None:
    labels = np.array([1.0, 2.0, 6.0])

    answered = evaluation.baseline(positions(3), labels, fakes.spending_spec())(positions(3), labels)

    assert answered.predictions.tolist() == [3.0, 3.0, 3.0]


# The curves


def test_the_curves_are_a_png() -> None:
    curves = evaluation.draw_curves(ask(), {"auc_roc": 0.8, "brier_score": 0.1})

    assert curves is not None
    assert curves.startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("metrics", [{}, {"brier_score": 0.1}, {"auc_roc": 0.9}])
def test_without_an_area_there_are_no_curves(metrics: dict[str, float]) -> None:
    assert evaluation.draw_curves(ask(), metrics) is None
