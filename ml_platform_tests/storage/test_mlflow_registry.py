import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_platform.errors import DigestMismatchError, RegistryError, RegistryUnavailableError
from ml_platform.evaluation import gates
from ml_platform.inference.predictor import Predictor, load
from ml_platform.model_spec import Gate
from ml_platform.records.verdict import Candidate, Verdict
from ml_platform.settings import PROJECT_ROOT
from ml_platform.storage import model_files
from ml_platform.storage.mlflow_registry import CANDIDATE_TAG, Registry, lineage_tags, locked, prepare_store, run_files
from ml_platform.storage.model_files import file_digest
from ml_platform.training import fit
from ml_platform_tests.support import fakes

SPEC = fakes.visits_spec()
ROWS = fakes.visits(100)
FEATURES = ROWS[SPEC.features]


@dataclass(frozen=True)
class Recorded:
    """A candidate with a run and a registered version in MLflow."""

    registry: Registry
    folder: Path
    model_file: Path
    candidate: Candidate
    verdict: Verdict
    run_id: str
    version: int

    def client(self) -> Any:
        from mlflow import MlflowClient

        address = f"sqlite:///{self.folder / 'mlflow.db'}"
        return MlflowClient(tracking_uri=address, registry_uri=address)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("mlflow")
    return Registry(f"sqlite:///{folder / 'mlflow.db'}", folder / "mlartifacts")


