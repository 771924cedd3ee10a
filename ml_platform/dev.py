"""`ml-platform dev`: Dagster's UI and daemon and MLflow's UI, on loopback, until one ends or a person interrupts."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ml_platform.errors import ConfigurationError, PortInUseError
from ml_platform.settings import PROJECT_ROOT, Settings, require_dagster_home
from ml_platform.stages._landing import open_zone
from ml_platform.stages.registry import prepare_store
from ml_platform.workflows import Platform

HOST = "127.0.0.1"
SECONDS_TO_STOP = 20


def run_servers(
    settings: Settings, models: Iterable[str], port: int, mlflow_port: int, say: Callable[[str], None]
) -> None:
    """Start the servers, say where they are, and stop them together.

    Parameters
    ----------
    settings : Settings
        MLflow's UI is started only where its store is a file here.
    models : iterable of str
        Each gets its folder in the landing zone, for without one its sensor's ticks are red.
    port, mlflow_port : int
        Ports on loopback.
    say : callable
        Called with each sentence for the person at the terminal.

    Raises
    ------
    PortInUseError
        A port is taken; nothing was started.
    SecondDaemonError
        A daemon runs for this deployment; nothing was started.
    ConfigurationError
        ``DAGSTER_HOME`` cannot be used, or a server ended by itself.
    """
    from ml_platform.one_daemon import require_no_daemon

    home = require_dagster_home()
    commands = {"Dagster": _dagster(port)}
    ports = {"--port": port}
    if settings.tracking_is_local:
        commands["MLflow"] = _mlflow(settings, mlflow_port)
        ports["--mlflow-port"] = mlflow_port
    for option, number in ports.items():
        _require_free(option, number)
    require_no_daemon(Platform(settings))
    for model in models:
        open_zone(settings.landing).prepare(model)
    prepare_store(settings.tracking_uri)
    # MLflow would start eight more processes, of 260 MB each, for jobs that nobody gives it here.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    environment["ML_PLATFORM_MLFLOW_UI"] = _mlflow_page(settings, mlflow_port)
    page = environment["ML_PLATFORM_MLFLOW_UI"]
    say(f"Dagster http://{HOST}:{port}, MLflow {page}; drop files into {settings.landing}/MODEL")
    servers = {name: _start(command, home, environment) for name, command in commands.items()}
    _wait_for_the_first_to_end(servers, say)


def _dagster(port: int) -> list[str]:
    workspace = str(PROJECT_ROOT / "workspace.yaml")
    return [sys.executable, "-m", "dagster", "dev", "--host", HOST, "--port", str(port), "--workspace", workspace]


def _mlflow(settings: Settings, port: int) -> list[str]:
    store = ["--backend-store-uri", settings.tracking_uri, "--default-artifact-root", settings.artifacts.as_uri()]
    return [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1", *store]


def _mlflow_page(settings: Settings, port: int) -> str:
    return f"http://{HOST}:{port}" if settings.tracking_is_local else settings.mlflow_ui


def _require_free(option: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PortInUseError(
                f"Port {port} on {HOST} cannot be used: {error.strerror}. Stop what listens there, or choose another: "
                f"ml-platform dev {option} NUMBER (make dev PORT=… MLFLOW_PORT=…)."
            ) from error


def _start(command: list[str], home: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # A session of its own: an interrupt reaches the servers once, from here, and not their children as well.
    return subprocess.Popen(command, cwd=home, env=environment, start_new_session=True)  # noqa: S603


def _wait_for_the_first_to_end(servers: dict[str, subprocess.Popen[bytes]], say: Callable[[str], None]) -> None:
    stopping = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.append(True))
    try:
        while not stopping and all(server.poll() is None for server in servers.values()):
            time.sleep(0.2)
        ended = [f"{name} ended with status {s.returncode}" for name, s in servers.items() if s.poll() is not None]
    finally:
        say("Stopping …")
        _stop(list(servers.values()))
    if ended and not stopping:
        raise ConfigurationError(f"{'; '.join(ended)}. Its messages stand above.")


def _stop(servers: list[subprocess.Popen[bytes]]) -> None:
    for server in servers:
        server.send_signal(signal.SIGINT)
    deadline = time.monotonic() + SECONDS_TO_STOP
    for server in servers:
        try:
            server.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
