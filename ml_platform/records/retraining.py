"""The time slot for which a retraining of a model is unique."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from ml_platform.errors import ConfigurationError

SLOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._-]{0,63}")
LONGEST_REASON = 255


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The key of a retraining: at most one runs for each model, reason and slot.

    Parameters
    ----------
    model, reason : str
    slot : str
        For a schedule its time in UTC, ``2026-11-23T02:00Z``; for new rows the dataset version and the attempt,
        ``version-3-try-1``; else a name that the caller chooses.

    Raises
    ------
    ConfigurationError
        The slot is not a valid name, or the reason is longer than a database key.
    """

    model: str
    reason: str
    slot: str

    def __post_init__(self) -> None:
        """Refuse a slot or a reason that cannot be stored as a key."""
        if not SLOT.fullmatch(self.slot):
            raise ConfigurationError(
                "--slot must be `due` or at most 64 letters, digits, dots, colons, dashes and underscores. Got "
                f"{self.slot!r} instead."
            )
        if len(self.reason) > LONGEST_REASON:
            raise ConfigurationError(
                f"The reason of a slot must have at most {LONGEST_REASON} characters. Got {len(self.reason)} instead."
            )


def slot_name(time: datetime) -> str:
    """Return the slot of a schedule's tick: its time converted to UTC, to the minute."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%MZ}"
