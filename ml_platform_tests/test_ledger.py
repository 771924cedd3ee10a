"""The ledger with its anchors, its alias, approvals and rollbacks, as people and runs use them; both databases."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from pydantic import SecretStr

from ml_platform import workflows
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
from ml_platform.model_spec import Approval, ModelSpec
from ml_platform.records import GENESIS, LedgerEntry, LedgerReport, Lineage, Person, Registration, sha256_text
from ml_platform.stages import promotion
from ml_platform.stages.registry import LEDGER_TAG, Registry
from ml_platform.workflows import Platform
from ml_platform_tests import fakes

ROOT = Path(__file__).resolve().parent.parent
SPEC = fakes.unrivalled_spec()
MANUAL = fakes.unrivalled_spec(approval=Approval(authenticated_by=("os_user", "token")))
BOB = Person(name="bob@desk", authenticated_by="os_user", identity={"uid": "7"})


@pytest.fixture
def deployment(platform: Platform, database_url: str) -> Iterator[Platform]:
    """A platform whose database is of each kind, and MLflow on SQLite."""
    settings = platform.settings.model_copy(update={"database_url": SecretStr(database_url)})
    opened = Platform(settings)
    yield opened
    opened.database.close()


def rows(name: str) -> Lineage:
    return replace(fakes.candidate().lineage, dataset_digest=sha256_text(name))


def promoted(platform: Platform, spec: ModelSpec = SPEC) -> LedgerEntry:
    """Promote a new version of rows of its own."""
    number = platform.database.candidates_of("visits", 3)
    return promote(platform, fakes.staged_version(platform, lineage=rows(f"rows {number}")), spec)


def promote(platform: Platform, version: Registration, spec: ModelSpec = SPEC) -> LedgerEntry:
    candidate = platform.database.candidate(version.candidate)
    return workflows.promote_version(platform, spec, candidate, reason="schedule", actor="test")


def roll_back(platform: Platform, to: int | None = None, spec: ModelSpec = SPEC) -> LedgerEntry:
    return workflows.roll_back(platform, "visits", lambda: spec, to=to, reason="it is worse", actor="ada@desk")


def verify(platform: Platform) -> LedgerReport:
    return workflows.verify_ledger(platform, "visits")


def tag(platform: Platform) -> tuple[int, str]:
    client = MlflowClient(platform.settings.tracking_uri, platform.settings.tracking_uri)
    value = json.loads(client.get_registered_model("visits").tags[LEDGER_TAG])
    return value["sequence"], value["digest"]


def without_mlflow(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """Return the same deployment with an MLflow that is remote and down."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = platform.settings.model_copy(update={"mlflow_tracking_uri": SecretStr("http://127.0.0.1:9")})
    return Platform(settings)


# Two phases and anchors


def test_a_promotion_is_decided_shown_confirmed_and_anchored(deployment: Platform) -> None:
    entry = promoted(deployment)

    said = deployment.database.ledger("visits")
    assert [each.action for each in said] == ["promotion", "confirmation"]
    assert said[0] == entry
    assert said[1].details == {"decision": 1}
    assert deployment.registry.alias("visits", "champion") == entry.version
    assert tag(deployment) == (2, said[1].digest)
    assert [head.sequence for head in deployment.heads_log.heads("visits")] == [1, 2]
    assert verify(deployment) == LedgerReport(model="visits", entries=2)


