import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from typer.testing import CliRunner

from ml_platform.cli import app
from ml_platform.data import quarantine
from ml_platform.data.ingest import publish_batches, store_raw_batches
from ml_platform.data.landing import waiting_arrivals
from ml_platform.devtools.demo_data import exports
from ml_platform.errors import (
    ApprovalNeededError,
    ApprovalRefusedError,
    ConfigurationError,
    DataError,
    LandingZoneError,
)
from ml_platform.governance.reproduce import Reproduction, ReproductionOutcome
from ml_platform.model_spec import Approval, ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.canonical import sha256_text
from ml_platform.records.ledger import LedgerEntry
from ml_platform.release.authentication import current_actor
from ml_platform.release.promote import promote_version
from ml_platform.settings import PROJECT_ROOT
from ml_platform_tests.support import fakes, lifecycle
from ml_platform_tests.support.command_line import call
from ml_platform_tests.support.github_issuer import GithubIssuer

PROGRAM = Path(sys.executable).parent / "ml-platform"


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROGRAM), *arguments], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )


def champion(platform: Platform) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    lifecycle.live(platform)


PANELS = {
    "Data": ["land", "ingest", "quarantine", "forget"],
    "Lifecycle": ["models", "status", "retrain", "resume", "approve", "reconcile"],
    "Serving": ["serve", "predict", "rollout", "rollback"],
    "Governance": ["history", "explain", "reproduce", "ledger"],
    "CI": ["ci", "webhook-server"],
    "Local": ["demo", "dev"],
}


