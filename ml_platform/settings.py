"""The environment, read here and nowhere else.

=================================  ===========================  ===========================================
variable                           default                      what it is
=================================  ===========================  ===========================================
``ML_PLATFORM_HOME``               ``var/`` of the repository   where all state stands
``ML_PLATFORM_LANDING_ZONE``       ``<home>/landing``           where people drop files, a folder a model:
                                                                a path or ``s3://bucket/prefix``
``AWS_…``                          those of the AWS tools       an S3 landing zone: ``AWS_ACCESS_KEY_ID``,
                                                                ``AWS_SECRET_ACCESS_KEY``, ``AWS_ENDPOINT_URL``,
                                                                ``AWS_DEFAULT_REGION``; botocore reads them
``ML_PLATFORM_SETTLE_SECONDS``     2                            what `ingest` waits between its two looks
``ML_PLATFORM_STUCK_HOURS``        24                           a file that its manifest does not fit so long after
                                                                its last change is named as stuck
``ML_PLATFORM_DATABASE_URL``       SQLite under the home        arrivals, candidates, verdicts, ledger
``ML_PLATFORM_MOST_BYTES``         8 GiB                        the most bytes of a file, and of what it decompresses
                                                                to; text and valid rows are read into memory, so that
                                                                it should be no more than a machine has
``ML_PLATFORM_TRAINING_MEMORY``    none: the machine's          the most bytes that the fit of a model may ask for,
                                                                beyond those that its process has; where it asks for
                                                                more, the run is red. Linux only
``ML_PLATFORM_GOLDEN``             ``data/golden/``             frozen datasets, a folder a model
``ML_PLATFORM_PREDICTION_DAYS``    90                           how long the prediction log's table keeps a row
``ML_PLATFORM_CODE_REVISION``      asked of git                 the commit, where there is no checkout
``ML_PLATFORM_MLFLOW_UI``          ``http://127.0.0.1:5000``    what links to MLflow start with
``ML_PLATFORM_ALERTMANAGER_URL``   none: alerts are logged      where alerts are sent too, ``http://host:9093``
``ML_PLATFORM_APPROVAL_…``         none                         ``TOKENS_FILE``: who may approve by token, a private
                                                                JSON file of names and sha256; ``TOKEN``: the secret
``ML_PLATFORM_GITHUB_…``           none                         ``ENVIRONMENT``, ``REVIEWER``: the protected environment
                                                                of this job, and who let it pass; ``REPOSITORY``,
                                                                ``TOKEN``, ``API``: where ``ml-platform webhooks`` asks
                                                                for promotions
``ML_PLATFORM_WEBHOOK_SECRET``     none                         what MLflow signs its webhooks with
``ML_PLATFORM_DAGSTER_TOKEN``      none                         what a proxy before a deployed Dagster asks for
``GITHUB_…``                       none                         ``ACTIONS``, ``ACTOR``, ``TRIGGERING_ACTOR`` and
                                                                ``RUN_ID``, set by GitHub's runners, or by anybody
``ML_PLATFORM_ADMIN_TOKENS_FILE``  a token made at the start    who may call a server's admin port: a private JSON file
                                                                of names, each with ``sha256`` and ``scopes``
``ML_PLATFORM_ADMIN_TOKEN``        the one that this host's     the secret with which ``rollback`` calls the admin ports
                                   server made                  of the servers
``MLFLOW_TRACKING_URI``            SQLite under the home        the model registry
``DAGSTER_HOME``                   none                         the folder that holds ``dagster.yaml``
=================================  ===========================  ===========================================
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml_platform.errors import ConfigurationError

MOST_BYTES = 8 * 2**30
PROJECT_ROOT = Path(__file__).resolve().parent.parent
S3_ADDRESS = re.compile(r"s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/(?!\.{1,2}(/|$))[^/\x00-\x1f]+)*/?")


class Settings(BaseSettings):
    """Where this deployment keeps things; frozen once read."""

    # GitHub sets a variable that is not set up to nothing.
    model_config = SettingsConfigDict(env_prefix="ML_PLATFORM_", frozen=True, extra="forbid", env_ignore_empty=True)

    home: Path = PROJECT_ROOT / "var"
    landing_zone: str | None = None
    settle_seconds: float = Field(default=2.0, ge=0, le=3600)
    stuck_hours: float = Field(default=24.0, gt=0)
    database_url: SecretStr | None = None
    most_bytes: int = Field(default=MOST_BYTES, ge=1)
    training_memory: int | None = Field(default=None, ge=2**20)
    golden: Path = PROJECT_ROOT / "data" / "golden"
    prediction_days: float = Field(default=90.0, gt=0)
    code_revision: str | None = None
    mlflow_ui: str = "http://127.0.0.1:5000"
    alertmanager_url: SecretStr | None = None
    approval_tokens_file: Path | None = None
    approval_token: SecretStr | None = None
    admin_tokens_file: Path | None = None
    admin_token: SecretStr | None = None
    github_environment: str = ""
    github_reviewer: str = ""
    github_repository: str = ""
    github_api: str = "https://api.github.com"
    github_token: SecretStr | None = None
    webhook_secret: SecretStr | None = None
    dagster_token: SecretStr | None = None
    mlflow_tracking_uri: SecretStr | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")

    @field_validator("home", "golden", "approval_tokens_file", "admin_tokens_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError(f"must be an absolute path. Got {str(value)!r} instead.")
        return value

    @field_validator("landing_zone")
    @classmethod
    def _path_or_bucket(cls, value: str | None) -> str | None:
        if value is not None and not Path(value).is_absolute() and not S3_ADDRESS.fullmatch(value):
            raise ValueError(f"must be an absolute path or s3://bucket/prefix. Got {value!r} instead.")
        return value

    @field_validator("alertmanager_url")
    @classmethod
    def _web_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not value.get_secret_value().startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://. Its value is not shown: it may hold a password.")
        return value

    @property
    def alertmanager(self) -> str | None:
        """Alertmanager's address, which may hold a password; ``None`` where alerts are only logged."""
        return (self.alertmanager_url.get_secret_value() if self.alertmanager_url else None) or None

    @property
    def landing(self) -> str:
        """The address of the landing zone, which holds one folder a model."""
        return self.landing_zone or str(self.home / "landing")

    @property
    def database(self) -> str:
        """SQLAlchemy's address of the platform's own database; may hold a password."""
        return self.database_url.get_secret_value() if self.database_url else _sqlite(self.home / "platform.db")

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking and registry address; may hold a password."""
        if self.mlflow_tracking_uri:
            return self.mlflow_tracking_uri.get_secret_value()
        return _sqlite(self.home / "mlflow.db")

    @property
    def tracking_is_local(self) -> bool:
        """Whether MLflow's store is a file here, so that nobody else serves its UI."""
        return self.tracking_uri.startswith("sqlite:")

    @property
    def artifacts(self) -> Path:
        """Where MLflow's artifacts stand when its store is local."""
        return self.home / "mlartifacts"

    @property
    def ledger_heads(self) -> Path:
        """The log of the heads of all ledgers: their anchor outside the database."""
        return self.home / "ledger-heads.log"

    def serving_home(self, model: str) -> Path:
        """Where the servers of one model on this host keep their state, copies and logs."""
        return self.home / "serving" / model

    def model_home(self, model: str) -> Path:
        """Where the raw bytes, tables and candidates of one model stand."""
        return self.home / "models" / model


