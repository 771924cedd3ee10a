"""HTTP by uvicorn and httptools, with the limits that uvicorn leaves to a proxy: how long a client may take to say what
it wants, and how much it may say before it does.
"""  # noqa: D205 - one sentence

import asyncio
import resource
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# A client that has not sent its headers by then is not going to; connections that wait for nothing are free to others.
SECONDS_FOR_HEADERS = 10.0
SECONDS_IDLE = 30
MOST_HEADER_BYTES = 64 * 1024
BACKLOG = 2_048
SECONDS_TO_FINISH = 10


class BoundedProtocol(HttpToolsProtocol):
    """A connection that is closed when its client is too slow, or says too much, before a request's headers end."""

    _limit: asyncio.TimerHandle | None = None
    _unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        self._limit = self.loop.call_later(SECONDS_FOR_HEADERS, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read, as long as the headers are not too long."""
        if self._limit is not None:
            self._unread += len(data)
            if self._unread > MOST_HEADER_BYTES and self._too_long(data):
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin to wait for the headers of a further request."""
        super().on_message_begin()
        self._unread = max(self._unread, 1)
        if self._limit is None:
            self._limit = self.loop.call_later(SECONDS_FOR_HEADERS, self._too_slow)

    def on_headers_complete(self) -> None:
        """Wait no longer: the body has limits of its own."""
        self._stop_waiting()
        super().on_headers_complete()

    def _stop_waiting(self) -> None:
        self._unread = 0
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _too_slow(self) -> None:
        self._limit = None
        if not self._unread and not self.transport.is_closing():  # it never said a word
            self.transport.close()
            return
        self._refuse(b"408 Request Timeout", b"The headers must be sent within 10 seconds.")

    def _too_long(self, data: bytes) -> bool:
        """Whether the headers do not end within their limit; a body that came along with them does not count."""
        if b"\r\n\r\n" in data:
            return False
        self._refuse(b"431 Request Header Fields Too Large", b"The headers must have at most 65,536 bytes.")
        return True

    def _refuse(self, status: bytes, why: bytes) -> None:
        if self.transport.is_closing():
            return
        head = b"HTTP/1.1 %b\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % (status, len(why)) + why)
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, whose signals belong to the process that runs it."""

    def install_signal_handlers(self) -> None:
        """Install none."""

    def capture_signals(self) -> Any:
        """Capture none."""
        import contextlib

        return contextlib.nullcontext()


def server_of(app: Any) -> Server:
    """Return a server for an ASGI application, with the limits of this module."""
    return Server(
        uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            loop="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=SECONDS_IDLE,
            timeout_graceful_shutdown=SECONDS_TO_FINISH,
        )
    )


def bound(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises
    ------
    OSError
        The port is taken, or the host has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def allow_many_connections() -> None:
    """Let this process have as many connections as the system allows it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
