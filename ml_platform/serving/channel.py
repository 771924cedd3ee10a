"""What supervisor and worker say to each other: JSON lines over a pair of sockets, which ends with either of them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec

# A worker's counts are some kilobytes; a line that is longer than this is none of ours.
LONGEST = 4 * 2**20

Message = dict[str, Any]


class Channel:
    """One end of the pair.

    Parameters
    ----------
    reader, writer : asyncio streams
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def of(cls, end: socket.socket) -> "Channel":
        """Return the channel over a connected socket."""
        reader, writer = await asyncio.open_unix_connection(sock=end, limit=LONGEST)
        return cls(reader, writer)

    def say(self, message: Mapping[str, Any]) -> None:
        """Send a message; to somebody who is gone it is lost."""
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(message) + b"\n")

    async def heard(self) -> AsyncIterator[Message]:
        """Yield what the other says, until it is gone."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await self._reader.readline():
                yield msgspec.json.decode(line)

    async def flushed(self) -> None:
        """Wait until what was said is on its way."""
        with suppress(ConnectionError):
            await self._writer.drain()

    def close(self) -> None:
        """End the channel."""
        self._writer.close()
