"""The worker processes of a host: started, supervised, restarted after a crash and stopped together."""

import asyncio
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ml_platform.serving.counters import Counts, sum_counts
from ml_platform.serving.ipc import Channel, Message
from ml_platform.serving.worker.worker import WorkerTask
from ml_platform.system.isolated_process import AS_SERVED

log = logging.getLogger("ml_platform.serving")

PROGRAM = "ml_platform.serving.worker.worker"
# A worker that crashes sooner is restarted after a pause: the same cause is likely to crash it again.
SECONDS_UNTIL_HEALTHY = 5.0
MAX_PAUSE = 30.0
SECONDS_TO_STOP = 15.0
SECONDS_FOR_COUNTS = 0.5
SECONDS_BETWEEN_CHECKS = 1.0
# A worker that starts or loads a version may be silent this many times as long.
LOADING_FACTOR = 10
# The state of a worker that has not loaded a version yet.
NO_STATE: Mapping[str, Any] = {"revision": 0, "plan": 0, "stable": None, "successor": None, "loaded": {}, "refused": {}}


@dataclass(eq=False)
class WorkerHandle:
    """One running worker: its process, its channel, its last reported state and counts."""

    number: int
    process: subprocess.Popen[bytes]
    channel: Channel
    started: float
    state: Message = field(default_factory=lambda: dict(NO_STATE))
    counts: Counts = field(default_factory=Counts)
    counted: int = 0
    heard: float = field(default_factory=time.monotonic)
    in_call: float = 0.0
    loading: bool = True
    why_killed: str = ""

    @property
    def silence(self) -> float:
        """Seconds without a sign of life: since its last message, or since the stable model's running call began."""
        return max(time.monotonic() - self.heard, self.in_call)

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self.process.pid


