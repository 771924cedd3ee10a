"""The platform's own database: arrivals, candidates, verdicts, registrations and the ledger.

SQLite by default, PostgreSQL by ``ML_PLATFORM_DATABASE_URL``. Identifiers that one step needs from another pass
through here, never through an IO manager, so that a step can be run again in any process.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ml_platform import durable
from ml_platform.errors import ConfigurationError, ConflictError, EvidenceError, ForgottenError
from ml_platform.records import (
    Arrival,
    BatchResult,
    Candidate,
    DatasetVersion,
    LedgerEntry,
    Lineage,
    Outcome,
    RawBatch,
    Registration,
    Release,
    Tombstone,
    Verdict,
    now,
)

# The newest migration; a test compares it with ml_platform/migrations, so that opening an up-to-date database
# does not pay for importing Alembic.
HEAD = "0001"
# SQLite's word for a disk that is full, read-only or broken; not for a database that another process holds.
DISK_ERRORS = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}


class UtcDateTime(sa.TypeDecorator[datetime]):
    """A time that is aware and in UTC on both sides, in SQLite too, which keeps no zone."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        """Store naive UTC."""
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        """Hand out aware UTC."""
        return value.replace(tzinfo=UTC) if value else None


metadata = sa.MetaData()

arrivals = sa.Table(
    "arrivals",
    metadata,
    sa.Column("model", sa.String(40), primary_key=True),
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("mtime_ns", sa.BigInteger, nullable=False),
    sa.Column("etag", sa.String(255), nullable=False, default=""),
    sa.Column("sha256", sa.String(64), nullable=False, index=True),
    sa.Column("promised_sha256", sa.String(64)),
    sa.Column("raw_path", sa.Text, nullable=False),
    sa.Column("found_at", UtcDateTime, nullable=False),
    sa.Column("outcome", sa.String(16)),
    sa.Column("rows", sa.BigInteger, nullable=False, default=0),
    sa.Column("quarantined_rows", sa.BigInteger, nullable=False, default=0),
    sa.Column("dataset_version", sa.BigInteger),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("rules", sa.Text, nullable=False, default="{}"),
    sa.Column("examples", sa.Text, nullable=False, default="[]"),
    sa.Column("recorded_at", UtcDateTime),
    sa.Column("released_rows", sa.BigInteger, nullable=False, default=0),
    sa.Column("removed", sa.Text, nullable=False, default="[]"),
)
releases = sa.Table(
    "releases",
    metadata,
    sa.Column("model", sa.String(40), primary_key=True),
    sa.Column("arrival", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("dataset_version", sa.BigInteger),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("released_at", UtcDateTime, nullable=False),
)
datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("model", sa.String(40), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("pinned_at", UtcDateTime, nullable=False),
    sa.Column("forgotten_at", UtcDateTime),
)
candidates = sa.Table(
    "candidates",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("model", sa.String(40), nullable=False, index=True),
    sa.Column("model_digest", sa.String(64), nullable=False),
    sa.Column("dataset_version", sa.BigInteger, nullable=False),
    sa.Column("dataset_digest", sa.String(64), nullable=False),
    sa.Column("code_revision", sa.String(160), nullable=False),
    sa.Column("lock_digest", sa.String(64), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("run_id", sa.String(64), index=True),
    sa.Column("mlflow_run_id", sa.String(64)),
    sa.Column("trained_at", UtcDateTime, nullable=False),
    sa.Column("forgotten_at", UtcDateTime),
)
tombstones = sa.Table(
    "tombstones",
    metadata,
    sa.Column("model", sa.String(40), primary_key=True),
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("key_digest", sa.String(64), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("asked_at", UtcDateTime, nullable=False),
    sa.Column("completed_at", UtcDateTime),
    sa.Column("figures", sa.Text, nullable=False),
)
verdicts = sa.Table(
    "verdicts",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("candidate", sa.String(32), sa.ForeignKey("candidates.id"), nullable=False, index=True),
    sa.Column("passed", sa.Boolean, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("judged_at", UtcDateTime, nullable=False),
)
registrations = sa.Table(
    "registrations",
    metadata,
    sa.Column("model", sa.String(40), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("candidate", sa.String(32), sa.ForeignKey("candidates.id"), nullable=False, unique=True),
    sa.Column("staged_at", UtcDateTime),
)
ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("model", sa.String(40), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("previous_version", sa.Integer),
    sa.Column("candidate", sa.String(32), nullable=False),
    sa.Column("verdict_digest", sa.String(64), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("recorded_at", UtcDateTime, nullable=False),
)


class Database:
    """Reads and writes the platform's records. Every method is one transaction.

    Parameters
    ----------
    url : str
        SQLAlchemy's address. A missing SQLite file and its folder are made; the schema is migrated to `HEAD`.

    Raises
    ------
    ConfigurationError
        It cannot be opened; a password in the address is not shown.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url = _with_driver(sa.make_url(url))
            self.engine = _engine(self.url)
            self._migrate()
        except (sa.exc.SQLAlchemyError, ImportError, OSError) as error:
            raise ConfigurationError(
                f"The platform's database {_without_password(url)} cannot be opened: {str(error).splitlines()[0]}. "
                "Check ML_PLATFORM_DATABASE_URL, or ML_PLATFORM_HOME where it is a file."
            ) from error

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self.engine.begin() as connection:
                yield connection
        except sa.exc.OperationalError as error:
            if isinstance(error.orig, sqlite3.Error) and error.orig.sqlite_errorcode & 0xFF in DISK_ERRORS:
                raise durable.refused(self.url.database, str(error.orig)) from error
            raise

    def _migrate(self) -> None:
        if self.revision() == HEAD:
            return
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", "ml_platform:migrations")
        with self._transaction() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def revision(self) -> str | None:
        """Return the migration that the schema stands at; ``None`` for an empty database."""
        with self._transaction() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
            return revision

    # Arrivals

    def record_raw_batch(self, batch: RawBatch) -> None:
        """Store where an arrival's bytes are kept; saying it twice changes nothing."""
        arrival = batch.arrival
        row = {
            **asdict(arrival),
            "key": arrival.key,
            "sha256": batch.sha256,
            "raw_path": batch.path,
            "promised_sha256": batch.promised_sha256,
        }
        with self._transaction() as connection:
            known = sa.select(arrivals.c.key).where(_is(arrival.model, arrival.key))
            if connection.scalar(known) is None:
                connection.execute(arrivals.insert().values(**row, found_at=now()))

    def raw_batches(self, model: str, keys: Iterable[str]) -> list[RawBatch]:
        """Return the arrivals whose bytes are kept, among the keys given, in the order they came."""
        query = sa.select(arrivals).where(arrivals.c.model == model, arrivals.c.key.in_(list(keys)))
        with self._transaction() as connection:
            rows = connection.execute(query.order_by(arrivals.c.mtime_ns, arrivals.c.name)).all()
        return [
            RawBatch(
                arrival=_arrival(row._asdict()),
                sha256=row.sha256,
                path=row.raw_path,
                promised_sha256=row.promised_sha256,
                removed=tuple(json.loads(row.removed)),
            )
            for row in rows
        ]

    def record_outcome(self, result: BatchResult) -> None:
        """Store what became of an arrival; an outcome that is already there stays as it is."""
        row = {
            "outcome": result.outcome.value,
            "rows": result.rows,
            "quarantined_rows": result.quarantined_rows,
            "dataset_version": result.dataset_version,
            "reason": result.reason,
            "rules": json.dumps(result.rules),
            "examples": json.dumps(result.examples),
            "recorded_at": now(),
        }
        unhandled = sa.and_(_is(result.arrival.model, result.arrival.key), arrivals.c.outcome.is_(None))
        with self._transaction() as connection:
            connection.execute(arrivals.update().where(unhandled).values(row))

    def outcomes(self, model: str, keys: Iterable[str]) -> list[BatchResult]:
        """Return what became of the handled arrivals among the keys given, in the order they were handled."""
        wanted = set(keys)
        return [_batch_result(row) for row in self.arrival_outcomes(model) if row["key"] in wanted]

    def known_arrivals(self, model: str) -> set[str]:
        """Return the keys of all arrivals that have an outcome."""
        query = sa.select(arrivals.c.key).where(arrivals.c.model == model, arrivals.c.outcome.is_not(None))
        with self._transaction() as connection:
            return set(connection.scalars(query))

    def arrival_outcomes(self, model: str) -> list[dict[str, Any]]:
        """Return every handled arrival with its outcome, oldest first, as plain rows."""
        query = sa.select(arrivals).where(arrivals.c.model == model, arrivals.c.outcome.is_not(None))
        query = query.order_by(arrivals.c.recorded_at, arrivals.c.key)
        with self._transaction() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]

    def publication_of(self, model: str, sha256: str) -> str | None:
        """Return the key of the arrival whose equal bytes were published; ``None`` if there is none."""
        query = sa.select(arrivals.c.key).where(
            arrivals.c.model == model,
            arrivals.c.sha256 == sha256,
            arrivals.c.outcome == Outcome.PUBLISHED.value,
        )
        with self._transaction() as connection:
            return connection.scalar(query)

    def newest_publication(self, model: str) -> int | None:
        """Return the newest table version that an arrival was published in; ``None`` before the first."""
        came = sa.select(arrivals.c.dataset_version).where(arrivals.c.model == model)
        released = sa.select(releases.c.dataset_version).where(releases.c.model == model)
        query = sa.select(sa.func.max(sa.union_all(came, released).subquery().c.dataset_version))
        with self._transaction() as connection:
            version: int | None = connection.scalar(query)
            return version

    def rows_published_after(self, model: str, version: int | None) -> int:
        """Count the rows that were published after a table version; after the beginning where it is ``None``."""
        since = -1 if version is None else version
        at_once = arrivals.c.rows - arrivals.c.quarantined_rows - arrivals.c.released_rows
        came = sa.select(sa.func.sum(at_once)).where(
            arrivals.c.model == model,
            arrivals.c.outcome == Outcome.PUBLISHED.value,
            arrivals.c.dataset_version > since,
        )
        later = sa.select(sa.func.sum(releases.c.rows)).where(
            releases.c.model == model, releases.c.dataset_version > since
        )
        with self._transaction() as connection:
            return int(connection.scalar(came) or 0) + int(connection.scalar(later) or 0)

    # Releases from quarantine

    def releases(self, model: str, arrival: str) -> list[Release]:
        """Return the releases of one arrival, oldest first."""
        query = sa.select(releases).where(releases.c.model == model, releases.c.arrival == arrival)
        with self._transaction() as connection:
            rows = connection.execute(query.order_by(releases.c.number)).all()
        return [Release(**row._mapping) for row in rows]

    def record_release(self, release: Release, result: BatchResult) -> None:
        """Store a release and what became of its arrival, together; saying it twice changes nothing."""
        this = sa.and_(releases.c.model == release.model, releases.c.arrival == release.arrival)
        known = sa.select(releases.c.number).where(this, releases.c.number == release.number)
        row = {
            "outcome": result.outcome.value,
            "rows": result.rows,
            "quarantined_rows": result.quarantined_rows,
            "released_rows": arrivals.c.released_rows + release.rows,
            "dataset_version": sa.func.coalesce(arrivals.c.dataset_version, result.dataset_version),
            "reason": result.reason,
            "rules": json.dumps(result.rules),
            "examples": json.dumps(result.examples),
        }
        with self._transaction() as connection:
            if connection.scalar(known) is None:
                connection.execute(releases.insert().values(asdict(release)))
                connection.execute(arrivals.update().where(_is(release.model, release.arrival)).values(row))

    # What was forgotten

    def record_tombstone(self, tombstone: Tombstone) -> None:
        """Store that an entity is to be forgotten; saying it twice changes nothing."""
        this = sa.and_(tombstones.c.model == tombstone.model, tombstones.c.digest == tombstone.digest)
        with self._transaction() as connection:
            if connection.scalar(sa.select(tombstones.c.digest).where(this)) is None:
                row = {**asdict(tombstone), "figures": json.dumps(tombstone.figures)}
                connection.execute(tombstones.insert().values(row))

    def complete_tombstone(self, model: str, digest: str, figures: dict[str, int]) -> None:
        """Store that an entity is forgotten and add up what lost it; the first completion's time stays."""
        this = sa.and_(tombstones.c.model == model, tombstones.c.digest == digest)
        with self._transaction() as connection:
            before = json.loads(connection.scalar(sa.select(tombstones.c.figures).where(this)) or "{}")
            total = {name: count + before.get(name, 0) for name, count in figures.items()}
            connection.execute(
                tombstones.update()
                .where(this)
                .values(figures=json.dumps(total), completed_at=sa.func.coalesce(tombstones.c.completed_at, now()))
            )

    def tombstones(self, model: str) -> list[Tombstone]:
        """Return what was forgotten of a model, oldest first."""
        query = sa.select(tombstones).where(tombstones.c.model == model).order_by(tombstones.c.asked_at)
        with self._transaction() as connection:
            rows = [dict(row._mapping) for row in connection.execute(query)]
        return [Tombstone(**{**row, "figures": json.loads(row["figures"])}) for row in rows]

    def mark_forgotten(self, model: str, version: int) -> int:
        """Mark dataset versions from this one on, and the candidates made of them, as not reproducible.

        Returns
        -------
        int
            Candidates that were not marked before.
        """
        pinned = sa.and_(datasets.c.model == model, datasets.c.version >= version, datasets.c.forgotten_at.is_(None))
        trained = sa.and_(
            candidates.c.model == model,
            candidates.c.dataset_version >= version,
            candidates.c.forgotten_at.is_(None),
        )
        with self._transaction() as connection:
            connection.execute(datasets.update().where(pinned).values(forgotten_at=now()))
            return int(connection.execute(candidates.update().where(trained).values(forgotten_at=now())).rowcount)

    def replace_raw_batch(self, batch: RawBatch, path: str, removed: Iterable[int]) -> None:
        """Let every arrival that has these raw bytes have others, from which rows were removed.

        Those that are not handled yet are going to be validated without them: no finding counts them.
        """
        same = sa.and_(arrivals.c.model == batch.arrival.model, arrivals.c.raw_path == batch.path)
        with self._transaction() as connection:
            numbers = json.dumps(list(removed))
            handled = sa.and_(same, arrivals.c.outcome.is_not(None))
            connection.execute(arrivals.update().where(handled).values(removed=numbers))
            connection.execute(arrivals.update().where(same).values(raw_path=path))

    def withhold(self, model: str, keys: Iterable[str], words: str) -> None:
        """Take values out of what is said of handled arrivals: examples go, `words` stand where a reason quotes."""
        these = sa.and_(arrivals.c.model == model, arrivals.c.key.in_(list(keys)), arrivals.c.outcome.is_not(None))
        with self._transaction() as connection:
            for row in connection.execute(sa.select(arrivals).where(these)).all():
                rules = json.loads(row.rules)
                quotes = "schema" in rules
                if quotes:
                    rules["schema"] = {words: sum(rules["schema"].values())}
                values = {"examples": "[]", "rules": json.dumps(rules), "reason": words if quotes else row.reason}
                connection.execute(arrivals.update().where(_is(model, row.key)).values(values))

    def raw_batches_of(self, model: str) -> list[RawBatch]:
        """Return all arrivals whose bytes are kept, in the order they came."""
        with self._transaction() as connection:
            keys = list(connection.scalars(sa.select(arrivals.c.key).where(arrivals.c.model == model)))
        return self.raw_batches(model, keys)

    def compact(self) -> None:
        """Rewrite an SQLite file and empty its journal, which hold what was overwritten; elsewhere the server does."""
        if self.engine.dialect.name != "sqlite":
            return
        connection = self.engine.raw_connection()
        try:
            connection.cursor().execute("VACUUM")
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            connection.close()

    # Dataset versions

    def record_dataset(self, dataset: DatasetVersion) -> None:
        """Pin a dataset version.

        Raises
        ------
        ConflictError
            The version is pinned already under another digest: its rows have changed.
        ForgottenError
            They have because someone was forgotten.
        """
        with self._transaction() as connection:
            query = sa.select(datasets.c.digest, datasets.c.forgotten_at).where(
                datasets.c.model == dataset.model, datasets.c.version == dataset.version
            )
            digest, forgotten_at = connection.execute(query).first() or (None, None)
            if digest is None:
                connection.execute(datasets.insert().values(**asdict(dataset), pinned_at=now()))
            elif forgotten_at is not None:
                raise ForgottenError(
                    f"Version {dataset.version} of the dataset of {dataset.model!r} lost rows on "
                    f"{forgotten_at:%Y-%m-%d} because a person's data was forgotten: it cannot be reproduced. "
                    f"Train on a newer version: ml-platform retrain {dataset.model}."
                )
            elif digest != dataset.digest:
                raise ConflictError(
                    f"Version {dataset.version} of the dataset of {dataset.model!r} was pinned with digest "
                    f"{digest[:12]} and now has {dataset.digest[:12]}: its files were changed. Restore them."
                )

    def newest_dataset(self, model: str) -> DatasetVersion | None:
        """Return the dataset version that was pinned last; ``None`` before the first."""
        query = sa.select(datasets).where(datasets.c.model == model).order_by(datasets.c.version.desc()).limit(1)
        row = self._row(query)
        return DatasetVersion(**{k: row[k] for k in ("model", "version", "digest", "rows")}) if row else None

    def dataset_before(self, dataset: DatasetVersion) -> DatasetVersion | None:
        """Return the newest dataset version that was pinned with a lower number; ``None`` before the second."""
        earlier = sa.and_(datasets.c.model == dataset.model, datasets.c.version < dataset.version)
        row = self._row(sa.select(datasets).where(earlier).order_by(datasets.c.version.desc()).limit(1))
        return DatasetVersion(**{k: row[k] for k in ("model", "version", "digest", "rows")}) if row else None

    # Candidates and verdicts

    def record_candidate(self, candidate: Candidate) -> None:
        """Store a candidate; its identifier must be new."""
        fields = {**asdict(candidate), **asdict(candidate.lineage)}
        del fields["lineage"]
        with self._transaction() as connection:
            connection.execute(candidates.insert().values(fields))

    def link_mlflow_run(self, candidate: str, run_id: str) -> None:
        """Remember which MLflow run shows a candidate."""
        with self._transaction() as connection:
            connection.execute(candidates.update().where(candidates.c.id == candidate).values(mlflow_run_id=run_id))

    def candidate(self, identifier: str) -> Candidate:
        """Return one candidate.

        Raises
        ------
        EvidenceError
            There is no such candidate.
        """
        row = self._row(sa.select(candidates).where(candidates.c.id == identifier))
        if row is None:
            raise EvidenceError(f"There is no candidate {identifier!r}. Train one: ml-platform retrain MODEL.")
        return _candidate(row)

    def newest_candidate(self, model: str, run_id: str | None = None) -> Candidate | None:
        """Return the candidate that was trained last, by one Dagster run where it is named; ``None`` if none was."""
        query = sa.select(candidates).where(candidates.c.model == model)
        if run_id is not None:
            query = query.where(candidates.c.run_id == run_id)
        row = self._row(query.order_by(candidates.c.trained_at.desc()).limit(1))
        return _candidate(row) if row else None

    def newest_settled_candidate(self, model: str) -> Candidate | None:
        """Return the newest candidate that was refused or promoted; ``None`` if there is none.

        One that passed its gates and got no further, or was never judged, is not settled: its run died.
        """
        refused = sa.select(verdicts.c.candidate).where(verdicts.c.passed.is_(False))
        promoted = sa.select(ledger.c.candidate)
        settled = sa.or_(candidates.c.id.in_(refused), candidates.c.id.in_(promoted))
        query = sa.select(candidates).where(candidates.c.model == model, settled)
        row = self._row(query.order_by(candidates.c.trained_at.desc()).limit(1))
        return _candidate(row) if row else None

    def candidates_of(self, model: str, dataset_version: int) -> int:
        """Count the candidates that were trained on a dataset version."""
        of_version = sa.and_(candidates.c.model == model, candidates.c.dataset_version == dataset_version)
        with self._transaction() as connection:
            return int(connection.scalar(sa.select(sa.func.count()).where(of_version)) or 0)

    def record_verdict(self, verdict: Verdict) -> None:
        """Store a verdict under its digest; storing the same again changes nothing."""
        with self._transaction() as connection:
            if connection.scalar(sa.select(verdicts.c.digest).where(verdicts.c.digest == verdict.digest)) is None:
                connection.execute(
                    verdicts.insert().values(
                        digest=verdict.digest,
                        candidate=verdict.candidate,
                        passed=verdict.passed,
                        document=verdict.document,
                        judged_at=now(),
                    )
                )

    def verdict_on(self, candidate: str) -> Verdict | None:
        """Return the newest verdict on a candidate; ``None`` if it was never judged.

        Raises
        ------
        EvidenceError
            The stored document does not have the digest that it was stored under.
        """
        query = sa.select(verdicts).where(verdicts.c.candidate == candidate).order_by(verdicts.c.judged_at.desc())
        row = self._row(query.limit(1))
        if row is None:
            return None
        verdict = Verdict.from_document(row["document"])
        if verdict.digest != row["digest"]:
            raise EvidenceError(
                f"The verdict on candidate {candidate!r} has been changed since it was stored: digest "
                f"{verdict.digest[:12]} instead of {row['digest'][:12]}. Judge the candidate again."
            )
        return verdict

    # Registrations

    def record_registration(self, registration: Registration) -> None:
        """Remember the number that a candidate has in the registry; saying it twice changes nothing."""
        if self.registration_of(registration.candidate) is None:
            with self._transaction() as connection:
                connection.execute(registrations.insert().values(asdict(registration)))

    def registration_of(self, candidate: str) -> Registration | None:
        """Return a candidate's number in the registry; ``None`` if it has none."""
        row = self._row(sa.select(registrations).where(registrations.c.candidate == candidate))
        return _registration(row) if row else None

    def mark_staged(self, registration: Registration) -> None:
        """Record that a version passed its integration tests."""
        with self._transaction() as connection:
            connection.execute(
                registrations.update()
                .where(registrations.c.candidate == registration.candidate)
                .values(staged_at=now())
            )

    def is_staged(self, registration: Registration) -> bool:
        """Whether a version passed its integration tests."""
        row = self._row(sa.select(registrations).where(registrations.c.candidate == registration.candidate))
        return bool(row and row["staged_at"])

    # The ledger

    def champion(self, model: str) -> LedgerEntry | None:
        """Return the entry that made the present champion; ``None`` before the first promotion."""
        query = sa.select(ledger).where(ledger.c.model == model).order_by(ledger.c.sequence.desc()).limit(1)
        row = self._row(query)
        return LedgerEntry(**row) if row else None

    def append_to_ledger(self, entry: LedgerEntry) -> None:
        """Append an entry, if nobody appended one since its writer looked (compare and set).

        Raises
        ------
        ConflictError
            The ledger has moved on: `entry.sequence` is not the next number, or the champion is not
            `entry.previous_version`.
        """
        with self._transaction() as connection:
            query = sa.select(ledger.c.sequence, ledger.c.version).where(ledger.c.model == entry.model)
            last = connection.execute(query.order_by(ledger.c.sequence.desc()).limit(1)).first()
            sequence, version = (last.sequence, last.version) if last else (0, None)
            if (entry.sequence, entry.previous_version) != (sequence + 1, version):
                raise ConflictError(
                    f"The champion of {entry.model!r} changed meanwhile: it is version {version}, and this "
                    f"promotion expected {entry.previous_version}. Look at `ml-platform history {entry.model}` "
                    "and try again."
                )
            try:
                connection.execute(ledger.insert().values(asdict(entry)))
            except sa.exc.IntegrityError as error:
                # PostgreSQL lets two writers look at once; the primary key lets one of them through.
                raise ConflictError(f"Somebody else promoted {entry.model!r} at the same time. Try again.") from error

    def history(self, model: str) -> list[LedgerEntry]:
        """Return the ledger of a model, oldest entry first."""
        query = sa.select(ledger).where(ledger.c.model == model).order_by(ledger.c.sequence)
        with self._transaction() as connection:
            return [LedgerEntry(**row._mapping) for row in connection.execute(query)]

    def models(self) -> list[str]:
        """Return the names of all models that have left a trace, sorted."""
        query = sa.union(sa.select(arrivals.c.model), sa.select(candidates.c.model))
        with self._transaction() as connection:
            return sorted(connection.scalars(query))

    def _row(self, query: sa.Select[Any]) -> dict[str, Any] | None:
        with self._transaction() as connection:
            row = connection.execute(query).first()
            return dict(row._mapping) if row else None


