"""Changes of a real repository, tried as CI tries them: with processes, a worktree of the base and Dagster's log."""

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

from ml_platform.demo import exports
from ml_platform.errors import ConfigurationError
from ml_platform.quality import trial
from ml_platform.quality.documents import CheckDone, CheckState, Corner, GateChange, Outcome, Trial, read
from ml_platform.quality.gate_changes import FILE, changes_of
from ml_platform.quality.lives import Code
from ml_platform.quality.moved import sentences
from ml_platform.quality.trial import problems_of_gates, problems_of_golden, try_change
from ml_platform.settings import PROJECT_ROOT
from ml_platform_tests.quality import made

CHURN = "ml_platform/defs/models/churn.py"
TREES = "HistGradientBoostingClassifier(random_state=0)"
# Of a plain model: what is tried is the trying.
QUICK = "HistGradientBoostingClassifier(max_iter=30, random_state=0)"
F1 = '        Gate(metric="f1_score", at_least=0.70),\n'
# An author's own: what it answers is left open.
OWN = """@dg.asset_check(asset=["churn", "trained_model"], blocking=True)
def own_check() -> dg.AssetCheckResult:
    return {answer}


@dg.definitions
"""
REMOVED = "churn/trained_model:f1_score"
OWN_CHECK = "churn/trained_model:own_check"
STAGED = "churn/staging_version:integration_test"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(variable, raising=False)
    # Whatever deployment this process belongs to: a trial must not touch it.
    monkeypatch.setenv("ML_PLATFORM_HOME", str(tmp_path / "deployment"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    made_here = made.checkout(tmp_path / "checkout")
    made.edit(made_here, CHURN, (TREES, QUICK))
    return made.commit(made_here)


def tried(root: Path) -> Trial:
    out = root.parent / "out"
    found = try_change("churn", "main", root, out)
    assert read(out / "churn.json") == found
    assert made.git(root, "worktree", "list").count("\n") == 0
    assert not (root.parent / "deployment").exists()
    return found


def states(found: Trial) -> dict[str, CheckState]:
    return {check.check: check.state for check in found.checks if check.state is not CheckState.SUCCEEDED}


# What a verdict must say


DECLARES = {"gates": [{"name": "auc_roc"}], "comparison": {"name": "auc_roc_compared"}, "golden": ["holiday"]}


@pytest.mark.fault("C5")
@pytest.mark.parametrize("outcome", ["FAIL", "INCONCLUSIVE"])
def test_a_gate_that_does_not_pass_or_was_not_applied_is_a_problem(outcome: str) -> None:
    judged = made.corner("new", "new", [])
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


def test_a_golden_dataset_that_was_asked_for_must_have_been_judged() -> None:
    judged = made.corner("new", "new", [made.figures({"": 0.9})[0].model_copy(update={"dataset": "holiday"})])

    assert problems_of_golden(judged, DECLARES, "") == problems_of_golden(judged, DECLARES, "holiday") == []
    assert problems_of_golden(judged, DECLARES, "easter") == [
        "the golden dataset 'easter' was not judged; the model declares holiday"
    ]


def side(*names: str, there: bool = True, declares: bool = True) -> Any:
    checks = [{"asset": ["visits", "trained_model"], "name": name} for name in names]
    code = Code(folder=Path(), words="code")
    return trial._Side(code=code, there=there, declares={"checks": checks} if declares else {})


def required(old: Any, new: Any, *done: CheckDone, corners: Sequence[Corner] = ()) -> tuple[list[str], Any]:
    """Return the problems of a trial in which these checks were run, and the state of each that is expected."""
    trying = trial._Trying("visits", "", Path(), Path(), lambda _: None)
    trying.found.checks, trying.found.corners = list(done), list(corners)
    trying._require_checks(old, new, {})
    return trying.found.problems, {check.check.partition(":")[2]: check.state for check in trying.found.checks}


@pytest.mark.fault("C5")
def test_every_check_of_both_sides_must_have_a_success() -> None:
    succeeded = CheckDone(check="visits/trained_model:auc_roc", state=CheckState.SUCCEEDED)
    silent = CheckDone(check="visits/trained_model:own", state=CheckState.SKIPPED, said="it gave no result")

    assert required(side("auc_roc"), side("auc_roc"), succeeded) == ([], {"auc_roc": CheckState.SUCCEEDED})
    assert required(side(), side("auc_roc", "own"), succeeded, silent)[0] == [
        "the check visits/trained_model:own is SKIPPED: it gave no result"
    ]
    assert required(side(), side("auc_roc", "own"), succeeded)[0] == [
        "the check visits/trained_model:own is MISSING: it was not run"
    ]
    # A removal is told among the changes, and is a problem there.
    assert required(side("auc_roc", "own"), side("auc_roc"), succeeded) == (
        [],
        {"auc_roc": CheckState.SUCCEEDED, "own": CheckState.REMOVED},
    )
    assert required(side("own"), side(there=False, declares=False))[1] == {"own": CheckState.REMOVED}
    # Of a file that does not import nobody knows what it would have declared.
    assert required(side("own"), side(declares=False)) == (
        ["the check visits/trained_model:own is MISSING"],
        {"own": CheckState.MISSING},
    )


@pytest.mark.fault("C5")
def test_the_check_of_a_gate_is_told_once_where_this_changes_verdict_told_it() -> None:
    failed = CheckDone(check="visits/trained_model:auc_roc", state=CheckState.FAILED, said="too low")
    judged = {code: made.corner(code, "new", []) for code in ("old", "new")}
    (gate,) = judged["old"].gates
    refused = {"gates": [gate.model_copy(update={"outcome": "FAIL"})]}
    ours, theirs = ([judged[code].model_copy(update=refused)] for code in ("new", "old"))

    assert required(side(), side("auc_roc"), failed, corners=ours)[0] == []
    for other in (theirs, list(judged.values())):
        assert required(side(), side("auc_roc"), failed, corners=other)[0] == [
            "the check visits/trained_model:auc_roc is FAILED: too low"
        ]


def test_a_change_of_the_gates_is_a_problem_until_it_is_declared() -> None:
    trying = trial._Trying("visits", "", Path(), Path(), lambda _: None)
    trying.found.changes = [
        GateChange(check="visits:split", kind="changed", before="entity", after="time"),
        GateChange(check="visits:base", kind="not compared", before="no rows"),
        GateChange(check="visits:golden/holiday", kind="removed", before="sha256 0", declared="it is over"),
    ]

    trying._require_declared_changes()

    meant = f"If that is meant, say so in {FILE}."
    assert trying.found.problems == [
        f"visits:split is changed: entity, now time. {meant}",
        f"visits:base: the candidate met no champion of the base, for no rows. {meant}",
    ]
    assert trying.found.notes == ["visits:golden/holiday is removed: sha256 0. Declared: it is over"]


def test_what_a_wide_contract_loses_still_fits_a_document() -> None:
    columns = {str(number): {"dtype": "int64", "demands": [], "rules": []} for number in range(3_000)}
    asked: dict[str, Any] = {"gates": [], "checks": [], "comparison": None, "approval": "manual", "approvers": None}
    said = {**asked, "settings": {}, "baseline": None, "rollout": None, "golden": {}}
    trying = trial._Trying("churn", "", Path(), Path(), lambda _: None)

    trying.found.changes = changes_of("churn", {**said, "contract": columns}, {**said, "contract": {}}, {})
    trying._require_declared_changes()
    found = trial._document(trying.found, {}, model="churn", base="", base_commit="", head="")

    assert found.outcome is Outcome.FAIL
    assert len(found.changes) == len(found.problems) == 1_000
    assert found.problems[-1] == "and 2,001 more"


# What is red before anything runs for long


@pytest.mark.fault("C5")
def test_a_model_file_that_does_not_import_is_red_and_named(root: Path) -> None:
    made.edit(root, CHURN, ("import pandas as pd\n", "import pandas as pd\nimport no_such_module\n"))
    out = root.parent / "out"
    out.mkdir()
    for name in ("churn-curves.png", "churn-holiday.json"):
        (out / name).write_text("of an earlier trial")

    found = tried(root)

    # What this trial leaves anew is gone, what that of a golden dataset left is not.
    assert sorted(path.name for path in out.iterdir()) == ["churn-holiday.json", "churn.json", "churn.log"]
    assert found.outcome is Outcome.BROKEN
    assert found.problems[0].endswith("ModuleNotFoundError: No module named 'no_such_module'")
    assert found.changed == [f"{CHURN}: its code"]
    assert len(states(found)) == len(found.checks) > 15
    assert set(states(found).values()) == {CheckState.MISSING}


@pytest.mark.soak
@pytest.mark.fault("C5")
def test_a_model_that_was_deleted_is_red_until_every_removal_is_declared(root: Path) -> None:
    (root / CHURN).unlink()

    found = tried(root)

    assert found.outcome is Outcome.FAIL
    assert set(states(found).values()) == {CheckState.REMOVED}
    entries = [f'[[change]]\ncheck = "{name}"\nreason = "nobody asks for churn any more"\n' for name in states(found)]
    made.write(root, {FILE: "".join(entries)})
    again = tried(root)
    assert (again.outcome, again.problems) == (Outcome.PASS, [])
    assert all("nobody asks for churn any more" in note for note in again.notes)


@pytest.mark.soak
@pytest.mark.fault("C5")
def test_a_schema_that_is_broken_is_red(root: Path) -> None:
    made.edit(
        root,
        CHURN,
        ("total_day_minutes: float = pa.Field(ge=0, le=1_440)", "total_day_minutes: float = pa.Field(ge=0, le=1)"),
    )
    found = tried(root)

    assert found.outcome is Outcome.FAIL
    assert states(found)["churn/validated_batches:values"] is CheckState.FAILED
    assert states(found)[REMOVED] is CheckState.MISSING
    assert any("does not take the rows of churn" in problem for problem in found.problems)


@pytest.mark.soak
@pytest.mark.fault("C5")
def test_what_stands_around_the_gates_is_read_from_a_models_file(root: Path, tmp_path: Path) -> None:
    made.edit(
        root,
        CHURN,
        ("account_length: int = pa.Field(ge=0, le=1_000)", "account_length: int = pa.Field(ge=0)"),
        ('customers["number_customer_service_calls"] >= 4', 'customers["number_customer_service_calls"] >= 40'),
        ('approval="automatic",', 'approval="automatic",\n    split="time",\n    least_rows=2,'),
        ("min_new_rows=100", "min_new_rows=1"),
    )
    trying = trial._Trying("churn", "", tmp_path, tmp_path / "log", lambda _: None)

    old, new = (trying.side(Code(folder=folder, words="code")) for folder in (PROJECT_ROOT, root))
    found = changes_of("churn", old.declares, new.declares, {})

    assert {change.check: change.kind for change in found} == {
        "churn:split": "changed",
        "churn:least_rows": "loosened",
        "churn:baseline": "changed",
        "churn:contract/account_length": "loosened",
    }


@pytest.mark.soak
def test_a_contract_that_is_none_is_red(root: Path) -> None:
    made.edit(root, CHURN, ("        strict = True\n", ""))

    found = tried(root)

    assert found.outcome is Outcome.BROKEN
    assert "must have Config.strict = True" in found.problems[0]


def test_a_model_that_is_nowhere_and_a_base_that_is_no_commit_are_refused(root: Path) -> None:
    with pytest.raises(ConfigurationError, match="There is no model 'nobody', here or in main"):
        try_change("nobody", "main", root, root.parent / "out")
    with pytest.raises(ConfigurationError, match="git fetch"):
        try_change("churn", "nowhere", root, root.parent / "out")


# Whole trials


@pytest.mark.soak
@pytest.mark.fault("C1")
def test_a_change_that_keeps_its_gates_passes_and_meets_the_champion(root: Path) -> None:
    made.edit(root, CHURN, ("max_iter=30", "max_iter=31"))

    found = tried(root)

    assert (found.outcome, found.problems, found.changes) == (Outcome.PASS, [], [])
    assert states(found) == {}
    here = found.corner("new", "new")
    assert here is not None
    assert here.champion == 1
    assert here.rival is not None
    assert (here.rival.kind, here.rival.name) == ("champion", "version 1")
    assert {"churn.json", "churn.log", "churn-curves.png", "churn-verdict.html"} == {
        file.name for file in (root.parent / "out").iterdir()
    }


@pytest.mark.soak
@pytest.mark.fault("C5")
def test_a_gate_that_was_removed_is_red_until_it_is_declared(root: Path) -> None:
    made.edit(root, CHURN, (F1, ""))

    found = tried(root)

    assert found.outcome is Outcome.FAIL
    assert states(found) == {REMOVED: CheckState.REMOVED}
    assert found.problems == [
        "churn/trained_model:f1_score is removed: f1_score >= 0.7, on rows the model has not seen. "
        f"If that is meant, say so in {FILE}."
    ]
    made.write(root, {FILE: f'[[change]]\ncheck = "{REMOVED}"\nreason = "nobody reads it any more"\n'})
    assert tried(root).outcome is Outcome.PASS


@pytest.mark.soak
@pytest.mark.fault("C5")
@pytest.mark.parametrize("answer", ["None", "False", "dg.AssetCheckResult(passed=True)"])
def test_an_authors_own_check_counts_only_with_a_record(answer: str, root: Path) -> None:
    made.edit(root, CHURN, ("@dg.definitions\n", OWN.format(answer=answer)))
    made.edit(root, CHURN, ("return model_definitions(churn)", "return model_definitions(churn, checks=[own_check])"))

    found = tried(root)

    if answer.endswith("(passed=True)"):
        assert (found.outcome, found.problems, states(found)) == (Outcome.PASS, [], {})
        assert OWN_CHECK in {check.check for check in found.checks}
        return
    assert found.outcome is Outcome.FAIL
    assert states(found)[OWN_CHECK] is CheckState.SKIPPED
    said = "it was run and gave no result, as one that returns None or False"
    assert f"the check {OWN_CHECK} is SKIPPED: {said}" in found.problems
    # Nothing stands behind it: it was judged, and there is no version.
    assert found.corner("new", "new") is not None
    assert states(found) == {OWN_CHECK: CheckState.SKIPPED, STAGED: CheckState.SKIPPED}
    assert f"the check {STAGED} is SKIPPED: it was planned, and the run ended before it had a result" in found.problems


@pytest.mark.soak
@pytest.mark.fault("C5")
def test_a_check_beside_what_the_platform_made_is_red_and_told_where_it_belongs(root: Path) -> None:
    both = "dg.Definitions.merge(model_definitions(churn), dg.Definitions(asset_checks=[own_check]))"
    made.edit(root, CHURN, ("@dg.definitions\n", OWN.format(answer="None")))
    made.edit(root, CHURN, ("return model_definitions(churn)", f"return {both}"))

    found = tried(root)

    assert found.outcome is Outcome.BROKEN
    assert f"The blocking check {OWN_CHECK} must be given to model_definitions(spec, checks=[…])" in found.problems[0]


@pytest.mark.soak
@pytest.mark.fault("C5")
def test_a_gate_that_fails_is_red_with_its_figure_and_the_exit_status_is_1(root: Path) -> None:
    made.edit(root, CHURN, ("at_least=0.80", "at_least=0.999"))
    out = root.parent / "out"
    command = [
        "-c",
        "from ml_platform.cli import main; main()",
        "quality",
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

    found = read(out / "churn.json")
    assert done.returncode == 1, done.stderr
    assert "refused: gate auc_roc >= 0.999 is FAIL: auc_roc is 0." in done.stderr
    assert states(found)["churn/trained_model:auc_roc"] is CheckState.FAILED


@pytest.mark.soak
def test_a_model_that_a_person_approves_is_approved_in_the_deployment_thrown_away(root: Path) -> None:
    frozen = next(iter(exports().values()))
    (root / "data" / "golden" / "churn").mkdir(parents=True)
    (root / "data" / "golden" / "churn" / "holiday.parquet").write_bytes(frozen)
    golden = f'golden=(GoldenSet(name="holiday", sha256="{hashlib.sha256(frozen).hexdigest()}"),),'
    made.edit(root, CHURN, ('approval="automatic",', f'approval="manual",\n    {golden}'))
    made.edit(root, CHURN, ("import Comparison, Gate,", "import Comparison, Gate, GoldenSet,"))
    made.commit(root)
    made.git(root, "branch", "before")
    made.edit(root, CHURN, ("max_iter=30", "max_iter=31"))

    found = try_change("churn", "before", root, root.parent / "out", golden="holiday")

    assert (found.outcome, found.problems) == (Outcome.PASS, [])
    assert read(root.parent / "out" / "churn-holiday.json") == found
    assert [found.dataset for found in found.corners[-1].figures].count("holiday") > 20
    here = found.corner("new", "new")
    assert here is not None
    assert here.champion == 1


@pytest.mark.soak
def test_a_new_model_is_held_against_its_baseline_and_said_to_be_new(root: Path) -> None:
    text = (root / CHURN).read_text().replace('name="churn"', 'name="leaving"')
    text = text.replace("churn = ModelSpec", "leaving = ModelSpec")
    text = text.replace("model_definitions(churn)", "model_definitions(leaving)")
    made.write(root, {"ml_platform/defs/models/leaving.py": text})
    shutil.copy(root / "data" / "churn.parquet", root / "data" / "leaving.parquet")

    found = try_change("leaving", "main", root, root.parent / "out")

    assert (found.outcome, found.problems, found.is_new) == (Outcome.PASS, [], True)
    assert "the code of main has no model leaving: it is new, and is held against its baseline" in found.notes
    assert found.corner("new", "new").rival.kind == "baseline"  # type: ignore[union-attr]


@pytest.mark.soak
def test_what_made_churn_worse_is_told_by_metric_slice_and_cause(root: Path) -> None:
    """Trees too small to learn from, and data in which labels of one slice are swapped."""
    made.edit(root, CHURN, ("max_iter=30", "max_iter=3, max_leaf_nodes=4"))
    file = root / "data" / "churn.parquet"
    rows = pd.read_parquet(file)
    swapped = rows.index[rows["international_plan"] == "yes"][::4]
    rows.loc[swapped, "churn"] = rows.loc[swapped, "churn"].map({"yes": "no", "no": "yes"})
    rows.to_parquet(file, index=False)

    found = tried(root)

    assert found.data_changed
    assert [(corner.code, corner.data) for corner in found.corners if corner.judged] == [
        ("old", "new"),
        ("new", "new"),
        ("old", "old"),
        ("new", "old"),
    ]
    said = sentences(found)
    slice_of_auc = next(one for one in said if one.startswith("auc_roc of international_plan = yes became worse"))
    assert "The causes are both, code and data: the code moves it by -0." in slice_of_auc
    assert "which closes the gate auc_roc >= 0.7, for each international_plan." in slice_of_auc
    assert json.loads((root.parent / "out" / "churn.json").read_text())["outcome"] == "FAIL"
