import json
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
from ml_platform.errors import ConflictError, EvidenceError
from ml_platform.records import (
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


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'state' / 'platform.db'}"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(url(tmp_path))
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


def entry(sequence: int, version: int, previous: int | None, model: str = "visits") -> LedgerEntry:
    return LedgerEntry(
        model=model,
        sequence=sequence,
        action="promotion",
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


def test_opening_a_database_again_keeps_what_it_holds(tmp_path: Path) -> None:
    first = Database(url(tmp_path))
    candidate, _ = judged(first)
    first.close()

    again = Database(url(tmp_path))

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
        connection.execute(sa.text("UPDATE verdicts SET passed = 1, document = :edited"), {"edited": edited})

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


def test_the_champion_is_what_the_ledger_named_last(database: Database) -> None:
    assert database.champion("visits") is None
    entries = [entry(1, 4, None), entry(2, 7, 4), entry(3, 4, 7)]
    for appended in entries:
        database.append_to_ledger(appended)

    assert database.champion("visits") == entries[-1]
    assert database.history("visits") == entries


def test_each_model_has_its_own_ledger(database: Database) -> None:
    database.append_to_ledger(entry(1, 4, None))
    database.append_to_ledger(entry(1, 9, None, model="others"))

    assert [database.history(model)[0].version for model in ("visits", "others")] == [4, 9]


@pytest.mark.parametrize(
    "late",
    [entry(1, 8, None), entry(2, 8, None), entry(2, 8, 3), entry(3, 8, 4), entry(1, 8, 4)],
    ids=["first again", "no champion seen", "another champion seen", "number skipped", "number taken"],
)
def test_an_entry_whose_writer_did_not_see_the_champion_is_refused(database: Database, late: LedgerEntry) -> None:
    database.append_to_ledger(entry(1, 4, None))

    with pytest.raises(ConflictError, match="changed meanwhile"):
        database.append_to_ledger(late)
    assert [kept.version for kept in database.history("visits")] == [4]


@pytest.mark.fault("P7")
def test_of_many_writers_at_once_one_appends(tmp_path: Path) -> None:
    writers = 6
    databases = [Database(url(tmp_path)) for _ in range(writers)]
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
