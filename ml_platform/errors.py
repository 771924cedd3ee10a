"""Every error that the platform raises on purpose.

::

    PlatformError
    ├── ConfigurationError        a setting, a path or a ModelSpec that cannot work
    │   └── PortInUseError        a server's port is taken
    ├── StorageError              a disk is full, read-only or broken: nothing was stored
    ├── LandingZoneError          the landing zone is missing, unreadable or holds what it must not
    │   └── ArrivalChangedError   a file is no longer the one that was found
    ├── DataError                 rows that cannot be used
    │   ├── UnreadableFileError   bytes that are no table of a known format
    │   │   └── TooLargeError     more bytes or rows than this deployment or the model takes
    │   └── DatasetError          a dataset version that is missing, empty or not what was pinned
    │       └── ForgottenError    a dataset version that lost rows because a person's data was forgotten
    ├── ModelError                a model that must not be used
    │   ├── DigestMismatchError   the bytes are not the bytes that were recorded
    │   ├── UntrustedModelError   the file asks for types outside the platform's trust list
    │   ├── ModelTimeoutError     a model that gave no answer in time
    │   ├── PredictionError       a model that raised, or said what is no finite number
    │   ├── UncompiledError       a pipeline with a part that is not known to the compiler
    │   └── OutOfMemoryError      a pipeline whose fit asked for more memory than there is
    ├── EvidenceError             a step was asked for without the evidence that it needs
    │   ├── ApprovalNeededError   the evidence holds and a person has to approve it
    │   └── IrreproducibleError   a version that cannot be made again here
    ├── ApprovalRefusedError      who approves could not be authenticated, or does not count
    ├── TrialError                a step of trying a change that could not be done
    ├── RequestError              a request for predictions that cannot be answered as it stands
    ├── BusyError                 more requests wait than are taken
    ├── ConflictError             somebody else changed the same thing first
    │   ├── RolloutUnderWayError  traffic is on its way to the champion: the next one has to wait
    │   └── SecondDaemonError     a daemon runs for this deployment already
    ├── AlertError                an alert that could not be sent
    ├── OutsideError              GitHub or a deployed Dagster refused, or did not answer
    ├── RefusedWebhookError       a message that is not from the registry
    ├── AdminError                a server's admin port that refused, or did not answer
    ├── LedgerError               the ledger is not what was written into it
    ├── DatabaseUnavailableError  the platform's database could not be reached
    └── RegistryError             MLflow refused
        ├── RegistryUnavailableError   MLflow could not be reached
        └── MissingInRegistryError     MLflow answers, and a version or its bytes are not there

A message says what was wrong, where, and what to do. The command line prints it as it is and exits with 2; a
failed gate or a quarantined arrival is a result and exits with 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MOST_PROBLEMS = 10


class PlatformError(Exception):
    """The root: catch this to catch everything that the platform raises on purpose."""


class ConfigurationError(PlatformError):
    """A setting, a path or a ModelSpec that cannot work."""


class PortInUseError(ConfigurationError):
    """A server's port is taken."""


class StorageError(PlatformError):
    """A disk is full, read-only or broken: nothing was stored."""


class LandingZoneError(PlatformError):
    """The landing zone is missing, unreadable or holds what it must not."""


class ArrivalChangedError(LandingZoneError):
    """A file is no longer the one that was found."""


class DataError(PlatformError):
    """Rows that cannot be used."""


class UnreadableFileError(DataError):
    """Bytes that are no table of a known format."""


class TooLargeError(UnreadableFileError):
    """More bytes or rows than this deployment or the model takes."""


class DatasetError(DataError):
    """A dataset version that is missing, empty or not what was pinned."""


class ForgottenError(DatasetError):
    """A dataset version that lost rows because a person's data was forgotten: it cannot be reproduced."""


class ModelError(PlatformError):
    """A model that must not be used."""


class DigestMismatchError(ModelError):
    """The bytes are not the bytes that were recorded."""


class UntrustedModelError(ModelError):
    """The file asks for types outside the platform's trust list."""


class ModelTimeoutError(ModelError):
    """A model that gave no answer in time."""


class PredictionError(ModelError):
    """A model that raised, or said what is no finite number."""


class UncompiledError(ModelError):
    """A pipeline with a part that is not known to the compiler: it is asked with DataFrames."""


class OutOfMemoryError(ModelError):
    """A pipeline whose fit asked for more memory than there is, or than a run may have."""


class EvidenceError(PlatformError):
    """A step was asked for without the evidence that it needs."""


class ApprovalNeededError(EvidenceError):
    """The evidence holds and a person has to approve it."""


class IrreproducibleError(EvidenceError):
    """A version that cannot be made again here; the message says what is not as it was."""


class ApprovalRefusedError(PlatformError):
    """Who approves could not be authenticated, or does not count."""


@dataclass(frozen=True, kw_only=True)
class RequestProblem:
    """One thing that is wrong with a request for predictions.

    Parameters
    ----------
    rule : str
        What was asked, as the rest of a sentence: ``must be at least 0``.
    field : str or None
        Of which field; ``None`` where it is the request as a whole.
    value : str, int, float, bool or None
        What was received, shortened; ``None`` also where nothing was.
    record : int or None
        Number of the record, from 0; ``None`` where it is not about one.
    """

    rule: str
    field: str | None = None
    value: str | float | bool | None = None
    record: int | None = None

    def __str__(self) -> str:
        of = f"{self.field!r} " if self.field else ""
        where = "" if self.record is None else f"record {self.record}: "
        got = "" if self.value is None else f". Got {self.value!r} instead"
        return f"{where}{of}{self.rule}{got}"


class RequestError(PlatformError):
    """A request for predictions that cannot be answered as it stands.

    Parameters
    ----------
    status : int
        Of HTTP: 400 no JSON of a known form, 413 too much, 422 a field that breaks a rule.
    problems : sequence of RequestProblem
        The first `MOST_PROBLEMS` that were found, at least one.
    """

    def __init__(self, status: int, problems: Sequence[RequestProblem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems) + ".")
        self.status = status
        self.problems = list(problems)


class BusyError(PlatformError):
    """More requests wait than are taken: come back a little later."""


class TrialError(PlatformError):
    """A step of trying a change that could not be done."""


class ConflictError(PlatformError):
    """Somebody else changed the same thing first."""


class RolloutUnderWayError(ConflictError):
    """Traffic is on its way to the champion: the next one has to wait."""


class SecondDaemonError(ConflictError):
    """A daemon runs for this deployment already: two would each ask for the same runs."""


class AlertError(PlatformError):
    """An alert that could not be sent."""


class AdminError(PlatformError):
    """A server's admin port that refused, or did not answer."""


class OutsideError(PlatformError):
    """GitHub or a deployed Dagster refused, or did not answer.

    Parameters
    ----------
    message : str
    status : int or None
        The HTTP status of its refusal; ``None`` if it gave no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def may_pass(self) -> bool:
        """Whether asking again may help: there was no answer, or a server's own trouble."""
        return self.status is None or self.status >= 500


class RefusedWebhookError(PlatformError):
    """A message that is not from the registry."""


class LedgerError(PlatformError):
    """The ledger is not what was written into it."""


class DatabaseUnavailableError(PlatformError):
    """The platform's database could not be reached."""


class RegistryError(PlatformError):
    """MLflow refused."""


class RegistryUnavailableError(RegistryError):
    """MLflow could not be reached."""


class MissingInRegistryError(RegistryError):
    """MLflow answers, and a version or its bytes are not there."""
