"""Weakened rules between two contracts, as authors write them."""

import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pandas as pd
import pandera.pandas as pa
import pytest

from ml_platform.ci import inspect_model
from ml_platform.ci.schema_changes import find_weakened_rules
from ml_platform.model_spec import ModelSpec

BEFORE: dict[str, Any] = {"ge": 0, "le": 100}
ENDS = {"min_value": 0, "max_value": 9}
Time = pd.DatetimeTZDtype(unit="us", tz="UTC")


def contract(dtype: Any = int, *, config: dict[str, Any] | None = None, members: Any = None, **field: Any) -> Any:
    """Return the description of a contract with one column, ``visits``."""
    given = {"__annotations__": {"visits": dtype}, "visits": pa.Field(**field), **(members or {})}
    made: Any = type(
        "Rows", (pa.DataFrameModel,), {**given, "Config": type("Config", (), {"strict": True, **(config or {})})}
    )
    return inspect_model.describe_contract(made.to_schema())


def kinds(before: Any, after: Any) -> list[tuple[str, str]]:
    return [(found.place, found.kind) for found in find_weakened_rules(before, after)]


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
        # A rule that only warns refuses nothing.
        ({"ge": 0}, {"ge": 0, "raise_warning": True}),
    ],
)
def test_contract_wider_column_is_loosened(before: dict[str, Any], after: dict[str, Any]) -> None:
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
def test_contract_stricter_column_needs_no_reason(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert kinds(contract(**before), contract(**after)) == []


def test_contract_text_length_does_not_bound_values() -> None:
    short = contract(str, str_length={"min_value": 1, "max_value": 9})

    assert kinds(short, contract(str, str_length={"min_value": 2, "max_value": 8})) == []
    assert kinds(short, contract(str, str_length={"min_value": 1})) == [("visits", "loosened")]
    assert kinds(contract(ge=1), contract(str_length={"min_value": 2})) == [("visits", "loosened")]


def test_contract_texts_are_compared_without_order() -> None:
    listed = contract(str, isin=["a", "b"])

    assert kinds(listed, contract(str, eq="a")) == kinds(contract(str, eq="a"), contract(str, isin=["a"])) == []
    assert kinds(contract(str, eq="a"), listed) == [("visits", "loosened")]
    for other in (contract(str, isin=["a"]), contract(Time, ge=pd.Timestamp("2020-01-01 00:00Z"))):
        assert kinds(contract(ge=0), other) == [("visits", "changed"), ("visits", "loosened")]


def test_contract_incomparable_rule_is_changed() -> None:
    assert kinds(contract(str, str_matches="^a"), contract(str, str_matches="^ab")) == [("visits", "changed")]
    assert kinds(contract(int), contract(float)) == [("visits", "changed")]
    early, late = (contract(Time, ge=pd.Timestamp(day)) for day in ("2020-01-01 00:00Z", "2021-01-01 00:00Z"))
    assert kinds(early, late) == [("visits", "changed")]
    for other in (contract(str), contract(str, str_contains="a")):
        assert kinds(contract(str, str_matches="^a"), other) == [("visits", "loosened")]


def test_contract_missing_column_is_removed() -> None:
    assert kinds(contract(), {}) == [("visits", "removed"), ("", "removed")]
    assert kinds({}, contract(ge=0)) == []


def test_contract_unique_by_fewer_columns_is_stricter() -> None:
    both = {"__annotations__": {"visits": int, "at": int}}

    def together(*columns: str) -> Any:
        return contract(members=both, config={"unique": list(columns)} if columns else {})

    assert kinds(together("visits", "at"), together()) == [("", "loosened")]
    assert kinds(together("visits"), together("visits", "at")) == [("", "loosened")]
    assert kinds(together("visits", "at"), together("at")) == []


# Custom rules


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
    """Return the description of a contract with custom rules, after replacements in its text."""
    text = OWN
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    module = ModuleType("ml_platform.models.visits")
    exec(text, module.__dict__)  # noqa: S102 - two versions of an author's file
    return inspect_model.describe_contract(module.Rows.to_schema())


def test_contract_custom_rule_with_other_code_is_changed() -> None:
    assert (
        kinds(own(), own(("return few(values)", '"""Say it."""\n        # so it is\n        return few(values)'))) == []
    )
    assert kinds(own(), own(("return few(values)", "return values < 4"))) == [("visits", "changed")]
    assert kinds(own(), own(("MOST = 3", "MOST = 4"))) == [("visits", "changed")]
    assert kinds(own(), own(("values < MOST", "values <= MOST"))) == [("visits", "changed")]
    assert kinds(own(), own(("least=0", "least=-1"))) == [("visits", "changed")]
    assert kinds(own(), own((">= 0", ">= -1"))) == [("", "changed")]


def test_contract_missing_custom_rule_is_loosened() -> None:
    assert kinds(own(), own(('    @pa.check("visits")\n', ""))) == [("visits", "loosened")]
    # A custom rule with the name of one of pandera's.
    named = ("def are_few", "def in_range")
    assert kinds(own(named), own(named, ('    @pa.check("visits")\n', ""))) == [("visits", "loosened")]


def test_contract_weaker_rule_is_described_in_words() -> None:
    (found,) = find_weakened_rules(contract(**BEFORE), contract(ge=0, le=200))

    assert (found.before, found.after) == ("must be at most 100", "must be at least 0; must be at most 200")


def test_baseline_digest_depends_on_behaviour() -> None:
    from ml_platform.models.churn import churn

    def with_rule(rule: Any) -> ModelSpec:
        return churn.model_copy(update={"baseline": rule})

    said = inspect_model.describe_baseline(churn)
    assert said is not None
    assert said.startswith("rule ml_platform.models.churn.calls_for_help, code ")
    rules = [lambda rows: [row > 4 for row in rows], lambda rows: [row > 5 for row in rows]]
    first, second, again = (
        inspect_model.describe_baseline(with_rule(rule)) for rule in (*rules, lambda rows: [row > 4 for row in rows])
    )
    assert first == again != second
    assert inspect_model.describe_baseline(with_rule("uniform")) == "DummyClassifier(uniform)"


def test_rule_digest_is_equal_in_all_processes() -> None:
    """The order of a set's members differs between processes."""
    text = (
        "from types import SimpleNamespace\nfrom ml_platform.ci.inspect_model import describe_baseline\n"
        "def rule(rows): return rows in {'a', 'b', 'c', 'd', 'e'}\n"
        "print(describe_baseline(SimpleNamespace(stated_baseline='rule', baseline=rule)))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", text], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]

    assert said[0] == said[1]
    assert said[0].startswith(b"rule, code ")
