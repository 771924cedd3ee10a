"""MLflow: record a candidate's run, register it with its lineage, download its bytes, set aliases.

The platform decides by its own database; MLflow displays these decisions.
"""

import json
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ml_platform.errors import LedgerError, MissingInRegistryError, RegistryError, RegistryUnavailableError
from ml_platform.records.canonical import canonical_json, now
from ml_platform.records.ledger import LedgerHead, RegistrySnapshot
from ml_platform.records.verdict import Candidate, Verdict
from ml_platform.safe_text import hide_secrets, show_address
from ml_platform.settings import PROJECT_ROOT, mlflow_secrets, sqlite_address
from ml_platform.storage import model_files
from ml_platform.storage.model_files import MODEL_FILE

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

CANDIDATE_TAG = "ml_platform.candidate"
LEDGER_TAG = "ml_platform.ledger_head"
VERDICT_FILE = "verdict.json"
# Characters of a tag that MLflow keeps.
MAX_TAG = 8_000
MODEL_FOLDER = "model"
MLMODEL = "MLmodel"
# Packages that MLflow's own client needs to load a model.
REQUIRED = ("mlflow", "numpy", "pandas", "scikit-learn", "skops")
# MLflow reads these limits from the environment at each request. All requests of a sensor's tick share sixty seconds.
BRIEF = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


