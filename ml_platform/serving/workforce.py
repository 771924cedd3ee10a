"""The workers of a host: started, listened to, started again when they die, stopped together."""

import asyncio
import logging
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

from ml_platform.fresh import AS_SERVED
from ml_platform.serving.channel import Channel, Message
from ml_platform.serving.counts import Counts, total
from ml_platform.serving.worker import WorkerTask

log = logging.getLogger("ml_platform.serving")

PROGRAM = "ml_platform.serving.worker"
# A worker that dies sooner than this is not started again at once: what kills it would kill it again.
SOON = 5.0
LONGEST_PAUSE = 30.0
SECONDS_TO_STOP = 15.0
SECONDS_FOR_COUNTS = 0.5
# Before a worker has loaded anything it is not waited for.
NOTHING: Mapping[str, Any] = {"revision": 0, "plan": 0, "stable": None, "successor": None, "loaded": {}, "refused": {}}


@dataclass(eq=False)
class Hand:
    """One living worker: its process, its end of the channel, what it last said."""

    number: int
    process: subprocess.Popen[bytes]
    channel: Channel
    started: float
    says: Message = field(default_factory=lambda: dict(NOTHING))
    counts: Counts = field(default_factory=Counts)
    counted: int = 0

    @property
    def pid(self) -> int:
        """Its process's id."""
        return self.process.pid


class Workforce:
    """The workers of one server.

    Parameters
    ----------
    listening : socket
        Bound by the supervisor; every worker accepts from it.
    home : Path
    model, name : str
        The model, and the server's name, of which the workers' are made.
    number : int
        How many workers there are.
    on_death : callable
        Called with a sentence when a worker died that should not have.
    on_ask : callable
        Called with a worker and the number of its question when it asks for the metrics of all.
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
        on_ask: Callable[[Hand, int], None],
    ) -> None:
        self._listening, self._home, self._model, self._name = listening, home, model, name
        self._on_death, self._on_ask = on_death, on_ask
        self._number = number
        self.hands: dict[int, Hand] = {}
        self.restarts = 0
        self._gone = Counts()
        self._changed = asyncio.Condition()
        self._stopping = False
        self._questions = 0
        self.keepers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the workers."""
        self.keepers = [asyncio.create_task(self._keep(number)) for number in range(self._number)]

    async def _keep(self, number: int) -> None:
        """Have one worker, again and again, until all are stopped."""
        pause = 0.0
        while not self._stopping:
            hand = await self._begin(number)
            status = await self._until_it_ends(hand)
            if self._stopping:
                return
            lived = time.monotonic() - hand.started
            pause = min(max(2 * pause, 1.0), LONGEST_PAUSE) if lived < SOON else 0.0
            self.restarts += 1
            again = f"in {pause:g} s" if pause else "at once"
            self._on_death(
                f"worker {number} of {self._model} (process {hand.pid}) ended with status {status} after "
                f"{lived:.0f} s; the others answer, and it is started again {again}"
            )
            await asyncio.sleep(pause)

    async def _begin(self, number: int) -> Hand:
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
                # An interrupt at the terminal reaches the supervisor, which lets them answer what they accepted.
                start_new_session=True,
            )
        hand = Hand(number, process, await Channel.of(ours), time.monotonic())
        self.hands[number] = hand
        return hand

    async def _until_it_ends(self, hand: Hand) -> int:
        async for message in hand.channel.heard():
            await self._heard(hand, message)
        hand.channel.close()
        status = await asyncio.to_thread(hand.process.wait)
        self._gone.add(hand.counts.ended())
        async with self._changed:
            self.hands.pop(hand.number, None)
            self._changed.notify_all()
        return status

    async def _heard(self, hand: Hand, message: Message) -> None:
        if "ask" in message:
            self._on_ask(hand, message["ask"])
            return
        if "counts" in message:
            hand.counts = msgspec.convert(message["counts"], Counts, strict=False)
            hand.counted = max(hand.counted, message["asked"] or 0)
        else:
            hand.says = message
        async with self._changed:
            self._changed.notify_all()

    # What the workers say together

    def nudge(self) -> None:
        """Let every worker look at its state now."""
        for hand in self.hands.values():
            hand.channel.say({"look": True})

    async def obeyed(self, revision: int, seconds: float) -> bool:
        """Wait until every worker obeys a state; return whether all do in time, and there is one."""
        return await self._until(lambda hand: hand.says["revision"] >= revision, seconds)

    async def counts(self) -> Counts:
        """Return what all workers counted, those that are gone too, as of this moment."""
        self._questions += 1
        question = self._questions
        for hand in self.hands.values():
            hand.channel.say({"count": question})
        await self._until(lambda hand: hand.counted >= question, SECONDS_FOR_COUNTS)
        return self.counted

    @property
    def counted(self) -> Counts:
        """What all workers counted, as they last said."""
        return total([self._gone, *(hand.counts for hand in self.hands.values())])

    async def _until(self, condition: Callable[[Hand], bool], seconds: float) -> bool:
        def all_of_them() -> bool:
            return bool(self.hands) and all(condition(hand) for hand in self.hands.values())

        try:
            async with asyncio.timeout(seconds), self._changed:
                return await self._changed.wait_for(all_of_them)
        except TimeoutError:
            return False

    # The end

    async def stop(self) -> None:
        """Let every worker answer what it has accepted, and end; what does not end in time is killed."""
        self._stopping = True
        for hand in self.hands.values():
            hand.process.send_signal(signal.SIGTERM)
        # A worker that is about to be started again is not.
        for keeper in self.keepers if not self.hands else ():
            keeper.cancel()
        _, late = await asyncio.wait(self.keepers, timeout=SECONDS_TO_STOP) if self.keepers else ((), ())
        for hand in [*self.hands.values()] if late else ():
            log.error("worker %s did not end in time and is killed", hand.number)
            hand.process.kill()
        for keeper in late:
            await asyncio.wait([keeper], timeout=1.0)
            keeper.cancel()
