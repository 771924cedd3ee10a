"""Requests to external services: limits on time and size, and no secret in errors."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ml_platform.errors import ConfigurationError, RemoteServiceError
from ml_platform.system import http_client
from ml_platform_tests.support.http_server import Proxy, closing


def test_silent_service_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(RemoteServiceError, match="did not respond: timed out") as caught:
            http_client.post(url, "t0ken", {"a": "b"})

    assert caught.value.may_pass
    assert "t0ken" not in str(caught.value)


def test_response_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "MAX_BYTES", 16)
    with closing(Proxy([(200, {"a": 1}), (200, {"a": "x" * 100})])) as server:
        assert http_client.post(server.url, None, {}) == {"a": 1}
        with pytest.raises(RemoteServiceError, match="returned more than 16 bytes"):
            http_client.post(server.url, None, {})


def test_client_password_in_url_is_not_shown() -> None:
    with pytest.raises(RemoteServiceError, match=r"^http://\*\*\*@127\.0\.0\.1/ did not respond") as refused:
        http_client.send("http://user:s3cret@127.0.0.1/")

    assert "s3cret" not in str(refused.value)


def test_other_url_scheme_is_not_opened() -> None:
    with pytest.raises(ConfigurationError, match=r"must start with http:// or https://\. Got 'file:///etc/passwd'"):
        http_client.post("file:///etc/passwd", "t0ken", {})


@contextmanager
def raw_server(response: bytes) -> Iterator[str]:
    """Answer one request with these bytes and close the connection; yield the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(response)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        thread.join()


def test_truncated_response_is_an_error() -> None:
    with (
        raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok") as url,
        pytest.raises(RemoteServiceError, match="closed the connection 98 bytes before the end"),
    ):
        http_client.send(url)


def test_control_characters_of_a_server_are_not_shown() -> None:
    with (
        raw_server(b"HTTP/1.1 500 \x1b]0;OWNED\x07\x1b[2J\r\nContent-Length: 0\r\n\r\n") as url,
        pytest.raises(RemoteServiceError, match="returned 500") as caught,
    ):
        http_client.send(url)

    assert str(caught.value).isprintable()


def test_deeply_nested_response_is_not_valid_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "send", lambda *_, **__: b"[" * 200_000)
    with pytest.raises(RemoteServiceError, match="did not return valid JSON"):
        http_client.post("http://127.0.0.1/", None, {})


@pytest.mark.parametrize("token", ["s3cret\n", "s3cret\r\nX-Other: 1", "s3cr\u00e9t", "two words"])
def test_token_unfit_for_header_is_not_shown(token: str) -> None:
    with pytest.raises(ConfigurationError, match="visible ASCII characters") as refused:
        http_client.send("http://127.0.0.1:9/", token=token)

    assert token.split(maxsplit=1)[0] not in str(refused.value)


def test_invalid_url_is_an_error_without_password() -> None:
    with pytest.raises(RemoteServiceError, match=r"^http://\*\*\*@\[::1 did not respond") as refused:
        http_client.send("http://user:s3cret@[::1")
    with pytest.raises(ConfigurationError, match=r"Got 'ftp://\*\*\*@h/'") as other:
        http_client.send("ftp://user:s3cret@h/")

    assert "s3cret" not in str(refused.value) + str(other.value)
