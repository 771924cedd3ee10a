import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from ml_platform import predictor
from ml_platform.errors import ModelError
from ml_platform.stages import training
from ml_platform_tests import fakes

SPEC = fakes.visits_spec()
ROWS = fakes.visits(100)


@pytest.fixture(scope="module")
def fitted() -> Any:
    return training.fit(ROWS, SPEC)


def test_the_target_is_one_where_the_label_is_positive() -> None:
    target = training.target(ROWS, SPEC)

    assert target.dtype == np.int64
    assert target.tolist() == [1 if bought == "yes" else 0 for bought in ROWS["bought"]]
    opposite = training.target(ROWS, fakes.visits_spec(positive="no"))
    assert (target + opposite == 1).all()


def test_the_target_of_several_classes_is_their_names() -> None:
    rows = fakes.kinds(ROWS)

    target = training.target(rows, fakes.kinds_spec())

    assert target.dtype.kind == "U"
    assert target.tolist() == rows["kind"].tolist()


def test_the_target_of_numbered_classes_is_their_numbers() -> None:
    spec = fakes.visits_spec(label="pages", task="multiclass", positive=None, gates=SPEC.gates[-1:], comparison=None)

    np.testing.assert_array_equal(training.target(ROWS, spec), ROWS["pages"])


def test_the_target_of_a_number_is_the_number() -> None:
    rows = fakes.spending(ROWS)

    target = training.target(rows, fakes.spending_spec())

    assert target.dtype == np.float64
    np.testing.assert_array_equal(target, rows["spent"])


@pytest.mark.parametrize(
    ("spec", "rows"),
    [(fakes.kinds_spec(), fakes.kinds(ROWS)), (fakes.spending_spec(), fakes.spending(ROWS))],
    ids=["multiclass", "regression"],
)
def test_models_of_other_tasks_are_stored_and_loaded_by_the_same_trust_list(
    tmp_path: Path, spec: Any, rows: Any
) -> None:
    fitted = training.fit(rows, spec)

    loaded = predictor.load(tmp_path / predictor.MODEL_FILE, training.store(fitted, tmp_path))

    np.testing.assert_array_equal(loaded.predictions(rows[spec.features]), fitted.predict(rows[spec.features]))
    np.testing.assert_array_equal(loaded.classes, getattr(fitted, "classes_", []))


def test_a_classifier_where_a_number_is_asked_for_is_refused() -> None:
    spec = fakes.spending_spec(pipeline=fakes.visits_pipeline)

    with pytest.raises(ModelError, match="Pipeline without predict_proba"):
        training.fit(fakes.spending(ROWS), spec)


def test_the_model_is_fitted_on_the_features_alone(fitted: Any) -> None:
    assert fitted.feature_names_in_.tolist() == SPEC.features
    assert fitted.classes_.tolist() == [0, 1]


def test_the_model_learns_what_is_in_the_rows(fitted: Any) -> None:
    unseen = fakes.visits(300, seed=1)

    right = (fitted.predict(unseen[SPEC.features]) == training.target(unseen, SPEC)).mean()

    assert right > 0.8


def test_the_same_rows_give_the_same_answers(fitted: Any) -> None:
    again = training.fit(ROWS, SPEC)

    features = ROWS[SPEC.features]
    np.testing.assert_array_equal(again.predict_proba(features), fitted.predict_proba(features))


@pytest.mark.parametrize("pipeline", [LinearRegression, object])
def test_what_is_no_classifier_with_probabilities_is_refused(pipeline: Any) -> None:
    with pytest.raises(ModelError, match=f"predict_proba. Got {pipeline.__name__} instead"):
        training.fit(ROWS, fakes.visits_spec(pipeline=pipeline))


def test_a_stored_model_has_the_digest_that_is_returned_and_the_same_answers(fitted: Any, tmp_path: Path) -> None:
    digest = training.store(fitted, tmp_path / "new" / "folder")

    path = tmp_path / "new" / "folder" / predictor.MODEL_FILE
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    features = ROWS[SPEC.features]
    answers = predictor.load(path, digest).scores(features)
    np.testing.assert_array_equal(answers, fitted.predict_proba(features)[:, 1])


def test_only_the_model_is_left_behind(fitted: Any, tmp_path: Path) -> None:
    training.store(fitted, tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == [predictor.MODEL_FILE]


def test_a_model_that_cannot_be_stored_leaves_the_one_before(fitted: Any, tmp_path: Path) -> None:
    digest = training.store(fitted, tmp_path)

    with pytest.raises(TypeError):
        training.store(generator_in_a_pipeline(), tmp_path)
    assert predictor.file_digest(tmp_path / predictor.MODEL_FILE) == digest


def generator_in_a_pipeline() -> Any:
    """Return what skops starts to write and then cannot."""
    return [np.arange(1_000), (number for number in range(3))]