def test_help_lists_each_command_in_one_panel() -> None:
    status, text = call("--help")

    # A panel starts with its title in the frame, a command's line with its name.
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if title := re.match(r"╭─ (\w+) ─", line):
            found[title[1]] = []
        elif name := re.match(r"│ ([a-z][a-z-]*) ", line):
            found[list(found)[-1]].append(name[1])
    assert status == 0
    assert list(found)[1:] == list(PANELS)
    assert {panel: found[panel] for panel in PANELS} == PANELS


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["quality", "churn"], "quality"),
        (["affected"], "affected"),
        (["report"], "report"),
        (["check-version", "churn", "1"], "check-version"),
        (["follow-rollout", "churn", "1"], "follow-rollout"),
        (["traffic", "churn"], "traffic"),
        (["webhooks"], "webhooks"),
        (["rollout", "wait", "churn", "1", "--within", "0"], "--within"),
        (["retrain", "churn", "--reason", "x", "--at", "http://127.0.0.1:9"], "--at"),
        (["approve", "churn", "--reason", "x", "--by", "token"], "--by"),
        (["approve", "churn", "--reason", "x", "--name", "bob"], "--name"),
        (["reproduce", "churn", "1", "--here"], "--here"),
        (["demo", "--only-land-next"], "--only-land-next"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_renamed_commands_and_options_are_refused(arguments: list[str], refused: str) -> None:
    done = CliRunner().invoke(app, arguments)

    assert done.exit_code == 2
    assert re.search(rf"No such (command|option):? '?{refused}\b", done.stderr)


def test_models_lists_declared_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_platform.models.discovery.names", lambda: ["churn", "visits"])

    assert call("models") == (0, "churn\nvisits\n")
    assert call("models", "churn") == (0, "churn\n")
    assert json.loads(call("models", "--json")[1]) == ["churn", "visits"]
    assert json.loads(call("models", "churn", "--json")[1]) == ["churn"]
    with pytest.raises(ConfigurationError, match=r"No module named 'ml_platform\.models\.visits'"):
        call("models", "visits")  # its file does not load
    with pytest.raises(ConfigurationError, match="There is no model 'unknown'"):
        call("models", "unknown", "--json")


def test_status_of_empty_deployment_gives_advice() -> None:
    assert call("status") == (0, "No model has data yet. Start with: make demo\n")


def test_status_and_history_show_champion(platform: Platform) -> None:
    champion(platform)

    status, (shown,), (entry,) = call("status")[1], *(json.loads(call(*c, "--json")[1]) for c in STATUS_AND_HISTORY)

    assert "version 1" in status
    assert "auc_roc >= 0.8" in status
    assert "PASS" in status
    assert (shown["model"], shown["champion"], shown["arrivals"]) == ("visits", 1, {"published": 1})
    assert {gate["result"] for gate in shown["gates"]} == {"PASS"}
    assert (entry["version"], entry["action"], entry["reason"], entry["actor"]) == (
        1,
        "promotion",
        "schedule",
        "test",
    )
    assert "test" in call("history", "visits")[1]


STATUS_AND_HISTORY = (["status"], ["history", "visits"])


def test_history_without_champion_is_reported() -> None:
    assert call("history", "churn") == (0, "churn never had a champion.\n")


def test_land_correction_declares_it(platform: Platform, tmp_path: Path) -> None:
    file = tmp_path / "monday.parquet"
    fakes.visits(20).to_parquet(file)

    status, _ = call("land", str(file), "--model", "churn", "--correction")

    manifest = fakes.landing(platform) / "churn" / "monday.parquet.manifest.json"
    assert (status, json.loads(manifest.read_text())["corrects"]) == (0, True)
    again = call("land", str(file), "--model", "churn", "--correction")
    assert again == (0, "monday.parquet: is there already\n")


def test_land_existing_file_as_correction_is_refused(platform: Platform, tmp_path: Path) -> None:
    file, other = tmp_path / "monday.parquet", tmp_path / "new.parquet"
    fakes.visits(20).to_parquet(file)
    fakes.visits(10).to_parquet(other)
    call("land", str(file), "--model", "churn")

    with pytest.raises(LandingZoneError, match=r"'monday.parquet' is in .* Give your file another name"):
        call("land", str(other), str(file), "--model", "churn", "--correction")
    assert not (fakes.landing(platform) / "churn" / "new.parquet").exists()


def test_land_existing_file_is_skipped(platform: Platform, tmp_path: Path) -> None:
    file = tmp_path / "monday.parquet"
    fakes.visits(20).to_parquet(file)

    first, again = call("land", str(file), "--model", "churn"), call("land", str(file), "--model", "churn")

    assert first == (0, "monday.parquet: landed\n")
    assert again == (0, "monday.parquet: is there already\n")
    assert sorted(path.name for path in (fakes.landing(platform) / "churn").iterdir()) == [
        "monday.parquet",
        "monday.parquet.manifest.json",
    ]


def test_land_unsafe_file_name_is_refused(platform: Platform, tmp_path: Path) -> None:
    file = tmp_path / "a b.parquet"
    file.write_bytes(b"x")

    with pytest.raises(LandingZoneError, match="file name must consist of"):
        call("land", str(file), "--model", "churn")
    assert not (fakes.landing(platform) / "churn").exists()


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["land", "nowhere.csv", "--model", "churn"], {}, "nowhere.csv cannot be read: No such file"),
        (["retrain", "churn", "--reason", "x"], {"DAGSTER_HOME": ""}, "DAGSTER_HOME is not set"),
        (["retrain", "churn", "--reason", "x"], {"DAGSTER_HOME": "var"}, "must be an absolute path. Got 'var'"),
        (["retrain", "churn", "--reason", "x"], {"DAGSTER_HOME": "/"}, "which holds no dagster.yaml"),
        (["land", "README.md", "--model", "chrun"], {}, "There is no model 'chrun'. Declared models: churn."),
        (["land", "a/x.csv", "b/x.csv", "--model", "churn"], {}, "Two files have the name 'x.csv'"),
        (["history", "chrun"], {}, "There is no model 'chrun'. Declared models: churn."),
        (["demo", "--next-file"], {}, "Nothing is published yet"),
        (
            ["status"],
            {"ML_PLATFORM_DATABASE_URL": "nonsense"},
            "ML_PLATFORM_DATABASE_URL: Value error, must be an address",
        ),
        (["status"], {"ML_PLATFORM_DATABASE_URL": "postgresql://u:secret@127.0.0.1:9/x"}, "//***@127.0.0.1:9/x cannot"),
        (["status"], {"ML_PLATFORM_HOME": "/dev/null/x"}, "/dev/null/x/platform.db cannot be opened"),
        (["status"], {"ML_PLATFORM_HOEM": "/x"}, "ML_PLATFORM_HOEM is not known"),
        (["ingest", "churn"], {"DAGSTER_HOME": str(PROJECT_ROOT)}, "cannot be listed: No such file or directory. Make"),
        (
            ["ingest", "unknown"],
            {"DAGSTER_HOME": str(PROJECT_ROOT)},
            "There is no model 'unknown'. Declared models: churn.",
        ),
        (["status"], {"ML_PLATFORM_HOME": "var"}, "ML_PLATFORM_HOME: Value error, must be an absolute path"),
    ],
)
def test_failed_command_prints_one_error(arguments: list[str], environment: dict[str, str], message: str) -> None:
    done = program(*arguments, **environment)

    assert done.returncode == 2
    assert message in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1


