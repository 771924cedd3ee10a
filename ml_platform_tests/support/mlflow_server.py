"""A real MLflow server on loopback, a proxy with faults, and a server that never answers."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest


@contextmanager
def serving(folder: Path, database: Path) -> Iterator[str]:
    """Run MLflow on an SQLite file; yield its address. Its artifacts go through the server."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--artifacts-destination", str(folder)]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}", *options]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)
    try:
        _wait(f"{address}/health", process, folder / "log")
        yield address
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def hanging() -> Iterator[str]:
    """Accept connections on loopback, and never answer; yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):  # noqa: S310 - loopback
            return
        time.sleep(0.2)
    pytest.fail(f"MLflow did not come up: {log.read_text()[-3_000:]}")


class FaultyMlflow:
    """A proxy of an MLflow server, with faults that a test sets.

    Parameters
    ----------
    address : str
        The server's address.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.fault = ""
        self.only = ""
        self.requests: list[str] = []
        self.released = threading.Event()

    def fault_of(self, method: str, path: str) -> str:
        """Return the fault of a request; empty for none."""
        self.requests.append(f"{method} {path}")
        return self.fault if self.only in path else ""

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve; yield the address, with a name and a password in it."""
        handler = type("Handler", (_Handler,), {"front": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://me:hunter2@127.0.0.1:{server.server_port}"
            finally:
                self.released.set()
                server.shutdown()
                thread.join()


class _Handler(BaseHTTPRequestHandler):
    front: FaultyMlflow
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.front.fault_of(self.command, urlsplit(self.path).path)
        if fault.isdigit():
            # As some proxies do: the answer quotes the request.
            self._answer(int(fault), f"You sent {dict(self.headers)}".encode())
        elif fault == "slow":
            self.front.released.wait(60)
            self.close_connection = True
        elif fault == "lost":
            self._pass_on(body)
            self.close_connection = True
        else:
            self._answer(*self._pass_on(body))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._any
        raise AttributeError(name)

    def _pass_on(self, body: bytes) -> tuple[int, bytes, str]:
        behind = urlsplit(self.front.address)
        connection = http.client.HTTPConnection(behind.hostname or "", behind.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in {"host", "connection"}}
        connection.request(self.command, self.path, body, {**headers, "Accept-Encoding": "identity"})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, data, answer.headers.get("Content-Type", "application/json")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