class Registry:
    """MLflow's tracking and registry server, or its SQLite file.

    Parameters
    ----------
    tracking_uri : str
        MLflow's address; a password in it is never logged.
    artifacts : Path
        Folder of the artifacts if the address is a SQLite file.
    """

    def __init__(self, tracking_uri: str, artifacts: Path) -> None:
        # MLflow's defaults, seven retries of two minutes, would block the caller too long.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # MLflow prints a link to each finished run, with the password of its address.
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self._uri = tracking_uri
        self._artifacts = artifacts
        self._connected: MlflowClient | None = None

    @property
    def address(self) -> str:
        """MLflow's address without its password."""
        return show_address(self._uri)

    @contextmanager
    def _asking(self, action: str) -> Iterator["MlflowClient"]:
        """Yield the client; convert its errors to a RegistryError, "could not" and the action, without secrets."""
        from mlflow.exceptions import MlflowException

        try:
            yield self._client()
        except (MlflowException, OSError, sa.exc.SQLAlchemyError, ImportError) as error:
            text = str(error)
            kind: type[RegistryError] = RegistryUnavailableError
            detail = "no answer"
            if isinstance(error, OSError):  # of an artifact store; the text may contain the address with its password
                detail = error.strerror or detail
            elif not isinstance(error, MlflowException):  # of a database, or of its missing driver
                detail = text.splitlines()[0]
            elif "API request to" not in text or "failed with exception" not in text:
                # A server or proxy may return the request, with its credentials, in the response.
                detail = text.splitlines()[0].partition(". Response body")[0]
                kind = MissingInRegistryError if error.error_code == "RESOURCE_DOES_NOT_EXIST" else RegistryError
            for secret in mlflow_secrets():
                detail = detail.replace(secret, "***")
            detail = hide_secrets(detail, self._uri)
            raise kind(
                f"MLflow at {self.address} could not {action}: {detail}. The champion stays as it is. Check "
                "MLFLOW_TRACKING_URI and that the server runs, then try again."
            ) from None

    def _client(self) -> "MlflowClient":
        if self._connected is None:
            from mlflow import MlflowClient

            prepare_store(self._uri)
            uri = name_driver(self._uri)
            self._connected = MlflowClient(tracking_uri=uri, registry_uri=uri)
        return self._connected

    # Runs

    def record_run(self, candidate: Candidate, verdict: Verdict, files: Path, folder: str | None = None) -> str:
        """Record a candidate with any verdict as an MLflow run; a second call updates the same run.

        Parameters
        ----------
        candidate : Candidate
        verdict : Verdict
        files : Path
            A folder whose content becomes the run's artifacts.
        folder : str or None
            Folder among the artifacts; ``None`` is their root.

        Returns
        -------
        str
            MLflow's run id.
        """
        from mlflow.entities import Metric, RunTag

        trained, judged = (int(time.timestamp() * 1000) for time in (candidate.trained_at, now()))
        # MLflow shows the newest of several values: a candidate may be evaluated again.
        metrics = [Metric(name, value, judged, 0) for name, value in verdict.metrics.items()]
        # Gates are tags: parameters are immutable, and gates may change before the next evaluation.
        named = {**lineage_tags(candidate, verdict), **gate_tags(verdict)}
        tags = [RunTag(name, value) for name, value in named.items()]
        with self._asking("record the run") as client:
            run_id = self._find_or_create_run(client, candidate, trained)
            client.log_batch(run_id, metrics=metrics, tags=tags)
            client.log_artifacts(run_id, str(files), folder)
            client.set_terminated(run_id, "FINISHED" if verdict.passed else "FAILED")
        return run_id

    def show_files(self, run_id: str, files: Mapping[str, bytes]) -> None:
        """Write files, by path, to a run's artifacts and replace existing ones; without files do nothing.

        Raises
        ------
        RegistryError
            MLflow rejects the request, or does not respond.
        """
        if not files:
            return
        with tempfile.TemporaryDirectory(prefix="ml-platform-") as name:
            _write_files(Path(name), files)
            with self._asking("store files of the run") as client:
                client.log_artifacts(run_id, name)

    def _find_or_create_run(self, client: "MlflowClient", candidate: Candidate, milliseconds: int) -> str:
        experiment = client.get_experiment_by_name(candidate.model)
        if experiment is None:
            local = self._uri.startswith("sqlite:")
            location = (self._artifacts / candidate.model).as_uri() if local else None
            # Without this tag, MLflow displays the experiment as one of language models.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            experiment_id = str(client.create_experiment(candidate.model, artifact_location=location, tags=kind))
        else:
            experiment_id = str(experiment.experiment_id)
            if experiment.lifecycle_stage == "deleted":  # its name stays taken, and it rejects new runs
                client.restore_experiment(experiment_id)
        runs = client.search_runs([experiment_id], filter_string=f"tags.`{CANDIDATE_TAG}` = '{candidate.id}'")
        run = runs[0] if runs else None
        if run is None:
            tags = {CANDIDATE_TAG: candidate.id}
            run = client.create_run(experiment_id, start_time=milliseconds, run_name=candidate.id, tags=tags)
        return str(run.info.run_id)

    # Versions

    def register(self, candidate: Candidate, verdict: Verdict, run_id: str, taken: Collection[int] = ()) -> int:
        """Register a candidate once; return its version number.

        An existing version of the run is reused: a crash between MLflow and the platform's database must not lead to a
        second version.

        Parameters
        ----------
        candidate : Candidate
        verdict : Verdict
        run_id : str
            MLflow's run id.
        taken : collection of int
            Numbers of other versions: MLflow starts at one again after a registered model was deleted.
        """
        with self._asking("register the model") as client:
            versions = client.search_model_versions(f"name = '{candidate.model}' AND run_id = '{run_id}'")
            free = [int(version.version) for version in versions if int(version.version) not in taken]
            return free[0] if free else self._create_version(client, candidate, verdict, run_id, MODEL_FOLDER, taken)

    def register_again(
        self, candidate: Candidate, verdict: Verdict, files: Path, folder: str, taken: Collection[int]
    ) -> tuple[int, str]:
        """Register the bytes of a deleted or changed version again; return the new number and MLflow's run id.

        Parameters
        ----------
        candidate : Candidate
        verdict : Verdict
        files : Path
            A folder from `run_files`. Changed artifacts of the earlier version stay for inspection.
        folder : str
            New folder for the artifacts in the candidate's run; a deleted run is created again.
        taken : collection of int
            Numbers of other versions.
        """
        run_id = self.record_run(candidate, verdict, files, folder)
        with self._asking("register the model again") as client:
            return self._create_version(client, candidate, verdict, run_id, f"{folder}/{MODEL_FOLDER}", taken), run_id

    def _create_version(
        self,
        client: "MlflowClient",
        candidate: Candidate,
        verdict: Verdict,
        run_id: str,
        folder: str,
        taken: Collection[int],
    ) -> int:
        if not client.search_registered_models(f"name = '{candidate.model}'"):
            client.create_registered_model(candidate.model)
        source, tags = f"{client.get_run(run_id).info.artifact_uri}/{folder}", lineage_tags(candidate, verdict)
        while True:
            created = client.create_model_version(candidate.model, source, run_id=run_id, tags=tags)
            if int(created.version) not in taken:
                return int(created.version)
            client.delete_model_version(candidate.model, created.version)  # MLflow does not reuse its number

    def fetch(self, model: str, version: int, folder: Path) -> Path:
        """Download a version's model file into a folder without deserialising it; return its path.

        Raises
        ------
        MissingInRegistryError
            The version or its bytes do not exist.
        RegistryError
            MLflow rejects the request, or does not respond.
        """
        return self._fetch(model, version, MODEL_FILE, folder)

    def signature(self, model: str, version: int) -> list[tuple[str, str]]:
        """Return names and types of the features in the signature that MLflow gives clients, in order.

        Empty if there is no valid signature. The platform reads nothing else from the MLmodel file.

        Raises
        ------
        MissingInRegistryError, RegistryError
            As `fetch`.
        """
        import yaml

        with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
            document = self._fetch(model, version, MLMODEL, Path(folder)).read_text()
        try:
            inputs = json.loads(yaml.safe_load(document)["signature"]["inputs"])
            return [(str(column["name"]), str(column["type"])) for column in inputs]
        except (yaml.YAMLError, ValueError, TypeError, KeyError):
            return []

    def _fetch(self, model: str, version: int, name: str, folder: Path) -> Path:
        import mlflow.artifacts
        from mlflow.exceptions import MlflowException

        with self._asking(f"provide version {version} of {model!r}") as client:
            source = client.get_model_version_download_uri(model, str(version))
            try:
                path = mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{source}/{name}", dst_path=str(folder), tracking_uri=name_driver(self._uri)
                )
            except (MlflowException, OSError):
                # The error does not distinguish a missing file from a failed request: list the files.
                listed = mlflow.artifacts.list_artifacts(artifact_uri=source, tracking_uri=name_driver(self._uri))
                if any(Path(file.path).name == name for file in listed):
                    raise
                raise MissingInRegistryError(
                    f"The bytes of version {version} of {model!r} are gone from {self.address}: {name} is missing."
                ) from None
        return Path(path)

    def fetch_folder(self, run_id: str, name: str, folder: Path) -> Path:
        """Download a folder of a run's artifacts into a folder; return its path.

        Raises
        ------
        RegistryError
            MLflow has no such folder, rejects the request or does not respond.
        """
        import mlflow.artifacts

        with self._asking(f"provide {name!r} of run {run_id}"):
            path = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=name, dst_path=str(folder), tracking_uri=name_driver(self._uri)
            )
        return Path(path)

    def find_run_problem(self, candidate: Candidate, verdict: Verdict) -> str:
        """Return the difference between a verdict and what MLflow's run of its candidate shows; empty without one.

        The run's tags and its file ``verdict.json`` must be those that the platform writes for this candidate and
        verdict.

        Raises
        ------
        MissingInRegistryError
            The candidate has no run, or the run or its file is gone.
        RegistryError
            MLflow rejects the request, or does not respond.
        """
        import mlflow.artifacts

        if candidate.mlflow_run_id is None:
            raise MissingInRegistryError(f"Candidate {candidate.id} has no MLflow run.")
        with self._asking(f"provide run {candidate.mlflow_run_id}") as client:
            run = client.get_run(candidate.mlflow_run_id)
            source = str(run.info.artifact_uri)
            listed = mlflow.artifacts.list_artifacts(artifact_uri=source, tracking_uri=self._uri)
            stored = {Path(file.path).name for file in listed}
        if run.info.lifecycle_stage == "deleted" or VERDICT_FILE not in stored:
            raise MissingInRegistryError(f"Run {candidate.mlflow_run_id} or its {VERDICT_FILE} was deleted in MLflow.")
        for name, value in lineage_tags(candidate, verdict).items():
            shown = run.data.tags.get(name, "")
            if shown != value[:MAX_TAG]:
                return f"MLflow's run shows {shown!r:.80} in the tag {name}, and the database {value!r:.80}"
        with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
            with self._asking(f"provide {VERDICT_FILE} of run {candidate.mlflow_run_id}"):
                # By address: MLflow caches addresses by run, and a restored deployment may have moved.
                path = mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{source}/{VERDICT_FILE}", dst_path=folder, tracking_uri=self._uri
                )
            document = Path(path).read_bytes()
        return "" if document == verdict.document.encode() else f"MLflow's run holds another {VERDICT_FILE}"

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Point an alias at a version."""
        with self._asking(f"set the alias {alias!r}") as client:
            client.set_registered_model_alias(model, alias, str(version))

    def delete_alias(self, model: str, alias: str) -> None:
        """Remove an alias."""
        with self._asking(f"delete the alias {alias!r}") as client:
            client.delete_registered_model_alias(model, alias)

    def alias(self, model: str, alias: str) -> int | None:
        """Return the version of an alias; ``None`` if it is not set. For display: no decision may depend on it."""
        with self._asking(f"read the alias {alias!r}") as client:
            if not client.search_registered_models(f"name = '{model}'"):
                return None
            version = client.get_registered_model(model).aliases.get(alias)
        return None if version is None else int(version)

    def shown(self, model: str) -> RegistrySnapshot:
        """Return a model's aliases, versions and ledger head in MLflow, for display only: they are not evidence.

        Raises
        ------
        LedgerError
            The tag with the ledger head is not in the platform's format.
        """
        versions, page = dict[int, str | None](), None
        with self._asking("show the registered model") as client:
            registered = client.search_registered_models(f"name = '{model}'")
            while registered:
                batch = client.search_model_versions(f"name = '{model}'", max_results=1_000, page_token=page)
                versions.update({int(version.version): version.tags.get(CANDIDATE_TAG) for version in batch})
                page = batch.token
                if not page:
                    break
        if not registered:
            return RegistrySnapshot()
        aliases = {name: int(version) for name, version in registered[0].aliases.items()}
        return RegistrySnapshot(aliases=aliases, versions=versions, head=_parse_head(model, registered[0]))

    # The ledger's anchor

    def ledger_head(self, model: str) -> LedgerHead | None:
        """Return the head of a model's ledger that was last stored in MLflow; ``None`` if there is none.

        Raises
        ------
        LedgerError
            The tag is not in the platform's format.
        """
        with self._asking(f"read the tag {LEDGER_TAG!r}") as client:
            registered = client.search_registered_models(f"name = '{model}'")
        return _parse_head(model, registered[0]) if registered else None

    def set_ledger_head(self, head: LedgerHead) -> None:
        """Store the head of a model's ledger as a tag of the registered model."""
        value = canonical_json({"sequence": head.sequence, "digest": head.digest})
        with self._asking(f"set the tag {LEDGER_TAG!r}") as client:
            client.set_registered_model_tag(head.model, LEDGER_TAG, value)


