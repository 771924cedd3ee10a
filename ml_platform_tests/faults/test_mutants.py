"""Every known-bad candidate is refused with its own message, and one of them passes if a guard is disabled."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ml_platform.data.ingest import publish_batches, store_raw_batches
from ml_platform.data.landing import waiting_arrivals
from ml_platform.errors import PlatformError
from ml_platform.platform import Platform
from ml_platform.records.ledger import Action
from ml_platform.settings import PROJECT_ROOT
from ml_platform_tests.support import fakes, mutants
from ml_platform_tests.support.dagster_runs import materialised, read_checks, run, why
from ml_platform_tests.support.guard_markers import read_guards, switched_off
from ml_platform_tests.support.mutants import MUTANTS, Mutant

if TYPE_CHECKING:
    import dagster as dg


GUARDS, MARKER_PROBLEMS = read_guards()
# Each guard, and a mutant that passes, or is refused with another message, if the guard is disabled.
NOTICED_BY = {
    "duplicate-measurement": "two measurements of one metric",
    "unusable-measurement": "an empty holdout",
    "missing-measurement": "a metric that is missing",
    "missing-value": "a metric without a value",
    "nan-value": "a NaN that meets a gate",
    "gate-too-few-rows": "an empty holdout",
    "implausible-value": "79 instead of 0.79",
    "bound-of-gate-on-bound": "bounds beside their value",
    "bound-of-time": "a time without its noise",
    "no-lower-bound": "no lower bound",
    "no-upper-bound": "no upper bound",
    "value-outside-bounds": "bounds beside their value",
    "time-within-noise": "an answer within the noise",
    "gate-met": "an AUC just below its gate",
    "gate-bound": "a bad slice",
    "unusable-comparison": "compared on five rows",
    "comparison-met": "worse than the champion",
    "baseline-comparison": "a baseline that is just reached",
    "gain-over-baseline": "a baseline that is just reached",
    "minimum-gain-declared": "a gain too small",
    "minimum-gain": "a gain too small",
    "comparison-margin": "worse than the champion",
    "no-comparison": "no comparison at all",
    "comparison-of-other-metric": "compared by another metric",
    "failed-comparison": "a reference that gave no answer",
    "comparison-with-other-version": "compared with a stranger",
    "comparison-too-few-rows": "compared on five rows",
    "nan-difference": "a difference that is no number",
    "difference-outside-bounds": "a difference beside its bounds",
    "champion-comparison": "the champion compared with itself",
    "comparison-with-same-bytes": "the champion compared with itself",
    "comparison-with-champion": "compared with a stranger",
    "baseline-despite-champion": "compared with the baseline only",
    "comparison-declared": "worse than the champion",
    "unset-number": "a metric without a value",
    "nan-number": "a NaN that is written down",
    "verdict-of-other-bytes": "a record that follows other bytes",
    "candidate-of-other-bytes": "a record of other bytes alone",
    "changed-gates": "the comparison dropped since",
    "edited-verdict": "a result that does not follow",
    "failed-gates": "an AUC just below its gate",
    "no-verdict": "no verdict",
    "overtaken-comparison": "a comparison with an earlier champion",
    "refused-evidence": "an AUC just below its gate",
    "current-comparison": "a comparison with an earlier champion",
    "promotion-ledger": "an entry of the ledger edited",
    "promotion-lock": "two promotions at once",
    "not-staged": "a version that was never staged",
    "approval-not-declared": "an approval that is not required",
    "approval-reason": "an approval that says no reason",
    "approval-ledger": "an approval in a ledger that was edited",
    "approval-of-other-verdict": "an approval of an unseen verdict",
    "approval-of-missing-version": "an approval of no version",
    "blank-reason": "a rollback that says no reason",
    "unprintable-reason": "a rollback for an unprintable reason",
    "not-registered": "a version that was never registered",
    "registration-of-other-model": "a registration under another model",
    "failed-integration-test": "answers that differ from the gated ones",
    "rollback-reason": "a rollback that says no reason",
    "rollback-ledger": "a rollback in a ledger that was edited",
    "former-champion": "a rollback to bytes that are lost",
    "former-champion-bytes": "a rollback to bytes that are lost",
    "rollback-without-champion": "a rollback of what never reigned",
    "rollback-to-missing-version": "a rollback to a version that is not there",
    "rollback-before-first-champion": "a rollback before the first champion",
    "local-bytes-missing": "a rollback to bytes that are gone",
    "local-bytes-changed": "a rollback to bytes that are lost",
    "registry-bytes-changed": "a rollback to bytes that are lost",
    "rollback-approval-declared": "a rollback to an unapproved version",
    "rollback-approval": "a rollback to an unapproved version",
    "promotion-of-champion": "the champion, promoted again",
    "promotion-over-champion": "what was rolled back",
    "promotion-after-rollback": "what was rolled back",
    "promotion-of-older-candidate": "a candidate of older rows",
    "promotion-approval": "no approval",
    "unfinished-rollout": "a promotion during a rollout",
    "older-candidate": "a candidate of older rows",
    "rollback-to-champion": "a rollback to the champion",
    "rollback-of-older-decision": "an abort of what was decided again",
    "version-not-rolled-back": "what was rolled back",
    "rolled-back-version": "what was rolled back",
    "rolled-back-making": "what was rolled back, made again",
    "rolled-back-bytes": "the bytes that were rolled back",
    "request-by-hand": "what was rolled back, made again",
    "unknown-request-time": "what was rolled back, requested at no time",
    "request-since-rollback": "what was rolled back, requested before",
    "same-making": "what was rolled back, made again",
    "overtaken-confirmation": "a confirmation of what was overtaken",
    "refused-approval": "one's own approval",
    "approval-authentication": "an approval in a way that does not count",
    "self-approval": "an approval by who asked for it",
    "self-approval-by-user": "an approval by the user who trained",
    "same-name": "an approval by who asked for it",
    "valid-approval": "a stale approval",
    "unexpired-approval": "a stale approval",
    "ledger-chain": "an entry of the ledger edited",
    "ledger-anchors": "the ledger's end cut off",
    "ledger-problems": "an entry of the ledger edited",
    "shown-alias": "a moved alias",
    "alias-ledger": "a forged first entry",
    "champion-shown": "a moved alias",
    "ledger-gap": "an entry of the ledger removed",
    "ledger-edit": "an entry of the ledger edited",
    "ledger-link": "an entry that follows nothing",
    "ledger-tail": "the ledger's end cut off",
    "ledger-other-entry": "a forged first entry",
    "wrong-token": "a wrong token",
    "no-token-file": "no file of tokens",
    "token-file-no-object": "tokens in a list",
    "token-file-plain-text": "tokens in plain text",
    "no-github-job": "no GitHub job",
    "no-token-service": "a GitHub job without a token service",
    "no-github-environment": "a GitHub job outside an environment",
    "no-github-repository": "a GitHub job of no repository",
    "no-github-reviewer": "a GitHub job without a reviewer",
    "no-audience": "an approval in GitHub of no verdict",
    "unknown-signing-key": "a token by an unknown key",
    "token-of-other-job": "a GitHub job of another repository",
    "token-without-run": "a GitHub job without a run",
    "token-service-no-object": "a token service that returns a list",
    "approval-audience": "a token of GitHub for another verdict",
    "golden-answers": "answers that differ from the gated ones",
    "no-served-files": "a version that no server knows",
    "server-latency": "a version that is too slow behind the server",
    "model-signature": "a signature that asks for something else",
    "model-file-digest": "the champion's bytes, kept",
    "secret-not-a-file": "tokens from a pipe",
    "secret-file-mode": "tokens that others may read",
    "erased-dataset": "an erased dataset",
    "changed-dataset": "rows that changed under their version",
    "no-stored-verdict": "an AUC just below its gate",
    "stored-verdict-digest": "a verdict under another digest",
    "stored-verdict-form": "a verdict in another form",
    "stored-verdict-columns": "a verdict whose columns were edited",
    "unanchored-verdict": "a verdict that only the database has",
    "served-files-of-verdict": "a list of served files edited",
    "decision-evidence": "the champion's digest edited with its file",
    "append-after-other-entry": "a promotion by an old look",
    "append-after-other-champion": "a promotion over another champion",
    "no-dataset": "no dataset",
    "dataset-problems": "a feature that equals the label",
    "missing-check": "checks without a gate",
}


@pytest.fixture
def promising(honest: Path, tmp_path: Path) -> Iterator[Platform]:
    """A platform with a champion and a staged successor."""
    opened = fakes.copied_platform(honest, tmp_path / "home")
    yield opened
    opened.database.close()


def find_failure(mutant: Mutant, platform: Platform) -> str:
    """Attempt a mutant's step, and return the expected refusal's failure; an empty string if there is none."""
    database, registry = platform.database, platform.registry
    champion, before, alias = (
        database.champion("visits"),
        database.ledger("visits"),
        registry.alias("visits", "champion"),
    )
    try:
        mutant.attempt(platform, mutant.spec)
        message = ""
    except PlatformError as error:
        message = str(error)
    if not re.search(mutant.why, message):
        return f"it was refused with another message: {message}" if message else "it was not refused"
    if database.champion("visits") != champion:
        return "there is another champion"
    after = database.ledger("visits")
    if after[: len(before)] != before or {entry.action for entry in after[len(before) :]} - {Action.REQUEST}:
        return "the ledger has another entry"
    aligned = champion.version if champion and mutant.attempt is mutants.reconcile else alias
    return "" if registry.alias("visits", "champion") == aligned else "the alias moved"


def test_unchanged_successor_is_promoted(promising: Platform) -> None:
    assert mutants.promote(promising, mutants.SPEC).version == 2
    assert promising.registry.alias("visits", "champion") == 2


# The faults of docs/faults.md that a mutant injects.
FAULTS = {
    "one byte of the registered file": "M3",
    "one byte of the kept file": "M3",
    "a tampered file in the integration test": "M3",
    "a signature that asks for something else": "M5",
    "a version without a signature": "M5",
    "two promotions at once": "P7",
    "an approval by the user who trained": "A1",
    "what was rolled back, requested before": "A4",
    "the bytes that were rolled back": "A4",
    "the champion's digest edited with its file": "E1",
    "a verdict that only the database has": "E2",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.fault(FAULTS[name]) if name in FAULTS else ()) for name in MUTANTS]
)
def test_mutant_is_refused_and_changes_nothing(promising: Platform, name: str) -> None:
    MUTANTS[name].change(promising)

    assert find_failure(MUTANTS[name], promising) == ""


def test_every_fault_names_a_mutant() -> None:
    assert set(FAULTS) <= set(MUTANTS)


# The guards


def test_every_condition_has_a_marker() -> None:
    assert MARKER_PROBLEMS == []


def test_every_guard_has_a_mutant() -> None:
    assert set(GUARDS) == set(NOTICED_BY)
    assert set(NOTICED_BY.values()) <= set(MUTANTS)


@pytest.mark.parametrize("guard", NOTICED_BY)
def test_disabled_guard_is_noticed(promising: Platform, guard: str) -> None:
    mutant = MUTANTS[NOTICED_BY[guard]]
    mutant.change(promising)

    with switched_off(GUARDS[guard]):
        try:
            noticed = find_failure(mutant, promising)
        except Exception as error:  # noqa: BLE001 - a crash also shows that the guard is missing
            noticed = f"it failed with {error!r}"

    assert noticed, f"{mutant.why!r} is also the message without this guard"


# The graph


def half_inverted(platform: Platform) -> None:
    """Publish visitors, of whom every second one has the wrong label."""
    rows = fakes.visits(1_200, first=10_000, day=3)
    inverted = rows["bought"].map({"yes": "no", "no": "yes"})
    fakes.drop(platform, "3.parquet", rows.assign(bought=rows["bought"].where(rows["visitor"] % 2 == 0, inverted)))
    keys = [arrival.key for arrival in waiting_arrivals(platform, "visits")]
    store_raw_batches(platform, "visits", keys)
    publish_batches(platform, mutants.SPEC, keys)


def constant() -> Any:
    """Return a pipeline that learns only the share of buyers."""
    from sklearn.dummy import DummyClassifier

    return fakes.visits_pipeline().set_params(classify=DummyClassifier())


WHOLE = {
    "labels of which half are inverted": (half_inverted, mutants.SPEC),
    "a model that learnt nothing": (mutants.nothing, fakes.visits_spec(pipeline=constant)),
}
BEHIND = ["registered_version", "staging_version", "champion_version"]
# One mutant of each class, in a run that starts after the gates or at the last step.
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
def test_graph_fails_for_bad_candidate(promising: Platform, instance: "dg.DagsterInstance", name: str) -> None:
    change, spec = WHOLE[name]
    change(promising)
    champion = promising.database.champion("visits")

    result = run("visits_retrain", instance, spec)

    assert not result.success
    assert not read_checks(result)["auc_roc"]
    assert materialised(result) == {"training_dataset", "trained_model"}
    assert promising.database.champion("visits") == champion
    assert promising.registry.alias("visits", "champion") == 1


@pytest.mark.parametrize("name", LATE)
def test_run_after_gates_fails_for_mutant(promising: Platform, instance: "dg.DagsterInstance", name: str) -> None:
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
    """Run CI's command in a folder, on the platform in its ``home``, with a mutant's spec if one is named."""
    shutil.copy(PROJECT_ROOT / "dagster.yaml", folder)
    program = [str(Path(sys.executable).parent / "dagster"), "asset", "materialize", "--select", selection]
    here = {
        "DAGSTER_HOME": str(folder),
        "PYTHONPATH": str(PROJECT_ROOT),
        "MUTANT": mutant,
    }
    return subprocess.run(
        [*program, "-m", "ml_platform_tests.support.materialize_location"],
        env={**os.environ, **here},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.servers
@pytest.mark.e2e
def test_ci_command_exits_1_for_bad_candidate(promising: Platform, tmp_path: Path) -> None:
    half_inverted(promising)

    done = materialise("group:visits", tmp_path)

    assert done.returncode == 1, done.stderr
    assert "auc_roc is 0." in done.stderr + done.stdout
    assert promising.database.newest_candidate("visits") != promising.database.candidate(read_champion_id(promising))
    assert promising.database.history("visits")[-1].version == promising.registry.alias("visits", "champion") == 1


def read_champion_id(platform: Platform) -> str:
    return mutants.champion(platform).candidate


# The first asset of the rest of the graph at a mutant's step. The command cannot run gates alone: it trains first.
REMAINING: dict[mutants.Attempt, str] = {
    mutants.train: "trained_model",
    mutants.register: "registered_version",
    mutants.stage: "staging_version",
    mutants.promote: "champion_version",
}


@pytest.mark.soak
@pytest.mark.e2e
@pytest.mark.parametrize("name", [name for name, mutant in MUTANTS.items() if mutant.attempt in REMAINING])
def test_ci_command_exits_1_for_every_mutant(promising: Platform, tmp_path: Path, name: str) -> None:
    MUTANTS[name].change(promising)
    before = promising.database.history("visits")

    done = materialise(f'key:"visits/{REMAINING[MUTANTS[name].attempt]}"+', tmp_path, mutant=name)

    assert done.returncode == 1, done.stderr
    assert re.search(MUTANTS[name].why.removeprefix("integration test failed: "), done.stderr + done.stdout)
    assert promising.database.history("visits") == before


@pytest.mark.soak
def test_ci_command_exits_0_for_honest_successor(promising: Platform, tmp_path: Path) -> None:
    done = materialise('key:"visits/champion_version"', tmp_path)

    assert done.returncode == 0, done.stderr
    assert promising.registry.alias("visits", "champion") == 2
