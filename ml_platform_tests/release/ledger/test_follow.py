"""Ledger, anchors, alias, approvals and rollbacks in a deployment, with SQLite and PostgreSQL."""

import json
import logging
import os
import signal
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from pydantic import SecretStr

from ml_platform.errors import (
    ApprovalNeededError,
    ApprovalRefusedError,
    ConfigurationError,
    ConflictError,
    DigestMismatchError,
    EvidenceError,
    LedgerError,
    RegistryUnavailableError,
)
from ml_platform.governance import status as governance_status
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.canonical import sha256_text
from ml_platform.records.ledger import GENESIS, LedgerReport, Registration
from ml_platform.release import rollback
from ml_platform.release.authentication import authenticate, current_actor
from ml_platform.release.ledger import decisions
from ml_platform.release.ledger.follow import ledgers, sync_alias, verify_ledger
from ml_platform.release.promote import approve_version
from ml_platform.storage.mlflow_registry import LEDGER_TAG, Registry
from ml_platform_tests.support import fakes
from ml_platform_tests.support.promote_process import promote_in_a_process
from ml_platform_tests.support.promotions import BOB, MANUAL, SPEC, promote, promoted, roll_back, rows

pytestmark = pytest.mark.slow


def verify(platform: Platform) -> LedgerReport:
    return verify_ledger(platform, "visits")


def read_tag(platform: Platform) -> tuple[int, str]:
    client = MlflowClient(platform.settings.tracking_uri, platform.settings.tracking_uri)
    value = json.loads(client.get_registered_model("visits").tags[LEDGER_TAG])
    return value["sequence"], value["digest"]


