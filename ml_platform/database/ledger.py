"""The ledger: append-only, one chain of digests for each model."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC
from typing import Any

import sqlalchemy as sa

from ml_platform.database.engine import DatabaseEngine
from ml_platform.database.tables import candidates, ledger, registrations, verdicts
from ml_platform.errors import RESTORE, ConflictError, LedgerError
from ml_platform.records.canonical import canonical_json, now
from ml_platform.records.ledger import DECISIONS, GENESIS, Action, LedgerEntry
from ml_platform.records.verdict import Candidate


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
            _insert(connection, entry)
            if entry.action == Action.REPLACEMENT:
                renumbered = registrations.update().where(registrations.c.candidate == entry.candidate)
                connection.execute(renumbered.values(version=entry.version))

    def record_served_again(self, candidate: Candidate, digest: str) -> None:
        """Store the new digest of a candidate's served files after an erasure, and append it to the ledger.

        The ledger names the new digest, because the verdict names the one before the erasure. A candidate without a
        version number gets no entry: it is judged again before it is registered.

        Raises
        ------
        ConflictError
            Another process wrote to the ledger at the same time: nothing was stored.
        """
        with self._transaction() as connection:
            connection.execute(candidates.update().where(candidates.c.id == candidate.id).values(served_digest=digest))
            version = connection.scalar(
                sa.select(registrations.c.version).where(registrations.c.candidate == candidate.id)
            )
            judged = sa.select(verdicts.c.digest).where(verdicts.c.candidate == candidate.id)
            verdict = connection.scalar(judged.order_by(verdicts.c.judged_at.desc()).limit(1))
            if version is None or verdict is None:
                return
            head, champion = _last(connection, candidate.model), _last(connection, candidate.model, decisions=True)
            entry = LedgerEntry(
                model=candidate.model,
                sequence=head.sequence + 1 if head else 1,
                action=Action.ERASURE.value,
                version=version,
                previous_version=champion.version if champion else None,
                candidate=candidate.id,
                verdict_digest=verdict,
                reason="a person's data was erased from the golden requests",
                actor="ml-platform",
                details={"served_digest": digest},
                recorded_at=now(),
                previous_digest=head.digest if head else GENESIS,
            )
            _insert(connection, entry)

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
            return [(_entry(row), row.digest) for row in _read_rows(connection, query, model)]

    def ledger_models(self) -> list[str]:
        """Return the names of all models that have a ledger, sorted."""
        with self._transaction() as connection:
            return sorted(connection.scalars(sa.select(ledger.c.model).distinct()))


def _insert(connection: sa.Connection, entry: LedgerEntry) -> None:
    row = {**asdict(entry), "details": canonical_json(entry.details), "digest": entry.digest}
    try:
        connection.execute(ledger.insert().values(row))
    except sa.exc.IntegrityError as error:
        # In PostgreSQL two writers can read the same head; the primary key admits one of them.
        raise ConflictError(
            f"Another process wrote to the ledger of {entry.model!r} at the same time. Try again."
        ) from error


def _last(connection: sa.Connection, model: str, *, decisions: bool = False) -> LedgerEntry | None:
    query = sa.select(ledger).where(ledger.c.model == model)
    if decisions:
        query = query.where(ledger.c.action.in_(DECISIONS))
    rows = _read_rows(connection, query.order_by(ledger.c.sequence.desc()).limit(1), model)
    return _entry(rows[0]) if rows else None


def _read_rows(connection: sa.Connection, query: sa.Select[Any], model: str) -> Sequence[sa.Row[Any]]:
    try:
        return connection.execute(query).all()
    except (ValueError, TypeError) as error:  # a time that is none
        raise LedgerError(f"The ledger of {model!r} holds an entry that cannot be read: {error}.") from error


def _entry(row: sa.Row[Any]) -> LedgerEntry:
    """Return a stored entry whose digest can be computed.

    JSON of a changed row may hold values that canonical JSON excludes, or nest without end.
    """
    try:
        details = json.loads(row.details)
        fields = {**row._mapping, "details": dict(**details)}  # an object of JSON, no list
        del fields["digest"]
        entry = LedgerEntry(**fields)
        canonical_json({**fields, "recorded_at": str(entry.recorded_at.astimezone(UTC))}).encode()
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise LedgerError(
            f"The ledger of {row.model!r} holds an entry that cannot be read, entry {row.sequence}: {error}. It was "
            f"changed. {RESTORE}"
        ) from error
    return entry
