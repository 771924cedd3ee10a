"""Slots: at most one retraining runs for each model, reason and slot, even if several schedulers start it."""

import sqlalchemy as sa

from ml_platform.database.engine import DatabaseEngine
from ml_platform.database.tables import retraining_slots
from ml_platform.records.canonical import now
from ml_platform.records.retraining import Slot


class SlotRecords(DatabaseEngine):
    """The run that holds each slot."""

    def claim_slot(self, slot: Slot, holder: str) -> str:
        """Claim a slot for a run. Return the run that holds it: this one, or an earlier one.

        A claim does not expire: it lasts until its holder releases it.
        """
        row = {**vars(slot), "holder": holder, "claimed_at": now()}
        held = sa.select(retraining_slots.c.holder).where(_this(slot))
        with self._transaction() as connection:
            first = None
            while first is None:  # the holder may release it between the insert and the query
                try:
                    with connection.begin_nested():
                        connection.execute(retraining_slots.insert().values(row))
                except sa.exc.IntegrityError:
                    first = connection.scalar(held)
                else:
                    return holder
        return str(first)

    def slot_holder(self, slot: Slot) -> str | None:
        """Return the run that holds a slot; ``None`` if it is free."""
        row = self._row(sa.select(retraining_slots.c.holder).where(_this(slot)))
        return row["holder"] if row else None

    def release_slot(self, slot: Slot, holder: str) -> None:
        """Release the slot of a run that failed; a slot of another run stays claimed."""
        released = retraining_slots.delete().where(_this(slot), retraining_slots.c.holder == holder)
        with self._transaction() as connection:
            connection.execute(released)


def _this(slot: Slot) -> sa.ColumnElement[bool]:
    return sa.and_(*(retraining_slots.c[name] == value for name, value in vars(slot).items()))