def without_mlflow(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """Return the same deployment with a remote MLflow that is down."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = platform.settings.model_copy(update={"mlflow_tracking_uri": SecretStr("http://127.0.0.1:9")})
    return Platform(settings)


# Two phases and anchors


def test_a_promotion_is_decided_shown_confirmed_and_anchored(deployment: Platform) -> None:
    entry = promoted(deployment)

    entries = deployment.database.ledger("visits")
    assert [each.action for each in entries] == ["promotion", "confirmation"]
    assert entries[0] == entry
    assert entries[1].details == {"decision": 1}
    assert deployment.registry.alias("visits", "champion") == entry.version
    assert read_tag(deployment) == (2, entries[1].digest)
    assert [head.sequence for head in deployment.ledger_anchor.heads("visits")] == [1, 2]
    assert verify(deployment) == LedgerReport(model="visits", entries=2)


def test_promotion_mlflow_fails_after_ledger_follows_later(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = promoted(platform)
    version = fakes.staged_version(platform, lineage=rows("second"))

    def no_answer(*_: object) -> None:
        raise RegistryUnavailableError("no answer")

    with monkeypatch.context() as down:
        down.setattr(Registry, "set_alias", no_answer)
        second = promote(platform, version)
    report = verify(platform)
    shown = platform.registry.alias("visits", "champion")
    sync_alias(platform, "visits")

    assert platform.database.champion("visits") == second
    assert shown == first.version
    assert "MLflow and the anchors follow later: no answer" in caplog.text
    assert report.problems == ()
    assert report.behind == (
        "the log of heads has not seen the last 1 of 3 entries",
        "MLflow has not seen the last 1 of 3 entries",
    )
    assert platform.registry.alias("visits", "champion") == second.version
    assert verify(platform) == LedgerReport(model="visits", entries=4)


def test_sync_alias_moved_alias_is_restored(platform: Platform) -> None:
    first, second = promoted(platform), promoted(platform)
    platform.registry.set_alias("visits", "champion", first.version)

    sync_alias(platform, "visits")

    assert platform.registry.alias("visits", "champion") == second.version
    assert len(platform.database.ledger("visits")) == 4


def test_rollback_during_promotion_sets_the_alias(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    first = promoted(platform)
    version = fakes.staged_version(platform, lineage=rows("second"))
    set_alias, called = Registry.set_alias, list[int]()

    def roll_back_meanwhile(registry: Registry, model: str, alias: str, number: int) -> None:
        called.append(number)
        if len(called) == 1:
            target = Registration(model="visits", version=first.version, candidate=first.candidate)
            decisions.roll_back(  # another process, which does not get the lock
                platform.database, target, first.verdict_digest, reason="at once", actor="ada"
            )
        set_alias(registry, model, alias, number)

    monkeypatch.setattr(Registry, "set_alias", roll_back_meanwhile)
    promote(platform, version)

    assert called == [version.version, first.version]
    assert platform.registry.alias("visits", "champion") == first.version
    assert verify(platform).problems == ()


# What verification finds

TAMPERINGS = {
    "an edit": ["UPDATE ledger SET reason = 'other' WHERE sequence = 3"],
    "an edit of the version": ["UPDATE ledger SET version = 1 WHERE sequence = 3"],
    "an entry removed": ["DELETE FROM ledger WHERE sequence = 2"],
    "the tail removed": ["DELETE FROM ledger WHERE sequence > 4"],
    "the last entry removed": ["DELETE FROM ledger WHERE sequence = 6"],
    "all removed": ["DELETE FROM ledger"],
    "a pair reordered": [
        "UPDATE ledger SET sequence = 99 WHERE sequence = 3",
        "UPDATE ledger SET sequence = 3 WHERE sequence = 5",
        "UPDATE ledger SET sequence = 5 WHERE sequence = 99",
    ],
    "nonsense": ["UPDATE ledger SET details = '{' WHERE sequence = 3"],
    "another digest": ["UPDATE ledger SET digest = previous_digest WHERE sequence = 6"],
}


@pytest.mark.parametrize("statements", TAMPERINGS.values(), ids=TAMPERINGS.keys())
def test_tampered_ledger_blocks_promotion_and_rollback(deployment: Platform, statements: list[str]) -> None:
    for _ in range(3):
        promoted(deployment)
    version = fakes.staged_version(deployment, lineage=rows("more"))
    anchor = read_tag(deployment)

    fakes.behind_the_triggers(deployment.database, *statements)

    assert verify(deployment).problems
    with pytest.raises(LedgerError, match="The ledger of 'visits' was changed"):
        promote(deployment, version)
    with pytest.raises(LedgerError, match="The ledger of 'visits' was changed"):
        roll_back(deployment)
    assert read_tag(deployment) == anchor
    assert deployment.registry.alias("visits", "champion") == 3
    assert verify(deployment).problems


def replace_chain(platform: Platform) -> None:
    """Replace the ledger with other entries whose digests are consistent."""
    entries = platform.database.ledger("visits")
    fakes.behind_the_triggers(platform.database, "DELETE FROM ledger")
    digest = GENESIS
    for entry in entries:
        other = replace(entry, reason="other", previous_digest=digest)
        platform.database.append_to_ledger(other)
        digest = other.digest


@pytest.mark.parametrize(
    "details", ['{"a":NaN}', '{"a":"\\ud800"}', "[" * 100_000 + "]" * 100_000, "[1]", "null", '"a"']
)
def test_unreadable_entry_is_a_problem(platform: Platform, details: str) -> None:
    promoted(platform)
    fakes.behind_the_triggers(platform.database)
    with platform.database._transaction() as connection:
        connection.execute(sa.text("UPDATE ledger SET details = :details WHERE sequence = 1"), {"details": details})

    report = verify(platform)

    assert "holds an entry that cannot be read, entry 1" in report.problems[0]
    with pytest.raises(LedgerError, match="cannot be read, entry 1"):
        roll_back(platform)


@pytest.mark.fault("E2")
@pytest.mark.parametrize("document", ["[" * 100_000, '{"schema":1,"model":"\\ud800"}', '{"schema":NaN}', "null"])
def test_unreadable_verdict_of_decision_is_a_problem(platform: Platform, document: str) -> None:
    promoted(platform)
    with platform.database._transaction() as connection:
        connection.execute(sa.text("UPDATE verdicts SET document = :document"), {"document": document})

    assert "entry 1, promotion of version 1: The verdict on candidate" in verify(platform).problems[0]


@pytest.mark.fault("E2")
@pytest.mark.parametrize("change", [{"trained_at": b"\0\xff"}, {"trained_at": "yesterday"}, {"requested_at": ""}])
def test_unreadable_time_of_candidate_is_a_problem(platform: Platform, change: dict[str, Any]) -> None:
    promoted(platform)
    with platform.database._transaction() as connection:
        row = sa.table("candidates", *map(sa.column, change))  # untyped columns take any value
        connection.execute(row.update().values(change))

    expected = "entry 1, promotion of version 1: A row of the table candidates cannot be read: "
    assert verify(platform).problems[0].startswith(expected)
    with pytest.raises(LedgerError, match="A row of the table candidates cannot be read"):
        roll_back(platform)


def test_a_replaced_chain_shows_in_both_anchors(deployment: Platform) -> None:
    promoted(deployment)

    replace_chain(deployment)

    problems = verify(deployment).problems
    assert [problem.partition(" saw")[0] for problem in problems] == ["the log of heads", "the log of heads", "MLflow"]


@pytest.mark.parametrize("kept", ["log", "mlflow"])
def test_each_anchor_alone_shows_a_truncation(platform: Platform, kept: str) -> None:
    promoted(platform)
    fakes.behind_the_triggers(platform.database, "DELETE FROM ledger WHERE sequence = 2")
    client = MlflowClient(platform.settings.tracking_uri, platform.settings.tracking_uri)
    if kept == "log":
        client.delete_registered_model_tag("visits", LEDGER_TAG)
    else:
        platform.settings.ledger_anchor_file.unlink()

    (problem,) = verify(platform).problems

    assert problem == f"{kept.replace('log', 'the log of heads').replace('mlflow', 'MLflow')} saw entry 2, and the " + (
        "ledger ends with 1: its tail was cut off"
    )


def test_an_edited_anchor_shows(platform: Platform) -> None:
    promoted(platform)
    platform.registry._client().set_registered_model_tag("visits", LEDGER_TAG, "nonsense")
    platform.settings.ledger_anchor_file.write_text("nonsense\n")

    problems = verify(platform).problems

    assert len(problems) == 2
    assert "Line 1 of" in problems[0]
    assert "MLflow's tag ml_platform.ledger_head of 'visits' was changed: 'nonsense'" in problems[1]


def test_anchor_behind_follows_with_next_promotion(platform: Platform) -> None:
    promoted(platform)
    first = platform.database.ledger("visits")[0]
    platform.registry._client().set_registered_model_tag(
        "visits", LEDGER_TAG, json.dumps({"sequence": 1, "digest": first.digest})
    )
    platform.settings.ledger_anchor_file.write_text("")

    behind = verify(platform)
    promoted(platform)

    assert (behind.problems, len(behind.behind)) == ((), 2)
    assert verify(platform) == LedgerReport(model="visits", entries=4)
    assert [head.sequence for head in platform.ledger_anchor.heads("visits")] == [1, 2, 3, 4]


def test_verification_without_mlflow_reports_unread_anchor(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(platform)
    down = without_mlflow(platform, monkeypatch)

    report = verify(down)

    assert (report.problems, report.behind) == ((), ())
    assert "no answer" in report.unread[0]
    down.database.close()


def test_verification_of_deleted_ledger_reports_problems(platform: Platform) -> None:
    promoted(platform)
    fakes.behind_the_triggers(
        platform.database,
        "DELETE FROM ledger",
        "DELETE FROM registrations",
        "DELETE FROM verdicts",
        "DELETE FROM candidates",
    )

    assert ledgers(platform) == ["visits"]
    assert verify(platform).problems


def test_verification_of_deleted_ledger_and_log_reports_problems(platform: Platform) -> None:
    promoted(platform)
    fakes.behind_the_triggers(platform.database, "DELETE FROM ledger")
    platform.settings.ledger_anchor_file.unlink()

    assert ledgers(platform) == ["visits"]
    assert verify(platform).problems


# Two promotions at once, in two processes


def shorten(call: str) -> str:
    """Return the short name of a call, for a test's id."""
    return call.rpartition(":")[2]


def alternate(calls: Iterable[str]) -> list[Any]:
    """Return each call with both databases; one of them, in turn, is a soak test."""
    return [
        pytest.param(kind, call, marks=[] if (number + turn) % 2 == 0 else [pytest.mark.soak])
        for number, call in enumerate(calls)
        for turn, kind in enumerate(("sqlite", "postgresql"))
    ]


@pytest.mark.servers
@pytest.mark.fault("P7")
@pytest.mark.parametrize(
    ("database_url", "stop_at"),
    alternate(
        ["ml_platform.database:PlatformDatabase.append_to_ledger", "mlflow:MlflowClient.set_registered_model_alias"]
    ),
    indirect=["database_url"],
    ids=shorten,
)
def test_promotion_during_another_process_is_a_conflict(deployment: Platform, stop_at: str) -> None:
    promoted(deployment)
    first, second = (fakes.staged_version(deployment, lineage=rows(name)) for name in ("first", "second"))

    with promote_in_a_process(deployment, first.candidate, stop_at) as stopped:
        _, status = os.waitpid(stopped.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        with promote_in_a_process(deployment, second.candidate) as reference:
            loser = reference.communicate(timeout=200)[0].strip()
        with pytest.raises(ConflictError, match="Another process is promoting a version of 'visits'"):
            promote(deployment, second)
        os.kill(stopped.pid, signal.SIGCONT)
        winner = stopped.communicate(timeout=200)[0].strip()

    assert (loser, winner) == ("ConflictError", f"version {first.version}")
    assert [entry.version for entry in deployment.database.history("visits")] == [1, first.version]
    assert deployment.registry.alias("visits", "champion") == first.version
    assert verify(deployment) == LedgerReport(model="visits", entries=4)


EVERY_CALL = [
    "ml_platform.storage.mlflow_registry:Registry.fetch",
    "ml_platform.database:PlatformDatabase.append_to_ledger",
    "mlflow:MlflowClient.set_registered_model_alias",
    "ml_platform.release.ledger.decisions:confirm",
    "ml_platform.storage.ledger_anchor:LedgerAnchor.append",
    "mlflow:MlflowClient.set_registered_model_tag",
]


@pytest.mark.fault("P2")
@pytest.mark.parametrize(("database_url", "call"), alternate(EVERY_CALL), indirect=["database_url"], ids=shorten)
def test_killed_promotion_is_finished_by_next_process(deployment: Platform, call: str) -> None:
    first = promoted(deployment)
    version = fakes.staged_version(deployment, lineage=rows("killed"))
    decided = EVERY_CALL.index(call) > 1

    with promote_in_a_process(deployment, version.candidate, call) as stopped:
        assert os.WIFSTOPPED(os.waitpid(stopped.pid, os.WUNTRACED)[1])
        stopped.kill()
    champion = deployment.database.champion("visits")
    left = verify(deployment)
    sync_alias(deployment, "visits")

    assert champion is not None
    assert champion.version == (version.version if decided else first.version)
    assert left.problems == ()
    assert bool(left.behind) == decided
    assert deployment.registry.alias("visits", "champion") == champion.version
    assert promote(deployment, version).version == version.version
    assert verify(deployment) == LedgerReport(model="visits", entries=4)


# Approvals


def test_approval_promotes_a_waiting_version(deployment: Platform) -> None:
    version = fakes.staged_version(deployment, actor="ada@desk")
    with pytest.raises(ApprovalNeededError, match="ml-platform approve visits 1"):
        promote(deployment, version, MANUAL)
    waiting = governance_status.status(deployment)[0]["last_run"]["state"]

    approval, entry = approve_version(deployment, MANUAL, None, BOB, reason="looked at it")

    assert waiting == "waits for approval"
    assert deployment.database.champion("visits") == entry
    assert entry.details["approval"] == approval.digest
    assert (entry.actor, entry.reason) == ("bob@desk", "schedule")
    assert [each.action for each in deployment.database.ledger("visits")] == [
        "request",
        "approval",
        "promotion",
        "confirmation",
    ]
    assert verify(deployment) == LedgerReport(model="visits", entries=4)


def test_approve_version_by_training_requester_is_refused(platform: Platform) -> None:
    fakes.staged_version(platform, actor="bob@elsewhere")

    with pytest.raises(ApprovalRefusedError, match="bob@desk asked for the training"):
        approve_version(platform, MANUAL, 1, BOB, reason="fine")

    assert platform.database.champion("visits") is None


def test_approve_version_invalid_evidence_is_refused(platform: Platform) -> None:
    version = fakes.staged_version(platform)
    platform.database.record_verdict(fakes.verdict(platform.database.candidate(version.candidate), auc_roc=0.5))

    with pytest.raises(EvidenceError, match="is refused"):
        approve_version(platform, MANUAL, 1, BOB, reason="fine")

    assert platform.database.ledger("visits") == []


@pytest.mark.parametrize(
    ("spec", "version", "reason", "error", "message"),
    [
        (SPEC, 1, "fine", ConfigurationError, "declares approval='automatic'"),
        (MANUAL, 7, "fine", EvidenceError, "There is no version 7 of 'visits'"),
        (MANUAL, None, "fine", EvidenceError, "There is no version that passed its integration test"),
        (MANUAL, None, " ", ConfigurationError, "--reason must say why"),
        (MANUAL, None, "a\nb", ConfigurationError, "--reason must say why"),
        (MANUAL, None, "\udcff", ConfigurationError, "--reason must say why"),
    ],
)
def test_approve_version_invalid_request_is_refused(
    platform: Platform,
    spec: ModelSpec,
    version: int | None,
    reason: str,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        approve_version(platform, spec, version, BOB, reason=reason)


def test_authenticate_follows_the_settings(platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({"bob": sha256_text("secret")}))
    tokens.chmod(0o600)
    settings = platform.settings.model_copy(
        update={"approval_tokens_file": tokens, "github_environment": "production", "github_reviewer": "carl"}
    )
    with_tokens = Platform(settings)

    bob = {"name": "bob", "token": "secret"}
    assert authenticate(with_tokens, "token", **bob).name == "bob@token"
    assert authenticate(with_tokens, "os_user").name == current_actor(with_tokens)
    with pytest.raises(ConfigurationError, match="--auth github_environment needs the version and --verdict"):
        authenticate(with_tokens, "github_environment")
    with pytest.raises(ApprovalRefusedError, match="not a job of a protected GitHub environment"):
        authenticate(with_tokens, "github_environment", audience="ml-platform:visits:1:d")
    for name, value in {"ACTIONS": "true", "ACTOR": "ada", "TRIGGERING_ACTOR": "bob", "RUN_ID": "1"}.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)
    assert current_actor(with_tokens) == "bob@github"
    with pytest.raises(ConfigurationError, match=r"--auth must be os_user, token or github_environment\. Got 'face'"):
        authenticate(with_tokens, "face")


# Rollbacks


def test_rollback_returns_to_previous_valid_champion(deployment: Platform) -> None:
    first, second, _ = [promoted(deployment) for _ in range(3)]

    back, further = roll_back(deployment), roll_back(deployment)

    assert (back.version, back.previous_version) == (second.version, 3)
    assert (further.version, further.previous_version) == (first.version, second.version)
    assert (back.reason, back.actor, back.verdict_digest) == ("it is worse", "ada@desk", second.verdict_digest)
    assert deployment.registry.alias("visits", "champion") == first.version
    with pytest.raises(EvidenceError, match="'visits' has no champion before version 1"):
        roll_back(deployment)
    assert verify(deployment) == LedgerReport(model="visits", entries=10)


def test_rollback_without_mlflow_alias_follows_later(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = promoted(platform), promoted(platform)
    down = without_mlflow(platform, monkeypatch)

    with caplog.at_level(logging.INFO):
        entry = roll_back(down)
    shown = platform.registry.alias("visits", "champion")
    logged = [head.digest for head in platform.ledger_anchor.heads("visits")]
    sync_alias(platform, "visits")

    assert platform.database.champion("visits") == entry
    assert entry.version == first.version
    assert shown == second.version
    assert logged[-1] == entry.digest
    assert "follow later" in caplog.text
    assert platform.registry.alias("visits", "champion") == first.version
    assert verify(platform) == LedgerReport(model="visits", entries=6)
    down.database.close()


def test_rollback_during_promotion_does_not_wait(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = promoted(platform), promoted(platform)
    monkeypatch.setattr("ml_platform.release.ledger.follow.WAIT_FOR_PROMOTION", 0.0)
    other = Platform(platform.settings)

    with other.database.locked("promotion-visits") as held:
        entry = roll_back(platform)

    assert held
    assert platform.database.champion("visits") == entry
    assert entry.version == first.version
    other.database.close()


def test_rolled_back_version_returns_by_rollback_only(deployment: Platform) -> None:
    first, second = promoted(deployment), promoted(deployment)
    roll_back(deployment)
    again = Registration(model="visits", version=second.version, candidate=second.candidate)

    with pytest.raises(EvidenceError, match="was rolled back: it is not promoted automatically"):
        promote(deployment, again)
    assert deployment.database.champion("visits").version == first.version  # type: ignore[union-attr]
    entry = roll_back(deployment, to=second.version)

    assert (entry.action, entry.version) == ("rollback", second.version)
    assert promoted(deployment).version == 3


@pytest.mark.parametrize(("here", "there"), [(True, True), (True, False), (False, True), (False, False)])
def test_rollback_verifies_local_or_registry_bytes(platform: Platform, here: bool, there: bool) -> None:
    first, second = promoted(platform), promoted(platform)
    kept = platform.model_file(platform.database.candidate(first.candidate))
    if not here:
        kept.write_bytes(b"other")
    if not there:
        (platform.settings.artifacts / first.candidate / kept.name).write_bytes(b"other")

    if here or there:
        assert roll_back(platform).version == first.version
    else:
        with pytest.raises(DigestMismatchError, match="Version 1 of 'visits' has other bytes"):
            roll_back(platform)
        assert platform.database.champion("visits") == second


def test_rollback_to_new_version_needs_promotion_conditions(platform: Platform) -> None:
    promoted(platform)
    good, bad, unstaged = (fakes.staged_version(platform, lineage=rows(name)) for name in ("good", "bad", "unstaged"))
    platform.database.record_verdict(fakes.verdict(platform.database.candidate(bad.candidate), auc_roc=0.5))
    with platform.database.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE registrations SET staged_at = NULL WHERE version = :version"), {"version": unstaged.version}
        )

    with pytest.raises(EvidenceError, match="is refused"):
        roll_back(platform, to=bad.version)
    with pytest.raises(EvidenceError, match="has not passed its integration test"):
        roll_back(platform, to=unstaged.version)
    with pytest.raises(ApprovalNeededError):
        roll_back(platform, to=good.version, spec=MANUAL)
    assert roll_back(platform, to=good.version).version == good.version


def test_rollback_impossible_target_is_refused(platform: Platform) -> None:
    with pytest.raises(EvidenceError, match="'visits' never had a champion"):
        roll_back(platform)
    promoted(platform)
    with pytest.raises(EvidenceError, match="There is no version 9 of 'visits'"):
        roll_back(platform, to=9)
    with pytest.raises(ConflictError, match="is champion already"):
        roll_back(platform, to=1)
    with pytest.raises(ConfigurationError, match="--reason must say why"):
        rollback.roll_back(platform, "visits", load_spec=lambda _: SPEC, to=None, reason="", actor="ada")
