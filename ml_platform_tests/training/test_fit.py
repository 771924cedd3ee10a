import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import loguniform
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import Birch
from sklearn.decomposition import PCA
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 - makes IterativeImputer importable
from sklearn.feature_selection import SelectKBest, SelectPercentile, mutual_info_classif
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import Matern, WhiteKernel
from sklearn.impute import IterativeImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, StratifiedKFold, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, SplineTransformer
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from ml_platform.data import dataset_checks
from ml_platform.errors import ModelError, UntrustedModelError
from ml_platform.inference import predictor
from ml_platform.storage import model_files
from ml_platform.training import fit
from ml_platform_tests.support import fakes

SPEC = fakes.visits_spec()
ROWS = fakes.visits(100)


@pytest.fixture(scope="module")
def fitted() -> Any:
    return fit.fit(ROWS, SPEC)


def test_binary_target_is_one_for_positive_label() -> None:
    target = dataset_checks.target(ROWS, SPEC)

    assert target.dtype == np.int64
    assert target.tolist() == [1 if bought == "yes" else 0 for bought in ROWS["bought"]]
    opposite = dataset_checks.target(ROWS, fakes.visits_spec(positive="no"))
    assert (target + opposite == 1).all()


def test_multiclass_target_is_class_names() -> None:
    rows = fakes.kinds(ROWS)

    target = dataset_checks.target(rows, fakes.kinds_spec())

    assert target.dtype.kind == "U"
    assert target.tolist() == rows["kind"].tolist()


def test_multiclass_target_of_numbers_is_numbers() -> None:
    spec = fakes.visits_spec(label="pages", task="multiclass", positive=None, gates=SPEC.gates[-1:], comparison=None)

    np.testing.assert_array_equal(dataset_checks.target(ROWS, spec), ROWS["pages"])


def test_regression_target_is_label() -> None:
    rows = fakes.spending(ROWS)

    target = dataset_checks.target(rows, fakes.spending_spec())

    assert target.dtype == np.float64
    np.testing.assert_array_equal(target, rows["spent"])


@pytest.mark.parametrize(
    ("spec", "rows"),
    [(fakes.kinds_spec(), fakes.kinds(ROWS)), (fakes.spending_spec(), fakes.spending(ROWS))],
    ids=["multiclass", "regression"],
)
def test_models_of_other_tasks_store_and_load(tmp_path: Path, spec: Any, rows: Any) -> None:
    fitted = fit.fit(rows, spec)

    loaded = predictor.load(tmp_path / model_files.MODEL_FILE, fit.store(fitted, tmp_path))

    np.testing.assert_array_equal(loaded.predictions(rows[spec.features]), fitted.predict(rows[spec.features]))
    np.testing.assert_array_equal(loaded.classes, getattr(fitted, "classes_", []))


def test_classifier_for_regression_is_refused() -> None:
    spec = fakes.spending_spec(pipeline=fakes.visits_pipeline)

    with pytest.raises(ModelError, match="Pipeline without predict_proba"):
        fit.fit(fakes.spending(ROWS), spec)


def test_classifier_without_probabilities_is_refused() -> None:
    with pytest.raises(ModelError, match="Pipeline with predict_proba"):
        fit.fit(ROWS, fakes.visits_spec(pipeline=lambda: make_pipeline(fakes.visits_pipeline()[0], LinearSVC())))


def test_model_is_fitted_on_features_only(fitted: Any) -> None:
    assert fitted.feature_names_in_.tolist() == SPEC.features
    assert fitted.classes_.tolist() == [0, 1]


def test_model_learns_from_rows(fitted: Any) -> None:
    unseen = fakes.visits(300, seed=1)

    accuracy = (fitted.predict(unseen[SPEC.features]) == dataset_checks.target(unseen, SPEC)).mean()

    assert accuracy > 0.8


def test_same_rows_give_same_predictions(fitted: Any) -> None:
    again = fit.fit(ROWS, SPEC)

    features = ROWS[SPEC.features]
    np.testing.assert_array_equal(again.predict_proba(features), fitted.predict_proba(features))


@pytest.mark.parametrize("pipeline", [LinearRegression, object])
def test_pipeline_without_probabilities_is_refused(pipeline: Any) -> None:
    with pytest.raises(ModelError, match=f"predict_proba. Got {pipeline.__name__} instead"):
        fit.fit(ROWS, fakes.visits_spec(pipeline=pipeline))


def test_stored_model_has_digest_and_same_predictions(fitted: Any, tmp_path: Path) -> None:
    digest = fit.store(fitted, tmp_path / "new" / "folder")

    path = tmp_path / "new" / "folder" / model_files.MODEL_FILE
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    features = ROWS[SPEC.features]
    scores = predictor.load(path, digest).scores(features)
    np.testing.assert_array_equal(scores, fitted.predict_proba(features)[:, 1])


