"""The receiver of MLflow's webhooks: what it believes, and what it hands on."""

import base64
import hashlib
import hmac
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from mlflow.entities.webhook import Webhook, WebhookAction, WebhookEntity, WebhookEvent
from mlflow.webhooks import delivery
from pydantic import SecretStr

from ml_platform.errors import ConfigurationError, OutsideError, RefusedWebhookError
from ml_platform.settings import Settings
from ml_platform.webhooks import MOST_BYTES, PATH, Receiver, Server, Waiting, receiver

SECRET = "a secret of sixteen"  # noqa: S105
ALIAS = {
    "entity": "model_version_alias",
    "action": "created",
    "timestamp": "2026-11-22T12:00:00+00:00",
    "data": {"name": "churn", "alias": "staging", "version": "7"},
}
NOW = 1_800_000_000


def signed(body: bytes, *, secret: str = SECRET, number: str = "d-1", at: int = NOW) -> dict[str, str]:
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
        signed(message(), at=NOW - 301),
        signed(message(), at=NOW + 301),
        signed(message(), number="../x"),
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
        github_api=api.url,
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


def test_a_body_that_is_too_long_or_of_no_length_is_not_read(port: int, api: Api) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("POST", PATH)
    connection.putheader("Content-Length", str(10**9))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    assert send(port, b"x" * (MOST_BYTES + 1), {}) == 413
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", PATH, iter([b"x"]), {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert connection.getresponse().status == 411
    connection.close()
    assert api.asked == []


def test_connections_that_say_nothing_do_not_keep_others_out(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_platform.webhooks._Handler.timeout", 0.2)
    silent = [http.client.HTTPConnection("127.0.0.1", port, timeout=10) for _ in range(70)]
    for connection in silent:
        connection.connect()
    deadline, status = time.monotonic() + 10, 0
    while status != 202 and time.monotonic() < deadline:
        try:
            status = send(port, message(), signed(message(), at=int(time.time())))
        except (ConnectionError, http.client.HTTPException):
            status = 0  # sent away: all places are taken for the moment

    assert status == 202
    for connection in silent:
        connection.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "WEBHOOK_SECRET"),
        ({"webhook_secret": SecretStr("short")}, "WEBHOOK_SECRET"),
        ({"webhook_secret": SecretStr(SECRET)}, "GITHUB_REPOSITORY must be owner/name"),
        ({"webhook_secret": SecretStr(SECRET), "github_token": SecretStr("t")}, "Got '' and a token"),
        ({"webhook_secret": SecretStr(SECRET), "github_repository": "o/r"}, "Got 'o/r' and no token"),
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
