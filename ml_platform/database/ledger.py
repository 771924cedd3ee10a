"""The ledger."""

from dataclasses import asdict

import sqlalchemy as sa

from ml_platform.database.storage import Storage
from ml_platform.database.tables import ledger
from ml_platform.errors import ConflictError
from ml_platform.records import LedgerEntry


class LedgerRecords(Storage):
    """The ledger."""

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
