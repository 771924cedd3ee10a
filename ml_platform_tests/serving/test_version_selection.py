"""Tests of the selection of versions from ledger, evidence and plan, of local copies, state and journal."""

import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from ml_platform.errors import (
    DatabaseUnavailableError,
    DigestMismatchError,
    EvidenceError,
    LedgerError,
    MissingFilesError,
    StorageError,
)
from ml_platform.platform import Platform
from ml_platform.records.canonical import canonical_json, now, sha256_text
from ml_platform.records.traffic import Mode
from ml_platform.release.ledger.decisions import roll_back
from ml_platform.serving import version_cache
from ml_platform.serving.state import STATE_FILE, DesiredState, override_plan, read_state
from ml_platform.serving.supervisor.rollback_journal import (
    MAX_REFUSALS,
    SECONDS_OF_REFUSALS,
    AdminAuditLog,
    Journal,
    Rollback,
)
from ml_platform.serving.supervisor.version_selection import VersionSelector, find_rollback_target
from ml_platform_tests.support import fakes, mlflow_server, prediction_server


@pytest.fixture
def selector(served: Platform) -> VersionSelector:
    return VersionSelector(served, prediction_server.MODEL, served.settings.serving_home(prediction_server.MODEL))


def select_state(selector: VersionSelector) -> DesiredState:
    state = selector.read_changes()
    assert state is not None
    return state


def test_champion_and_rollback_target_are_selected(selector: VersionSelector) -> None:
    state = select_state(selector)
    assert (state.plan.mode, state.plan.stable, sorted(state.arms)) == (Mode.ALL, 3, [2, 3])
    assert [known.version for known in state.known] == [1, 2]
    candidate = selector.platform.database.candidate("candidate-3")
    assert (state.arms[3].model_digest, state.arms[3].served_digest) == (
        candidate.model_digest,
        candidate.served_digest,
    )


def test_unchanged_database_is_not_read_again(selector: VersionSelector, served: Platform) -> None:
    select_state(selector)
    assert selector.read_changes() is None
    roll_back(
        served.database,
        fakes.registration(served.database.candidate("candidate-2"), 2),
        served.database.history(prediction_server.MODEL)[1].verdict_digest,
        reason="worse",
        actor="test",
    )
    state = select_state(selector)
    assert (state.plan.stable, [known.version for known in state.known]) == (2, [1])


def test_missing_database_is_not_created(selector: VersionSelector, served: Platform) -> None:
    select_state(selector)
    path = served.settings.home / "platform.db"
    path.rename(path.with_suffix(".gone"))
    with pytest.raises(DatabaseUnavailableError, match="does not exist"):
        selector.read_changes()
    assert not path.exists()


def test_edited_ledger_is_refused(selector: VersionSelector, served: Platform) -> None:
    fakes.behind_the_triggers(served.database, "UPDATE ledger SET version = 1 WHERE sequence = 3")
    with pytest.raises(LedgerError, match="The ledger of 'visits' was changed"):
        selector.read_changes()


def test_ledger_without_the_followed_entry_is_refused(selector: VersionSelector, served: Platform) -> None:
    """The ledger is truncated together with its log of heads, so only this host knows the removed entry."""
    select_state(selector)
    fakes.behind_the_triggers(served.database, "DELETE FROM ledger WHERE sequence = 3")
    with pytest.raises(LedgerError, match="its tail was cut off"):
        selector.read_changes()


def test_edited_verdict_is_refused(selector: VersionSelector, served: Platform) -> None:
    entry = served.database.history(prediction_server.MODEL)[-1]
    with served.database.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE verdicts SET document = replace(document, 'candidate-3', 'candidate-1') WHERE digest = ?",
            (entry.verdict_digest,),
        )
    with pytest.raises(DigestMismatchError, match="has been changed since it was stored"):
        selector.read_changes()


def test_model_digest_is_that_of_the_verdict(selector: VersionSelector, served: Platform) -> None:
    """An edit of the candidate's row does not change the served version."""
    expected = select_state(selector).arms[3].model_digest
    with served.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE candidates SET model_digest = ? WHERE id = 'candidate-3'", ("0" * 64,))
    selector.reset_mark()
    assert select_state(selector).arms[3].model_digest == expected


def test_model_without_champion_is_refused(platform: Platform) -> None:
    selector = VersionSelector(
        platform, prediction_server.MODEL, platform.settings.serving_home(prediction_server.MODEL)
    )
    platform.database.revision()
    with pytest.raises(EvidenceError, match="has no champion yet"):
        selector.read_changes()


# Local copies