def prepare_store(tracking_uri: str) -> None:
    """Create MLflow's database atomically if it is a missing SQLite file.

    MLflow creates its tables in many steps and cannot resume: after a crash in between, it would never start again.
    """
    if not tracking_uri.startswith("sqlite:"):
        return
    target = Path(str(sa.make_url(tracking_uri).database))
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # left by a killed process with the same id
    try:
        _make_tables(temporary)
        # A link, not a rename: a database that another process created meanwhile stays.
        with suppress(FileExistsError):
            target.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def name_driver(tracking_uri: str) -> str:
    """Return MLflow's address with the driver of an SQLite file whose path has escapes.

    Without a driver's name, MLflow makes the folder of the path as it is written, with the escapes.
    """
    return tracking_uri.replace("sqlite:", "sqlite+pysqlite:", 1) if "%" in tracking_uri else tracking_uri


def _make_tables(path: Path) -> None:
    from mlflow.db import upgrade  # `mlflow db upgrade`

    upgrade.main([name_driver(sqlite_address(path))], standalone_mode=False)


def _parse_head(model: str, registered: "RegisteredModel") -> LedgerHead | None:
    value = registered.tags.get(LEDGER_TAG)
    if value is None:
        return None
    try:
        tag = json.loads(value)
        return LedgerHead(model=model, sequence=int(tag["sequence"]), digest=str(tag["digest"]))
    except (ValueError, TypeError, KeyError) as error:
        raise LedgerError(f"MLflow's tag {LEDGER_TAG} of {model!r} was changed: {value[:100]!r}.") from error


