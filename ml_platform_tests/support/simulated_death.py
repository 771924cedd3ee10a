"""A process that is killed at a call, simulated in the process of the test: nothing after the call runs."""

from typing import Any


class ProcessDiedError(Exception):
    """The simulated kill."""


def die(*_: Any, **__: Any) -> None:
    """Replace a call at which the process is killed."""
    raise ProcessDiedError
