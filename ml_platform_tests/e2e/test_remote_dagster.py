"""Retrainings requested from a real Dagster webserver, through its GraphQL API."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ml_platform import pipeline
from ml_platform.cli import launch
from ml_platform.errors import RemoteServiceError
from ml_platform.orchestration import remote_dagster
from ml_platform.orchestration.remote_dagster import DeployedDagster
from ml_platform.settings import PROJECT_ROOT
from ml_platform_tests.support.command_line import call
from ml_platform_tests.support.dev_servers import answers, free_port, wait_for
from ml_platform_tests.support.http_server import Proxy, closing

pytestmark = [
    pytest.mark.e2e,
    # Dagster's own client calls gql in a way that gql 4 deprecates.
    pytest.mark.filterwarnings("ignore:Using variable_values:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployed")
    shutil.copy(PROJECT_ROOT / "dagster.yaml", folder)
    return folder


@pytest.fixture(scope="module")
def webserver(home: Path) -> Iterator[str]:
    """The address of a webserver under a path, as behind a proxy; no daemon starts the runs that it queues."""
    port = free_port()
    program: str | Path = Path(sys.executable).parent / "dagster-webserver"
    environment = {**os.environ, "DAGSTER_HOME": str(home), "ML_PLATFORM_HOME": str(home / "state")}
    process = subprocess.Popen(
        [program, "--port", str(port), "--path-prefix", "/ml", "--workspace", PROJECT_ROOT / "workspace.yaml"],
        cwd=home,
        env=environment,
        start_new_session=True,
    )
    try:
        wait_for("the webserver", lambda: answers(f"http://127.0.0.1:{port}/ml/server_info"))
        yield f"http://127.0.0.1:{port}/ml/"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def instance(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.chdir(home)
    with dg.DagsterInstance.from_config(str(home)) as opened:
        yield opened


def test_retraining_is_queued_once_a_slot(webserver: str, instance: dg.DagsterInstance) -> None:
    dagster = DeployedDagster(url=webserver)

    run = dagster.retrain("churn", "schedule", "ada@github", "2026-11-23T02:00Z")
    again = dagster.retrain("churn", "schedule", "bob@github", "2026-11-23T02:00Z")
    other = dagster.retrain("churn", "manual: prices", "ada@github", None)

    queued = instance.get_run_by_id(run)
    assert queued is not None
    assert (queued.job_name, queued.status) == ("churn_retrain", dg.DagsterRunStatus.QUEUED)
    wanted = {
        remote_dagster.REASON_TAG: "schedule",
        remote_dagster.ACTOR_TAG: "ada@github",
        remote_dagster.MODEL_TAG: "churn",
    }
    assert {**wanted, remote_dagster.SLOT_TAG: "2026-11-23T02:00Z"}.items() <= queued.tags.items()
    assert again == run
    assert other != run


def test_outcome_is_polled_until_the_run_ends(
    webserver: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_dagster, "PAUSE", 0.05)
    dagster, messages = DeployedDagster(url=webserver), list[str]()
    run = dagster.retrain("churn", "manual: x", "ada", None)

    def report(text: str) -> None:
        messages.append(text)
        if "QUEUED" in text:
            queued = instance.get_run_by_id(run)
            assert queued is not None
            instance.report_run_failed(queued)

    assert dagster.outcome(run, report) == "FAILURE"
    assert messages == [f"run {run}: QUEUED", f"run {run}: FAILURE"]


def test_unknown_model_is_an_error(webserver: str) -> None:
    with pytest.raises(RemoteServiceError, match=r"Dagster at .* refused the request: .*chrun_retrain"):
        DeployedDagster(url=webserver).retrain("chrun", "x", "ada", None)


def test_unknown_run_is_an_error(webserver: str) -> None:
    with pytest.raises(RemoteServiceError, match="refused the request: "):
        DeployedDagster(url=webserver).outcome("0" * 8, lambda _: None)


def status(name: str) -> tuple[int, Any]:
    return 200, {"data": {"pipelineRunOrError": {"__typename": "Run", "status": name}}}


def test_client_waits_for_restart_but_not_401(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_dagster, "PAUSE", 0.01)
    restarting = Proxy([status("STARTED"), (502, None), (503, None), status("SUCCESS")])
    refusing = Proxy([(401, None)])

    with closing(restarting), closing(refusing):
        assert DeployedDagster(url=restarting.url, token="t0ken").outcome("r", lambda _: None) == "SUCCESS"  # noqa: S106
        with pytest.raises(RemoteServiceError, match="returned 401"):
            DeployedDagster(url=refusing.url).outcome("r", lambda _: None)
    assert set(restarting.tokens) == {"Bearer t0ken"}
    assert refusing.tokens == [None]


class Clock:
    """A clock that advances only in `sleep`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_patience_starts_at_the_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits ten minutes without an answer, twice, and not one poll longer."""
    monkeypatch.setattr(remote_dagster, "time", Clock())
    gone = [(503, None)] * int(remote_dagster.PATIENCE / remote_dagster.PAUSE)
    back = Proxy([status("STARTED"), *gone, status("STARTED"), *gone, status("SUCCESS")])
    away = Proxy([status("STARTED"), *gone, (503, None), status("SUCCESS")])

    with closing(back), closing(away):
        assert DeployedDagster(url=back.url).outcome("r", (messages := list[str]()).append) == "SUCCESS"
        with pytest.raises(RemoteServiceError, match="returned 503"):
            DeployedDagster(url=away.url).outcome("r", lambda _: None)
    assert messages == ["run r: STARTED", "run r: SUCCESS"]  # each once


@pytest.mark.parametrize(
    "response", [[], None, {"data": None, "errors": [{"message": "no field"}]}, {"errors": []}], ids=str
)
def test_other_server_is_an_error(response: Any) -> None:
    with (
        closing(Proxy([(200, response)])) as server,
        pytest.raises(RemoteServiceError, match="did not return a valid Dagster GraphQL response"),
    ):
        DeployedDagster(url=server.url).outcome("r", lambda _: None)


@pytest.mark.parametrize("answered", [{}, {"runOrError": {}}, {"pipelineRunOrError": {}}, status("MADE_UP")[1]["data"]])
def test_outcome_unknown_response_is_refused(answered: dict[str, Any]) -> None:
    with closing(Proxy([(200, {"data": answered})])) as server, pytest.raises(RemoteServiceError) as refused:
        DeployedDagster(url=server.url, token="t0ken").outcome("r", lambda _: None)  # noqa: S106

    assert not refused.value.may_pass
    assert "t0ken" not in str(refused.value)


def test_outcome_follows_no_redirection() -> None:
    with closing(Proxy([(307, None)])) as server, pytest.raises(RemoteServiceError, match="returned 307"):
        DeployedDagster(url=server.url).outcome("r", lambda _: None)


# The command


def known(*runs: str) -> tuple[int, Any]:
    return 200, {"data": {"runsOrError": {"__typename": "Runs", "results": [{"runId": run} for run in runs]}}}


def launched(run: str) -> tuple[int, Any]:
    return 200, {"data": {"launchPipelineExecution": {"__typename": "LaunchRunSuccess", "run": {"runId": run}}}}


def tags(request: dict[str, Any]) -> dict[str, str]:
    variables = request["variables"]
    holder = (
        variables["executionParams"]["executionMetadata"] if "executionParams" in variables else variables["filter"]
    )
    return {pair["key"]: pair["value"] for pair in holder["tags"]}


def retrain(server: Proxy, reason: str, *more: str) -> tuple[int, str]:
    return call("retrain", "churn", "--reason", reason, "--dagster-url", f"{server.url}/", *more)


def test_remote_retraining_sends_token_and_prints_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_PLATFORM_DAGSTER_TOKEN", "t0ken")
    with closing(Proxy([launched("r1"), status("SUCCESS")])) as server:
        exit_status, output = retrain(server, "new prices")

    assert exit_status == 0
    assert f"{server.url}/runs/r1" in output
    assert "run r1: SUCCESS" in output
    assert server.tokens == ["Bearer t0ken"] * 2
    assert "t0ken" not in output
    run_tags = tags(server.asked[0])
    assert run_tags[remote_dagster.REASON_TAG] == "manual: new prices"
    assert remote_dagster.SLOT_TAG not in run_tags


def test_due_slot_has_the_schedules_reason_and_slot() -> None:
    with closing(Proxy([known(), launched("r1"), status("SUCCESS")])) as server:
        exit_status, _ = retrain(server, "schedule", "--slot", "due")

    assert exit_status == 0
    wanted = {
        remote_dagster.REASON_TAG: "schedule",
        remote_dagster.SLOT_TAG: launch.due_slot("churn", datetime.now(UTC)),
    }
    assert tags(server.asked[0]) == {**wanted, remote_dagster.MODEL_TAG: "churn"}
    assert wanted.items() <= tags(server.asked[1]).items()


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ({"data": {"runsOrError": {"__typename": "Runs", "results": None}}}, "it returned no list of runs"),
        ({"data": {"runsOrError": None}}, "it returned no list of runs"),
        ({"data": {"runsOrError": {}}, "errors": [{"message": "permission denied"}]}, "permission denied"),
    ],
    ids=["no list", "null", "errors beside data"],
)
def test_incomplete_search_launches_no_second_run(response: Any, reason: str) -> None:
    with closing(Proxy([(200, response)])) as server:
        with pytest.raises(RemoteServiceError, match=reason):
            retrain(server, "new prices", "--slot", "github-5")

        assert len(server.asked) == 1


def test_second_attempt_reports_the_first_runs_outcome() -> None:
    with closing(Proxy([known("r1"), status("FAILURE")])) as server:
        exit_status, output = retrain(server, "new prices", "--slot", "github-5")

    assert exit_status == 1
    assert "refused: run r1 failed. Open it in that deployment's UI." in output
    assert len(server.asked) == 2


def test_canceled_run_is_an_error() -> None:
    with (
        closing(Proxy([launched("r1"), status("CANCELED")])) as server,
        pytest.raises(RemoteServiceError, match="r1 was cancel"),
    ):
        retrain(server, "new prices")


def test_tags_are_those_of_the_pipeline() -> None:
    for name in ("MODEL_TAG", "REASON_TAG", "ACTOR_TAG", "SLOT_TAG"):
        assert getattr(remote_dagster, name) == getattr(pipeline, name)
