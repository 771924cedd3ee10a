"""A webhook server: MLflow reports a staged version, and GitHub is asked to promote it.

A webhook may be lost; `promote.yml` can always be started by hand. The server uses only the model's name and the
version's number, and only with a valid signature: the workflow tests that version again and asks for an approval.
"""

import base64
import contextlib
import hashlib
import hmac
import json
import logging
import re
import socket
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ml_platform.errors import ConfigurationError, RefusedWebhookError, RemoteServiceError
from ml_platform.model_spec import MODEL_NAME
from ml_platform.settings import Settings
from ml_platform.system import http_client

log = logging.getLogger("ml_platform")

PATH = "/mlflow"
EVENT_TYPE = "ml-platform-promote"
# Maximum age of a message in seconds. MLflow signs id, time and body, as Standard Webhooks does: an older message may
# be a replay, a newer one comes from a wrong clock.
WINDOW = 300
# MLflow's messages have a few hundred bytes. A client that takes longer to send one only occupies the connection.
MAX_BYTES = 64 * 1024
SECONDS = 10
REMEMBERED = 10_000  # ids of forwarded messages
MAX_CONNECTIONS = 64
VERSION = re.compile(r"[1-9][0-9]{0,8}")
DELIVERY = re.compile(r"[A-Za-z0-9._-]{1,128}")
REPOSITORY = re.compile(r"[A-Za-z0-9._-]{1,100}/[A-Za-z0-9._-]{1,100}")
STAGING = "staging"


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A version that waits for its promotion: the only content of a message that is used."""

    model: str
    version: int


@dataclass(kw_only=True)
class Receiver:
    """Verifies and forwards messages, without the network.

    Parameters
    ----------
    secret : bytes
        Key of MLflow's signatures.
    forward : callable
        Called with a waiting version; raises `RemoteServiceError` if it cannot be forwarded.
    clock : callable
        Returns the seconds since 1970.
    """

    secret: bytes = field(repr=False)
    forward: Callable[[Waiting], None]
    clock: Callable[[], float] = time.time
    _done: OrderedDict[str, None] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def receive(self, headers: Mapping[str, str], body: bytes) -> Waiting | None:
        """Verify a message and forward its version once, even if the message is received again.

        Parameters
        ----------
        headers : mapping
            Headers of the request, by lower-case name.
        body : bytes

        Returns
        -------
        Waiting or None
            The forwarded version; ``None`` for another event, or a message that was forwarded before.

        Raises
        ------
        RefusedWebhookError
            The signature is invalid, the message is too old or too new, or its content is malformed.
        RemoteServiceError
            It could not be forwarded; MLflow may send it again.
        """
        delivery = self._verify(headers, body)
        waiting = _parse(body)
        if waiting is None:
            return None
        # With a lock: the same message on two connections is forwarded once.
        with self._lock:
            if delivery in self._done:
                return None
            self.forward(waiting)
            self._done[delivery] = None
            while len(self._done) > REMEMBERED:
                self._done.popitem(last=False)
        return waiting

    def _verify(self, headers: Mapping[str, str], body: bytes) -> str:
        """Check a message's signature and age before its content is parsed; return its delivery id."""
        delivery, sent = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
        signed = f"{delivery}.{sent}.".encode() + body
        expected = hmac.new(self.secret, signed, hashlib.sha256).digest()
        signatures = headers.get("x-mlflow-signature", "").split(" ")
        # There are several while a secret is replaced. All are compared, in constant time.
        matches = [hmac.compare_digest(expected, _decode(signature)) for signature in signatures]
        if not any(matches) or not DELIVERY.fullmatch(delivery):
            raise RefusedWebhookError("The message is not signed with the webhook's secret.")
        if not re.fullmatch(r"[0-9]{1,12}", sent) or abs(self.clock() - int(sent)) > WINDOW:
            raise RefusedWebhookError(f"The message was not sent within the last {WINDOW} seconds.")
        return delivery


def _decode(signature: str) -> bytes:
    version, _, text = signature.partition(",")
    try:
        return base64.b64decode(text, validate=True) if version == "v1" else b""
    except ValueError:  # not ASCII, or not base64
        return b""


