"""The channel between supervisor and worker: JSON lines over a socket pair, which closes when either process ends."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec

# A worker's counts take some kilobytes; a longer line is not one of this protocol.
MAX_LINE_BYTES = 4 * 2**20

Message = dict[str, Any]


class Channel:
    """One end of the channel.

    Parameters
    ----------
    reader, writer : asyncio streams
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, end: socket.socket) -> "Channel":
        """Open a channel over a connected socket."""
        reader, writer = await asyncio.open_unix_connection(sock=end, limit=MAX_LINE_BYTES)
        return cls(reader, writer)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; it is lost if the other process has ended."""
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(message) + b"\n")

    async def messages(self) -> AsyncIterator[Message]:
        """Yield the other process's messages until it ends."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await self._reader.readline():
                yield msgspec.json.decode(line)

    async def flush(self) -> None:
        """Wait until the operating system has accepted the messages sent so far."""
        with suppress(ConnectionError):
            await self._writer.drain()

    def close(self) -> None:
        """Close the channel."""
        self._writer.close()
