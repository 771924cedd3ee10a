"""MLflow: show a candidate's run, register it with its lineage, fetch its bytes, move aliases.

Everything else of the platform reads its own database; MLflow shows people what the platform decided.
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
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ml_platform.errors import LedgerError, MissingInRegistryError, RegistryError, RegistryUnavailableError
from ml_platform.predictor import MODEL_FILE, TRUSTED_TYPES
from ml_platform.records import Candidate, LedgerHead, ShownModel, Verdict, canonical_json, now
from ml_platform.settings import PROJECT_ROOT, mlflow_secrets

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel
    from mlflow.exceptions import MlflowException

CANDIDATE_TAG = "ml_platform.candidate"
LEDGER_TAG = "ml_platform.ledger_head"
MODEL_FOLDER = "model"
MLMODEL = "MLmodel"
# What somebody needs to load the model with MLflow's own client.
REQUIRED = ("mlflow", "numpy", "pandas", "scikit-learn", "skops")
# MLflow reads its limits from the environment at each request. A sensor's tick has sixty seconds for all of them.
BRIEF = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


class Registry:
    """MLflow's tracking and registry server, or its SQLite file.

    Parameters
    ----------
    tracking_uri : str
        MLflow's address; a password in it is never shown.
    artifacts : Path
        Where artifacts stand when the address is a SQLite file.
    """

    def __init__(self, tracking_uri: str, artifacts: Path) -> None:
        # MLflow's own defaults, seven retries of two minutes, look like a hang.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # It prints links to every run it ends, with the password of its address.
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self._uri = tracking_uri
        self._artifacts = artifacts
        self._connected: MlflowClient | None = None

    @property
    def address(self) -> str:
        """MLflow's address without its password."""
        return sa.make_url(self._uri).render_as_string(hide_password=True)

    @contextmanager
    def _asking(self, what: str) -> Iterator["MlflowClient"]:
        from mlflow.exceptions import MlflowException

        try:
            yield self._client()
        except (MlflowException, OSError) as error:
            kind, detail = _kind_of(error)
            for secret in (sa.make_url(self._uri).password, *mlflow_secrets()):
                detail = detail.replace(str(secret), "***") if secret else detail
            raise kind(
                f"MLflow at {self.address} could not {what}: {detail}. The champion stays as it is. Check "
                "MLFLOW_TRACKING_URI and that the server runs, then try again."
            ) from None

    def _client(self) -> "MlflowClient":
        if self._connected is None:
            from mlflow import MlflowClient

            prepare_store(self._uri)
            self._connected = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        return self._connected

    # Runs

    def record_run(self, candidate: Candidate, verdict: Verdict, files: Path, folder: str | None = None) -> str:
        """Show a candidate as an MLflow run, whatever its verdict says; a second call completes the first.

        Parameters
        ----------
        candidate : Candidate
        verdict : Verdict
        files : Path
            A folder; all of it becomes the run's artifacts.
        folder : str or None
            Where among the artifacts; ``None`` is their root.

        Returns
        -------
        str
            MLflow's run id.
        """
        from mlflow.entities import Metric, RunTag

        milliseconds, judged = (int(time.timestamp() * 1000) for time in (candidate.trained_at, now()))
        # Of several values MLflow shows the newest: a candidate may be judged again.
        metrics = [Metric(name, value, judged, 0) for name, value in verdict.metrics.items()]
        # Gates are tags, for a parameter cannot change and a gate can before it is judged again.
        shown = {**lineage_tags(candidate, verdict), **gate_tags(verdict)}
        tags = [RunTag(name, value) for name, value in shown.items()]
        with self._asking("record the run") as client:
            run_id = self._run_of(client, candidate, milliseconds)
            client.log_batch(run_id, metrics=metrics, tags=tags)
            client.log_artifacts(run_id, str(files), folder)
            client.set_terminated(run_id, "FINISHED" if verdict.passed else "FAILED")
        return run_id

    def show_files(self, run_id: str, files: Mapping[str, bytes]) -> None:
        """Put files among a run's artifacts, by their place there, instead of those that stand there; none is nothing.

        Raises
        ------
        RegistryError
            MLflow refuses, or does not answer.
        """
        if not files:
            return
        with tempfile.TemporaryDirectory(prefix="ml-platform-") as name:
            _lay_out(Path(name), files)
            with self._asking("show files of the run") as client:
                client.log_artifacts(run_id, name)

    def _run_of(self, client: "MlflowClient", candidate: Candidate, milliseconds: int) -> str:
        experiment = self._experiment(client, candidate.model)
        found = client.search_runs([experiment], filter_string=f"tags.`{CANDIDATE_TAG}` = '{candidate.id}'")
        if found:
            return str(found[0].info.run_id)
        run = client.create_run(
            experiment, start_time=milliseconds, run_name=candidate.id, tags={CANDIDATE_TAG: candidate.id}
        )
        return str(run.info.run_id)

    def _experiment(self, client: "MlflowClient", model: str) -> str:
        experiment = client.get_experiment_by_name(model)
        if experiment is not None:
            if experiment.lifecycle_stage == "deleted":  # MLflow keeps its name taken and refuses runs
                client.restore_experiment(experiment.experiment_id)
            return str(experiment.experiment_id)
        local = self._uri.startswith("sqlite:")
        location = (self._artifacts / model).as_uri() if local else None
        # Without it MLflow shows the experiment as one of language models.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return str(client.create_experiment(model, artifact_location=location, tags=kind))

    # Versions

    def register(self, candidate: Candidate, verdict: Verdict, run_id: str, taken: Collection[int] = ()) -> int:
        """Register a candidate, once; return its version number.

        A version of its run is taken as it is, so that a crash between MLflow and the platform's database does not
        make a second one.

        Parameters
        ----------
        candidate : Candidate
        verdict : Verdict
        run_id : str
            MLflow's.
        taken : collection of int
            Numbers that name other versions: MLflow counts from one again when a registered model was deleted.
        """
        with self._asking("register the model") as client:
            known = client.search_model_versions(f"name = '{candidate.model}' AND run_id = '{run_id}'")
            ours = [int(version.version) for version in known if int(version.version) not in taken]
            return ours[0] if ours else self._new_version(client, candidate, verdict, run_id, MODEL_FOLDER, taken)

    def register_again(
        self, candidate: Candidate, verdict: Verdict, files: Path, folder: str, taken: Collection[int]
    ) -> tuple[int, str]:
        """Register the bytes of a version that was deleted or changed; return the new number and MLflow's run.

        Parameters
        ----------
        candidate : Candidate
        verdict : Verdict
        files : Path
            What `run_files` lays out. It becomes artifacts in a place of its own: what was changed stays to be seen.
        folder : str
            That place, within the candidate's run; a deleted run is made again.
        taken : collection of int
            Numbers that name other versions.
        """
        run_id = self.record_run(candidate, verdict, files, folder)
        with self._asking("register the model again") as client:
            return self._new_version(client, candidate, verdict, run_id, f"{folder}/{MODEL_FOLDER}", taken), run_id

    def _new_version(
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
            made = client.create_model_version(candidate.model, source, run_id=run_id, tags=tags)
            if int(made.version) not in taken:
                return int(made.version)
            client.delete_model_version(candidate.model, made.version)  # its number is not given out again

    def fetch(self, model: str, version: int, folder: Path) -> Path:
        """Download a version's model file into a folder; return its path. Nothing of it is deserialised.

        Raises
        ------
        MissingInRegistryError
            The version or its bytes are not there.
        RegistryError
            MLflow refuses, or does not answer.
        """
        return self._fetch(model, version, MODEL_FILE, folder)

    def signature(self, model: str, version: int) -> list[tuple[str, str]]:
        """Return names and types of the features that MLflow tells the clients of a version, in their order.

        Empty where it tells none. Nothing else of the file that says so, MLmodel, is ever read.

        Raises
        ------
        MissingInRegistryError, RegistryError
            As `fetch`.
        """
        with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
            return _signature(self._fetch(model, version, MLMODEL, Path(folder)).read_text())

    def _fetch(self, model: str, version: int, name: str, folder: Path) -> Path:
        import mlflow.artifacts
        from mlflow.exceptions import MlflowException

        with self._asking(f"hand out version {version} of {model!r}") as client:
            source = client.get_model_version_download_uri(model, str(version))
            try:
                found = mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{source}/{name}", dst_path=str(folder), tracking_uri=self._uri
                )
            except (MlflowException, OSError):
                # What went wrong is only in the text, if at all: the store is asked whether it has the file.
                listed = mlflow.artifacts.list_artifacts(artifact_uri=source, tracking_uri=self._uri)
                if any(Path(file.path).name == name for file in listed):
                    raise
                raise MissingInRegistryError(
                    f"The bytes of version {version} of {model!r} are gone from {self.address}: no {name}."
                ) from None
        return Path(found)

    def fetch_folder(self, run_id: str, name: str, folder: Path) -> Path:
        """Download a folder of a run's artifacts into a folder; return its path.

        Raises
        ------
        RegistryError
            MLflow refuses, has no such folder, or does not answer.
        """
        import mlflow.artifacts

        with self._asking(f"hand out {name!r} of run {run_id}"):
            found = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=name, dst_path=str(folder), tracking_uri=self._uri
            )
        return Path(found)

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Point an alias at a version."""
        with self._asking(f"set the alias {alias!r}") as client:
            client.set_registered_model_alias(model, alias, str(version))

    def delete_alias(self, model: str, alias: str) -> None:
        """Remove an alias."""
        with self._asking(f"delete the alias {alias!r}") as client:
            client.delete_registered_model_alias(model, alias)

    def alias(self, model: str, alias: str) -> int | None:
        """Return the version that an alias shows; ``None`` where it shows none. No decision may rest on it."""
        with self._asking(f"read the alias {alias!r}") as client:
            if not client.search_registered_models(f"name = '{model}'"):
                return None
            version = client.get_registered_model(model).aliases.get(alias)
        return None if version is None else int(version)

    def shown(self, model: str) -> ShownModel:
        """Return what MLflow shows of a model, in two requests; nothing of it is evidence.

        Raises
        ------
        LedgerError
            The anchor is not what the platform writes.
        """
        with self._asking("show the registered model") as client:
            found = client.search_registered_models(f"name = '{model}'")
            versions = _all_versions(client, model) if found else {}
        if not found:
            return ShownModel()
        aliases = {name: int(version) for name, version in found[0].aliases.items()}
        return ShownModel(aliases=aliases, versions=versions, head=_head(model, found[0]))

    # The ledger's anchor

    def ledger_head(self, model: str) -> LedgerHead | None:
        """Return how far a model's ledger went when it was last written here; ``None`` if it never was.

        Raises
        ------
        LedgerError
            The tag is not what the platform writes.
        """
        with self._asking(f"read the tag {LEDGER_TAG!r}") as client:
            found = client.search_registered_models(f"name = '{model}'")
        return _head(model, found[0]) if found else None

    def set_ledger_head(self, head: LedgerHead) -> None:
        """Write how far a model's ledger goes as a tag of the registered model."""
        value = canonical_json({"sequence": head.sequence, "digest": head.digest})
        with self._asking(f"set the tag {LEDGER_TAG!r}") as client:
            client.set_registered_model_tag(head.model, LEDGER_TAG, value)


