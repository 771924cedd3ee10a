"""Tests of the supervisor's parts without its workers."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from ml_platform.serving.supervisor.mlflow_probe import mlflow_responds
from ml_platform.serving.supervisor.supervisor import keep_running


@pytest.mark.fault("R12")
def test_failed_background_part_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> int:
        starts, again = 0, asyncio.Event()

        async def part() -> None:
            nonlocal starts
            starts += 1
            if starts == 1:
                raise OSError("no space left on device")
            again.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(keep_running(part))
        await again.wait()
        task.cancel()
        return starts

    assert asyncio.run(run()) == 2
    assert "part failed and is started again" in caplog.text


@pytest.mark.fault("R14")
@pytest.mark.parametrize("address", ["databricks", "http://127.0.0.1:99999", "http://[", "ssh://host", ""])
def test_probe_of_invalid_address_is_no_answer(address: str) -> None:
    assert mlflow_responds(address) is False


@pytest.fixture
def other_service() -> Iterator[str]:
    """The address of a service that greets in its own protocol, as an ssh server does."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                connection.recv(1_000)

        thread = threading.Thread(target=greet)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


@pytest.mark.fault("R14")
def test_probe_of_other_service_is_no_answer(other_service: str) -> None:
    assert mlflow_responds(other_service) is False
