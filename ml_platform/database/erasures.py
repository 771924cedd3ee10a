"""Records of erasures, and the changes that an erasure makes to other records."""

import json
from collections.abc import Iterable
from dataclasses import asdict

import sqlalchemy as sa

from ml_platform.database.engine import DatabaseEngine
from ml_platform.database.tables import arrivals, candidates, datasets, this_arrival, tombstones
from ml_platform.records.canonical import now
from ml_platform.records.data import RawBatch, Tombstone


class ForgottenRecords(DatabaseEngine):
    """Records of erasures, and the changes that an erasure makes to other records."""

    def record_tombstone(self, tombstone: Tombstone) -> None:
        """Store the beginning of an entity's erasure; storing it twice changes nothing."""
        this = sa.and_(tombstones.c.model == tombstone.model, tombstones.c.digest == tombstone.digest)
        with self._transaction() as connection:
            if connection.scalar(sa.select(tombstones.c.digest).where(this)) is None:
                row = {**asdict(tombstone), "figures": json.dumps(tombstone.figures)}
                connection.execute(tombstones.insert().values(row))

    def complete_tombstone(self, model: str, digest: str, figures: dict[str, int]) -> None:
        """Store the completion of an entity's erasure and add to its figures; the first completion time stays."""
        this = sa.and_(tombstones.c.model == model, tombstones.c.digest == digest)
        with self._transaction() as connection:
            before = json.loads(connection.scalar(sa.select(tombstones.c.figures).where(this)) or "{}")
            total = {name: count + before.get(name, 0) for name, count in figures.items()}
            connection.execute(
                tombstones.update()
                .where(this)
                .values(figures=json.dumps(total), completed_at=sa.func.coalesce(tombstones.c.completed_at, now()))
            )

    def discard_tombstone(self, model: str, digest: str) -> None:
        """Remove a tombstone of an entity that has no data, unless its deletion was completed."""
        this = sa.and_(tombstones.c.model == model, tombstones.c.digest == digest)
        with self._transaction() as connection:
            connection.execute(tombstones.delete().where(this, tombstones.c.completed_at.is_(None)))

    def tombstones(self, model: str) -> list[Tombstone]:
        """Return the tombstones of a model, oldest first."""
        query = sa.select(tombstones).where(tombstones.c.model == model).order_by(tombstones.c.asked_at)
        with self._transaction() as connection:
            rows = [dict(row._mapping) for row in connection.execute(query)]
        return [Tombstone(**{**row, "figures": json.loads(row["figures"])}) for row in rows]

    def mark_forgotten(self, model: str, version: int) -> int:
        """Mark dataset versions from this one on, and the candidates trained on them, as not reproducible.

        Returns
        -------
        int
            Number of candidates that were not marked before.
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
        """Replace the raw bytes of every arrival that has them by bytes without the removed rows.

        `removed` is stored for arrivals with an outcome only: the others will be validated without these rows, and no
        violation counts them.
        """
        same = sa.and_(arrivals.c.model == batch.arrival.model, arrivals.c.raw_path == batch.path)
        with self._transaction() as connection:
            numbers = json.dumps(list(removed))
            handled = sa.and_(same, arrivals.c.outcome.is_not(None))
            connection.execute(arrivals.update().where(handled).values(removed=numbers))
            connection.execute(arrivals.update().where(same).values(raw_path=path))

    def withhold(self, model: str, keys: Iterable[str], words: str) -> None:
        """Remove quoted values from the outcomes of arrivals: examples are deleted, quoting reasons become `words`."""
        these = sa.and_(arrivals.c.model == model, arrivals.c.key.in_(list(keys)), arrivals.c.outcome.is_not(None))
        with self._transaction() as connection:
            for row in connection.execute(sa.select(arrivals).where(these)).all():
                rules = json.loads(row.rules)
                quotes = "schema" in rules
                if quotes:
                    rules["schema"] = {words: sum(rules["schema"].values())}
                values = {"examples": "{}", "rules": json.dumps(rules), "reason": words if quotes else row.reason}
                connection.execute(arrivals.update().where(this_arrival(model, row.key)).values(values))
