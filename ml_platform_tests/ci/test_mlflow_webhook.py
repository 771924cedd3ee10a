"""The webhook server: accepted and refused messages, forwarding to GitHub, and limits on connections."""

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities.webhook import Webhook, WebhookAction, WebhookEntity, WebhookEvent
from mlflow.webhooks import delivery
from pydantic import SecretStr

from ml_platform.ci.mlflow_webhook import MAX_BYTES, MAX_CONNECTIONS, PATH, SECONDS, Receiver, Server, Waiting, receiver
from ml_platform.errors import ConfigurationError, RefusedWebhookError, RemoteServiceError
from ml_platform.settings import Settings

SECRET = "a secret of sixteen"  # noqa: S105
ALIAS = {
    "entity": "model_version_alias",
    "action": "created",
    "timestamp": "2026-11-22T12:00:00+00:00",
    "data": {"name": "churn", "alias": "staging", "version": "7"},
}
NOW = 1_800_000_000


def signed(body: bytes, *, secret: str = SECRET, number: str = "d-1", at: int | str = NOW) -> dict[str, str]:
    made = hmac.new(secret.encode(), f"{number}.{at}.".encode() + body, hashlib.sha256).digest()
    return {
        "x-mlflow-delivery-id": number,
        "x-mlflow-timestamp": str(at),
        "x-mlflow-signature": f"v1,{base64.b64encode(made).decode()}",
    }


def message(**data: Any) -> bytes:
    return json.dumps({**ALIAS, "data": {**ALIAS["data"], **data}}).encode()  # type: ignore[dict-item]


@pytest.fixture
def forwarded() -> list[Waiting]:
    return []


@pytest.fixture
def webhook(forwarded: list[Waiting]) -> Receiver:
    return Receiver(secret=SECRET.encode(), forward=forwarded.append, clock=lambda: NOW)


def test_receiver_staged_version_is_forwarded(webhook: Receiver, forwarded: list[Waiting]) -> None:
    assert webhook.receive(signed(message()), message()) == Waiting(model="churn", version=7)
    assert forwarded == [Waiting(model="churn", version=7)]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        signed(message(), secret="another secret, long"),  # noqa: S106
        signed(message(version="8")),
        {**signed(message()), "x-mlflow-delivery-id": "d-2"},
        {**signed(message()), "x-mlflow-timestamp": str(NOW + 1)},
        {**signed(message()), "x-mlflow-signature": ""},
        {**signed(message()), "x-mlflow-signature": "v1,"},
        {**signed(message()), "x-mlflow-signature": "v1,%%%"},
        {**signed(message()), "x-mlflow-signature": signed(message())["x-mlflow-signature"].replace("v1", "v2")},
        {**signed(message()), "x-mlflow-signature": "v1,\xe9"},
        {**signed(message()), "x-mlflow-signature": signed(message())["x-mlflow-signature"].replace("v1,", "v1,%")},
        signed(message(), at=NOW - 301),
        signed(message(), at=NOW + 301),
        signed(message(), at="x"),
        signed(message(), at="9" * 5_000),
        signed(message(), number="../x"),
        signed(message(), number="d" * 129),
        signed(message(), number=""),
    ],
    ids=str,
)
def test_receiver_invalid_signature_or_time_is_refused(
    webhook: Receiver, forwarded: list[Waiting], headers: dict[str, str]
) -> None:
    with pytest.raises(RefusedWebhookError, match=r"not signed|not sent within"):
        webhook.receive(headers, message())
    assert forwarded == []


@pytest.mark.parametrize("at", [NOW - 300, NOW, NOW + 300])
def test_receiver_accepts_messages_within_five_minutes(webhook: Receiver, forwarded: list[Waiting], at: int) -> None:
    webhook.receive(signed(message(), at=at), message())

    assert len(forwarded) == 1


def test_receiver_accepts_one_of_several_signatures(webhook: Receiver, forwarded: list[Waiting]) -> None:
    headers = signed(message())
    headers["x-mlflow-signature"] = f"v1,AAAA {headers['x-mlflow-signature']}"

    webhook.receive(headers, message())

    assert len(forwarded) == 1


