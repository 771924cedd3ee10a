"""Compile a fitted pipeline: predict records without DataFrames, by dict look-ups that fill an array.

Passing a DataFrame of one row through a ColumnTransformer takes ten times as long as the model behind it. A compiled
pipeline looks up learnt categories in dicts, and scales arrays by the same operations as scikit-learn, in the same
order. Every other step that receives numbers only is called as it is, with an array; so is the estimator. A pipeline
whose other steps receive text or times is not compiled. For every version, `ml_platform.inference.parity` checks that
compiled and original pipeline predict the same bits.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ml_platform.errors import UnsupportedPipelineError
from ml_platform.inference import merged_trees
from ml_platform.inference.merged_trees import RawPredict, make_raw_predict
from ml_platform.inference.request_contract import Field, Record, RequestContract

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Block = NDArray[np.float64]

Fill = Callable[[Sequence[Record]], "Block"]
Order = Literal["C", "F"]
Operation = Callable[["Block"], "Block"]
NUMBERS = ("int", "uint", "float64", "bool")


def compiler_digest() -> str:
    """Return the hex sha256 of the compiler's source, so that a parity check is valid for its own compiler only."""
    sources = (Path(__file__), Path(merged_trees.__file__))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


@dataclass(frozen=True)
class Compiled:
    """A compiled pipeline.

    Parameters
    ----------
    contract : RequestContract
    branches : tuple of _Branch
        The parts that fill the array, from left to right.
    sparse : bool
        True if the estimator was fitted on a sparse matrix and receives one.
    operations : tuple of callable
        The operations on the whole array, applied after the branches.
    estimator : fitted scikit-learn estimator
    order : str
        The array's memory layout: ``C`` by rows or ``F`` by columns. It changes the last bit of sums.
    """

    contract: RequestContract
    branches: "tuple[_Branch, ...]"
    sparse: bool
    operations: tuple[Operation, ...]
    estimator: Any
    order: Order = "C"

    @cached_property
    def _raw_predict(self) -> RawPredict | None:
        estimator = _without_threshold(self.estimator)
        return make_raw_predict(estimator) if _is_histogram_boosting(estimator) else None

    def block(self, records: Sequence[Record]) -> Any:
        """Return the estimator's input for some records, an array or sparse matrix of shape (n_records, n_columns)."""
        import numpy as np

        parts = [branch.block(records) for branch in self.branches]
        block = np.empty((len(records), sum(part.shape[1] for part in parts)), order=self.order)
        start = 0
        for part in parts:
            block[:, start : start + part.shape[1]] = part
            start += part.shape[1]
        for operation in self.operations:
            block = operation(block)
        if not self.sparse:
            return block
        from scipy import sparse

        return sparse.csr_matrix(block)

    def answer(self, records: Sequence[Record]) -> "tuple[NDArray[Any], NDArray[Any]]":
        """Return the scores and predictions of some records, as `score_and_predict` does."""
        return score_and_predict(self.estimator, self.block(records), self._raw_predict)