class WorkerPool:
    """The workers of one server.

    Parameters
    ----------
    listening : socket
        Bound by the supervisor; all workers accept connections from it.
    home : Path
    model, name : str
        The model, and the server's name; the workers' names start with it.
    number : int
        Number of workers.
    on_death : callable
        Called with a sentence after a worker has ended unexpectedly.
    on_ask : callable
        Called with a worker and the number of its request when it requests the metrics of all workers.
    max_silence : float
        Seconds without a sign of life after which a worker is killed; `LOADING_FACTOR` times as long while it loads.
    """

    def __init__(
        self,
        listening: socket.socket,
        home: Path,
        *,
        model: str,
        name: str,
        number: int,
        on_death: Callable[[str], None],
        on_ask: Callable[[WorkerHandle, int], None],
        max_silence: float,
    ) -> None:
        self._listening, self._home, self._model, self._name = listening, home, model, name
        self._on_death, self._on_ask = on_death, on_ask
        self._number, self._max_silence = number, max_silence
        self.workers: dict[int, WorkerHandle] = {}
        self.restarts = self.killed = 0
        self._killed_at = -math.inf
        self._ended = Counts()
        self._changed = asyncio.Condition()
        self._stopping = False
        self._requests = 0
        self._state: str | None = None
        self.keepers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the workers."""
        self.keepers = [asyncio.create_task(self._keep_running(number)) for number in range(self._number)]

    async def _keep_running(self, number: int) -> None:
        """Start one worker, and restart it after each crash, until the pool stops."""
        pause = 0.0
        while not self._stopping:
            try:
                worker = await self._start_worker(number)
            except OSError:  # the system has no memory or no process left
                log.exception("worker %s of %s could not be started", number, self._model)
                await asyncio.sleep(SECONDS_UNTIL_HEALTHY)
                continue
            await self._receive_messages(worker)
            worker.channel.close()
            status = await asyncio.to_thread(worker.process.wait)
            self._ended.add(worker.counts.without_queues())
            async with self._changed:
                self.workers.pop(number, None)
                self._changed.notify_all()
            if self._stopping:
                return
            seconds = time.monotonic() - worker.started
            pause = min(max(2 * pause, 1.0), MAX_PAUSE) if seconds < SECONDS_UNTIL_HEALTHY else 0.0
            self.restarts += 1
            ended = worker.why_killed or f"exited with status {status}"
            restarted = f"in {pause:g} s" if pause else "at once"
            self._on_death(
                f"worker {number} of {self._model} (process {worker.pid}) {ended} after {seconds:.0f} s; it is "
                f"restarted {restarted}, the others continue"
            )
            await asyncio.sleep(pause)

    async def _start_worker(self, number: int) -> WorkerHandle:
        ours, theirs = socket.socketpair()
        task = WorkerTask(
            listening=self._listening.fileno(),
            channel=theirs.fileno(),
            home=str(self._home),
            model=self._model,
            name=f"{self._name}-{number}",
        )
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", PROGRAM, task.argument],
                pass_fds=(task.listening, task.channel),
                stdin=subprocess.DEVNULL,
                env={**os.environ, **AS_SERVED},
                # Ctrl-C at the terminal must reach the supervisor alone, which lets workers finish their requests.
                start_new_session=True,
            )
        worker = WorkerHandle(number, process, await Channel.open(ours), time.monotonic())
        worker.channel.send({"state": self._state})
        self.workers[number] = worker
        return worker

    async def _receive_messages(self, worker: WorkerHandle) -> None:
        """Receive a worker's messages until it ends."""
        async for message in worker.channel.messages():
            worker.heard = time.monotonic()
            if "ask" in message:
                self._on_ask(worker, message["ask"])
                continue
            if "counts" in message:
                worker.counts = msgspec.convert(message["counts"], Counts, strict=False)
                worker.counted = max(worker.counted, message["asked"] or 0)
                worker.in_call, worker.loading = message["in_call"], message["loading"]
            else:
                worker.state = message
            async with self._changed:
                self._changed.notify_all()

    async def watch(self) -> None:
        """Kill workers without a sign of life, one after the other; `_keep_running` replaces them.

        Times are monotonic: a step of the clock has no effect. After a pause of this process itself, as of a suspended
        machine, every worker gets its whole time again.
        """
        checked = time.monotonic()
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_CHECKS)
            paused, checked = time.monotonic() - checked > 2 * SECONDS_BETWEEN_CHECKS, time.monotonic()
            if paused:
                for worker in self.workers.values():
                    worker.heard, worker.in_call = time.monotonic(), 0.0
            silent = max(self.workers.values(), key=lambda worker: worker.silence / self._limit(worker), default=None)
            if silent is None or silent.silence <= self._limit(silent) or silent.why_killed:
                continue
            # A machine that stalls would lose all workers at once: the replacement has time to load before the next.
            if time.monotonic() - self._killed_at < self._max_silence:
                continue
            self._killed_at = time.monotonic()
            silent.why_killed = f"was killed because it gave no sign of life for {silent.silence:.0f} s,"
            log.error("worker %s (process %s) %s", silent.number, silent.pid, silent.why_killed)
            self.killed += 1
            silent.process.kill()

    def _limit(self, worker: WorkerHandle) -> float:
        return self._max_silence * (LOADING_FACTOR if worker.loading else 1)

    # All workers together

    def send_state(self, document: str) -> None:
        """Send the desired state, as JSON, to all workers and to each that starts later."""
        self._state = document
        for worker in self.workers.values():
            worker.channel.send({"state": document})

    async def wait_for_revision(self, revision: int, seconds: float) -> bool:
        """Wait until all workers serve a revision of the state; return False on a timeout or without workers."""
        return await self._wait_until(lambda worker: worker.state["revision"] >= revision, seconds)

    async def request_counts(self) -> Counts:
        """Return the present sums of all workers' counts, with those of workers that have ended.

        A worker that does not report within `SECONDS_FOR_COUNTS` contributes its last reported counts.
        """
        self._requests += 1
        request = self._requests
        for worker in self.workers.values():
            worker.channel.send({"count": request})
        await self._wait_until(lambda worker: worker.counted >= request, SECONDS_FOR_COUNTS)
        return self.counts

    @property
    def counts(self) -> Counts:
        """The sums of all workers' last reported counts, with those of workers that have ended."""
        return sum_counts([self._ended, *(worker.counts for worker in self.workers.values())])

    async def _wait_until(self, condition: Callable[[WorkerHandle], bool], seconds: float) -> bool:
        def all_workers_do() -> bool:
            return bool(self.workers) and all(condition(worker) for worker in self.workers.values())

        try:
            async with asyncio.timeout(seconds), self._changed:
                return await self._changed.wait_for(all_workers_do)
        except TimeoutError:
            return False

    # Shutdown

    async def stop(self) -> None:
        """Stop all workers after they have answered their accepted requests; kill those that take too long."""
        self._stopping = True
        for worker in self.workers.values():
            worker.process.send_signal(signal.SIGTERM)
        # No worker is running: do not start the ones that are waiting for their restart.
        for keeper in self.keepers if not self.workers else ():
            keeper.cancel()
        _, late = await asyncio.wait(self.keepers, timeout=SECONDS_TO_STOP) if self.keepers else ((), ())
        for worker in [*self.workers.values()] if late else ():
            log.error("worker %s did not stop within %g s and is killed", worker.number, SECONDS_TO_STOP)
            worker.process.kill()
        for keeper in late:
            await asyncio.wait([keeper], timeout=1.0)
            keeper.cancel()
