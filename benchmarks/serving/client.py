"""Clients that ask as fast as they are answered, each on a connection of its own that stays open.

Usage: ``python client.py PORT CLIENTS SECONDS BODIES``, where BODIES is a JSON file of request bodies; one JSON object
goes to standard output. Answers are split off by their length in a protocol of uvloop's, which costs a client about
20 microseconds a request: less than any server measured here.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import uvloop


class Client(asyncio.Protocol):
    """Sends a body, waits for its answer, sends the next."""

    def __init__(self, requests: list[bytes], first: int, until: float, warm: float) -> None:
        self.requests, self.place, self.until, self.warm = requests, first, until, warm
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.seconds: list[float] = []
        self.failed = 0
        self.count = 0
        self.buffer = b""
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to ask."""
        self.transport = transport
        self.send()

    def send(self) -> None:
        """Send the next request, in turn."""
        self.place += 1
        self.sent = time.perf_counter()
        self.transport.write(self.requests[self.place % len(self.requests)])  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Note an answer when the whole of it is there, and ask again until the time is over."""
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        now = time.perf_counter()
        self.count += 1
        if self.sent >= self.warm:
            self.seconds.append(now - self.sent)
            self.failed += not head.startswith(b"HTTP/1.1 200")
        self.buffer = b""
        if now < self.until:
            self.send()
        else:
            self.transport.close()
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the server hung up, where it was not asked to."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionResetError("the server closed the connection"))


def build_request(body: str) -> bytes:
    data = body.encode()
    head = "POST /invocations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


async def measure(port: int, clients: int, seconds: float, bodies: list[str]) -> dict[str, float]:
    """Return requests a second, percentiles of the latency in milliseconds, and answers other than 200."""
    requests = [build_request(body) for body in bodies]
    loop, start = asyncio.get_running_loop(), time.perf_counter()
    warm = start + min(1.0, seconds / 4)  # what comes before is not counted
    made = [Client(requests, number * 7, start + seconds, warm) for number in range(clients)]
    for one in made:
        await loop.create_connection(lambda one=one: one, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.gather(*(one.done for one in made))
    took = time.perf_counter() - warm
    times = sorted(value for one in made for value in one.seconds)
    return {
        "requests_a_second": len(times) / took,
        "p50_ms": times[len(times) // 2] * 1e3,
        "p99_ms": times[int(len(times) * 0.99)] * 1e3,
        "max_ms": times[-1] * 1e3,
        "requests": len(times),
        "all_requests": sum(one.count for one in made),
        "failed": sum(one.failed for one in made),
    }


if __name__ == "__main__":
    port, clients, seconds, file = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(measure(int(port), int(clients), float(seconds), json.loads(Path(file).read_text())))
    print(json.dumps(found))
