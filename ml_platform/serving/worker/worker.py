"""A worker: a process that answers requests on its supervisor's socket, with the versions in the desired state.

It never reads the database. The supervisor sends the state; the worker loads its versions in a thread, and then swaps
one reference. It stops on a signal or after its supervisor has ended, and answers its accepted requests before.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ml_platform.errors import ConfigurationError, PlatformError
from ml_platform.monitoring.prediction_log.writer import PredictionLog
from ml_platform.serving.counters import Counts
from ml_platform.serving.http.app import PublicApp
from ml_platform.serving.http.connection_limits import allow_many_connections, make_server
from ml_platform.serving.ipc import Channel
from ml_platform.serving.state import DesiredState, ServedVersion
from ml_platform.serving.worker.model_loader import load_version
from ml_platform.serving.worker.request_handler import RequestHandler, read_counts
from ml_platform.serving.worker.routing import ServedModel, build_routing_table
from ml_platform.system.log_format import configure_server_logs

log = logging.getLogger("ml_platform.serving")

SECONDS_BETWEEN_COUNTS = 1.0
SWITCH_SECONDS = 0.001
SECONDS_FOR_METRICS = 2.0
LOG_FOLDER = "predictions"


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """A worker's command-line argument: file descriptors of its two sockets, its folder, the model, its name."""

    listening: int
    channel: int
    home: str
    model: str
    name: str

    @classmethod
    def from_argument(cls, text: str) -> "WorkerTask":
        """Parse the argument."""
        return msgspec.json.decode(text, type=cls)

    @property
    def argument(self) -> str:
        """The argument, as JSON."""
        return msgspec.json.encode(self).decode()


