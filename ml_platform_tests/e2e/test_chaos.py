"""A server under a restarter, under load, while processes are killed and stores go away: no answer is wrong.

The faults come in an order that depends on the variable ``SEED`` only; the soak takes ``CHAOS_SECONDS``, an hour by
default. The platform's database stays, since it may not be renamed while it is open: `faults/test_server_outages.py`
takes it away.
"""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ml_platform.inference.predictor import load
from ml_platform.platform import Platform
from ml_platform.storage.model_files import MODEL_FILE
from ml_platform_tests.support import fakes, prediction_server
from ml_platform_tests.support.prediction_server import BIN, MODEL, wait_until

pytestmark = pytest.mark.servers

SECONDS, SEED = int(os.environ.get("CHAOS_SECONDS", "3600")), int(os.environ.get("SEED", "0"))
CLIENTS, PAUSE_SECONDS = 4, 0.02
# A request that ends this long after a kill, or begins this long before it, may have been in flight.
MARGIN_SECONDS = 1.0
# Of the memory of all processes, from the first quarter to the last; each version that was served leaves a little.
MEMORY_GROWTH = 1.25
MORE_FILES = 20
LARGE = 2_000
RECORDS = fakes.visits(40, seed=9).to_dict(orient="records")
FEATURES = ["pages", "seconds", "plan"]
MALFORMED = (b"{", b"[]", b'{"inputs": [{"pages": NaN}]}', b'{"dataframe_records": [{"pages": "x"}]}', b"\xff\xfe{}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Restarter:
    """Runs ``ml-platform serve`` and starts it again when it ends, as systemd does."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        self.starts = 0
        self._home, self._stopped = home, threading.Event()
        self._command = [str(BIN / "ml-platform"), "serve", MODEL, "--port", str(self.port)]
        self._command += ["--admin-port", str(free_port()), "--workers", "2"]
        self.process: subprocess.Popen[bytes] = self._start()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _start(self) -> "subprocess.Popen[bytes]":
        self.starts += 1
        with (self._home / "serve.log").open("ab") as log:
            environment = {**os.environ, "ML_PLATFORM_HOME": str(self._home)}
            return subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)

    def _run(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.1)
                if not self._stopped.wait(0.3):
                    self.process = self._start()

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        pid = self.process.pid
        with contextlib.suppress(OSError):
            return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
        return []

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return prediction_server.ask(f"http://127.0.0.1:{self.port}", "/ping", seconds=2).status == 200
        return False

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self.process.terminate()
        self.process.wait(30)


@dataclass
class Report:
    """Counts of answers by kind, and the first faults with the seconds since the start."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    # Times between which a request may fail: around a kill, and until a server is ready again.
    excused: list[tuple[float, float]] = field(default_factory=list)
    failures: list[tuple[float, float, str]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def unexcused(self) -> list[str]:
        """Return the failures outside all excused times."""
        return [
            f"{began - self.began:.1f} s: {what}"
            for began, ended, what in self.failures
            if not any(began <= last and ended >= first for first, last in self.excused)
        ]


class Client(threading.Thread):
    """Sends requests, each hundredth of them malformed, and compares each answer with that of the version it names."""

    def __init__(self, port: int, report: Report, expected: dict[str, list[float]], seed: int) -> None:
        super().__init__()
        self._port, self._report, self._expected = port, report, expected
        self._random = random.Random(seed)  # noqa: S311 - a repeatable order
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(PAUSE_SECONDS):
            number, bad = self._random.randrange(len(RECORDS)), self._random.random() < 0.01
            record = {name: RECORDS[number][name] for name in FEATURES}
            copies = LARGE if self._random.random() < 0.005 else 1
            good = json.dumps({"dataframe_records": [record] * copies}).encode()
            body = self._random.choice(MALFORMED) if bad else good
            began = time.monotonic()
            try:
                answer = prediction_server.ask(f"http://127.0.0.1:{self._port}", "/invocations", body, seconds=30)
            except (OSError, http.client.HTTPException) as error:
                self._report.failures.append((began, time.monotonic(), repr(error)))
                continue
            self._judge(began, answer, None if bad else [number] * copies)

    def _judge(self, began: float, answer: prediction_server.Answer, numbers: list[int] | None) -> None:
        """Compare an answer with those of the version to the records with these numbers; ``None`` for a bad body."""
        report = self._report
        if answer.status >= 500:
            report.failures.append((began, time.monotonic(), f"{answer.status} {answer.body[:100]!r}"))
        elif numbers is None or answer.status != 200:
            kind = "refused" if numbers is None and 400 <= answer.status < 500 else "wrong"
            report.counts[kind] += 1
            if kind == "wrong":
                report.faults.append(f"{answer.status} for {'a bad' if numbers is None else 'a'} body: {answer.body!r}")
        else:
            digest = answer.headers["ml-platform-digest"]
            report.counts["answered"] += 1
            # Not to the bit: sums depend on the number of records that are predicted together.
            if answer.json["scores"] != pytest.approx([self._expected[digest][one] for one in numbers], rel=1e-9):
                report.counts["wrong"] += 1
                report.faults.append(f"version {answer.version}: {answer.body[:200]!r}")


class Chaos:
    """The faults, one after the other."""

    def __init__(self, platform: Platform, server: Restarter, report: Report, expected: dict[str, list[float]]) -> None:
        self.platform, self.server, self.report, self.expected = platform, server, report, expected
        self.random = random.Random(SEED)  # noqa: S311 - a repeatable order
        self.seed = 1_000

    @contextlib.contextmanager
    def excusing(self) -> Iterator[None]:
        """Excuse requests in flight at a kill, and those that come until a server is ready."""
        first = time.monotonic() - MARGIN_SECONDS
        yield
        wait_until("a server that is ready", self.server.is_ready)
        self.report.excused.append((first, time.monotonic() + MARGIN_SECONDS))

    def kill_worker(self) -> None:
        if workers := self.server.workers():
            with self.excusing(), contextlib.suppress(ProcessLookupError):
                os.kill(self.random.choice(workers), signal.SIGKILL)

    def kill_supervisor(self) -> None:
        with self.excusing():
            killed = self.server.process
            killed.kill()
            wait_until("a new supervisor", lambda: self.server.process is not killed)

    def promote(self) -> None:
        self.seed += 1
        registration = prediction_server.served_version(self.platform, seed=self.seed)
        learn(self.platform, registration.candidate, self.expected)
        prediction_server.promote(self.platform, registration)

    def roll_back(self) -> None:
        if len(champions := prediction_server.list_champions(self.platform)) > 1:
            prediction_server.roll_back(self.platform, champions[-2])

    def hide(self, name: str) -> None:
        """Take a database away for some seconds."""
        self.platform.database.close()
        path = self.platform.settings.home / name
        path.rename(path.with_suffix(".away"))
        time.sleep(self.random.uniform(0.5, 4))
        path.with_suffix(".away").rename(path)

    def do_one(self) -> str:
        actions: dict[str, tuple[int, Callable[[], Any]]] = {
            "kill of a worker": (3, self.kill_worker),
            "kill of the supervisor": (1, self.kill_supervisor),
            "promotion": (3, self.promote),
            "rollback": (3, self.roll_back),
            "MLflow away": (1, lambda: self.hide("mlflow.db")),
        }
        name = self.random.choices(list(actions), [weight for weight, _ in actions.values()])[0]
        actions[name][1]()
        return name


def learn(platform: Platform, candidate: str, expected: dict[str, list[float]]) -> None:
    """Note the scores of a candidate's model for all records, by its digest."""
    import pandas as pd

    made = platform.database.candidate(candidate)
    predictor = load(platform.candidate_folder(made) / MODEL_FILE, made.model_digest)
    expected[made.model_digest] = [float(predictor.scores(pd.DataFrame([record])[FEATURES])[0]) for record in RECORDS]


def read_figures(server: Restarter) -> tuple[int, int]:
    """Return the resident memory in KiB and the open files of the server's processes."""
    memory = files = 0
    for pid in (server.process.pid, *server.workers()):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().split("\n")
            memory += int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
            files += len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return memory, files


@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.parametrize("seconds", [pytest.param(20, id="short"), pytest.param(SECONDS, marks=pytest.mark.soak)])
def test_chaos_gives_no_wrong_answer(served: Platform, seconds: int) -> None:
    expected, report = dict[str, list[float]](), Report()
    for candidate in ("candidate-1", "candidate-2", "candidate-3"):
        learn(served, candidate, expected)
    server = Restarter(served.settings.home)
    figures, done = list[tuple[int, int]](), Counter[str]()
    try:
        wait_until("a server that is ready", server.is_ready)
        clients = [Client(server.port, report, expected, seed) for seed in range(CLIENTS)]
        for client in clients:
            client.start()
        chaos, end = Chaos(served, server, report, expected), time.monotonic() + seconds
        while time.monotonic() < end:
            done[chaos.do_one()] += 1
            time.sleep(chaos.random.uniform(0.2, 3))
            figures.append(read_figures(server))
        wait_until("the newest champion", lambda: serves_newest(served, server), 30)
        for client in clients:
            client.stopped.set()
            client.join()
    finally:
        server.stop()
    (served.settings.home.parent / "chaos.json").write_text(
        json.dumps({"counts": report.counts, "done": done, "starts": server.starts, "figures": figures})
    )

    assert report.counts["wrong"] == 0, report.faults[:5]
    assert report.unexcused() == []
    assert report.counts["answered"] > seconds
    quarter = max(len(figures) // 4, 1)
    (memory, files), (last_memory, last_files) = (
        (max(one[0] for one in part), max(one[1] for one in part)) for part in (figures[:quarter], figures[-quarter:])
    )
    assert last_memory <= MEMORY_GROWTH * memory
    assert last_files <= files + MORE_FILES


def serves_newest(platform: Platform, server: Restarter) -> bool:
    newest = prediction_server.list_champions(platform)[-1]
    with contextlib.suppress(OSError, http.client.HTTPException):
        body = json.dumps({"dataframe_records": [{name: RECORDS[0][name] for name in FEATURES}]}).encode()
        return prediction_server.ask(f"http://127.0.0.1:{server.port}", "/invocations", body).version == newest
    return False
