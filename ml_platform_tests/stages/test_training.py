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
