"""Registration, the reconciler and its sensor with a real MLflow server that is down, slow or refuses requests."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from pydantic import SecretStr

from ml_platform.errors import MissingInRegistryError, RegistryError, RegistryUnavailableError
from ml_platform.inference import golden_requests
from ml_platform.orchestration.resources import PlatformResource
from ml_platform.pipeline import model_definitions
from ml_platform.platform import Platform
from ml_platform.records.verdict import Candidate
from ml_platform.release.promote import promote_version
from ml_platform.release.reconcile import reconcile
from ml_platform.release.register import register_candidate
from ml_platform.storage import mlflow_registry as stage
from ml_platform.storage.model_files import MODEL_FILE
from ml_platform_tests.support import fakes
from ml_platform_tests.support.mlflow_server import FaultyMlflow, serving

pytestmark = pytest.mark.servers

SPEC = fakes.uncompared_spec()
TOKEN = "a-token-of-mlflow"  # noqa: S105 - must not appear in messages


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, Path(shutil.copy(empty_mlflow, folder / "mlflow.db"))) as address:
        yield address


@pytest.fixture
def front(server: str, monkeypatch: pytest.MonkeyPatch) -> FaultyMlflow:
    # Remove the timeouts that other tests set: the platform's own apply here.
    for name in stage.BRIEF:
        monkeypatch.delenv(name, raising=False)
    return FaultyMlflow(server)


@pytest.fixture
def remote(tmp_path: Path, front: FaultyMlflow) -> Iterator[Platform]:
    """A platform whose MLflow is a server behind `front` without models."""
    with front.running() as address:
        local = fakes.platform_in(tmp_path / "home")
        opened = Platform(local.settings.model_copy(update={"mlflow_tracking_uri": SecretStr(address)}))
        yield opened
        opened.database.close()
    client = MlflowClient(front.address, front.address)
    if client.search_registered_models("name = 'visits'"):
        client.delete_registered_model("visits")


def judged(platform: Platform, name: str) -> Candidate:
    """Return a candidate with a passing verdict and an MLflow run that is not registered yet."""
    lineage = replace(fakes.candidate().lineage, dataset_digest=name)
    candidate = fakes.candidate(f"{platform.settings.home.parent.name}-{name}"[-32:], lineage=lineage)
    folder = platform.candidate_folder(candidate)
    folder.mkdir(parents=True)
    (folder / MODEL_FILE).write_text(candidate.id)
    features = fakes.visits(5)[SPEC.features]
    features.to_parquet(folder / golden_requests.GOLDEN_REQUESTS)
    platform.database.record_candidate(candidate)
    verdict = fakes.verdict_by(SPEC, candidate)
    platform.ledger_anchor.append_verdict(verdict)
    platform.database.record_verdict(verdict)
    documents = {stage.VERDICT_FILE: verdict.document.encode()}
    with stage.run_files(folder / MODEL_FILE, features, documents) as files:
        run_id = platform.registry.record_run(candidate, verdict, files)
    platform.database.link_mlflow_run(candidate.id, run_id)
    return platform.database.candidate(candidate.id)


def promoted(platform: Platform, name: str) -> int:
    candidate = judged(platform, name)
    version = register_candidate(platform, SPEC, candidate)
    platform.database.mark_staged(version)
    platform.registry.set_alias("visits", "staging", version.version)
    return promote_version(platform, SPEC, candidate, reason="schedule", actor="test").version


def versions(front: FaultyMlflow) -> list[int]:
    client = MlflowClient(front.address, front.address)
    return sorted(int(version.version) for version in client.search_model_versions("name = 'visits'"))


@pytest.mark.fault("V1")
@pytest.mark.parametrize("fault", ["503", "lost"])
def test_unanswered_registration_resumes_without_second_version(
    remote: Platform, front: FaultyMlflow, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    candidate = judged(remote, "first")

    front.fault, front.only = fault, "model-versions/create"
    with pytest.raises(RegistryUnavailableError, match="no answer"):
        register_candidate(remote, SPEC, candidate)
    unregistered = remote.database.find_registration(candidate.id)
    front.fault = ""
    differences = reconcile(remote, SPEC, actor="test")
    version = register_candidate(remote, SPEC, candidate)

    assert unregistered is None
    assert differences == []
    assert version.version == 1
    assert versions(front) == [1]


def tick(platform: Platform, instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult:
    class Opened(PlatformResource):
        def open(self) -> Platform:
            return Platform(platform.settings)

    (sensor,) = (s for s in model_definitions(SPEC).sensors or [] if s.name == "visits_registry")
    context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"platform": Opened()})
    result = sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


@pytest.mark.fault("V3")
@pytest.mark.parametrize(
    ("fault", "message"),
    [("401", "error code 401"), ("403", "error code 403"), ("500", "no answer"), ("slow", "no answer")],
)
def test_tick_during_outage_fails_fast_changing_nothing(
    remote: Platform,
    front: FaultyMlflow,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    fault: str,
    message: str,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    first = promoted(remote, "first")
    promoted(remote, "second")
    remote.registry.set_alias("visits", "champion", first)  # the sensor would restore the alias
    before = remote.database.ledger("visits")

    front.fault = fault
    start = time.monotonic()
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(RegistryError, match=message) as caught:
        tick(remote, instance)
    seconds = time.monotonic() - start
    front.fault = ""

    assert seconds < 15
    assert remote.database.ledger("visits") == before
    assert remote.registry.alias("visits", "champion") == first
    assert "The champion stays as it is" in str(caught.value)
    shown = "".join([str(caught.value), caplog.text, *capfd.readouterr()])
    assert TOKEN not in shown
    assert "hunter2" not in shown


@pytest.mark.fault("V3")
@pytest.mark.parametrize("fault", ["401", "500", "slow"])
def test_unavailable_bytes_change_nothing(
    remote: Platform, front: FaultyMlflow, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    promoted(remote, "first")
    before = remote.database.ledger("visits")

    front.fault, front.only = fault, "mlflow-artifacts"
    with stage.short_mlflow_timeouts(), pytest.raises(RegistryError) as caught:
        reconcile(remote, SPEC, actor="test")

    assert not isinstance(caught.value, MissingInRegistryError)
    assert TOKEN not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert remote.database.ledger("visits") == before
    assert versions(front) == [1]


def test_lost_champion_is_restored_over_http(remote: Platform, front: FaultyMlflow) -> None:
    promoted(remote, "first")
    MlflowClient(front.address, front.address).delete_model_version("visits", "1")

    with dg.DagsterInstance.ephemeral() as instance:
        repaired = tick(remote, instance)
        front.requests.clear()
        quiet = tick(remote, instance, repaired.cursor)
    requests = list(front.requests)

    (event,) = repaired.asset_events
    assert event.asset_key == dg.AssetKey(["visits", "champion_version"])
    assert event.metadata["version"].value == 2
    assert remote.registry.alias("visits", "champion") == 2
    assert quiet.skip_reason == dg.SkipReason("MLflow agrees with the ledger.")
    assert requests == [
        "GET /api/2.0/mlflow/registered-models/search",
        "GET /api/2.0/mlflow/model-versions/search",
    ]


def test_manually_registered_version_is_reported_once(
    remote: Platform, front: FaultyMlflow, caplog: pytest.LogCaptureFixture
) -> None:
    promoted(remote, "first")
    client = MlflowClient(front.address, front.address)
    version = client.get_model_version("visits", "1")
    client.create_model_version("visits", str(version.source), run_id=version.run_id)

    with dg.DagsterInstance.ephemeral() as instance:
        first = tick(remote, instance)
        second = tick(remote, instance, first.cursor)

    assert first.skip_reason == second.skip_reason
    assert "Version 2 of visits was not registered by the platform" in str(first.skip_reason)
    assert len([record for record in caplog.records if record.name == "ml_platform.alerts"]) == 1
    assert remote.registry.alias("visits", "champion") == 1


def test_bytes_deleted_from_server_are_missing(remote: Platform, front: FaultyMlflow, tmp_path: Path) -> None:
    promoted(remote, "first")
    client = MlflowClient(front.address, front.address)
    run = client.get_run(str(client.get_model_version("visits", "1").run_id))
    store = get_artifact_repository(run.info.artifact_uri, front.address)
    store.delete_artifacts("model")  # type: ignore[no-untyped-call]

    with pytest.raises(
        MissingInRegistryError, match=r"The bytes of version 1 of 'visits' are gone from http://\*\*\*@127"
    ):
        remote.registry.fetch("visits", 1, tmp_path)


def limits() -> list[str | None]:
    return [os.environ.get(name) for name in stage.BRIEF]


def test_tick_timeouts_end_with_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "33")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    first, second = stage.short_mlflow_timeouts(), stage.short_mlflow_timeouts()

    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    within = limits()
    second.__exit__(None, None, None)

    assert within == ["5", "0"]
    assert limits() == ["33", None]