def _sqlite(path: Path) -> str:
    return f"sqlite:///{path}"


def read_settings() -> Settings:
    """Read the environment.

    Raises
    ------
    ConfigurationError
        A variable has a value that cannot work; the message names variable, rule and value.
    """
    known = {f"ML_PLATFORM_{name.upper()}" for name in set(Settings.model_fields) - {"mlflow_tracking_uri"}}
    unknown = sorted(name for name in os.environ if name.startswith("ML_PLATFORM_") and name not in known)
    if unknown:
        raise ConfigurationError(f"The environment variable {unknown[0]} is not known. Known are {sorted(known)}.")
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        variable = name if name.isupper() else f"ML_PLATFORM_{name.upper()}"
        raise ConfigurationError(f"The environment variable {variable}: {first['msg']}") from None


@dataclass(frozen=True, kw_only=True)
class GithubRun:
    """What the environment says of a job on GitHub; nothing proves it. `reviewer` is empty where nobody is named."""

    actor: str
    triggering_actor: str
    run_id: str
    environment: str
    reviewer: str

    @property
    def approver(self) -> str:
        """Who let the job pass: its reviewer, else who started it."""
        return self.reviewer or self.triggering_actor


def read_github_run(settings: Settings) -> GithubRun | None:
    """Return what the environment says of a job on GitHub; ``None`` where this is none."""
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


def mlflow_secrets() -> list[str]:
    """Return what MLflow's client sends to authenticate; none of it may be shown."""
    values = [os.environ.get(name, "") for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")]
    return [value for value in values if value]


def keeps_runs() -> bool:
    """Whether Dagster keeps its records where the deployment's are.

    Without ``DAGSTER_HOME`` its commands use a folder that they delete, and ``dagster.yaml`` names var/ relative to the
    folder that they are started in.
    """
    home = os.environ.get("DAGSTER_HOME", "")
    return bool(home) and Path(home).resolve() == Path.cwd().resolve()


def require_dagster_home() -> Path:
    """Return the folder that holds ``dagster.yaml``.

    Raises
    ------
    ConfigurationError
        ``DAGSTER_HOME`` is unset, relative, or holds no ``dagster.yaml``: runs would be forgotten.
    """
    value = os.environ.get("DAGSTER_HOME", "")
    advice = f"Set it to the folder that holds dagster.yaml, for instance: export DAGSTER_HOME={PROJECT_ROOT}"
    if not value:
        raise ConfigurationError(f"DAGSTER_HOME is not set, so runs would be forgotten. {advice}")
    path = Path(value)
    if not path.is_absolute():
        raise ConfigurationError(f"DAGSTER_HOME must be an absolute path. Got {value!r} instead. {advice}")
    if not (path / "dagster.yaml").is_file():
        raise ConfigurationError(f"DAGSTER_HOME is {value!r}, where no dagster.yaml stands. {advice}")
    return path
