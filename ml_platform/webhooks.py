"""A small receiver: MLflow says that a version waits, and GitHub is asked for its promotion.

What MLflow sends is a nudge that may be lost; `promote.yml` can always be started by hand. Nothing of a
message is believed but a model's name and a version's number, and those only under a valid signature: the workflow
tests that very version again and asks a person.
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

from ml_platform import outside
from ml_platform.errors import ConfigurationError, OutsideError, RefusedWebhookError
from ml_platform.model_spec import MODEL_NAME
from ml_platform.settings import Settings

log = logging.getLogger("ml_platform")

PATH = "/mlflow"
EVENT_TYPE = "ml-platform-promote"
# MLflow signs id, time and body, as Standard Webhooks does: a message that is older, or newer, was sent before or is
# signed by a clock that is wrong.
WINDOW = 300
# A message of MLflow's has some hundred bytes; who takes longer to send all of it is somebody who holds the connection.
MOST_BYTES = 64 * 1024
SECONDS = 10
REMEMBERED = 10_000
MOST_CONNECTIONS = 64
VERSION = re.compile(r"[1-9][0-9]{0,8}")
DELIVERY = re.compile(r"[A-Za-z0-9._-]{1,128}")
REPOSITORY = re.compile(r"[A-Za-z0-9._-]{1,100}/[A-Za-z0-9._-]{1,100}")
STAGING = "staging"


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A version that waits for its promotion: all that is taken from a message."""

    model: str
    version: int


@dataclass(kw_only=True)
class Receiver:
    """What is done with a message, without the network around it.

    Parameters
    ----------
    secret : bytes
        What MLflow signs with.
    forward : callable
        Takes a version that waits; raises `OutsideError` where it could not be handed on.
    clock : callable
        Returns the seconds since 1970.
    """

    secret: bytes = field(repr=False)
    forward: Callable[[Waiting], None]
    clock: Callable[[], float] = time.time
    _done: OrderedDict[str, None] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def receive(self, headers: Mapping[str, str], body: bytes) -> Waiting | None:
        """Verify a message and hand on what it says; a message that came before is not handed on again.

        Parameters
        ----------
        headers : mapping
            Those of the request, by their names in small letters.
        body : bytes

        Returns
        -------
        Waiting or None
            What was handed on; ``None`` for a message of another event, or one that came before.

        Raises
        ------
        RefusedWebhookError
            It is not signed with the secret, too old or too new, or not of the form that MLflow sends.
        OutsideError
            It could not be handed on: MLflow may send it again.
        """
        delivery = self._verified(headers, body)
        waiting = _waiting(body)
        if waiting is None:
            return None
        # One at a time: the same message on two connections is handed on once.
        with self._lock:
            if delivery in self._done:
                return None
            self.forward(waiting)
            self._done[delivery] = None
            while len(self._done) > REMEMBERED:
                self._done.popitem(last=False)
        return waiting

    def _verified(self, headers: Mapping[str, str], body: bytes) -> str:
        """Return the message's own number; nothing else of it was looked at before its signature."""
        delivery, sent = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
        signed = f"{delivery}.{sent}.".encode() + body
        right = hmac.new(self.secret, signed, hashlib.sha256).digest()
        given = headers.get("x-mlflow-signature", "").split(" ")
        # Several may be given while a secret is replaced; each is compared in full.
        matches = [hmac.compare_digest(right, _decoded(signature)) for signature in given]
        if not any(matches) or not DELIVERY.fullmatch(delivery):
            raise RefusedWebhookError("It is not signed with the secret that this receiver and MLflow share.")
        if not re.fullmatch(r"[0-9]{1,12}", sent) or abs(self.clock() - int(sent)) > WINDOW:
            raise RefusedWebhookError(f"It was not sent within the last {WINDOW} seconds.")
        return delivery


def _decoded(signature: str) -> bytes:
    version, _, text = signature.partition(",")
    try:
        return base64.b64decode(text, validate=True) if version == "v1" else b""
    except ValueError:  # it is neither ASCII nor base64
        return b""


