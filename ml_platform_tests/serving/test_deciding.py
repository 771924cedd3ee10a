"""What a server is to serve, by ledger, evidence and plan; nothing else, and nothing that was changed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ml_platform.errors import (
    DatabaseUnavailableError,
    DigestMismatchError,
    EvidenceError,
    LedgerError,
    StorageError,
)
from ml_platform.records import canonical_json, now, sha256_text
from ml_platform.serving import copies
from ml_platform.serving.deciding import Decisions, way_back
from ml_platform.serving.journal import Calls, Journal, Rollback
from ml_platform.serving.state import DesiredState, overridden, read_state, write_state
from ml_platform.stages import promotion
from ml_platform.traffic import Mode
from ml_platform.workflows import Platform
from ml_platform_tests import fakes
from ml_platform_tests.serving import living


@pytest.fixture
def decisions(served: Platform) -> Decisions:
    return Decisions(served, living.MODEL, served.settings.serving_home(living.MODEL))


def looked(decisions: Decisions) -> DesiredState:
    state = decisions.look()
    assert state is not None
    return state


def test_the_ledgers_champion_is_served_with_what_a_rollback_returns_to(decisions: Decisions) -> None:
    state = looked(decisions)
    assert (state.plan.mode, state.plan.stable, sorted(state.arms)) == (Mode.ALL, 3, [2, 3])
    assert [known.version for known in state.known] == [1, 2]
    candidate = decisions.platform.database.candidate("candidate-3")
    assert (state.arms[3].model_digest, state.arms[3].served_digest) == (
        candidate.model_digest,
        candidate.served_digest,
    )


def test_nothing_is_read_again_until_something_changed(decisions: Decisions, served: Platform) -> None:
    looked(decisions)
    assert decisions.look() is None
    promotion.roll_back(
        served.database,
        fakes.registration(served.database.candidate("candidate-2"), 2),
        served.database.history(living.MODEL)[1].verdict_digest,
        reason="worse",
        actor="test",
    )
    state = looked(decisions)
    assert (state.plan.stable, [known.version for known in state.known]) == (2, [1])


def test_a_database_that_is_gone_is_not_made_again(decisions: Decisions, served: Platform) -> None:
    looked(decisions)
    path = served.settings.home / "platform.db"
    path.rename(path.with_suffix(".gone"))
    with pytest.raises(DatabaseUnavailableError, match="is gone"):
        decisions.look()
    assert not path.exists()


def test_a_ledger_that_was_changed_decides_nothing(decisions: Decisions, served: Platform) -> None:
    fakes.behind_the_triggers(served.database, "UPDATE ledger SET version = 1 WHERE sequence = 3")
    with pytest.raises(LedgerError, match="is not what was written"):
        decisions.look()


def test_a_verdict_that_was_changed_serves_nothing(decisions: Decisions, served: Platform) -> None:
    entry = served.database.history(living.MODEL)[-1]
    with served.database.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE verdicts SET document = replace(document, 'candidate-3', 'candidate-1') WHERE digest = ?",
            (entry.verdict_digest,),
        )
    with pytest.raises(DigestMismatchError, match="has been changed since it was stored"):
        decisions.look()


def test_the_models_digest_is_the_verdicts_and_not_the_candidates(decisions: Decisions, served: Platform) -> None:
    """Whoever changes a candidate's row does not change what is served."""
    expected = looked(decisions).arms[3].model_digest
    with served.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE candidates SET model_digest = ? WHERE id = 'candidate-3'", ("0" * 64,))
    decisions.forget_mark()
    assert looked(decisions).arms[3].model_digest == expected


def test_a_model_without_a_champion_is_not_served(platform: Platform) -> None:
    decisions = Decisions(platform, living.MODEL, platform.settings.serving_home(living.MODEL))
    platform.database.revision()
    with pytest.raises(EvidenceError, match="has no champion yet"):
        decisions.look()


# Kept copies


def test_a_copy_is_kept_and_outlives_what_it_was_copied_from(decisions: Decisions, served: Platform) -> None:
    state = looked(decisions)
    shutil.rmtree(served.settings.model_home(living.MODEL))
    decisions.forget_mark()
    assert looked(decisions) == state
    copies.verify(copies.copy_folder(decisions.home, state.arms[3]), state.arms[3])


