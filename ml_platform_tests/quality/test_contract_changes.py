"""Contracts as authors write them, before and after: what the second lets in that the first refused."""

import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pandas as pd
import pandera.pandas as pa
import pytest

from ml_platform.model_spec import ModelSpec
from ml_platform.quality import look
from ml_platform.quality.contract_changes import weaker_places

BEFORE: dict[str, Any] = {"ge": 0, "le": 100}
ENDS = {"min_value": 0, "max_value": 9}
Time = pd.DatetimeTZDtype(unit="us", tz="UTC")


def contract(dtype: Any = int, *, config: dict[str, Any] | None = None, members: Any = None, **field: Any) -> Any:
    """Return what `look` says of a contract with one column, ``visits``."""
    given = {"__annotations__": {"visits": dtype}, "visits": pa.Field(**field), **(members or {})}
    made: Any = type(
        "Rows", (pa.DataFrameModel,), {**given, "Config": type("Config", (), {"strict": True, **(config or {})})}
    )
    return look.contract_of(made.to_schema())


def kinds(before: Any, after: Any) -> list[tuple[str, str]]:
    return [(found.place, found.kind) for found in weaker_places(before, after)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (BEFORE, {"ge": 0}),
        (BEFORE, {"ge": -1, "le": 100}),
        (BEFORE, {"ge": 0, "le": 101}),
        (BEFORE, {"ge": 0, "le": 100, "nullable": True}),
        ({"gt": 0}, {"ge": 0}),
        ({"lt": 9}, {"le": 9}),
        ({"in_range": ENDS}, {"ge": 0}),
        ({"in_range": {**ENDS, "include_max": False}}, BEFORE),
        ({"in_range": {**ENDS, "include_min": False}}, {"in_range": ENDS}),
        ({"in_range": {**ENDS, "include_max": False}}, {"in_range": ENDS}),
        ({"le": 100}, {"isin": [0, 101]}),
        ({"isin": [1, 2]}, {"isin": [1, 2, 3]}),
        ({"isin": [1, 2]}, {"ge": 1, "le": 2}),
        ({"notin": [1, 2]}, {"notin": [1]}),
        ({"ne": 1}, {"isin": [1, 2]}),
        ({"eq": 1}, {"isin": [1, 2]}),
        ({"unique": True}, {}),
        # Of what only warns nothing is refused.
        ({"ge": 0}, {"ge": 0, "raise_warning": True}),
    ],
)
def test_a_column_that_lets_more_in_is_loosened(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert kinds(contract(**before), contract(**after)) == [("visits", "loosened")]
    assert kinds(contract(**before), contract(**before)) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (BEFORE, {"ge": 1, "le": 99}),
        (BEFORE, {"gt": 0, "lt": 100}),
        (BEFORE, {"in_range": {"min_value": 0, "max_value": 100}}),
        (BEFORE, {"isin": [0, 100]}),
        (BEFORE, {"eq": 7}),
        ({"gt": 0}, {"ge": 1}),
        ({"in_range": ENDS}, {"ge": 0, "lt": 9}),
        ({"isin": [1, 2]}, {"isin": [2]}),
        ({"isin": [1, 2]}, {"eq": 2}),
        ({"notin": [1]}, {"notin": [1, 2]}),
        ({"notin": [1]}, {"isin": [2, 3]}),
        ({"ne": 1}, {"notin": [1, 2]}),
        ({"nullable": True}, {}),
        ({}, {"unique": True, "ge": 0}),
    ],
)
def test_a_column_that_lets_less_in_needs_no_reason(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert kinds(contract(**before), contract(**after)) == []


def test_the_length_of_a_text_is_no_bound_on_its_value() -> None:
    short = contract(str, str_length={"min_value": 1, "max_value": 9})

    assert kinds(short, contract(str, str_length={"min_value": 2, "max_value": 8})) == []
    assert kinds(short, contract(str, str_length={"min_value": 1})) == [("visits", "loosened")]
    assert kinds(contract(ge=1), contract(str_length={"min_value": 2})) == [("visits", "loosened")]


def test_texts_are_compared_as_values_and_have_no_order() -> None:
    listed = contract(str, isin=["a", "b"])

    assert kinds(listed, contract(str, eq="a")) == kinds(contract(str, eq="a"), contract(str, isin=["a"])) == []
    assert kinds(contract(str, eq="a"), listed) == [("visits", "loosened")]
    for other in (contract(str, isin=["a"]), contract(Time, ge=pd.Timestamp("2020-01-01 00:00Z"))):
        assert kinds(contract(ge=0), other) == [("visits", "changed"), ("visits", "loosened")]


def test_what_a_machine_cannot_compare_is_told_as_changed() -> None:
    assert kinds(contract(str, str_matches="^a"), contract(str, str_matches="^ab")) == [("visits", "changed")]
    assert kinds(contract(int), contract(float)) == [("visits", "changed")]
    early, late = (contract(Time, ge=pd.Timestamp(day)) for day in ("2020-01-01 00:00Z", "2021-01-01 00:00Z"))
    assert kinds(early, late) == [("visits", "changed")]
    for other in (contract(str), contract(str, str_contains="a")):
        assert kinds(contract(str, str_matches="^a"), other) == [("visits", "loosened")]


def test_a_column_that_is_gone_is_removed_and_a_new_one_is_not_told() -> None:
    assert kinds(contract(), {}) == [("visits", "removed"), ("", "removed")]
    assert kinds({}, contract(ge=0)) == []


def test_rows_that_must_be_unique_together_may_be_so_by_fewer_columns() -> None:
    both = {"__annotations__": {"visits": int, "at": int}}

    def together(*columns: str) -> Any:
        return contract(members=both, config={"unique": list(columns)} if columns else {})

    assert kinds(together("visits", "at"), together()) == [("", "loosened")]
    assert kinds(together("visits"), together("visits", "at")) == [("", "loosened")]
    assert kinds(together("visits", "at"), together("at")) == []


# An author's own rules are code


OWN = """
import pandera.pandas as pa

MOST = 3

def few(values, least=0):
    return (least <= values) & (values < MOST) if len(values) else few(values)

class Rows(pa.DataFrameModel):
    visits: int

    @pa.check("visits")
    def are_few(cls, values):
        return few(values)

    @pa.dataframe_check
    def add_up(cls, rows):
        return rows["visits"] >= 0

    class Config:
        strict = True
"""


def own(*pairs: tuple[str, str]) -> Any:
    """Return what `look` says of a contract with rules of its author's own."""
    text = OWN
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    module = ModuleType("ml_platform.defs.models.visits")
    exec(text, module.__dict__)  # noqa: S102 - as an author would write it, in two states
    return look.contract_of(module.Rows.to_schema())


def test_another_body_of_an_own_rule_is_changed_and_other_words_are_not() -> None:
    assert (
        kinds(own(), own(("return few(values)", '"""Say it."""\n        # so it is\n        return few(values)'))) == []
    )
    assert kinds(own(), own(("return few(values)", "return values < 4"))) == [("visits", "changed")]
    assert kinds(own(), own(("MOST = 3", "MOST = 4"))) == [("visits", "changed")]
    assert kinds(own(), own(("values < MOST", "values <= MOST"))) == [("visits", "changed")]
    assert kinds(own(), own(("least=0", "least=-1"))) == [("visits", "changed")]
    assert kinds(own(), own((">= 0", ">= -1"))) == [("", "changed")]


def test_an_own_rule_that_is_gone_is_loosened() -> None:
    assert kinds(own(), own(('    @pa.check("visits")\n', ""))) == [("visits", "loosened")]
    # Of the name of pandera's own.
    named = ("def are_few", "def in_range")
    assert kinds(own(named), own(named, ('    @pa.check("visits")\n', ""))) == [("visits", "loosened")]


def test_the_words_of_a_weaker_column_are_those_of_people() -> None:
    (found,) = weaker_places(contract(**BEFORE), contract(ge=0, le=200))

    assert (found.before, found.after) == ("must be at most 100", "must be at least 0; must be at most 200")


def test_a_baseline_that_is_a_rule_is_told_apart_by_what_it_does() -> None:
    from ml_platform.defs.models.churn import churn

    def with_rule(rule: Any) -> ModelSpec:
        return churn.model_copy(update={"baseline": rule})

    said = look.baseline_of(churn)
    assert said is not None
    assert said.startswith("rule ml_platform.defs.models.churn.calls_for_help, code ")
    rules = [lambda rows: [row > 4 for row in rows], lambda rows: [row > 5 for row in rows]]
    first, second, again = (
        look.baseline_of(with_rule(rule)) for rule in (*rules, lambda rows: [row > 4 for row in rows])
    )
    assert first == again != second
    assert look.baseline_of(with_rule("uniform")) == "DummyClassifier(uniform)"


def test_a_rule_is_the_same_in_every_process() -> None:
    """The order of a set's members is not."""
    text = (
        "from types import SimpleNamespace\nfrom ml_platform.quality.look import baseline_of\n"
        "def rule(rows): return rows in {'a', 'b', 'c', 'd', 'e'}\n"
        "print(baseline_of(SimpleNamespace(stated_baseline='rule', baseline=rule)))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", text], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]

    assert said[0] == said[1]
    assert said[0].startswith(b"rule, code ")
