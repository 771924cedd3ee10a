"""One deployment: its settings, database, landing zone, registry and folders."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from ml_platform.database import PlatformDatabase
from ml_platform.errors import ConflictError
from ml_platform.records.data import DatasetVersion
from ml_platform.records.verdict import Candidate
from ml_platform.settings import Settings, read_settings
from ml_platform.storage import erasure_key
from ml_platform.storage.landing_zone import LandingZone, open_zone
from ml_platform.storage.ledger_anchor import LedgerAnchor
from ml_platform.storage.mlflow_registry import Registry
from ml_platform.storage.model_files import MODEL_FILE

FORGET_KEY = "forget.key"


class Platform:
    """One deployment. Its database, landing zone and registry are opened when they are first used.

    Parameters
    ----------
    settings : Settings or None
        ``None`` reads the environment.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or read_settings()

    @cached_property
    def database(self) -> PlatformDatabase:
        """The platform's own database, migrated to the newest schema."""
        return PlatformDatabase(self.settings.database)

    @cached_property
    def zone(self) -> LandingZone:
        """The landing zone, a folder or an S3 prefix."""
        return open_zone(self.settings.landing)

    @cached_property
    def registry(self) -> Registry:
        """The model registry, MLflow."""
        return Registry(self.settings.tracking_uri, self.settings.artifacts)

    @cached_property
    def ledger_anchor(self) -> LedgerAnchor:
        """The file that records the head of every ledger outside the database."""
        return LedgerAnchor(self.settings.ledger_anchor_file)

    def new_rows(self, model: str) -> int:
        """Count the rows that were published since the dataset version of the newest settled candidate.

        A candidate is settled once it was refused, promoted or waits for an approval. One whose run ended early is not,
        so its rows count as new and are trained on again.
        """
        candidate = self.database.newest_settled_candidate(model)
        return self.database.rows_published_after(model, candidate.lineage.dataset_version if candidate else None)

    def rows(self, model: str) -> Path:
        """Return the folder of the Delta table of a model's valid rows."""
        return self.settings.model_home(model) / "rows"

    def quarantine(self, model: str) -> Path:
        """Return the folder of the Delta table of a model's quarantined rows."""
        return self.settings.model_home(model) / "quarantine"

    def predictions(self, model: str) -> Path:
        """Return the folder of the Delta table of a model's logged predictions."""
        return self.settings.model_home(model) / "predictions"

    def prediction_files(self, model: str) -> Path:
        """Return the folder in which the servers on this host log a model's predictions."""
        return self.settings.serving_home(model) / "predictions"

    def forget_key(self, *, make: bool) -> bytes:
        """Return the secret key of the hashes by which forgotten entities are recorded.

        It is a file of the home, never in the database (docs/decisions/0008).

        Parameters
        ----------
        make : bool
            Create the key if it is missing.

        Raises
        ------
        ConfigurationError
            The key is missing and `make` is False, or the file is cut.
        """
        return erasure_key.read_key(self.settings.home / FORGET_KEY, make=make)

    def candidate_folder(self, candidate: Candidate) -> Path:
        """Return the folder of a candidate's model file, golden requests and pages."""
        return self.settings.model_home(candidate.model) / "candidates" / candidate.id

    def profile_page(self, dataset: DatasetVersion) -> Path:
        """Return the path of the page that describes a dataset version."""
        return self.settings.model_home(dataset.model) / "profiles" / f"{dataset.version}.html"

    def verdict_page(self, candidate: Candidate) -> Path:
        """Return the path of the page that shows a candidate's verdict; it exists once the candidate was judged."""
        return self.candidate_folder(candidate) / "verdict.html"

    def model_file(self, candidate: Candidate) -> Path:
        """Return the path of a candidate's model file."""
        return self.candidate_folder(candidate) / MODEL_FILE


@contextlib.contextmanager
def exclusive_data_lock(platform: Platform, model: str, *, seconds: float = 0.0) -> Iterator[None]:
    """Exclude every other release, erasure and compaction of a model's data; the lock ends with the process.

    Two deletions would rewrite the same entries of a table's log, a release would record values that are being
    deleted, and a compaction would write them again.

    Parameters
    ----------
    platform : Platform
    model : str
    seconds : float
        Maximum time to wait for the lock.

    Raises
    ------
    ConflictError
        Another process holds the lock.
    """
    home = platform.settings.model_home(model)
    home.mkdir(parents=True, exist_ok=True)
    with (home / "corrections.lock").open("w") as file:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise ConflictError(
                        f"Another release, erasure or compaction of {model!r} is in progress. Nothing was changed; "
                        "retry when it finishes."
                    ) from None
            time.sleep(0.05)
        yield
