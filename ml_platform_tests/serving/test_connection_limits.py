"""Tests of the limits on a connection, with a real uvicorn server in this process."""

import asyncio
import socket
from typing import Any

import pytest

from ml_platform.serving.http import connection_limits
from ml_platform.serving.http.connection_limits import bound, make_server


async def hello(_: Any, __: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


async def respond(scope: Any, receive: Any, _: Any) -> None:
    """Answer in one packet, with the length of the body and whether it was complete; "no" asks to close."""
    complete = "complete" in scope["state"]
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    answer = b"%d %b" % (len(body), b"complete" if complete else b"in parts")
    headers = [(b"content-length", str(len(answer)).encode()), *([(b"connection", b"close")] if body == b"no" else [])]
    await scope["state"]["respond"](200, headers, answer)


async def exchange(*parts: bytes, pause: float = 0.0, app: Any = hello) -> bytes:
    """Send parts with pauses in between, and return all received bytes until the server closes the connection."""
    listening = bound("127.0.0.1", 0)
    server = make_server(app)
    serving = asyncio.create_task(server.serve([listening]))
    reader, writer = await asyncio.open_connection(*listening.getsockname())
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(pause)
    async with asyncio.timeout(5):
        received = await reader.read()
    writer.close()
    server.should_exit = True
    await serving
    return received


async def read_nodelay() -> int:
    """Return TCP_NODELAY of a connection that asyncio's server accepted."""
    listening, accepted = bound("127.0.0.1", 0), asyncio.Queue[asyncio.StreamWriter]()
    async with await asyncio.start_server(lambda _, writer: accepted.put_nowait(writer), sock=listening):
        _, client = await asyncio.open_connection(*listening.getsockname())
        writer = await accepted.get()
        nodelay: int = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.close()
        writer.close()
    return nodelay


def test_accepted_connection_sends_answers_at_once() -> None:
    assert asyncio.run(read_nodelay()) == 1


def test_host_that_cannot_be_encoded_is_refused() -> None:
    for host in ("ü" * 100, "\udcff", "a\x00b"):
        with pytest.raises(OSError, match=r"not a host name|Name or service|not known|\[Errno"):
            bound(host, 0)


@pytest.mark.fault("R4")
def test_headers_that_take_too_long_get_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "SECONDS_FOR_HEADERS", 0.2)
    assert asyncio.run(exchange(b"GET / HTTP/1.1\r\nhost")).startswith(b"HTTP/1.1 408")


@pytest.mark.fault("R4")
def test_silent_connection_is_closed_without_response(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "SECONDS_FOR_HEADERS", 0.2)
    assert asyncio.run(exchange(b"")) == b""


@pytest.mark.fault("R4")
def test_second_request_with_slow_headers_gets_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "SECONDS_FOR_HEADERS", 0.3)
    received = asyncio.run(exchange(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"GET / HTT", pause=0.1))
    assert received.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in received


def test_pause_between_requests_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "SECONDS_FOR_HEADERS", 0.1)
    request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    closing = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    assert asyncio.run(exchange(request, closing, pause=0.3)).count(b"HTTP/1.1 200") == 2


@pytest.mark.fault("R2")
def test_headers_that_are_too_large_get_431() -> None:
    lines = b"x: y\r\n" * (connection_limits.MAX_HEADER_BYTES // 6 + 1)
    assert asyncio.run(exchange(b"GET / HTTP/1.1\r\n" + lines)).startswith(b"HTTP/1.1 431")


POST = b"POST / HTTP/1.1\r\nhost: x\r\n"
LAST = POST + b"connection: close\r\n"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([LAST + b"content-length: 2\r\n\r\nhi"], [b"connection: close\r\n\r\n2 complete"]),
        ([LAST + b"content-length: 2\r\n\r\nh", b"i"], [b"connection: close\r\n\r\n2 in parts"]),
        ([LAST + b"content-length: 0\r\n\r\n"], [b"connection: close\r\n\r\n0 complete"]),
        ([LAST + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"], [b"close\r\n\r\n2 complete"]),
        ([POST + b"content-length: 2\r\n\r\nno"], [b"connection: close\r\n\r\n2 complete"]),
        ([b"POST / HTTP/1.0\r\ncontent-length: 2\r\n\r\nhi"], [b"connection: close\r\n\r\n2 complete"]),
        (
            [POST + b"content-length: 1\r\n\r\na" + POST + b"content-length: 2\r\n\r\nbb" + LAST + b"\r\n"],
            [b"length: 10\r\n\r\n1 complete", b"length: 10\r\n\r\n2 complete", b"close\r\n\r\n0 complete"],
        ),
        (
            [POST + b"expect: 100-continue\r\nconnection: close\r\ncontent-length: 2\r\n\r\n", b"hi"],
            [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n", b"close\r\n\r\n2 in parts"],
        ),
    ],
    ids=["whole", "in parts", "empty", "chunked", "closed by the server", "HTTP 1.0", "pipelined", "100"],
)
def test_whole_response_is_sent_in_one_packet(parts: list[bytes], expected: list[bytes]) -> None:
    received = asyncio.run(exchange(*parts, pause=0.1, app=respond))

    places = [received.find(part) for part in expected]
    assert -1 not in places
    assert places == sorted(places)
    assert received.count(b"HTTP/1.1 200 OK") == max(1, received.count(b"complete") + received.count(b"in parts"))
