"""Curves as a few numbers: those of scikit-learn, and none that stands for a handful of rows."""

import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ml_platform.stages._curves import LEAST_ROWS, Curve, Curves, curve

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 2, 400)
SCORES = 0.4 * LABELS + RANDOM.random(400) * 0.6


def binary(labels: Any = LABELS, scores: Any = SCORES) -> Curve:
    return curve("candidate", "binary", labels, (scores > 0.5).astype("int64"), scores)


def area(rates: list[float]) -> float:
    return float(np.trapezoid(rates, dx=1 / (len(rates) - 1)))


def test_the_area_under_the_roc_curve_is_scikit_learns() -> None:
    noisy = RANDOM.random(400) + 0.4 * LABELS

    assert area(binary(scores=noisy).roc) == pytest.approx(roc_auc_score(LABELS, noisy), abs=0.01)


def test_one_answer_for_everybody_is_the_diagonal_and_one_point() -> None:
    found = binary(scores=np.full(400, 0.3))

    assert area(found.roc) == pytest.approx(0.5)
    ((said, came),) = found.calibration
    assert said == 0.3
    assert came == pytest.approx(LABELS.mean(), rel=1e-4)


def test_a_rule_that_knows_two_answers_has_two_points() -> None:
    found = binary(scores=(np.arange(400) < 30).astype("float64"))

    assert [said for said, _ in found.calibration] == [0, 1]
    assert found.calibration[1][1] == pytest.approx(LABELS[:30].mean(), rel=1e-4)


def test_calibration_is_what_was_said_and_what_came_in_each_tenth() -> None:
    found = binary()

    tenths = np.split(np.argsort(SCORES), 10)
    means = [(SCORES[tenth].mean(), LABELS[tenth].mean()) for tenth in tenths]
    assert np.allclose(found.calibration, means, rtol=1e-3)


@pytest.mark.parametrize("rows", [LEAST_ROWS * 10 - 10, 5])
def test_no_point_stands_for_fewer_rows_than_may_be_shown(rows: int) -> None:
    assert binary(LABELS[:rows], SCORES[:rows]).calibration == []


def test_a_class_with_too_few_rows_has_no_roc_curve() -> None:
    labels = (np.arange(400) < LEAST_ROWS - 1).astype("int64")

    assert binary(labels).roc == []
    assert binary((np.arange(400) < LEAST_ROWS).astype("int64")).roc != []


@pytest.mark.parametrize(
    "scores", [SCORES[:-1], np.append(SCORES[:-1], np.nan), np.array([])], ids=["too few", "NaN", "none"]
)
def test_a_model_that_did_not_answer_every_row_has_no_points(scores: Any) -> None:
    assert binary(scores=scores) == Curve(name="candidate", roc=[], calibration=[])


def test_of_several_classes_the_mean_of_each_against_the_rest_is_kept() -> None:
    labels = RANDOM.integers(0, 3, 600)
    raw = np.eye(3)[labels] * 0.7 + RANDOM.random((600, 3))
    probabilities = raw / raw.sum(axis=1, keepdims=True)
    predictions = probabilities.argmax(axis=1)

    found = curve("candidate", "multiclass", labels, predictions, probabilities)

    assert area(found.roc) == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"), abs=0.01)
    right = np.mean([came for _, came in found.calibration])
    assert right == pytest.approx((predictions == labels).mean(), abs=1e-3)


def test_of_numbers_prediction_and_label_are_kept_in_their_unit() -> None:
    labels = np.arange(1_000.0, 1_200.0)

    found = curve("candidate", "regression", labels, labels + 7, None)

    assert found.roc == []
    assert len(found.calibration) == 10
    assert all(said - came == pytest.approx(7, abs=0.2) for said, came in found.calibration)


def test_the_document_holds_the_curves_and_no_array_of_rows() -> None:
    kept = json.loads(Curves(rows=400, of=[binary()]).document)

    assert (kept["rows"], kept["of"][0]["name"]) == (400, "candidate")
    assert {len(value) for value in kept["of"][0].values() if isinstance(value, list)} == {101, 10}
