"""A server with one version only: its answers to the golden requests, and their latency.

Run as a program, it is a part of the integration test, which knows only files and digests::

    python -m ml_platform.serving.smoke_test MODEL.skops FOLDER MODEL MODEL_DIGEST SERVED_DIGEST ANSWERS.json

FOLDER contains the other files that a server needs. The result is ``{"scores": […], "predictions": […], "p50_ms": …,
"p95_ms": …, "calls": …, "noise": …}``. A golden request is one record in MLflow's format, sent over HTTP to loopback on
one open connection; the requests repeat until there are enough for a 95th percentile. After each, a request without a
model measures the machine's noise.
"""

import asyncio
import http.client
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.evaluation import latency
from ml_platform.inference.golden_requests import golden_requests
from ml_platform.records.canonical import now
from ml_platform.records.traffic import Mode, TrafficPlan
from ml_platform.serving import version_cache
from ml_platform.serving.counters import Counts
from ml_platform.serving.http.app import PublicApp
from ml_platform.serving.http.connection_limits import bound, make_server
from ml_platform.serving.state import DesiredState, ServedVersion
from ml_platform.serving.worker.model_loader import Loaded, load_version
from ml_platform.serving.worker.request_handler import RequestHandler
from ml_platform.serving.worker.routing import ServedModel, build_routing_table
from ml_platform.storage.model_files import MODEL_FILE
from ml_platform.system.isolated_process import write_answer

if TYPE_CHECKING:
    import pandas as pd

REQUESTS = 100
WARM_UP = 10
# Percentiles of the control. On a busy machine most requests wait, so that their median is no measure of an idle one;
# and a tail of a hundred requests varies.
UNDISTURBED, DISTURBED = 5, 99
LOOPBACK = "127.0.0.1"
CONTROL = "/v2/health/live"


def _alone(loaded: Loaded, model: str) -> DesiredState:
    """Return the state that sends all traffic to one version."""
    version = loaded.served.version
    plan = TrafficPlan(
        model=model,
        sequence=1,
        decision=1,
        mode=Mode.ALL,
        stable=version,
        since=now(),
        reason="integration test",
        actor="ml-platform",
    )
    return DesiredState(model=model, revision=1, plan=plan, arms={version: loaded.served})


async def _serve(loaded: Loaded, model: str, requests: "pd.DataFrame") -> dict[str, Any]:
    async def no_metrics() -> bytes:
        return b""

    handler = RequestHandler(Counts(), None)
    handler.serving = build_routing_table(_alone(loaded, model), {loaded.version: ServedModel(loaded)})
    listener = bound(LOOPBACK, 0)
    server = make_server(PublicApp(handler, model, no_metrics))
    serving = asyncio.create_task(server.serve([listener]))
    try:
        return await asyncio.to_thread(_send_requests, listener.getsockname()[1], requests)
    finally:
        server.should_exit = True
        await serving


def _send_requests(port: int, requests: "pd.DataFrame") -> dict[str, Any]:
    """Send every golden request once, for its answer, and then all in turn, for their latency."""
    records = requests.astype(object).where(requests.notna(), None).to_dict("records")
    bodies = [json.dumps({"dataframe_records": [record]}, default=str).encode() for record in records]
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=60)
    answers = [_post(connection, body) for body in bodies]
    seconds, control = [], []
    for number in range(WARM_UP + REQUESTS):
        begin = time.perf_counter()
        _post(connection, bodies[number % len(bodies)])
        seconds.append(time.perf_counter() - begin)
        control.append(_time_control(connection))
    connection.close()
    ordered = sorted(seconds[WARM_UP:])
    return {
        "scores": [answer["scores"][0] for answer in answers],
        "predictions": [answer["predictions"][0] for answer in answers],
        "calls": REQUESTS,
        "noise": latency.measure_noise(control, usual=UNDISTURBED, rare=DISTURBED),
        **{f"p{share}_ms": 1_000 * ordered[len(ordered) * share // 100] for share in (50, 95)},
    }


def _time_control(connection: http.client.HTTPConnection) -> float:
    """Return the time of a request that reaches no model, in seconds; it waits for the same threads as a prediction."""
    begin = time.perf_counter()
    connection.request("GET", CONTROL)
    connection.getresponse().read()
    return time.perf_counter() - begin


def _post(connection: http.client.HTTPConnection, body: bytes) -> dict[str, Any]:
    connection.request("POST", "/invocations", body, {"content-type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        text = content[:500].decode(errors="replace")
        sys.exit(f"the server answered a golden request with HTTP status {response.status}: {text}")
    answer: dict[str, Any] = json.loads(content)
    return answer


def main(arguments: list[str]) -> None:
    """Serve one version, send it the golden requests, and write the result as JSON."""
    model_file, folder, model, model_digest, served_digest, result = arguments
    served = ServedVersion(version=1, candidate="trial", model_digest=model_digest, served_digest=served_digest)
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as name:
        target = version_cache.copy_folder(Path(name), served)
        shutil.copytree(folder, target)
        # The registry's file, not the candidate's.
        shutil.copyfile(model_file, target / MODEL_FILE)
        loaded = load_version(Path(name), model, served)
        requests = golden_requests(target)
        write_answer(Path(result), asyncio.run(_serve(loaded, model, requests)) if len(requests) else {})


if __name__ == "__main__":
    main(sys.argv[1:])
