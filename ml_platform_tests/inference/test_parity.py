"""A compiled pipeline predicts the same bits as the pipeline, or is not used."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_selection import SelectKBest
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    SplineTransformer,
    StandardScaler,
    TargetEncoder,
)
from sklearn.tree import DecisionTreeClassifier

from ml_platform.data import dataset_checks
from ml_platform.errors import UnsupportedPipelineError
from ml_platform.inference import parity, pipeline_compiler
from ml_platform.inference.contract_builder import build_request_contract
from ml_platform.inference.parity import Parity
from ml_platform.inference.predictor import Predictor
from ml_platform.inference.request_contract import RequestContract
from ml_platform.model_spec import ModelSpec
from ml_platform_tests.support import fakes


class Holes(fakes.Visits):
    """Visits with missing values."""

    pages: float = pa.Field(ge=0, le=1_000, nullable=True)  # type: ignore[assignment]
    seconds: float = pa.Field(ge=0, nullable=True)
    plan: str = pa.Field(nullable=True)
    member: bool


class KindsInNumbers(fakes.KindsOfVisits):
    """Kinds of visits whose plans are numbers."""

    plan: int  # type: ignore[assignment]


class NumbersOnly(fakes.Visits):
    """Visits whose plans are numbers."""

    plan: int  # type: ignore[assignment]


def select_numbers(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[NUMBERS]


def scaled_only() -> Pipeline:
    return Pipeline([("scale", StandardScaler()), ("model", LogisticRegression())])


SPEC = fakes.visits_spec(contract=Holes)
NUMBERS, PLAN, MEMBER = ["pages", "seconds"], ["plan"], ["member"]
RANDOM = np.random.default_rng(0)
ROWS = fakes.visits(300).assign(member=RANDOM.random(300) < 0.5, pages=lambda rows: rows["pages"].astype("float64"))
FULL = ROWS[[*SPEC.columns]]
EMPTY = FULL.assign(
    seconds=FULL["seconds"].where(RANDOM.random(300) < 0.8),
    plan=FULL["plan"].where(RANDOM.random(300) < 0.8),
    pages=FULL["pages"].where(RANDOM.random(300) < 0.8),
)


def prepare(spec: ModelSpec, pipeline: Any, rows: pd.DataFrame) -> tuple[Predictor, RequestContract]:
    fitted = pipeline.fit(rows[spec.features], dataset_checks.target(rows, spec))
    predictor = Predictor(fitted, "0" * 64)
    return predictor, build_request_contract(spec, fitted, rows, predictor.scores(rows[spec.features]))


def make_pipeline(*columns: Any, estimator: Any = None, **options: Any) -> Pipeline:
    return Pipeline(
        [
            ("columns", ColumnTransformer(list(columns), **options)),
            ("model", LogisticRegression() if estimator is None else estimator),
        ]
    )


def accept_unknown() -> dict[str, Any]:
    """Return the options with which an encoder accepts unknown values."""
    return {"handle_unknown": "use_encoded_value", "unknown_value": -1}


def imputed(strategy: str, last: Any, **options: Any) -> Pipeline:
    return Pipeline([("fill", SimpleImputer(strategy=strategy, **options)), ("then", last)])


def nested() -> ColumnTransformer:
    return ColumnTransformer([("scale", StandardScaler(), NUMBERS)])


def named(transformer: Any) -> Any:
    return transformer.set_output(transform="pandas")


PREPROCESSING: dict[str, tuple[Callable[[Any], Pipeline], pd.DataFrame]] = {
    "scaled and one-hot": (
        lambda estimator: make_pipeline(
            ("n", StandardScaler(), NUMBERS), ("c", OneHotEncoder(handle_unknown="ignore"), PLAN), estimator=estimator
        ),
        FULL,
    ),
    "between 0 and 1 and ordinal": (
        lambda estimator: make_pipeline(
            ("n", MinMaxScaler(clip=True), NUMBERS), ("c", OrdinalEncoder(), [*PLAN, *MEMBER]), estimator=estimator
        ),
        FULL,
    ),
    "imputed": (
        lambda estimator: make_pipeline(
            ("n", imputed("median", StandardScaler(with_mean=False)), NUMBERS),
            ("c", imputed("most_frequent", OneHotEncoder(drop="first", sparse_output=False)), PLAN),
            ("m", "passthrough", MEMBER),
            estimator=estimator,
        ),
        EMPTY,
    ),
    "constants and missing ones as a category": (
        lambda estimator: make_pipeline(
            ("n", Pipeline([("fill", SimpleImputer(strategy="constant", fill_value=-7.0))]), NUMBERS),
            ("c", OrdinalEncoder(encoded_missing_value=-2, **accept_unknown()), PLAN),
            ("h", OneHotEncoder(handle_unknown="infrequent_if_exist", drop="if_binary"), [*MEMBER, *PLAN]),
            estimator=estimator,
        ),
        EMPTY,
    ),
    "the rest passed and dropped": (
        lambda estimator: make_pipeline(
            ("c", OrdinalEncoder(**accept_unknown()), PLAN),
            ("d", "drop", ["seconds"]),
            remainder="passthrough",
            estimator=estimator,
        ),
        FULL,
    ),
}
ACCEPT_MISSING = {
    RobustScaler,
    MaxAbsScaler,
    PowerTransformer,
    QuantileTransformer,
    SimpleImputer,
    KNNImputer,
    Pipeline,
}
ESTIMATORS = [
    LogisticRegression(),
    HistGradientBoostingClassifier(max_iter=10),
    RandomForestClassifier(8, random_state=0),
    ExtraTreesClassifier(8, random_state=0),
    DecisionTreeClassifier(random_state=0),
    KNeighborsClassifier(),
    TunedThresholdClassifierCV(DecisionTreeClassifier(max_depth=3, random_state=0), cv=2),
    FixedThresholdClassifier(HistGradientBoostingClassifier(max_iter=10), threshold=0.3),
    FixedThresholdClassifier(LogisticRegression(), threshold=0.7, pos_label=0),
    FixedThresholdClassifier(LogisticRegression(), threshold=0.2, response_method="decision_function"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", PREPROCESSING)
@pytest.mark.parametrize("estimator", [LogisticRegression(), HistGradientBoostingClassifier(max_iter=10)], ids=str)
def test_supported_preprocessing_predicts_same_bits(name: str, estimator: Any) -> None:
    make, rows = PREPROCESSING[name]
    predictor, contract = prepare(SPEC, make(estimator), rows)

    result = parity.compare(predictor, contract, rows[SPEC.features].head(40))

    assert (result.passed, result.why, result.rows) == (True, None, 40)
    assert result.cases > 20


@pytest.mark.parametrize(
    "step",
    [
        RobustScaler(),
        MaxAbsScaler(),
        Normalizer(),
        PowerTransformer(),
        QuantileTransformer(n_quantiles=20),
        SplineTransformer(),
        PolynomialFeatures(3),
        KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf"),
        FunctionTransformer(np.log1p),
        SimpleImputer(add_indicator=True),
        KNNImputer(),
        PCA(1),
        FeatureUnion([("two", PCA(2)), ("scaled", RobustScaler())]),
        Pipeline([("fill", KNNImputer(add_indicator=True)), ("select", SelectKBest(k=2)), ("scale", StandardScaler())]),
    ],
    ids=lambda step: type(step).__name__,
)
@pytest.mark.parametrize("rows", [FULL, EMPTY], ids=["full", "empty"])
def test_unknown_step_on_numbers_predicts_same_bits(step: Any, rows: pd.DataFrame) -> None:
    columns = ("n", step, NUMBERS), ("c", OneHotEncoder(handle_unknown="ignore"), PLAN)
    pipeline = make_pipeline(*columns, estimator=HistGradientBoostingClassifier(max_iter=10))
    rows = rows if type(step) in ACCEPT_MISSING else FULL
    predictor, contract = prepare(SPEC, pipeline, rows)

    result = parity.compare(predictor, contract, rows[SPEC.features].head(40))

    assert (result.passed, result.why) == (True, None)
    answers = predictor.for_records(contract, result.order).predict_records(contract.convert_frame(rows))
    assert answers.scores == predictor.scores(rows[SPEC.features]).tolist()


@pytest.mark.parametrize("step", [RobustScaler(), PCA(2), SelectKBest(k=2)], ids=str)
def test_unknown_step_after_encoders_predicts_same_bits(step: Any) -> None:
    numbers = ("n", StandardScaler(), NUMBERS), ("c", OrdinalEncoder(), [*PLAN, *MEMBER])
    pipeline = make_pipeline(*numbers, estimator=LogisticRegression())
    pipeline.steps.insert(1, ("more", step))
    predictor, contract = prepare(SPEC, pipeline, FULL)

    assert parity.compare(predictor, contract, FULL[SPEC.features].head(40)).why is None


class Scaled(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A transformer whose fitted part, which no parameter holds, was fitted on a DataFrame."""

    def fit(self, frame: pd.DataFrame, _target: Any = None) -> "Scaled":
        self.fitted_ = RobustScaler().fit(frame)
        return self

    def transform(self, rows: Any) -> Any:
        return self.fitted_.transform(rows)


