"""The errors that the platform raises on purpose.

::

    PlatformError
    ├── ConfigurationError            a setting, a path or a model's declaration cannot work
    │   └── PortInUseError            a server's port is in use
    ├── StorageError                  the disk is full, read-only or broken
    ├── LandingZoneError              the landing zone is missing or unreadable, or a file in it is not allowed
    │   └── ArrivalChangedError       a file of the landing zone changed or vanished after it was listed
    ├── DataError                     rows that cannot be used
    │   ├── UnreadableFileError       a data file is not a table of a supported format
    │   │   └── TooLargeError         a file has more bytes or rows than the deployment or the model allows
    │   ├── ReaderEndedError          a file ended the process that read it
    │   └── DatasetError              a dataset version is missing, empty or differs from the pinned one
    │       └── ForgottenError        a dataset version lost rows to an erasure, so that it cannot be reproduced
    ├── ModelError                    a model cannot be used
    │   ├── DigestMismatchError       a model file does not have the recorded digest
    │   │   └── MissingFilesError     a host does not have a version's files
    │   ├── UntrustedModelError       a model file contains types outside the platform's trust list
    │   ├── ModelTimeoutError         a model did not answer in time
    │   │   └── QueueTimeoutError     a model was busy with a larger request of another client
    │   ├── PredictionError           a model raised an error, or predicted a number that is not finite
    │   ├── UnsupportedPipelineError  a pipeline has a step that the compiler does not support
    │   └── OutOfMemoryError          fitting a pipeline needs more memory than there is, or than a run may use
    ├── EvidenceError                 a step lacks the evidence that it requires
    │   ├── ApprovalNeededError       a version has the evidence and waits for an approval
    │   └── IrreproducibleError       a version cannot be reproduced here
    ├── ApprovalRefusedError          an approver is not authenticated, or may not approve this version
    ├── ChangeComparisonError         a step of comparing a code change failed
    ├── RequestError                  a request for predictions is invalid
    ├── BusyError                     the server's queue is full
    ├── ConflictError                 another process changed the same record first
    │   ├── RolloutUnderWayError      a rollout is in progress
    │   ├── SecondDaemonError         a daemon runs for this deployment already
    │   └── SecondServerError         a server uses this folder already
    ├── AlertError                    an alert could not be sent
    ├── RemoteServiceError            GitHub or a deployed Dagster refused a request, or did not answer
    ├── RefusedWebhookError           a webhook is not from the registry
    ├── AdminError                    a server's admin port refused a request, or did not answer
    ├── LedgerError                   the ledger was changed outside the platform
    ├── DatabaseUnavailableError      the platform's database is unreachable
    └── RegistryError                 MLflow refused a request
        ├── RegistryUnavailableError  MLflow is unreachable
        └── MissingInRegistryError    MLflow answers, but a version or its files are missing

A message says what is wrong, where, and what to do. The command line prints it and exits with 2. A failed gate or a
quarantined arrival is a result, not an error: the command line exits with 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ml_platform.safe_text import hide_secrets

MAX_PROBLEMS = 10
RESTORE = "Restore the database from a backup; with SQLite, delete its files -wal and -shm together with the old file."


class PlatformError(Exception):
    """The base class of every error that the platform raises on purpose; its message shows no secret of an address."""

    def __str__(self) -> str:
        return hide_secrets(super().__str__())


class ConfigurationError(PlatformError):
    """A setting, a path or a model's declaration cannot work."""


class PortInUseError(ConfigurationError):
    """A server's port is in use."""


class StorageError(PlatformError):
    """The disk is full, read-only or broken; nothing was stored."""


class LandingZoneError(PlatformError):
    """The landing zone is missing or unreadable, or a file in it is not allowed."""


class ArrivalChangedError(LandingZoneError):
    """A file of the landing zone changed or vanished after it was listed."""


class DataError(PlatformError):
    """Rows that cannot be used."""


class UnreadableFileError(DataError):
    """A data file is not a table of a supported format."""


class TooLargeError(UnreadableFileError):
    """A file has more bytes or rows than the deployment or the model allows."""


class ReaderEndedError(DataError):
    """A file ended the process that read it: by a signal, or since it exceeded a limit of memory or time."""


class DatasetError(DataError):
    """A dataset version is missing, empty or differs from the pinned one."""


class ForgottenError(DatasetError):
    """A dataset version lost rows to an erasure, so that it cannot be reproduced."""


class ModelError(PlatformError):
    """A model cannot be used."""


class DigestMismatchError(ModelError):
    """A model file does not have the recorded digest."""


class MissingFilesError(DigestMismatchError):
    """A host has no files of a version that match their digests."""


class UntrustedModelError(ModelError):
    """A model file contains types outside the platform's trust list."""


