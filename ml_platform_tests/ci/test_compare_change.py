"""Comparisons of changes in a real repository, as in CI: with processes, a worktree of the base and Dagster's log."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ml_platform.ci import compare_change
from ml_platform.ci.attribution import sentences
from ml_platform.ci.compare_change import problems_of_gates, problems_of_golden, run_comparison
from ml_platform.ci.gate_changes import FILE, find_gate_changes
from ml_platform.ci.result_schema import ChangeResult, CheckState, CodeDataRun, GateChange, Outcome, ReportedCheck, read
from ml_platform.ci.sandbox import Checkout
from ml_platform.devtools.demo_data import exports
from ml_platform.errors import ConfigurationError
from ml_platform.settings import PROJECT_ROOT
from ml_platform_tests.support import repositories

CHURN = "ml_platform/models/churn.py"
TREES = "HistGradientBoostingClassifier(random_state=0)"
# A small model: the tests are of the comparison, not of the model.
QUICK = "HistGradientBoostingClassifier(max_iter=30, random_state=0)"
F1 = '        Gate(metric="f1_score", at_least=0.70),\n'
# An author's own check; the test fills in its result.
OWN = """def own_checks():
    import dagster as dg

    @dg.asset_check(asset=["churn", "trained_model"], blocking=True)
    def own_check() -> dg.AssetCheckResult:
        return {answer}

    return [own_check]


