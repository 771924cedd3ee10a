"""Slots: a retraining is unique by model, reason and slot, whoever's clock asks for it."""

import sqlalchemy as sa

from ml_platform.database.storage import Storage
from ml_platform.database.tables import retraining_slots
from ml_platform.records import Slot, now


class SlotRecords(Storage):
    """Who retrains for which slot."""

    def claim_slot(self, slot: Slot, holder: str) -> str:
        """Let one run have a slot; return the run that has it, which is another one where that was first.

        No time decides: a slot stays claimed until its holder gives it back.
        """
        row = {**vars(slot), "holder": holder, "claimed_at": now()}
        held = sa.select(retraining_slots.c.holder).where(_this(slot))
        with self._transaction() as connection:
            first = None
            while first is None:  # whoever had it may give it back before we look whose it is
                try:
                    with connection.begin_nested():
                        connection.execute(retraining_slots.insert().values(row))
                except sa.exc.IntegrityError:
                    first = connection.scalar(held)
                else:
                    return holder
        return str(first)

    def slot_holder(self, slot: Slot) -> str | None:
        """Return the run that has a slot; ``None`` if nobody claimed it."""
        row = self._row(sa.select(retraining_slots.c.holder).where(_this(slot)))
        return row["holder"] if row else None

    def release_slot(self, slot: Slot, holder: str) -> None:
        """Give a slot back that a run came to nothing with; nothing happens if another run has it."""
        released = retraining_slots.delete().where(_this(slot), retraining_slots.c.holder == holder)
        with self._transaction() as connection:
            connection.execute(released)


def _this(slot: Slot) -> sa.ColumnElement[bool]:
    return sa.and_(*(retraining_slots.c[name] == value for name, value in vars(slot).items()))