def _parse(body: bytes) -> Waiting | None:
    """Return the version that got the alias ``staging``; ``None`` for any other event."""
    try:
        message = json.loads(body)
        event, data = (message["entity"], message["action"]), message["data"]
        if event != ("model_version_alias", "created") or data["alias"] != STAGING:
            return None
        model, version = data["name"], str(data["version"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefusedWebhookError("The message is not a webhook of MLflow.") from error
    if not (isinstance(model, str) and MODEL_NAME.fullmatch(model) and VERSION.fullmatch(version)):
        raise RefusedWebhookError("The message has no valid model name and version number.")
    return Waiting(model=model, version=int(version))


def to_github(settings: Settings) -> Callable[[Waiting], None]:
    """Return a function that starts a promotion on GitHub: a `repository_dispatch` with a model and a version.

    Raises
    ------
    ConfigurationError
        The repository or the token is missing, or the API's URL is not an HTTP URL.
    """
    repository, token = settings.github_repository, settings.github_token
    if token is None or not REPOSITORY.fullmatch(repository):
        raise ConfigurationError(
            "ML_PLATFORM_GITHUB_REPOSITORY must be owner/name, and ML_PLATFORM_GITHUB_TOKEN a token that may write its "
            f"contents. Got {repository!r} and {'a' if token else 'no'} token."
        )
    url, secret = f"{settings.github_api.rstrip('/')}/repos/{repository}/dispatches", token.get_secret_value()
    http_client.require_address(url)

    def forward(waiting: Waiting) -> None:
        payload = {"model": waiting.model, "version": waiting.version}
        http_client.post(url, secret, {"event_type": EVENT_TYPE, "client_payload": payload})

    return forward


def receiver(settings: Settings) -> Receiver:
    """Return the receiver for these settings.

    Raises
    ------
    ConfigurationError
        A secret is missing or too short.
    """
    secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else ""
    if len(secret) < 16:
        raise ConfigurationError(
            "ML_PLATFORM_WEBHOOK_SECRET must be the secret of MLflow's webhook, with at least 16 characters. Got "
            f"{len(secret)} characters."
        )
    return Receiver(secret=secret.encode(), forward=to_github(settings))


class Server(ThreadingHTTPServer):
    """HTTP server of a receiver, with a limited number of connections."""

    request_queue_size = 64

    def __init__(self, address: tuple[str, int], receiver: Receiver) -> None:
        self.receiver = receiver
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection on a thread; close it if `MAX_CONNECTIONS` are open."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with contextlib.ExitStack() as unstarted:
            unstarted.callback(self._places.release)
            super().process_request(request, client_address)
            unstarted.pop_all()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a request that must arrive within `SECONDS`, and release its place."""
        timeout = threading.Timer(SECONDS, _stop_reading, [request])
        try:
            timeout.start()
            super().process_request_thread(request, client_address)
        finally:
            timeout.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log a broken connection: the client may close it at any time."""
        log.warning("the connection from %s failed: %r", client_address[0], sys.exception())


def _stop_reading(request: socket.socket) -> None:
    """Close a connection for reading; a response can still be written."""
    with contextlib.suppress(OSError):  # already closed
        request.shutdown(socket.SHUT_RD)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "ml-platform", ""

    def do_GET(self) -> None:
        self._respond(HTTPStatus.OK if self.path == "/health" else HTTPStatus.NOT_FOUND, "")

    def do_POST(self) -> None:
        self._respond(*(self._receive() if self.path == PATH else (HTTPStatus.NOT_FOUND, "")))

    def _receive(self) -> tuple[HTTPStatus, str]:
        size = self.headers.get("Content-Length", "")
        if not size.isascii() or not size.isdigit() or "Transfer-Encoding" in self.headers:
            return HTTPStatus.LENGTH_REQUIRED, "The request must have a Content-Length."
        if len(size) > 9 or int(size) > MAX_BYTES:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The request must have at most {MAX_BYTES:,} bytes."
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            waiting = self.server.receiver.receive(headers, self.rfile.read(int(size)))
        except RefusedWebhookError as error:
            log.warning("refused a webhook from %s: %s", self.client_address[0], error)
            return HTTPStatus.FORBIDDEN, str(error)
        except RemoteServiceError as error:
            log.warning("a webhook was not forwarded: %s", error)
            return HTTPStatus.BAD_GATEWAY, "The message could not be forwarded. Send it again."
        if waiting is None:
            return HTTPStatus.OK, "nothing to do"
        log.info("requested the promotion of version %s of %s", waiting.version, waiting.model)
        return HTTPStatus.ACCEPTED, "forwarded"

    def _respond(self, status: HTTPStatus, message: str) -> None:
        body = json.dumps({"said": message}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        # The unread rest of a refused body must not be parsed as the next request.
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing for each request: refusals and promotions have log lines of their own."""