@pytest.fixture(scope="module")
def recorded(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    model_file = tmp_path_factory.mktemp("candidate") / model_files.MODEL_FILE
    digest = fit.store(fit.fit(ROWS, SPEC), model_file.parent)
    candidate = fakes.candidate(model_digest=digest, run_id="dagster-run")
    verdict = fakes.verdict(candidate)
    run_id, version = record(registry, candidate, verdict, model_file)
    return Recorded(
        registry=registry,
        folder=registry._artifacts.parent,
        model_file=model_file,
        candidate=candidate,
        verdict=verdict,
        run_id=run_id,
        version=version,
    )


def record(registry: Registry, candidate: Candidate, verdict: Verdict, model_file: Path) -> tuple[str, int]:
    with run_files(model_file, FEATURES.head(), {"verdict.json": verdict.document.encode()}) as files:
        run_id = registry.record_run(candidate, verdict, files)
    return run_id, registry.register(candidate, verdict, run_id)


# Runs and versions


@pytest.mark.slow
def test_run_has_metrics_gates_and_lineage(recorded: Recorded) -> None:
    run = recorded.client().get_run(recorded.run_id)

    assert run.data.metrics == recorded.verdict.metrics
    assert run.data.tags["ml_platform.gate.auc_roc"] == "PASS: auc_roc >= 0.8"
    assert {f"ml_platform.gate.{name}" for name in SPEC.conditions} <= set(run.data.tags)
    assert lineage_tags(recorded.candidate, recorded.verdict).items() <= run.data.tags.items()
    assert run.info.status == "FINISHED"


def test_version_has_lineage_tags(recorded: Recorded) -> None:
    version = recorded.client().get_model_version(SPEC.name, str(recorded.version))

    assert version.tags == lineage_tags(recorded.candidate, recorded.verdict)
    assert version.run_id == recorded.run_id


def test_lineage_tags_cover_the_verdicts_binding(recorded: Recorded) -> None:
    tags = lineage_tags(recorded.candidate, recorded.verdict)
    lineage = recorded.candidate.lineage

    assert tags[CANDIDATE_TAG] == recorded.candidate.id
    assert tags["ml_platform.verdict_digest"] == recorded.verdict.digest
    assert {
        recorded.candidate.model_digest,
        str(lineage.dataset_version),
        lineage.dataset_digest,
        lineage.code_revision,
        lineage.lock_digest,
        lineage.reason,
        "dagster-run",
        "PASS",
    } <= set(tags.values())


def test_register_twice_is_one_version(recorded: Recorded) -> None:
    again = record(recorded.registry, recorded.candidate, recorded.verdict, recorded.model_file)

    assert again == (recorded.run_id, recorded.version)
    versions = recorded.client().search_model_versions(f"name = '{SPEC.name}' AND run_id = '{recorded.run_id}'")
    assert [int(version.version) for version in versions] == [recorded.version]


def test_register_other_candidate_is_next_version(recorded: Recorded) -> None:
    other = replace(recorded.candidate, id="another-candidate")

    run_id, version = record(recorded.registry, other, fakes.verdict(other), recorded.model_file)

    assert run_id != recorded.run_id
    assert version == recorded.version + 1


def test_run_evaluated_again_shows_newest_values(recorded: Recorded) -> None:
    candidate = replace(recorded.candidate, id="judged-twice")
    lenient = fakes.visits_spec(gates=(Gate(metric="auc_roc", at_least=0.1),))
    with run_files(recorded.model_file, FEATURES.head(), {}) as files:
        for auc, spec in ((0.9, SPEC), (0.5, lenient)):
            again = gates.judge(candidate, fakes.evaluation(spec, auc_roc=auc), spec)
            run_id = recorded.registry.record_run(candidate, again, files)

    run = recorded.client().get_run(run_id)

    assert run.data.metrics["auc_roc"] == 0.5
    assert run.data.tags["ml_platform.gate.auc_roc"] == "PASS: auc_roc >= 0.1"
    assert run.data.tags["ml_platform.verdict_digest"] == again.digest


def test_run_of_failing_candidate_is_failed(recorded: Recorded) -> None:
    candidate = replace(recorded.candidate, id="failing-candidate")
    verdict = fakes.verdict(candidate, auc_roc=0.5)
    with run_files(recorded.model_file, FEATURES.head(), {}) as files:
        run_id = recorded.registry.record_run(candidate, verdict, files)

    run = recorded.client().get_run(run_id)

    assert run.info.status == "FAILED"
    assert run.data.tags["ml_platform.verdict"] == "FAIL"


# Bytes


def test_fetch_returns_the_gated_bytes(recorded: Recorded, tmp_path: Path) -> None:
    fetched = recorded.registry.fetch(SPEC.name, recorded.version, tmp_path)

    assert fetched.is_relative_to(tmp_path)
    assert file_digest(fetched) == recorded.candidate.model_digest


@pytest.fixture
def artifact(recorded: Recorded) -> Iterator[Path]:
    """Return the model file in MLflow's store, which a test may change or remove."""
    (file,) = recorded.folder.glob(f"mlartifacts/visits/{recorded.run_id}/artifacts/model/model.skops")
    yield file
    shutil.copyfile(recorded.model_file, file)


@pytest.mark.fault("M3")
def test_fetch_flipped_byte_fails_before_loading(recorded: Recorded, artifact: Path, tmp_path: Path) -> None:
    data = bytearray(artifact.read_bytes())
    data[len(data) // 2] ^= 1
    artifact.write_bytes(data)

    fetched = recorded.registry.fetch(SPEC.name, recorded.version, tmp_path)

    with pytest.raises(DigestMismatchError):
        load(fetched, recorded.candidate.model_digest)


def test_fetch_missing_bytes_is_an_error(recorded: Recorded, artifact: Path, tmp_path: Path) -> None:
    artifact.unlink()

    with pytest.raises(RegistryError, match=f"version {recorded.version} of 'visits'"):
        recorded.registry.fetch(SPEC.name, recorded.version, tmp_path)


def test_fetch_missing_version_is_an_error(recorded: Recorded, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="could not provide version 999") as caught:
        recorded.registry.fetch(SPEC.name, 999, tmp_path)
    assert not isinstance(caught.value, RegistryUnavailableError)


# Aliases


def test_alias_is_the_last_set_version(recorded: Recorded) -> None:
    recorded.registry.set_alias(SPEC.name, "challenger", recorded.version)
    recorded.registry.set_alias(SPEC.name, "challenger", recorded.version)

    assert recorded.registry.alias(SPEC.name, "challenger") == recorded.version


def test_alias_never_set_is_none(recorded: Recorded) -> None:
    assert recorded.registry.alias(SPEC.name, "champion") is None
    assert recorded.registry.alias("unheard_of", "champion") is None


def test_alias_of_missing_version_is_an_error(recorded: Recorded) -> None:
    with pytest.raises(RegistryError, match="could not set the alias 'staging'"):
        recorded.registry.set_alias(SPEC.name, "staging", 999)
    assert recorded.registry.alias(SPEC.name, "staging") is None


# MLflow clients


def test_mlflow_client_loads_version_with_equal_predictions(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    address = f"sqlite:///{recorded.folder / 'mlflow.db'}"
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    try:
        pipeline = mlflow.sklearn.load_model(f"models:/visits/{recorded.version}")  # noqa: TID251 - as MLflow's users do
        signature = mlflow.models.get_model_info(f"models:/visits/{recorded.version}").signature
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])

    ours = load(recorded.model_file, recorded.candidate.model_digest)
    np.testing.assert_array_equal(Predictor(pipeline, "").scores(FEATURES), ours.scores(FEATURES))
    assert signature.inputs.input_names() == SPEC.features


@pytest.mark.fault("M4")
def test_mlmodel_edited_to_pickle_is_ignored(recorded: Recorded, artifact: Path, tmp_path: Path) -> None:
    description = artifact.with_name("MLmodel")
    honest = description.read_text()
    edited = honest.replace("serialization_format: skops", "serialization_format: pickle")
    assert edited != honest
    description.write_text(edited)

    fetched = recorded.registry.fetch(SPEC.name, recorded.version, tmp_path)

    description.write_text(honest)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [model_files.MODEL_FILE]
    assert load(fetched, recorded.candidate.model_digest).scores(FEATURES).shape == (len(FEATURES),)


def test_run_files_have_equal_bytes_and_are_removed(recorded: Recorded) -> None:
    with run_files(recorded.model_file, FEATURES.head(), {"curves.png": b"png"}) as files:
        assert file_digest(files / "model" / "model.skops") == recorded.candidate.model_digest
        assert (files / "curves.png").read_bytes() == b"png"
        assert (files / "model" / "MLmodel").is_file()
        requirements = (files / "model" / "requirements.txt").read_text().split()
    assert not files.exists()
    assert requirements == locked(("mlflow", "numpy", "pandas", "scikit-learn", "skops"))


def test_mlmodel_requirements_are_the_installed_versions() -> None:
    from importlib.metadata import version

    assert locked(("skops", "scikit-learn")) == [f"{name}=={version(name)}" for name in ("scikit-learn", "skops")]


def test_locked_omits_pin_for_other_python(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "# a comment\n"
        "skops==0.1 ; python_full_version < '3.0' \\\n    --hash=sha256:00\n"
        "skops==0.2 ; python_full_version >= '3.0' \\\n    --hash=sha256:11\n"
        "skops-extra==0.3 \\\n    --hash=sha256:22\n"
    )

    assert locked(("skops",), lock) == ["skops==0.2"]


# Outages of MLflow


@pytest.fixture
def unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Return a registry at a closed local port, with a password in its address."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return Registry(f"http://me:hunter2@127.0.0.1:{port}", tmp_path)


def test_unreachable_server_error_is_quick_without_password(unreachable: Registry) -> None:
    candidate = fakes.candidate()
    verdict = fakes.verdict(candidate)
    start = time.monotonic()

    for request in (
        lambda: unreachable.set_alias("visits", "champion", 1),
        lambda: unreachable.alias("visits", "champion"),
        lambda: unreachable.fetch("visits", 1, unreachable._artifacts),
        lambda: unreachable.register(candidate, verdict, "run"),
        lambda: unreachable.record_run(candidate, verdict, unreachable._artifacts),
    ):
        with pytest.raises(RegistryUnavailableError, match="no answer") as caught:
            request()
        assert "hunter2" not in str(caught.value)
        assert "//***@127.0.0.1" in str(caught.value)

    assert time.monotonic() - start < 10


def test_mlflow_timeouts_are_short_unless_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")

    Registry("http://127.0.0.1", tmp_path)

    assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) <= 2
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3"


