import re
from pathlib import Path
from typing import Any

import pytest

from ml_platform.ci.gate_changes import FILE, find_gate_changes, read_declared_reasons
from ml_platform.errors import ConfigurationError
from ml_platform.model_spec import Rollout
from ml_platform_tests.support import repositories

ENTRY = '[[change]]\ncheck = "visits/trained_model:auc_roc"\nreason = "the metric is obsolete"\n'
GATE = {
    "metric": "auc_roc",
    "at_least": 0.8,
    "at_most": None,
    "on": "value",
    "dataset": "holdout",
    "min_rows": 30,
    "name": "auc_roc",
    "condition": "auc_roc >= 0.8",
    "places": ["plan = free", "plan = paid"],
}
COMPARISON = {
    "metric": "auc_roc",
    "margin": 0.02,
    "min_gain": 0.01,
    "confidence": 0.95,
    "min_rows": 30,
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
    "min_rows": 500,
    "min_class_share": 0.01,
    "quarantine_tolerance": 0.05,
    "min_batch_rows": 10,
    "max_batch_rows": 1_000,
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
    found = find_gate_changes("visits", before or says(), after, {})
    return {re.sub("^visits(/trained_model)?:", "", change.check): change.kind for change in found}


@pytest.mark.fault("C5")
def test_gate_changes_missing_check_is_removed() -> None:
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
        gates(min_rows=10),
        gates(dataset="holiday"),
        gates(at_least=None, at_most=0.9),
    ],
)
def test_gate_changes_weaker_gate_is_loosened(after: dict[str, Any]) -> None:
    assert kinds(after) == {"auc_roc": "loosened"}


def test_gate_changes_bound_to_value_is_loosened() -> None:
    assert kinds(says(), gates(on="confidence_bound")) == {"auc_roc": "loosened"}
    assert kinds(gates(on="confidence_bound")) == {}


@pytest.mark.parametrize(
    "after", [compared(margin=0.03), compared(min_gain=None), compared(confidence=0.9), compared(min_rows=2)]
)
def test_gate_changes_weaker_comparison_is_loosened(after: dict[str, Any]) -> None:
    assert kinds(after) == {"auc_roc_compared": "loosened"}


@pytest.mark.parametrize(
    "after",
    [
        gates(at_least=0.81, min_rows=40, places=[*GATE["places"], "plan = other"]),  # type: ignore[misc]
        compared(margin=0.01, min_gain=0.02, confidence=0.99),
        says(checks=[*(check(name) for name in NAMES), check("another")]),
    ],
)
def test_gate_changes_stricter_gate_needs_no_reason(after: dict[str, Any]) -> None:
    assert kinds(after) == {}


def test_gate_changes_higher_upper_bound_is_loosened() -> None:
    upper = {"at_least": None, "at_most": 100.0}

    assert kinds(gates(at_least=None, at_most=120.0), gates(**upper)) == {"auc_roc": "loosened"}
    assert kinds(gates(at_least=None, at_most=80.0), gates(**upper)) == {}


def test_gate_changes_automatic_approval_is_loosened() -> None:
    assert kinds(says(approval="automatic", approvers=None)) == {"approval": "loosened"}


def test_gate_changes_wider_approval_is_loosened() -> None:
    def approvers(**fields: Any) -> dict[str, Any]:
        return says(approvers={**APPROVERS, **fields})

    assert kinds(approvers(authenticated_by=["github_environment", "token"])) == {"approval": "loosened"}
    assert kinds(approvers(expires_after_hours=73)) == {"approval": "loosened"}
    assert kinds(approvers(authenticated_by=["token"], expires_after_hours=1)) == {}


def test_gate_changes_renamed_gate_is_not_removed() -> None:
    checks = [check(name) for name in ("auc_roc_bound", "auc_roc_compared", "own")]

    def bound(**fields: Any) -> dict[str, Any]:
        return says(gates=[{**GATE, "name": "auc_roc_bound", "on": "confidence_bound", **fields}], checks=checks)

    assert kinds(bound()) == {}
    assert kinds(bound(at_least=0.79)) == kinds(bound(metric="recall")) == {"auc_roc": "removed"}
    # A check of the same name on another asset is no gate.
    elsewhere = says(checks=[*says()["checks"], check("auc_roc", asset=["visits", "training_dataset"])])
    assert kinds(says(), elsewhere) == {"visits/training_dataset:auc_roc": "removed"}


# Settings


NEUTRAL: dict[str, Any] = {
    "task": "regression",
    "label": "stayed",
    "positive": "no",
    "entity": "household",
    "event_time": "seen_at",
    "split": "time",
    "holdout_share": 0.3,
}


