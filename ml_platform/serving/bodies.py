"""Bodies of requests, read with limits on their size, their time and what they decompress to."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from ml_platform.errors import RequestError, RequestProblem

MOST_BODY = 16 * 2**20
SECONDS_FOR_BODY = 20.0
# zlib's word for: find out by its header whether it is gzip or zlib.
ANY_HEADER = 47
ENCODINGS = (b"gzip", b"deflate")

Receive = Callable[[], Awaitable[dict[str, Any]]]


def header(scope: dict[str, Any], name: bytes) -> bytes | None:
    """Return the first value of a header; ``None`` where there is none."""
    for key, value in scope["headers"]:
        if key == name:
            return value  # type: ignore[no-any-return]
    return None


async def read_body(scope: dict[str, Any], receive: Receive, most: int = MOST_BODY) -> bytes:
    """Return the body of a request, decompressed.

    Parameters
    ----------
    scope : ASGI scope
    receive : ASGI receive
    most : int
        Bytes that it may have, also once it is decompressed.

    Raises
    ------
    RequestError
        413 if it has more, 408 if it does not come, 415 for an encoding that is not known, 400 if it is not in it.
    """
    encoding = header(scope, b"content-encoding") or b"identity"
    if encoding not in (*ENCODINGS, b"identity"):
        raise _refused(415, "must be sent as gzip, deflate or as it is", "content-encoding", encoding)
    length = header(scope, b"content-length")
    if length is not None and (not length.isdigit() or int(length) > most):
        raise _too_large(most, length.decode("latin-1"))
    try:
        async with asyncio.timeout(SECONDS_FOR_BODY):
            body = await _received(receive, most)
    except TimeoutError as error:
        raise _refused(408, f"the body must be sent within {SECONDS_FOR_BODY:g} seconds", None, None) from error
    return body if encoding == b"identity" else _decompressed(body, most)


async def _received(receive: Receive, most: int) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        return _within(body, most)
    parts, size = [body], len(body)
    while message.get("more_body"):
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        _within(parts[-1], most - size + len(parts[-1]))
    return b"".join(parts)


def _within(body: bytes, most: int) -> bytes:
    if len(body) > most:
        raise _too_large(most, None)
    return body


def _decompressed(body: bytes, most: int) -> bytes:
    reader = zlib.decompressobj(ANY_HEADER)
    try:
        data = reader.decompress(body, most + 1)
    except zlib.error as error:
        raise _refused(400, "must be in the encoding that content-encoding names", "body", None) from error
    if len(data) > most:
        raise _too_large(most, None)
    if not reader.eof:
        raise _refused(400, "must be whole: its compressed data end too early", "body", None)
    return data


def _too_large(most: int, length: str | None) -> RequestError:
    problem = RequestProblem(rule=f"must have at most {most:,} bytes, decompressed", field="body", value=length)
    return RequestError(413, [problem])


def _refused(status: int, rule: str, field: str | None, value: bytes | None) -> RequestError:
    shown = None if value is None else value[:100].decode("latin-1")
    return RequestError(status, [RequestProblem(rule=rule, field=field, value=shown)])
