"""Asking a service outside: what it may cost, and what of the secret is shown."""

import socket

import pytest

from ml_platform import outside
from ml_platform.errors import ConfigurationError, OutsideError
from ml_platform_tests.e2e.test_deployed import Proxy, closing


def test_a_service_that_says_nothing_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(OutsideError, match="gave no answer: timed out") as refused:
            outside.post(url, "t0ken", {"a": "b"})

    assert refused.value.may_pass
    assert "t0ken" not in str(refused.value)


def test_an_answer_is_read_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "MOST_BYTES", 16)
    with closing(Proxy([(200, {"a": 1}), (200, {"a": "x" * 100})])) as server:
        assert outside.post(server.url, None, {}) == {"a": 1}
        with pytest.raises(OutsideError, match="gave no answer"):
            outside.post(server.url, None, {})


def test_what_is_no_address_of_the_web_is_not_opened() -> None:
    with pytest.raises(ConfigurationError, match=r"must start with http:// or https://\. Got 'file:///etc/passwd'"):
        outside.post("file:///etc/passwd", "t0ken", {})
