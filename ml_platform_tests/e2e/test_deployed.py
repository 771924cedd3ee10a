"""A retraining that a real Dagster webserver is asked for, through its GraphQL API."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ml_platform import deployed, pipeline, runs
from ml_platform.deployed import DeployedDagster
from ml_platform.errors import OutsideError
from ml_platform_tests.e2e.servers import ROOT, answers, free_port, wait_for
from ml_platform_tests.test_cli import call

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployed")
    shutil.copy(ROOT / "dagster.yaml", folder)
    return folder


@pytest.fixture(scope="module")
def webserver(home: Path) -> Iterator[str]:
    """The address of a webserver under a path, as behind a proxy; no daemon takes what it queues."""
    port = free_port()
    program: str | Path = Path(sys.executable).parent / "dagster-webserver"
    environment = {**os.environ, "DAGSTER_HOME": str(home), "ML_PLATFORM_HOME": str(home / "state")}
    process = subprocess.Popen(
        [program, "--port", str(port), "--path-prefix", "/ml", "--workspace", ROOT / "workspace.yaml"],
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


def test_a_retraining_is_asked_for_once_a_slot(webserver: str, instance: dg.DagsterInstance) -> None:
    dagster = DeployedDagster(url=webserver)

    run = dagster.retrain("churn", "schedule", "ada@github", "2026-11-23T02:00Z")
    again = dagster.retrain("churn", "schedule", "bob@github", "2026-11-23T02:00Z")
    other = dagster.retrain("churn", "manual: prices", "ada@github", None)

    queued = instance.get_run_by_id(run)
    assert queued is not None
    assert (queued.job_name, queued.status) == ("churn_retrain", dg.DagsterRunStatus.QUEUED)
    wanted = {deployed.REASON_TAG: "schedule", deployed.ACTOR_TAG: "ada@github", deployed.MODEL_TAG: "churn"}
    assert {**wanted, deployed.SLOT_TAG: "2026-11-23T02:00Z"}.items() <= queued.tags.items()
    assert again == run
    assert other != run


def test_the_outcome_is_waited_for(
    webserver: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployed, "PAUSE", 0.05)
    dagster, said = DeployedDagster(url=webserver), list[str]()
    run = dagster.retrain("churn", "manual: x", "ada", None)

    def tell(text: str) -> None:
        said.append(text)
        if "QUEUED" in text:
            found = instance.get_run_by_id(run)
            assert found is not None
            instance.report_run_failed(found)

    assert dagster.outcome(run, tell) == "FAILURE"
    assert said == [f"run {run}: QUEUED", f"run {run}: FAILURE"]


def test_a_model_that_is_not_there_is_said(webserver: str) -> None:
    with pytest.raises(OutsideError, match=r"Dagster at .* refuses: .*chrun_retrain"):
        DeployedDagster(url=webserver).retrain("chrun", "x", "ada", None)


def test_a_run_that_is_not_there_is_said(webserver: str) -> None:
    with pytest.raises(OutsideError, match="refuses: "):
        DeployedDagster(url=webserver).outcome("0" * 8, lambda _: None)


class Proxy(ThreadingHTTPServer):
    """Answers what a test says, one answer after the other, and notes what it was asked with."""

    def __init__(self, answers: list[tuple[int, Any]]) -> None:
        self.answers, self.tokens, self.asked = answers, list[str | None](), list[Any]()
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _ProxyHandler(BaseHTTPRequestHandler):
    server: Proxy

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.tokens.append(self.headers["Authorization"])
        status, said = self.server.answers.pop(0)
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def closing(server: Proxy) -> Iterator[Proxy]:
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def status(of: str) -> tuple[int, Any]:
    return 200, {"data": {"runOrError": {"__typename": "Run", "status": of}}}


def test_a_server_that_restarts_is_waited_for_and_a_refusal_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployed, "PAUSE", 0.01)
    restarting = Proxy([status("STARTED"), (502, None), (503, None), status("SUCCESS")])
    refusing = Proxy([(401, None)])

    with closing(restarting), closing(refusing):
        assert DeployedDagster(url=restarting.url, token="t0ken").outcome("r", lambda _: None) == "SUCCESS"  # noqa: S106
        with pytest.raises(OutsideError, match="answers 401"):
            DeployedDagster(url=refusing.url).outcome("r", lambda _: None)
    assert set(restarting.tokens) == {"Bearer t0ken"}
    assert refusing.tokens == [None]


class Clock:
    """Time that goes on only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_how_long_a_server_is_waited_for_counts_from_its_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes without an answer, twice, are waited for; a poll longer is not."""
    monkeypatch.setattr(deployed, "time", Clock())
    gone = [(503, None)] * int(deployed.PATIENCE / deployed.PAUSE)
    back = Proxy([status("STARTED"), *gone, status("STARTED"), *gone, status("SUCCESS")])
    away = Proxy([status("STARTED"), *gone, (503, None), status("SUCCESS")])

    with closing(back), closing(away):
        assert DeployedDagster(url=back.url).outcome("r", (said := list[str]()).append) == "SUCCESS"
        with pytest.raises(OutsideError, match="answers 503"):
            DeployedDagster(url=away.url).outcome("r", lambda _: None)
    assert said == ["run r: STARTED", "run r: SUCCESS"]  # each once


@pytest.mark.parametrize(
    "said", [[], None, {"data": None, "errors": [{"message": "no field"}]}, {"errors": []}], ids=str
)
def test_what_is_no_dagster_is_said(said: Any) -> None:
    with closing(Proxy([(200, said)])) as server, pytest.raises(OutsideError, match="is no Dagster that understands"):
        DeployedDagster(url=server.url).outcome("r", lambda _: None)


# The command


def known(*runs: str) -> tuple[int, Any]:
    return 200, {"data": {"runsOrError": {"__typename": "Runs", "results": [{"runId": run} for run in runs]}}}


def launched(run: str) -> tuple[int, Any]:
    return 200, {"data": {"launchRun": {"__typename": "LaunchRunSuccess", "run": {"runId": run}}}}


def tags(asked: dict[str, Any]) -> dict[str, str]:
    variables = asked["variables"]
    pairs = variables["asked"]["executionMetadata"]["tags"] if "asked" in variables else variables["filter"]["tags"]
    return {pair["key"]: pair["value"] for pair in pairs}


def retrain(server: Proxy, reason: str, *more: str) -> tuple[int, str]:
    return call("retrain", "churn", "--reason", reason, "--at", f"{server.url}/", *more)


def test_a_retraining_elsewhere_is_asked_for_with_its_token_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_PLATFORM_DAGSTER_TOKEN", "t0ken")
    with closing(Proxy([launched("r1"), status("SUCCESS")])) as server:
        ended, said = retrain(server, "new prices")

    assert ended == 0
    assert f"{server.url}/runs/r1" in said
    assert "run r1: SUCCESS" in said
    assert server.tokens == ["Bearer t0ken"] * 2
    assert "t0ken" not in said
    asked = tags(server.asked[0])
    assert asked[deployed.REASON_TAG] == "manual: new prices"
    assert deployed.SLOT_TAG not in asked


def test_a_tick_that_is_due_has_the_schedules_own_reason_and_slot() -> None:
    with closing(Proxy([known(), launched("r1"), status("SUCCESS")])) as server:
        ended, _ = retrain(server, "schedule", "--slot", "due")

    assert ended == 0
    wanted = {deployed.REASON_TAG: "schedule", deployed.SLOT_TAG: runs.due_slot("churn", datetime.now(UTC))}
    assert tags(server.asked[0]) == {**wanted, deployed.MODEL_TAG: "churn"}
    assert wanted.items() <= tags(server.asked[1]).items()


def test_another_attempt_is_told_how_the_run_that_it_asked_for_ended() -> None:
    with closing(Proxy([known("r1"), status("FAILURE")])) as server:
        ended, said = retrain(server, "new prices", "--slot", "github-5")

    assert ended == 1
    assert "refused: run r1 failed. Look at it there." in said
    assert len(server.asked) == 2


def test_a_run_that_was_canceled_is_no_success() -> None:
    with (
        closing(Proxy([launched("r1"), status("CANCELED")])) as server,
        pytest.raises(OutsideError, match="r1 was cancel"),
    ):
        retrain(server, "new prices")


def test_the_tags_are_those_that_the_pipeline_reads() -> None:
    for name in ("MODEL_TAG", "REASON_TAG", "ACTOR_TAG", "SLOT_TAG"):
        assert getattr(deployed, name) == getattr(pipeline, name)