def _with_driver(url: sa.URL) -> sa.URL:
    # SQLAlchemy 2.1 takes a bare postgresql:// for psycopg 3; the extra `postgres` brings psycopg2, as Dagster's does.
    return url.set(drivername="postgresql+psycopg2") if url.drivername == "postgresql" else url


def _without_password(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return "address"


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, **_engine_options(url))
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, **_engine_options(url))
    sa.event.listen(engine, "connect", _configure_sqlite)
    sa.event.listen(engine, "begin", _begin_immediate)
    return engine


def _engine_options(url: sa.URL) -> dict[str, Any]:
    # Several processes write: a writer waits for the other instead of failing at once.
    return {"connect_args": {"timeout": 30}} if url.get_backend_name() == "sqlite" else {"pool_pre_ping": True}


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not begin transactions by itself: _begin_immediate does, so that a transaction that reads
    # and then writes cannot lose its lock in between. FULL: a commit that was reported survives a power cut.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _is(model: str, key: str) -> sa.ColumnElement[bool]:
    return sa.and_(arrivals.c.model == model, arrivals.c.key == key)


def _arrival(row: Mapping[str, Any]) -> Arrival:
    return Arrival(**{name: row[name] for name in Arrival.__dataclass_fields__})


def _batch_result(row: dict[str, Any]) -> BatchResult:
    return BatchResult(
        arrival=_arrival(row),
        sha256=row["sha256"],
        outcome=Outcome(row["outcome"]),
        rows=row["rows"],
        quarantined_rows=row["quarantined_rows"],
        dataset_version=row["dataset_version"],
        reason=row["reason"],
        rules=json.loads(row["rules"]),
        examples=json.loads(row["examples"]),
    )


def _candidate(row: dict[str, Any]) -> Candidate:
    lineage = {name: row.pop(name) for name in Lineage.__dataclass_fields__}
    return Candidate(**row, lineage=Lineage(**lineage))


def _registration(row: dict[str, Any]) -> Registration:
    return Registration(model=row["model"], version=row["version"], candidate=row["candidate"])
