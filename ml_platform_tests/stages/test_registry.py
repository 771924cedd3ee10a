import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_platform import predictor
from ml_platform.errors import DigestMismatchError, RegistryError, RegistryUnavailableError
from ml_platform.model_spec import Gate
from ml_platform.predictor import Predictor, file_digest, load
from ml_platform.records import Candidate, Verdict
from ml_platform.stages import gates, training
from ml_platform.stages.registry import CANDIDATE_TAG, Registry, lineage_tags, locked, prepare_store, run_files
from ml_platform_tests import fakes

ROOT = Path(__file__).resolve().parent.parent.parent
SPEC = fakes.visits_spec()
ROWS = fakes.visits(100)
FEATURES = ROWS[SPEC.features]


@dataclass(frozen=True)
class Shown:
    """A candidate that MLflow shows and has registered."""

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
def shown(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    model_file = tmp_path_factory.mktemp("candidate") / predictor.MODEL_FILE
    digest = training.store(training.fit(ROWS, SPEC), model_file.parent)
    candidate = fakes.candidate(model_digest=digest, run_id="dagster-run")
    verdict = fakes.verdict(candidate)
    run_id, version = show(registry, candidate, verdict, model_file)
    return Shown(
        registry=registry,
        folder=registry._artifacts.parent,
        model_file=model_file,
        candidate=candidate,
        verdict=verdict,
        run_id=run_id,
        version=version,
    )


def show(registry: Registry, candidate: Candidate, verdict: Verdict, model_file: Path) -> tuple[str, int]:
    with run_files(model_file, FEATURES.head(), {"verdict.json": verdict.document.encode()}) as files:
        run_id = registry.record_run(candidate, verdict, files)
    return run_id, registry.register(candidate, verdict, run_id)


# Runs and versions


def test_a_run_shows_metrics_gates_and_lineage(shown: Shown) -> None:
    run = shown.client().get_run(shown.run_id)

    assert run.data.metrics == shown.verdict.metrics
    assert run.data.tags["ml_platform.gate.auc_roc"] == "PASS: auc_roc >= 0.8"
    assert {f"ml_platform.gate.{name}" for name in SPEC.conditions} <= set(run.data.tags)
    assert lineage_tags(shown.candidate, shown.verdict).items() <= run.data.tags.items()
    assert run.info.status == "FINISHED"


def test_a_version_carries_its_lineage(shown: Shown) -> None:
    version = shown.client().get_model_version(SPEC.name, str(shown.version))

    assert version.tags == lineage_tags(shown.candidate, shown.verdict)
    assert version.run_id == shown.run_id


def test_the_lineage_names_everything_that_the_verdict_binds(shown: Shown) -> None:
    tags = lineage_tags(shown.candidate, shown.verdict)
    lineage = shown.candidate.lineage

    assert tags[CANDIDATE_TAG] == shown.candidate.id
    assert tags["ml_platform.verdict_digest"] == shown.verdict.digest
    assert {
        shown.candidate.model_digest,
        str(lineage.dataset_version),
        lineage.dataset_digest,
        lineage.code_revision,
        lineage.lock_digest,
        lineage.reason,
        "dagster-run",
        "PASS",
    } <= set(tags.values())


def test_recording_and_registering_twice_gives_one_run_and_one_version(shown: Shown) -> None:
    again = show(shown.registry, shown.candidate, shown.verdict, shown.model_file)

    assert again == (shown.run_id, shown.version)
    versions = shown.client().search_model_versions(f"name = '{SPEC.name}' AND run_id = '{shown.run_id}'")
    assert [int(version.version) for version in versions] == [shown.version]


def test_another_candidate_is_another_run_and_the_next_version(shown: Shown) -> None:
    other = replace(shown.candidate, id="another-candidate")

    run_id, version = show(shown.registry, other, fakes.verdict(other), shown.model_file)

    assert run_id != shown.run_id
    assert version == shown.version + 1


def test_a_candidate_that_is_judged_again_shows_its_newest_figures_and_gates(shown: Shown) -> None:
    candidate = replace(shown.candidate, id="judged-twice")
    lenient = fakes.visits_spec(gates=(Gate(metric="auc_roc", at_least=0.1),))
    with run_files(shown.model_file, FEATURES.head(), {}) as files:
        for auc, spec in ((0.9, SPEC), (0.5, lenient)):
            again = gates.judge(candidate, fakes.findings(spec, auc_roc=auc), spec)
            run_id = shown.registry.record_run(candidate, again, files)

    run = shown.client().get_run(run_id)

    assert run.data.metrics["auc_roc"] == 0.5
    assert run.data.tags["ml_platform.gate.auc_roc"] == "PASS: auc_roc >= 0.1"
    assert run.data.tags["ml_platform.verdict_digest"] == again.digest


def test_the_run_of_a_candidate_that_failed_is_shown_as_failed(shown: Shown) -> None:
    candidate = replace(shown.candidate, id="failing-candidate")
    verdict = fakes.verdict(candidate, auc_roc=0.5)
    with run_files(shown.model_file, FEATURES.head(), {}) as files:
        run_id = shown.registry.record_run(candidate, verdict, files)

    run = shown.client().get_run(run_id)

    assert run.info.status == "FAILED"
    assert run.data.tags["ml_platform.verdict"] == "FAIL"


# Bytes


def test_the_bytes_in_the_registry_are_the_bytes_that_were_gated(shown: Shown, tmp_path: Path) -> None:
    fetched = shown.registry.fetch(SPEC.name, shown.version, tmp_path)

    assert fetched.is_relative_to(tmp_path)
    assert file_digest(fetched) == shown.candidate.model_digest


@pytest.fixture
def artifact(shown: Shown) -> Iterator[Path]:
    """Return the model file as it lies in MLflow's store; a test may change or remove it."""
    (found,) = shown.folder.glob(f"mlartifacts/visits/{shown.run_id}/artifacts/model/model.skops")
    yield found
    shutil.copyfile(shown.model_file, found)


@pytest.mark.fault("M3")
def test_a_byte_flipped_in_the_registry_is_noticed_before_the_model_is_loaded(
    shown: Shown, artifact: Path, tmp_path: Path
) -> None:
    data = bytearray(artifact.read_bytes())
    data[len(data) // 2] ^= 1
    artifact.write_bytes(data)

    fetched = shown.registry.fetch(SPEC.name, shown.version, tmp_path)

    with pytest.raises(DigestMismatchError):
        load(fetched, shown.candidate.model_digest)


def test_bytes_that_are_gone_from_the_registry_are_an_error(shown: Shown, artifact: Path, tmp_path: Path) -> None:
    artifact.unlink()

    with pytest.raises(RegistryError, match=f"version {shown.version} of 'visits'"):
        shown.registry.fetch(SPEC.name, shown.version, tmp_path)


def test_a_version_that_does_not_exist_is_an_error(shown: Shown, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="could not hand out version 999") as caught:
        shown.registry.fetch(SPEC.name, 999, tmp_path)
    assert not isinstance(caught.value, RegistryUnavailableError)


# Aliases


def test_an_alias_shows_the_version_that_it_was_set_to_last(shown: Shown) -> None:
    shown.registry.set_alias(SPEC.name, "challenger", shown.version)
    shown.registry.set_alias(SPEC.name, "challenger", shown.version)

    assert shown.registry.alias(SPEC.name, "challenger") == shown.version


def test_an_alias_that_nobody_set_shows_nothing(shown: Shown) -> None:
    assert shown.registry.alias(SPEC.name, "champion") is None
    assert shown.registry.alias("unheard_of", "champion") is None


def test_an_alias_of_a_version_that_does_not_exist_is_refused(shown: Shown) -> None:
    with pytest.raises(RegistryError, match="could not set the alias 'staging'"):
        shown.registry.set_alias(SPEC.name, "staging", 999)
    assert shown.registry.alias(SPEC.name, "staging") is None


# What MLflow's users do


def test_mlflow_itself_loads_the_version_and_predicts_the_same(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    address = f"sqlite:///{shown.folder / 'mlflow.db'}"
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    try:
        pipeline = mlflow.sklearn.load_model(f"models:/visits/{shown.version}")  # noqa: TID251 - what MLflow's users do
        signature = mlflow.models.get_model_info(f"models:/visits/{shown.version}").signature
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])

    ours = load(shown.model_file, shown.candidate.model_digest)
    np.testing.assert_array_equal(Predictor(pipeline, "").scores(FEATURES), ours.scores(FEATURES))
    assert signature.inputs.input_names() == SPEC.features


@pytest.mark.fault("M4")
def test_a_model_description_edited_to_say_pickle_changes_nothing_for_the_platform(
    shown: Shown, artifact: Path, tmp_path: Path
) -> None:
    description = artifact.with_name("MLmodel")
    honest = description.read_text()
    edited = honest.replace("serialization_format: skops", "serialization_format: pickle")
    assert edited != honest
    description.write_text(edited)

    fetched = shown.registry.fetch(SPEC.name, shown.version, tmp_path)

    description.write_text(honest)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [predictor.MODEL_FILE]
    assert load(fetched, shown.candidate.model_digest).scores(FEATURES).shape == (len(FEATURES),)


def test_a_runs_files_hold_the_model_byte_for_byte_and_are_cleaned_up(shown: Shown) -> None:
    with run_files(shown.model_file, FEATURES.head(), {"curves.png": b"png"}) as files:
        assert file_digest(files / "model" / "model.skops") == shown.candidate.model_digest
        assert (files / "curves.png").read_bytes() == b"png"
        assert (files / "model" / "MLmodel").is_file()
        requirements = (files / "model" / "requirements.txt").read_text().split()
    assert not files.exists()
    assert requirements == locked(("mlflow", "numpy", "pandas", "scikit-learn", "skops"))


def test_a_model_names_the_very_versions_that_run_here() -> None:
    from importlib.metadata import version

    assert locked(("skops", "scikit-learn")) == [f"{name}=={version(name)}" for name in ("scikit-learn", "skops")]


def test_a_pin_for_another_python_is_left_out(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "# a comment\n"
        "skops==0.1 ; python_full_version < '3.0' \\\n    --hash=sha256:00\n"
        "skops==0.2 ; python_full_version >= '3.0' \\\n    --hash=sha256:11\n"
        "skops-extra==0.3 \\\n    --hash=sha256:22\n"
    )

    assert locked(("skops",), lock) == ["skops==0.2"]


# Losing MLflow


@pytest.fixture
def unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Return a registry at a loopback port where nobody listens, with a password in its address."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return Registry(f"http://me:hunter2@127.0.0.1:{port}", tmp_path)


def test_a_server_that_cannot_be_reached_is_said_quickly_and_without_its_password(unreachable: Registry) -> None:
    candidate = fakes.candidate()
    verdict = fakes.verdict(candidate)
    start = time.monotonic()

    for ask in (
        lambda: unreachable.set_alias("visits", "champion", 1),
        lambda: unreachable.alias("visits", "champion"),
        lambda: unreachable.fetch("visits", 1, unreachable._artifacts),
        lambda: unreachable.register(candidate, verdict, "run"),
        lambda: unreachable.record_run(candidate, verdict, unreachable._artifacts),
    ):
        with pytest.raises(RegistryUnavailableError, match="no answer") as caught:
            ask()
        assert "hunter2" not in str(caught.value)
        assert "me:***@127.0.0.1" in str(caught.value)

    assert time.monotonic() - start < 10


def test_mlflows_patience_is_limited_unless_somebody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")

    Registry("http://127.0.0.1", tmp_path)

    assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) <= 2
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3"


@pytest.mark.fault("P3")
def test_a_process_killed_while_mlflow_makes_its_tables_leaves_no_database(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    program = (
        "from ml_platform.stages.registry import prepare_store\n"
        "from ml_platform_tests.life import die_at\n"
        "die_at('alembic.operations:Operations.create_index', 'before')\n"
        f"prepare_store({store!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "mlflow.db").exists()

    prepare_store(store)

    assert Registry(store, tmp_path).alias("visits", "champion") is None


def test_a_database_that_another_process_made_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def be_overtaken(path: Path) -> None:
        path.write_text("ours")
        (tmp_path / "mlflow.db").write_text("theirs")

    monkeypatch.setattr("ml_platform.stages.registry._make_tables", be_overtaken)
    prepare_store(f"sqlite:///{tmp_path}/mlflow.db")

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"mlflow.db": "theirs"}
