"""The request contract of a version: what its table's schema, its training rows and its answers say of requests."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ml_platform.compiled import strict_categories
from ml_platform.model_spec import ModelSpec
from ml_platform.request_contract import Field, RequestContract, Rule

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

BUCKETS = 20
OUTSIDE = 0.005
LEAST_ROWS_OF_A_CATEGORY, MOST_CATEGORIES = 5, 1_000
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


def contract_of(
    spec: ModelSpec, pipeline: Any, trained: "pd.DataFrame", scores: "NDArray[np.float64]"
) -> RequestContract:
    """Return the contract for requests to a candidate.

    Parameters
    ----------
    spec : ModelSpec
    pipeline : fitted scikit-learn Pipeline
        Where one of its encoders refuses values that it did not learn, the contract refuses them first.
    trained : DataFrame of shape (n_samples, n_columns)
        The rows that it was trained on.
    scores : ndarray of shape (n_samples,), or (n_samples, n_classes)
        What it says of rows that it was not trained on.
    """
    from ml_platform.contracts import rule_name

    columns = spec.table.to_schema().columns
    strict = strict_categories(pipeline, spec.features)
    unchecked = [rule_name(check) for check in spec.table.to_schema().checks]
    fields = list[Field]()
    for name in spec.features:
        of, left = _field(name, columns[name], str(trained[name].dtype))
        fields.append(_only_learnt(of, strict.get(name)))
        unchecked += [f"{name}: {rule}" for rule in left]
    classes = getattr(pipeline, "classes_", ())
    return RequestContract(
        model=spec.name,
        task=spec.task,
        features=tuple(fields),
        entity=_field(spec.entity, columns[spec.entity], str(trained[spec.entity].dtype))[0],
        classes=tuple(_python(one) for one in classes),
        positive=spec.positive,
        score_ends=_score_ends(spec, scores),
        ranges=dict(_ranges(fields, trained)),
        categories=dict(_categories(fields, trained)),
        logged=spec.logged,
        unchecked=tuple(unchecked),
    )


def _field(name: str, column: Any, dtype: str) -> tuple[Field, list[str]]:
    """Return a column as a field, and the names of its rules that a request cannot be held against."""
    from ml_platform.contracts import rule_name

    kind, facts = _kind(column)
    rules, left = list[Rule](), list[str]()
    for check in column.checks:
        if check.raise_warning:
            continue
        found = _rules(check, kind)
        rules += found or []
        left += [] if found else [rule_name(check)]
    required = bool(column.required)
    made = Field(
        name=name,
        kind=kind,
        dtype=dtype,
        nullable=bool(column.nullable) or not required,
        required=required,
        rules=tuple(rules),
        **facts,
    )
    return made, left + (["unique"] if column.unique else [])


def _kind(column: Any) -> tuple[Any, dict[str, Any]]:
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
        # Estimators that count in 32 bits refuse what is greater, and sums of such numbers stay finite in 64.
        greatest = float(np.finfo(np.float16 if plain == np.float16 else np.float32).max)
        return "float", {"least": -greatest, "most": greatest}
    return {"b": ("bool", {}), "M": ("time", {})}.get(letter, ("any", {}))


def _rules(check: Any, kind: str) -> list[Rule] | None:
    """Return a check of pandera's own as rules; None for any other, and for a bound of another kind."""
    from ml_platform.contracts import is_built_in

    if not is_built_in(check) or check.groupby or check.element_wise or not check.ignore_na:
        return None
    rules = list(_said(check.name, check.statistics))
    return rules if rules and all(_is_bound_of(rule, kind) for rule in rules) else None


def _said(name: str, said: dict[str, Any]) -> Iterator[Rule]:
    if name in BOUNDS:
        rule, value = BOUNDS[name]
        yield Rule(name=rule, value=_python(said[value]))
    elif name == "in_range":
        yield Rule(name="ge" if said["include_min"] else "gt", value=_python(said["min_value"]))
        yield Rule(name="le" if said["include_max"] else "lt", value=_python(said["max_value"]))
    elif name in {"isin", "notin"}:
        values = said["allowed_values" if name == "isin" else "forbidden_values"]
        yield Rule(name=name, value=sorted((_python(value) for value in values), key=str))
    elif name == "str_length":
        exact = said.get("exact_value")
        ends = [said.get("min_value"), said.get("max_value")] if exact is None else [exact, exact]
        yield Rule(name=name, value=ends)


def _is_bound_of(rule: Rule, kind: str) -> bool:
    if rule.name == "str_length":
        return kind == "str"
    values = rule.value if isinstance(rule.value, list) else [rule.value]
    if kind == "time":
        return all(isinstance(value, datetime) for value in values)
    kinds: dict[str, tuple[type, ...]] = {"int": (int, float), "float": (int, float), "str": (str,), "bool": (bool,)}
    return all(type(value) in kinds.get(kind, ()) for value in values)


def _python(value: Any) -> Any:
    if hasattr(value, "to_pydatetime"):
        return None if value.nanosecond else value.to_pydatetime()
    return value.item() if hasattr(value, "item") else value


def _only_learnt(of: Field, learnt: Sequence[Any] | None) -> Field:
    if learnt is None:
        return of
    values = [value for value in learnt if value is not None and value == value]
    rule = Rule(name="isin", value=sorted(values, key=str))
    return replace(of, rules=(rule, *of.rules), nullable=of.nullable and len(values) < len(learnt))


def _score_ends(spec: ModelSpec, scores: "NDArray[np.float64]") -> tuple[float, ...]:
    import numpy as np

    shares = np.arange(1, BUCKETS) / BUCKETS
    if spec.task != "regression":
        return tuple(shares.tolist())
    return tuple(sorted(set(np.quantile(scores, shares).tolist())))


def _ranges(fields: list[Field], trained: "pd.DataFrame") -> Iterator[tuple[str, tuple[float, float]]]:
    for of in fields:
        if of.kind in {"int", "float"} and len(values := trained[of.name].dropna()):
            least, most = values.astype("float64").quantile([OUTSIDE, 1 - OUTSIDE]).tolist()
            yield of.name, (least, most)


def _categories(fields: list[Field], trained: "pd.DataFrame") -> Iterator[tuple[str, tuple[Any, ...]]]:
    # A value that hardly anybody has may say who somebody is: it counts as unknown.
    for of in fields:
        if of.kind in {"str", "bool"}:
            counts = trained[of.name].value_counts()
            often = counts[counts >= LEAST_ROWS_OF_A_CATEGORY].index.tolist()
            if 0 < len(often) <= MOST_CATEGORIES:
                yield of.name, tuple(sorted(often))
