"""What a change lets into a model's data that its contract refused before, as far as a machine can decide it.

Compared is what `look` says of both contracts. A rule that is gone is missed only where what is left would let more in:
``ge(0)`` is kept by ``in_range(1, 9)``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Rule = Mapping[str, Any]
# Of what a rule bounds: the value itself, or the length of a text.
LENGTH = "str_length"
LOWER = {"greater_than": True, "greater_than_or_equal_to": False}
UPPER = {"less_than": True, "less_than_or_equal_to": False}
DECIDED = {*LOWER, *UPPER, "equal_to", "in_range", "isin", "notin", "not_equal_to", LENGTH}


class Weaker(NamedTuple):
    """A place of the contract, a column or the empty name for whole rows, and what became of it."""

    place: str
    kind: str
    before: str
    after: str


class _End(NamedTuple):
    """An end of a range, the greater the stricter; an upper end is negated. `excluded` says that it lies outside."""

    value: float
    excluded: bool


NO_END = _End(-math.inf, excluded=False)


def weaker_places(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Weaker]:
    """Yield where a contract refuses less than before, or something else that nobody can compare.

    Parameters
    ----------
    before, after : mapping
        By column: ``dtype``, ``demands`` and ``rules``; see `look`.
    """
    for place, was in before.items():
        now = after.get(place)
        if now is None:
            yield Weaker(place, "removed", _words(was["rules"]) or was["dtype"], "")
            continue
        if was["dtype"] != now["dtype"]:
            yield Weaker(place, "changed", was["dtype"], now["dtype"])
        for demand in was["demands"]:
            if not _demanded(demand, now["demands"]):
                yield Weaker(place, "loosened", demand, "not demanded")
        for rule in was["rules"]:
            if not _kept(rule, now["rules"]):
                # What has another pattern or other code may be stricter: nobody but a person can tell.
                other = not _decided(rule) and any(new["name"] == rule["name"] for new in now["rules"])
                kind = "changed" if other else "loosened"
                yield Weaker(place, kind, _words([rule]), _words(now["rules"]) or "no rule")


def _demanded(demand: str, now: Sequence[str]) -> bool:
    """Whether a demand still stands; what is unique by fewer columns is unique by more of them."""
    if not demand.startswith("unique: "):
        return demand in now
    columns = set(demand.removeprefix("unique: ").split(", "))
    left = (one.removeprefix("unique: ").split(", ") for one in now if one.startswith("unique: "))
    return any(columns.issuperset(one) for one in left)


def _words(rules: Sequence[Rule]) -> str:
    from ml_platform.contracts import in_words

    return "; ".join(in_words(rule["words"]) + (f" (code {rule['code']})" if rule["code"] else "") for rule in rules)


def _kept(was: Rule, rules: Sequence[Rule]) -> bool:
    """Whether these rules refuse all that a rule refused."""
    if any(all(was[part] == rule[part] for part in ("name", "says", "code")) for rule in rules):
        return True
    return _decided(was) and _refused(was, [rule for rule in rules if _decided(rule)])


def _decided(rule: Rule) -> bool:
    """Whether a machine knows what a rule refuses: an author's own is code, and a pattern may mean anything."""
    bounds = [rule["says"].get(end) for end in ("min_value", "max_value")]
    # Texts and times are left to people: in which order they stand depends on the column.
    return rule["name"] in DECIDED and not rule["code"] and not any(isinstance(bound, str) for bound in bounds)


def _refused(was: Rule, rules: Sequence[Rule]) -> bool:
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
    return all(max((end(rule) for rule in same), default=NO_END) >= end(was) for end in (_lower, _upper))


def _within(values: Sequence[Any], others: Sequence[Any]) -> bool:
    return all(value in others for value in values)


def _values(rule: Rule) -> list[Any] | None:
    """Return the only values that a rule lets in; ``None`` where they are not listed."""
    if rule["name"] == "equal_to":
        return [rule["says"]["value"]]
    found: list[Any] | None = rule["says"].get("allowed_values")
    return found


def _forbidden(rule: Rule) -> list[Any]:
    if rule["name"] == "not_equal_to":
        return [rule["says"]["value"]]
    found: list[Any] = rule["says"].get("forbidden_values", [])
    return found


def _lower(rule: Rule) -> _End:
    says = rule["says"]
    if (values := _numbers(rule)) is not None:
        return _End(min(values, default=math.inf), excluded=False)
    least = says.get("exact_value") if says.get("exact_value") is not None else says.get("min_value")
    if least is None:
        return NO_END
    return _End(least, LOWER.get(rule["name"], not says.get("include_min", True)))


def _upper(rule: Rule) -> _End:
    says = rule["says"]
    if (values := _numbers(rule)) is not None:
        return _End(-max(values, default=-math.inf), excluded=False)
    most = says.get("exact_value") if says.get("exact_value") is not None else says.get("max_value")
    if most is None:
        return NO_END
    return _End(-most, UPPER.get(rule["name"], not says.get("include_max", True)))


def _numbers(rule: Rule) -> list[float] | None:
    """Return the only numbers that a rule lets in; ``None`` where it lists none, or texts."""
    values = _values(rule)
    return values if values is not None and all(isinstance(value, int | float) for value in values) else None