def test_where_mlflow_dies_behind_the_ledger_the_promotion_stands_and_the_rest_follows(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = promoted(platform)
    version = fakes.staged_version(platform, lineage=rows("second"))

    def no_answer(*_: object) -> None:
        raise RegistryUnavailableError("no answer")

    with monkeypatch.context() as down:
        down.setattr(Registry, "set_alias", no_answer)
        second = promote(platform, version)
    alone = verify(platform)
    shown = platform.registry.alias("visits", "champion")
    workflows.show_champion(platform, "visits")

    assert platform.database.champion("visits") == second
    assert shown == first.version
    assert "what shows it follows later: no answer" in caplog.text
    assert alone.problems == ()
    assert alone.behind == (
        "the log of heads has not seen the last 1 of 3 entries",
        "MLflow has not seen the last 1 of 3 entries",
    )
    assert platform.registry.alias("visits", "champion") == second.version
    assert verify(platform) == LedgerReport(model="visits", entries=4)


def test_an_alias_that_somebody_moved_is_put_back(platform: Platform) -> None:
    first, second = promoted(platform), promoted(platform)
    platform.registry.set_alias("visits", "champion", first.version)

    workflows.show_champion(platform, "visits")

    assert platform.registry.alias("visits", "champion") == second.version
    assert len(platform.database.ledger("visits")) == 4


def test_a_rollback_in_the_middle_of_a_promotion_is_what_the_alias_ends_with(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = promoted(platform)
    version = fakes.staged_version(platform, lineage=rows("second"))
    set_alias, called = Registry.set_alias, list[int]()

    def roll_back_meanwhile(registry: Registry, model: str, alias: str, number: int) -> None:
        called.append(number)
        if len(called) == 1:
            target = Registration(model="visits", version=first.version, candidate=first.candidate)
            promotion.roll_back(  # another process, which does not get the lock
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
def test_what_was_done_behind_the_triggers_shows_and_closes_promotion_and_rollback(
    deployment: Platform, statements: list[str]
) -> None:
    for _ in range(3):
        promoted(deployment)
    version = fakes.staged_version(deployment, lineage=rows("more"))
    anchor = tag(deployment)

    fakes.behind_the_triggers(deployment.database, *statements)

    assert verify(deployment).problems
    with pytest.raises(LedgerError, match="is not what was written"):
        promote(deployment, version)
    with pytest.raises(LedgerError, match="is not what was written"):
        roll_back(deployment)
    assert tag(deployment) == anchor
    assert deployment.registry.alias("visits", "champion") == 3
    assert verify(deployment).problems


def replaced_chain(platform: Platform) -> None:
    """Write a chain of other entries that fit each other."""
    entries = platform.database.ledger("visits")
    fakes.behind_the_triggers(platform.database, "DELETE FROM ledger")
    digest = GENESIS
    for entry in entries:
        other = replace(entry, reason="other", previous_digest=digest)
        platform.database.append_to_ledger(other)
        digest = other.digest


def test_a_replaced_chain_shows_in_both_anchors(deployment: Platform) -> None:
    promoted(deployment)

    replaced_chain(deployment)

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
        platform.settings.ledger_heads.unlink()

    (problem,) = verify(platform).problems

    assert problem == f"{kept.replace('log', 'the log of heads').replace('mlflow', 'MLflow')} saw entry 2, and the " + (
        "ledger ends with 1: its tail was cut off"
    )


def test_an_edited_anchor_shows(platform: Platform) -> None:
    promoted(platform)
    platform.registry._client().set_registered_model_tag("visits", LEDGER_TAG, "nonsense")
    platform.settings.ledger_heads.write_text("nonsense\n")

    problems = verify(platform).problems

    assert len(problems) == 2
    assert "Line 1 of" in problems[0]
    assert "MLflow's tag ml_platform.ledger_head of 'visits' was changed: 'nonsense'" in problems[1]


def test_an_anchor_that_is_behind_is_no_alarm_and_follows_with_the_next_promotion(platform: Platform) -> None:
    promoted(platform)
    first = platform.database.ledger("visits")[0]
    platform.registry._client().set_registered_model_tag(
        "visits", LEDGER_TAG, json.dumps({"sequence": 1, "digest": first.digest})
    )
    platform.settings.ledger_heads.write_text("")

    behind = verify(platform)
    promoted(platform)

    assert (behind.problems, len(behind.behind)) == ((), 2)
    assert verify(platform) == LedgerReport(model="visits", entries=4)
    assert [head.sequence for head in platform.heads_log.heads("visits")] == [1, 2, 3, 4]


def test_an_mlflow_that_is_down_leaves_verification_undone(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(platform)
    down = without_mlflow(platform, monkeypatch)

    report = verify(down)

    assert (report.problems, report.behind) == ((), ())
    assert "no answer" in report.unread[0]
    down.database.close()


def test_a_model_whose_ledger_is_gone_is_still_verified(platform: Platform) -> None:
    promoted(platform)
    fakes.behind_the_triggers(
        platform.database,
        "DELETE FROM ledger",
        "DELETE FROM registrations",
        "DELETE FROM verdicts",
        "DELETE FROM candidates",
    )

    assert workflows.ledgers(platform) == ["visits"]
    assert verify(platform).problems


def test_a_model_whose_ledger_and_log_are_gone_is_still_verified(platform: Platform) -> None:
    promoted(platform)
    fakes.behind_the_triggers(platform.database, "DELETE FROM ledger")
    platform.settings.ledger_heads.unlink()

    assert workflows.ledgers(platform) == ["visits"]
    assert verify(platform).problems


# Two promotions at once, in two processes


def short(call: str) -> str:
    """Return the name of a call in the name of a test."""
    return call.rpartition(":")[2]


def in_turn(calls: Iterable[str]) -> list[Any]:
    """Return each call with one kind of database, in turn; with the other one it is a soak."""
    return [
        pytest.param(kind, call, marks=[] if (number + turn) % 2 == 0 else [pytest.mark.soak])
        for number, call in enumerate(calls)
        for turn, kind in enumerate(("sqlite", "postgresql"))
    ]


@contextmanager
def promote_in_a_process(platform: Platform, candidate: str, stop_at: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "ml_platform_tests.promoting", str(platform.settings.home), candidate, stop_at]
    environment = {**os.environ, "ML_PLATFORM_DATABASE_URL": platform.settings.database}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()  # nobody else would continue or end a process that stands still


@pytest.mark.fault("P7")
@pytest.mark.parametrize(
    ("database_url", "stop_at"),
    in_turn(["ml_platform.database:Database.append_to_ledger", "mlflow:MlflowClient.set_registered_model_alias"]),
    indirect=["database_url"],
    ids=short,
)
def test_while_one_process_promotes_the_other_gets_a_conflict(deployment: Platform, stop_at: str) -> None:
    promoted(deployment)
    first, second = (fakes.staged_version(deployment, lineage=rows(name)) for name in ("first", "second"))

    with promote_in_a_process(deployment, first.candidate, stop_at) as stopped:
        _, status = os.waitpid(stopped.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        with promote_in_a_process(deployment, second.candidate) as rival:
            said = rival.communicate(timeout=200)[0].strip()
        with pytest.raises(ConflictError, match="Somebody else is promoting 'visits' at this moment"):
            promote(deployment, second)
        os.kill(stopped.pid, signal.SIGCONT)
        won = stopped.communicate(timeout=200)[0].strip()

    assert (said, won) == ("ConflictError", f"version {first.version}")
    assert [entry.version for entry in deployment.database.history("visits")] == [1, first.version]
    assert deployment.registry.alias("visits", "champion") == first.version
    assert verify(deployment) == LedgerReport(model="visits", entries=4)


EVERY_CALL = [
    "ml_platform.stages.registry:Registry.fetch",
    "ml_platform.database:Database.append_to_ledger",
    "mlflow:MlflowClient.set_registered_model_alias",
    "ml_platform.stages.promotion:confirm",
    "ml_platform.stages.ledger:HeadsLog.append",
    "mlflow:MlflowClient.set_registered_model_tag",
]


@pytest.mark.fault("P2")
@pytest.mark.parametrize(("database_url", "call"), in_turn(EVERY_CALL), indirect=["database_url"], ids=short)
def test_a_promotion_that_is_killed_at_any_call_is_finished_by_who_comes_next(deployment: Platform, call: str) -> None:
    first = promoted(deployment)
    version = fakes.staged_version(deployment, lineage=rows("killed"))
    decided = EVERY_CALL.index(call) > 1

    with promote_in_a_process(deployment, version.candidate, call) as stopped:
        assert os.WIFSTOPPED(os.waitpid(stopped.pid, os.WUNTRACED)[1])
        stopped.kill()
    champion = deployment.database.champion("visits")
    left = verify(deployment)
    workflows.show_champion(deployment, "visits")

    assert champion is not None
    assert champion.version == (version.version if decided else first.version)
    assert left.problems == ()
    assert bool(left.behind) == decided
    assert deployment.registry.alias("visits", "champion") == champion.version
    assert promote(deployment, version).version == version.version
    assert verify(deployment) == LedgerReport(model="visits", entries=4)


# Approvals


def test_a_version_waits_for_approval_and_is_promoted_when_it_is_given(deployment: Platform) -> None:
    version = fakes.staged_version(deployment, actor="ada@desk")
    with pytest.raises(ApprovalNeededError, match="ml-platform approve visits 1"):
        promote(deployment, version, MANUAL)
    waiting = workflows.status(deployment)[0]["last_run"]["state"]

    approval, entry = workflows.approve_version(deployment, MANUAL, None, BOB, reason="looked at it")

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


def test_who_asked_for_the_training_cannot_approve(platform: Platform) -> None:
    fakes.staged_version(platform, actor="bob@elsewhere")

    with pytest.raises(ApprovalRefusedError, match="bob@desk asked for the training"):
        workflows.approve_version(platform, MANUAL, 1, BOB, reason="fine")

    assert platform.database.champion("visits") is None


def test_an_approval_is_refused_where_the_evidence_does_not_hold(platform: Platform) -> None:
    version = fakes.staged_version(platform)
    platform.database.record_verdict(fakes.verdict(platform.database.candidate(version.candidate), auc_roc=0.5))

    with pytest.raises(EvidenceError, match="is refused"):
        workflows.approve_version(platform, MANUAL, 1, BOB, reason="fine")

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
def test_what_cannot_be_approved_is_said(
    platform: Platform,
    spec: ModelSpec,
    version: int | None,
    reason: str,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        workflows.approve_version(platform, spec, version, BOB, reason=reason)


def test_people_are_authenticated_as_the_settings_say(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({"bob": sha256_text("secret")}))
    tokens.chmod(0o600)
    settings = platform.settings.model_copy(
        update={"approval_tokens_file": tokens, "github_environment": "production", "github_reviewer": "carl"}
    )
    with_tokens = Platform(settings)

    bob = {"name": "bob", "token": "secret"}
    assert workflows.authenticate(with_tokens, "token", **bob).name == "bob@token"
    assert workflows.authenticate(with_tokens, "os_user").name == workflows.who(with_tokens)
    with pytest.raises(ApprovalRefusedError, match="no job of a protected GitHub environment"):
        workflows.authenticate(with_tokens, "github_environment")
    for name, value in {"ACTIONS": "true", "ACTOR": "ada", "TRIGGERING_ACTOR": "bob", "RUN_ID": "1"}.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)
    assert workflows.authenticate(with_tokens, "github_environment").name == "carl@github"
    assert workflows.who(with_tokens) == "bob@github"
    with pytest.raises(ConfigurationError, match=r"--by must be os_user, token or github_environment\. Got 'face'"):
        workflows.authenticate(with_tokens, "face")


# Rollbacks


def test_a_rollback_returns_to_the_champion_before_and_never_to_what_was_rolled_back(deployment: Platform) -> None:
    first, second, _ = [promoted(deployment) for _ in range(3)]

    back, further = roll_back(deployment), roll_back(deployment)

    assert (back.version, back.previous_version) == (second.version, 3)
    assert (further.version, further.previous_version) == (first.version, second.version)
    assert (back.reason, back.actor, back.verdict_digest) == ("it is worse", "ada@desk", second.verdict_digest)
    assert deployment.registry.alias("visits", "champion") == first.version
    with pytest.raises(EvidenceError, match="No champion of 'visits' stands before version 1"):
        roll_back(deployment)
    assert verify(deployment) == LedgerReport(model="visits", entries=10)


def test_a_rollback_needs_no_mlflow_and_the_alias_follows_later(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = promoted(platform), promoted(platform)
    down = without_mlflow(platform, monkeypatch)

    with caplog.at_level(logging.INFO):
        entry = roll_back(down)
    shown = platform.registry.alias("visits", "champion")
    logged = [head.digest for head in platform.heads_log.heads("visits")]
    workflows.show_champion(platform, "visits")

    assert platform.database.champion("visits") == entry
    assert entry.version == first.version
    assert shown == second.version
    assert logged[-1] == entry.digest
    assert "follows later" in caplog.text
    assert platform.registry.alias("visits", "champion") == first.version
    assert verify(platform) == LedgerReport(model="visits", entries=6)
    down.database.close()


def test_a_rollback_while_somebody_promotes_waits_for_nobody(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = promoted(platform), promoted(platform)
    monkeypatch.setattr("ml_platform.workflows.promotion.WAIT_FOR_PROMOTION", 0.0)
    other = Platform(platform.settings)

    with other.database.locked("promotion-visits") as held:
        entry = roll_back(platform)

    assert held
    assert platform.database.champion("visits") == entry
    assert entry.version == first.version
    other.database.close()


def test_what_was_rolled_back_does_not_return_by_itself_but_by_a_person(deployment: Platform) -> None:
    first, second = promoted(deployment), promoted(deployment)
    roll_back(deployment)
    again = Registration(model="visits", version=second.version, candidate=second.candidate)

    with pytest.raises(EvidenceError, match="was rolled back: it does not return by itself"):
        promote(deployment, again)
    assert deployment.database.champion("visits").version == first.version  # type: ignore[union-attr]
    entry = roll_back(deployment, to=second.version)

    assert (entry.action, entry.version) == ("rollback", second.version)
    assert promoted(deployment).version == 3


@pytest.mark.parametrize(("here", "there"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_rollback_verifies_the_bytes_here_or_in_the_registry(platform: Platform, here: bool, there: bool) -> None:
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


def test_a_version_that_never_was_champion_needs_what_a_promotion_needs(platform: Platform) -> None:
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


def test_what_cannot_be_rolled_back_is_said(platform: Platform) -> None:
    with pytest.raises(EvidenceError, match="'visits' never had a champion"):
        roll_back(platform)
    promoted(platform)
    with pytest.raises(EvidenceError, match="There is no version 9 of 'visits'"):
        roll_back(platform, to=9)
    with pytest.raises(ConflictError, match="is champion already"):
        roll_back(platform, to=1)
    with pytest.raises(ConfigurationError, match="--reason must say why"):
        workflows.roll_back(platform, "visits", lambda: SPEC, to=None, reason="", actor="ada")


# Explanations


def test_a_champion_is_explained_with_everything_it_stands_on(deployment: Platform) -> None:
    first = promoted(deployment)
    second = fakes.staged_version(deployment, actor="ada@desk", run_id="run-2", lineage=rows("more"))
    approval, entry = workflows.approve_version(deployment, MANUAL, second.version, BOB, reason="looked at it")

    said = workflows.explain(deployment, "visits")

    candidate = deployment.database.candidate(second.candidate)
    assert (said["version"], said["is_champion"], said["was_rolled_back"]) == (second.version, True, False)
    assert said["decision"] == {
        "action": "promotion",
        "when": entry.recorded_at.isoformat(),
        "by": "bob@desk",
        "reason": "schedule",
        "instead_of": first.version,
        "ledger_entry": entry.sequence,
        "ledger_digest": entry.digest,
        "approval": approval.digest,
        "shown_in_mlflow": True,
    }
    assert said["ledger"] == {"entries": 5, "verifies": True, "problems": [], "anchors": []}
    assert said["candidate"]["asked_for_by"] == "ada@desk"
    assert said["candidate"]["code_revision"] == candidate.lineage.code_revision
    assert said["candidate"]["lock_digest"] == candidate.lineage.lock_digest
    assert (said["dataset"]["version"], said["dataset"]["digest"]) == (3, sha256_text("more"))
    assert [gate["result"] for gate in said["gates"]] == ["PASS"] * len(SPEC.gates)
    assert said["verdict_page"] is None
    page = deployment.verdict_page(candidate)
    page.write_text("a page")
    assert workflows.explain(deployment, "visits")["verdict_page"] == str(page)
    assert [given["digest"] for given in said["approvals"]] == [approval.digest]
    json.dumps(said)


def test_an_explanation_names_the_arrivals_in_the_dataset_version(platform: Platform) -> None:
    for name in ("a", "b", "c"):
        fakes.drop(platform, f"{name}.parquet", fakes.visits(50, first=50 * ord(name)))
        keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, "visits")]
        workflows.keep_raw_batches(platform, "visits", keys)
        workflows.publish_batches(platform, SPEC, keys)
    versions = [row["dataset_version"] for row in platform.database.arrival_outcomes("visits")]
    version = fakes.staged_version(platform, lineage=replace(rows("two"), dataset_version=versions[1]))
    promote(platform, version)

    arrivals = workflows.explain(platform, "visits")["dataset"]["arrivals"]

    assert [(arrival["name"], arrival["rows"]) for arrival in arrivals] == [("a.parquet", 50), ("b.parquet", 50)]


def test_a_version_that_was_rolled_back_and_one_that_never_was_champion_are_explained(platform: Platform) -> None:
    promoted(platform)
    second = promoted(platform)
    roll_back(platform)
    third = fakes.staged_version(platform)

    back, never = (workflows.explain(platform, "visits", number) for number in (second.version, third.version))

    assert (back["is_champion"], back["was_rolled_back"], back["decision"]["action"]) == (False, True, "promotion")
    assert (never["is_champion"], never["was_rolled_back"], never["decision"]) == (False, False, None)
    for number in (None, 9):
        with pytest.raises(EvidenceError, match=r"never had a champion|There is no version 9"):
            workflows.explain(platform, "others" if number is None else "visits", number)


def test_an_explanation_says_that_the_ledger_was_changed(platform: Platform) -> None:
    promoted(platform)
    fakes.behind_the_triggers(platform.database, "UPDATE ledger SET actor = 'other' WHERE sequence = 1")

    proof = workflows.explain(platform, "visits")["ledger"]

    assert proof["verifies"] is False
    assert "entry 1 was changed" in proof["problems"][0]
