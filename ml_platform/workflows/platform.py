"""One deployment: its settings, its database, its landing zone, its registry."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO

from ml_platform.database import Database
from ml_platform.errors import ConflictError
from ml_platform.predictor import MODEL_FILE
from ml_platform.records import Candidate, DatasetVersion
from ml_platform.settings import Settings, read_settings
from ml_platform.stages import erasure
from ml_platform.stages._landing import LandingZone, open_zone
from ml_platform.stages.ledger import HeadsLog
from ml_platform.stages.registry import Registry

FORGET_KEY = "forget.key"


class Platform:
    """One deployment: its settings, its database, its registry. Nothing is opened before it is needed.

    Parameters
    ----------
    settings : Settings or None
        ``None`` reads the environment.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or read_settings()

    @cached_property
    def database(self) -> Database:
        """The platform's own database, migrated."""
        return Database(self.settings.database)

    @cached_property
    def zone(self) -> LandingZone:
        """The landing zone."""
        return open_zone(self.settings.landing)

    @cached_property
    def registry(self) -> Registry:
        """MLflow."""
        return Registry(self.settings.tracking_uri, self.settings.artifacts)

    @cached_property
    def heads_log(self) -> HeadsLog:
        """The file that saw how far every ledger went."""
        return HeadsLog(self.settings.ledger_heads)

    def new_rows(self, model: str) -> int:
        """Count the rows that were published since the dataset version of the newest settled candidate.

        A candidate is settled when it was refused, promoted or waits for an approval: one whose run died is trained
        again.
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
        """Return the folder into which the servers on this host log a model's predictions."""
        return self.settings.serving_home(model) / "predictions"

    def forget_key(self, *, make: bool) -> bytes:
        """Return the key under which forgotten entities are recorded; never in the database, see docs/decisions.

        Raises
        ------
        ConfigurationError
            It is missing and may not be made.
        """
        return erasure.read_key(self.settings.home / FORGET_KEY, make=make)

    def candidate_folder(self, candidate: Candidate) -> Path:
        """Return where a candidate's file and golden requests stand."""
        return self.settings.model_home(candidate.model) / "candidates" / candidate.id

    def profile_page(self, dataset: DatasetVersion) -> Path:
        """Return the path of the page that describes a dataset version."""
        return self.settings.model_home(dataset.model) / "profiles" / f"{dataset.version}.html"

    def verdict_page(self, candidate: Candidate) -> Path:
        """Return the path of the page that shows a candidate's verdict; it is there once that was judged."""
        return self.candidate_folder(candidate) / "verdict.html"

    def model_file(self, candidate: Candidate) -> Path:
        """Return the path of a candidate's stored bytes."""
        return self.candidate_folder(candidate) / MODEL_FILE


@contextlib.contextmanager
def alone(platform: Platform, model: str, *, seconds: float = 0.0) -> Iterator[None]:
    """Keep others from releasing, forgetting and tidying up of this model meanwhile; the lock goes with the process.

    Two deletions would rewrite the same entries of a table's log, a release note values that are being deleted, and
    who makes one file of many write again what is being deleted.

    Parameters
    ----------
    seconds : float
        How long to wait for somebody who does so now.

    Raises
    ------
    ConflictError
        Somebody does so now.
    """
    home = platform.settings.model_home(model)
    home.mkdir(parents=True, exist_ok=True)
    with (home / "corrections.lock").open("w") as file:
        until = time.monotonic() + seconds
        while not _taken(file):
            if time.monotonic() >= until:
                raise ConflictError(
                    f"Somebody releases, forgets or tidies up data of {model!r} now. Run it again after them; nothing "
                    "was done."
                )
            time.sleep(0.05)
        yield


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