def test_step_that_warns_of_arrays_is_not_compiled() -> None:
    predictor, contract = prepare(SPEC, make_pipeline(("n", Scaled(), NUMBERS)), FULL)

    result = parity.compare(predictor, contract, FULL[SPEC.features].head(40))

    assert result.why == "The compiled pipeline refuses records, in a call of 1."


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_estimators_predict_as_their_pipeline(estimator: Any) -> None:
    make, rows = PREPROCESSING["scaled and one-hot"]
    predictor, contract = prepare(SPEC, make(estimator), rows)

    assert parity.compare(predictor, contract, rows[SPEC.features].head(40)).why is None


@pytest.mark.parametrize(
    ("spec", "rows"),
    [
        (fakes.kinds_spec(), fakes.kinds(fakes.visits(300))),
        (fakes.spending_spec(), fakes.spending(fakes.visits(300))),
        (
            fakes.kinds_spec(pipeline=scaled_only, contract=KindsInNumbers),
            fakes.kinds(fakes.visits(300)).assign(plan=1),
        ),
    ],
    ids=["multiclass", "regression", "no columns named"],
)
def test_every_task_predicts_same_bits(spec: ModelSpec, rows: pd.DataFrame) -> None:
    predictor, contract = prepare(spec, spec.pipeline(), rows)

    assert parity.compare(predictor, contract, rows[spec.features].head(40)).why is None


