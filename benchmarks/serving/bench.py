"""Requests a second of `ml-platform serve` beside `mlflow models serve`, the same model file in both; see README.md."""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from ml_platform.data.ingest import publish_batches, store_raw_batches
from ml_platform.data.landing import waiting_arrivals
from ml_platform.data.pin import pin_dataset
from ml_platform.devtools import demo_data
from ml_platform.evaluation.judge import judge_candidate
from ml_platform.model_spec import Gate, ModelSpec
from ml_platform.models.churn import CATEGORIES, churn
from ml_platform.platform import Platform
from ml_platform.release.promote import promote_version
from ml_platform.release.register import register_candidate, stage_version
from ml_platform.settings import Settings
from ml_platform.training.train import train_candidate

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
BODIES = 512
PATIENCE = 120


def make_pipeline(encoder: Any, scaler: Any) -> Any:
    """Return churn's classifier behind an encoder of its categories and a scaler of its numbers."""
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    numbers = [name for name in churn.features if name not in CATEGORIES]
    preprocess = ColumnTransformer([("categories", encoder, CATEGORIES), ("numbers", scaler, numbers)])
    return Pipeline([("preprocess", preprocess), churn.pipeline().steps[-1]])


def scaled_pipeline() -> Any:
    """Return a pipeline with a scaler that the compiler does not know: it is called with an array of numbers."""
    from sklearn.preprocessing import OrdinalEncoder, RobustScaler

    return make_pipeline(OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), RobustScaler())


def other_pipeline() -> Any:
    """Return a pipeline with an encoder of text that the compiler does not know: it is called with DataFrames."""
    from sklearn.preprocessing import StandardScaler, TargetEncoder

    return make_pipeline(TargetEncoder(random_state=0), StandardScaler())


def specs() -> dict[str, ModelSpec]:
    """Return churn in three ways; without gates that the noise of a busy machine could fail."""
    base = churn.model_copy(update={"gates": (Gate(metric="auc_roc", at_least=0.5),), "comparison": None})
    return {
        "compiled": base,
        "unknown step on numbers": base.model_copy(update={"pipeline": scaled_pipeline}),
        "other": base.model_copy(update={"pipeline": other_pipeline}),
    }


def champion(home: Path, spec: ModelSpec) -> Path:
    """Take the demonstration's customers to a champion in a home; return the folder that MLflow serves."""
    landing = home / "landing" / spec.name
    landing.mkdir(parents=True)
    for name, data in demo_data.exports().items():
        (landing / name).write_bytes(data)
    platform = Platform(Settings(home=home))
    keys = [arrival.key for arrival in waiting_arrivals(platform, spec.name)]
    store_raw_batches(platform, spec.name, keys)
    publish_batches(platform, spec, keys)
    pin_dataset(platform, spec)
    candidate = train_candidate(platform, spec, reason="manual: benchmark")
    found = judge_candidate(platform, spec, candidate).parity
    print(f"parity: {'agrees to the bit' if found.passed else found.why}", flush=True)
    candidate = platform.database.candidate(candidate.id)
    register_candidate(platform, spec, candidate)
    stage_version(platform, candidate)
    promote_version(platform, spec, candidate, reason="manual: benchmark", actor="benchmark")
    platform.database.close()
    (model,) = (path.parent for path in platform.settings.artifacts.rglob("MLmodel"))
    return model


def bodies(spec: ModelSpec) -> list[str]:
    """Return requests of one record each, as MLflow's own client writes a DataFrame."""
    rows = pd.concat([pd.read_parquet(_buffer(data)) for data in demo_data.exports().values()])[spec.features].head(
        BODIES
    )
    return [json.dumps({"dataframe_split": rows.iloc[[n]].to_dict(orient="split")}) for n in range(len(rows))]


def _buffer(data: bytes) -> Any:
    import io

    return io.BytesIO(data)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def server(command: list[str], port: int, environment: dict[str, str], log: Path) -> Iterator[tuple[int, float]]:
    """Start a server; yield its process, and after how many seconds it was ready."""
    began = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > began + PATIENCE:
                sys.exit(f"{' '.join(command)} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield process.pid, time.monotonic() - began
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def cpu_seconds(first: int) -> float:
    """Return the CPU time of a process and of all below it: a busy machine changes it less than requests a second."""
    parents, spent = dict[int, int](), dict[int, float]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
            spent[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return sum(seconds for process, seconds in spent.items() if first in _line(process, parents))


def _line(process: int, parents: dict[int, int]) -> Iterator[int]:
    while process:
        yield process
        process = parents.get(process, 0)


def ask(port: int, options: argparse.Namespace, file: Path, process: int) -> dict[str, float]:
    arguments = [str(port), str(options.clients), str(options.seconds), str(file)]
    before = cpu_seconds(process)
    done = subprocess.run([sys.executable, str(HERE / "client.py"), *arguments], check=True, capture_output=True)
    found: dict[str, float] = json.loads(done.stdout)
    return {**found, "cpu_ms": (cpu_seconds(process) - before) / found["all_requests"] * 1e3}


def describe(name: str, found: dict[str, float]) -> str:
    return (
        f"{name:>22}: {found['requests_a_second']:8.0f} requests/s, p50 {found['p50_ms']:7.2f} ms, "
        f"p99 {found['p99_ms']:7.2f} ms, most {found['max_ms']:7.1f} ms, {found['failed']:.0f} failed, "
        f"{found['cpu_ms']:.2f} CPU ms a request"
    )


def commands(model: Path) -> dict[str, tuple[list[str], int]]:
    """Return the command and the port of each server."""
    ours, theirs = free_port(), free_port()
    options = ["--workers", "1", "--host", "127.0.0.1", "--port", str(theirs)]
    return {
        "ml-platform serve": (
            [str(BIN / "ml-platform"), "serve", churn.name, "--port", str(ours), "--admin-port", "0"],
            ours,
        ),
        "mlflow models serve": (
            [str(BIN / "mlflow"), "models", "serve", "-m", str(model), "--env-manager", "local", *options],
            theirs,
        ),
    }


def compare(name: str, spec: ModelSpec, options: argparse.Namespace, folder: Path) -> float:
    """Measure both servers of one model in turn; return the ratio of their medians."""
    home = folder / name.replace(" ", "-")
    model, file = champion(home, spec), home / "bodies.json"
    file.write_text(json.dumps(bodies(spec)))
    # `mlflow models serve` starts uvicorn by its name.
    path = f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = {**os.environ, "PATH": path, "ML_PLATFORM_HOME": str(home), "OMP_NUM_THREADS": "1"}
    rates = dict[str, list[float]]()
    for _ in range(options.rounds):
        for server_name, (command, port) in commands(model).items():
            with server(command, port, environment, home / "servers.log") as (process, ready):
                found = ask(port, options, file, process)
            print(f"{name}, {describe(server_name, found)}, ready after {ready:.1f} s", flush=True)
            rates.setdefault(server_name, []).append(found["requests_a_second"])
    ours, theirs = (statistics.median(rates[one]) for one in ("ml-platform serve", "mlflow models serve"))
    print(f"{name}: {ours / theirs:.1f} times the requests a second", flush=True)
    return ours / theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as name:
        ratios = {way: compare(way, spec, options, Path(name)) for way, spec in specs().items()}
    print(", ".join(f"{way} {ratio:.1f} times" for way, ratio in ratios.items()))


if __name__ == "__main__":
    main()