def prepare_store(tracking_uri: str) -> None:
    """Make MLflow's database where it is a SQLite file that is not there yet; whole or not at all.

    MLflow makes its tables in many steps, and cannot go on from the middle: killed there, it would never start again.
    """
    if not tracking_uri.startswith("sqlite:"):
        return
    target = Path(str(sa.make_url(tracking_uri).database))
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # of another process under the same id, which was killed
    try:
        _make_tables(temporary)
        # Not a rename: what another process made meanwhile stays.
        with suppress(FileExistsError):
            target.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def _make_tables(path: Path) -> None:
    from mlflow.db import upgrade  # `mlflow db upgrade`

    upgrade.main([f"sqlite:///{path}"], standalone_mode=False)


def _head(model: str, found: "RegisteredModel") -> LedgerHead | None:
    value = found.tags.get(LEDGER_TAG)
    if value is None:
        return None
    try:
        tag = json.loads(value)
        return LedgerHead(model=model, sequence=int(tag["sequence"]), digest=str(tag["digest"]))
    except (ValueError, TypeError, KeyError) as error:
        raise LedgerError(f"MLflow's tag {LEDGER_TAG} of {model!r} was changed: {value[:100]!r}.") from error


def _all_versions(client: "MlflowClient", model: str) -> dict[int, str | None]:
    versions, page = dict[int, str | None](), None
    while True:
        found = client.search_model_versions(f"name = '{model}'", max_results=1_000, page_token=page)
        versions.update({int(version.version): version.tags.get(CANDIDATE_TAG) for version in found})
        page = found.token
        if not page:
            return versions