@pytest.mark.slow
@pytest.mark.fault("P3")
def test_prepare_store_killed_leaves_no_database(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    program = (
        "from ml_platform.storage.mlflow_registry import prepare_store\n"
        "from ml_platform_tests.support.lifecycle import die_at\n"
        "die_at('alembic.operations:Operations.create_index', 'before')\n"
        f"prepare_store({store!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "mlflow.db").exists()

    prepare_store(store)

    assert Registry(store, tmp_path).alias("visits", "champion") is None


def test_prepare_store_overtaken_keeps_other_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create_both(path: Path) -> None:
        path.write_text("ours")
        (tmp_path / "mlflow.db").write_text("theirs")

    monkeypatch.setattr("ml_platform.storage.mlflow_registry._make_tables", create_both)
    prepare_store(f"sqlite:///{tmp_path}/mlflow.db")

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"mlflow.db": "theirs"}


@pytest.mark.fault("X2")
@pytest.mark.parametrize("scheme", ["ftp", "postgresql", "mysql"])
def test_unusable_address_hides_password_and_cause(scheme: str, tmp_path: Path) -> None:
    registry = Registry(f"{scheme}://u:s3cret@127.0.0.1:9/x", tmp_path)

    with pytest.raises(RegistryError, match=rf"^MLflow at {scheme}://\*\*\*@127") as refused:
        registry.alias("visits", "champion")

    assert "s3cret" not in "".join(traceback.format_exception(refused.value))