def compile_pipeline(pipeline: Any, contract: RequestContract, order: Order = "C") -> Compiled:
    """Compile a fitted pipeline.

    Parameters
    ----------
    pipeline : fitted scikit-learn Pipeline
    contract : RequestContract
        The contract of the records to predict.
    order : str
        The memory layout of the estimator's input, ``C`` or ``F``.

    Raises
    ------
    UnsupportedPipelineError
        The pipeline has an unsupported step; the message names it.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    if not isinstance(pipeline, Pipeline):
        raise UnsupportedPipelineError(f"{type(pipeline).__name__} is not a scikit-learn Pipeline.")
    steps = [step for _, step in pipeline.steps]
    estimator = steps.pop()
    fitted_names = list(getattr(pipeline, "feature_names_in_", ()))
    if fitted_names and fitted_names != list(contract.names):
        raise UnsupportedPipelineError("The pipeline was fitted on other columns than those of the contract.")
    if hasattr(estimator, "feature_names_in_"):
        raise UnsupportedPipelineError("The pipeline's estimator was fitted on a DataFrame.")
    if not steps or not isinstance(steps[0], ColumnTransformer):
        branch = _pass_through(_Branch(fields=tuple(enumerate(contract.features))), steps).filled
        return Compiled(contract, (branch,), False, (), estimator, order)
    first = steps.pop(0)
    operations = tuple(operation for step in steps for operation in _operations(step))
    return Compiled(
        contract, _build_branches(first, contract), bool(first.sparse_output_), operations, estimator, order
    )


def strict_categories(pipeline: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the learnt values, by column, of those encoders of a pipeline that refuse every other value.

    Parameters
    ----------
    pipeline : fitted scikit-learn Pipeline
    names : sequence of str
        The columns on which the pipeline was fitted.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    first = pipeline.steps[0][1] if isinstance(pipeline, Pipeline) else None
    if not isinstance(first, ColumnTransformer):
        return _encoder_categories(first, names)
    categories = dict[str, list[Any]]()
    for name, inner, _ in first.transformers_:
        columns = [names[place] for place in first._transformer_to_input_indices[name]]
        categories.update(_encoder_categories(inner, columns))
    return categories


def _encoder_categories(transformer: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    first = transformer.steps[0][1] if isinstance(transformer, Pipeline) else transformer
    if not isinstance(first, OneHotEncoder | OrdinalEncoder) or first.handle_unknown != "error":
        return {}
    return {name: values.tolist() for name, values in zip(names, first.categories_, strict=True)}


# Branches


@dataclass(frozen=True)
class _Branch:
    """Columns on their way through transformers: a record's values at first, an array once `fill` is set.

    `fields` are the fields with their places in a record, `instead` the replacements of missing values by place.
    """

    fields: tuple[tuple[int, Field], ...]
    instead: "tuple[tuple[int, Any], ...]" = ()
    fill: Fill | None = None
    operations: tuple[Operation, ...] = ()

    @property
    def filled(self) -> "_Branch":
        """The branch with `fill`, which by default takes the values themselves as numbers."""
        import numpy as np

        if self.fill is not None:
            return self
        if not _are_numbers(self) or self.instead:
            columns = ", ".join(f"{field.name} ({field.dtype})" for _, field in self.fields[:3])
            raise UnsupportedPipelineError(f"Columns without 64-bit numbers reach the estimator: {columns}, ….")
        places = [place for place, _ in self.fields]
        pick = itemgetter(*places) if len(places) > 1 else itemgetter(slice(places[0], places[0] + 1))

        def fill(records: Sequence[Record]) -> "Block":
            return np.array(list(map(pick, records)), dtype=np.float64)  # None becomes NaN

        return replace(self, fill=fill)

    def block(self, records: Sequence[Record]) -> "Block":
        assert self.fill is not None  # noqa: S101 - every branch of a compiled pipeline is filled
        block = self.fill(records)
        for operation in self.operations:
            block = operation(block)
        return block


def _build_branches(transformer: Any, contract: RequestContract) -> tuple[_Branch, ...]:
    if transformer.transformer_weights or _returns_frames(transformer):
        raise UnsupportedPipelineError("The pipeline's ColumnTransformer has weights, or returns DataFrames.")
    branches = list[_Branch]()
    for name, inner, _ in transformer.transformers_:
        places = list(map(int, transformer._transformer_to_input_indices[name]))
        if places and not (isinstance(inner, str) and inner == "drop"):
            branch = _Branch(fields=tuple((place, contract.features[place]) for place in places))
            branches.append(_pass_through(branch, [inner]).filled)
    return tuple(branches)


def _returns_frames(transformer: Any) -> bool:
    from sklearn.utils._set_output import _get_output_config

    return bool(_get_output_config("transform", transformer)["dense"] != "default")


def _pass_through(branch: _Branch, steps: Sequence[Any]) -> _Branch:
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    for step in steps:
        if isinstance(step, Pipeline):
            branch = _pass_through(branch, [inner for _, inner in step.steps])
        elif branch.fill is None and isinstance(step, OrdinalEncoder):
            branch = _compile_ordinal(branch, step)
        elif branch.fill is None and isinstance(step, OneHotEncoder):
            branch = _compile_one_hot(branch, step)
        elif branch.fill is None and isinstance(step, SimpleImputer) and not _are_numbers(branch):
            imputed = dict(zip(map(itemgetter(0), branch.fields), _imputed_values(step).tolist(), strict=True))
            branch = replace(branch, instead=tuple({**imputed, **dict(branch.instead)}.items()))
        elif operations := _operations(step):
            filled = branch.filled
            branch = replace(filled, operations=(*filled.operations, *operations))
    return branch


def _are_numbers(branch: _Branch) -> bool:
    numeric = {"int", "float", "bool"}
    return all(field.kind in numeric and field.dtype.startswith(NUMBERS) for _, field in branch.fields)


# Encoders


def _require_encodable(branch: _Branch, encoder: Any) -> None:
    import numpy as np

    kind = type(encoder).__name__
    if getattr(encoder, "_infrequent_enabled", False) or _returns_frames(encoder):
        raise UnsupportedPipelineError(f"{kind} groups rare categories, or returns DataFrames.")
    if np.dtype(encoder.dtype) != np.float64:
        raise UnsupportedPipelineError(f"{kind} returns {np.dtype(encoder.dtype)} instead of float64.")
    others = [field.name for _, field in branch.fields if field.kind not in {"str", "int", "float", "bool"}]
    if others:
        raise UnsupportedPipelineError(
            f"{kind} encodes columns that hold neither text, numbers nor truth values: {', '.join(others[:3])}."
        )


def _category_codes(branch: _Branch, encoder: Any) -> list[dict[Any, int]]:
    """Return the code of each category, by column.

    A missing value, which is NaN in scikit-learn, has the key None: with the code of its replacement, if it has one.
    """
    instead, tables = dict(branch.instead), list[dict[Any, int]]()
    for (place, _), categories in zip(branch.fields, encoder.categories_, strict=True):
        values = [None if isinstance(value, float) and math.isnan(value) else value for value in categories.tolist()]
        codes = {value: code for code, value in enumerate(values)}
        if place in instead:
            codes.pop(None, None)
            if instead[place] in codes:
                codes[None] = codes[instead[place]]
        tables.append(codes)
    return tables


def _compile_ordinal(branch: _Branch, encoder: Any) -> _Branch:
    import numpy as np

    _require_encodable(branch, encoder)
    columns, instead = list[tuple[int, dict[Any, float]]](), dict(branch.instead)
    for (place, _), table in zip(branch.fields, _category_codes(branch, encoder), strict=True):
        codes = {value: float(code) for value, code in table.items()}
        if None in codes and place not in instead:
            codes[None] = float(encoder.encoded_missing_value)
        columns.append((place, codes))
    unknown = float(encoder.unknown_value) if encoder.handle_unknown == "use_encoded_value" else None

    def fill(records: Sequence[Record]) -> "Block":
        block = np.empty((len(records), len(columns)))
        for column, (place, codes) in enumerate(columns):
            if unknown is None:
                block[:, column] = [_require_known(codes, record[place]) for record in records]
            else:
                get = codes.get
                block[:, column] = [get(record[place], unknown) for record in records]
        return block

    return _Branch(fields=branch.fields, fill=fill)


def _require_known(codes: dict[Any, Any], value: Any) -> Any:
    if value not in codes:
        raise ValueError(f"found unknown category {value!r}")
    return codes[value]


def _compile_one_hot(branch: _Branch, encoder: Any) -> _Branch:
    import numpy as np

    _require_encodable(branch, encoder)
    if encoder.handle_unknown == "warn":
        raise UnsupportedPipelineError("OneHotEncoder warns of unknown categories.")
    dropped = encoder.drop_idx_ if encoder.drop_idx_ is not None else [None] * len(branch.fields)
    columns, start = list[tuple[int, dict[Any, int]]](), 0
    for (place, _), codes, drop in zip(branch.fields, _category_codes(branch, encoder), dropped, strict=True):
        columns.append((place, _hot_columns(codes, drop, start)))
        start += len(set(codes.values())) - (drop is not None)
    strict, width = encoder.handle_unknown == "error", start

    def fill(records: Sequence[Record]) -> "Block":
        block = np.zeros((len(records), width + 1))  # the last column collects unknown and dropped categories
        rows = np.arange(len(records))
        for place, hot in columns:
            if strict:
                block[rows, [_require_known(hot, record[place]) for record in records]] = 1.0
            else:
                get = hot.get
                block[rows, [get(record[place], -1) for record in records]] = 1.0
        return block[:, :width]

    return _Branch(fields=branch.fields, fill=fill)


def _hot_columns(codes: dict[Any, int], drop: Any, start: int) -> dict[Any, int]:
    """Return the column of the 1 for each category, from `start`; -1 for the one that is dropped."""
    if drop is None:
        return {value: start + code for value, code in codes.items()}
    return {value: -1 if code == drop else start + code - (code > drop) for value, code in codes.items()}


# Numbers


def _imputed_values(imputer: Any) -> "NDArray[Any]":
    """Return the value that an imputer puts in place of missing ones, by column."""
    if imputer.add_indicator or not (isinstance(imputer.missing_values, float) and math.isnan(imputer.missing_values)):
        raise UnsupportedPipelineError("SimpleImputer adds indicators, or does not take NaN as missing.")
    if any(value is None or value != value for value in imputer.statistics_.tolist()):
        raise UnsupportedPipelineError("SimpleImputer drops empty columns.")
    return imputer.statistics_  # type: ignore[no-any-return]


def _operations(step: Any) -> list[Operation]:
    """Return a transformer's operations on an array, as scikit-learn orders them; none if it changes nothing."""
    import numpy as np
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler

    # A ColumnTransformer replaces "passthrough" by a FunctionTransformer without a function.
    if step is None or step == "passthrough" or (type(step) is FunctionTransformer and step.func is None):
        return []
    if _returns_frames(step):
        raise UnsupportedPipelineError(f"{type(step).__name__} returns DataFrames.")
    if type(step) is SimpleImputer and not step.add_indicator:
        values = _imputed_values(step).astype(np.float64)
        return [lambda block: np.where(np.isnan(block), values, block)]
    if type(step) is MinMaxScaler:
        clip: list[Operation] = [lambda block: np.clip(block, *step.feature_range, out=block)]
        return [
            lambda block: np.multiply(block, step.scale_, out=block),
            lambda block: np.add(block, step.min_, out=block),
            *(clip if step.clip else []),
        ]
    if type(step) is StandardScaler:
        center: list[Operation] = [lambda block: np.subtract(block, step.mean_, out=block)]
        scale: list[Operation] = [lambda block: np.divide(block, step.scale_, out=block)]
        return [*(center if step.with_mean else []), *(scale if step.with_std else [])]
    return [_transform_by(step)]


