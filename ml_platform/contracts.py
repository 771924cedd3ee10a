"""A pandera schema as one query: its built-in checks become Polars expressions, the others are named as left over.

The schema stays the only thing that an author writes. A check is compiled only where Polars is known to name the same
rows as pandera on pandas would; whatever is not certain (another type, a regular expression that two libraries read
differently, Python code) is left to pandera.
"""

import operator
import re
from collections.abc import Callable, Iterator, Sequence
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
# What an author's check may raise for what it is shown: that is no fault of the platform.
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
    "newer than published": "must be newer than what is published",
    "finite": "must be finite",
    "not in the future": "must not be in the future",
}
# What Python and Rust read alike: no look-around, no alternatives, no \d or \w, whose Unicode versions differ.
PLAIN_PATTERN = re.compile(
    r"\^?(?:(?:[A-Za-z0-9 _@:;,/<>=!#%'\"~`&-]|\\[.+*?()\[\]{}|$^/-]|\[\^?(?:[A-Za-z0-9_ ]|[A-Z]-[A-Z]|[a-z]-[a-z]"
    r"|[0-9]-[0-9])+\]|[.()])(?:[*+?]|\{[0-9]+(?:,[0-9]*)?\})?)*\$?"
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule that a row keeps or breaks by itself.

    Parameters
    ----------
    columns : tuple of str
        What it speaks of, and whose values explain why a row broke it.
    check, name : str
        The data check that it counts for, and what people call it.
    broken : polars Expr
        True where a row breaks it; null counts as kept.
    """

    columns: tuple[str, ...]
    check: str
    name: str
    broken: pl.Expr


@dataclass(frozen=True, kw_only=True)
class UniqueRule:
    """Columns whose values together come once.

    Parameters
    ----------
    columns, check, name
        As of a `Rule`.
    keep : str
        Which of several rows with one key is still good: the first, the last or none.
    shown : tuple of str
        The columns whose values name a row, if fewer than `columns` do.
    """

    columns: tuple[str, ...]
    check: str
    name: str
    keep: Keep
    shown: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PanderaRule:
    """A check that pandera itself runs, on one column, or on whole rows where `column` is None."""

    column: str | None
    name: str
    check: Any


@dataclass(frozen=True, kw_only=True)
class Contract:
    """A schema, compiled; `empty` holds, by column, what is true where a value is missing that must not be."""

    rules: list[Rule] = field(default_factory=list)
    unique: list[UniqueRule] = field(default_factory=list)
    left_over: list[PanderaRule] = field(default_factory=list)
    empty: dict[str, pl.Expr] = field(default_factory=dict)


def compile_contract(schema: Any, names: Sequence[str], *, native: bool = True) -> Contract:
    """Compile a pandera DataFrameSchema for a batch that has the schema's columns and types.

    Parameters
    ----------
    schema : pandera DataFrameSchema
    names : sequence of str
        The batch's columns; a column that is not required may be missing.
    native : bool
        False leaves every check to pandera: the slow way, which the fast one is tested against.
    """
    contract = Contract()
    for name, column in _columns(schema, names):
        _compile_column(contract, name, column, native)
    for check in _deciding(schema.checks):
        rule = _compile_row_check(contract, schema, check) if native else None
        if rule is None:
            contract.left_over.append(PanderaRule(column=None, name=rule_name(check), check=check))
        else:
            contract.rules.append(rule)
    for columns in _unique_groups(schema, names):
        keep = KEEP[schema.report_duplicates]
        contract.unique.append(UniqueRule(columns=columns, check="keys", name="multiple_fields_uniqueness", keep=keep))
    return contract


def rule_name(check: Any) -> str:
    """Return what pandera calls a check in its failure cases."""
    return str(check.error or check.name)


def in_words(rule: str) -> str:
    """Return what a rule asks of a value as the rest of a sentence; rules that have no words here are named."""
    name, _, said = rule.partition("(")
    if name in WORDS and said.endswith(")"):
        return f"{WORDS[name]} {said[:-1]}"
    return WORDS.get(rule, f"breaks {rule}")


def missing(name: str, kind: str) -> pl.Expr:
    """Return the expression that is true where pandas would call a value missing: NaN is missing too."""
    column = pl.col(name)
    return column.is_null() | column.is_nan() if kind.startswith("float") else column.is_null()


def kind_of(column: Any) -> str:
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


def _columns(schema: Any, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for pattern, column in schema.columns.items():
        if column.regex:
            yield from ((name, column) for name in names if re.match(pattern, name))
        elif pattern in names:
            yield pattern, column


def _deciding(checks: Sequence[Any]) -> list[Any]:
    """Return the checks that reject something: an author may declare one that only warns."""
    return [check for check in checks if not check.raise_warning]


def _unique_groups(schema: Any, names: Sequence[str]) -> list[tuple[str, ...]]:
    declared = schema.unique or []
    groups = [declared] if all(isinstance(name, str) for name in declared) else declared
    there = [tuple(name for name in group if name in names) for group in groups]
    return [group for group in there if group]


def _compile_column(contract: Contract, name: str, column: Any, native: bool) -> None:
    kind = kind_of(column)
    if not column.nullable:
        empty = missing(name, kind)
        contract.empty[name] = empty
        contract.rules.append(Rule(columns=(name,), check="values", name="not_nullable", broken=empty))
    for check in _deciding(column.checks):
        broken = _broken(name, kind, column, check) if native else None
        if broken is None:
            contract.left_over.append(PanderaRule(column=name, name=rule_name(check), check=check))
        else:
            contract.rules.append(Rule(columns=(name,), check="values", name=rule_name(check), broken=broken))
    if column.unique:
        keep = KEEP[column.report_duplicates]
        contract.unique.append(UniqueRule(columns=(name,), check="values", name="field_uniqueness", keep=keep))


def _broken(name: str, kind: str, column: Any, check: Any) -> pl.Expr | None:
    """Return the expression that is true where a value breaks a built-in check; None where pandera must say so."""
    if not is_built_in(check) or not check.ignore_na or check.groupby or check.element_wise:
        return None
    kept = _kept(pl.col(name), kind, column, check.name, check.statistics)
    # pandera does not ask a missing value.
    return None if kept is None else ~kept & ~missing(name, kind)


def is_built_in(check: Any) -> bool:
    """Tell a check of pandera's own from an author's of the same name: pandera copies them, and names what it runs."""
    from pandera.api.function_dispatch import Dispatcher

    return isinstance(check._check_fn, Dispatcher) and check._check_fn.__name__ == check.name


def _kept(column: pl.Expr, kind: str, declared: Any, name: str, said: dict[str, Any]) -> pl.Expr | None:
    if name in COMPARE:
        compare, bound = COMPARE[name]
        value = _literal(kind, said[bound], declared)
        return None if value is None else compare(column, value)
    if name == "in_range":
        return _in_range(column, kind, declared, said)
    if name in {"isin", "notin"}:
        return _among(column, kind, declared, name, said)
    return _text(column, name, said) if kind == "str" else None


def _in_range(column: pl.Expr, kind: str, declared: Any, said: dict[str, Any]) -> pl.Expr | None:
    least, most = (_literal(kind, said[bound], declared) for bound in ("min_value", "max_value"))
    if least is None or most is None:
        return None
    above = column >= least if said["include_min"] else column > least
    return above & (column <= most if said["include_max"] else column < most)


def _among(column: pl.Expr, kind: str, declared: Any, name: str, said: dict[str, Any]) -> pl.Expr | None:
    values = list(said["allowed_values" if name == "isin" else "forbidden_values"])
    if kind not in {"int", "float", "str"} or any(_literal(kind, value, declared) is None for value in values):
        return None
    there = _is_one_of(column, [float(value) for value in values] if kind == "float" else values)
    return there if name == "isin" else ~there


def _is_one_of(column: pl.Expr, values: list[Any]) -> pl.Expr:
    # Comparing with a few values one by one is several times as fast as looking each value up.
    if 0 < len(values) <= FEW_VALUES:
        return pl.any_horizontal(column == value for value in values)
    return column.is_in(values)


def _text(column: pl.Expr, name: str, said: dict[str, Any]) -> pl.Expr | None:
    if name == "str_length":
        return _length(column.str.len_chars(), said)
    if name in {"str_startswith", "str_endswith"} and isinstance(said["string"], str):
        kept: pl.Expr = (column.str.starts_with if name == "str_startswith" else column.str.ends_with)(said["string"])
        return kept
    pattern = said.get("pattern")
    if name not in {"str_matches", "str_contains"} or not isinstance(pattern, str):
        return None
    same = _same_everywhere(pattern)
    if same is None:
        return None
    contains: pl.Expr = column.str.contains(f"^(?:{same})" if name == "str_matches" else same)
    return contains


def _length(length: pl.Expr, said: dict[str, Any]) -> pl.Expr:
    exact, least, most = (said.get(bound) for bound in ("exact_value", "min_value", "max_value"))
    if exact is not None:
        return length == pl.lit(exact)
    above = pl.lit(value=True) if least is None else length >= pl.lit(least)
    return above if most is None else above & (length <= pl.lit(most))


def _same_everywhere(pattern: str) -> str | None:
    """Return a pattern as Rust must read it to agree with Python; None where it is not known to."""
    if not PLAIN_PATTERN.fullmatch(pattern) or "(?" in pattern:
        return None
    try:
        re.compile(pattern)
    except re.error:
        return None
    return f"{pattern[:-1]}\\n?\\z" if pattern.endswith("$") and not pattern.endswith("\\$") else pattern


def _literal(kind: str, value: object, column: Any) -> pl.Expr | None:
    """Return a bound as a literal of the column's own type; None where the two types differ."""
    if kind == "int" and type(value) is int and -(2**63) <= value < 2**63:
        return pl.lit(value, dtype=pl.Int64)
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53:
        return pl.lit(float(value), dtype=pl.Float64)
    if kind == "str" and type(value) is str:
        return pl.lit(value, dtype=pl.String)
    if kind == "time" and isinstance(value, datetime):
        return _moment(value, column)
    return None


def _moment(value: datetime, column: Any) -> pl.Expr | None:
    import pandas as pd

    zone = getattr(column.dtype.type, "tz", None)
    if zone is not None and str(zone) not in available_timezones():
        return None  # Polars knows no fixed offset
    if (zone is None) != (value.tzinfo is None) or (isinstance(value, pd.Timestamp) and value.nanosecond):
        return None
    plain = pl.lit(datetime.fromisoformat(value.isoformat()))
    return plain if zone is None else plain.dt.convert_time_zone(str(zone))


# Checks of whole rows


class _Traced:
    """Stands for a column, or for a comparison, in a check that is called once to see what it compares."""

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
    """Compile a check such as ``frame["start"] <= frame["end"]``; None where it does anything else."""
    if check.element_wise or check.groupby or not check.ignore_na:
        return None
    frame = {
        name: _Traced(pl.col(name), frozenset([name]), str(column.dtype))
        for name, column in schema.columns.items()
        if not column.nullable and column.required and kind_of(column) != "other"
    }
    try:
        traced = check._check_fn(frame)
    except RAISED_BY_CHECKS:
        return None
    if not isinstance(traced, _Traced) or traced.dtype is not None:
        return None
    broken = ~traced.expression & ~pl.any_horizontal(contract.empty.values())
    return Rule(columns=tuple(sorted(traced.names)), check="values", name=rule_name(check), broken=broken)
