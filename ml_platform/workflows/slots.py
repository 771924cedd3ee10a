"""A retraining is unique by model, reason and slot, so that two clocks cannot double it."""

from ml_platform.errors import ConflictError
from ml_platform.records import Slot
from ml_platform.workflows.platform import Platform


def claim_slot(platform: Platform, slot: Slot, holder: str) -> None:
    """Claim a slot for a run, once; the run that has it already may claim it again.

    Raises
    ------
    ConflictError
        Another run has it.
    """
    first = platform.database.claim_slot(slot, holder)
    if first != holder:
        raise ConflictError(
            f"Run {first} retrains {slot.model!r} for the slot {slot.slot} ({slot.reason}): this run does not. To "
            f"train once more: ml-platform retrain {slot.model} --reason …"
        )