def test_local_copy_outlives_its_source(selector: VersionSelector, served: Platform) -> None:
    state = select_state(selector)
    shutil.rmtree(served.settings.model_home(prediction_server.MODEL))
    selector.reset_mark()
    assert select_state(selector) == state
    version_cache.verify(version_cache.copy_folder(selector.home, state.arms[3]), state.arms[3])


@pytest.mark.parametrize("name", [*prediction_server.FILES, "served.json"])
def test_local_copy_with_changed_file_is_replaced(selector: VersionSelector, name: str) -> None:
    served = select_state(selector).arms[3]
    path = version_cache.copy_folder(selector.home, served) / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DigestMismatchError, match="do not match their digests"):
        version_cache.verify(path.parent, served)
    selector.reset_mark()
    select_state(selector)
    version_cache.verify(path.parent, served)


def test_list_with_file_outside_folder_is_refused(selector: VersionSelector, tmp_path: Path) -> None:
    served = select_state(selector).arms[3]
    folder = shutil.copytree(version_cache.copy_folder(selector.home, served), tmp_path / "copy")
    text = canonical_json({"model.skops": served.model_digest, "../served.json": "0" * 64})
    (folder / "served.json").write_text(text)
    with pytest.raises(DigestMismatchError, match="outside its folder"):
        version_cache.verify(folder, replace(served, served_digest=sha256_text(text)))


def test_unused_local_copies_are_removed(selector: VersionSelector) -> None:
    state = select_state(selector)
    assert version_cache.remove_unused_versions(selector.home, [*state.arms.values(), *state.known]) == []
    gone = version_cache.remove_unused_versions(selector.home, [state.arms[3]])
    assert len(gone) == 2
    version_cache.verify(version_cache.copy_folder(selector.home, state.arms[3]), state.arms[3])


# Files in MLflow


@pytest.mark.fault("R20")
def test_files_in_mlflow_are_fetched_in_background(selector: VersionSelector, served: Platform) -> None:
    version = prediction_server.served_version(served, seed=4)
    prediction_server.move_to_mlflow(served, version)
    prediction_server.promote(served, version)
    fetched = threading.Event()
    selector = VersionSelector(served, prediction_server.MODEL, selector.home, on_fetched=fetched.set)
    with pytest.raises(MissingFilesError, match="being fetched from MLflow"):
        selector.read_changes()
    assert fetched.wait(60)
    state = select_state(selector)
    assert (state.plan.stable, state.problems, selector.missing) == (4, {}, [])
    version_cache.verify(version_cache.copy_folder(selector.home, state.arms[4]), state.arms[4])


@pytest.mark.fault("R20")
def test_failed_fetch_is_reported_and_repeated_later(selector: VersionSelector, served: Platform) -> None:
    version = prediction_server.served_version(served, seed=4)
    shutil.rmtree(served.candidate_folder(served.database.candidate(version.candidate)))
    prediction_server.promote(served, version)
    fetched = threading.Event()
    selector = VersionSelector(served, prediction_server.MODEL, selector.home, on_fetched=fetched.set)
    with pytest.raises(MissingFilesError):
        selector.read_changes()
    assert fetched.wait(60)
    fetched.clear()
    for _ in range(3):
        with pytest.raises(MissingFilesError, match="candidate candidate-4 has no MLflow run"):
            selector.read_changes()
    assert not fetched.is_set()


@pytest.mark.fault("R20")
def test_newer_decision_is_followed_while_mlflow_hangs(
    selector: VersionSelector, served: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    select_state(selector)
    version = prediction_server.served_version(served, seed=4)
    prediction_server.move_to_mlflow(served, version)
    prediction_server.promote(served, version)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    with mlflow_server.hanging() as address:
        settings = served.settings.model_copy(update={"mlflow_tracking_uri": SecretStr(address)})
        selector.platform = Platform(settings)
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(MissingFilesError, match="being fetched from MLflow"):
                selector.read_changes()
        prediction_server.roll_back(served, 2)
        assert select_state(selector).plan.stable == 2
        assert time.monotonic() - began < 20
    selector.platform.database.close()


def test_copy_being_fetched_is_not_removed(selector: VersionSelector) -> None:
    state = select_state(selector)
    copy = version_cache.copy_folder(selector.home, state.arms[3])
    part, rest = (copy.with_name(f".{name}.0123") for name in (copy.name, "candidate-0-abc"))
    part.mkdir()
    rest.mkdir()
    gone = version_cache.remove_unused_versions(selector.home, [state.arms[2]], [state.arms[3]])
    assert sorted(path.name for path in gone) == [
        rest.name,
        version_cache.copy_folder(selector.home, state.known[0]).name,
    ]
    assert part.exists()
    assert copy.exists()
    assert part in version_cache.remove_unused_versions(selector.home, [state.arms[3]])


# The state's file and rollbacks


def test_written_state_is_read_unchanged(selector: VersionSelector, tmp_path: Path) -> None:
    state = replace(select_state(selector), revision=7, stale="why", problems={4: "no"})
    assert read_state(tmp_path) is None
    (tmp_path / STATE_FILE).write_text(state.document)
    assert read_state(tmp_path) == state


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"plan": 3}'])
def test_invalid_state_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(StorageError, match="Could not read"):
        read_state(tmp_path)


