import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_platform.errors import ConfigurationError, PlatformError
from ml_platform.safe_text import escape_controls, hide_secrets, is_valid_address, show_address

pytestmark = pytest.mark.fault("X2")

# Letters that no other part of an address has, and all separators.
PASSWORDS = st.lists(st.sampled_from(["QQQ", "ZZZ", *"/?#@:;&=% ."]), min_size=1).map(lambda p: f"QQQ{''.join(p)}ZZZ")
NAMES = st.sampled_from(
    ["password", "PASSWORD", "sslpassword", "p%61ssword", "access_token", "X-Amz-Signature", "api_key"]
)


@given(password=PASSWORDS, scheme=st.sampled_from(["http", "postgresql+psycopg2", "s3", "mysql"]))
def test_address_with_any_password_hides_it(password: str, scheme: str) -> None:
    address = f"{scheme}://user:{password}@host:5000/path"

    shown = show_address(address)

    assert "QQQ" not in shown
    assert "ZZZ" not in shown
    assert shown.startswith(f"{scheme}://***")


@given(password=PASSWORDS, name=NAMES)
def test_address_secret_parameter_is_hidden(password: str, name: str) -> None:
    encoded = password.replace("%", "%25").replace("&", "%26").replace("#", "%23").replace(";", "%3B").replace(" ", "+")
    address = f"postgresql://host/db?sslmode=require&{name}={encoded}"

    for shown in (show_address(address), hide_secrets(f"Cannot reach {address}.")):
        assert "QQQ" not in shown
        assert "ZZZ" not in shown


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://host:5000/path?page=1", "http://host:5000/path?page=1"),
        ("http://user:pw@host:5000/path", "http://***@host:5000/path"),
        ("https://token@host/", "https://***@host/"),
        ("postgresql://u:pa/s#s?x@host:5432/db", "postgresql://***@host:5432/db"),
        ("postgresql://u:pw@host/db?host=/run&password=x@y", "postgresql://***"),
        ("postgresql:///db?user=u&password=x&sslmode=require", "postgresql:///db?user=u&password=***&sslmode=require"),
        ("http://host/#access_token=abc", "http://host/#access_token=***"),
        ("user:secret@host:5000", "***@host:5000"),
        ("http://user:secret", "http://***"),
        ("http://[::1]:5000/x", "http://[::1]:5000/x"),
        ("sqlite:////home/a@b:c/platform.db", "sqlite:////home/a@b:c/platform.db"),
        ("s3://bucket/a@b.csv", "s3://bucket/a@b.csv"),
        ("http://h/\x1b[31m\n", "http://h/\\x1b[31m\\n"),
    ],
)
def test_address_is_shown_without_secrets(address: str, shown: str) -> None:
    assert show_address(address) == shown


def test_text_repeating_parts_of_password_hides_them() -> None:
    address = "postgresql://u:pass%2Fword/tail@host/db"

    text = hide_secrets(
        "bad port 'pass%2Fword' or pass/word, tail, of postgresql://u:pass%2Fword/tail@host/db!", address
    )

    assert text == "bad port '***' or ***, ***, of postgresql://***@host/db!"


def test_platform_error_hides_secrets_of_addresses() -> None:
    error = PlatformError("no answer from http://u:s3cret@host:5000/x, see http://host/?token=abc.")

    assert str(error) == "no answer from http://***@host:5000/x, see http://host/?token=***."
    assert str(ConfigurationError("plain")) == "plain"


@pytest.mark.parametrize(
    ("address", "valid"),
    [
        ("http://host", True),
        ("http://u:p%2Fw@host:5000/x", True),
        ("http://[::1]:5000", True),
        ("postgresql://u:p/w#x?y@host:5432/db", True),
        ("postgresql:///db?host=/run/x", True),
        ("sqlite:////home/a@b:c/x.db", True),
        ("http://host:port", False),
        ("http://host:70000", False),
        ("http://u:1/w@host", False),
        ("http://u:p#w@host", False),
        ("http:///path", False),
        ("postgresql://u:p@w@host/db", False),
        ("postgresql://u:p@host:x/db", False),
        ("user:secret@host", False),
    ],
)
def test_address_validity(address: str, valid: bool) -> None:
    assert is_valid_address(address) == valid


@given(st.text(alphabet=st.characters() | st.sampled_from("\x1b\r\n\x00\u202e\u200b\x9b")))
def test_escaped_text_is_printable(text: str) -> None:
    shown = escape_controls(text)

    assert all(letter.isprintable() or letter.isspace() for letter in shown)
    assert not set(shown) & set("\x1b\r\n\x00\u202e\u200b\x9b\x85\u2028\u2029")


def test_escaped_text_shows_python_escapes() -> None:
    assert escape_controls("a\x1b]8;;x\r\n\u202e\ud800 ü\u00a0€") == "a\\x1b]8;;x\\r\\n\\u202e\\ud800 ü\u00a0€"
    assert escape_controls(string.printable[:95]) == string.printable[:95]
