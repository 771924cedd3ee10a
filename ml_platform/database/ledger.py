"""The ledger: append-only, one chain of digests for each model."""

import json
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from ml_platform.database.engine import DatabaseEngine
from ml_platform.database.tables import ledger, registrations
from ml_platform.errors import ConflictError, LedgerError
from ml_platform.records.canonical import canonical_json
from ml_platform.records.ledger import DECISIONS, GENESIS, Action, LedgerEntry


class LedgerRecords(DatabaseEngine):
    """The ledger."""

    def champion(self, model: str) -> LedgerEntry | None:
        """Return the decision that made the current champion; ``None`` before the first promotion."""
        with self._transaction() as connection:
            return _last(connection, model, decisions=True)

    def ledger_head(self, model: str) -> LedgerEntry | None:
        """Return the last entry, of any action; ``None`` for an empty ledger."""
        with self._transaction() as connection:
            return _last(connection, model)

    def append_to_ledger(self, entry: LedgerEntry) -> None:
        """Append an entry if it follows the last one (compare and set).

        A replacement gives the candidate's registration its new number in the same transaction.

        Raises
        ------
        ConflictError
            The ledger has changed: `entry` does not follow the last entry by number and digest, or it decides and the
            champion is not `entry.previous_version`.
        """
        with self._transaction() as connection:
            head, champion = _last(connection, entry.model), _last(connection, entry.model, decisions=True)
            # no guard: number of the champion
            version = champion.version if champion else None
            follows = (head.sequence + 1, head.digest) if head else (1, GENESIS)
            # guard: append-after-other-entry
            if (entry.sequence, entry.previous_digest) != follows or (
                # guard: append-after-other-champion
                entry.decides and entry.previous_version != version
            ):
                raise ConflictError(
                    f"The ledger of {entry.model!r} changed meanwhile: the champion is version {version} by entry "
                    f"{follows[0] - 1}, and this {entry.action} expected {entry.previous_version} by entry "
                    f"{entry.sequence - 1}. Check `ml-platform history {entry.model}` and try again."
                )
            row = {**asdict(entry), "details": canonical_json(entry.details), "digest": entry.digest}
            try:
                connection.execute(ledger.insert().values(row))
            except sa.exc.IntegrityError as error:
                # In PostgreSQL two writers can read the same head; the primary key admits one of them.
                raise ConflictError(
                    f"Another process wrote to the ledger of {entry.model!r} at the same time. Try again."
                ) from error
            if entry.action == Action.REPLACEMENT:
                renumbered = registrations.update().where(registrations.c.candidate == entry.candidate)
                connection.execute(renumbered.values(version=entry.version))

    def history(self, model: str) -> list[LedgerEntry]:
        """Return the decisions that made a model's champions, oldest first."""
        return [entry for entry in self.ledger(model) if entry.decides]

    def ledger(self, model: str) -> list[LedgerEntry]:
        """Return all entries of a model's ledger, oldest first."""
        return [entry for entry, _ in self.stored_ledger(model)]

    def stored_ledger(self, model: str) -> list[tuple[LedgerEntry, str]]:
        """Return all entries of a model's ledger, oldest first, each with its stored digest.

        Raises
        ------
        LedgerError
            An entry cannot be read.
        """
        query = sa.select(ledger).where(ledger.c.model == model).order_by(ledger.c.sequence)
        with self._transaction() as connection:
            try:
                return [(_entry(row), row.digest) for row in connection.execute(query).all()]
            except (ValueError, TypeError) as error:
                raise LedgerError(f"The ledger of {model!r} holds an entry that cannot be read: {error}.") from error

    def ledger_models(self) -> list[str]:
        """Return the names of all models that have a ledger, sorted."""
        with self._transaction() as connection:
            return sorted(connection.scalars(sa.select(ledger.c.model).distinct()))


def _last(connection: sa.Connection, model: str, *, decisions: bool = False) -> LedgerEntry | None:
    query = sa.select(ledger).where(ledger.c.model == model)
    if decisions:
        query = query.where(ledger.c.action.in_(DECISIONS))
    row = connection.execute(query.order_by(ledger.c.sequence.desc()).limit(1)).first()
    return _entry(row) if row else None


def _entry(row: sa.Row[Any]) -> LedgerEntry:
    fields = {**row._mapping, "details": json.loads(row.details)}
    del fields["digest"]
    return LedgerEntry(**fields)
