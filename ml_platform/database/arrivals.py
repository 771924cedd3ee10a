"""Records of arrivals, their outcomes and their releases."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from ml_platform.database.engine import DatabaseEngine
from ml_platform.database.tables import arrivals, releases, this_arrival
from ml_platform.records.canonical import now
from ml_platform.records.data import Arrival, BatchResult, Outcome, RawBatch, Release


class ArrivalRecords(DatabaseEngine):
    """Records of arrivals, their outcomes and their releases."""

    def record_raw_batch(self, batch: RawBatch) -> None:
        """Store the path of an arrival's bytes; storing it twice changes nothing."""
        arrival = batch.arrival
        row = {
            **asdict(arrival),
            "key": arrival.key,
            "sha256": batch.sha256,
            "raw_path": batch.path,
            "promised_sha256": batch.promised_sha256,
            "corrects": batch.corrects,
        }
        with self._transaction() as connection:
            known = sa.select(arrivals.c.key).where(this_arrival(arrival.model, arrival.key))
            if connection.scalar(known) is None:
                connection.execute(arrivals.insert().values(**row, found_at=now()))

    def raw_batches(self, model: str, keys: Iterable[str]) -> list[RawBatch]:
        """Return the raw batches of some keys in the order of their arrival; keys without one are left out."""
        return self._raw_batches(sa.and_(arrivals.c.model == model, arrivals.c.key.in_(list(keys))))

    def list_raw_batches(self, model: str) -> list[RawBatch]:
        """Return all raw batches in the order of their arrival."""
        return self._raw_batches(arrivals.c.model == model)

    def unhandled_batches(self, model: str) -> list[RawBatch]:
        """Return the raw batches that have no outcome yet, in the order of their arrival."""
        return self._raw_batches(sa.and_(arrivals.c.model == model, arrivals.c.outcome.is_(None)))

    def _raw_batches(self, condition: sa.ColumnElement[bool]) -> list[RawBatch]:
        query = sa.select(arrivals).where(condition).order_by(arrivals.c.mtime_ns, arrivals.c.name)
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return [
            RawBatch(
                arrival=_arrival(row._asdict()),
                sha256=row.sha256,
                path=row.raw_path,
                promised_sha256=row.promised_sha256,
                removed=tuple(json.loads(row.removed)),
                corrects=row.corrects,
            )
            for row in rows
        ]

    def uses_raw(self, model: str, path: str) -> bool:
        """Return True if an arrival's bytes are stored at a path."""
        query = sa.select(arrivals.c.key).where(arrivals.c.model == model, arrivals.c.raw_path == path).limit(1)
        with self._transaction() as connection:
            return connection.scalar(query) is not None

    def record_outcome(self, result: BatchResult, quarantined_by: str | None = None) -> bool:
        """Store the outcome of an arrival; an outcome that is already stored stays.

        Parameters
        ----------
        result : BatchResult
        quarantined_by : str or None
            The user who quarantined the arrival by hand; ``None`` for an outcome of the validation.

        Returns
        -------
        bool
            False if the arrival had an outcome.
        """
        row = {
            "outcome": result.outcome.value,
            "rows": result.rows,
            "quarantined_rows": result.quarantined_rows,
            "passed_over_rows": result.passed_over_rows,
            "dataset_version": result.dataset_version,
            "reason": result.reason,
            "rules": json.dumps(result.rules),
            "examples": json.dumps(result.examples),
            "recorded_at": now(),
            "quarantined_by": quarantined_by,
        }
        unhandled = sa.and_(this_arrival(result.arrival.model, result.arrival.key), arrivals.c.outcome.is_(None))
        with self._transaction() as connection:
            return connection.execute(arrivals.update().where(unhandled).values(row)).rowcount == 1

    def begin_reading(self, model: str, key: str) -> tuple[int, list[str]]:
        """Count one more reading of an arrival's bytes, before it begins.

        Returns
        -------
        readings : int
            Readings that began, this one included, and did not end with an outcome or by `end_reading`.
        deaths : list of str
            The recorded ends of the processes that read it.
        """
        this = this_arrival(model, key)
        with self._transaction() as connection:
            connection.execute(arrivals.update().where(this).values(readings=arrivals.c.readings + 1))
            row = connection.execute(sa.select(arrivals.c.readings, arrivals.c.reader_deaths).where(this)).one()
        return row.readings, json.loads(row.reader_deaths)

    def end_reading(self, model: str, key: str) -> None:
        """Record that an arrival's bytes were read to their end; its outcome may still be open."""
        with self._transaction() as connection:
            connection.execute(arrivals.update().where(this_arrival(model, key)).values(readings=0))

    def record_reader_death(self, model: str, key: str, description: str) -> None:
        """Record that an arrival's bytes ended the process that read them."""
        this = this_arrival(model, key)
        with self._transaction() as connection:
            deaths = json.loads(connection.execute(sa.select(arrivals.c.reader_deaths).where(this)).scalar_one())
            connection.execute(arrivals.update().where(this).values(reader_deaths=json.dumps([*deaths, description])))

    def outcomes(self, model: str, keys: Iterable[str]) -> list[BatchResult]:
        """Return the outcomes of the arrivals with some keys, in the order of handling; none for an open arrival."""
        wanted = set(keys)
        return [
            BatchResult(
                arrival=_arrival(row),
                sha256=row["sha256"],
                outcome=Outcome(row["outcome"]),
                rows=row["rows"],
                quarantined_rows=row["quarantined_rows"],
                passed_over_rows=row["passed_over_rows"],
                dataset_version=row["dataset_version"],
                reason=row["reason"],
                rules=json.loads(row["rules"]),
                examples=json.loads(row["examples"]),
            )
            for row in self.arrival_outcomes(model)
            if row["key"] in wanted
        ]

    def known_arrivals(self, model: str) -> set[str]:
        """Return the keys of all arrivals that have an outcome."""
        query = sa.select(arrivals.c.key).where(arrivals.c.model == model, arrivals.c.outcome.is_not(None))
        with self._transaction() as connection:
            return set(connection.scalars(query))

    def change_times(self, model: str) -> dict[str, int]:
        """Return the change time of every arrival's file by key, in nanoseconds; 0 if it was not recorded."""
        query = sa.select(arrivals.c.key, arrivals.c.ctime_ns).where(arrivals.c.model == model)
        with self._transaction() as connection:
            return {row.key: row.ctime_ns for row in connection.execute(query)}

    def record_change_times(self, model: str, listed: Iterable[Arrival]) -> None:
        """Record the change times of listed files for those known arrivals that have none."""
        dated = [arrival for arrival in listed if arrival.ctime_ns]
        query = sa.select(arrivals.c.key).where(arrivals.c.model == model, arrivals.c.ctime_ns == 0)
        with self._transaction() as connection:
            undated = set(connection.scalars(query)) if dated else set()
            for arrival in dated if undated else ():
                if arrival.key in undated:
                    this = this_arrival(model, arrival.key)
                    connection.execute(arrivals.update().where(this).values(ctime_ns=arrival.ctime_ns))

    def arrival_outcomes(self, model: str) -> list[dict[str, Any]]:
        """Return every arrival with an outcome as a plain row, oldest first."""
        query = sa.select(arrivals).where(arrivals.c.model == model, arrivals.c.outcome.is_not(None))
        query = query.order_by(arrivals.c.recorded_at, arrivals.c.key)
        with self._transaction() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]

    def count_passed_over(self, model: str) -> int:
        """Count the rows of a model's arrivals that were passed over, because they were published already."""
        query = sa.select(sa.func.sum(arrivals.c.passed_over_rows)).where(arrivals.c.model == model)
        with self._transaction() as connection:
            return int(connection.scalar(query) or 0)

    def find_publication(self, model: str, sha256: str) -> str | None:
        """Return the key of the published arrival with the same bytes; ``None`` if there is none."""
        query = sa.select(arrivals.c.key).where(
            arrivals.c.model == model,
            arrivals.c.sha256 == sha256,
            arrivals.c.outcome == Outcome.PUBLISHED.value,
        )
        with self._transaction() as connection:
            return connection.scalar(query)

    def hand_quarantined(self, model: str, sha256: str | None = None) -> list[str]:
        """Return the keys of the arrivals that a user quarantined, without released ones, for some bytes or all."""
        query = sa.select(arrivals.c.key).where(
            arrivals.c.model == model,
            arrivals.c.quarantined_by.is_not(None),
            arrivals.c.outcome == Outcome.QUARANTINED.value,
        )
        if sha256 is not None:
            query = query.where(arrivals.c.sha256 == sha256)
        with self._transaction() as connection:
            return list(connection.scalars(query))

    def is_handled(self, model: str, key: str) -> bool:
        """Return True if an arrival has an outcome."""
        query = sa.select(arrivals.c.outcome).where(this_arrival(model, key))
        with self._transaction() as connection:
            return connection.scalar(query) is not None

    def newest_publication(self, model: str) -> int | None:
        """Return the newest table version with a published arrival; ``None`` before the first."""
        published = sa.select(arrivals.c.dataset_version).where(arrivals.c.model == model)
        released = sa.select(releases.c.dataset_version).where(releases.c.model == model)
        query = sa.select(sa.func.max(sa.union_all(published, released).subquery().c.dataset_version))
        with self._transaction() as connection:
            version: int | None = connection.scalar(query)
            return version

    def rows_published_after(self, model: str, version: int | None) -> int:
        """Count the rows that were published after a table version; all published rows if it is ``None``."""
        since = -1 if version is None else version
        left_out = arrivals.c.quarantined_rows + arrivals.c.passed_over_rows
        at_first = arrivals.c.rows - left_out - arrivals.c.released_rows
        published = sa.select(sa.func.sum(at_first)).where(
            arrivals.c.model == model,
            arrivals.c.outcome == Outcome.PUBLISHED.value,
            arrivals.c.dataset_version > since,
        )
        released = sa.select(sa.func.sum(releases.c.rows)).where(
            releases.c.model == model, releases.c.dataset_version > since
        )
        with self._transaction() as connection:
            return int(connection.scalar(published) or 0) + int(connection.scalar(released) or 0)

    def releases(self, model: str, arrival: str) -> list[Release]:
        """Return the releases of one arrival, oldest first."""
        query = sa.select(releases).where(releases.c.model == model, releases.c.arrival == arrival)
        with self._transaction() as connection:
            rows = connection.execute(query.order_by(releases.c.number)).all()
        return [Release(**row._mapping) for row in rows]

    def record_release(self, release: Release, result: BatchResult) -> None:
        """Store a release with its arrival's new outcome in one transaction; storing it twice changes nothing."""
        this = sa.and_(releases.c.model == release.model, releases.c.arrival == release.arrival)
        known = sa.select(releases.c.number).where(this, releases.c.number == release.number)
        row = {
            "outcome": result.outcome.value,
            "rows": result.rows,
            "quarantined_rows": result.quarantined_rows,
            "passed_over_rows": result.passed_over_rows,
            "released_rows": arrivals.c.released_rows + release.rows,
            "dataset_version": sa.func.coalesce(arrivals.c.dataset_version, result.dataset_version),
            "reason": result.reason,
            "rules": json.dumps(result.rules),
            "examples": json.dumps(result.examples),
        }
        with self._transaction() as connection:
            if connection.scalar(known) is None:
                connection.execute(releases.insert().values(asdict(release)))
                connection.execute(arrivals.update().where(this_arrival(release.model, release.arrival)).values(row))


def _arrival(row: Mapping[str, Any]) -> Arrival:
    return Arrival(**{name: row[name] for name in Arrival.__dataclass_fields__})