@pytest.mark.parametrize("name", [*living.FILES, "served.json"])
def test_a_kept_copy_of_which_one_file_was_changed_is_fetched_again(decisions: Decisions, name: str) -> None:
    served = looked(decisions).arms[3]
    path = copies.copy_folder(decisions.home, served) / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DigestMismatchError, match="not what was judged"):
        copies.verify(path.parent, served)
    decisions.forget_mark()
    looked(decisions)
    copies.verify(path.parent, served)


def test_a_list_that_names_a_file_elsewhere_is_refused(decisions: Decisions, tmp_path: Path) -> None:
    served = looked(decisions).arms[3]
    folder = shutil.copytree(copies.copy_folder(decisions.home, served), tmp_path / "copy")
    text = canonical_json({"model.skops": served.model_digest, "../served.json": "0" * 64})
    (folder / "served.json").write_text(text)
    with pytest.raises(DigestMismatchError, match="outside its folder"):
        copies.verify(folder, replace(served, served_digest=sha256_text(text)))


def test_copies_that_nothing_may_be_served_from_are_removed(decisions: Decisions) -> None:
    state = looked(decisions)
    assert copies.tidy(decisions.home, [*state.arms.values(), *state.known]) == []
    gone = copies.tidy(decisions.home, [state.arms[3]])
    assert len(gone) == 2
    copies.verify(copies.copy_folder(decisions.home, state.arms[3]), state.arms[3])


# The state's file


def test_a_state_is_read_as_it_was_written(decisions: Decisions, tmp_path: Path) -> None:
    state = replace(looked(decisions), revision=7, stale="why", problems={4: "no"})
    assert read_state(tmp_path) is None
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"plan": 3}'])
def test_a_state_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(StorageError, match="not what the platform wrote"):
        read_state(tmp_path)


def test_a_rollback_goes_to_the_champion_before_or_to_one_that_is_kept(decisions: Decisions) -> None:
    state = looked(decisions)
    assert (way_back(state, None).target.version, way_back(state, None).leaves) == (2, 3)
    assert way_back(state, 1).target.version == 1
    with pytest.raises(EvidenceError, match=r"none of the champions that are kept here, \[1, 2\]"):
        way_back(state, 9)
    with pytest.raises(EvidenceError, match="No champion"):
        way_back(replace(state, known=()), None)
    moved = overridden(state, state.known[0], journal="a", reason="worse", actor="me")
    assert (moved.plan.stable, moved.plan.successor, moved.plan.sequence, moved.override) == (1, None, 0, "a")
    assert moved.arms[1] == state.known[0]


# The journal


def rollback(name: str, **changes: object) -> Rollback:
    made = Rollback(id=name, to=2, leaves=3, decision=3, reason="worse", actor="me", at=f"{now().isoformat()}-{name}")
    return replace(made, **changes)  # type: ignore[arg-type]


def test_the_newest_open_rollback_counts_and_closing_it_closes_those_before(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.open_entry() is None
    first, second, third = rollback("1"), rollback("2", to=1), rollback("3")
    journal.append(first)
    journal.append(second)
    assert journal.open_entry() == second
    journal.append(third)
    journal.close(second, "the ledger has it: entry 4", 4)
    closed = {entry.id: entry.closed for entry in journal.entries()}
    assert closed == {"1": "replaced by rollback 2", "2": "the ledger has it: entry 4", "3": ""}
    # What was asked for while the second was on its way leaves what that has made champion.
    assert journal.open_entry() == replace(third, decision=4)


def test_a_line_that_a_crash_cut_off_is_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(rollback("1"))
    with journal.path.open("ab") as file:
        file.write(b'{"id": "2", "to"')
    assert [entry.id for entry in journal.entries()] == ["1"]
    journal.append(rollback("3"))
    assert [entry.id for entry in journal.entries()] == ["1", "3"]


def test_calls_do_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_platform.serving.journal.MOST_BYTES", 1_000)
    calls = Calls(tmp_path)
    for number in range(200):
        calls.append({"call": number, "path": "x" * 50})
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3_000
    assert calls.last(1)[0]["call"] == 199