class Worker:
    """One worker.

    Parameters
    ----------
    task : WorkerTask
    channel : Channel
        The channel to the supervisor.
    """

    def __init__(self, task: WorkerTask, channel: Channel) -> None:
        self.task = task
        self.home = Path(task.home)
        self.channel = channel
        self.prediction_log = PredictionLog(self.home / LOG_FOLDER, task.name)
        self.handler = RequestHandler(Counts(), self.prediction_log)
        self._models: dict[ServedVersion, ServedModel] = {}
        self._refused: dict[ServedVersion, str] = {}
        self._desired: DesiredState | None = None
        self._received = asyncio.Event()
        self._loading = False
        self._metrics_requests: dict[int, asyncio.Future[bytes]] = {}
        self._last_request = 0
        self._stopping = asyncio.Event()
        self._first_read = asyncio.Event()

    async def run(self) -> None:
        """Serve until the stop signal."""
        listening = socket.socket(fileno=self.task.listening)
        server = make_server(PublicApp(self.handler, self.task.model, self._request_metrics))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        parts = [
            asyncio.create_task(part)
            for part in (self._receive_messages(), self._follow_states(), self._send_counts_often())
        ]
        # A worker without a version would take requests from the workers that have one, only to refuse them.
        waits = [asyncio.create_task(event.wait()) for event in (self._first_read, self._stopping)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        serving = asyncio.create_task(server.serve([listening]))
        await self._stopping.wait()
        server.should_exit = True
        await serving
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        await asyncio.to_thread(self.handler.close)
        await asyncio.to_thread(self.prediction_log.close)
        self._send_counts()
        await self.channel.flush()

    # Messages from and to the supervisor

    async def _receive_messages(self) -> None:
        async for message in self.channel.messages():
            if "state" in message:
                document = message["state"]
                self._desired = DesiredState.from_document(document) if document else None
                self._received.set()
            elif "count" in message:
                self._send_counts(message["count"])
            elif "metrics" in message:
                answer = self._metrics_requests.pop(message["asked"], None)
                if answer is not None and not answer.done():
                    answer.set_result(message["metrics"].encode())
        log.warning("the supervisor has ended: this worker answers its accepted requests and stops")
        self._stopping.set()

    async def _request_metrics(self) -> bytes:
        self._last_request += 1
        number = self._last_request
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._metrics_requests[number] = answer
        self.channel.send({"ask": number})
        try:
            async with asyncio.timeout(SECONDS_FOR_METRICS):
                return await answer
        except TimeoutError:
            return b"# the supervisor did not answer in time\n"
        finally:
            self._metrics_requests.pop(number, None)

    async def _send_counts_often(self) -> None:
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_COUNTS)
            self._send_counts()

    def _send_counts(self, request: int | None = None) -> None:
        """Send counts and signs of life: the seconds of the stable model's running call, and whether a version loads.

        A successor that does not answer is the rollout's concern: it has a deadline.
        """
        counts = msgspec.to_builtins(read_counts(self.handler), str_keys=True)
        serving = self.handler.serving
        in_call = serving.stable.batcher.seconds_in_call if serving else 0.0
        self.channel.send({"counts": counts, "asked": request, "in_call": in_call, "loading": self._loading})

    # Following the desired state

    async def _follow_states(self) -> None:
        """Follow each state that the supervisor sends; of several that arrive meanwhile, only the last."""
        while True:
            await self._received.wait()
            self._received.clear()
            if self._desired is not None:
                await self._follow(self._desired)
            # If a newer state has arrived meanwhile, the files of this one may be gone: no version is loaded yet.
            if self.handler.serving is not None or not self._received.is_set():
                self._first_read.set()

    async def _follow(self, desired: DesiredState) -> None:
        """Load the desired state's versions, swap the routing table, and report it to the supervisor."""
        wanted, before = set(desired.arms.values()), set(self._models)
        self._refused = {served: reason for served, reason in self._refused.items() if served in wanted}
        # The plan's versions first: the swap does not need the target of a rollback.
        for version in sorted(desired.arms, key=lambda version: version not in desired.plan.versions):
            await self._load(desired.arms[version])
        loaded = {version: self._models[served] for version, served in desired.arms.items() if served in self._models}
        if set(self._models) - before:
            await asyncio.to_thread(freeze_objects)
        serving = build_routing_table(desired, loaded)
        if serving is not None:
            self.handler.serving = serving
            self._models = {served: model for served, model in self._models.items() if served in wanted}
        current = self.handler.serving
        models = current.models if current else {}
        self.channel.send(
            {
                "revision": desired.revision,
                "plan": desired.plan.sequence,
                "stable": current.stable.version if current else None,
                "successor": current.successor.version if current and current.successor else None,
                "loaded": {str(version): model.loaded.served.model_digest for version, model in models.items()},
                "ways": {str(version): model.loaded.way for version, model in models.items()},
                "refused": {str(served.version): reason for served, reason in self._refused.items()},
            }
        )

    async def _load(self, served: ServedVersion) -> None:
        if served in self._models:
            return
        self._loading = True
        self._send_counts()
        try:
            loaded = await asyncio.to_thread(load_version, self.home, self.task.model, served)
        except PlatformError as error:
            if self._refused.get(served) != str(error):
                log.warning("version %s gets no traffic: %s", served.version, error)
            self._refused[served] = str(error)
        else:
            self._models[served] = ServedModel(loaded)
            self._refused.pop(served, None)
        finally:
            self._loading = False
            self._send_counts()


def freeze_objects() -> None:
    """Take the objects of libraries and models out of Python's garbage collection, whose full runs stop all threads.

    A full run takes 80 ms with them, and 0.01 ms without. Objects of replaced models are collected before.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def _run(task: WorkerTask) -> None:
    end = socket.socket(fileno=task.channel)
    await Worker(task, await Channel.open(end)).run()


def main(arguments: list[str]) -> None:
    """Run a worker; its only argument is a `WorkerTask`."""
    configure_server_logs(f"worker {os.getpid()}: ", show_error_texts=False)
    logging.getLogger("ml_platform").setLevel(logging.INFO)
    if len(arguments) != 1:
        raise ConfigurationError(
            f"Expected one argument, a WorkerTask, got {len(arguments)}. Run `ml-platform serve`, which starts workers."
        )
    allow_many_connections()
    task = WorkerTask.from_argument(arguments[0])
    import uvloop

    # After each response the event loop waits this long for a thread that predicts; Python's default is 5 ms.
    sys.setswitchinterval(SWITCH_SECONDS)
    uvloop.run(_run(task))


if __name__ == "__main__":
    main(sys.argv[1:])
