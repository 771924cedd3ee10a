"""The platform's own database: arrivals, candidates, verdicts, registrations, the ledger, traffic and slots.

SQLite by default, PostgreSQL by ``ML_PLATFORM_DATABASE_URL``. Identifiers that one step needs from another pass
through here, never through an IO manager, so that a step can be run again in any process.
"""

import sqlalchemy as sa

from ml_platform.database.arrivals import ArrivalRecords
from ml_platform.database.candidates import CandidateRecords
from ml_platform.database.forgotten import ForgottenRecords
from ml_platform.database.ledger import LedgerRecords
from ml_platform.database.slots import SlotRecords
from ml_platform.database.storage import HEAD
from ml_platform.database.tables import arrivals, candidates, metadata
from ml_platform.database.traffic import TrafficRecords

__all__ = ["HEAD", "Database", "metadata"]


class Database(ArrivalRecords, ForgottenRecords, CandidateRecords, LedgerRecords, TrafficRecords, SlotRecords):
    """All records of one deployment. Every method is one transaction; for parameters and errors see `Storage`."""

    def models(self) -> list[str]:
        """Return the names of all models that have left a trace, sorted."""
        query = sa.union(sa.select(arrivals.c.model), sa.select(candidates.c.model))
        with self._transaction() as connection:
            return sorted(connection.scalars(query))