churn = ModelSpec(
    asset_checks=own_checks,
"""
REMOVED = "churn/trained_model:f1_score"
OWN_CHECK = "churn/trained_model:own_check"
STAGED = "churn/staging_version:integration_test"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(variable, raising=False)
    # A comparison must not touch the deployment of its own process.
    monkeypatch.setenv("ML_PLATFORM_HOME", str(tmp_path / "deployment"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    made_here = repositories.checkout(tmp_path / "checkout")
    repositories.edit(made_here, CHURN, (TREES, QUICK))
    return repositories.commit(made_here)


def compare(root: Path) -> ChangeResult:
    out = root.parent / "out"
    result = run_comparison("churn", "main", root, out)
    assert read(out / "churn.json") == result
    assert repositories.git(root, "worktree", "list").count("\n") == 0
    assert not (root.parent / "deployment").exists()
    return result


def states(result: ChangeResult) -> dict[str, CheckState]:
    """Return the state of each check that did not succeed."""
    return {check.check: check.state for check in result.checks if check.state is not CheckState.SUCCEEDED}


# Requirements on a verdict


DECLARES = {"gates": [{"name": "auc_roc"}], "comparison": {"name": "auc_roc_compared"}, "golden": ["holiday"]}


@pytest.mark.fault("C5")
@pytest.mark.parametrize("outcome", ["FAIL", "INCONCLUSIVE"])
def test_comparison_gate_not_passed_is_a_problem(outcome: str) -> None:
    judged = repositories.corner("new", "new", [])
    (gate,) = judged.gates
    refused = judged.model_copy(update={"gates": [gate.model_copy(update={"outcome": outcome})]})

    assert problems_of_gates(judged, {**DECLARES, "comparison": None}) == []
    assert problems_of_gates(judged, DECLARES) == ["gate auc_roc_compared was not applied"]
    assert problems_of_gates(judged.model_copy(update={"gates": []}), {**DECLARES, "comparison": None}) == [
        "gate auc_roc was not applied"
    ]
    assert problems_of_gates(refused, {**DECLARES, "comparison": None}) == [
        f"gate auc_roc >= 0.8 is {outcome}: it is 0.9"
    ]


def test_comparison_golden_dataset_not_evaluated_is_a_problem() -> None:
    judged = repositories.corner(
        "new", "new", [repositories.measurements({"": 0.9})[0].model_copy(update={"dataset": "holiday"})]
    )

    assert problems_of_golden(judged, DECLARES, "") == problems_of_golden(judged, DECLARES, "holiday") == []
    assert problems_of_golden(judged, DECLARES, "easter") == [
        "the golden dataset 'easter' was not evaluated; the model declares holiday"
    ]


def side(*names: str, there: bool = True, declares: bool = True) -> Any:
    checks = [{"asset": ["visits", "trained_model"], "name": name} for name in names]
    code = Checkout(folder=Path(), words="code")
    return compare_change._Side(code=code, there=there, declares={"checks": checks} if declares else {})


def required(old: Any, new: Any, *done: ReportedCheck, corners: Sequence[CodeDataRun] = ()) -> tuple[list[str], Any]:
    """Return the problems of a comparison in which these checks were run, and the state of each expected check."""
    comparison = compare_change._Comparison("visits", "", Path(), Path(), lambda _: None)
    findings = comparison.findings
    findings.checks, findings.corners = list(done), list(corners)
    comparison.require_checks(old, new, {})
    return findings.problems, {check.check.partition(":")[2]: check.state for check in findings.checks}


@pytest.mark.fault("C5")
def test_comparison_check_without_success_is_a_problem() -> None:
    succeeded = ReportedCheck(check="visits/trained_model:auc_roc", state=CheckState.SUCCEEDED)
    silent = ReportedCheck(check="visits/trained_model:own", state=CheckState.SKIPPED, said="it gave no result")

    assert required(side("auc_roc"), side("auc_roc"), succeeded) == ([], {"auc_roc": CheckState.SUCCEEDED})
    assert required(side(), side("auc_roc", "own"), succeeded, silent)[0] == [
        "the check visits/trained_model:own is SKIPPED: it gave no result"
    ]
    assert required(side(), side("auc_roc", "own"), succeeded)[0] == [
        "the check visits/trained_model:own is MISSING: it was not run"
    ]
    # A removal is a problem as a gate change.
    assert required(side("auc_roc", "own"), side("auc_roc"), succeeded) == (
        [],
        {"auc_roc": CheckState.SUCCEEDED, "own": CheckState.REMOVED},
    )
    assert required(side("own"), side(there=False, declares=False))[1] == {"own": CheckState.REMOVED}
    # A file that does not import might still declare the check.
    assert required(side("own"), side(declares=False)) == (
        ["the check visits/trained_model:own is MISSING"],
        {"own": CheckState.MISSING},
    )


@pytest.mark.fault("C5")
def test_comparison_failed_gate_is_reported_once() -> None:
    failed = ReportedCheck(check="visits/trained_model:auc_roc", state=CheckState.FAILED, said="too low")
    judged = {code: repositories.corner(code, "new", []) for code in ("old", "new")}
    (gate,) = judged["old"].gates
    refused = {"gates": [gate.model_copy(update={"outcome": "FAIL"})]}
    ours, theirs = ([judged[code].model_copy(update=refused)] for code in ("new", "old"))

    assert required(side(), side("auc_roc"), failed, corners=ours)[0] == []
    for other in (theirs, list(judged.values())):
        assert required(side(), side("auc_roc"), failed, corners=other)[0] == [
            "the check visits/trained_model:auc_roc is FAILED: too low"
        ]


def test_comparison_undeclared_gate_change_is_a_problem() -> None:
    comparison = compare_change._Comparison("visits", "", Path(), Path(), lambda _: None)
    comparison.findings.changes = [
        GateChange(check="visits:split", kind="changed", before="entity", after="time"),
        GateChange(check="visits:base", kind="not compared", before="no rows"),
        GateChange(check="visits:golden/holiday", kind="removed", before="sha256 0", declared="it is over"),
    ]

    comparison.require_declared_changes()

    advice = f"If this is intended, declare it in {FILE}."
    assert comparison.findings.problems == [
        f"visits:split is changed: entity, now time. {advice}",
        f"visits:base: the candidate was not compared with the base's champion: no rows. {advice}",
    ]
    assert comparison.findings.notes == ["visits:golden/holiday is removed: sha256 0. Declared: it is over"]


def test_comparison_many_gate_changes_fit_the_document() -> None:
    columns = {str(number): {"dtype": "int64", "demands": [], "rules": []} for number in range(3_000)}
    asked: dict[str, Any] = {"gates": [], "checks": [], "comparison": None, "approval": "manual", "approvers": None}
    said = {**asked, "settings": {}, "baseline": None, "rollout": None, "golden": {}}
    comparison = compare_change._Comparison("churn", "", Path(), Path(), lambda _: None)

    changes = find_gate_changes("churn", {**said, "contract": columns}, {**said, "contract": {}}, {})
    comparison.findings.changes = changes
    comparison.require_declared_changes()
    found = compare_change._document(comparison.findings, {}, model="churn", base="", base_commit="", head="")

    assert found.outcome is Outcome.FAIL
    assert len(found.changes) == len(found.problems) == 1_000
    assert found.problems[-1] == "and 2,001 more"


# Failures before any long run


@pytest.mark.fault("C5")
def test_comparison_import_error_is_broken_and_named(root: Path) -> None:
    repositories.edit(root, CHURN, ("import pandas as pd\n", "import pandas as pd\nimport no_such_module\n"))
    out = root.parent / "out"
    out.mkdir()
    for name in ("churn-curves.svg", "churn-holiday.json"):
        (out / name).write_text("of an earlier comparison")

    result = compare(root)

    # Old files of this comparison are removed, those of a golden dataset's comparison are kept.
    assert sorted(path.name for path in out.iterdir()) == ["churn-holiday.json", "churn.json", "churn.log"]
    assert result.outcome is Outcome.BROKEN
    assert "churn.py, line 6: ModuleNotFoundError: No module named 'no_such_module'" in result.problems[0]
    assert result.changed == [f"{CHURN}: its code"]
    assert len(states(result)) == len(result.checks) > 15
    assert set(states(result).values()) == {CheckState.MISSING}


@pytest.mark.soak
@pytest.mark.fault("C5")
def test_comparison_deleted_model_fails_until_declared(root: Path) -> None:
    (root / CHURN).unlink()

    result = compare(root)

    assert result.outcome is Outcome.FAIL
    assert set(states(result).values()) == {CheckState.REMOVED}
    entries = [f'[[change]]\ncheck = "{name}"\nreason = "churn is no longer served"\n' for name in states(result)]
    repositories.write(root, {FILE: "".join(entries)})
    again = compare(root)
    assert (again.outcome, again.problems) == (Outcome.PASS, [])
    assert all("churn is no longer served" in note for note in again.notes)


@pytest.mark.soak
@pytest.mark.fault("C5")
def test_comparison_contract_refusing_rows_fails(root: Path) -> None:
    repositories.edit(
        root,
        CHURN,
        ("total_day_minutes: float = pa.Field(ge=0, le=1_440)", "total_day_minutes: float = pa.Field(ge=0, le=1)"),
    )
    result = compare(root)

    assert result.outcome is Outcome.FAIL
    assert states(result)["churn/validated_batches:values"] is CheckState.FAILED
    assert states(result)[REMOVED] is CheckState.MISSING
    assert any("refuses the rows of churn" in problem for problem in result.problems)


@pytest.mark.soak
@pytest.mark.fault("C5")
def test_comparison_changed_settings_are_found(root: Path, tmp_path: Path) -> None:
    repositories.edit(
        root,
        CHURN,
        ("account_length: int = pa.Field(ge=0, le=1_000)", "account_length: int = pa.Field(ge=0)"),
        ('customers["number_customer_service_calls"] >= 4', 'customers["number_customer_service_calls"] >= 40'),
        ('approval="automatic",', 'approval="automatic",\n    split="time",\n    min_rows=2,'),
        ("min_new_rows=100", "min_new_rows=1"),
    )
    comparison = compare_change._Comparison("churn", "", tmp_path, tmp_path / "log", lambda _: None)

    old, new = (comparison.side(Checkout(folder=folder, words="code")) for folder in (PROJECT_ROOT, root))
    result = find_gate_changes("churn", old.declares, new.declares, {})

    assert {change.check: change.kind for change in result} == {
        "churn:split": "changed",
        "churn:min_rows": "loosened",
        "churn:baseline": "changed",
        "churn:contract/account_length": "loosened",
    }


@pytest.mark.soak
def test_comparison_invalid_contract_is_broken(root: Path) -> None:
    repositories.edit(root, CHURN, ("        strict = True\n", ""))

    result = compare(root)

    assert result.outcome is Outcome.BROKEN
    assert "must have Config.strict = True" in result.problems[0]


def test_comparison_unknown_model_or_base_is_refused(root: Path) -> None:
    with pytest.raises(ConfigurationError, match="There is no model 'unknown', here or in main"):
        run_comparison("unknown", "main", root, root.parent / "out")
    with pytest.raises(ConfigurationError, match="git fetch"):
        run_comparison("churn", "nowhere", root, root.parent / "out")


# Whole comparisons


@pytest.mark.soak
@pytest.mark.fault("C1")
def test_comparison_good_change_passes_against_champion(root: Path) -> None:
    repositories.edit(root, CHURN, ("max_iter=30", "max_iter=31"))

    result = compare(root)

    assert (result.outcome, result.problems, result.changes) == (Outcome.PASS, [], [])
    assert states(result) == {}
    here = result.corner("new", "new")
    assert here is not None
    assert here.champion == 1
    assert here.reference is not None
    assert (here.reference.kind, here.reference.name) == ("champion", "version 1")
    assert {"churn.json", "churn.log", "churn-curves.svg", "churn-verdict.html"} == {
        file.name for file in (root.parent / "out").iterdir()
    }


@pytest.mark.soak
@pytest.mark.fault("C5")
def test_comparison_removed_gate_fails_until_declared(root: Path) -> None:
    repositories.edit(root, CHURN, (F1, ""))

    result = compare(root)

    assert result.outcome is Outcome.FAIL
    assert states(result) == {REMOVED: CheckState.REMOVED}
    assert result.problems == [
        "churn/trained_model:f1_score is removed: f1_score >= 0.7, on rows the model has not seen. "
        f"If this is intended, declare it in {FILE}."
    ]
    repositories.write(root, {FILE: f'[[change]]\ncheck = "{REMOVED}"\nreason = "the metric is obsolete"\n'})
    assert compare(root).outcome is Outcome.PASS


@pytest.mark.soak
@pytest.mark.fault("C5")
@pytest.mark.parametrize("answer", ["None", "False", "dg.AssetCheckResult(passed=True)"])
def test_comparison_custom_check_needs_a_record(answer: str, root: Path) -> None:
    repositories.edit(root, CHURN, ("churn = ModelSpec(\n", OWN.format(answer=answer)))

    result = compare(root)

    if answer.endswith("(passed=True)"):
        assert (result.outcome, result.problems, states(result)) == (Outcome.PASS, [], {})
        assert OWN_CHECK in {check.check for check in result.checks}
        return
    assert result.outcome is Outcome.FAIL
    assert states(result)[OWN_CHECK] is CheckState.SKIPPED
    said = "it was run and gave no result, as one that returns None or False"
    assert f"the check {OWN_CHECK} is SKIPPED: {said}" in result.problems
    # No version was registered after the check, but the candidate has a verdict.
    assert result.corner("new", "new") is not None
    assert states(result) == {OWN_CHECK: CheckState.SKIPPED, STAGED: CheckState.SKIPPED}
    assert f"the check {STAGED} is SKIPPED: it was planned, and the run ended before it had a result" in result.problems


@pytest.mark.soak
@pytest.mark.fault("C5")
def test_comparison_failed_gate_exits_with_1(root: Path) -> None:
    repositories.edit(root, CHURN, ("at_least=0.80", "at_least=0.999"))
    out = root.parent / "out"
    command = [
        "-c",
        "from ml_platform.cli import main; main()",
        "ci",
        "compare",
        "churn",
        "--base",
        "main",
        "--out",
        str(out),
    ]

    done = subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )

    result = read(out / "churn.json")
    assert done.returncode == 1, done.stderr
    assert "refused: gate auc_roc >= 0.999 is FAIL: auc_roc is 0." in done.stderr
    assert states(result)["churn/trained_model:auc_roc"] is CheckState.FAILED


@pytest.mark.soak
def test_comparison_manual_approval_happens_in_sandbox(root: Path) -> None:
    frozen = next(iter(exports().values()))
    (root / "data" / "golden" / "churn").mkdir(parents=True)
    (root / "data" / "golden" / "churn" / "holiday.parquet").write_bytes(frozen)
    golden = f'golden=(GoldenSet(name="holiday", sha256="{hashlib.sha256(frozen).hexdigest()}"),),'
    repositories.edit(root, CHURN, ('approval="automatic",', f'approval="manual",\n    {golden}'))
    repositories.edit(root, CHURN, ("import Comparison, Gate,", "import Comparison, Gate, GoldenSet,"))
    repositories.commit(root)
    repositories.git(root, "branch", "before")
    repositories.edit(root, CHURN, ("max_iter=30", "max_iter=31"))

    result = run_comparison("churn", "before", root, root.parent / "out", golden="holiday")

    assert (result.outcome, result.problems) == (Outcome.PASS, [])
    assert read(root.parent / "out" / "churn-holiday.json") == result
    assert [m.dataset for m in result.corners[-1].measurements].count("holiday") > 20
    here = result.corner("new", "new")
    assert here is not None
    assert here.champion == 1


@pytest.mark.soak
def test_comparison_new_model_meets_its_baseline(root: Path) -> None:
    text = (root / CHURN).read_text().replace('name="churn"', 'name="leaving"')
    text = text.replace("churn = ModelSpec", "leaving = ModelSpec")
    repositories.write(root, {"ml_platform/models/leaving.py": text})
    shutil.copy(root / "data" / "churn.parquet", root / "data" / "leaving.parquet")

    result = run_comparison("leaving", "main", root, root.parent / "out")

    assert (result.outcome, result.problems, result.is_new) == (Outcome.PASS, [], True)
    assert "the code of main has no model leaving: the model is new and is compared with its baseline" in result.notes
    assert result.corner("new", "new").reference.kind == "baseline"  # type: ignore[union-attr]


@pytest.mark.soak
def test_comparison_attributes_worse_slices_to_causes(root: Path) -> None:
    """Trees too small to learn from, and data in which labels of one slice are swapped."""
    repositories.edit(root, CHURN, ("max_iter=30", "max_iter=3, max_leaf_nodes=4"))
    file = root / "data" / "churn.parquet"
    rows = pd.read_parquet(file)
    swapped = rows.index[rows["international_plan"] == "yes"][::4]
    rows.loc[swapped, "churn"] = rows.loc[swapped, "churn"].map({"yes": "no", "no": "yes"})
    rows.to_parquet(file, index=False)

    result = compare(root)

    assert result.data_changed
    assert [(corner.code, corner.data) for corner in result.corners if corner.judged] == [
        ("old", "new"),
        ("new", "new"),
        ("old", "old"),
        ("new", "old"),
    ]
    said = sentences(result)
    slice_of_auc = next(one for one in said if one.startswith("auc_roc of international_plan = yes became worse"))
    assert "The causes are code and data: the code moves it by -0." in slice_of_auc
    assert "which fails the gate auc_roc >= 0.7, for each international_plan." in slice_of_auc
    assert json.loads((root.parent / "out" / "churn.json").read_text())["outcome"] == "FAIL"
