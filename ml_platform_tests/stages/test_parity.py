"""What was compiled says what the pipeline says, to the bit; where it does not, it is not taken."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)
from sklearn.tree import DecisionTreeClassifier

from ml_platform import compiled
from ml_platform.errors import UncompiledError
from ml_platform.model_spec import ModelSpec
from ml_platform.predictor import Predictor
from ml_platform.request_contract import RequestContract
from ml_platform.stages import parity, training
from ml_platform.stages.contracting import contract_of
from ml_platform.stages.parity import Parity
from ml_platform_tests import fakes


class Holes(fakes.Visits):
    """Visits of whom not everything is known."""

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


def numbers_of(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[NUMBERS]


def scaled_alone() -> Pipeline:
    return Pipeline([("scale", StandardScaler()), ("model", LogisticRegression())])


SPEC = fakes.visits_spec(table=Holes)
NUMBERS, PLAN, MEMBER = ["pages", "seconds"], ["plan"], ["member"]
RANDOM = np.random.default_rng(0)
ROWS = fakes.visits(300).assign(member=RANDOM.random(300) < 0.5, pages=lambda rows: rows["pages"].astype("float64"))
FULL = ROWS[[*SPEC.columns]]
EMPTY = FULL.assign(
    seconds=FULL["seconds"].where(RANDOM.random(300) < 0.8),
    plan=FULL["plan"].where(RANDOM.random(300) < 0.8),
    pages=FULL["pages"].where(RANDOM.random(300) < 0.8),
)


def ready(spec: ModelSpec, pipeline: Any, rows: pd.DataFrame) -> tuple[Predictor, RequestContract]:
    fitted = pipeline.fit(rows[spec.features], training.target(rows, spec))
    predictor = Predictor(fitted, "0" * 64)
    return predictor, contract_of(spec, fitted, rows, predictor.scores(rows[spec.features]))


def pipeline_of(*columns: Any, estimator: Any = None, **options: Any) -> Pipeline:
    return Pipeline(
        [
            ("columns", ColumnTransformer(list(columns), **options)),
            ("model", LogisticRegression() if estimator is None else estimator),
        ]
    )


def learner() -> dict[str, Any]:
    """Return an encoder's options by which it takes whatever comes."""
    return {"handle_unknown": "use_encoded_value", "unknown_value": -1}


def imputed(strategy: str, last: Any) -> Pipeline:
    return Pipeline([("fill", SimpleImputer(strategy=strategy)), ("then", last)])


