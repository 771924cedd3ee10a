import re
from pathlib import Path
from typing import Any

import pytest

from ml_platform.errors import ConfigurationError
from ml_platform.model_spec import Rollout
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
SETTINGS = {
    "task": "binary",
    "label": "left",
    "positive": "yes",
    "entity": "visitor",
    "event_time": "at",
    "split": "entity",
    "holdout_share": 0.2,
    "least_rows": 500,
    "least_share_of_a_class": 0.01,
    "quarantine_tolerance": 0.05,
    "least_rows_a_batch": 10,
    "most_rows_a_batch": 1_000,
}
APPROVERS = {"authenticated_by": ["os_user", "token"], "expires_after_hours": 72.0}
ROLLOUT = Rollout(kind="canary").model_dump(mode="json")
AROUND = {
    "approvers": APPROVERS,
    "settings": SETTINGS,
    "baseline": "rule visits.often, code 1",
    "rollout": ROLLOUT,
    "golden": {"holiday": "a" * 64},
    "contract": {},
}


def check(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "asset": ["visits", "trained_model"],
        "name": name,
        "blocking": True,
        "description": name,
        "code": "",
        **fields,
    }


def says(**fields: Any) -> dict[str, Any]:
    said = {"gates": [GATE], "comparison": COMPARISON, "checks": [check(n) for n in NAMES], "approval": "manual"}
    return {**said, **AROUND, **fields}


def gates(**fields: Any) -> dict[str, Any]:
    return says(gates=[{**GATE, **fields}])


def compared(**fields: Any) -> dict[str, Any]:
    return says(comparison={**COMPARISON, **fields})


def kinds(after: dict[str, Any], before: dict[str, Any] | None = None) -> dict[str, str]:
    found = changes_of("visits", before or says(), after, {})
    return {re.sub("^visits(/trained_model)?:", "", change.check): change.kind for change in found}


@pytest.mark.fault("C5")
def test_a_check_that_is_gone_is_removed_and_one_that_only_reports_is_loosened() -> None:
    left = [check("auc_roc"), check("auc_roc_compared", blocking=False)]

    assert kinds(says(checks=left)) == {"own": "removed", "auc_roc_compared": "loosened"}
    assert kinds({}) == dict.fromkeys(NAMES, "removed")
    assert kinds(says(checks=[*says()["checks"][:2], check("own", code="another")])) == {"own": "changed"}
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
    assert kinds(says(approval="automatic", approvers=None)) == {"approval": "loosened"}


def test_who_may_approve_is_loosened_by_another_way_and_by_a_longer_time() -> None:
    def approvers(**fields: Any) -> dict[str, Any]:
        return says(approvers={**APPROVERS, **fields})

    assert kinds(approvers(authenticated_by=["github_environment", "token"])) == {"approval": "loosened"}
    assert kinds(approvers(expires_after_hours=73)) == {"approval": "loosened"}
    assert kinds(approvers(authenticated_by=["token"], expires_after_hours=1)) == {}


def test_a_gate_of_another_name_that_asks_as_much_is_no_removal() -> None:
    checks = [check(name) for name in ("auc_roc_bound", "auc_roc_compared", "own")]

    def bound(**fields: Any) -> dict[str, Any]:
        return says(gates=[{**GATE, "name": "auc_roc_bound", "on": "bound", **fields}], checks=checks)

    assert kinds(bound()) == {}
    assert kinds(bound(at_least=0.79)) == kinds(bound(metric="recall")) == {"auc_roc": "removed"}
    # Of the same name, but no gate: nothing else asks what it asked.
    elsewhere = says(checks=[*says()["checks"], check("auc_roc", asset=["visits", "training_dataset"])])
    assert kinds(says(), elsewhere) == {"visits/training_dataset:auc_roc": "removed"}


# What stands around the gates


ANY_WAY: dict[str, Any] = {
    "task": "regression",
    "label": "stayed",
    "positive": "no",
    "entity": "household",
    "event_time": "seen_at",
    "split": "time",
    "holdout_share": 0.3,
}


@pytest.mark.parametrize(("name", "value"), ANY_WAY.items())
def test_another_holdout_and_another_question_may_be_meant_and_are_told(name: str, value: Any) -> None:
    assert kinds(says(settings={**SETTINGS, name: value})) == {name: "changed"}
    assert kinds(says(settings={**SETTINGS, name: None})) == {name: "changed"}
    # What an earlier platform did not know cannot be compared.
    assert kinds(says(), says(settings={**SETTINGS, name: None})) == {}


@pytest.mark.parametrize(
    ("name", "looser", "stricter"),
    [
        ("least_rows", 499, 501),
        ("least_share_of_a_class", 0.0, 0.02),
        ("quarantine_tolerance", 0.06, 0.0),
        ("least_rows_a_batch", 1, 11),
        ("most_rows_a_batch", 1_001, 999),
    ],
)
def test_less_that_is_asked_of_rows_is_loosened(name: str, looser: float, stricter: float) -> None:
    assert kinds(says(settings={**SETTINGS, name: looser})) == {name: "loosened"}
    assert kinds(says(settings={**SETTINGS, name: None})) == {name: "changed"}
    assert kinds(says(settings={**SETTINGS, name: stricter})) == {}


@pytest.mark.parametrize(
    ("name", "looser", "stricter"),
    [
        ("hold_minutes", 1, 20),
        ("least_requests", 1, 1_000),
        ("most_error_share", 0.5, 0.0),
        ("most_slower", 9, 1),
        ("most_score_shift", 1, 0.01),
        ("deadline_ms", 60_000, 10),
    ],
)
def test_less_that_sends_a_new_champion_back_is_loosened(name: str, looser: float, stricter: float) -> None:
    assert kinds(says(rollout={**ROLLOUT, name: looser})) == {f"rollout/{name}": "loosened"}
    assert kinds(says(rollout={**ROLLOUT, name: stricter})) == {}
    # Where all traffic moved at once, nothing was held back.
    at_once = says(rollout={**ROLLOUT, "kind": "blue_green"})
    assert kinds(says(rollout={**ROLLOUT, name: looser}), at_once) == {}


def test_another_way_of_moving_traffic_is_told_and_more_steps_are_not() -> None:
    assert kinds(says(rollout={**ROLLOUT, "kind": "blue_green"})) == {"rollout/kind": "changed"}
    assert kinds(says(rollout={**ROLLOUT, "steps": [0.5, 1.0]})) == {"rollout/steps": "changed"}
    assert kinds(says(rollout={**ROLLOUT, "steps": [0.01, *ROLLOUT["steps"]]})) == {}


def test_another_baseline_is_told() -> None:
    assert kinds(says(baseline="rule visits.often, code 2")) == {"baseline": "changed"}
    assert kinds(says(), says(baseline=None)) == {}


def test_a_golden_dataset_that_is_gone_is_removed_and_one_with_other_rows_is_changed() -> None:
    assert kinds(says(golden={})) == {"golden/holiday": "removed"}
    assert kinds(says(golden={"easter": "a" * 64})) == {"golden/holiday": "removed"}
    assert kinds(says(golden={"holiday": "b" * 64})) == {"golden/holiday": "changed"}
    assert kinds(says(golden={"holiday": "a" * 64, "easter": "b" * 64})) == {}


def test_what_stands_around_the_gates_is_told_in_words_and_takes_a_reason() -> None:
    after = says(settings={**SETTINGS, "most_rows_a_batch": 5_000})

    (change,) = changes_of("visits", says(), after, {"visits:most_rows_a_batch": "the files grew"})

    assert (change.before, change.after, change.declared) == ("1,000", "5,000", "the files grew")


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
