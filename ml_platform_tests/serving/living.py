"""Versions that can be served, made in milliseconds, and real servers that serve them.

A version's files are those of a judged candidate: real bytes, golden requests and answers, request contract, parity,
the list of them. Only training data, gates and MLflow have no part.
"""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
import skops.io as sio

from ml_platform.admin import TOKEN_FILE
from ml_platform.model_spec import Rollout
from ml_platform.predictor import MODEL_FILE, file_digest, load
from ml_platform.records import LedgerEntry, Registration, sha256_text
from ml_platform.stages import parity, promotion, staging
from ml_platform.stages.contracting import contract_of
from ml_platform.stages.served import CONTRACT_FILE, write_list
from ml_platform.workflows import Platform
from ml_platform_tests import fakes

BIN = Path(sys.executable).parent
MODEL = "visits"
LONG_AGO = datetime.fromisoformat("2000-01-01T00:00:00+00:00")
FILES = (MODEL_FILE, staging.GOLDEN_REQUESTS, staging.GOLDEN_ANSWERS, CONTRACT_FILE, parity.PARITY_FILE)
RECORD = {"visitor": 7, "pages": 40, "seconds": 3.0, "plan": "paid"}
ONE = json.dumps({"dataframe_records": [RECORD]}).encode()


def served_version(platform: Platform, *, seed: int = 0, model: Any = None) -> Registration:
    """Return a version that can be promoted and served: logistic regression on other rows for each seed.

    With `model` it is that one, of whatever type: whoever loads it must trust it.
    """
    database = platform.database
    number = len(database.version_numbers(MODEL)) + 1
    spec, rows = fakes.unrivalled_spec(logged=("pages", "plan")), fakes.visits(300, seed=seed)
    identifier = f"candidate-{number}"
    folder = platform.candidate_folder(fakes.candidate(identifier))
    folder.mkdir(parents=True)
    fitted = model or spec.pipeline().fit(rows[spec.features], (rows["bought"] == "yes").astype("int64"))
    sio.dump(fitted, folder / MODEL_FILE)
    made = fakes.candidate(identifier, model_digest=file_digest(folder / MODEL_FILE))
    made = replace(made, lineage=replace(made.lineage, dataset_version=number, dataset_digest=sha256_text(identifier)))
    predictor = load(folder / MODEL_FILE, made.model_digest)
    staging.keep_golden_requests(predictor, rows[spec.features], folder)
    contract = contract_of(spec, predictor.pipeline, rows, predictor.scores(rows[spec.features]))
    (folder / CONTRACT_FILE).write_text(contract.document)
    found = parity.compare(predictor, contract, rows[spec.features])
    (folder / parity.PARITY_FILE).write_text(found.document)
    database.record_candidate(made)
    database.record_served(made.id, write_list(folder, FILES))
    database.record_verdict(fakes.verdict_by(spec, made))
    registration = fakes.registration(made, number)
    database.record_registration(registration)
    database.mark_staged(registration)
    return registration


def rewrite_golden_answers(platform: Platform, registration: Registration) -> None:
    """Let a version's golden answers be others than it gives, with a list of files that says so."""
    folder = platform.candidate_folder(platform.database.candidate(registration.candidate))
    answers = json.loads((folder / staging.GOLDEN_ANSWERS).read_text())
    answers["scores"][0] += 1e-6
    (folder / staging.GOLDEN_ANSWERS).write_text(json.dumps(answers))
    platform.database.record_served(registration.candidate, write_list(folder, FILES))


def promote(platform: Platform, registration: Registration, rollout: Rollout | None = None) -> LedgerEntry:
    """Make a version champion; what traffic does then is the rollout's."""
    verdict = platform.database.verdict_on(registration.candidate)
    assert verdict is not None
    return promotion.promote(
        platform.database, registration, verdict, reason="schedule", actor="test", rollout=rollout or Rollout()
    )


def champions(folder: Path, number: int) -> Path:
    """Make a home in which so many versions became champion, one after the other; nothing has it open."""
    platform = fakes.platform_in(folder)
    for seed in range(number):
        promote(platform, served_version(platform, seed=seed))
    platform.database.close()
    return folder


def copied(origin: Path, home: Path, mlflow: Path) -> Platform:
    """Return a platform that starts as a copy of a home, with an empty MLflow that answers."""
    shutil.copytree(origin, home)
    shutil.copy(mlflow, home / "mlflow.db")
    return fakes.platform_in(home)