PREPROCESSING: dict[str, tuple[Callable[[Any], Pipeline], pd.DataFrame]] = {
    "scaled and one-hot": (
        lambda estimator: pipeline_of(
            ("n", StandardScaler(), NUMBERS), ("c", OneHotEncoder(handle_unknown="ignore"), PLAN), estimator=estimator
        ),
        FULL,
    ),
    "between 0 and 1 and ordinal": (
        lambda estimator: pipeline_of(
            ("n", MinMaxScaler(clip=True), NUMBERS), ("c", OrdinalEncoder(), [*PLAN, *MEMBER]), estimator=estimator
        ),
        FULL,
    ),
    "imputed": (
        lambda estimator: pipeline_of(
            ("n", imputed("median", StandardScaler(with_mean=False)), NUMBERS),
            ("c", imputed("most_frequent", OneHotEncoder(drop="first", sparse_output=False)), PLAN),
            ("m", "passthrough", MEMBER),
            estimator=estimator,
        ),
        EMPTY,
    ),
    "constants and missing ones as a category": (
        lambda estimator: pipeline_of(
            ("n", Pipeline([("fill", SimpleImputer(strategy="constant", fill_value=-7.0))]), NUMBERS),
            ("c", OrdinalEncoder(encoded_missing_value=-2, **learner()), PLAN),
            ("h", OneHotEncoder(handle_unknown="infrequent_if_exist", drop="if_binary"), [*MEMBER, *PLAN]),
            estimator=estimator,
        ),
        EMPTY,
    ),
    "the rest passed and dropped": (
        lambda estimator: pipeline_of(
            ("c", OrdinalEncoder(**learner()), PLAN),
            ("d", "drop", ["seconds"]),
            remainder="passthrough",
            estimator=estimator,
        ),
        FULL,
    ),
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


@pytest.mark.parametrize("name", PREPROCESSING)
@pytest.mark.parametrize("estimator", [LogisticRegression(), HistGradientBoostingClassifier(max_iter=10)], ids=str)
def test_every_known_preprocessing_agrees_to_the_bit(name: str, estimator: Any) -> None:
    make, rows = PREPROCESSING[name]
    predictor, contract = ready(SPEC, make(estimator), rows)

    found = parity.compare(predictor, contract, rows[SPEC.features].head(40))

    assert (found.passed, found.why, found.rows) == (True, None, 40)
    assert found.cases > 20


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_every_estimator_answers_as_behind_its_pipeline(estimator: Any) -> None:
    make, rows = PREPROCESSING["scaled and one-hot"]
    predictor, contract = ready(SPEC, make(estimator), rows)

    assert parity.compare(predictor, contract, rows[SPEC.features].head(40)).why is None


@pytest.mark.parametrize(
    ("spec", "rows"),
    [
        (fakes.kinds_spec(), fakes.kinds(fakes.visits(300))),
        (fakes.spending_spec(), fakes.spending(fakes.visits(300))),
        (fakes.kinds_spec(pipeline=scaled_alone, table=KindsInNumbers), fakes.kinds(fakes.visits(300)).assign(plan=1)),
    ],
    ids=["multiclass", "regression", "no columns named"],
)
def test_every_task_agrees(spec: ModelSpec, rows: pd.DataFrame) -> None:
    predictor, contract = ready(spec, spec.pipeline(), rows)

    assert parity.compare(predictor, contract, rows[spec.features].head(40)).why is None


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        (pipeline_of(("n", RobustScaler(), NUMBERS)), "RobustScaler is not known"),
        (pipeline_of(("n", FunctionTransformer(np.log1p), NUMBERS)), "FunctionTransformer is not known"),
        (pipeline_of(("n", StandardScaler(), NUMBERS), transformer_weights={"n": 2}), "weights"),
        (pipeline_of(("n", StandardScaler(), NUMBERS)).set_output(transform="pandas"), "DataFrame"),
        (pipeline_of(("c", OneHotEncoder(min_frequency=0.6, handle_unknown="ignore"), PLAN)), "rare categories"),
        (pipeline_of(("c", OneHotEncoder(handle_unknown="warn"), PLAN)), "warns"),
        (pipeline_of(("c", OrdinalEncoder(dtype="float32"), PLAN)), "float32"),
        (pipeline_of(("n", SimpleImputer(add_indicator=True), NUMBERS)), "indicators"),
        (pipeline_of(("n", SimpleImputer(missing_values=0), NUMBERS)), "NaN"),
        (LogisticRegression(), "no Pipeline"),
        (Pipeline([("n", FunctionTransformer(numbers_of)), ("m", LogisticRegression())]), "on a DataFrame"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_not_known_is_not_compiled_and_said(pipeline: Any, said: str) -> None:
    numbers = fakes.visits_spec(table=NumbersOnly)
    spec, rows = (SPEC, FULL) if isinstance(pipeline, Pipeline) else (numbers, fakes.visits(300).assign(plan=1))
    predictor, contract = ready(spec, pipeline, rows)

    found = parity.compare(predictor, contract, rows[spec.features].head(10))

    assert not found.passed
    assert said in str(found.why)
    with pytest.raises(UncompiledError):
        predictor.for_records(contract, "C")
    way = parity.way_to_predict(predictor, contract, found)
    assert not way.fast
    answers = way.predict_records(contract.records_of(rows[spec.features]))
    assert answers.scores == predictor.scores(rows[spec.features]).tolist()


def boosted() -> tuple[Predictor, RequestContract]:
    make, rows = PREPROCESSING["the rest passed and dropped"]
    return ready(SPEC, make(HistGradientBoostingClassifier(max_iter=10)), rows)


def test_records_are_predicted_as_frames_are_in_both_ways() -> None:
    predictor, contract = boosted()
    features = FULL[SPEC.features]
    records = contract.records_of(features)

    for way in (predictor.for_records(contract), predictor.for_records(contract, "C")):
        answers = way.predict_records(records)
        assert answers.scores == predictor.scores(features).tolist()
        assert answers.predictions == predictor.predictions(features).tolist()
        assert type(answers.predictions[0]) is int
    assert [predictor.for_records(contract, way).fast for way in (None, "C")] == [False, True]


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("_codes", lambda categories: dict.fromkeys(categories.tolist(), 0)),
        ("_known", lambda _codes, _value: 0),
        ("_boosted", lambda model, block: (model.predict_proba(block)[:, 1], model.predict(block) * 0)),
    ],
)
def test_a_compiler_that_errs_is_found_out(monkeypatch: pytest.MonkeyPatch, name: str, broken: Any) -> None:
    make, rows = PREPROCESSING["between 0 and 1 and ordinal"]
    predictor, contract = ready(SPEC, make(HistGradientBoostingClassifier(max_iter=10)), rows)
    assert parity.compare(predictor, contract, rows[SPEC.features].head(40)).passed
    monkeypatch.setattr(compiled, name, broken)

    found = parity.compare(predictor, contract, rows[SPEC.features].head(40))

    assert not found.passed
    assert "answers otherwise" in str(found.why)