def test_store_leaves_only_the_model_file(fitted: Any, tmp_path: Path) -> None:
    fit.store(fitted, tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == [model_files.MODEL_FILE]


def test_failed_store_keeps_previous_model(fitted: Any, tmp_path: Path) -> None:
    digest = fit.store(fitted, tmp_path)

    with pytest.raises(TypeError):
        fit.store(generator_in_a_pipeline(), tmp_path)
    assert model_files.file_digest(tmp_path / model_files.MODEL_FILE) == digest


def generator_in_a_pipeline() -> Any:
    """Return an object that skops begins to write and then refuses."""
    return [np.arange(1_000), (number for number in range(3))]


def classified_by(classifier: Any, *steps: Any) -> Any:
    """Return a spec whose pipeline scales the numbers, then has `steps`, then a classifier."""
    return fakes.visits_spec(pipeline=lambda: clone(make_pipeline(fakes.visits_pipeline()[0], *steps, classifier)))


TREE = DecisionTreeClassifier(max_depth=3, random_state=0)
LOGISTIC = LogisticRegression()


@pytest.mark.parametrize(
    "spec",
    [
        classified_by(LOGISTIC, SelectKBest(k=2)),
        classified_by(LOGISTIC, SelectPercentile(mutual_info_classif)),
        classified_by(LOGISTIC, SplineTransformer()),
        classified_by(LOGISTIC, IterativeImputer()),
        classified_by(LOGISTIC, FeatureUnion([("two", PCA(2)), ("one", FunctionTransformer(np.abs))])),
        classified_by(KNeighborsClassifier(3)),
        classified_by(KNeighborsClassifier(3, algorithm="ball_tree", metric="manhattan")),
        classified_by(MLPClassifier((2,), solver="sgd", tol=0.1, random_state=0)),
        classified_by(GaussianProcessClassifier(Matern() + WhiteKernel(0.1, "fixed"))),
        classified_by(CalibratedClassifierCV(TREE, cv=StratifiedKFold(3))),
        classified_by(CalibratedClassifierCV(TREE, method="isotonic")),
        classified_by(StackingClassifier([("tree", TREE), ("logistic", LOGISTIC)])),
        classified_by(VotingClassifier([("tree", TREE), ("logistic", LOGISTIC)], voting="soft")),
        classified_by(OneVsRestClassifier(LOGISTIC)),
        classified_by(GridSearchCV(LOGISTIC, {"C": [0.1, 1]}, scoring="roc_auc")),
        classified_by(TunedThresholdClassifierCV(LOGISTIC)),
    ],
    ids=lambda spec: "-".join(type(step).__name__ for _, step in spec.pipeline().steps[1:]),
)
def test_fitted_scikit_learn_pipeline_is_loaded(tmp_path: Path, spec: Any) -> None:
    fitted = fit.fit(ROWS, spec)

    loaded = predictor.load(tmp_path / model_files.MODEL_FILE, fit.store(fitted, tmp_path))

    features = ROWS[spec.features]
    np.testing.assert_array_equal(loaded.pipeline.predict_proba(features), fitted.predict_proba(features))


class OwnStep(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    def fit(self, *_data: Any) -> "OwnStep":
        raise AssertionError("The pipeline was fitted.")


@pytest.mark.parametrize(
    ("classifier", "part"),
    [
        (make_pipeline(OwnStep(), LOGISTIC), r"training\.test_fit\.OwnStep\. Use scikit-learn's own"),
        (make_pipeline(FunctionTransformer(classified_by), LOGISTIC), r"training\.test_fit\.classified_by\. Use"),
        (RandomizedSearchCV(LOGISTIC, {"C": loguniform(0.1, 1)}), r"reciprocal_gen, .*\.rv_continuous_frozen\. Use"),
        (make_pipeline(Birch(), LOGISTIC), "Birch are not supported yet"),
    ],
)
def test_untrusted_part_is_refused_before_fit(classifier: Any, part: str) -> None:
    spec = fakes.visits_spec(pipeline=lambda: classifier)

    with pytest.raises(UntrustedModelError, match=part):
        fit.fit(ROWS, spec)


def test_untrusted_part_of_fitted_is_not_stored(tmp_path: Path) -> None:
    fitted = fit.fit(ROWS, classified_by(KNeighborsClassifier(3, metric="canberra")))

    with pytest.raises(UntrustedModelError, match="CanberraDistance64"):
        fit.store(fitted, tmp_path)

    assert list(tmp_path.iterdir()) == []
