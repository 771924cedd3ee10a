"""Claim a retraining's time slot, so that two schedulers do not start it twice."""

from ml_platform.errors import ConflictError
from ml_platform.platform import Platform
from ml_platform.records.retraining import Slot


def claim_slot(platform: Platform, slot: Slot, holder: str) -> None:
    """Claim a slot, which is unique by model, reason and time, for a run; a run may claim its own slot again.

    Parameters
    ----------
    platform : Platform
    slot : Slot
    holder : str
        Id of the run.

    Raises
    ------
    ConflictError
        Another run has the slot.
    """
    first = platform.database.claim_slot(slot, holder)
    if first != holder:
        raise ConflictError(
            f"Run {first} already retrains {slot.model!r} for the slot {slot.slot} ({slot.reason}). This run trained "
            f"nothing. To train once more, run: ml-platform retrain {slot.model} --reason …"
        )