@pytest.mark.parametrize(
    ("pipeline", "reason"),
    [
        (make_pipeline(("t", TargetEncoder(), PLAN)), r"Columns without 64-bit numbers reach the estimator: plan"),
        (make_pipeline(("n", nested(), NUMBERS)), "does not support ColumnTransformer on an array"),
        (make_pipeline(("n", StandardScaler(), NUMBERS), transformer_weights={"n": 2}), "weights"),
        (make_pipeline(("n", StandardScaler(), NUMBERS)).set_output(transform="pandas"), "DataFrame"),
        (make_pipeline(("c", OneHotEncoder(min_frequency=0.6, handle_unknown="ignore"), PLAN)), "rare categories"),
        (make_pipeline(("c", OneHotEncoder(handle_unknown="warn"), PLAN)), "warns"),
        (make_pipeline(("c", OrdinalEncoder(dtype="float32"), PLAN)), "float32"),
        (make_pipeline(("c", imputed("most_frequent", OneHotEncoder(), add_indicator=True), PLAN)), "indicators"),
        (make_pipeline(("n", named(RobustScaler()), NUMBERS)), "RobustScaler returns DataFrames"),
        (make_pipeline(("n", SimpleImputer(missing_values=0), NUMBERS)), "NaN"),
        (LogisticRegression(), "not a scikit-learn Pipeline"),
        (Pipeline([("n", FunctionTransformer(select_numbers)), ("m", LogisticRegression())]), "on a DataFrame"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_unsupported_step_is_named_and_not_compiled(pipeline: Any, reason: str) -> None:
    numbers = fakes.visits_spec(contract=NumbersOnly)
    spec, rows = (SPEC, FULL) if isinstance(pipeline, Pipeline) else (numbers, fakes.visits(300).assign(plan=1))
    predictor, contract = prepare(spec, pipeline, rows)

    result = parity.compare(predictor, contract, rows[spec.features].head(10))

    assert not result.passed
    assert reason in str(result.why)
    with pytest.raises(UnsupportedPipelineError):
        predictor.for_records(contract, "C")
    way = parity.way_to_predict(predictor, contract, result)
    assert not way.fast
    answers = way.predict_records(contract.convert_frame(rows[spec.features]))
    assert answers.scores == predictor.scores(rows[spec.features]).tolist()


def boosted() -> tuple[Predictor, RequestContract]:
    make, rows = PREPROCESSING["the rest passed and dropped"]
    return prepare(SPEC, make(HistGradientBoostingClassifier(max_iter=10)), rows)


def test_record_predictors_predict_as_frames() -> None:
    predictor, contract = boosted()
    features = FULL[SPEC.features]
    records = contract.convert_frame(features)

    for way in (predictor.for_records(contract), predictor.for_records(contract, "C")):
        answers = way.predict_records(records)
        assert answers.scores == predictor.scores(features).tolist()
        assert answers.predictions == predictor.predictions(features).tolist()
        assert type(answers.predictions[0]) is int
    assert [predictor.for_records(contract, way).fast for way in (None, "C")] == [False, True]


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("_category_codes", lambda _, encoder: [dict.fromkeys(codes.tolist(), 0) for codes in encoder.categories_]),
        ("_require_known", lambda _codes, _value: 0),
        ("score_and_predict", lambda model, block, _: (model.predict_proba(block)[:, 1], model.predict(block) * 0)),
    ],
)
def test_compiler_error_is_detected(monkeypatch: pytest.MonkeyPatch, name: str, broken: Any) -> None:
    make, rows = PREPROCESSING["between 0 and 1 and ordinal"]
    predictor, contract = prepare(SPEC, make(HistGradientBoostingClassifier(max_iter=10)), rows)
    assert parity.compare(predictor, contract, rows[SPEC.features].head(40)).passed
    monkeypatch.setattr(pipeline_compiler, name, broken)

    result = parity.compare(predictor, contract, rows[SPEC.features].head(40))

    assert not result.passed
    assert "predicts differently" in str(result.why)


def test_compiler_error_in_unknown_category_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, contract = boosted()
    real = OrdinalEncoder.transform

    def other(self: Any, rows: Any) -> Any:
        codes = real(self, rows)
        return np.where(codes == -1, 1, codes)

    monkeypatch.setattr(OrdinalEncoder, "transform", other)

    result = parity.compare(predictor, contract, FULL[SPEC.features].head(40))

    assert not result.passed
    assert result.rows == 40


def zeros_for_numbers(values: Any) -> Any:
    return np.zeros_like(values) if values.dtype.kind == "f" else values


def test_compiler_error_in_missing_values_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    make, _ = PREPROCESSING["imputed"]
    predictor, contract = prepare(SPEC, make(LogisticRegression()), EMPTY)
    real = pipeline_compiler._imputed_values
    monkeypatch.setattr(pipeline_compiler, "_imputed_values", lambda imputer: zeros_for_numbers(real(imputer)))

    result = parity.compare(
        predictor, contract, FULL[SPEC.features].head(40)
    )  # without missing values: only the edges have some

    assert not result.passed


@pytest.mark.slow
def test_records_that_both_refuse_are_counted() -> None:
    make, rows = PREPROCESSING["scaled and one-hot"]
    predictor, contract = prepare(
        SPEC, make(LogisticRegression()), rows
    )  # the model refuses NaN, which the contract allows

    result = parity.compare(predictor, contract, rows[SPEC.features].head(40))

    assert result.passed
    assert result.refused >= 2


def test_compiled_pipeline_needs_same_model_and_compiler() -> None:
    predictor, contract = boosted()
    result = parity.compare(predictor, contract, FULL[SPEC.features].head(50))

    assert Parity.from_document(result.document) == result
    assert "paid" not in json.dumps(result.document)
    assert parity.way_to_predict(predictor, contract, result).fast
    for other in (
        None,
        replace(result, passed=False),
        replace(result, compiler="0" * 64),
        replace(result, model_digest="1" * 64),
    ):
        assert not parity.way_to_predict(predictor, contract, other).fast


def test_edges_conform_to_contract() -> None:
    _, contract = boosted()
    record = contract.convert_frame(FULL[SPEC.features])[0]

    edges = parity.edges(contract, record)

    broken = [of.broken(value) for edge in edges for of, value in zip(contract.features, edge, strict=True)]
    assert set(broken) == {None}
    pages = {edge[0] for edge in edges}
    assert {None, 0.0, 1_000.0, 5e-324} <= pages
    assert any(edge[2] not in {"free", "paid", None} for edge in edges)
    assert edges[-1] == (None, None, None, record[3])


def test_array_has_compared_memory_layout() -> None:
    """The last bit of a sum of products depends on it."""
    make, rows = PREPROCESSING["between 0 and 1 and ordinal"]
    predictor, contract = prepare(SPEC, make(LogisticRegression()), rows)
    records = contract.convert_frame(rows[SPEC.features].head(5))

    blocks = [
        pipeline_compiler.compile_pipeline(predictor.pipeline, contract, order).block(records) for order in ("C", "F")
    ]

    assert [block.flags.c_contiguous for block in blocks] == [True, False]
    np.testing.assert_array_equal(*blocks)
