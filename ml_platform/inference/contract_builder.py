"""Build the request contract of a version from its model's contract, training rows and scores."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ml_platform.inference.pipeline_compiler import strict_categories
from ml_platform.inference.request_contract import Field, RequestContract, Rule
from ml_platform.model_spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

BUCKETS = 20
OUTSIDE = 0.005
MIN_ROWS_PER_CATEGORY, MAX_CATEGORIES = 5, 1_000
BOUNDS = {
    "equal_to": ("eq", "value"),
    "not_equal_to": ("ne", "value"),
    "greater_than": ("gt", "min_value"),
    "greater_than_or_equal_to": ("ge", "min_value"),
    "less_than": ("lt", "max_value"),
    "less_than_or_equal_to": ("le", "max_value"),
    "str_startswith": ("str_startswith", "string"),
    "str_endswith": ("str_endswith", "string"),
    "str_matches": ("str_matches", "pattern"),
    "str_contains": ("str_contains", "pattern"),
}


def build_request_contract(
    spec: ModelSpec, pipeline: Any, trained: "pd.DataFrame", scores: "NDArray[np.float64]"
) -> RequestContract:
    """Build the contract for requests to a candidate.

    Parameters
    ----------
    spec : ModelSpec
    pipeline : fitted scikit-learn Pipeline
        If an encoder of the pipeline refuses unknown values, the contract refuses them, too.
    trained : DataFrame of shape (n_samples, n_columns)
        The training rows.
    scores : ndarray of shape (n_samples,), or (n_samples, n_classes)
        The candidate's scores of rows on which it was not trained.
    """
    import numpy as np

    from ml_platform.data.validation.schema_compiler import rule_name

    schema = spec.contract.to_schema()
    learnt = strict_categories(pipeline, spec.features)
    unchecked = [rule_name(check) for check in schema.checks]
    features = list[Field]()
    for name in spec.features:
        feature, others = _build_field(name, schema.columns[name], str(trained[name].dtype), learnt.get(name))
        features.append(feature)
        unchecked += [f"{name}: {rule}" for rule in others]
    entity, _ = _build_field(spec.entity, schema.columns[spec.entity], str(trained[spec.entity].dtype))
    score_ends = np.arange(1, BUCKETS) / BUCKETS
    if spec.task == "regression":
        score_ends = np.unique(np.quantile(scores, score_ends))
    ranges, categories = _summarise(features, trained)
    return RequestContract(
        model=spec.name,
        task=spec.task,
        features=tuple(features),
        entity=entity,
        classes=tuple(map(_to_python, getattr(pipeline, "classes_", ()))),
        positive=spec.positive,
        score_ends=tuple(score_ends.tolist()),
        ranges=ranges,
        categories=categories,
        logged=spec.logged_features,
        unchecked=tuple(unchecked),
    )


def _build_field(name: str, column: Any, dtype: str, learnt: Sequence[Any] | None = None) -> tuple[Field, list[str]]:
    """Return a column as a field, and the names of its rules that requests cannot be checked against.

    `learnt` are the only values that the column's encoder accepts; None if it accepts any.
    """
    from ml_platform.data.validation.schema_compiler import rule_name

    kind, limits = _find_kind(column)
    rules, unchecked, required = list[Rule](), list[str](), bool(column.required)
    for check in column.checks:
        if check.raise_warning:
            continue
        converted = _convert_check(check, kind)
        rules += converted
        unchecked += [] if converted else [rule_name(check)]
    nullable = bool(column.nullable) or not required
    if learnt is not None:
        values = [value for value in learnt if value is not None and value == value]
        rules.insert(0, Rule(name="isin", value=sorted(values, key=str)))
        nullable = nullable and len(values) < len(learnt)
    field = Field(name=name, kind=kind, dtype=dtype, nullable=nullable, required=required, rules=tuple(rules), **limits)
    return field, unchecked + (["unique"] if column.unique else [])


def _find_kind(column: Any) -> tuple[Any, dict[str, Any]]:
    """Return the kind of a column's field, and the field's limits as keywords."""
    import numpy as np
    import pandas as pd

    dtype = column.dtype.type if column.dtype is not None else None
    if isinstance(dtype, pd.StringDtype):
        return "str", {}
    if isinstance(dtype, pd.DatetimeTZDtype):
        return "time", {"zone": True}
    letter, plain = getattr(dtype, "kind", ""), getattr(dtype, "numpy_dtype", dtype)
    if letter in {"i", "u"}:
        ends = np.iinfo(plain)
        return "int", {"least": int(ends.min), "most": int(ends.max)}
    if letter == "f":
        # Estimators that compute in 32 bits refuse greater numbers; sums of these stay finite in 64 bits.
        greatest = float(np.finfo(np.float16 if plain == np.float16 else np.float32).max)
        return "float", {"least": -greatest, "most": greatest}
    return {"b": ("bool", {}), "M": ("time", {})}.get(letter, ("any", {}))


def _convert_check(check: Any, kind: str) -> list[Rule]:
    """Return one of pandera's built-in checks as rules; none for any other check, or if a bound is of another kind."""
    from ml_platform.data.validation.schema_compiler import is_built_in

    if not is_built_in(check) or check.groupby or check.element_wise or not check.ignore_na:
        return []
    name, statistics, rules = check.name, check.statistics, list[Rule]()
    if name in BOUNDS:
        rule, bound = BOUNDS[name]
        rules = [Rule(name=rule, value=_to_python(statistics[bound]))]
    elif name == "in_range":
        start, end = "ge" if statistics["include_min"] else "gt", "le" if statistics["include_max"] else "lt"
        rules = [Rule(name=start, value=_to_python(statistics["min_value"]))]
        rules += [Rule(name=end, value=_to_python(statistics["max_value"]))]
    elif name in {"isin", "notin"}:
        values = statistics["allowed_values" if name == "isin" else "forbidden_values"]
        rules = [Rule(name=name, value=sorted(map(_to_python, values), key=str))]
    elif name == "str_length":
        exact = statistics.get("exact_value")
        ends = [statistics.get("min_value"), statistics.get("max_value")] if exact is None else [exact, exact]
        rules = [Rule(name=name, value=ends)]
    return rules if all(_is_valid_bound(rule, kind) for rule in rules) else []


