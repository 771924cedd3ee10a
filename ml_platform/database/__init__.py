"""The platform's own database: arrivals, candidates, verdicts, registrations, the ledger, traffic and slots.

SQLite by default, PostgreSQL by ``ML_PLATFORM_DATABASE_URL``. Steps pass identifiers to each other through this
database and never through an IO manager, so that a step can run again in any process.
"""

import sqlalchemy as sa

from ml_platform.database.arrivals import ArrivalRecords
from ml_platform.database.candidates import CandidateRecords
from ml_platform.database.engine import HEAD
from ml_platform.database.erasures import ForgottenRecords
from ml_platform.database.ledger import LedgerRecords
from ml_platform.database.retraining_slots import SlotRecords
from ml_platform.database.tables import arrivals, candidates, metadata
from ml_platform.database.traffic import TrafficRecords

__all__ = ["HEAD", "PlatformDatabase", "metadata"]


class PlatformDatabase(ArrivalRecords, ForgottenRecords, CandidateRecords, LedgerRecords, TrafficRecords, SlotRecords):
    """All records of one deployment; every method is one transaction. `DatabaseEngine` has parameters and errors."""

    def models(self) -> list[str]:
        """Return the names of all models with arrivals or candidates, sorted."""
        query = sa.union(sa.select(arrivals.c.model), sa.select(candidates.c.model))
        with self._transaction() as connection:
            return sorted(connection.scalars(query))