def test_receiver_repeated_message_is_forwarded_once(webhook: Receiver, forwarded: list[Waiting]) -> None:
    webhook.receive(signed(message()), message())

    assert webhook.receive(signed(message()), message()) is None
    assert len(forwarded) == 1


def test_receiver_concurrent_repeats_are_forwarded_once(forwarded: list[Waiting]) -> None:
    gate = threading.Barrier(4)

    def slow(waiting: Waiting) -> None:
        time.sleep(0.02)
        forwarded.append(waiting)

    webhook = Receiver(secret=SECRET.encode(), forward=slow, clock=lambda: NOW)

    def send() -> None:
        gate.wait()
        webhook.receive(signed(message()), message())

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(forwarded) == 1


def test_receiver_failed_forward_can_be_retried() -> None:
    answers: list[Callable[[], None]] = [lambda: (_ for _ in ()).throw(RemoteServiceError("down")), lambda: None]
    webhook = Receiver(secret=SECRET.encode(), forward=lambda _: answers.pop(0)(), clock=lambda: NOW)

    with pytest.raises(RemoteServiceError):
        webhook.receive(signed(message()), message())

    assert webhook.receive(signed(message()), message()) == Waiting(model="churn", version=7)


@pytest.mark.parametrize(
    "event",
    [
        {**ALIAS, "entity": "registered_model"},
        {**ALIAS, "action": "deleted"},
        {**ALIAS, "data": {"name": "churn", "alias": "champion", "version": "7"}},
    ],
    ids=lambda event: event["entity"] + event["action"],
)
def test_receiver_other_events_are_ignored(webhook: Receiver, forwarded: list[Waiting], event: dict[str, Any]) -> None:
    body = json.dumps(event).encode()

    assert webhook.receive(signed(body), body) is None
    assert forwarded == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"[" * 30_000,
        b"{}",
        message(name="churn\n"),
        message(version="7\n"),
        message(name="../churn"),
        message(name="Churn"),
        message(name=["churn"]),
        message(version="0"),
        message(version="1.5"),
        message(version="9" * 10),
        message(version='7"; touch x #'),
        json.dumps({**ALIAS, "data": None}).encode(),
    ],
    ids=lambda body: body[:20].decode() + str(len(body)) + body[-20:].decode(),
)
def test_receiver_malformed_signed_body_is_refused(webhook: Receiver, forwarded: list[Waiting], body: bytes) -> None:
    with pytest.raises(RefusedWebhookError):
        webhook.receive(signed(body), body)
    assert forwarded == []


def test_receiver_memory_of_messages_is_bounded(webhook: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_platform.ci.mlflow_webhook.REMEMBERED", 5)
    for number in range(20):
        webhook.receive(signed(message(), number=f"d-{number}"), message())

    assert len(webhook._done) == 5
    assert webhook.receive(signed(message(), number="d-19"), message()) is None  # received just now
    assert webhook.receive(signed(message(), number="d-0"), message()) is not None


def test_receiver_repr_hides_secret(webhook: Receiver) -> None:
    assert SECRET not in repr(webhook)


# With the HTTP server


class Api(ThreadingHTTPServer):
    """A fake of GitHub's dispatch API with a chosen status."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None, Any]] = []
        self.status, self.location = 204, ""
        super().__init__(("127.0.0.1", 0), _ApiHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _ApiHandler(BaseHTTPRequestHandler):
    server: Api

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers["Authorization"], body))
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    with running(server):
        yield server


@pytest.fixture
def port(api: Api) -> Iterator[int]:
    settings = Settings(
        github_api=f"{api.url}/",
        github_repository="owner/name",
        github_token=SecretStr("t0ken"),
        webhook_secret=SecretStr(SECRET),
    )
    server = Server(("127.0.0.1", 0), receiver(settings))
    with running(server):
        yield server.server_address[1]


def send(port: int, body: bytes, headers: dict[str, str], path: str = PATH) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("POST", path, body, headers)
        return connection.getresponse().status


def test_webhook_of_mlflow_becomes_github_dispatch(port: int, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own code makes, signs and sends the message."""
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http")
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
    event = WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)
    url = f"http://127.0.0.1:{port}{PATH}"
    webhook = Webhook(
        webhook_id="1",
        name="promotions",
        url=url,
        events=[event],
        creation_timestamp=0,
        last_updated_timestamp=0,
        secret=SECRET,
    )

    result = delivery.test_webhook(webhook, event)
    sent = delivery._send_webhook_request(
        webhook, {"name": "churn", "alias": "staging", "version": "7"}, event, delivery._create_webhook_session()
    )

    assert result.success, result
    assert sent.status_code == 202
    assert api.asked == [
        (
            "/repos/owner/name/dispatches",
            "Bearer t0ken",
            {"event_type": "ml-platform-promote", "client_payload": {"model": "churn", "version": 7}},
        )
    ]


