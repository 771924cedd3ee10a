from pathlib import Path
from typing import Any

import pytest

from ml_platform.errors import ConfigurationError
from ml_platform.quality.gate_changes import FILE, changes_of, declared
from ml_platform_tests.quality import made

ENTRY = '[[change]]\ncheck = "visits/trained_model:auc_roc"\nreason = "nobody reads it any more"\n'
GATE = {
    "metric": "auc_roc",
    "at_least": 0.8,
    "at_most": None,
    "on": "point",
    "dataset": "holdout",
    "least_rows": 30,
    "name": "auc_roc",
    "condition": "auc_roc >= 0.8",
    "places": ["plan = free", "plan = paid"],
}
COMPARISON = {
    "metric": "auc_roc",
    "margin": 0.02,
    "minimum_gain": 0.01,
    "confidence": 0.95,
    "least_rows": 30,
    "name": "auc_roc_compared",
    "condition": "auc_roc at most 0.02 behind the champion",
}
NAMES = ("auc_roc", "auc_roc_compared", "own")


def check(name: str, **fields: Any) -> dict[str, Any]:
    return {"asset": ["visits", "trained_model"], "name": name, "blocking": True, "description": name, **fields}


def says(**fields: Any) -> dict[str, Any]:
    said = {"gates": [GATE], "comparison": COMPARISON, "checks": [check(n) for n in NAMES], "approval": "manual"}
    return {**said, **fields}


def gates(**fields: Any) -> dict[str, Any]:
    return says(gates=[{**GATE, **fields}])


def compared(**fields: Any) -> dict[str, Any]:
    return says(comparison={**COMPARISON, **fields})


def kinds(after: dict[str, Any], before: dict[str, Any] | None = None) -> dict[str, str]:
    found = changes_of("visits", before or says(), after, {})
    return {change.check.removeprefix("visits/trained_model:"): change.kind for change in found}


@pytest.mark.fault("C5")
def test_a_check_that_is_gone_is_removed_and_one_that_only_reports_is_loosened() -> None:
    left = [check("auc_roc"), check("auc_roc_compared", blocking=False)]

    assert kinds(says(checks=left)) == {"own": "removed", "auc_roc_compared": "loosened"}
    assert kinds({}) == dict.fromkeys(NAMES, "removed")
    assert kinds(says()) == {}


@pytest.mark.parametrize(
    "after",
    [
        gates(at_least=0.79),
        gates(places=["plan = paid"]),
        gates(least_rows=10),
        gates(dataset="holiday"),
        gates(at_least=None, at_most=0.9),
    ],
)
def test_a_gate_that_asks_for_less_is_loosened(after: dict[str, Any]) -> None:
    assert kinds(after) == {"auc_roc": "loosened"}


def test_a_gate_on_the_bound_is_not_held_against_the_point_later() -> None:
    assert kinds(says(), gates(on="bound")) == {"auc_roc": "loosened"}
    assert kinds(gates(on="bound")) == {}


@pytest.mark.parametrize(
    "after", [compared(margin=0.03), compared(minimum_gain=None), compared(confidence=0.9), compared(least_rows=2)]
)
def test_a_comparison_that_asks_for_less_is_loosened(after: dict[str, Any]) -> None:
    assert kinds(after) == {"auc_roc_compared": "loosened"}


@pytest.mark.parametrize(
    "after",
    [
        gates(at_least=0.81, least_rows=40, places=[*GATE["places"], "plan = other"]),  # type: ignore[misc]
        compared(margin=0.01, minimum_gain=0.02, confidence=0.99),
        says(checks=[*(check(name) for name in NAMES), check("another")]),
    ],
)
def test_what_asks_for_more_needs_no_reason(after: dict[str, Any]) -> None:
    assert kinds(after) == {}


def test_an_upper_bound_is_loosened_upwards() -> None:
    upper = {"at_least": None, "at_most": 100.0}

    assert kinds(gates(at_least=None, at_most=120.0), gates(**upper)) == {"auc_roc": "loosened"}
    assert kinds(gates(at_least=None, at_most=80.0), gates(**upper)) == {}


def test_a_persons_approval_that_is_no_longer_needed_is_loosened() -> None:
    assert kinds(says(approval="automatic")) == {"visits:approval": "loosened"}


def test_a_reason_counts_for_the_change_that_adds_it_and_for_no_other(tmp_path: Path) -> None:
    head, base = tmp_path / "head", tmp_path / "base"
    made.write(tmp_path, {f"head/{FILE}": ENTRY, "base/README.md": ""})

    assert declared(head, base) == {"visits/trained_model:auc_roc": "nobody reads it any more"}
    made.write(tmp_path, {f"base/{FILE}": ENTRY})
    assert declared(head, base) == {}

    (change, *_) = changes_of("visits", says(), {}, {"visits/trained_model:auc_roc": "nobody reads it any more"})
    assert change.declared == "nobody reads it any more"


@pytest.mark.parametrize(
    "text", ["[[change]]\ncheck = 'a:b'\n", "change = 3\n", "no toml", ENTRY.replace("nobody reads it any more", "ok")]
)
def test_a_file_that_gives_no_reason_is_refused(tmp_path: Path, text: str) -> None:
    made.write(tmp_path, {f"head/{FILE}": text})

    with pytest.raises(ConfigurationError, match=FILE):
        declared(tmp_path / "head", tmp_path)


def test_the_file_that_is_kept_says_nothing_yet() -> None:
    from ml_platform.settings import PROJECT_ROOT

    assert declared(PROJECT_ROOT, PROJECT_ROOT / "nowhere") == {}