def _waiting(body: bytes) -> Waiting | None:
    """Return the version of which a message says that it got the alias ``staging``; ``None`` for any other event."""
    try:
        said = json.loads(body)
        event, data = (said["entity"], said["action"]), said["data"]
        if event != ("model_version_alias", "created") or data["alias"] != STAGING:
            return None
        model, version = data["name"], str(data["version"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefusedWebhookError("It is not of the form that MLflow sends.") from error
    if not (isinstance(model, str) and MODEL_NAME.fullmatch(model) and VERSION.fullmatch(version)):
        raise RefusedWebhookError("It names no model and version of this platform.")
    return Waiting(model=model, version=int(version))


def to_github(settings: Settings) -> Callable[[Waiting], None]:
    """Return what asks GitHub for a promotion: a `repository_dispatch` with a model and a version, and nothing else.

    Raises
    ------
    ConfigurationError
        The repository or the token is missing, or the API's address is none of the web.
    """
    repository, token = settings.github_repository, settings.github_token
    if token is None or not REPOSITORY.fullmatch(repository):
        raise ConfigurationError(
            "ML_PLATFORM_GITHUB_REPOSITORY must be owner/name and ML_PLATFORM_GITHUB_TOKEN a token that may write its "
            f"contents. Got {repository!r} and {'a' if token else 'no'} token instead."
        )
    url, secret = f"{settings.github_api.rstrip('/')}/repos/{repository}/dispatches", token.get_secret_value()
    outside.require_address(url)

    def forward(waiting: Waiting) -> None:
        payload = {"model": waiting.model, "version": waiting.version}
        outside.post(url, secret, {"event_type": EVENT_TYPE, "client_payload": payload})

    return forward


def receiver(settings: Settings) -> Receiver:
    """Return the receiver that the environment describes.

    Raises
    ------
    ConfigurationError
        A secret is missing.
    """
    secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else ""
    if len(secret) < 16:
        raise ConfigurationError(
            "ML_PLATFORM_WEBHOOK_SECRET must be the secret of MLflow's webhook, of at least 16 characters. Its value "
            "is not shown."
        )
    return Receiver(secret=secret.encode(), forward=to_github(settings))


class Server(ThreadingHTTPServer):
    """The receiver on a port."""

    request_queue_size = 64

    def __init__(self, address: tuple[str, int], receiver: Receiver) -> None:
        self.receiver = receiver
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a thread; whoever comes when all places are taken is sent away, and may come again."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with contextlib.ExitStack() as unstarted:
            unstarted.callback(self._places.release)
            super().process_request(request, client_address)
            unstarted.pop_all()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Give the place back, whatever came of the request; what was not sent in time is not waited for."""
        late = threading.Timer(SECONDS, _hear_no_more, [request])
        try:
            late.start()
            super().process_request_thread(request, client_address)
        finally:
            late.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Say that a connection broke: whoever is on the other end may close it at any time."""
        log.warning("a connection of %s broke: %r", client_address[0], sys.exception())


def _hear_no_more(request: socket.socket) -> None:
    """End what is read of a connection; an answer can still be written."""
    with contextlib.suppress(OSError):  # it is closed already
        request.shutdown(socket.SHUT_RD)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "ml-platform", ""

    def do_GET(self) -> None:
        self._answer(HTTPStatus.OK if self.path == "/health" else HTTPStatus.NOT_FOUND, "")

    def do_POST(self) -> None:
        status, said = self._received() if self.path == PATH else (HTTPStatus.NOT_FOUND, "")
        self._answer(status, said)

    def _received(self) -> tuple[HTTPStatus, str]:
        size = self.headers.get("Content-Length", "")
        if not size.isascii() or not size.isdigit() or "Transfer-Encoding" in self.headers:
            return HTTPStatus.LENGTH_REQUIRED, "The request must say how long it is."
        if len(size) > 9 or int(size) > MOST_BYTES:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The request may have {MOST_BYTES:,} bytes."
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            waiting = self.server.receiver.receive(headers, self.rfile.read(int(size)))
        except RefusedWebhookError as error:
            log.warning("refused a message from %s: %s", self.client_address[0], error)
            return HTTPStatus.FORBIDDEN, str(error)
        except OutsideError as error:
            log.warning("a message was not handed on: %s", error)
            return HTTPStatus.BAD_GATEWAY, "It could not be handed on. Send it again."
        if waiting is None:
            return HTTPStatus.OK, "nothing to do"
        log.info("asked for the promotion of version %s of %s", waiting.version, waiting.model)
        return HTTPStatus.ACCEPTED, "handed on"

    def _answer(self, status: HTTPStatus, said: str) -> None:
        body = json.dumps({"said": said}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        # What of a refused body was not read must not pass for the next request.
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing of each request: what matters is logged where it is decided."""