@pytest.mark.parametrize(("name", "value"), NEUTRAL.items())
def test_gate_changes_other_holdout_or_label_is_changed(name: str, value: Any) -> None:
    assert kinds(says(settings={**SETTINGS, name: value})) == {name: "changed"}
    assert kinds(says(settings={**SETTINGS, name: None})) == {name: "changed"}
    # A setting that an earlier platform does not have cannot be compared.
    assert kinds(says(), says(settings={**SETTINGS, name: None})) == {}


@pytest.mark.parametrize(
    ("name", "looser", "stricter"),
    [
        ("min_rows", 499, 501),
        ("min_class_share", 0.0, 0.02),
        ("quarantine_tolerance", 0.06, 0.0),
        ("min_batch_rows", 1, 11),
        ("max_batch_rows", 1_001, 999),
    ],
)
def test_gate_changes_weaker_row_requirement_is_loosened(name: str, looser: float, stricter: float) -> None:
    assert kinds(says(settings={**SETTINGS, name: looser})) == {name: "loosened"}
    assert kinds(says(settings={**SETTINGS, name: None})) == {name: "changed"}
    assert kinds(says(settings={**SETTINGS, name: stricter})) == {}


@pytest.mark.parametrize(
    ("name", "looser", "stricter"),
    [
        ("hold_minutes", 1, 20),
        ("min_requests", 1, 1_000),
        ("max_error_increase", 0.5, 0.0),
        ("max_slowdown", 9, 1),
        ("max_score_shift", 1, 0.01),
        ("deadline_ms", 60_000, 10),
    ],
)
def test_gate_changes_weaker_rollout_condition_is_loosened(name: str, looser: float, stricter: float) -> None:
    assert kinds(says(rollout={**ROLLOUT, name: looser})) == {f"rollout/{name}": "loosened"}
    assert kinds(says(rollout={**ROLLOUT, name: stricter})) == {}
    # A blue/green rollout had no conditions to loosen.
    at_once = says(rollout={**ROLLOUT, "kind": "blue_green"})
    assert kinds(says(rollout={**ROLLOUT, name: looser}), at_once) == {}


def test_gate_changes_other_rollout_kind_is_changed() -> None:
    assert kinds(says(rollout={**ROLLOUT, "kind": "blue_green"})) == {"rollout/kind": "changed"}
    assert kinds(says(rollout={**ROLLOUT, "steps": [0.5, 1.0]})) == {"rollout/steps": "changed"}
    assert kinds(says(rollout={**ROLLOUT, "steps": [0.01, *ROLLOUT["steps"]]})) == {}


def test_gate_changes_other_baseline_is_changed() -> None:
    assert kinds(says(baseline="rule visits.often, code 2")) == {"baseline": "changed"}
    assert kinds(says(), says(baseline=None)) == {}


def test_gate_changes_missing_golden_dataset_is_removed() -> None:
    assert kinds(says(golden={})) == {"golden/holiday": "removed"}
    assert kinds(says(golden={"easter": "a" * 64})) == {"golden/holiday": "removed"}
    assert kinds(says(golden={"holiday": "b" * 64})) == {"golden/holiday": "changed"}
    assert kinds(says(golden={"holiday": "a" * 64, "easter": "b" * 64})) == {}


def test_gate_changes_setting_takes_a_declared_reason() -> None:
    after = says(settings={**SETTINGS, "max_batch_rows": 5_000})

    (change,) = find_gate_changes("visits", says(), after, {"visits:max_batch_rows": "the files grew"})

    assert (change.before, change.after, change.declared) == ("1,000", "5,000", "the files grew")


def test_declared_reason_counts_once(tmp_path: Path) -> None:
    head, base = tmp_path / "head", tmp_path / "base"
    repositories.write(tmp_path, {f"head/{FILE}": ENTRY, "base/README.md": ""})

    assert read_declared_reasons(head, base) == {"visits/trained_model:auc_roc": "the metric is obsolete"}
    repositories.write(tmp_path, {f"base/{FILE}": ENTRY})
    assert read_declared_reasons(head, base) == {}

    (change, *_) = find_gate_changes("visits", says(), {}, {"visits/trained_model:auc_roc": "the metric is obsolete"})
    assert change.declared == "the metric is obsolete"


@pytest.mark.parametrize(
    "text", ["[[change]]\ncheck = 'a:b'\n", "change = 3\n", "no toml", ENTRY.replace("the metric is obsolete", "ok")]
)
def test_declared_reason_missing_is_refused(tmp_path: Path, text: str) -> None:
    repositories.write(tmp_path, {f"head/{FILE}": text})

    with pytest.raises(ConfigurationError, match=FILE):
        read_declared_reasons(tmp_path / "head", tmp_path)


def test_committed_gate_changes_file_is_empty() -> None:
    from ml_platform.settings import PROJECT_ROOT

    assert read_declared_reasons(PROJECT_ROOT, PROJECT_ROOT / "nowhere") == {}
