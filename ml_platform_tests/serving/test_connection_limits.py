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


async def exchange(*parts: bytes, pause: float = 0.0) -> bytes:
    """Send parts with pauses in between, and return all received bytes until the server closes the connection."""
    listening = bound("127.0.0.1", 0)
    server = make_server(hello)
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
