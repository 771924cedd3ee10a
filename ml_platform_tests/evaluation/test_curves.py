"""Curves as a few numbers: they agree with scikit-learn, and no point has fewer rows than the minimum."""

import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ml_platform.evaluation.curves import MIN_ROWS, Curve, Curves, curve

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 2, 400)
SCORES = 0.4 * LABELS + RANDOM.random(400) * 0.6


def binary(labels: Any = LABELS, scores: Any = SCORES) -> Curve:
    return curve("candidate", "binary", labels, (scores > 0.5).astype("int64"), scores)


def area(rates: list[float]) -> float:
    return float(np.trapezoid(rates, dx=1 / (len(rates) - 1)))


def test_roc_curve_has_the_area_of_scikit_learn() -> None:
    noisy = RANDOM.random(400) + 0.4 * LABELS

    assert area(binary(scores=noisy).roc) == pytest.approx(roc_auc_score(LABELS, noisy), abs=0.01)


def test_constant_score_gives_diagonal_and_one_point() -> None:
    points = binary(scores=np.full(400, 0.3))

    assert area(points.roc) == pytest.approx(0.5)
    ((predicted, outcome),) = points.calibration
    assert predicted == 0.3
    assert outcome == pytest.approx(LABELS.mean(), rel=1e-4)


def test_two_distinct_scores_give_two_points() -> None:
    points = binary(scores=(np.arange(400) < 30).astype("float64"))

    assert [predicted for predicted, _ in points.calibration] == [0, 1]
    assert points.calibration[1][1] == pytest.approx(LABELS[:30].mean(), rel=1e-4)


def test_calibration_has_the_means_of_each_tenth() -> None:
    points = binary()

    tenths = np.split(np.argsort(SCORES), 10)
    means = [(SCORES[tenth].mean(), LABELS[tenth].mean()) for tenth in tenths]
    assert np.allclose(points.calibration, means, rtol=1e-3)


@pytest.mark.parametrize("rows", [MIN_ROWS * 10 - 10, 5])
def test_tenth_with_few_rows_has_no_point(rows: int) -> None:
    assert binary(LABELS[:rows], SCORES[:rows]).calibration == []


def test_class_with_few_rows_has_no_roc_curve() -> None:
    labels = (np.arange(400) < MIN_ROWS - 1).astype("int64")

    assert binary(labels).roc == []
    assert binary((np.arange(400) < MIN_ROWS).astype("int64")).roc != []


@pytest.mark.parametrize(
    "scores", [SCORES[:-1], np.append(SCORES[:-1], np.nan), np.array([])], ids=["too few", "NaN", "none"]
)
def test_missing_answers_give_no_points(scores: Any) -> None:
    assert binary(scores=scores) == Curve(name="candidate", roc=[], calibration=[])


def test_multiclass_roc_is_the_one_vs_rest_mean() -> None:
    labels = RANDOM.integers(0, 3, 600)
    raw = np.eye(3)[labels] * 0.7 + RANDOM.random((600, 3))
    probabilities = raw / raw.sum(axis=1, keepdims=True)
    predictions = probabilities.argmax(axis=1)

    points = curve("candidate", "multiclass", labels, predictions, probabilities)

    assert area(points.roc) == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"), abs=0.01)
    right = np.mean([outcome for _, outcome in points.calibration])
    assert right == pytest.approx((predictions == labels).mean(), abs=1e-3)


def test_regression_points_keep_the_unit() -> None:
    labels = np.arange(1_000.0, 1_200.0)

    points = curve("candidate", "regression", labels, labels + 7, None)

    assert points.roc == []
    assert len(points.calibration) == 10
    assert all(predicted - outcome == pytest.approx(7, abs=0.2) for predicted, outcome in points.calibration)


def test_document_holds_points_and_no_rows() -> None:
    document = json.loads(Curves(rows=400, of=[binary()]).document)

    assert (document["rows"], document["of"][0]["name"]) == (400, "candidate")
    assert {len(value) for value in document["of"][0].values() if isinstance(value, list)} == {101, 10}