@pytest.mark.soak
def test_demo_unreachable_mlflow_promotes_nothing(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml").read_text())
    environment = {
        "DAGSTER_HOME": str(tmp_path),
        "MLFLOW_TRACKING_URI": "http://user:secret@127.0.0.1:9",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }

    done = program("demo", **environment)

    assert done.returncode == 2
    assert "MLflow at http://***@127.0.0.1:9 could not record the run: no answer." in done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert platform.database.champion("churn") is None


def test_ingest_empty_landing_zone_fails(platform: Platform) -> None:
    folder = fakes.landing(platform) / "churn"
    folder.mkdir()

    done = program("ingest", "churn", DAGSTER_HOME=str(PROJECT_ROOT))

    assert done.returncode == 2
    assert f"The landing zone {folder} is empty. Drop a file there" in done.stderr


def churn_batch(platform: Platform, bad: int) -> None:
    """Publish 100 customers, some with a plan that the contract does not allow."""
    from ml_platform.models.churn import churn

    rows = pd.read_parquet(io.BytesIO(next(iter(exports().values())))).head(100)
    rows.loc[: bad - 1, "voice_mail_plan"] = "maybe"
    (fakes.landing(platform) / "churn").mkdir(parents=True)
    fakes.drop(platform, "monday.parquet", rows, model="churn")
    keys = [arrival.key for arrival in waiting_arrivals(platform, "churn")]
    store_raw_batches(platform, "churn", keys)
    publish_batches(platform, churn, keys)


def test_quarantine_release_keeps_rows_that_fail(platform: Platform) -> None:
    empty = call("quarantine", "show", "churn"), call("quarantine", "release", "churn")
    churn_batch(platform, bad=2)

    status, shown = call("quarantine", "show", "churn")
    ((arrival,),) = (json.loads(call("quarantine", "show", "churn", "--json")[1]),)
    refused, table = call("quarantine", "release", "churn", "monday.parquet")

    assert empty == ((0, "No arrival of churn is quarantined.\n"), (0, "No arrival of churn is quarantined.\n"))
    assert status == 0
    assert "2 of 100 rows quarantined" in shown
    assert "voice_mail_plan" in shown
    assert "row 1: maybe" in shown
    assert arrival["violations"][0]["examples"] == [{"row": 0, "value": "maybe"}, {"row": 1, "value": "maybe"}]
    assert refused == 1
    assert "monday.parquet" in table


def test_quarantine_release_of_passing_rows_succeeds(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    churn_batch(platform, bad=2)
    released = {"name": "monday.parquet", "outcome": "published", "released_rows": 2, "quarantined_rows": 0}
    asked = []

    def release(_: Platform, spec: ModelSpec, wanted: list[str], *, actor: str) -> list[dict[str, Any]]:
        asked.append((spec.name, wanted, "@" in actor))
        return [{**released, "reason": "2 rows [released]", "stays": False}]

    monkeypatch.setattr(quarantine, "release", release)

    assert call("quarantine", "release", "churn", "monday.parquet")[0] == 0
    assert "2 rows [released]" in call("quarantine", "release", "churn")[1]
    assert asked == [("churn", ["monday.parquet"], True), ("churn", [], True)]


def test_forget_without_dagster_home_changes_nothing(platform: Platform) -> None:
    churn_batch(platform, bad=2)

    with pytest.raises(ConfigurationError, match="DAGSTER_HOME is not set"):
        call("forget", "churn", "3", "--reason", "request 17")

    assert platform.database.tombstones("churn") == []


def test_forget_names_unsearched_files(platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    shutil.copy(PROJECT_ROOT / "dagster.yaml", tmp_path)
    churn_batch(platform, bad=2)
    (fakes.landing(platform) / "churn" / "notes.txt").write_text("customer 1 called")

    status, said = call("forget", "churn", "3", "--reason", "request 17")

    assert status == 1
    assert "1 rows of the table" in said
    assert "notes.txt" in said
    assert platform.database.tombstones("churn")[0].reason == "request 17"


@pytest.mark.fault("D21")
def test_forget_unknown_entity_ends_with_one(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    shutil.copy(PROJECT_ROOT / "dagster.yaml", tmp_path)
    churn_batch(platform, bad=2)

    status, said = call("forget", "churn", "987654", "--reason", "request 17")

    assert status == 1
    assert "No data of 987654 was found in churn: nothing was recorded." in said
    assert platform.database.tombstones("churn") == []


@pytest.mark.fault("D21")
@pytest.mark.parametrize("entity", ["0x3", "ann", "3.0", " ", str(2**63)])
def test_forget_impossible_entity_is_refused(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entity: str
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    shutil.copy(PROJECT_ROOT / "dagster.yaml", tmp_path)
    churn_batch(platform, bad=2)

    with pytest.raises(DataError, match="which must be an integer of 64 bits") as refused:
        call("forget", "churn", entity, "--reason", "request 17")

    assert repr(entity) in str(refused.value)
    assert platform.database.tombstones("churn") == []


# The ledger


def promoted(platform: Platform, spec: ModelSpec | None = None, **changes: Any) -> LedgerEntry:
    version = fakes.staged_version(platform, **changes)
    candidate = platform.database.candidate(version.candidate)
    return promote_version(platform, spec or fakes.uncompared_spec(), candidate, reason="schedule", actor="a test")


def test_rollback_is_shown_in_history(platform: Platform) -> None:
    promoted(platform)
    promoted(platform, lineage=replace(fakes.candidate().lineage, dataset_digest="other"))

    status, said = call("rollback", "visits", "--reason", "it is [worse]")
    entries = json.loads(call("history", "visits", "--json")[1])
    shown = call("history", "visits")[1]

    assert (status, said) == (0, "visits: version 1 is champion again, instead of 2\n")
    assert [entry["action"] for entry in entries] == ["promotion", "promotion", "rollback"]
    assert entries[-1]["actor"] == current_actor(platform)
    assert entries[-1]["digest"] == platform.database.champion("visits").digest  # type: ignore[union-attr]
    assert "it is [worse]" in shown
    assert json.loads(call("rollback", "visits", "--to", "2", "--reason", "no", "--json")[1])["version"] == 2


def test_reconcile_restores_moved_alias(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_platform.models.discovery.load", lambda _: fakes.visits_spec())
    promoted(platform)
    promoted(platform, lineage=replace(fakes.candidate().lineage, dataset_digest="other"))
    platform.registry.set_alias("visits", "challenger", 2)
    platform.registry.set_alias("visits", "staging", 2)
    nothing = call("reconcile", "visits")
    platform.registry.set_alias("visits", "champion", 1)

    status, said = call("reconcile", "visits")
    platform.registry.set_alias("visits", "champion", 1)
    (as_json,) = json.loads(call("reconcile", "visits", "--json")[1])

    assert nothing == (0, "visits: MLflow agrees with the ledger.\n")
    assert status == 1
    assert "was moved to version 1 in MLflow; version 2 stays champion" in said
    assert (as_json["what"], as_json["version"], as_json["entry"]) == ("AliasMoveRefused", 1, None)
    assert platform.registry.alias("visits", "champion") == 2


def test_ledger_verify_finds_deleted_entry(platform: Platform) -> None:
    promoted(platform)
    sound, table = call("ledger", "verify")
    fakes.behind_the_triggers(platform.database, "DELETE FROM ledger WHERE sequence = 2")

    changed, found = call("ledger", "verify", "visits")
    status, reports = call("ledger", "verify", "--json")

    assert (sound, table) == (0, "visits: 2 entries, the ledger verifies\n")
    assert (changed, status) == (1, 1)
    assert "visits: 1 entries, the ledger was changed" in found
    assert "MLflow saw entry 2, and the ledger ends with 1: its tail was cut off" in found
    assert len(json.loads(reports)[0]["problems"]) == 2


def test_ledger_verify_unreachable_anchor_fails(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(platform)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    status, said = call("ledger", "verify")

    assert status == 2
    assert "no answer" in said


def test_explain_shows_champion_and_other_version(platform: Platform) -> None:
    promoted(platform, actor="ada@desk")
    fakes.staged_version(platform)

    status, said = call("explain", "champion", "visits")
    as_json = json.loads(call("explain", "champion", "visits", "--json")[1])
    other = call("explain", "version", "visits", "2")[1]

    assert status == 0
    for words in (
        "visits version 1, champion",
        "by a test, instead of nothing",
        "requested by ada@desk",
        "dataset      version 3",
        "auc_roc >= 0.8",
        "2 entries, verifies",
        "verdict page not stored on this host",
    ):
        assert words in said
    assert as_json["version"] == 1
    assert "visits version 2, never champion" in other


@pytest.fixture
def manual(monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """Declare the model visits with manual approval."""
    spec = fakes.uncompared_spec(approval="manual")
    monkeypatch.setattr("ml_platform.models.discovery.load", lambda _: spec)
    return spec


def test_approve_names_current_user(
    platform: Platform, manual: ModelSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with pytest.raises(ApprovalNeededError):
        promoted(platform, manual, actor="ada@desk")

    status, said = call("approve", "visits", "--reason", "looked at it")

    assert status == 0
    assert f"visits version 1: approved by {current_actor(platform)} until 20" in said
    entries = json.loads(call("history", "visits", "--json")[1])
    assert [entry["action"] for entry in entries] == ["request", "approval", "promotion"]
    assert entries[1]["details"]["authenticated_by"] == "os_user"
    with contextlib.chdir(tmp_path), dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        shown = instance.get_latest_materialization_event(dg.AssetKey(["visits", "champion_version"]))
    assert shown is not None
    assert shown.asset_materialization is not None
    assert shown.asset_materialization.metadata["version"].value == 1


def test_approve_by_trainer_is_refused(platform: Platform, manual: ModelSpec) -> None:
    fakes.staged_version(platform, actor=current_actor(platform))

    with pytest.raises(ApprovalRefusedError, match="another person must approve it"):
        call("approve", "visits", "1", "--reason", "mine")
    assert manual.approval_needed is not None
    assert platform.database.champion("visits") is None


@pytest.mark.parametrize("way", ["environment", "standard input"])
@pytest.mark.usefixtures("manual")
def test_approve_reads_token_from_environment_or_input(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({"bob": sha256_text("secret")}))
    tokens.chmod(0o600)
    monkeypatch.setenv("ML_PLATFORM_APPROVAL_TOKENS_FILE", str(tokens))
    if way == "environment":
        monkeypatch.setenv("ML_PLATFORM_APPROVAL_TOKEN", "secret")
    fakes.staged_version(platform, actor="ada@desk")
    arguments = ["approve", "visits", "1", "--reason", "fine", "--auth", "token", "--token-name", "bob", "--json"]

    done = CliRunner().invoke(app, arguments, input="secret\n" if way == "standard input" else "wrong\n")

    assert done.exit_code == 0
    assert "secret" not in done.output
    approval = platform.database.ledger("visits")[0]
    assert (approval.actor, approval.details["identity"]) == ("bob@token", {"name": "bob"})
    assert platform.database.champion("visits") is not None


@pytest.mark.fault("A1")
def test_approve_in_github_needs_proof_for_the_verdict(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = fakes.uncompared_spec(approval=Approval(authenticated_by=("github_environment",)))
    monkeypatch.setattr("ml_platform.models.discovery.load", lambda _: spec)
    registration = fakes.staged_version(platform, actor="ada@github", trained_by="runner@host")
    verdict = platform.database.verdict_on(registration.candidate)
    assert verdict is not None
    arguments = ["approve", "visits", "1", "--auth", "github_environment", "--reason", "reviewed"]
    monkeypatch.setenv("ML_PLATFORM_GITHUB_REVIEWER", "grace")

    with GithubIssuer("ES256").running() as github:
        for name, value in github.environment().items():
            monkeypatch.setenv(name, value)
        without = CliRunner().invoke(app, arguments)
        other = CliRunner().invoke(app, [*arguments, "--verdict", "0" * 64])
        github.changes = {"environment": "staging"}
        elsewhere = CliRunner().invoke(app, [*arguments, "--verdict", verdict.digest])
        github.changes = {}
        before = platform.database.ledger("visits")
        right = CliRunner().invoke(app, [*arguments, "--verdict", verdict.digest])

    assert "needs the version and --verdict" in str(without.exception)
    assert "the evidence changed since it was reviewed" in str(other.exception)
    assert "its environment must be 'production'. Got 'staging'" in str(elsewhere.exception)
    assert before == []
    assert right.exit_code == 0
    approval = platform.database.ledger("visits")[0]
    assert (approval.actor, approval.details["identity"]["run_id"]) == ("grace@github", "17")
    assert platform.database.champion("visits") is not None


@pytest.mark.usefixtures("manual")
def test_approve_wrong_token_is_refused(platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({"bob": sha256_text("secret")}))
    tokens.chmod(0o600)
    monkeypatch.setenv("ML_PLATFORM_APPROVAL_TOKENS_FILE", str(tokens))
    fakes.staged_version(platform)

    done = CliRunner().invoke(
        app, ["approve", "visits", "--reason", "fine", "--auth", "token", "--token-name", "bob"], input="guess\n"
    )

    assert isinstance(done.exception, ApprovalRefusedError)
    assert platform.database.ledger("visits") == []


def made_again(outcome: ReproductionOutcome, **changes: Any) -> Reproduction:
    values: dict[str, Any] = {
        "model": "churn",
        "version": 3,
        "candidate": "20240101-000000-00000001",
        "outcome": outcome,
        "code": "the recorded code, which is here",
        "code_revision": "0" * 40,
        "lock_digest": "1" * 64,
        "dataset_version": 5,
        "dataset_digest": "2" * 64,
        "model_digest": "3" * 64,
        "rebuilt_digest": "3" * 64,
        "predictions": 1_050,
        "figures": ["metrics.auc_roc"],
        "not_compared": ["metrics.inference_time_ms"],
        "differences": [],
        "notes": [],
        "unseeded": [],
    }
    return Reproduction(**{**values, **changes})


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (ReproductionOutcome.REPRODUCED, 0),
        (ReproductionOutcome.OTHER_BYTES, 0),
        (ReproductionOutcome.NOT_REPRODUCED, 1),
    ],
)
def test_reproduce_same_predictions_succeed(
    outcome: ReproductionOutcome, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def reproduce(_: Platform, *arguments: Any, **options: Any) -> Reproduction:
        asked.append((*arguments, options))
        return made_again(outcome, notes=["CPU is abacus"])

    monkeypatch.setattr("ml_platform.governance.reproduce.reproduce", reproduce)
    text = call("reproduce", "churn", "3", "--current-code")
    as_json = call("reproduce", "churn", "3", "--json")

    assert text[0] == as_json[0] == status
    assert f"churn version 3: {outcome}\n" in text[1]
    assert "1,050 predictions bit by bit, 1 figures of the verdict" in text[1]
    assert "not compared  inference_time_ms\n" in text[1]
    assert "note          CPU is abacus\n" in text[1]
    shown = json.loads(as_json[1][as_json[1].index("{") :])
    assert (shown["outcome"], shown["differences"]) == (outcome.value, [])
    options = {"module": "ml_platform.models.churn", "any_commit": False}
    assert asked == [("churn", 3, {**options, "current_code": True}), ("churn", 3, {**options, "current_code": False})]


def test_reproduce_names_unseeded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = [f"holdout, row {i}" for i in range(12)]
    found = made_again(
        ReproductionOutcome.NOT_REPRODUCED,
        differences=differences,
        deterministic=False,
        unseeded=["classify__random_state"],
    )
    monkeypatch.setattr("ml_platform.governance.reproduce.reproduce", lambda *_, **__: found)

    status, text = call("reproduce", "churn", "3")

    assert status == 1
    assert text.count("differs       holdout, row") == 10
    assert "and 2 more differences" in text
    assert "churn cannot be reproduced: two rebuilds gave two models" in text
    assert "random_state is None: classify__random_state" in text


def test_reproduce_unknown_model_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="There is no model 'visits'"):
        call("reproduce", "visits", "1")
