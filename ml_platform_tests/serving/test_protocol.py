"""The limits on a connection, on a real uvicorn in this process."""

import asyncio
from typing import Any

import pytest

from ml_platform.serving import protocol
from ml_platform.serving.protocol import bound, server_of


async def hello(_: Any, __: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


async def answered(*parts: bytes, then: float = 0.0) -> bytes:
    """Return all that a server answers to what is sent in parts, until it closes the connection."""
    listening = bound("127.0.0.1", 0)
    server = server_of(hello)
    serving = asyncio.create_task(server.serve([listening]))
    reader, writer = await asyncio.open_connection(*listening.getsockname())
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(then)
    async with asyncio.timeout(5):
        said = await reader.read()
    writer.close()
    server.should_exit = True
    await serving
    return said


@pytest.mark.fault("R4")
def test_a_client_that_does_not_end_its_headers_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SECONDS_FOR_HEADERS", 0.2)
    assert asyncio.run(answered(b"GET / HTTP/1.1\r\nhost")).startswith(b"HTTP/1.1 408")


@pytest.mark.fault("R4")
def test_a_client_that_says_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SECONDS_FOR_HEADERS", 0.2)
    assert asyncio.run(answered(b"")) == b""


@pytest.mark.fault("R4")
def test_a_second_request_on_a_connection_must_end_its_headers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SECONDS_FOR_HEADERS", 0.3)
    said = asyncio.run(answered(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"GET / HTT", then=0.1))
    assert said.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in said


def test_a_pause_between_two_requests_is_no_slow_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SECONDS_FOR_HEADERS", 0.1)
    request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    closing = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    assert asyncio.run(answered(request, closing, then=0.3)).count(b"HTTP/1.1 200") == 2


@pytest.mark.fault("R2")
def test_headers_that_are_too_long_are_refused() -> None:
    lines = b"x: y\r\n" * (protocol.MOST_HEADER_BYTES // 6 + 1)
    assert asyncio.run(answered(b"GET / HTTP/1.1\r\n" + lines)).startswith(b"HTTP/1.1 431")
