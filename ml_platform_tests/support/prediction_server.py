"""Versions that can be served, made in milliseconds, and real servers that serve them.

A version's files are those of a judged candidate: real bytes, golden requests and answers, request contract, parity,
the list of them. Training data, gates and MLflow are left out.
"""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
import skops.io as sio

from ml_platform.inference import golden_requests, parity
from ml_platform.inference.contract_builder import build_request_contract
from ml_platform.inference.predictor import load
from ml_platform.inference.served_files import CONTRACT_FILE, write_list
from ml_platform.model_spec import Rollout
from ml_platform.platform import Platform
from ml_platform.records.canonical import sha256_text
from ml_platform.records.ledger import LedgerEntry, Registration
from ml_platform.release.admin_client import TOKEN_FILE
from ml_platform.release.ledger import champions as ledger_champions
from ml_platform.release.ledger import decisions
from ml_platform.storage.model_files import MODEL_FILE, file_digest
from ml_platform_tests.support import fakes

BIN = Path(sys.executable).parent
MODEL = "visits"
# Maximum wait for a condition: workers on a busy machine take half a minute to import and load a model.
PATIENCE_SECONDS = 120.0
FILES = (MODEL_FILE, golden_requests.GOLDEN_REQUESTS, golden_requests.GOLDEN_ANSWERS, CONTRACT_FILE, parity.PARITY_FILE)
RECORD = {"visitor": 7, "pages": 40, "seconds": 3.0, "plan": "paid"}
ONE = json.dumps({"dataframe_records": [RECORD]}).encode()


def served_version(platform: Platform, *, seed: int = 0, model: Any = None) -> Registration:
    """Return a version that can be promoted and served: logistic regression on other rows for each seed.

    A given `model` may have any type; processes that load it must trust that type.
    """
    database = platform.database
    number = len(database.version_numbers(MODEL)) + 1
    spec, rows = fakes.uncompared_spec(logged_features=("pages", "plan")), fakes.visits(300, seed=seed)
    identifier = f"candidate-{number}"
    folder = platform.candidate_folder(fakes.candidate(identifier))
    folder.mkdir(parents=True)
    fitted = model or spec.pipeline().fit(rows[spec.features], (rows["bought"] == "yes").astype("int64"))
    sio.dump(fitted, folder / MODEL_FILE)
    made = fakes.candidate(identifier, model_digest=file_digest(folder / MODEL_FILE))
    made = replace(made, lineage=replace(made.lineage, dataset_version=number, dataset_digest=sha256_text(identifier)))
    predictor = load(folder / MODEL_FILE, made.model_digest)
    golden_requests.store_golden_requests(predictor, rows[spec.features], folder)
    contract = build_request_contract(spec, predictor.pipeline, rows, predictor.scores(rows[spec.features]))
    (folder / CONTRACT_FILE).write_text(contract.document)
    found = parity.compare(predictor, contract, rows[spec.features])
    (folder / parity.PARITY_FILE).write_text(found.document)
    database.record_candidate(made)
    served = write_list(folder, FILES)
    database.record_served(made.id, served)
    database.record_verdict(fakes.verdict_by(spec, replace(made, served_digest=served)))
    registration = fakes.registration(made, number)
    database.record_registration(registration)
    database.mark_staged(registration)
    return registration


def rewrite_golden_answers(platform: Platform, registration: Registration) -> None:
    """Replace a version's golden answers by wrong ones, and update its list of files and its verdict."""
    folder = platform.candidate_folder(platform.database.candidate(registration.candidate))
    answers = json.loads((folder / golden_requests.GOLDEN_ANSWERS).read_text())
    answers["scores"][0] += 1e-6
    (folder / golden_requests.GOLDEN_ANSWERS).write_text(json.dumps(answers))
    served, verdict = write_list(folder, FILES), platform.database.verdict_on(registration.candidate)
    assert verdict is not None
    platform.database.record_served(registration.candidate, served)
    platform.database.record_verdict(replace(verdict, served_digest=served))


def promote(platform: Platform, registration: Registration, rollout: Rollout | None = None) -> LedgerEntry:
    """Make a version champion; its rollout decides on traffic."""
    verdict = platform.database.verdict_on(registration.candidate)
    assert verdict is not None
    return decisions.promote(
        platform.database, registration, verdict, reason="schedule", actor="test", rollout=rollout or Rollout()
    )


def move_to_mlflow(platform: Platform, registration: Registration) -> None:
    """Move a version's files from this host into the artifacts of a run of the local MLflow."""
    candidate = platform.database.candidate(registration.candidate)
    verdict = platform.database.verdict_on(registration.candidate)
    assert verdict is not None
    files = platform.settings.home / "to-mlflow"
    shutil.move(platform.candidate_folder(candidate), files / "serving")
    run_id = platform.registry.record_run(candidate, verdict, files)
    platform.database.link_mlflow_run(candidate.id, run_id)


