"""A fitted pipeline for records instead of DataFrames: its preprocessing as dict look-ups that fill an array.

A DataFrame of one row through a ColumnTransformer costs ten times what the model behind it does. Here the categories
that were learnt become dicts, the scalers the same few operations on an array that scikit-learn does, in its order;
the estimator behind is scikit-learn's own. What is not known here is not compiled, and whether what was compiled says
the same to the bit is decided by `ml_platform.stages.parity`, for every version anew.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ml_platform.errors import UncompiledError
from ml_platform.request_contract import Field, Record, RequestContract

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Block = NDArray[np.float64]

Fill = Callable[[Sequence[Record]], "Block"]
Order = Literal["C", "F"]
Operation = Callable[["Block"], "Block"]
NUMBERS = ("int", "uint", "float64", "bool")


def compiler_digest() -> str:
    """Return the hex sha256 of this module's source: what agreed under another compiler says nothing of this one."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


@dataclass(frozen=True)
class Compiled:
    """A compiled pipeline.

    Parameters
    ----------
    contract : RequestContract
    branches : tuple of _Branch
        What fills the array, from left to right.
    sparse : bool
        Whether the estimator gets a sparse matrix, as it did when it was fitted.
    operations : tuple of callable
        What comes behind the branches, on the whole array.
    estimator : fitted scikit-learn estimator
    order : str
        ``C`` or ``F``: whether rows or columns stand together in memory, which the last bit of a sum depends on.
    """

    contract: RequestContract
    branches: "tuple[_Branch, ...]"
    sparse: bool
    operations: tuple[Operation, ...]
    estimator: Any
    order: Order = "C"

    def block(self, records: Sequence[Record]) -> Any:
        """Return what the estimator sees of some records; shape (n_records, n_columns)."""
        import numpy as np

        width = sum(branch.width for branch in self.branches)
        block = np.empty((len(records), width), order=self.order)
        start = 0
        for branch in self.branches:
            block[:, start : start + branch.width] = branch.block(records)
            start += branch.width
        for operation in self.operations:
            block = operation(block)
        return _sparse(block) if self.sparse else block

    def answer(self, records: Sequence[Record]) -> "tuple[NDArray[Any], NDArray[Any]]":
        """Return scores and predictions as `answers_of` does."""
        return answers_of(self.estimator, self.block(records))


def _sparse(block: "Block") -> Any:
    from scipy import sparse

    return sparse.csr_matrix(block)


