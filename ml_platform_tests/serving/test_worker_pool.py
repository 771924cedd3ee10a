"""The pool kills workers without a sign of life one after the other, and none that is only starting."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from ml_platform.serving.supervisor import worker_pool
from ml_platform.serving.supervisor.worker_pool import WorkerHandle, WorkerPool

MAX_SILENCE = 60.0


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    """A pool of two processes that sleep, last heard of long ago; none is replaced."""
    monkeypatch.setattr(worker_pool, "SECONDS_BETWEEN_CHECKS", 0.2)
    with socket.socket() as listening:
        made = WorkerPool(
            listening,
            tmp_path,
            model="visits",
            name="test",
            number=2,
            on_death=lambda _: None,
            on_ask=lambda *_: None,
            max_silence=MAX_SILENCE,
        )
        for number in range(2):
            process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            handle = WorkerHandle(number, process, cast("Any", None), time.monotonic(), loading=False)
            handle.heard -= 2 * MAX_SILENCE
            made.workers[number] = handle
        yield made
        for handle in made.workers.values():
            handle.process.kill()
            handle.process.wait()


def watch(pool: WorkerPool, seconds: float) -> None:
    async def remove_ended() -> None:
        while True:
            await asyncio.sleep(0.01)
            for number, handle in [*pool.workers.items()]:
                if handle.process.poll() is not None:
                    pool.workers.pop(number)

    async def run() -> None:
        async with asyncio.timeout(seconds):
            await asyncio.gather(pool.watch(), remove_ended())

    with pytest.raises(TimeoutError):
        asyncio.run(run())


@pytest.mark.fault("R16")
def test_silent_workers_are_not_killed_together(pool: WorkerPool) -> None:
    watch(pool, 2.0)

    assert pool.killed == 1
    assert [handle.why_killed for handle in pool.workers.values()] == [""]


@pytest.mark.fault("R16")
def test_starting_worker_may_be_silent_longer(pool: WorkerPool) -> None:
    for handle in pool.workers.values():
        handle.loading = True

    watch(pool, 1.0)

    assert pool.killed == 0