def test_webhook_server_status_tells_client_from_server_errors(
    port: int, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    at = int(time.time())
    right = signed(message(), at=at)

    assert send(port, message(), {}) == 403
    assert send(port, message(), right, path="/other") == 404
    api.status = 500
    assert send(port, message(), right) == 502
    api.status = 204
    assert send(port, message(), right) == 202
    assert send(port, message(), right) == 200
    assert len(api.asked) == 2
    assert SECRET not in caplog.text
    assert "t0ken" not in caplog.text


def test_webhook_server_token_follows_no_redirection(port: int, api: Api) -> None:
    api.status, api.location = 307, f"{api.url}/elsewhere"

    assert send(port, message(), signed(message(), at=int(time.time()))) == 502
    assert [path for path, _, _ in api.asked] == ["/repos/owner/name/dispatches"]


def send_headers(port: int, *headers: tuple[str, str]) -> int:
    """Return the status of a request that sends only its headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.putrequest("POST", PATH)
    for header in headers:
        connection.putheader(*header)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("Content-Length", str(MAX_BYTES + 1))], 413),
        ([("Content-Length", str(10**9))], 413),
        ([("Content-Length", "9" * 5_000)], 413),
        ([("Content-Length", "-1")], 411),
        ([("Content-Length", "\xb2")], 411),
        ([], 411),
        ([("Transfer-Encoding", "chunked")], 411),
        ([("Content-Length", "1"), ("Transfer-Encoding", "chunked")], 411),
    ],
    ids=lambda value: str(value)[:60],
)
def test_webhook_server_oversized_body_is_not_read(
    port: int, api: Api, headers: list[tuple[str, str]], status: int
) -> None:
    assert send_headers(port, *headers) == status
    assert api.asked == []


def test_webhook_server_body_of_maximum_size_is_read(port: int) -> None:
    assert send(port, b"x" * MAX_BYTES, {}) == 403


def test_webhook_server_health_hides_software_version(port: int) -> None:
    statuses = list[int]()
    for path in ("/health", "/", PATH):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", path)
        answer = connection.getresponse()
        statuses.append(answer.status)
        connection.close()

    assert statuses == [200, 404, 404]
    assert answer.getheader("Server") == "ml-platform "


def open_connections(port: int, number: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(number)]


def is_closed(connection: socket.socket) -> bool:
    """Return True if the server closes a connection within a second."""
    readable, _, _ = select.select([connection], [], [], 1)
    return bool(readable) and connection.recv(1) == b""


def test_webhook_server_idle_connections_block_no_message(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_platform.ci.mlflow_webhook.SECONDS", 0.2)
    connections = open_connections(port, 70)
    deadline, status = time.monotonic() + 10, 0
    while status != 202 and time.monotonic() < deadline:
        try:
            status = send(port, message(), signed(message(), at=int(time.time())))
        except (ConnectionError, http.client.HTTPException):
            status = 0  # closed: all places are taken for the moment

    assert status == 202
    for connection in connections:
        connection.close()


def test_webhook_server_burst_is_queued() -> None:
    server = Server(("127.0.0.1", 0), Receiver(secret=SECRET.encode(), forward=lambda _: None))
    connections = open_connections(server.server_address[1], 50)  # not accepted yet

    with running(server):
        assert send(server.server_address[1], message(), {}) == 403
    for connection in connections:
        connection.close()


def test_webhook_server_connection_above_limit_is_closed(port: int) -> None:
    connections = open_connections(port, MAX_CONNECTIONS)
    [late] = open_connections(port, 1)

    assert is_closed(late)
    for connection in (*connections, late):
        connection.close()


@pytest.mark.parametrize(
    "start", [b"", b"POST /mlflow HTTP/1.0\r\nX-Long: ", b"POST /mlflow HTTP/1.0\r\nContent-Length: 9999\r\n\r\n"]
)
def test_webhook_server_slow_message_times_out(port: int, monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    """The timeout is for the whole message, not for each byte."""
    monkeypatch.setattr("ml_platform.ci.mlflow_webhook.SECONDS", 0.3)
    [connection] = open_connections(port, 1)
    connection.sendall(start)
    deadline, answered = time.monotonic() + 5, False
    while not answered and time.monotonic() < deadline:
        answered = bool(select.select([connection], [], [], 0.05)[0])
        if not answered:
            connection.sendall(b"x")

    assert answered
    connection.close()


def test_webhook_server_failed_thread_frees_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system refuses to start a thread."""
    server = Server(("127.0.0.1", 0), Receiver(secret=SECRET.encode(), forward=lambda _: None))

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr("threading.Thread.start", refuse)
        for _ in range(MAX_CONNECTIONS + 1):
            with pytest.raises(RuntimeError), socket.socket() as connection:
                server.process_request(connection, ("127.0.0.1", 9))
    with running(server):
        assert send(server.server_address[1], message(), {}) == 403


def test_webhook_server_failed_connection_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Waiting) -> None:
        raise LookupError("a mistake of ours")

    server = Server(("127.0.0.1", 0), Receiver(secret=SECRET.encode(), forward=broken))
    with running(server), pytest.raises((ConnectionError, http.client.HTTPException)):
        send(server.server_address[1], message(), signed(message(), at=int(time.time())))

    assert "the connection from 127.0.0.1 failed: LookupError('a mistake of ours')" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "WEBHOOK_SECRET"),
        ({"webhook_secret": SecretStr("short")}, "WEBHOOK_SECRET"),
        ({"webhook_secret": SecretStr(SECRET)}, "GITHUB_REPOSITORY must be owner/name"),
        ({"webhook_secret": SecretStr(SECRET), "github_token": SecretStr("t")}, "Got '' and a token"),
        ({"webhook_secret": SecretStr(SECRET), "github_repository": "o/r"}, "Got 'o/r' and no token"),
        ({"webhook_secret": SecretStr("x" * 15)}, "at least 16"),
        ({"webhook_secret": SecretStr("x" * 16)}, "GITHUB_REPOSITORY"),
        (
            {
                "webhook_secret": SecretStr(SECRET),
                "github_token": SecretStr("t"),
                "github_repository": "o/r",
                "github_api": "api.github.com",
            },
            "must start with http",
        ),
        (
            {"webhook_secret": SecretStr(SECRET), "github_token": SecretStr("t"), "github_repository": "o/r/../x"},
            "Got 'o/r/../x'",
        ),
    ],
    ids=str,
)
def test_receiver_without_secrets_does_not_start(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        receiver(Settings(**settings))
    assert SECRET not in str(refused.value)


def test_webhook_command_listens_on_loopback_until_interrupted() -> None:
    program = Path(sys.executable).parent / "ml-platform"
    environment = {
        **os.environ,
        "ML_PLATFORM_WEBHOOK_SECRET": SECRET,
        "ML_PLATFORM_GITHUB_TOKEN": "t0ken",
        "ML_PLATFORM_GITHUB_REPOSITORY": "owner/name",
    }
    with subprocess.Popen(
        [program, "webhook-server", "--port", "0"], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.fullmatch(rf"listening on http://127\.0\.0\.1:(\d+){PATH}\n", said)
        try:
            assert found is not None, said
            [open_one] = open_connections(int(found[1]), 1)  # must not delay the shutdown
            assert send(int(found[1]), message(), {}) == 403
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=SECONDS / 2)
            finally:
                process.kill()  # a shell's background jobs ignore the signal
        open_one.close()
        rest = process.stderr.read()

    assert process.returncode == 0
    assert "Traceback" not in rest
    assert "t0ken" not in rest