def _transform_by(step: Any) -> Operation:
    """Return a call of a transformer's own `transform` with an array, of a copy that was fitted on no named columns.

    scikit-learn warns if a transformer that was fitted on a DataFrame receives an array.
    """
    import numpy as np
    from scipy import sparse
    from sklearn.base import BaseEstimator
    from sklearn.compose import ColumnTransformer

    if isinstance(step, ColumnTransformer) or not hasattr(step, "transform"):
        raise UnsupportedPipelineError(f"The compiler does not support {type(step).__name__} on an array.")
    step = copy.deepcopy(step)
    for part in (step, *step.get_params().values()):
        if isinstance(part, BaseEstimator):
            vars(part).pop("feature_names_in_", None)

    def transform(block: "Block") -> "Block":
        result: Any = step.transform(block)
        return np.asarray(result.toarray() if sparse.issparse(result) else result)

    return transform


# Estimators


def score_and_predict(
    estimator: Any, block: Any, raw_predict: RawPredict | None = None
) -> "tuple[NDArray[Any], NDArray[Any]]":
    """Return an estimator's scores and predictions, from a single pass through it if its class allows that.

    Parameters
    ----------
    estimator : fitted scikit-learn estimator
    block : array-like of shape (n_samples, n_columns)
    raw_predict : callable or None
        Replaces the method ``_raw_predict`` of a histogram gradient boosting, which is the estimator or the one whose
        threshold the estimator sets; ``None`` uses the method.

    Returns
    -------
    scores : ndarray of shape (n_samples,), or (n_samples, n_classes) for more than two classes
        The same as `Predictor.scores`.
    predictions : ndarray of shape (n_samples,)
        The same as `Predictor.predictions`.
    """
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    boosting = _without_threshold(estimator)
    raw = (raw_predict or boosting._raw_predict)(block) if _is_histogram_boosting(boosting) else None
    if not hasattr(estimator, "predict_proba"):
        predicted = estimator.predict(block) if raw is None else estimator._loss.link.inverse(raw.ravel())
        return predicted, predicted
    # A histogram gradient boosting's methods both begin with the walk through all trees.
    probabilities = boosting.predict_proba(block) if raw is None else boosting._loss.predict_proba(raw)
    if boosting is not estimator:
        return _scores(probabilities), _predict_by_threshold(estimator, block, probabilities)
    if raw is not None:
        codes = (raw.ravel() > 0).astype(int) if raw.shape[1] == 1 else raw.argmax(axis=1)
        return _scores(probabilities), estimator.classes_[codes]
    if type(estimator) in {RandomForestClassifier, ExtraTreesClassifier, DecisionTreeClassifier}:
        return _scores(probabilities), estimator.classes_.take(probabilities.argmax(axis=1), axis=0)
    return _scores(probabilities), estimator.predict(block)


