"""Request bodies, read with limits on their size, their duration and their decompressed size."""

import asyncio
import contextlib
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from ml_platform.errors import RequestError, RequestProblem

MAX_BODY = 8 * 2**20
SECONDS_FOR_BODY = 20.0
# Names of content codings (RFC 9110, 8.4.1), and zlib's `wbits` for each.
CODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
ACCEPT_ENCODING = b"gzip, deflate"
# Limits on the work for a small body: codings that were applied one after the other, and members of a gzip file.
MAX_CODINGS, MAX_MEMBERS = 4, 1_000
CHUNK = 64 * 1024
JSON_TYPES = (b"application/json", b"text/json")
BINARY_TYPE = b"application/octet-stream"

Receive = Callable[[], Awaitable[dict[str, Any]]]


def header(scope: dict[str, Any], name: bytes) -> bytes | None:
    """Return the first value of a header; ``None`` if the request does not have it."""
    for key, value in scope["headers"]:
        if key == name:
            return value  # type: ignore[no-any-return]
    return None


async def read_body(
    scope: dict[str, Any], receive: Receive, max_bytes: int = MAX_BODY, *, binary: bool = False
) -> bytes:
    """Read the body of a JSON request, and decompress it.

    Parameters
    ----------
    scope : ASGI scope
    receive : ASGI receive
    max_bytes : int
        Maximum size of the body, also after decompression.
    binary : bool
        True accepts ``application/octet-stream`` too: JSON that binary data follow.

    Raises
    ------
    RequestError
        415 for a content type other than JSON or an unknown coding, 413 for a larger body, 408 for one that takes
        longer than `SECONDS_FOR_BODY`, 400 for one that is not in its coding.
    """
    content_type = header(scope, b"content-type")
    if content_type is not None:
        media_type = content_type.partition(b";")[0].strip().lower()
        if media_type not in JSON_TYPES and not (binary and media_type == BINARY_TYPE):
            raise _make_refusal(415, "must be application/json", "content-type", content_type)
    codings = _read_codings(scope)
    length = header(scope, b"content-length")
    if length is not None and (not length.isdigit() or int(length) > max_bytes):
        raise _make_size_refusal(max_bytes, length)
    parts, size, more = [], 0, True
    # Most bodies arrive with their headers: a timer costs as much as the rest of this function.
    complete = "state" in scope and "complete" in scope["state"]
    try:
        async with contextlib.nullcontext() if complete else asyncio.timeout(SECONDS_FOR_BODY):
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
    for coding in reversed(codings):
        body = _decompress(body, CODINGS[coding], max_bytes)
    return body


def _read_codings(scope: dict[str, Any]) -> list[str]:
    """Return the content codings in the order in which the client applied them, without ``identity``."""
    values = [value for name, value in scope["headers"] if name == b"content-encoding"]
    if not values:
        return []
    names = [name.strip().lower() for name in b",".join(values).decode("latin-1").split(",")]
    codings = [name for name in names if name not in {"", "identity"}]
    unknown = [name for name in codings if name not in CODINGS]
    if unknown or len(codings) > MAX_CODINGS:
        rule = f"must list at most {MAX_CODINGS} of gzip, x-gzip, deflate and identity"
        raise _make_refusal(415, rule, "content-encoding", b", ".join(values))
    return codings


def _decompress(body: bytes, window: int, max_bytes: int) -> bytes:
    """Return decompressed data; gzip data may have several members, one after the other (RFC 1952)."""
    parts, size, place, members = [], 0, 0, 0
    reader = zlib.decompressobj(window)
    while place < len(body):
        if reader.eof:
            members += 1
            if window == CODINGS["deflate"] or members >= MAX_MEMBERS:
                rule = f"must end with its compressed data, of at most {MAX_MEMBERS:,} members for gzip"
                raise _make_refusal(400, rule, "body", None)
            reader = zlib.decompressobj(window)
        chunk = body[place : place + CHUNK]
        try:
            parts.append(reader.decompress(chunk, max_bytes + 1 - size))
        except zlib.error as error:
            raise _make_refusal(400, "must be in the encoding that content-encoding names", "body", None) from error
        size += len(parts[-1])
        if size > max_bytes:
            raise _make_size_refusal(max_bytes, None)
        place += len(chunk) - len(reader.unused_data)
    if not reader.eof:
        raise _make_refusal(400, "must be complete: its compressed data end too early", "body", None)
    return b"".join(parts)


def _make_size_refusal(max_bytes: int, length: bytes | None) -> RequestError:
    return _make_refusal(413, f"must have at most {max_bytes:,} bytes, decompressed", "body", length)


def _make_refusal(status: int, rule: str, field: str | None, value: bytes | None) -> RequestError:
    """Return the error for a request with one problem; of the value at most 100 bytes are quoted."""
    text = None if value is None else value[:100].decode("latin-1")
    return RequestError(status, [RequestProblem(rule=rule, field=field, value=text)])