class ModelTimeoutError(ModelError):
    """A model did not answer in time."""


class QueueTimeoutError(ModelTimeoutError):
    """A model was busy with a larger request of another client, which is still in time: this proves no failure."""


class PredictionError(ModelError):
    """A model raised an error, or predicted a number that is not finite."""


class UnsupportedPipelineError(ModelError):
    """A pipeline has a step that the compiler does not support; it predicts through DataFrames."""


class OutOfMemoryError(ModelError):
    """Fitting a pipeline needs more memory than there is, or than a run may use."""


class EvidenceError(PlatformError):
    """A step lacks the evidence that it requires."""


class ApprovalNeededError(EvidenceError):
    """A version has the evidence and waits for an approval."""


class IrreproducibleError(EvidenceError):
    """A version cannot be reproduced here; the message names the difference."""


class ApprovalRefusedError(PlatformError):
    """An approver is not authenticated, or may not approve this version."""


@dataclass(frozen=True, kw_only=True)
class RequestProblem:
    """One violation of the request contract.

    Parameters
    ----------
    rule : str
        The broken rule, as the end of a sentence: ``must be at least 0``.
    field : str or None
        The field's name; ``None`` for the whole request or record.
    value : str, int, float, bool or None
        The value received, shortened; ``None`` for null or no value.
    record : int or None
        The record's position, from 0; ``None`` for the whole request.
    """

    rule: str
    field: str | None = None
    value: str | float | bool | None = None
    record: int | None = None

    def __str__(self) -> str:
        record = "" if self.record is None else f"record {self.record}: "
        field = f"{self.field!r} " if self.field else ""
        value = "" if self.value is None else f". Got {self.value!r} instead"
        return f"{record}{field}{self.rule}{value}"


class RequestError(PlatformError):
    """A request for predictions is invalid.

    Parameters
    ----------
    status : int
        HTTP status: 400 for a body that is not JSON of a known form, 413 for one that is too large, 422 for a field
        that breaks a rule.
    problems : sequence of RequestProblem
        The first violations, at least one and at most `MAX_PROBLEMS`.
    """

    def __init__(self, status: int, problems: Sequence[RequestProblem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems) + ".")
        self.status = status
        self.problems = list(problems)


class BusyError(PlatformError):
    """The server's queue is full; retry later."""


class ChangeComparisonError(PlatformError):
    """A step of comparing a code change failed."""


class ConflictError(PlatformError):
    """Another process changed the same record first."""


class RolloutUnderWayError(ConflictError):
    """A rollout is in progress; the next champion waits until it ends."""


class SecondDaemonError(ConflictError):
    """A daemon runs for this deployment already; two would request each run twice."""


class SecondServerError(ConflictError):
    """A server uses this folder already; two would share its state and its journal."""


class AlertError(PlatformError):
    """An alert could not be sent."""


class AdminError(PlatformError):
    """A server's admin port refused a request, or did not answer."""


class RemoteServiceError(PlatformError):
    """GitHub or a deployed Dagster refused a request, or did not answer.

    Parameters
    ----------
    message : str
    status : int or None
        HTTP status of the response; ``None`` without a response.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def may_pass(self) -> bool:
        """True if a retry may help: there was no response, or a server error."""
        return self.status is None or self.status >= 500


class RefusedWebhookError(PlatformError):
    """A webhook is not from the registry."""


class LedgerError(PlatformError):
    """The ledger was changed outside the platform."""


class DatabaseUnavailableError(PlatformError):
    """The platform's database is unreachable."""


class RegistryError(PlatformError):
    """MLflow refused a request."""


class RegistryUnavailableError(RegistryError):
    """MLflow is unreachable."""


class MissingInRegistryError(RegistryError):
    """MLflow answers, but a version or its files are missing."""


MAX_CHARACTERS = 1_000
# Characters of a value of a file that a record, a page or a terminal shows.
LONGEST_VALUE = 200


def printable(text: str) -> str:
    """Return text without secrets and control characters, which could change a terminal, cut to `MAX_CHARACTERS`."""
    shown = hide_secrets(text)[:MAX_CHARACTERS]
    return "".join(letter if letter.isprintable() else " " for letter in shown)


def shorten(text: str, longest: int = LONGEST_VALUE) -> str:
    """Return a value of a file, cut to `longest` characters with its length, control characters as escapes.

    The result is text that every database stores and every terminal shows: no NUL, no lone surrogate.
    """
    cut = text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


def one_line(error: BaseException) -> str:
    """Describe an error of foreign code in one line of printable text, of at most `MAX_CHARACTERS` characters.

    An error whose own ``__str__`` fails is described by its class.
    """
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - code of the author's, which may raise anything
        text = type(error).__name__
    return printable(text)