def compile_pipeline(pipeline: Any, contract: RequestContract, order: Order = "C") -> Compiled:
    """Compile a fitted pipeline for the records of a contract; `order` as of `Compiled`.

    Raises
    ------
    UncompiledError
        It has a part that is not known here; the message names it.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    if not isinstance(pipeline, Pipeline):
        raise UncompiledError(f"{type(pipeline).__name__} is no Pipeline.")
    steps = [step for _, step in pipeline.steps]
    estimator = steps.pop()
    _require_plain_names(pipeline, estimator, contract)
    whole = _Branch(fields=tuple(enumerate(contract.features)))
    if not steps or not isinstance(steps[0], ColumnTransformer):
        return Compiled(contract, (_through(whole, steps).filled,), False, (), estimator, order)
    first = steps.pop(0)
    branches = _branches_of(first, contract)
    operations = tuple(operation for step in steps for operation in _operations(step))
    return Compiled(contract, branches, bool(first.sparse_output_), operations, estimator, order)


def _require_plain_names(pipeline: Any, estimator: Any, contract: RequestContract) -> None:
    known = list(getattr(pipeline, "feature_names_in_", ()))
    if known and known != list(contract.names):
        raise UncompiledError("It was fitted on other columns than the contract names.")
    if hasattr(estimator, "feature_names_in_"):
        raise UncompiledError("Its estimator was fitted on a DataFrame.")


def strict_categories(pipeline: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values that a fitted pipeline's encoders learnt, by column, where they refuse every other value.

    Parameters
    ----------
    pipeline : fitted scikit-learn Pipeline
    names : sequence of str
        The columns that it was fitted on.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    first = pipeline.steps[0][1] if isinstance(pipeline, Pipeline) else None
    if not isinstance(first, ColumnTransformer):
        return _strict(first, names)
    found = dict[str, list[Any]]()
    for name, inner, _ in first.transformers_:
        found.update(_strict(inner, [names[place] for place in first._transformer_to_input_indices[name]]))
    return found


def _strict(transformer: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    first = transformer.steps[0][1] if isinstance(transformer, Pipeline) else transformer
    if not isinstance(first, OneHotEncoder | OrdinalEncoder) or first.handle_unknown != "error":
        return {}
    return {name: values.tolist() for name, values in zip(names, first.categories_, strict=True)}


# Branches


@dataclass(frozen=True)
class _Branch:
    """Columns on their way through transformers: values at first, an array once `fill` stands.

    `fields` are places in a record with their fields, `instead` what stands for a missing value, by place.
    """

    fields: tuple[tuple[int, Field], ...]
    instead: "tuple[tuple[int, Any], ...]" = ()
    fill: Fill | None = None
    width: int = 0
    operations: tuple[Operation, ...] = ()

    @property
    def filled(self) -> "_Branch":
        """The branch as an array of numbers."""
        return self if self.fill is not None else _as_numbers(self)

    def block(self, records: Sequence[Record]) -> "Block":
        assert self.fill is not None  # noqa: S101 - branches are filled when they are compiled
        block = self.fill(records)
        for operation in self.operations:
            block = operation(block)
        return block


def _branches_of(transformer: Any, contract: RequestContract) -> tuple[_Branch, ...]:
    if transformer.transformer_weights or _wants_frames(transformer):
        raise UncompiledError("Its ColumnTransformer has weights, or gives DataFrames.")
    branches = list[_Branch]()
    for name, inner, _ in transformer.transformers_:
        places = list(map(int, transformer._transformer_to_input_indices[name]))
        if places and not (isinstance(inner, str) and inner == "drop"):
            branch = _Branch(fields=tuple((place, contract.features[place]) for place in places))
            branches.append(_through(branch, [inner]).filled)
    return tuple(branches)


def _wants_frames(transformer: Any) -> bool:
    from sklearn.utils._set_output import _get_output_config

    return bool(_get_output_config("transform", transformer)["dense"] != "default")


def _through(branch: _Branch, steps: Sequence[Any]) -> _Branch:
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    for step in steps:
        if isinstance(step, Pipeline):
            branch = _through(branch, [inner for _, inner in step.steps])
        elif branch.fill is None and isinstance(step, OrdinalEncoder):
            branch = _ordinal(branch, step)
        elif branch.fill is None and isinstance(step, OneHotEncoder):
            branch = _one_hot(branch, step)
        elif branch.fill is None and isinstance(step, SimpleImputer) and not _are_numbers(branch):
            branch = _imputed_values(branch, step)
        elif _operations(step):
            filled = branch.filled
            branch = replace(filled, operations=(*filled.operations, *_operations(step)))
    return branch


def _are_numbers(branch: _Branch) -> bool:
    return all(of.kind in {"int", "float", "bool"} and of.dtype.startswith(NUMBERS) for _, of in branch.fields)


def _as_numbers(branch: _Branch) -> _Branch:
    import numpy as np

    if not _are_numbers(branch) or branch.instead:
        wrong = ", ".join(f"{of.name} ({of.dtype})" for _, of in branch.fields[:3])
        raise UncompiledError(f"Columns reach the estimator that are no numbers of 64 bits: {wrong}, ….")
    places = [place for place, _ in branch.fields]
    pick = itemgetter(*places) if len(places) > 1 else itemgetter(slice(places[0], places[0] + 1))

    def fill(records: Sequence[Record]) -> "Block":
        return np.array(list(map(pick, records)), dtype=np.float64)  # None becomes NaN

    return replace(branch, fill=fill, width=len(places))


# Encoders


def _codes(categories: "NDArray[Any]") -> dict[Any, int]:
    """Return the place of each category; a missing one, which scikit-learn calls NaN, stands under None."""
    return {
        None if isinstance(value, float) and math.isnan(value) else value: place
        for place, value in enumerate(categories.tolist())
    }


def _require_encodable(branch: _Branch, encoder: Any) -> None:
    import numpy as np

    if getattr(encoder, "_infrequent_enabled", False) or _wants_frames(encoder):
        raise UncompiledError(f"{type(encoder).__name__} groups rare categories, or gives DataFrames.")
    if np.dtype(encoder.dtype) != np.float64:
        raise UncompiledError(f"{type(encoder).__name__} gives {np.dtype(encoder.dtype)}.")
    strange = [of.name for _, of in branch.fields if of.kind not in {"str", "int", "float", "bool"}]
    if strange:
        raise UncompiledError(f"{type(encoder).__name__} encodes columns of another kind: {', '.join(strange[:3])}.")


def _tables(branch: _Branch, encoder: Any) -> list[dict[Any, int]]:
    """Return the place of each value by column, what stands for a missing value included."""
    tables, instead = [_codes(categories) for categories in encoder.categories_], dict(branch.instead)
    for (place, _), table in zip(branch.fields, tables, strict=True):
        if place in instead:
            table.pop(None, None)
            if instead[place] in table:
                table[None] = table[instead[place]]
    return tables


def _ordinal(branch: _Branch, encoder: Any) -> _Branch:
    import numpy as np

    _require_encodable(branch, encoder)
    columns = list[tuple[int, dict[Any, float]]]()
    for (place, _), table in zip(branch.fields, _tables(branch, encoder), strict=True):
        codes = {value: float(code) for value, code in table.items()}
        if None in codes and place not in dict(branch.instead):
            codes[None] = float(encoder.encoded_missing_value)
        columns.append((place, codes))
    unknown = float(encoder.unknown_value) if encoder.handle_unknown == "use_encoded_value" else None

    def fill(records: Sequence[Record]) -> "Block":
        block = np.empty((len(records), len(columns)))
        for column, (place, codes) in enumerate(columns):
            if unknown is None:
                block[:, column] = [_known(codes, record[place]) for record in records]
            else:
                get = codes.get
                block[:, column] = [get(record[place], unknown) for record in records]
        return block

    return _Branch(fields=branch.fields, fill=fill, width=len(columns))


def _known(codes: dict[Any, Any], value: Any) -> Any:
    if value not in codes:
        raise ValueError(f"found unknown category {value!r}")
    return codes[value]


def _one_hot(branch: _Branch, encoder: Any) -> _Branch:
    import numpy as np

    _require_encodable(branch, encoder)
    if encoder.handle_unknown == "warn":
        raise UncompiledError("OneHotEncoder warns of unknown categories.")
    dropped = encoder.drop_idx_ if encoder.drop_idx_ is not None else [None] * len(branch.fields)
    columns, start = list[tuple[int, dict[Any, int]]](), 0
    for (place, _), table, drop in zip(branch.fields, _tables(branch, encoder), dropped, strict=True):
        columns.append((place, _hot(table, drop, start)))
        start += len(set(table.values())) - (drop is not None)
    strict, width = encoder.handle_unknown == "error", start

    def fill(records: Sequence[Record]) -> "Block":
        block = np.zeros((len(records), width + 1))  # the last column takes what is unknown or dropped
        rows = np.arange(len(records))
        for place, hot in columns:
            get = hot.get
            block[rows, [_known(hot, record[place]) if strict else get(record[place], -1) for record in records]] = 1.0
        return block[:, :width]

    return _Branch(fields=branch.fields, fill=fill, width=width)


def _hot(table: dict[Any, int], drop: Any, start: int) -> dict[Any, int]:
    def column(code: int) -> int:
        if drop is None:
            return start + code
        return -1 if code == drop else start + code - (code > drop)

    return {value: column(code) for value, code in table.items()}


# Numbers


def _imputed_values(branch: _Branch, imputer: Any) -> _Branch:
    _require_imputable(imputer)
    known = dict(branch.instead)
    filled = {place: value for (place, _), value in zip(branch.fields, imputer.statistics_.tolist(), strict=True)}
    return replace(branch, instead=tuple({**filled, **known}.items()))


def _require_imputable(imputer: Any) -> None:
    if imputer.add_indicator or not (isinstance(imputer.missing_values, float) and math.isnan(imputer.missing_values)):
        raise UncompiledError("SimpleImputer adds indicators, or takes something other than NaN as missing.")
    if any(value is None or value != value for value in imputer.statistics_.tolist()):
        raise UncompiledError("SimpleImputer drops columns that were empty.")


def _operations(step: Any) -> tuple[Operation, ...]:
    """Return what a transformer does to an array; nothing for one that passes it on."""
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler

    if step is None or (isinstance(step, str) and step == "passthrough"):
        return ()
    if type(step) is FunctionTransformer and step.func is None:
        return ()  # what a ColumnTransformer makes of "passthrough"
    known: list[tuple[type, Callable[[Any], Operation]]] = [
        (StandardScaler, _standard),
        (MinMaxScaler, _min_max),
        (SimpleImputer, _impute),
    ]
    for kind, made in known:
        if type(step) is kind and not _wants_frames(step):
            return (made(step),)
    raise UncompiledError(f"{type(step).__name__} is not known to the compiler.")


def _standard(scaler: Any) -> Operation:
    def scale(block: "Block") -> "Block":
        if scaler.with_mean:
            block -= scaler.mean_
        if scaler.with_std:
            block /= scaler.scale_
        return block

    return scale


def _min_max(scaler: Any) -> Operation:
    import numpy as np

    def scale(block: "Block") -> "Block":
        block *= scaler.scale_
        block += scaler.min_
        return np.clip(block, *scaler.feature_range, out=block) if scaler.clip else block

    return scale


def _impute(imputer: Any) -> Operation:
    import numpy as np

    _require_imputable(imputer)
    statistics = imputer.statistics_.astype(np.float64)

    def fill(block: "Block") -> "Block":
        return np.where(np.isnan(block), statistics, block)

    return fill


# Estimators


def answers_of(estimator: Any, block: Any) -> "tuple[NDArray[Any], NDArray[Any]]":
    """Return an estimator's scores and predictions; from one pass through it, where it is known how.

    Returns
    -------
    scores : ndarray of shape (n_samples,), or (n_samples, n_classes) for more than two classes
        As `Predictor.scores` has them.
    predictions : ndarray of shape (n_samples,)
    """
    from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
    from sklearn.tree import DecisionTreeClassifier

    if not hasattr(estimator, "predict_proba"):
        predicted = estimator.predict(block)
        return predicted, predicted
    if isinstance(estimator, TunedThresholdClassifierCV | FixedThresholdClassifier):
        return _by_threshold(estimator, block)
    if type(estimator) is HistGradientBoostingClassifier:
        return _boosted(estimator, block)
    probabilities = estimator.predict_proba(block)
    if type(estimator) in {RandomForestClassifier, ExtraTreesClassifier, DecisionTreeClassifier}:
        return _scores(probabilities), estimator.classes_.take(probabilities.argmax(axis=1), axis=0)
    return _scores(probabilities), estimator.predict(block)


def _scores(probabilities: "NDArray[Any]") -> "NDArray[Any]":
    return probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities


def _boosted(estimator: Any, block: Any) -> "tuple[NDArray[Any], NDArray[Any]]":
    # Its two methods begin with the same walk through all trees.
    raw = estimator._raw_predict(block)
    codes = (raw.ravel() > 0).astype(int) if raw.shape[1] == 1 else raw.argmax(axis=1)
    return _scores(estimator._loss.predict_proba(raw)), estimator.classes_[codes]


def _by_threshold(estimator: Any, block: Any) -> "tuple[NDArray[Any], NDArray[Any]]":
    probabilities = estimator.estimator_.predict_proba(block)
    threshold, positive = _threshold(estimator)
    if estimator.response_method == "decision_function":
        return _scores(probabilities), estimator.predict(block)
    place = 1 if positive is None else list(estimator.classes_).index(positive)
    above = probabilities[:, place] >= threshold
    return _scores(probabilities), estimator.classes_[(above if place == 1 else ~above).astype(int)]


def _threshold(estimator: Any) -> tuple[float, Any]:
    """Return a classifier's threshold, and the class whose probability is held against it; None is the second one."""
    if hasattr(estimator, "best_threshold_"):
        return estimator.best_threshold_, estimator._curve_scorer._get_pos_label()
    return (0.5 if estimator.threshold == "auto" else estimator.threshold), estimator.pos_label