def roll_back(platform: Platform, version: int) -> LedgerEntry:
    """Make an earlier champion champion again in the ledger, as another process does."""
    was = next(entry for entry in platform.database.history(MODEL) if entry.version == version)
    target = Registration(model=MODEL, version=version, candidate=was.candidate)
    return decisions.roll_back(platform.database, target, was.verdict_digest, reason="worse", actor="test")


def champions(folder: Path, number: int) -> Path:
    """Make a home in which `number` versions became champion one after the other; it is closed."""
    platform = fakes.platform_in(folder)
    for seed in range(number):
        promote(platform, served_version(platform, seed=seed))
    platform.database.close()
    return folder


def copied(origin: Path, home: Path, mlflow: Path) -> Platform:
    """Return a platform that starts as a copy of a home, with an empty MLflow."""
    shutil.copytree(origin, home)
    shutil.copy(mlflow, home / "mlflow.db")
    return fakes.platform_in(home)


def list_champions(platform: Platform) -> list[int]:
    """Return the champions that were not rolled back, the current one last."""
    standing, _ = ledger_champions.champion_stack(platform.database.history(MODEL))
    return standing


class Answer:
    """The answer of a server."""

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
    """Return the answer to one request on a new connection."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=seconds)
    try:
        kind = {"content-type": "application/json"} if body is not None else {}
        connection.request(method or ("GET" if body is None else "POST"), path, body, {**kind, **(headers or {})})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def wait_until(what: str, condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """Poll until the condition is true, and return its value; fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.01)
    pytest.fail(f"{what} did not come within {seconds} s")


class Server:
    """A running `ml-platform serve`, or a program with another worker, in a home."""

    def __init__(
        self, home: Path, *, workers: int = 1, command: list[str] | None = None, token: str = "", **settings: str
    ) -> None:
        self.home, self.serving = home, home / "serving" / MODEL
        self.environment = {**os.environ, "ML_PLATFORM_HOME": str(home), **settings}
        self.log = home / "serve.log"
        options = ["serve", MODEL, "--port", "0", "--admin-port", "0", "--workers", str(workers)]
        with self.log.open("ab") as log:
            start = log.tell()
            self.process = subprocess.Popen(
                [*(command or [str(BIN / "ml-platform")]), *options],
                stdout=log,
                stderr=log,
                env=self.environment,
            )
        # As an operator reads it: with a full disk, the file of the address is the last server's.
        said = re.compile(rb"admin (http://\S+), ")
        found = wait_until("the admin address", lambda: said.search(self.log.read_bytes(), start) or self._ended())
        self.admin = found[1].decode()
        self.token = token or (self.serving / TOKEN_FILE).read_text().strip()
        self.address = str(self.facts["address"])

    def _ended(self) -> bool:
        if self.process.poll() is not None:
            pytest.fail(f"the server ended: {self.log.read_text()[-3_000:]}")
        return False

    def ask(self, path: str = "/invocations", body: bytes | None = ONE, **options: Any) -> Answer:
        """Send a request to the public port; by default for a prediction."""
        return ask(self.address, path, body, **options)

    def admin_ask(self, path: str, body: Any = None, token: str | None = None) -> Answer:
        """Send a request to the admin port, with the local operator's token by default."""
        headers = {"authorization": f"Bearer {self.token if token is None else token}".encode()}
        return ask(self.admin, path, None if body is None else json.dumps(body).encode(), headers)

    @property
    def facts(self) -> dict[str, Any]:
        """The server's report on itself."""
        return dict(self.admin_ask("/state").json["facts"])

    def pids(self) -> list[int]:
        """Process ids of its workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def wait_for(self, version: int, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until all workers answer with a version."""
        wait_until(f"version {version}", lambda: self._serves(version), seconds)

    def _serves(self, version: int) -> bool:
        self._ended()
        facts = self.facts
        loaded, wanted = facts["stable"] == version, self.admin_ask("/state").json["desired"]
        return bool(loaded and wanted and facts["revision"] >= wanted["revision"])

    def start_second(self) -> subprocess.CompletedProcess[str]:
        """Run a second server in the same home until it exits; return its output and exit status."""
        command = [str(BIN / "ml-platform"), "serve", MODEL, "--port", "0", "--admin-port", "0"]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)

    def stop(self) -> int:
        """Stop the server as an operator does; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"the server did not stop: {self.log.read_text()[-3_000:]}")


@contextmanager
def serving(home: Path, **options: Any) -> Iterator[Server]:
    """Run a server during a block."""
    server = Server(home, **options)
    try:
        yield server
    finally:
        server.stop()


class Load:
    """Constant load on a server from another process, during a block.

    After the block, `results` are the answers: ``{"id", "status", "version", "digest", "score"}``; status 0 means no
    answer.
    """

    def __init__(self, server: Server, folder: Path, *, clients: int = 8) -> None:
        self.file = folder / "load.jsonl"
        self.results: list[dict[str, Any]] = []
        command = [
            sys.executable,
            "-m",
            "ml_platform_tests.support.load_clients",
            server.address,
            str(self.file),
            str(clients),
        ]
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
    """Return the lines of the prediction log, including open files."""
    lines = []
    for file in sorted((server.serving / "predictions").glob("predictions-*")):
        lines += [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
    return lines
