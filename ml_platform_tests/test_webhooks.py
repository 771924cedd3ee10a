"""The receiver of MLflow's webhooks: what it believes, and what it hands on."""

import base64
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

from ml_platform.errors import ConfigurationError, OutsideError, RefusedWebhookError
from ml_platform.settings import Settings
from ml_platform.webhooks import MOST_BYTES, MOST_CONNECTIONS, PATH, SECONDS, Receiver, Server, Waiting, receiver

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
def handed() -> list[Waiting]:
    return []


@pytest.fixture
def known(handed: list[Waiting]) -> Receiver:
    return Receiver(secret=SECRET.encode(), forward=handed.append, clock=lambda: NOW)


def test_a_version_that_waits_is_handed_on(known: Receiver, handed: list[Waiting]) -> None:
    assert known.receive(signed(message()), message()) == Waiting(model="churn", version=7)
    assert handed == [Waiting(model="churn", version=7)]


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
def test_what_is_not_signed_now_and_by_the_registry_is_refused(
    known: Receiver, handed: list[Waiting], headers: dict[str, str]
) -> None:
    with pytest.raises(RefusedWebhookError, match=r"not signed|not sent within"):
        known.receive(headers, message())
    assert handed == []


@pytest.mark.parametrize("at", [NOW - 300, NOW, NOW + 300])
def test_a_message_counts_for_five_minutes(known: Receiver, handed: list[Waiting], at: int) -> None:
    known.receive(signed(message(), at=at), message())

    assert len(handed) == 1


def test_a_signature_among_several_counts_while_a_secret_is_replaced(known: Receiver, handed: list[Waiting]) -> None:
    headers = signed(message())
    headers["x-mlflow-signature"] = f"v1,AAAA {headers['x-mlflow-signature']}"

    known.receive(headers, message())

    assert len(handed) == 1


def test_the_same_message_is_handed_on_once(known: Receiver, handed: list[Waiting]) -> None:
    known.receive(signed(message()), message())

    assert known.receive(signed(message()), message()) is None
    assert len(handed) == 1


def test_the_same_message_on_many_connections_is_handed_on_once(handed: list[Waiting]) -> None:
    gate = threading.Barrier(4)

    def slow(waiting: Waiting) -> None:
        time.sleep(0.02)
        handed.append(waiting)

    known = Receiver(secret=SECRET.encode(), forward=slow, clock=lambda: NOW)

    def send() -> None:
        gate.wait()
        known.receive(signed(message()), message())

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(handed) == 1


def test_a_message_that_could_not_be_handed_on_may_come_again() -> None:
    answers: list[Callable[[], None]] = [lambda: (_ for _ in ()).throw(OutsideError("down")), lambda: None]
    known = Receiver(secret=SECRET.encode(), forward=lambda _: answers.pop(0)(), clock=lambda: NOW)

    with pytest.raises(OutsideError):
        known.receive(signed(message()), message())

    assert known.receive(signed(message()), message()) == Waiting(model="churn", version=7)


@pytest.mark.parametrize(
    "event",
    [
        {**ALIAS, "entity": "registered_model"},
        {**ALIAS, "action": "deleted"},
        {**ALIAS, "data": {"name": "churn", "alias": "champion", "version": "7"}},
    ],
    ids=lambda event: event["entity"] + event["action"],
)
def test_other_events_are_none_of_its_business(known: Receiver, handed: list[Waiting], event: dict[str, Any]) -> None:
    body = json.dumps(event).encode()

    assert known.receive(signed(body), body) is None
    assert handed == []


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
def test_what_is_signed_and_makes_no_sense_is_refused(known: Receiver, handed: list[Waiting], body: bytes) -> None:
    with pytest.raises(RefusedWebhookError):
        known.receive(signed(body), body)
    assert handed == []