def _without_threshold(estimator: Any) -> Any:
    """Return the classifier whose threshold an estimator sets, or the estimator itself."""
    from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV

    has_threshold = isinstance(estimator, TunedThresholdClassifierCV | FixedThresholdClassifier)
    return estimator.estimator_ if has_threshold else estimator


def _is_histogram_boosting(estimator: Any) -> bool:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    return type(estimator) in {HistGradientBoostingClassifier, HistGradientBoostingRegressor}


def _scores(probabilities: "NDArray[Any]") -> "NDArray[Any]":
    return probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities


def _predict_by_threshold(estimator: Any, block: Any, probabilities: "NDArray[Any]") -> "NDArray[Any]":
    if estimator.response_method == "decision_function":
        return estimator.predict(block)  # type: ignore[no-any-return]
    if hasattr(estimator, "best_threshold_"):
        threshold, positive = estimator.best_threshold_, estimator._curve_scorer._get_pos_label()
    else:
        threshold = 0.5 if estimator.threshold == "auto" else estimator.threshold
        positive = estimator.pos_label
    # The threshold applies to the probability of the positive class; None is the second class.
    place = 1 if positive is None else list(estimator.classes_).index(positive)
    above = probabilities[:, place] >= threshold
    return estimator.classes_[(above if place == 1 else ~above).astype(int)]  # type: ignore[no-any-return]
