"""An HTTP server of uvicorn and httptools with limits on the duration and the size of a request's headers.

uvicorn leaves both limits to a proxy. For the routes of predictions, the scope's ``state`` has two more entries:
``complete`` is true if the whole body has arrived, and ``respond`` sends a whole response in one packet.
"""

import asyncio
import contextlib
import errno
import logging
import resource
import socket
from collections.abc import Iterable
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

# Clients send their headers at once; a connection without a request must not occupy the server.
SECONDS_FOR_HEADERS = 10.0
SECONDS_IDLE = 30
MAX_HEADER_BYTES = 64 * 1024
BACKLOG = 2_048
SECONDS_TO_FINISH = 10

# uvicorn writes a warning for each invalid request: any client could fill the disk. Its errors are logged.
log = logging.getLogger("uvicorn.error.connections")
log.setLevel(logging.ERROR)


class BoundedProtocol(HttpToolsProtocol):
    """A connection that is closed if a request's headers take too long or are too large."""

    _limit: asyncio.TimerHandle | None = None
    _unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first request's headers."""
        super().connection_made(transport)
        self.logger = log
        self._limit = self.loop.call_later(SECONDS_FOR_HEADERS, self._time_out)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received data, unless the headers are too large."""
        if self._limit is not None:
            self._unread += len(data)
            # The part of a body that arrives with the end of the headers does not count.
            if self._unread > MAX_HEADER_BYTES and b"\r\n\r\n" not in data:
                self._refuse(b"431 Request Header Fields Too Large", b"The headers must have at most 65,536 bytes.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Start the timer of a further request's headers."""
        super().on_message_begin()
        self._unread = max(self._unread, 1)
        if self._limit is None:
            self._limit = self.loop.call_later(SECONDS_FOR_HEADERS, self._time_out)

    def on_headers_complete(self) -> None:
        """Stop the timer: the body has its own limits, in `request_body`."""
        self._stop_timer()
        super().on_headers_complete()
        self.scope["state"]["respond"] = partial(self._respond, self.cycle)

    def on_message_complete(self) -> None:
        """Note in the scope that the body is complete."""
        self.scope["state"]["complete"] = True
        super().on_message_complete()

    async def _respond(
        self, cycle: RequestResponseCycle, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> None:
        """Send a whole response, as `RequestResponseCycle.send` does in two parts.

        The headers must be valid, and have a content-length.
        """
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        lines = [STATUS_LINE[status], *(b"%b: %b\r\n" % header for header in headers)]
        if b"connection: close\r\n" in lines:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        cycle.transport.write(b"%b\r\n%b" % (b"".join(lines), body))
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    def _stop_timer(self) -> None:
        self._unread = 0
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _time_out(self) -> None:
        self._limit = None
        if not self._unread and not self.transport.is_closing():  # no request has begun
            self.transport.close()
            return
        self._refuse(b"408 Request Timeout", b"The headers must be sent within 10 seconds.")

    def _refuse(self, status: bytes, reason: bytes) -> None:
        if self.transport.is_closing():
            return
        head = b"HTTP/1.1 %b\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % (status, len(reason)) + reason)
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server without signal handlers: the process that runs it handles signals."""

    def install_signal_handlers(self) -> None:
        """Install no handlers."""

    def capture_signals(self) -> Any:
        """Capture no signals."""
        return contextlib.nullcontext()


def make_server(app: Any) -> Server:
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
    """Return a listening socket that is bound to a host and port.

    Raises
    ------
    OSError
        The port is in use, or the host does not have this address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends answers at once, as uvloop does; otherwise each waits 40 ms for an
    # acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except (OSError, UnicodeError, TypeError) as error:
        listening.close()
        if isinstance(error, OSError):
            raise
        # The host cannot be encoded: Python raises another error for each reason.
        raise OSError(errno.EINVAL, "this is not a host name") from error
    return listening


def allow_many_connections() -> None:
    """Raise this process's limit of open files to the maximum that the system allows."""
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))