def champions_of(platform: Platform) -> list[int]:
    """Return the champions that stand, the present one last."""
    standing, _ = promotion.standing(platform.database.history(MODEL))
    return standing


class Answer:
    """What a server answered."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def version(self) -> int:
        return int(self.headers["ml-platform-version"])


def ask(
    address: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str | bytes] | None = None,
    *,
    method: str | None = None,
    seconds: float = 20,
) -> Answer:
    """Return the answer to one request on a connection of its own."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=seconds)
    try:
        kind = {"content-type": "application/json"} if body is not None else {}
        connection.request(method or ("GET" if body is None else "POST"), path, body, {**kind, **(headers or {})})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def wait_until(what: str, condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Ask until the answer is true; fail with the name of what did not come."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.01)
    pytest.fail(f"{what} did not come within {seconds} s")


class Server:
    """`ml-platform serve`, or a program that differs from it in its worker, in a home of its own."""

    def __init__(
        self, home: Path, *, workers: int = 1, command: list[str] | None = None, token: str = "", **settings: str
    ) -> None:
        self.home, self.serving = home, home / "serving" / MODEL
        self.environment = {**os.environ, "ML_PLATFORM_HOME": str(home), **settings}
        self.log = home / "serve.log"
        address = self.serving / "admin.address"
        address.unlink(missing_ok=True)
        options = ["serve", MODEL, "--port", "0", "--admin-port", "0", "--workers", str(workers)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*(command or [str(BIN / "ml-platform")]), *options],
                stdout=log,
                stderr=log,
                env=self.environment,
            )
        wait_until("the admin address", lambda: address.exists() or self._ended())
        self.admin = address.read_text().strip()
        self.token = token or (self.serving / TOKEN_FILE).read_text().strip()
        self.address = str(self.facts["address"])

    def _ended(self) -> bool:
        if self.process.poll() is not None:
            pytest.fail(f"the server ended: {self.log.read_text()[-3_000:]}")
        return False

    def ask(self, path: str = "/invocations", body: bytes | None = ONE, **options: Any) -> Answer:
        """Ask on the public port; by default for a prediction."""
        return ask(self.address, path, body, **options)

    def admin_ask(self, path: str, body: Any = None, token: str | None = None) -> Answer:
        """Ask on the admin port, as the local operator unless another token is given."""
        headers = {"authorization": f"Bearer {self.token if token is None else token}".encode()}
        return ask(self.admin, path, None if body is None else json.dumps(body).encode(), headers)

    @property
    def facts(self) -> dict[str, Any]:
        """What it says of itself."""
        return dict(self.admin_ask("/state").json["facts"])

    def pids(self) -> list[int]:
        """The processes of its workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def wait_for(self, version: int, seconds: float = 30) -> None:
        """Wait until all its workers answer with a version."""
        wait_until(f"version {version}", lambda: self._serves(version), seconds)

    def _serves(self, version: int) -> bool:
        self._ended()
        facts = self.facts
        loaded, wanted = facts["stable"] == version, self.admin_ask("/state").json["desired"]
        return bool(loaded and wanted and facts["revision"] >= wanted["revision"])

    def stop(self) -> int:
        """Stop it as an operator does; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"the server did not stop: {self.log.read_text()[-3_000:]}")


@contextmanager
def serving(home: Path, **options: Any) -> Iterator[Server]:
    """Run a server for a block."""
    server = Server(home, **options)
    try:
        yield server
    finally:
        server.stop()


class Load:
    """Constant load on a server from a process of its own, for a block.

    `results` are the answers once the block ended: ``{"id", "status", "version", "digest", "score"}``, status 0 for
    what got none.
    """

    def __init__(self, server: Server, folder: Path, *, clients: int = 8) -> None:
        self.file = folder / "load.jsonl"
        self.results: list[dict[str, Any]] = []
        command = [sys.executable, "-m", "ml_platform_tests.serving.load", server.address, str(self.file), str(clients)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"answered\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(b"\n", timeout=30)
        assert self.process.returncode == 0
        self.results = [json.loads(line) for line in self.file.read_text().splitlines()]


def logged(server: Server) -> list[dict[str, Any]]:
    """Return the lines of the prediction log, of files that are open too."""
    lines = []
    for file in sorted((server.serving / "predictions").glob("predictions-*")):
        lines += [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
    return lines
