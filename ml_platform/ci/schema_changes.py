"""Find rules of a model's contract that a change weakens, as far as a program can decide it.

It compares the output of `inspect_model` for both contracts. A removed rule counts only if the remaining rules accept
more: ``in_range(1, 9)`` replaces ``ge(0)``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Rule = Mapping[str, Any]
LENGTH = "str_length"  # bounds the length of a text; all other rules bound the value itself
LOWER = {"greater_than": True, "greater_than_or_equal_to": False}
UPPER = {"less_than": True, "less_than_or_equal_to": False}
DECIDED = {*LOWER, *UPPER, "equal_to", "in_range", "isin", "notin", "not_equal_to", LENGTH}


class WeakenedRule(NamedTuple):
    """A removed, loosened or changed part of a contract; `place` is a column, or empty for whole rows."""

    place: str
    kind: str
    before: str
    after: str


class _End(NamedTuple):
    """An end of a range; a greater end is stricter, so upper ends are negated. `excluded` is True for an open end."""

    value: float
    excluded: bool


NO_END = _End(-math.inf, excluded=False)


def find_weakened_rules(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[WeakenedRule]:
    """Yield the parts of a contract that accept more than before, or that a program cannot compare.

    Parameters
    ----------
    before, after : mapping
        ``dtype``, ``demands`` and ``rules`` by column; see `inspect_model`.
    """
    for place, was in before.items():
        now = after.get(place)
        if now is None:
            yield WeakenedRule(place, "removed", _words(was["rules"]) or was["dtype"], "")
            continue
        if was["dtype"] != now["dtype"]:
            yield WeakenedRule(place, "changed", was["dtype"], now["dtype"])
        # Rows that are unique by fewer columns are unique by more of them.
        groups = [set(one.removeprefix("unique: ").split(", ")) for one in now["demands"] if one.startswith("unique: ")]
        for demand in was["demands"]:
            columns = set(demand.removeprefix("unique: ").split(", ")) if demand.startswith("unique: ") else set()
            if demand not in now["demands"] and not any(columns >= group for group in groups):
                yield WeakenedRule(place, "loosened", demand, "not required")
        for rule in was["rules"]:
            if not _is_kept(rule, now["rules"]):
                # Another pattern or other code may be stricter: a reviewer must decide.
                is_replaced = not _is_comparable(rule) and any(new["name"] == rule["name"] for new in now["rules"])
                kind = "changed" if is_replaced else "loosened"
                yield WeakenedRule(place, kind, _words([rule]), _words(now["rules"]) or "no rule")


def _words(rules: Sequence[Rule]) -> str:
    from ml_platform.data.validation.schema_compiler import in_words

    return "; ".join(in_words(rule["words"]) + (f" (code {rule['code']})" if rule["code"] else "") for rule in rules)


def _is_kept(was: Rule, rules: Sequence[Rule]) -> bool:
    """Return True if these rules refuse every value that a rule refused."""
    if any(all(was[part] == rule[part] for part in ("name", "says", "code")) for rule in rules):
        return True
    if not _is_comparable(was):
        return False
    rules = [rule for rule in rules if _is_comparable(rule)]
    name = was["name"]
    sets = [values for rule in rules if (values := _values(rule)) is not None]
    if name in {"isin", "equal_to"}:
        return any(_within(values, _values(was) or []) for values in sets)
    if name in {"notin", "not_equal_to"}:
        forbidden = _forbidden(was)
        return any(_within(forbidden, _forbidden(rule)) for rule in rules) or any(
            not any(value in forbidden for value in values) for values in sets
        )
    same = [rule for rule in rules if (rule["name"] == LENGTH) == (name == LENGTH)]
    return all(
        max((_end(rule, lower=lower) for rule in same), default=NO_END) >= _end(was, lower=lower)
        for lower in (True, False)
    )


def _is_comparable(rule: Rule) -> bool:
    """Return True if a program can compare a rule: not for an author's own code, nor for patterns."""
    bounds = [rule["says"].get(end) for end in ("min_value", "max_value")]
    # The order of texts and times depends on the column: a reviewer compares them.
    return rule["name"] in DECIDED and not rule["code"] and not any(isinstance(bound, str) for bound in bounds)


def _within(values: Sequence[Any], others: Sequence[Any]) -> bool:
    return all(value in others for value in values)


def _values(rule: Rule) -> list[Any] | None:
    """Return the values that a rule accepts; ``None`` if it does not list them."""
    if rule["name"] == "equal_to":
        return [rule["says"]["value"]]
    values: list[Any] | None = rule["says"].get("allowed_values")
    return values


def _forbidden(rule: Rule) -> list[Any]:
    if rule["name"] == "not_equal_to":
        return [rule["says"]["value"]]
    values: list[Any] = rule["says"].get("forbidden_values", [])
    return values


def _end(rule: Rule, *, lower: bool) -> _End:
    """Return the lower or upper end of the values that a rule accepts."""
    says, values, sign = rule["says"], _values(rule), 1 if lower else -1
    if values is not None and all(isinstance(value, int | float) for value in values):
        return _End(min((sign * value for value in values), default=math.inf), excluded=False)
    side, strict = ("min", LOWER) if lower else ("max", UPPER)
    exact = says.get("exact_value")
    bound = exact if exact is not None else says.get(f"{side}_value")
    if bound is None:
        return NO_END
    return _End(sign * bound, strict.get(rule["name"], not says.get(f"include_{side}", True)))