def test_rollback_target_is_previous_or_requested_champion(selector: VersionSelector) -> None:
    state = select_state(selector)
    assert (find_rollback_target(state, None).target.version, find_rollback_target(state, None).leaves) == (2, 3)
    assert find_rollback_target(state, 1).target.version == 1
    with pytest.raises(EvidenceError, match=r"one of \[1, 2\]\. Got version 9"):
        find_rollback_target(state, 9)
    with pytest.raises(EvidenceError, match="no champion of"):
        find_rollback_target(replace(state, known=()), None)
    overridden = override_plan(state, state.known[0], journal="a", reason="worse", actor="me")
    plan = overridden.plan
    assert (plan.stable, plan.successor, plan.sequence, overridden.override) == (1, None, 0, "a")
    assert overridden.arms[1] == state.known[0]


# The journal


def make_rollback(name: str, **changes: object) -> Rollback:
    entry = Rollback(id=name, to=2, leaves=3, decision=3, reason="worse", actor="me", at=f"{now().isoformat()}-{name}")
    return replace(entry, **changes)  # type: ignore[arg-type]


def test_closing_a_rollback_closes_older_ones(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.open_entry() is None
    first, second, third = make_rollback("1"), make_rollback("2", to=1), make_rollback("3")
    journal.append(first)
    journal.append(second)
    assert journal.open_entry() == second
    journal.append(third)
    journal.close(second, "recorded in the ledger as entry 4", 4)
    closed = {entry.id: entry.closed for entry in journal.entries()}
    assert closed == {"1": "replaced by rollback 2", "2": "recorded in the ledger as entry 4", "3": ""}
    # The third was requested while the second was written to the ledger: it leaves the second's champion.
    assert journal.open_entry() == replace(third, decision=4)


def test_line_cut_off_by_a_crash_is_ignored(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(make_rollback("1"))
    with journal.path.open("ab") as file:
        file.write(b'{"id": "2", "to"')
    assert [entry.id for entry in journal.entries()] == ["1"]
    journal.append(make_rollback("3"))
    assert [entry.id for entry in journal.entries()] == ["1", "3"]


def test_audit_log_has_a_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_platform.serving.supervisor.rollback_journal.MAX_BYTES", 1_000)
    calls = AdminAuditLog(tmp_path).changes
    for number in range(200):
        calls.append({"call": number, "path": "x" * 50})
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3_000
    assert [call["call"] for call in calls.last(12)] == list(range(188, 200))  # also from the older file


@pytest.mark.fault("R24")
def test_refusals_displace_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_platform.serving.supervisor.rollback_journal.MAX_BYTES", 1_000)
    seconds = 0.0
    audit_log = AdminAuditLog(tmp_path, clock=lambda: seconds)
    audit_log.changes.append({"id": "a", "caller": "anna", "status": None})
    audit_log.changes.append({"id": "a", "status": 200})
    for number in range(2_000):
        seconds = number / 100
        audit_log.append_refusal({"id": str(number), "caller": None})
        if number % 100 == 0:
            audit_log.reads.append({"id": f"read {number}"})
    assert audit_log.changes.last(10) == [{"id": "a", "caller": "anna", "status": 200}]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 6_000


@pytest.mark.fault("R24")
def test_frequent_refusals_are_counted_by_caller(tmp_path: Path) -> None:
    seconds = 0.0
    audit_log = AdminAuditLog(tmp_path, clock=lambda: seconds)
    for number in range(200):
        audit_log.append_refusal({"id": str(number), "caller": None})
    audit_log.append_refusal({"id": "known", "caller": "grafana"})
    assert (len(audit_log.refused.last(1_000)), audit_log.omitted) == (MAX_REFUSALS + 1, 200 - MAX_REFUSALS)
    seconds = SECONDS_OF_REFUSALS
    audit_log.append_refusal({"id": "later", "caller": None})
    lines = audit_log.refused.last(3)
    assert [line.get("caller", "-") for line in lines] == ["grafana", "-", None]
    assert (lines[1]["omitted"], audit_log.omitted) == (200 - MAX_REFUSALS, 0)
