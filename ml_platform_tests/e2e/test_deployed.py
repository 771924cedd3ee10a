"""A retraining that a real Dagster webserver is asked for, through its GraphQL API."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ml_platform import deployed, pipeline
from ml_platform.deployed import DeployedDagster
from ml_platform.errors import OutsideError
from ml_platform_tests.e2e.servers import ROOT, answers, free_port, wait_for

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
        self.answers, self.tokens = answers, list[str | None]()
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _ProxyHandler(BaseHTTPRequestHandler):
    server: Proxy

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.append(self.headers["Authorization"])
        status, said = self.server.answers.pop(0)
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def status(of: str) -> tuple[int, Any]:
    return 200, {"data": {"runOrError": {"__typename": "Run", "status": of}}}


def test_a_server_that_restarts_is_waited_for_and_a_refusal_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployed, "PAUSE", 0.01)
    restarting = Proxy([status("STARTED"), (502, None), (503, None), status("SUCCESS")])
    refusing = Proxy([(401, None)])

    assert DeployedDagster(url=restarting.url, token="t0ken").outcome("r", lambda _: None) == "SUCCESS"  # noqa: S106
    with pytest.raises(OutsideError, match="answers 401"):
        DeployedDagster(url=refusing.url).outcome("r", lambda _: None)
    assert set(restarting.tokens) == {"Bearer t0ken"}
    assert refusing.tokens == [None]
    for server in (restarting, refusing):
        server.shutdown()
        server.server_close()


def test_the_tags_are_those_that_the_pipeline_reads() -> None:
    for name in ("MODEL_TAG", "REASON_TAG", "ACTOR_TAG", "SLOT_TAG"):
        assert getattr(deployed, name) == getattr(pipeline, name)