_being_brief = threading.Lock()
_brief_users: list[dict[str, str | None]] = []


@contextmanager
def short_mlflow_timeouts() -> Iterator[None]:
    """Limit requests to a remote MLflow to one attempt of five seconds in this block: a sensor's tick must end.

    The limits apply to the whole process, from the entry of the first block to the exit of the last.
    """
    with _being_brief:
        before = _brief_users[0] if _brief_users else {name: os.environ.get(name) for name in BRIEF}
        _brief_users.append(before)
        os.environ.update(BRIEF)
    try:
        yield
    finally:
        with _being_brief:
            _brief_users.pop()
            if not _brief_users:
                for name, value in before.items():
                    os.environ.pop(name, None)
                    os.environ.update({} if value is None else {name: value})


def lineage_tags(candidate: Candidate, verdict: Verdict) -> dict[str, str]:
    """Return the tags of a run and a version that show their origin in MLflow."""
    lineage = candidate.lineage
    return {
        CANDIDATE_TAG: candidate.id,
        "ml_platform.model_digest": candidate.model_digest,
        "ml_platform.dataset_version": str(lineage.dataset_version),
        "ml_platform.dataset_digest": lineage.dataset_digest,
        "ml_platform.code_revision": lineage.code_revision,
        "ml_platform.lock_digest": lineage.lock_digest,
        "ml_platform.verdict": "PASS" if verdict.passed else "FAIL",
        "ml_platform.verdict_digest": verdict.digest,
        "ml_platform.reason": lineage.reason,
        "ml_platform.dagster_run": candidate.run_id or "",
    }