def test_what_it_remembers_is_bounded(known: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_platform.webhooks.REMEMBERED", 5)
    for number in range(20):
        known.receive(signed(message(), number=f"d-{number}"), message())

    assert len(known._done) == 5
    assert known.receive(signed(message(), number="d-19"), message()) is None  # it came just now
    assert known.receive(signed(message(), number="d-0"), message()) is not None


def test_a_receiver_does_not_show_its_secret(known: Receiver) -> None:
    assert SECRET not in repr(known)


# On a port


class Api(ThreadingHTTPServer):
    """The part of GitHub's API that is asked, which answers what a test says."""

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
        """Say nothing."""


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
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", path, body, headers)
    status = connection.getresponse().status
    connection.close()
    return status


def test_mlflows_own_delivery_becomes_a_dispatch(port: int, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is made, signed and sent by MLflow's code."""
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


def test_statuses_say_who_is_to_blame(port: int, api: Api, caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_token_does_not_follow_a_redirection(port: int, api: Api) -> None:
    api.status, api.location = 307, f"{api.url}/elsewhere"

    assert send(port, message(), signed(message(), at=int(time.time()))) == 502
    assert [path for path, _, _ in api.asked] == ["/repos/owner/name/dispatches"]


def announced(port: int, *headers: tuple[str, str]) -> int:
    """Return the answer to a request of which nothing but its headers is sent."""
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
        ([("Content-Length", str(MOST_BYTES + 1))], 413),
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
def test_a_body_that_is_too_long_or_of_no_length_is_not_read(
    port: int, api: Api, headers: list[tuple[str, str]], status: int
) -> None:
    assert announced(port, *headers) == status
    assert api.asked == []


def test_a_body_of_the_greatest_length_is_read(port: int) -> None:
    assert send(port, b"x" * MOST_BYTES, {}) == 403


def test_it_says_that_it_is_there_and_nothing_of_what_it_is(port: int) -> None:
    statuses = list[int]()
    for path in ("/health", "/", PATH):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", path)
        answer = connection.getresponse()
        statuses.append(answer.status)
        connection.close()

    assert statuses == [200, 404, 404]
    assert answer.getheader("Server") == "ml-platform "


def silent(port: int, number: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(number)]


def sent_away(connection: socket.socket) -> bool:
    """Whether a connection ends though nothing was sent; false while it is kept."""
    readable, _, _ = select.select([connection], [], [], 1)
    return bool(readable) and connection.recv(1) == b""


def test_connections_that_say_nothing_do_not_keep_others_out(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_platform.webhooks.SECONDS", 0.2)
    connections = silent(port, 70)
    deadline, status = time.monotonic() + 10, 0
    while status != 202 and time.monotonic() < deadline:
        try:
            status = send(port, message(), signed(message(), at=int(time.time())))
        except (ConnectionError, http.client.HTTPException):
            status = 0  # sent away: all places are taken for the moment

    assert status == 202
    for connection in connections:
        connection.close()


def test_a_burst_waits_for_its_turn() -> None:
    server = Server(("127.0.0.1", 0), Receiver(secret=SECRET.encode(), forward=lambda _: None))
    connections = silent(server.server_address[1], 50)  # nobody takes them yet

    with running(server):
        assert send(server.server_address[1], message(), {}) == 403
    for connection in connections:
        connection.close()


def test_who_comes_when_all_places_are_taken_is_sent_away(port: int) -> None:
    connections = silent(port, MOST_CONNECTIONS)
    [late] = silent(port, 1)

    assert sent_away(late)
    for connection in (*connections, late):
        connection.close()


@pytest.mark.parametrize(
    "start", [b"", b"POST /mlflow HTTP/1.0\r\nX-Long: ", b"POST /mlflow HTTP/1.0\r\nContent-Length: 9999\r\n\r\n"]
)
def test_a_message_that_drips_is_not_waited_for(port: int, monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    """A byte every now and then keeps no place: the whole message has a time, not each of its bytes."""
    monkeypatch.setattr("ml_platform.webhooks.SECONDS", 0.3)
    [connection] = silent(port, 1)
    connection.sendall(start)
    deadline, answered = time.monotonic() + 5, False
    while not answered and time.monotonic() < deadline:
        answered = bool(select.select([connection], [], [], 0.05)[0])
        if not answered:
            connection.sendall(b"x")

    assert answered
    connection.close()


def test_a_place_is_free_again_where_no_thread_could_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has no more threads for a moment."""
    server = Server(("127.0.0.1", 0), Receiver(secret=SECRET.encode(), forward=lambda _: None))

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr("threading.Thread.start", refuse)
        for _ in range(MOST_CONNECTIONS + 1):
            with pytest.raises(RuntimeError), socket.socket() as connection:
                server.process_request(connection, ("127.0.0.1", 9))
    with running(server):
        assert send(server.server_address[1], message(), {}) == 403


def test_a_connection_that_breaks_is_told_with_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Waiting) -> None:
        raise LookupError("a mistake of ours")

    server = Server(("127.0.0.1", 0), Receiver(secret=SECRET.encode(), forward=broken))
    with running(server), pytest.raises((ConnectionError, http.client.HTTPException)):
        send(server.server_address[1], message(), signed(message(), at=int(time.time())))

    assert "a connection of 127.0.0.1 broke: LookupError('a mistake of ours')" in caplog.text


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
def test_a_receiver_without_its_secrets_does_not_start(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        receiver(Settings(**settings))
    assert SECRET not in str(refused.value)


def test_the_command_receives_on_loopback_until_it_is_interrupted() -> None:
    program = Path(sys.executable).parent / "ml-platform"
    environment = {
        **os.environ,
        "ML_PLATFORM_WEBHOOK_SECRET": SECRET,
        "ML_PLATFORM_GITHUB_TOKEN": "t0ken",
        "ML_PLATFORM_GITHUB_REPOSITORY": "owner/name",
    }
    with subprocess.Popen(
        [program, "webhooks", "--port", "0"], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.fullmatch(rf"receiving on http://127\.0\.0\.1:(\d+){PATH}\n", said)
        try:
            assert found is not None, said
            [open_one] = silent(int(found[1]), 1)  # which nobody waits for
            assert send(int(found[1]), message(), {}) == 403
        finally:
            process.send_signal(signal.SIGINT)
        process.wait(timeout=SECONDS / 2)
        open_one.close()
        rest = process.stderr.read()

    assert process.returncode == 0
    assert "Traceback" not in rest
    assert "t0ken" not in rest
