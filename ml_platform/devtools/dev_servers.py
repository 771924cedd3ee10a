"""`ml-platform dev`: Dagster's UI and daemon and MLflow's UI, on loopback, until one exits or is interrupted."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

from ml_platform.errors import ConfigurationError, PortInUseError
from ml_platform.platform import Platform
from ml_platform.safe_text import show_address
from ml_platform.settings import PROJECT_ROOT, Settings, require_dagster_home
from ml_platform.storage.landing_zone import open_zone
from ml_platform.storage.mlflow_registry import name_driver, prepare_store

HOST = "127.0.0.1"
SECONDS_TO_STOP = 20


def run_servers(
    settings: Settings, models: Iterable[str], port: int, mlflow_port: int, say: Callable[[str], None]
) -> None:
    """Start the servers, print their addresses, wait, and stop them together.

    Parameters
    ----------
    settings : Settings
        MLflow's UI starts only if its store is a local file.
    models : iterable of str
        Models whose folders in the landing zone are made: a sensor's ticks fail without them.
    port, mlflow_port : int
        Ports on loopback.
    say : callable
        Called with each message for the terminal.

    Raises
    ------
    PortInUseError
        A port is in use; nothing was started.
    SecondDaemonError
        The deployment's daemon runs already; nothing was started.
    ConfigurationError
        ``DAGSTER_HOME`` cannot be used, or a server exited.
    """
    from ml_platform.orchestration.daemon_lock import require_no_daemon

    home = require_dagster_home()
    workspace = ["--workspace", str(PROJECT_ROOT / "workspace.yaml")]
    commands = {"Dagster": ["dagster", "dev", "--host", HOST, "--port", str(port), *workspace]}
    ports, page = {"--port": port}, settings.mlflow_ui_url
    if settings.tracking_is_local:
        store = ["--backend-store-uri", name_driver(settings.tracking_uri)]
        store += ["--default-artifact-root", settings.artifacts.as_uri()]
        commands["MLflow"] = ["mlflow", "server", "--host", HOST, "--port", str(mlflow_port), "--workers", "1", *store]
        ports["--mlflow-port"], page = mlflow_port, f"http://{HOST}:{mlflow_port}"
    for option, number in ports.items():
        _require_free(option, number)
    require_no_daemon(Platform(settings))
    for model in models:
        open_zone(settings.landing).prepare(model)
    prepare_store(settings.tracking_uri)
    # Otherwise MLflow starts eight more processes, of 260 MB each, for jobs that are never submitted here.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ, "ML_PLATFORM_MLFLOW_UI_URL": page}
    say(f"Dagster http://{HOST}:{port}, MLflow {show_address(page)}; drop files into {settings.landing}/MODEL")
    # In a session of their own: an interrupt reaches the servers only from here, and not their children as well.
    servers = {
        name: subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", *command], cwd=home, env=environment, start_new_session=True
        )
        for name, command in commands.items()
    }
    _wait(servers, say)


def _require_free(option: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PortInUseError(
                f"Port {port} on {HOST} cannot be used: {error.strerror}. Stop its process, or choose another port: "
                f"ml-platform dev {option} NUMBER (make dev PORT=… MLFLOW_PORT=…)."
            ) from error


def _wait(servers: dict[str, subprocess.Popen[bytes]], say: Callable[[str], None]) -> None:
    """Wait until a server exits or a signal arrives; stop the others."""
    stopping = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.append(True))
    try:
        while not stopping and all(server.poll() is None for server in servers.values()):
            time.sleep(0.2)
        exited = [f"{name} exited with status {s.returncode}" for name, s in servers.items() if s.poll() is not None]
    finally:
        say("Stopping …")
        for server in servers.values():
            server.send_signal(signal.SIGINT)
        deadline = time.monotonic() + SECONDS_TO_STOP
        for server in servers.values():
            try:
                server.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
    if exited and not stopping:
        raise ConfigurationError(f"{'; '.join(exited)}. See its output above.")