def _kind_of(error: "MlflowException | OSError") -> tuple[type[RegistryError], str]:
    """Return what an error of MLflow's client is here, and as much of its text as may be shown."""
    if isinstance(error, OSError):  # from an artifact store; the text may hold the address with its password
        return RegistryUnavailableError, error.strerror or "no answer"
    text = str(error)
    if "API request to" in text and "failed with exception" in text:
        return RegistryUnavailableError, "no answer"
    # A server or proxy may answer with what it was sent.
    detail = text.splitlines()[0].partition(". Response body")[0]
    missing = error.error_code == "RESOURCE_DOES_NOT_EXIST"
    return (MissingInRegistryError if missing else RegistryError), detail


_being_brief = threading.Lock()
_brief_users: list[dict[str, str | None]] = []


@contextmanager
def briefly() -> Iterator[None]:
    """Ask a remote MLflow once, for five seconds at most, within this block: a sensor's tick must end.

    The limits are the process's: they last from the first block to enter to the last to leave.
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
    """Return what a run and a version carry, so that their origin can be read in MLflow."""
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
    """Return every gate with its result, so that both can be read and searched in MLflow."""
    return {
        f"ml_platform.gate.{result.name}": f"{result.outcome.value}: {result.condition}" for result in verdict.results
    }


@contextmanager
def run_files(model_file: Path, features: "pd.DataFrame", extra: Mapping[str, bytes]) -> Iterator[Path]:
    """Lay out what an MLflow run shows: ``model/``, which MLflow's own clients can load, and more files.

    The model file is taken byte for byte: saving it again would give other bytes than those that were gated.

    Parameters
    ----------
    model_file : Path
    features : DataFrame
        A few rows that the signature is read from.
    extra : mapping of str to bytes
        Further files by name, or by their path below the run's artifacts.
    """
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as name:
        folder = Path(name)
        (folder / MODEL_FOLDER).mkdir()
        shutil.copyfile(model_file, folder / MODEL_FOLDER / MODEL_FILE)
        _write_mlmodel(folder / MODEL_FOLDER, features)
        _lay_out(folder, extra)
        yield folder


def _lay_out(folder: Path, files: Mapping[str, bytes]) -> None:
    for file, data in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)


def _write_mlmodel(folder: Path, features: "pd.DataFrame") -> None:
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    python = ".".join(map(str, sys.version_info[:3]))
    (folder / "requirements.txt").write_text("\n".join(locked(REQUIRED)) + "\n")
    (folder / "python_env.yaml").write_text(f"python: {python}\ndependencies: [-r requirements.txt]\n")
    inputs = Schema([ColSpec(kind, name) for name, kind in signature_of(features)])
    described = Model(signature=ModelSignature(inputs=inputs, outputs=Schema([ColSpec("long")])))
    described.add_flavor(
        "python_function",
        loader_module="mlflow.sklearn",
        model_path=MODEL_FILE,
        predict_fn="predict",
        python_version=python,
        env={"virtualenv": "python_env.yaml"},
    )
    described.add_flavor(
        "sklearn",
        pickled_model=MODEL_FILE,  # MLflow's name for the file, whatever its format
        sklearn_version=_version("scikit-learn"),
        serialization_format="skops",
        skops_trusted_types=list(TRUSTED_TYPES),
        code=None,
    )
    described.save(str(folder / MLMODEL))


def signature_of(features: "pd.DataFrame") -> list[tuple[str, str]]:
    """Return names and types of features as a version's signature has them."""
    return [(str(name), _mlflow_type(column)) for name, column in features.items()]


def _signature(document: str) -> list[tuple[str, str]]:
    import yaml

    try:
        told = yaml.safe_load(document)["signature"]["inputs"]
        return [(str(column["name"]), str(column["type"])) for column in json.loads(told)]
    except (yaml.YAMLError, ValueError, TypeError, KeyError):
        return []


def _mlflow_type(column: "pd.Series[Any]") -> str:
    return {"i": "long", "u": "long", "f": "double", "b": "boolean", "M": "datetime"}.get(column.dtype.kind, "string")


def locked(names: tuple[str, ...], lock: Path = PROJECT_ROOT / "requirements.lock") -> list[str]:
    """Return the pins of some packages as ``requirements.lock`` has them for this Python.

    Asking the lock costs milliseconds; MLflow's own inference imports the model again and takes ten seconds.
    """
    from packaging.requirements import Requirement

    lines = [line.removesuffix("\\").strip() for line in lock.read_text().splitlines() if line[:1].isalnum()]
    pins = [Requirement(line) for line in lines]
    return [f"{pin.name}{pin.specifier}" for pin in pins if pin.name in names and _applies(pin)]


def _applies(requirement: Any) -> bool:
    return requirement.marker is None or requirement.marker.evaluate()


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
