"""A worker: one process that answers requests on the socket that its supervisor bound, by the state that it left.

It never reads the database. It looks at ``state.json``, loads what that names in a thread, and then swaps one
reference. It ends when it is told to, or when its supervisor is gone, and answers first what it has accepted.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ml_platform.errors import ConfigurationError, PlatformError, StorageError
from ml_platform.serving.answering import Answering, counted
from ml_platform.serving.app import PublicApp
from ml_platform.serving.channel import Channel
from ml_platform.serving.counts import Counts
from ml_platform.serving.loading import load_version
from ml_platform.serving.prediction_log import PredictionLog
from ml_platform.serving.protocol import Server, allow_many_connections, server_of
from ml_platform.serving.slots import Arm, serving_of
from ml_platform.serving.state import STATE_FILE, DesiredState, ServedVersion, read_state

log = logging.getLogger("ml_platform.serving")

SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_BETWEEN_COUNTS = 1.0
SWITCH_SECONDS = 0.001
SECONDS_FOR_METRICS = 2.0
LOG_FOLDER = "predictions"


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """What a supervisor tells a worker on its command line: descriptors of the sockets, the folder, names."""

    listening: int
    channel: int
    home: str
    model: str
    name: str

    @classmethod
    def from_arguments(cls, text: str) -> "WorkerTask":
        """Read it from the one argument."""
        return msgspec.json.decode(text, type=cls)

    @property
    def argument(self) -> str:
        """It as one argument."""
        return msgspec.json.encode(self).decode()


class Worker:
    """One worker.

    Parameters
    ----------
    task : WorkerTask
    channel : Channel
        To the supervisor.
    """

    def __init__(self, task: WorkerTask, channel: Channel) -> None:
        self.task = task
        self.home = Path(task.home)
        self.channel = channel
        self.prediction_log = PredictionLog(self.home / LOG_FOLDER, task.name)
        self.answering = Answering(Counts(), self.prediction_log)
        self._arms: dict[ServedVersion, Arm] = {}
        self._refused: dict[ServedVersion, str] = {}
        self._seen: object = None
        self._nudged = asyncio.Event()
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._questions = 0
        self._stopping = asyncio.Event()
        self._looked = asyncio.Event()

    async def run(self) -> None:
        """Serve until told to stop."""
        listening = socket.socket(fileno=self.task.listening)
        server = server_of(PublicApp(self.answering, self.task.model, self._ask_metrics))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        parts = [asyncio.create_task(part) for part in (self._listen(), self._follow(), self._report())]
        # One that has nothing loaded yet would take requests from the workers that have, and could only refuse them.
        await _either(self._looked, self._stopping)
        serving = asyncio.create_task(server.serve([listening]))
        await self._stopping.wait()
        await _finish(server, serving)
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        await asyncio.to_thread(self.prediction_log.close)
        self._say_counts()
        await self.channel.flushed()

    # To and from the supervisor

    async def _listen(self) -> None:
        async for message in self.channel.heard():
            if "look" in message:
                self._nudged.set()
            elif "count" in message:
                self._say_counts(message["count"])
            elif "metrics" in message:
                waiting = self._asked.pop(message["asked"], None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message["metrics"].encode())
        log.warning("the supervisor is gone: this worker answers what it has accepted, and ends")
        self._stopping.set()

    async def _ask_metrics(self) -> bytes:
        self._questions += 1
        number = self._questions
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self.channel.say({"ask": number})
        try:
            async with asyncio.timeout(SECONDS_FOR_METRICS):
                return await answer
        except TimeoutError:
            return b"# the supervisor did not answer in time\n"
        finally:
            self._asked.pop(number, None)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_COUNTS)
            self._say_counts()

    def _say_counts(self, asked: int | None = None) -> None:
        self.channel.say({"counts": msgspec.to_builtins(counted(self.answering), str_keys=True), "asked": asked})

    def _say_state(self, desired: DesiredState) -> None:
        serving = self.answering.serving
        self.channel.say(
            {
                "revision": desired.revision,
                "plan": desired.plan.sequence,
                "stable": serving.stable.version if serving else None,
                "successor": serving.successor.version if serving and serving.successor else None,
                "loaded": {str(v): arm.loaded.served.model_digest for v, arm in serving.arms.items()}
                if serving
                else {},
                "ways": {str(v): arm.loaded.way for v, arm in serving.arms.items()} if serving else {},
                "refused": {str(served.version): why for served, why in self._refused.items()},
            }
        )

    # What is served

    async def _follow(self) -> None:
        """Follow the supervisor's file: it is looked at twenty times a second, and at once when it is said to."""
        while True:
            if (mark := _mark_of(self.home / STATE_FILE)) != self._seen:
                self._seen = mark
                await self._obey()
            self._looked.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SECONDS_BETWEEN_LOOKS):
                    await self._nudged.wait()
            self._nudged.clear()

    async def _obey(self) -> None:
        try:
            desired = read_state(self.home)
        except StorageError as error:
            log.warning("%s What is served stays.", error)
            return
        if desired is None:
            return
        wanted = set(desired.arms.values())
        self._refused = {served: why for served, why in self._refused.items() if served in wanted}
        # What must answer first: a rollback's target need not be there for a swap.
        for version in sorted(desired.arms, key=lambda version: version not in desired.plan.versions):
            await self._have(desired.arms[version])
        arms = {version: self._arms[served] for version, served in desired.arms.items() if served in self._arms}
        serving = serving_of(desired, arms)
        if serving is not None:
            self.answering.serving = serving
            self._arms = {served: arm for served, arm in self._arms.items() if served in wanted}
        self._say_state(desired)

    async def _have(self, served: ServedVersion) -> None:
        if served in self._arms:
            return
        try:
            loaded = await asyncio.to_thread(load_version, self.home, self.task.model, served)
        except PlatformError as error:
            if self._refused.get(served) != str(error):
                log.warning("version %s gets no traffic: %s", served.version, error)
            self._refused[served] = str(error)
        else:
            self._arms[served] = Arm(loaded)
            self._refused.pop(served, None)


async def _either(one: asyncio.Event, other: asyncio.Event) -> None:
    """Wait for the first of two events."""
    waits = [asyncio.create_task(event.wait()) for event in (one, other)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def _finish(server: Server, serving: "asyncio.Task[None]") -> None:
    server.should_exit = True
    await serving


def _mark_of(path: Path) -> object:
    """Return what changes whenever a file is replaced; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


async def _run(task: WorkerTask) -> None:
    end = socket.socket(fileno=task.channel)
    await Worker(task, await Channel.of(end)).run()


def main(arguments: list[str]) -> None:
    """Run a worker; its only argument is a `WorkerTask`."""
    logging.basicConfig(level=logging.WARNING, format=f"%(asctime)s %(levelname)s worker {os.getpid()}: %(message)s")
    logging.getLogger("ml_platform").setLevel(logging.INFO)
    if len(arguments) != 1:
        raise ConfigurationError("A worker is started by `ml-platform serve`, not by hand.")
    allow_many_connections()
    task = WorkerTask.from_arguments(arguments[0])
    import uvloop

    # A thread that predicts keeps the loop waiting for so long after every answer that it sends; 5 ms by default.
    sys.setswitchinterval(SWITCH_SECONDS)
    uvloop.run(_run(task))


if __name__ == "__main__":
    main(sys.argv[1:])