def gate_tags(verdict: Verdict) -> dict[str, str]:
    """Return a tag for every gate with its result and condition, which MLflow can search."""
    return {
        f"ml_platform.gate.{result.name}": f"{result.outcome.value}: {result.condition}" for result in verdict.results
    }


@contextmanager
def run_files(model_file: Path, features: "pd.DataFrame", extra: Mapping[str, bytes]) -> Iterator[Path]:
    """Yield a folder with the artifacts of an MLflow run: ``model/``, which MLflow's clients can load, and other files.

    The model file is copied: saving the model again would give other bytes than the evaluated ones.

    Parameters
    ----------
    model_file : Path
    features : DataFrame
        A few rows, for the signature.
    extra : mapping of str to bytes
        Other files by path in the run's artifacts.
    """
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as name:
        folder = Path(name)
        (folder / MODEL_FOLDER).mkdir()
        shutil.copyfile(model_file, folder / MODEL_FOLDER / MODEL_FILE)
        _write_mlmodel(folder / MODEL_FOLDER, features)
        _write_files(folder, extra)
        yield folder


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for file, data in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)


def _write_mlmodel(folder: Path, features: "pd.DataFrame") -> None:
    from importlib.metadata import version

    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    python = ".".join(map(str, sys.version_info[:3]))
    (folder / "requirements.txt").write_text("\n".join(locked(REQUIRED)) + "\n")
    (folder / "python_env.yaml").write_text(f"python: {python}\ndependencies: [-r requirements.txt]\n")
    inputs = Schema([ColSpec(kind, name) for name, kind in build_signature(features)])
    model = Model(signature=ModelSignature(inputs=inputs, outputs=Schema([ColSpec("long")])))
    model.add_flavor(
        "python_function",
        loader_module="mlflow.sklearn",
        model_path=MODEL_FILE,
        predict_fn="predict",
        python_version=python,
        env={"virtualenv": "python_env.yaml"},
    )
    model.add_flavor(
        "sklearn",
        pickled_model=MODEL_FILE,  # MLflow's parameter for files of any format
        sklearn_version=version("scikit-learn"),
        serialization_format="skops",
        skops_trusted_types=list(model_files.TRUSTED_TYPES),
        code=None,
    )
    model.save(str(folder / MLMODEL))


def build_signature(features: "pd.DataFrame") -> list[tuple[str, str]]:
    """Return names and MLflow types of features, as in a version's signature."""
    types = {"i": "long", "u": "long", "f": "double", "b": "boolean", "M": "datetime"}
    return [(str(name), types.get(column.dtype.kind, "string")) for name, column in features.items()]


def locked(names: tuple[str, ...], lock: Path = PROJECT_ROOT / "requirements.lock") -> list[str]:
    """Return the pinned requirements of some packages in ``requirements.lock`` for this Python.

    Parsing the file takes milliseconds; MLflow's own inference of requirements loads the model and takes ten seconds.
    """
    from packaging.requirements import Requirement

    lines = [line.removesuffix("\\").strip() for line in lock.read_text().splitlines() if line[:1].isalnum()]
    pins = [Requirement(line) for line in lines]
    applicable = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    return [f"{pin.name}{pin.specifier}" for pin in applicable if pin.name in names]
