"""One deployment: its settings, its database, its landing zone, its registry."""

from functools import cached_property
from pathlib import Path

from ml_platform.database import Database
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
