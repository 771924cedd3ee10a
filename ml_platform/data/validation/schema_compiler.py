"""Compile a pandera schema to one query: its built-in checks become Polars expressions, other checks are left over.

The schema stays an author's only declaration. A check is compiled only if Polars is known to select the same rows as
pandera on pandas; uncertain checks (other types, regular expressions that the two libraries read differently, Python
code) are left to pandera.
"""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from zoneinfo import available_timezones

import polars as pl

Keep = Literal["first", "last", "none"]
KEEP: dict[str, Keep] = {"exclude_first": "first", "exclude_last": "last", "all": "none"}
COMPARE: dict[str, tuple[Callable[[pl.Expr, pl.Expr], pl.Expr], str]] = {
    "equal_to": (operator.eq, "value"),
    "not_equal_to": (operator.ne, "value"),
    "greater_than": (operator.gt, "min_value"),
    "greater_than_or_equal_to": (operator.ge, "min_value"),
    "less_than": (operator.lt, "max_value"),
    "less_than_or_equal_to": (operator.le, "max_value"),
}
FEW_VALUES = 8
# Errors that an author's check may raise on its input; they are violations, not faults of the platform.
RAISED_BY_CHECKS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
WORDS = {
    "equal_to": "must be",
    "not_equal_to": "must not be",
    "greater_than": "must be greater than",
    "greater_than_or_equal_to": "must be at least",
    "less_than": "must be less than",
    "less_than_or_equal_to": "must be at most",
    "isin": "must be one of",
    "notin": "must be none of",
    "str_matches": "must match",
    "not_nullable": "must not be empty",
    "field_uniqueness": "must come once",
    "multiple_fields_uniqueness": "must come once together",
    "one row a time": "must come once at a time",
    "as published": "must have the values that are published for its time",
    "finite": "must be finite",
    "not in the future": "must not be in the future",
    "not an empty text": "must not be an empty text",
    "type": "must be",
    "fields": "the number of fields must be",
    "object": "must be one JSON object",
    "known_keys": "must have only keys of the contract",
    "key_uniqueness": "must come once in an object",
}
# Patterns with the same meaning in Python and Rust: no look-around, no alternatives, no \d or \w, whose Unicode
# versions differ.
PLAIN_PATTERN = re.compile(
    r"\^?(?:(?:[A-Za-z0-9 _@:;,/<>=!#%'\"~`&-]|\\[.+*?()\[\]{}|$^/-]|\[\^?(?:[A-Za-z0-9_ ]|[A-Z]-[A-Z]|[a-z]-[a-z]"
    r"|[0-9]-[0-9])+\]|[.()])(?:[*+?]|\{[0-9]+(?:,[0-9]*)?\})?)*\$?"
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule on single rows.

    Parameters
    ----------
    columns : tuple of str
        Columns of the rule; their values explain a violation.
    check, name : str
        The data check that counts the violations, and the rule's name.
    broken : polars Expr
        True for rows that break the rule; null counts as valid.
    """

    columns: tuple[str, ...]
    check: str
    name: str
    broken: pl.Expr


@dataclass(frozen=True, kw_only=True)
class UniqueRule:
    """A rule that the combined values of some columns are unique.

    Parameters
    ----------
    columns, check, name
        As of a `Rule`.
    keep : str
        The valid one of several rows with the same key: the first, the last or none.
    shown : tuple of str
        The columns that a violation shows; empty shows `columns`.
    """

    columns: tuple[str, ...]
    check: str
    name: str
    keep: Keep
    shown: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PanderaRule:
    """A check that pandera runs on one column, or on whole rows if `column` is None."""

    column: str | None
    name: str
    check: Any


@dataclass(frozen=True, kw_only=True)
class Contract:
    """A compiled schema; `empty` holds, by column, the expression that is true where a required value is missing."""

    rules: list[Rule] = field(default_factory=list)
    unique: list[UniqueRule] = field(default_factory=list)
    left_over: list[PanderaRule] = field(default_factory=list)
    empty: dict[str, pl.Expr] = field(default_factory=dict)


def compile_contract(schema: Any, names: Sequence[str], *, native: bool = True) -> Contract:
    """Compile a pandera DataFrameSchema for a batch with the schema's columns and types.

    Parameters
    ----------
    schema : pandera DataFrameSchema
    names : sequence of str
        The batch's columns; optional columns of the schema may be missing.
    native : bool
        False leaves every check to pandera: slower, the reference in tests of the compiled checks.
    """
    contract = Contract()
    for pattern, column in schema.columns.items():
        for name in names:
            if re.match(pattern, name) if column.regex else name == pattern:
                _compile_column(contract, name, column, native)
    for check in _select_rejecting(schema.checks):
        rule = _compile_row_check(contract, schema, check) if native else None
        if rule is None:
            contract.left_over.append(PanderaRule(column=None, name=rule_name(check), check=check))
        else:
            contract.rules.append(rule)
    declared, keep = schema.unique or [], KEEP[schema.report_duplicates]
    for group in [declared] if all(isinstance(name, str) for name in declared) else declared:
        columns = tuple(name for name in group if name in names)
        if columns:
            together = UniqueRule(columns=columns, check="keys", name="multiple_fields_uniqueness", keep=keep)
            contract.unique.append(together)
    return contract


def rule_name(check: Any) -> str:
    """Return the name of a check in pandera's failure cases."""
    return str(check.error or check.name)


def in_words(rule: str) -> str:
    """Return a rule's requirement as the end of a sentence; an unknown rule gives "breaks" and its name."""
    name, _, arguments = rule.partition("(")
    if name in WORDS and arguments.endswith(")"):
        return f"{WORDS[name]} {arguments[:-1]}"
    return WORDS.get(rule, f"breaks {rule}")


def missing(name: str, kind: str) -> pl.Expr:
    """Return the expression that is true where pandas treats a value as missing, NaN included."""
    column = pl.col(name)
    return column.is_null() | column.is_nan() if kind.startswith("float") else column.is_null()


def infer_column_kind(column: Any) -> str:
    """Return ``int``, ``float``, ``float32``, ``str``, ``time`` or ``other`` for a column of a schema."""
    import pandas as pd

    dtype = column.dtype.type if column.dtype is not None else None
    if isinstance(dtype, pd.StringDtype):
        return "str"
    if isinstance(dtype, pd.DatetimeTZDtype):
        return "time"
    letter, size = getattr(dtype, "kind", ""), getattr(dtype, "itemsize", 0)
    if letter == "f":
        return "float" if size == 8 else "float32"
    return {"i": "int", "M": "time"}.get(letter, "other")


def _select_rejecting(checks: Sequence[Any]) -> list[Any]:
    """Return the checks that reject rows, without those that an author declares as warnings."""
    return [check for check in checks if not check.raise_warning]


def _compile_column(contract: Contract, name: str, column: Any, native: bool) -> None:
    kind = infer_column_kind(column)
    if not column.nullable:
        empty = missing(name, kind)
        contract.empty[name] = empty
        contract.rules.append(Rule(columns=(name,), check="values", name="not_nullable", broken=empty))
    for check in _select_rejecting(column.checks):
        plain = is_built_in(check) and check.ignore_na and not check.groupby and not check.element_wise
        valid = _compile_check(pl.col(name), kind, column, check.name, check.statistics) if native and plain else None
        if valid is None:
            contract.left_over.append(PanderaRule(column=name, name=rule_name(check), check=check))
        else:
            broken = ~valid & ~missing(name, kind)  # pandera does not check missing values
            contract.rules.append(Rule(columns=(name,), check="values", name=rule_name(check), broken=broken))
    if column.unique:
        keep = KEEP[column.report_duplicates]
        contract.unique.append(UniqueRule(columns=(name,), check="values", name="field_uniqueness", keep=keep))


def is_built_in(check: Any) -> bool:
    """Return True for pandera's own checks, False for an author's check of the same name.

    Pandera copies its checks, so the dispatcher's name is compared.
    """
    from pandera.api.function_dispatch import Dispatcher

    return isinstance(check._check_fn, Dispatcher) and check._check_fn.__name__ == check.name


def _compile_check(column: pl.Expr, kind: str, declared: Any, name: str, statistics: dict[str, Any]) -> pl.Expr | None:
    """Return the expression that is true where a value passes a built-in check; None leaves it to pandera."""
    if name in COMPARE:
        compare, bound = COMPARE[name]
        value = _make_literal(kind, statistics[bound], declared)
        return None if value is None else compare(column, value)
    if name == "in_range":
        low, high = (_make_literal(kind, statistics[bound], declared) for bound in ("min_value", "max_value"))
        if low is None or high is None:
            return None
        above = column >= low if statistics["include_min"] else column > low
        return above & (column <= high if statistics["include_max"] else column < high)
    if name not in {"isin", "notin"}:
        return _compile_text_check(column, name, statistics) if kind == "str" else None
    values = list(statistics["allowed_values" if name == "isin" else "forbidden_values"])
    if kind not in {"int", "float", "str"} or any(_make_literal(kind, value, declared) is None for value in values):
        return None
    values = [float(value) for value in values] if kind == "float" else values
    # Comparing with a few values one by one is several times as fast as looking each value up.
    few = 0 < len(values) <= FEW_VALUES
    member = pl.any_horizontal(column == value for value in values) if few else column.is_in(values)
    return member if name == "isin" else ~member


def _compile_text_check(column: pl.Expr, name: str, statistics: dict[str, Any]) -> pl.Expr | None:
    if name == "str_length":
        length = column.str.len_chars()
        exact, minimum, maximum = (statistics.get(bound) for bound in ("exact_value", "min_value", "max_value"))
        if exact is not None:
            return length == pl.lit(exact)
        above = pl.lit(value=True) if minimum is None else length >= pl.lit(minimum)
        return above if maximum is None else above & (length <= pl.lit(maximum))
    if name in {"str_startswith", "str_endswith"} and isinstance(statistics["string"], str):
        test = column.str.starts_with if name == "str_startswith" else column.str.ends_with
        valid: pl.Expr = test(statistics["string"])
        return valid
    pattern = statistics.get("pattern")
    if name not in {"str_matches", "str_contains"} or not isinstance(pattern, str):
        return None
    same = _same_everywhere(pattern)
    if same is None:
        return None
    contains: pl.Expr = column.str.contains(f"^(?:{same})" if name == "str_matches" else same)
    return contains


def _same_everywhere(pattern: str) -> str | None:
    """Return a pattern that matches in Rust as it does in Python; None if that is uncertain."""
    if not PLAIN_PATTERN.fullmatch(pattern) or "(?" in pattern:
        return None
    try:
        re.compile(pattern)
    except re.error:
        return None
    return f"{pattern[:-1]}\\n?\\z" if pattern.endswith("$") and not pattern.endswith("\\$") else pattern


def _make_literal(kind: str, value: object, column: Any) -> pl.Expr | None:
    """Return a bound as a literal of the column's type; None if the two types differ."""
    import pandas as pd

    if kind == "int" and type(value) is int and -(2**63) <= value < 2**63:
        return pl.lit(value, dtype=pl.Int64)
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53:
        return pl.lit(float(value), dtype=pl.Float64)
    if kind == "str" and type(value) is str:
        return pl.lit(value, dtype=pl.String)
    if kind != "time" or not isinstance(value, datetime):
        return None
    zone = getattr(column.dtype.type, "tz", None)
    if zone is not None and str(zone) not in available_timezones():
        return None  # Polars does not support fixed offsets
    if (zone is None) != (value.tzinfo is None) or (isinstance(value, pd.Timestamp) and value.nanosecond):
        return None
    plain = pl.lit(datetime.fromisoformat(value.isoformat()))
    return plain if zone is None else plain.dt.convert_time_zone(str(zone))


# Checks of whole rows


class _Traced:
    """Placeholder for a column or a comparison: calling a check with it records the check's comparisons."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, expression: pl.Expr, names: frozenset[str], dtype: object = None) -> None:
        self.expression, self.names, self.dtype = expression, names, dtype

    def _compare(self, compare: Callable[[pl.Expr, pl.Expr], pl.Expr], other: object) -> "_Traced":
        if not isinstance(other, _Traced) or self.dtype is None or self.dtype != other.dtype:
            raise TypeError("only columns of one type are compared")
        return _Traced(compare(self.expression, other.expression), self.names | other.names)

    def _combine(self, combine: Callable[[pl.Expr, pl.Expr], pl.Expr], other: object) -> "_Traced":
        if not isinstance(other, _Traced) or self.dtype is not None or other.dtype is not None:
            raise TypeError("only comparisons are combined")
        return _Traced(combine(self.expression, other.expression), self.names | other.names)

    def __lt__(self, other: object) -> "_Traced":
        return self._compare(operator.lt, other)

    def __le__(self, other: object) -> "_Traced":
        return self._compare(operator.le, other)

    def __gt__(self, other: object) -> "_Traced":
        return self._compare(operator.gt, other)

    def __ge__(self, other: object) -> "_Traced":
        return self._compare(operator.ge, other)

    def __eq__(self, other: object) -> "_Traced":  # type: ignore[override]
        return self._compare(operator.eq, other)

    def __ne__(self, other: object) -> "_Traced":  # type: ignore[override]
        return self._compare(operator.ne, other)

    def __and__(self, other: object) -> "_Traced":
        return self._combine(operator.and_, other)

    def __or__(self, other: object) -> "_Traced":
        return self._combine(operator.or_, other)

    def __invert__(self) -> "_Traced":
        if self.dtype is not None:
            raise TypeError("only a comparison is inverted")
        return _Traced(~self.expression, self.names)

    def __bool__(self) -> bool:
        raise TypeError("a column is neither true nor false")


def _compile_row_check(contract: Contract, schema: Any, check: Any) -> Rule | None:
    """Compile a check such as ``frame["start"] <= frame["end"]``; None for any other check."""
    if check.element_wise or check.groupby or not check.ignore_na:
        return None
    frame = {
        name: _Traced(pl.col(name), frozenset([name]), str(column.dtype))
        for name, column in schema.columns.items()
        if not column.nullable and column.required and infer_column_kind(column) != "other"
    }
    try:
        traced = check._check_fn(frame)
    except RAISED_BY_CHECKS:
        return None
    if not isinstance(traced, _Traced) or traced.dtype is not None:
        return None
    broken = ~traced.expression & ~pl.any_horizontal(contract.empty.values())
    return Rule(columns=tuple(sorted(traced.names)), check="values", name=rule_name(check), broken=broken)