def test_an_unknown_category_alone_shows_an_error_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, contract = boosted()
    real = OrdinalEncoder.transform

    def other(self: Any, rows: Any) -> Any:
        codes = real(self, rows)
        return np.where(codes == -1, 1, codes)

    monkeypatch.setattr(OrdinalEncoder, "transform", other)

    found = parity.compare(predictor, contract, FULL[SPEC.features].head(40))

    assert not found.passed
    assert found.rows == 40


def test_missing_values_alone_show_an_error_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    make, _ = PREPROCESSING["imputed"]
    predictor, contract = ready(SPEC, make(LogisticRegression()), EMPTY)
    monkeypatch.setattr(compiled, "_impute", lambda _: np.nan_to_num)

    found = parity.compare(predictor, contract, FULL[SPEC.features].head(40))  # no hole in it: only the edges have

    assert not found.passed


def test_what_both_refuse_is_counted() -> None:
    make, rows = PREPROCESSING["scaled and one-hot"]
    predictor, contract = ready(SPEC, make(LogisticRegression()), rows)  # it takes no NaN, and the contract does

    found = parity.compare(predictor, contract, rows[SPEC.features].head(40))

    assert found.passed
    assert found.refused >= 2


def test_the_fast_way_is_taken_for_the_model_and_the_compiler_that_agreed_and_no_other() -> None:
    predictor, contract = boosted()
    found = parity.compare(predictor, contract, FULL[SPEC.features].head(50))

    assert Parity.from_document(found.document) == found
    assert "paid" not in json.dumps(found.document)
    assert parity.way_to_predict(predictor, contract, found).fast
    for other in (
        None,
        replace(found, passed=False),
        replace(found, compiler="0" * 64),
        replace(found, model_digest="1" * 64),
    ):
        assert not parity.way_to_predict(predictor, contract, other).fast


def test_every_edge_keeps_the_contract() -> None:
    _, contract = boosted()
    record = contract.records_of(FULL[SPEC.features])[0]

    edges = parity.edges(contract, record)

    broken = [of.broken(value) for edge in edges for of, value in zip(contract.features, edge, strict=True)]
    assert set(broken) == {None}
    pages = {edge[0] for edge in edges}
    assert {None, 0.0, 1_000.0, 5e-324} <= pages
    assert any(edge[2] not in {"free", "paid", None} for edge in edges)
    assert edges[-1] == (None, None, None, record[3])


def test_the_array_has_the_order_in_memory_that_agreed() -> None:
    """A sum of products depends on it, in its last bit."""
    make, rows = PREPROCESSING["between 0 and 1 and ordinal"]
    predictor, contract = ready(SPEC, make(LogisticRegression()), rows)
    records = contract.records_of(rows[SPEC.features].head(5))

    blocks = [compiled.compile_pipeline(predictor.pipeline, contract, order).block(records) for order in ("C", "F")]

    assert [block.flags.c_contiguous for block in blocks] == [True, False]
    np.testing.assert_array_equal(*blocks)