def _is_valid_bound(rule: Rule, kind: str) -> bool:
    if rule.name == "str_length":
        return kind == "str"
    values = rule.value if isinstance(rule.value, list) else [rule.value]
    if kind == "time":
        return all(isinstance(value, datetime) for value in values)
    kinds: dict[str, tuple[type, ...]] = {"int": (int, float), "float": (int, float), "str": (str,), "bool": (bool,)}
    return all(type(value) in kinds.get(kind, ()) for value in values)


def _to_python(value: Any) -> Any:
    if hasattr(value, "to_pydatetime"):
        return None if value.nanosecond else value.to_pydatetime()
    return value.item() if hasattr(value, "item") else value


def _summarise(
    features: list[Field], trained: "pd.DataFrame"
) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[Any, ...]]]:
    """Return the ranges of numeric features, and the frequent categories of those of text or truth values."""
    ranges, categories = dict[str, tuple[float, float]](), dict[str, tuple[Any, ...]]()
    for feature in features:
        values = trained[feature.name].dropna()
        if feature.kind in {"int", "float"} and len(values):
            least, most = values.astype("float64").quantile([OUTSIDE, 1 - OUTSIDE]).tolist()
            ranges[feature.name] = (least, most)
        elif feature.kind in {"str", "bool"}:
            # A rare value may identify a person: it counts as unknown.
            counts = values.value_counts()
            frequent = counts[counts >= MIN_ROWS_PER_CATEGORY].index.tolist()
            if 0 < len(frequent) <= MAX_CATEGORIES:
                categories[feature.name] = tuple(sorted(frequent))
    return ranges, categories
