"""The settings of a deployment, read from the environment here and nowhere else.

Each field of `Settings` is read from the variable ``ML_PLATFORM_<FIELD>``, for instance `home` from
``ML_PLATFORM_HOME``. An empty variable counts as unset, and an unknown one with this prefix is an error.

Variables of other tools are read, too:

=========================================  ====================  ===================================================
variable                                   default               meaning
=========================================  ====================  ===================================================
``MLFLOW_TRACKING_URI``                    SQLite in the home    MLflow's server or database: the model registry
``MLFLOW_TRACKING_TOKEN``, ``…_PASSWORD``  none                  MLflow's credentials, removed from every message
``DAGSTER_HOME``                           none                  folder that holds ``dagster.yaml``
``AWS_…``                                  those of the AWS CLI  key, secret, region and ``AWS_ENDPOINT_URL`` of S3
``GITHUB_…``                               none                  ``ACTIONS``, ``ACTOR``, ``TRIGGERING_ACTOR`` and
                                                                 ``RUN_ID``: set by GitHub's runners, but any process
                                                                 can set them
``ACTIONS_ID_…``                           none                  ``TOKEN_REQUEST_URL`` and ``TOKEN_REQUEST_TOKEN``:
                                                                 GitHub's service for the token of a job
=========================================  ====================  ===================================================
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml_platform.errors import ConfigurationError
from ml_platform.safe_text import is_valid_address, show_address

MAX_FILE_BYTES = 8 * 2**30
# Kubernetes sets these variables in every pod for each service, one called ml-platform included: they are no settings.
SERVICE_LINK = re.compile(r"(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$")
ESCAPES = str.maketrans({"%": "%25", "?": "%3F", "#": "%23"})
# deltalake panics, or reads another path than it writes.
NO_TABLE_PATH = re.compile(r"[\[\]\\^|\x00-\x1f\x7f]|%[0-9A-Fa-f]{2}")
# A model's name as a folder's: no separator, no dots. Declared names are stricter, see model_spec.py.
MODEL_FOLDER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
PROJECT_ROOT = Path(__file__).resolve().parent.parent
S3_ADDRESS = re.compile(r"s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/(?!\.{1,2}(/|$))[^/\x00-\x1f]+)*/?")


class Settings(BaseSettings):
    """The settings of a deployment, frozen once read; each field's docstring is its description."""

    # GitHub passes an undefined variable as an empty string.
    model_config = SettingsConfigDict(
        env_prefix="ML_PLATFORM_", frozen=True, extra="forbid", env_ignore_empty=True, use_attribute_docstrings=True
    )

    home: Path = PROJECT_ROOT / "var"
    """Folder of all state: databases, tables, models and logs. An absolute path, without the characters that deltalake
    cannot open; ``var/`` in the checkout if unset."""

    landing_zone: str | None = None
    """Folder, or ``s3://bucket/prefix``, in which new data files arrive. ``None`` is ``landing/`` in the home."""

    settle_seconds: float = Field(default=2.0, ge=0, le=3600)
    """Seconds between the two listings of ``ml-platform ingest``, which takes only files that did not change."""

    stuck_hours: float = Field(default=24.0, gt=0)
    """Age in hours at which a file that does not match its manifest is reported as stuck."""

    database_url: SecretStr | None = None
    """SQLAlchemy URL of the platform's database: arrivals, candidates, verdicts and the ledger. ``None`` is a SQLite
    file in the home."""

    max_file_bytes: int = Field(default=MAX_FILE_BYTES, ge=1)
    """Maximum size of a data file, compressed and decompressed, in bytes; 8 GiB by default. The text of a file and its
    valid rows are read into memory."""

    reader_memory_bytes: int | None = Field(default=None, ge=2**20)
    """Maximum memory, in bytes, that reading and validating one data file may need in the process that reads files; a
    file that needs more is quarantined. Linux only. ``None`` is four times the maximum size of a file, at least 1 GiB
    and at most three quarters of the machine's memory."""

    reader_seconds: float = Field(default=900.0, gt=0, le=86_400)
    """Maximum time, in seconds, for reading and validating one data file; a file that takes longer is quarantined."""

    training_memory_bytes: int | None = Field(default=None, ge=2**20)
    """Maximum memory, in bytes, that a fit may allocate beyond the memory of its process; a fit that exceeds it fails
    its run. Linux only. ``None`` sets no maximum."""

    golden_dir: Path = PROJECT_ROOT / "data" / "golden"
    """Folder of the golden datasets, one folder for each model. An absolute path."""

    prediction_retention_days: float = Field(default=90.0, gt=0, le=36_500)
    """Days after which a logged prediction is deleted."""

    worker_silence_seconds: float = Field(default=30.0, ge=2, le=3_600)
    """Seconds without a sign of life after which a worker of ``ml-platform serve`` is killed and replaced: its event
    loop does not run, or its model has not finished a call of at most 256 records. While it starts or loads a version,
    ten times as long."""

    code_revision: str | None = None
    """Commit of the installed code, for an installation that is not a git checkout, such as an image. In a checkout it
    is ignored: git describes the code."""

    mlflow_ui_url: str = "http://127.0.0.1:5000"
    """Address of MLflow's UI, with which links to it start."""

    alertmanager_url: SecretStr | None = None
    """Address of Alertmanager, ``http://host:9093``, which receives the alerts. ``None`` only logs them."""

    approval_tokens_file: Path | None = None
    """Private JSON file with the names of approvers and the sha256 of their tokens. An absolute path."""

    approval_token: SecretStr | None = None
    """Token that authenticates the user of ``ml-platform approve``."""

    admin_tokens_file: Path | None = None
    """Private JSON file with the callers of a prediction server's admin port: names with ``sha256`` and ``scopes``. An
    absolute path. ``None`` lets the server create one at its start."""

    admin_token: SecretStr | None = None
    """Token with which ``ml-platform rollback`` calls the admin ports. ``None`` takes this host's own token."""

    github_environment: str = ""
    """Protected environment of GitHub, whose jobs may approve versions."""

    github_reviewer: str = ""
    """Reviewer who approved this GitHub job, from GitHub's record of the run."""

    github_repository: str = ""
    """Repository, ``owner/name``, whose jobs may approve versions, and in which ``ml-platform webhook-server`` starts
    workflows."""

    github_issuer: str = "https://token.actions.githubusercontent.com"
    """Issuer of the tokens of GitHub's jobs; ``https://HOST/_services/token`` on GitHub Enterprise Server."""

    github_api: str = "https://api.github.com"
    """Address of GitHub's API, for ``ml-platform webhook-server``."""

    github_token: SecretStr | None = None
    """Token with which ``ml-platform webhook-server`` calls GitHub."""

    webhook_secret: SecretStr | None = None
    """Secret with which MLflow signs its webhooks."""

    dagster_token: SecretStr | None = None
    """Token for the proxy in front of a deployed Dagster."""

    mlflow_tracking_uri: SecretStr | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")
    """MLflow's server or database, read from ``MLFLOW_TRACKING_URI``. ``None`` is a SQLite file in the home."""

    @field_validator("home", "golden_dir", "approval_tokens_file", "admin_tokens_file")
    @classmethod
    def _check_path(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError(f"must be an absolute path. Got {str(value)!r} instead.")
        return value

    @field_validator("home")
    @classmethod
    def _check_home(cls, value: Path) -> Path:
        if NO_TABLE_PATH.search(str(value)):
            raise ValueError(
                "must be a path without [ ] \\ ^ |, control characters and percent signs before two hex digits: "
                f"deltalake cannot open tables there. Got {str(value)!r} instead."
            )
        return value

    @field_validator("landing_zone")
    @classmethod
    def _check_landing_zone(cls, value: str | None) -> str | None:
        if value is not None and not Path(value).is_absolute() and not S3_ADDRESS.fullmatch(value):
            shown = show_address(value)
            raise ValueError(f"must be an absolute path or s3://bucket/prefix. Got {shown!r} instead.")
        return value

    @field_validator("alertmanager_url")
    @classmethod
    def _check_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not value.get_secret_value().startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://. The value is not shown: it may hold a password.")
        return value

    @field_validator("github_issuer")
    @classmethod
    def _check_issuer(cls, value: str) -> str:
        if not value.startswith("https://") and urlsplit(value).hostname != "127.0.0.1":
            raise ValueError(f"must start with https://, except for 127.0.0.1. Got {value!r} instead.")
        return value

    @field_validator("database_url", "mlflow_tracking_uri", "alertmanager_url")
    @classmethod
    def _check_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not is_valid_address(value.get_secret_value()):
            raise ValueError(
                "must be an address that starts with its scheme (http://), has a number as its port, and a password in "
                "which / ? # @ are written %2F %3F %23 %40. The value is not shown: it may hold a password."
            )
        return value

    @property
    def alertmanager(self) -> str | None:
        """Alertmanager's address, which may hold a password; ``None`` if alerts are only logged."""
        return (self.alertmanager_url.get_secret_value() if self.alertmanager_url else None) or None

    @property
    def landing(self) -> str:
        """The address of the landing zone, which holds one folder for each model."""
        return self.landing_zone or str(self.home / "landing")

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the platform's database, which may hold a password."""
        return self.database_url.get_secret_value() if self.database_url else sqlite_address(self.home / "platform.db")

    @property
    def tracking_uri(self) -> str:
        """URI of MLflow's tracking server and registry, which may hold a password."""
        if self.mlflow_tracking_uri:
            return self.mlflow_tracking_uri.get_secret_value()
        return sqlite_address(self.home / "mlflow.db")

    @property
    def tracking_is_local(self) -> bool:
        """True if MLflow's store is a local file, so that its UI runs only if this host starts it."""
        return self.tracking_uri.startswith("sqlite:")

    @property
    def artifacts(self) -> Path:
        """The folder of MLflow's artifacts if its store is local."""
        return self.home / "mlartifacts"

    @property
    def ledger_anchor_file(self) -> Path:
        """The log of the heads of all ledgers: their anchor outside the database."""
        return self.home / "ledger-heads.log"

    def serving_home(self, model: str) -> Path:
        """Return the folder in which the server of a model on this host keeps its state, copies and logs.

        Raises
        ------
        ConfigurationError
            The text is no model's name, and might lead out of the home.
        """
        return self.home / "serving" / require_folder_name(model)

    def model_home(self, model: str) -> Path:
        """Return the folder of a model's raw bytes, tables and candidates.

        Raises
        ------
        ConfigurationError
            The text is no model's name, and might lead out of the home.
        """
        return self.home / "models" / require_folder_name(model)


def require_folder_name(model: str) -> str:
    """Return a model's name; raise ConfigurationError for a text that cannot be one, and might lead out of a folder."""
    if not MODEL_FOLDER.fullmatch(model):
        raise ConfigurationError(
            f"A model's name must be at most 40 letters, digits and underscores, and not begin with a digit. Got "
            f"{model[:100]!r} instead. See: ml-platform models"
        )
    return model


def sqlite_address(path: Path) -> str:
    """Return SQLAlchemy's address of an SQLite file, in whose path the separators of an address are escaped."""
    return f"sqlite:///{str(path).translate(ESCAPES)}"


def read_settings() -> Settings:
    """Read the settings from the environment.

    Raises
    ------
    ConfigurationError
        A variable is unknown or has a value that cannot work; the message names variable, rule and value.
    """
    known = {f"ML_PLATFORM_{name.upper()}" for name in set(Settings.model_fields) - {"mlflow_tracking_uri"}}
    given = (name for name in os.environ if name.upper().startswith("ML_PLATFORM_") and not SERVICE_LINK.search(name))
    unknown = sorted(name for name in given if name.upper() not in known)
    if unknown:
        raise ConfigurationError(
            f"The environment variable {unknown[0]} is not known. Unset it, or correct its name: {sorted(known)}."
        )
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        variable = name if name.isupper() else f"ML_PLATFORM_{name.upper()}"
        raise ConfigurationError(f"The environment variable {variable}: {first['msg']}") from None


@dataclass(frozen=True, kw_only=True)
class GithubRun:
    """A job on GitHub, as the environment describes it, without proof; `reviewer` is empty if none is named."""

    actor: str
    triggering_actor: str
    run_id: str
    environment: str
    reviewer: str


def read_github_run(settings: Settings) -> GithubRun | None:
    """Return the job on GitHub that this process belongs to; ``None`` outside GitHub's runners."""
    names = ("GITHUB_ACTOR", "GITHUB_TRIGGERING_ACTOR", "GITHUB_RUN_ID")
    actor, triggering_actor, run_id = (os.environ.get(name, "") for name in names)
    if os.environ.get("GITHUB_ACTIONS") != "true" or not run_id:
        return None
    return GithubRun(
        actor=actor,
        triggering_actor=triggering_actor or actor,
        run_id=run_id,
        environment=settings.github_environment,
        reviewer=settings.github_reviewer,
    )


@dataclass(frozen=True, kw_only=True)
class TokenService:
    """GitHub's service for the token of a job: its address, and the secret that it asks for."""

    url: str
    secret: SecretStr


def read_token_service() -> TokenService | None:
    """Return the token service of this job; ``None`` outside GitHub, or if the job may not ask for a token."""
    url, secret = (os.environ.get(f"ACTIONS_ID_TOKEN_REQUEST_{name}", "") for name in ("URL", "TOKEN"))
    return TokenService(url=url, secret=SecretStr(secret)) if url and secret else None


def mlflow_secrets() -> list[str]:
    """Return the secrets with which MLflow's client authenticates, none of which may be shown."""
    values = [os.environ.get(name, "") for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")]
    return [value for value in values if value]


def keeps_runs() -> bool:
    """Return True if Dagster stores its records in this deployment.

    Without ``DAGSTER_HOME``, Dagster's commands use a temporary folder; and ``dagster.yaml`` names ``var/`` relative to
    the working directory. Both folders must therefore be the same.
    """
    home = os.environ.get("DAGSTER_HOME", "")
    return bool(home) and Path(home).resolve() == Path.cwd().resolve()


def require_dagster_home() -> Path:
    """Return the folder that holds ``dagster.yaml``.

    Raises
    ------
    ConfigurationError
        ``DAGSTER_HOME`` is unset, relative, holds no ``dagster.yaml`` or has a path that Dagster cannot use: it
        would not store its runs.
    """
    value = os.environ.get("DAGSTER_HOME", "")
    advice = f"Set it to the folder that holds dagster.yaml, for instance: export DAGSTER_HOME={PROJECT_ROOT}"
    if not value:
        raise ConfigurationError(f"DAGSTER_HOME is not set, so Dagster would not store its runs. {advice}")
    path = Path(value)
    if not path.is_absolute():
        raise ConfigurationError(f"DAGSTER_HOME must be an absolute path. Got {value!r} instead. {advice}")
    if not (path / "dagster.yaml").is_file():
        raise ConfigurationError(f"DAGSTER_HOME is {value!r}, which holds no dagster.yaml. {advice}")
    # Dagster writes the path into the address of its SQLite file without escaping it.
    if "?" in str(path) or unquote(str(path)) != str(path):
        raise ConfigurationError(
            f"DAGSTER_HOME is {value!r}: Dagster cannot store its runs in a folder whose path holds a question mark or "
            "a percent sign with two hexadecimal digits. Rename the folder."
        )
    return path
