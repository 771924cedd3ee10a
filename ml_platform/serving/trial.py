"""One version behind the real public port, alone: what its golden requests are answered, and how long that takes.

Run as a program it is a part of the integration test, which knows files and digests only::

    python -m ml_platform.serving.trial MODEL.skops FOLDER MODEL MODEL_DIGEST SERVED_DIGEST ANSWERS.json

FOLDER holds the other files that a server needs. It writes ``{"scores": […], "predictions": […], "p50_ms": …,
"p95_ms": …}``: a golden request is one record in MLflow's format over HTTP on loopback, on a connection
that stays open, asked in turn until there were enough for a 95th percentile.
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

from ml_platform.fresh import answer
from ml_platform.predictor import MODEL_FILE
from ml_platform.records import now
from ml_platform.serving import copies
from ml_platform.serving.answering import Answering
from ml_platform.serving.app import PublicApp
from ml_platform.serving.counts import Counts
from ml_platform.serving.loading import Loaded, load_version
from ml_platform.serving.protocol import bound, server_of
from ml_platform.serving.slots import Arm, serving_of
from ml_platform.serving.state import DesiredState, ServedVersion
from ml_platform.stages.staging import golden_requests
from ml_platform.traffic import Mode, TrafficPlan

if TYPE_CHECKING:
    import pandas as pd

REQUESTS = 100
WARM_UP = 10
LOOPBACK = "127.0.0.1"


async def _no_metrics() -> bytes:
    return b""


def _alone(loaded: Loaded, model: str) -> DesiredState:
    """Return the state in which one version answers everything."""
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
    answering = Answering(Counts(), None)
    answering.serving = serving_of(_alone(loaded, model), {loaded.version: Arm(loaded)})
    listening = bound(LOOPBACK, 0)
    server = server_of(PublicApp(answering, model, _no_metrics))
    serving = asyncio.create_task(server.serve([listening]))
    try:
        return await asyncio.to_thread(_ask, listening.getsockname()[1], requests)
    finally:
        server.should_exit = True
        await serving


def _ask(port: int, requests: "pd.DataFrame") -> dict[str, Any]:
    """Ask every golden request once, for its answer, and then in turn, for the time."""
    bodies = [_body(requests.iloc[[place]]) for place in range(len(requests))]
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=60)
    said = [_answered(connection, body) for body in bodies]
    seconds = [_timed(connection, bodies[number % len(bodies)]) for number in range(WARM_UP + REQUESTS)]
    connection.close()
    return {
        "scores": [each["scores"][0] for each in said],
        "predictions": [each["predictions"][0] for each in said],
        **_percentiles(seconds[WARM_UP:]),
    }


def _body(request: "pd.DataFrame") -> bytes:
    records = request.astype(object).where(request.notna(), None).to_dict("records")
    return json.dumps({"dataframe_records": records}, default=str).encode()


def _answered(connection: http.client.HTTPConnection, body: bytes) -> dict[str, Any]:
    connection.request("POST", "/invocations", body, {"content-type": "application/json"})
    response = connection.getresponse()
    said = response.read()
    if response.status != 200:
        sys.exit(f"the server answered a golden request with {response.status}: {said[:500].decode(errors='replace')}")
    found: dict[str, Any] = json.loads(said)
    return found


def _timed(connection: http.client.HTTPConnection, body: bytes) -> float:
    began = time.perf_counter()
    _answered(connection, body)
    return time.perf_counter() - began


def _percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"p{share}_ms": 1_000 * ordered[len(ordered) * share // 100] for share in (50, 95)}


def main(arguments: list[str]) -> None:
    """Serve one version, ask it, and leave what came of it as JSON."""
    model_file, folder, model, model_digest, served_digest, answers = arguments
    served = ServedVersion(version=1, candidate="trial", model_digest=model_digest, served_digest=served_digest)
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as name:
        target = copies.copy_folder(Path(name), served)
        shutil.copytree(folder, target)
        # The registry's bytes, whatever is kept here.
        shutil.copyfile(model_file, target / MODEL_FILE)
        loaded = load_version(Path(name), model, served)
        requests = golden_requests(target)
        answer(Path(answers), asyncio.run(_serve(loaded, model, requests)) if len(requests) else {})


if __name__ == "__main__":
    main(sys.argv[1:])
