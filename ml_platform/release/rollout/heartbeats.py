"""Signs of life of servers, from their heartbeats; a clock that is set does not change who is alive."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ml_platform.records.traffic import ServerHeartbeat

# Maximum age of a live server's last heartbeat, in seconds. A server sends one every five seconds.
ALIVE = 60.0


@dataclass(frozen=True)
class _LastBeat:
    """A server's last heartbeat: its number, a time at which it was not older, and the last reading; monotonic."""

    number: int
    since: float
    read: float


class HeartbeatWatch:
    """Tells live servers of one model from those that have ended.

    Between two readings of one process, only another number of a server's heartbeat is a sign of life; time is the
    process's monotonic clock. So neither the clock of a server, nor the database's or this host's, has an effect. A
    first reading, or one after a pause longer than `ALIVE`, cannot see a change: it takes the heartbeat's age by the
    database's clock, which wrote the heartbeat's time too. If that clock is set, such a reading is wrong until the
    server's next heartbeat, five seconds later: it then takes a live server for an ended one, never the opposite, as a
    heartbeat from the future counts as old.

    Parameters
    ----------
    clock : callable
        Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, _LastBeat] = {}
        self._reading = threading.Lock()

    def find_live(self, beats: Sequence[ServerHeartbeat]) -> list[ServerHeartbeat]:
        """Return the heartbeats of live servers.

        Parameters
        ----------
        beats : sequence of ServerHeartbeat
            The newest heartbeat of every server, read from the database just now.
        """
        with self._reading:
            at = self._clock()
            self._last = {beat.server: self._follow(beat, at) for beat in beats}
            return [beat for beat in beats if at - self._last[beat.server].since < ALIVE]

    def _follow(self, beat: ServerHeartbeat, at: float) -> _LastBeat:
        last = self._last.get(beat.server)
        if last is None or beat.number is None or at - last.read > ALIVE:
            return _LastBeat(beat.number or 0, at - abs(beat.age or 0.0), at)
        since = last.since if beat.number == last.number else last.read
        return _LastBeat(beat.number, since, at)
