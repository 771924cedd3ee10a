"""Request bodies, read with limits on their size, their duration and their decompressed size."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from ml_platform.errors import RequestError, RequestProblem

MAX_BODY = 16 * 2**20
SECONDS_FOR_BODY = 20.0
# zlib's `wbits` for: detect gzip or zlib by the header.
ANY_HEADER = 47
ENCODINGS = (b"gzip", b"deflate")
JSON_TYPES = (b"application/json", b"text/json")

Receive = Callable[[], Awaitable[dict[str, Any]]]


def header(scope: dict[str, Any], name: bytes) -> bytes | None:
    """Return the first value of a header; ``None`` if the request does not have it."""
    for key, value in scope["headers"]:
        if key == name:
            return value  # type: ignore[no-any-return]
    return None


async def read_body(scope: dict[str, Any], receive: Receive, max_bytes: int = MAX_BODY) -> bytes:
    """Read the body of a JSON request, and decompress it.

    Parameters
    ----------
    scope : ASGI scope
    receive : ASGI receive
    max_bytes : int
        Maximum size of the body, also after decompression.

    Raises
    ------
    RequestError
        415 for a content type other than JSON or an unknown encoding, 413 for a larger body, 408 for one that takes
        longer than `SECONDS_FOR_BODY`, 400 for one that is not in its encoding.
    """
    content_type = header(scope, b"content-type")
    if content_type is not None and content_type.partition(b";")[0].strip().lower() not in JSON_TYPES:
        raise _make_refusal(415, "must be application/json", "content-type", content_type)
    encoding = header(scope, b"content-encoding") or b"identity"
    if encoding not in (*ENCODINGS, b"identity"):
        raise _make_refusal(415, "must be gzip, deflate or identity", "content-encoding", encoding)
    length = header(scope, b"content-length")
    if length is not None and (not length.isdigit() or int(length) > max_bytes):
        raise _make_size_refusal(max_bytes, length)
    parts, size, more = [], 0, True
    try:
        async with asyncio.timeout(SECONDS_FOR_BODY):
            while more and size <= max_bytes:
                message = await receive()
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                more = message.get("more_body", False)
    except TimeoutError as error:
        raise _make_refusal(408, f"the body must be sent within {SECONDS_FOR_BODY:g} seconds", None, None) from error
    if size > max_bytes:
        raise _make_size_refusal(max_bytes, None)
    body: bytes = parts[0] if len(parts) == 1 else b"".join(parts)
    return body if encoding == b"identity" else _decompress(body, max_bytes)


def _decompress(body: bytes, max_bytes: int) -> bytes:
    reader = zlib.decompressobj(ANY_HEADER)
    try:
        data = reader.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise _make_refusal(400, "must be in the encoding that content-encoding names", "body", None) from error
    if len(data) > max_bytes:
        raise _make_size_refusal(max_bytes, None)
    if not reader.eof:
        raise _make_refusal(400, "must be complete: its compressed data end too early", "body", None)
    return data


def _make_size_refusal(max_bytes: int, length: bytes | None) -> RequestError:
    return _make_refusal(413, f"must have at most {max_bytes:,} bytes, decompressed", "body", length)


def _make_refusal(status: int, rule: str, field: str | None, value: bytes | None) -> RequestError:
    """Return the error for a request with one problem; of the value at most 100 bytes are quoted."""
    text = None if value is None else value[:100].decode("latin-1")
    return RequestError(status, [RequestProblem(rule=rule, field=field, value=text)])
