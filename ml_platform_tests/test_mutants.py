"""Known-bad candidates are stopped, each by name; and no guard can be switched off without one of them getting on."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ml_platform import predictor, private, views, workflows
from ml_platform.database import Database
from ml_platform.errors import PlatformError
from ml_platform.records import Action
from ml_platform.stages import approvals, gates, ledger, promotion, staging
from ml_platform.workflows import Platform, candidates, evidence
from ml_platform.workflows import ledger as ledger_workflow
from ml_platform.workflows import promotion as promotion_workflow
from ml_platform_tests import fakes, mutants
from ml_platform_tests.guards import guards_in, guards_of, switched_off
from ml_platform_tests.mutants import MUTANTS, Mutant
from ml_platform_tests.test_pipeline import checks_of, materialised, run, why

if TYPE_CHECKING:
    import dagster as dg

ROOT = Path(__file__).resolve().parent.parent

# `ml_platform.workflows.evidence` is a function, and the name of the module that it comes from.
EVIDENCE = sys.modules[evidence.__module__]
MODULES = (gates, EVIDENCE, promotion_workflow, promotion, approvals, staging)
FUNCTIONS: tuple[Any, ...] = (
    ledger_workflow.require_sound_ledger,
    ledger.chain_problems,
    ledger.anchor_problems,
    predictor.load,
    private.private_text,
    Database.verdict_on,
    Database.record_dataset,
    Database.append_to_ledger,
    candidates.train_candidate,
    views.gate_checks,
)
FOUND = [guards_in(module) for module in MODULES] + [guards_of(function) for function in FUNCTIONS]
GUARDS = {guard.name: guard for found in FOUND for guard in found}
# Conditions that look like guards, and why nothing gets on where they are switched off.
NO_GUARDS = {
    "stages.gates._asked: low > -comparison.margin #2": "follows from the gain, which is never below 0",
    "stages.gates._judge_at: place": "words of a message",
    "stages.gates._judge_at: value == figure.value": "words of a message",
    "stages.gates._judge_at: figure is None": "for the type checker: _problem says it before",
    "stages.gates._problem: figure and figure.reason": "words of a message",
    "stages.gates._bounds_problem: figure.value is None": "for the type checker: _problem says it before",
    "stages.gates._slack: result.value is None": "orders slices that fail",
    "stages.gates._holds: value is not None": "for the type checker: _problem and _bounds_problem say it before",
    "stages.gates.judge_gate: worst.outcome is GateOutcome.PASS": "words of a message",
    "stages.gates.judge_comparison: rival is None": "for the type checker: _no_comparison says it before",
    "stages.gates.judge_comparison: rival.low is None": "for the type checker: _no_comparison says it before",
    "stages.gates.judge_comparison: rival.difference is None": "for the type checker: _no_comparison says it before",
    "stages.staging._same: bool(near) and said['predictions'] == expected['predictions']": "serving/test_trial.py",
    "stages.staging.server_problem: found and (not _same(found, expected))": "serving/test_trial.py",
    "workflows.promotion._target: to is not None": "which version",
    "stages.promotion._entry: champion": "the number of the champion before",
    "stages.promotion._moving: rollout is None": "a rollout that the author declares is always there",
    "stages.promotion._moving: champion is None": "the first champion moves from nobody",
    "stages.promotion.confirm: is_confirmed(database, decision)": "a second confirmation says the same",
    "database.ledger.append_to_ledger: champion": "the number of the champion",
}
# Every guard, and the mutant that gets on without it, or is stopped by other words than its own.
GATES, EVIDENCES, WORKFLOW = "stages.gates.", "workflows.evidence.", "workflows.promotion."
PROMOTION, APPROVALS, DATABASE = "stages.promotion.", "stages.approvals.", "database."
NOTICED_BY = {
    f"{GATES}_asked: rival.kind == 'baseline'": "a baseline that is just reached",
    f"{GATES}_asked: comparison.minimum_gain is not None": "a gain too small",
    f"{GATES}_asked: low > -comparison.margin": "worse than the champion",
    f"{GATES}_asked: low > 0": "a baseline that is just reached",
    f"{GATES}_asked: low >= gain": "a gain too small",
    f"{GATES}_bounds_problem: figure.low is None": "no lower bound",
    f"{GATES}_bounds_problem: figure.high is None": "no upper bound",
    f"{GATES}_bounds_problem: figure.low <= figure.value <= figure.high": "bounds beside their value",
    f"{GATES}_decide: gate.metric in TIMES and (not _holds(gate, good))": "an answer within the noise",
    f"{GATES}_decide: _holds(gate, value)": "an AUC just below its gate",
    f"{GATES}_holds: value <= gate.bound if gate.at_least is None else value >= gate.bound": "a bad slice",
    f"{GATES}_judge_at: problem": "an empty holdout",
    f"{GATES}_judge_at: len(found) == 1": "two figures of one metric",
    f"{GATES}_no_comparison: rival is None": "compared with nobody",
    f"{GATES}_no_comparison: rival.metric != comparison.metric": "compared by another metric",
    f"{GATES}_no_comparison: rival.reason": "a rival that gave no answer",
    f"{GATES}_no_comparison: (stranger := _stranger(comparison, findings, rival, model_digest))": (
        "compared with a stranger"
    ),
    f"{GATES}_no_comparison: rival.rows < comparison.least_rows": "compared on five rows",
    f"{GATES}_no_comparison: any((number is None or not isfinite(number) for number in numbers))": (
        "a difference that is no number"
    ),
    f"{GATES}_no_comparison: in_order": "a difference beside its bounds",
    f"{GATES}_number: value is not None": "a metric without a value",
    f"{GATES}_number: isfinite(value)": "a NaN that is written down",
    f"{GATES}_problem: figure is None": "a metric that is missing",
    f"{GATES}_problem: figure.value is None": "a metric without a value",
    f"{GATES}_problem: not isfinite(figure.value)": "a NaN that meets a gate",
    f"{GATES}_problem: figure.rows is not None and figure.rows < gate.least_rows": "an empty holdout",
    f"{GATES}_problem: not least <= figure.value <= most": "79 instead of 0.79",
    f"{GATES}_problem: gate.on == 'bound'": "bounds beside their value",
    f"{GATES}_problem: gate.metric in TIMES": "a time without its noise",
    f"{GATES}_stranger: rival.kind == 'champion'": "the champion compared with itself",
    f"{GATES}_stranger: same_bytes": "the champion compared with itself",
    f"{GATES}_stranger: excused": "compared with the baseline only",
    f"{GATES}_stranger: rival.version == findings.champion": "compared with a stranger",
    f"{GATES}judge: spec.comparison is not None": "worse than the champion",
    f"{GATES}judge_comparison: problem": "compared on five rows",
    f"{GATES}judge_comparison: holds": "worse than the champion",
    f"{GATES}refusals: model_digest != verdict.model_digest": "a record that follows other bytes",
    f"{GATES}refusals: model_digest != candidate.model_digest": "a record of other bytes alone",
    f"{GATES}refusals: verdict.gates_digest != gates_digest(spec)": "the comparison dropped since",
    f"{GATES}refusals: again.digest != verdict.digest": "a result that does not follow",
    f"{GATES}refusals: found += [result.why for result in again.results if result.outcome is not GateOutcome.PASS]": (
        "an AUC just below its gate"
    ),
    f"{EVIDENCES}_overtaken: spec.comparison is None or champion is None or champion.candidate == candidate.id or "
    "(champion.version == then)": "a comparison that somebody overtook",
    f"{EVIDENCES}evidence: verdict is None": "no verdict",
    f"{EVIDENCES}evidence: refusals": "an AUC just below its gate",
    f"{EVIDENCES}evidence: refusals += _overtaken(platform, spec, candidate, verdict)": (
        "a comparison that somebody overtook"
    ),
    f"{WORKFLOW}_never_champion: spec.approval_needed is not None": "a rollback to what nobody approved",
    f"{WORKFLOW}_never_champion: promotion.require_approval": "a rollback to what nobody approved",
    f"{WORKFLOW}_promoting: not held": "two promotions at once",
    f"{WORKFLOW}_registration: known is None": "a version that was never registered",
    f"{WORKFLOW}_require_bytes: kept.is_file()": "a rollback to bytes that are gone",
    f"{WORKFLOW}_require_bytes: file_digest(kept) == candidate.model_digest": "a rollback to bytes that are lost",
    f"{WORKFLOW}_require_bytes: file_digest(model_file) != candidate.model_digest": "a rollback to bytes that are lost",
    f"{WORKFLOW}_staged: found is None": "an approval of no version",
    f"{WORKFLOW}staged_evidence: not platform.database.is_staged(registration)": "a version that was never staged",
    f"{WORKFLOW}_target: not history": "a rollback of what never reigned",
    f"{WORKFLOW}_target: len(champions) < 2": "a rollback before the first champion",
    f"{WORKFLOW}_target: found is None": "a rollback to a version that is not there",
    f"{WORKFLOW}approve_version: spec.approval_needed is None": "an approval that nobody asked for",
    f"{WORKFLOW}approve_version: require_reason": "an approval that says no reason",
    f"{WORKFLOW}approve_version: require_sound_ledger": "an approval in a ledger that was edited",
    f"{WORKFLOW}promote_version: require_sound_ledger": "an entry of the ledger edited",
    f"{WORKFLOW}register_candidate: candidate.mlflow_run_id is None": "no MLflow run",
    f"{WORKFLOW}require_reason: not reason.strip()": "a rollback that says no reason",
    f"{WORKFLOW}require_reason: not reason.isprintable()": "a rollback for an unprintable reason",
    f"{WORKFLOW}roll_back: require_reason": "a rollback that says no reason",
    f"{WORKFLOW}roll_back: require_sound_ledger": "a rollback in a ledger that was edited",
    f"{WORKFLOW}roll_back: earlier": "a rollback to bytes that are lost",
    f"{WORKFLOW}roll_back: _require_bytes": "a rollback to bytes that are lost",
    f"{WORKFLOW}show_champion: is_shown(platform, model)": "an alias that somebody moved",
    f"{PROMOTION}_expiry: now() < approval.expires_at": "a stale approval",
    f"{PROMOTION}_refusal: person.authenticated_by not in needed.authenticated_by": (
        "an approval in a way that does not count"
    ),
    f"{PROMOTION}_refusal: candidate.actor is not None and same_name(person.name, candidate.actor)": (
        "an approval by who asked for it"
    ),
    f"{PROMOTION}_require_newer: (ours.lineage.dataset_version, ours.trained_at) < (theirs.lineage.dataset_version, "
    "theirs.trained_at)": "a candidate of older rows",
    f"{PROMOTION}_require_not_rolled_back: entry.version not in versions": "what was rolled back",
    f"{PROMOTION}_require_not_rolled_back: entry.version == registration.version": "what was rolled back",
    f"{PROMOTION}_require_not_rolled_back: not ours.lineage.reason.startswith('manual') and "
    "_same_making(ours, theirs)": "what was rolled back, made again",
    f"{PROMOTION}_same_making: replace(one.lineage, reason='', dataset_version=0) == replace(other.lineage, reason='', "
    "dataset_version=0)": "what was rolled back, made again",
    f"{PROMOTION}approve: refusal": "one's own approval",
    f"{PROMOTION}confirm: database.champion(decision.model) != decision": "a confirmation of what was overtaken",
    f"{PROMOTION}promote: champion is not None and champion.version == registration.version": (
        "the champion, promoted again"
    ),
    f"{PROMOTION}promote: champion is not None": "what was rolled back",
    f"{PROMOTION}promote: needed is not None": "no approval",
    f"{PROMOTION}promote: unfinished is not None and carried_out": "a promotion during a rollout",
    f"{PROMOTION}promote: _require_not_rolled_back": "what was rolled back",
    f"{PROMOTION}promote: _require_newer": "a candidate of older rows",
    f"{PROMOTION}require_approval: refusal is None": "a stale approval",
    f"{PROMOTION}roll_back: champion is not None and champion.version == target.version": "a rollback to the champion",
    f"{PROMOTION}roll_back: instead_of is not None and (champion is None or champion.sequence != instead_of)": (
        "an abort of what was decided again"
    ),
    f"{PROMOTION}same_name: one.partition('@')[0].casefold() == other.partition('@')[0].casefold()": (
        "an approval by who asked for it"
    ),
    "private.private_text: not stat.S_ISREG(mode)": "tokens from a pipe",
    "private.private_text: mode & (stat.S_IRWXG | stat.S_IRWXO)": "tokens that others may read",
    f"{APPROVALS}_tokens: path is None": "no file of tokens",
    f"{APPROVALS}_tokens: not isinstance(known, dict)": "tokens in a list",
    f"{APPROVALS}_tokens: not all((SHA256.fullmatch(str(value)) for value in known.values()))": "tokens in plain text",
    f"{APPROVALS}github_person: run is None": "no GitHub job",
    f"{APPROVALS}github_person: not run.environment": "a GitHub job outside an environment",
    f"{APPROVALS}github_person: not run.approver": "a GitHub job of nobody",
    f"{APPROVALS}token_holder: not (right and NAME.fullmatch(name) and (name in known))": "a wrong token",
    "stages.staging.integration_test: found == expected": "answers that differ from the gated ones",
    f"{WORKFLOW}approve_version: verdict_digest is not None and verdict.digest != verdict_digest": (
        "an approval of a verdict that nobody looked at"
    ),
    f"{WORKFLOW}integration_problem: problem is not None": "answers that differ from the gated ones",
    "stages.staging.server_problem: not found or found['p95_ms'] <= most_ms": (
        "a version that is too slow behind the server"
    ),
    "stages.staging.server_problem: candidate.served_digest is None": "a version that no server knows",
    "stages.staging.signature_problem: list(shown) == list(asked)": "a signature that asks for something else",
    "workflows.ledger.require_sound_ledger: report.problems": "an entry of the ledger edited",
    "stages.ledger.chain_problems: entry.sequence != sequence + 1": "an entry of the ledger removed",
    "stages.ledger.chain_problems: entry.digest != stored_digest": "an entry of the ledger edited",
    "stages.ledger.chain_problems: entry.previous_digest != digest": "an entry that follows nothing",
    "stages.ledger.anchor_problems: head.sequence > last": "the ledger's end cut off",
    "stages.ledger.anchor_problems: digests.get(head.sequence) != head.digest": "a forged first entry",
    "predictor.load: found != digest": "the champion's bytes, kept",
    f"{DATABASE}candidates.verdict_on: row is None": "an AUC just below its gate",
    f"{DATABASE}candidates.verdict_on: verdict.digest != row['digest']": "a verdict under another digest",
    f"{DATABASE}candidates.record_dataset: forgotten_at is not None": "rows of somebody who was forgotten",
    f"{DATABASE}candidates.record_dataset: digest != dataset.digest": "rows that changed under their version",
    f"{DATABASE}ledger.append_to_ledger: (entry.sequence, entry.previous_digest) != follows": (
        "a promotion by an old look"
    ),
    f"{DATABASE}ledger.append_to_ledger: entry.decides and entry.previous_version != version": (
        "a promotion over another champion"
    ),
    "workflows.candidates.train_candidate: pinned is None": "no dataset",
    "workflows.candidates.train_candidate: problems": "a feature that equals the label",
    "views.gate_checks: sorted((result.name for result in verdict.results)) != sorted(asked)": "checks without a gate",
}


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """The home of a platform with a champion and its staged successor; tests copy it."""
    return mutants.honest_home(tmp_path_factory.mktemp("honest") / "home", empty_mlflow)


@pytest.fixture
def promising(honest: Path, tmp_path: Path) -> Iterator[Platform]:
    """A platform with a champion and its staged successor."""
    opened = fakes.copied_platform(honest, tmp_path / "home")
    yield opened
    opened.database.close()


def got_on(mutant: Mutant, platform: Platform) -> str:
    """Attempt what a mutant must not achieve; say what came of it that should not, or nothing."""
    database, registry = platform.database, platform.registry
    champion, before, alias = (
        database.champion("visits"),
        database.ledger("visits"),
        registry.alias("visits", "champion"),
    )
    try:
        mutant.attempt(platform, mutant.spec)
        said = ""
    except PlatformError as error:
        said = str(error)
    if not re.search(mutant.why, said):
        return f"it was refused by other words: {said}" if said else "nobody refused"
    if database.champion("visits") != champion:
        return "there is another champion"
    after = database.ledger("visits")
    if after[: len(before)] != before or {entry.action for entry in after[len(before) :]} - {Action.REQUEST}:
        return "the ledger has another entry"
    aligned = champion.version if champion and mutant.attempt is mutants.reconcile else alias
    return "" if registry.alias("visits", "champion") == aligned else "the alias moved"


def test_the_successor_without_a_change_is_promoted(promising: Platform) -> None:
    assert mutants.promote(promising, mutants.SPEC).version == 2
    assert promising.registry.alias("visits", "champion") == 2


# What docs/faults.md asks to be survived.
FAULTS = {
    "one byte of the registered file": "M3",
    "one byte of the kept file": "M3",
    "a tampered file in the integration test": "M3",
    "a signature that asks for something else": "M5",
    "a version without a signature": "M5",
    "two promotions at once": "P7",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.fault(FAULTS[name]) if name in FAULTS else ()) for name in MUTANTS]
)
def test_a_mutant_is_stopped_by_name_and_changes_nothing(promising: Platform, name: str) -> None:
    MUTANTS[name].change(promising)

    assert got_on(MUTANTS[name], promising) == ""


def test_every_fault_that_a_mutant_stands_for_has_one() -> None:
    assert set(FAULTS) <= set(MUTANTS)


# The guards


def test_every_guard_in_the_source_has_a_mutant() -> None:
    """Who adds or changes a guard adds the mutant that it stops."""
    assert set(GUARDS) == set(NOTICED_BY) | set(NO_GUARDS)
    assert set(NOTICED_BY.values()) <= set(MUTANTS)


@pytest.mark.parametrize("name", NOTICED_BY)
def test_a_guard_that_is_switched_off_is_noticed(promising: Platform, name: str) -> None:
    mutant = MUTANTS[NOTICED_BY[name]]
    mutant.change(promising)

    with switched_off(GUARDS[name]):
        try:
            noticed = got_on(mutant, promising)
        except Exception as error:  # noqa: BLE001 - a crash is noticed like any other end
            noticed = f"it ended by {error!r}"

    assert noticed, f"{mutant.why!r} is said without this guard too"


# The graph


def half_inverted(platform: Platform) -> None:
    """Publish visitors of whom every second one has the wrong label."""
    rows = fakes.visits(1_200, first=10_000, day=3)
    inverted = rows["bought"].map({"yes": "no", "no": "yes"})
    fakes.drop(platform, "3.parquet", rows.assign(bought=rows["bought"].where(rows["visitor"] % 2 == 0, inverted)))
    keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, "visits")]
    workflows.keep_raw_batches(platform, "visits", keys)
    workflows.publish_batches(platform, mutants.SPEC, keys)


def constant() -> Any:
    """Return a pipeline that has learnt the share of those who buy and nothing else."""
    from sklearn.dummy import DummyClassifier

    return fakes.visits_pipeline().set_params(classify=DummyClassifier())


WHOLE = {
    "labels of which half are inverted": (half_inverted, mutants.SPEC),
    "a model that learnt nothing": (mutants.nothing, fakes.visits_spec(pipeline=constant)),
}
BEHIND = ["registered_version", "staging_version", "champion_version"]
# One of each class of mutants, in a run that starts behind the gates, or at its last step.
LATE = {
    "an AUC just below its gate": BEHIND,
    "a gate that returned None": BEHIND,
    "a gate dropped from the verdict": BEHIND,
    "the champion's verdict": BEHIND,
    "a gate dropped since": BEHIND,
    "the kept file at registration": BEHIND,
    "one byte of the registered file": BEHIND[2:],
    "a version that was never staged": BEHIND[2:],
    "an entry of the ledger edited": BEHIND[2:],
    "what was rolled back": BEHIND[2:],
    "a stale approval": BEHIND[2:],
    "no approval": BEHIND[2:],
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_graph_is_red_for_a_bad_candidate(
    promising: Platform, instance: "dg.DagsterInstance", name: str
) -> None:
    change, spec = WHOLE[name]
    change(promising)
    champion = promising.database.champion("visits")

    result = run("visits_retrain", instance, spec)

    assert not result.success
    assert not checks_of(result)["auc_roc"]
    assert materialised(result) == {"training_dataset", "trained_model"}
    assert promising.database.champion("visits") == champion
    assert promising.registry.alias("visits", "champion") == 1


@pytest.mark.parametrize("name", LATE)
def test_a_run_behind_the_gates_is_red_for_a_mutant(
    promising: Platform, instance: "dg.DagsterInstance", name: str
) -> None:
    import dagster as dg

    mutant = MUTANTS[name]
    mutant.change(promising)
    champion = promising.database.champion("visits")

    selection = [dg.AssetKey(["visits", asset]) for asset in LATE[name]]
    result = run("visits_retrain", instance, mutant.spec, asset_selection=selection)

    assert not result.success
    assert re.search(mutant.why, "".join(why(result)))
    assert materialised(result) == set()
    assert promising.database.champion("visits") == champion


def materialise(selection: str, folder: Path, mutant: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command that CI runs, in a folder of its own, on the platform in its ``home``; with a mutant's spec."""
    shutil.copy(ROOT / "dagster.yaml", folder)
    program = [str(Path(sys.executable).parent / "dagster"), "asset", "materialize", "--select", selection]
    here = {
        "DAGSTER_HOME": str(folder),
        "ML_PLATFORM_CODE_REVISION": "0" * 40,
        "PYTHONPATH": str(ROOT),
        "MUTANT": mutant,
    }
    return subprocess.run(
        [*program, "-m", "ml_platform_tests.materialised"],
        env={**os.environ, **here},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.e2e
def test_the_command_of_ci_exits_with_1_for_a_bad_candidate(promising: Platform, tmp_path: Path) -> None:
    half_inverted(promising)

    done = materialise("group:visits", tmp_path)

    assert done.returncode == 1, done.stderr
    assert "auc_roc is 0." in done.stderr + done.stdout
    assert promising.database.newest_candidate("visits") != promising.database.candidate(champion_of(promising))
    assert promising.database.history("visits")[-1].version == promising.registry.alias("visits", "champion") == 1


def champion_of(platform: Platform) -> str:
    return mutants.champion(platform).candidate


# What is left of the graph at the step that a mutant attempts. The command cannot run gates alone: it trains first.
REMAINING: dict[mutants.Attempt, str] = {
    mutants.train: "trained_model",
    mutants.register: "registered_version",
    mutants.stage: "staging_version",
    mutants.promote: "champion_version",
}


@pytest.mark.soak
@pytest.mark.e2e
@pytest.mark.parametrize("name", [name for name, mutant in MUTANTS.items() if mutant.attempt in REMAINING])
def test_the_command_of_ci_exits_with_1_for_every_mutant(promising: Platform, tmp_path: Path, name: str) -> None:
    MUTANTS[name].change(promising)
    before = promising.database.history("visits")

    done = materialise(f'key:"visits/{REMAINING[MUTANTS[name].attempt]}"+', tmp_path, mutant=name)

    assert done.returncode == 1, done.stderr
    assert re.search(MUTANTS[name].why.removeprefix("integration test is red: "), done.stderr + done.stdout)
    assert promising.database.history("visits") == before


@pytest.mark.soak
def test_the_command_of_ci_exits_with_0_for_an_honest_successor(promising: Platform, tmp_path: Path) -> None:
    done = materialise('key:"visits/champion_version"', tmp_path)

    assert done.returncode == 0, done.stderr
    assert promising.registry.alias("visits", "champion") == 2
