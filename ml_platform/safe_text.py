"""Text from outside, made safe to print or log: addresses without secrets, control characters as escapes."""

import re
import traceback
import unicodedata
from pathlib import PurePath
from urllib.parse import unquote, unquote_plus

HIDDEN = "***"
SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*"
ADDRESS = re.compile(rf"({SCHEME}://)(\S+)")
# One parameter of a query or fragment: its name as written, perhaps percent-encoded, and its value.
PARAMETER = re.compile(r"([?&;#])([^=&;#?\s]+)=([^&;#\s]*)")
SECRET_NAMES = re.compile(r"pass|pwd|secret|token|key|sig|cred|auth|session|cookie|code", re.IGNORECASE)
PORT = re.compile(r"\d*")
MAX_PORT = 65_535
# A shorter part of a secret occurs in words, too.
MIN_SECRET = 3
HTTP_USER, DATABASE_USER = re.compile(r"[^/?#@]*@"), re.compile(r"[^:/]*(:[^@]*)?@")
# Punctuation of the sentence around an address.
PUNCTUATION = ".,;:!?'\")]}>"


def show_address(address: str) -> str:
    """Return an address without its user, password and secret parameters, on one line.

    It may be malformed: a password may hold ``/``, ``?``, ``#``, ``@``, spaces or escapes. If the end of the password
    is ambiguous, only the scheme is returned.
    """
    scheme, separator, rest = address.partition("://")
    if not re.fullmatch(SCHEME, scheme) or not separator:
        # No scheme, as in `user:password@host:5000`.
        scheme, separator, rest = "", "", address
    return escape_controls(scheme + separator + _hide(rest, has_path=not scheme.startswith(("sqlite", "file"))))


def hide_secrets(text: str, *addresses: str) -> str:
    """Return a text whose addresses have no user, password and secret parameters.

    Parameters
    ----------
    text : str
    *addresses : str
        Addresses whose secrets the text may also repeat alone or in parts, as errors of other libraries do.
    """
    for address in addresses:
        text = text.replace(address, show_address(address))
        for secret in sorted(_list_secrets(address), key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
    return ADDRESS.sub(_hide_match, text) if "://" in text else text


def _list_secrets(address: str) -> set[str]:
    """Return the secrets of an address, whole and in parts, as written and decoded."""
    rest = address.partition("://")[2] or address
    secrets = [value for _, name, value in PARAMETER.findall(rest) if SECRET_NAMES.search(unquote_plus(name))]
    secrets += [rest.rpartition("@")[0].partition(":")[2]]
    parts = [part for secret in secrets for part in (secret, *re.split(r"[/?#@:]", secret))]
    return {text for part in parts for text in (part, unquote_plus(part), unquote(part)) if len(text) >= MIN_SECRET}


def is_valid_address(address: str) -> bool:
    """Return False if clients would read another host or port from an address than its user meant.

    The port must be a number, and an HTTP address needs a host. The password of an HTTP address must not hold ``/``,
    ``?``, ``#`` and ``@`` unescaped; SQLAlchemy allows all but ``@`` in the address of a database.
    """
    scheme, separator, rest = address.partition("://")
    if not separator or not re.fullmatch(SCHEME, scheme):
        return False
    is_http = scheme.lower() in {"http", "https"}
    user = HTTP_USER if is_http else DATABASE_USER
    authority, tail = re.match(
        r"([^/?#]*)(.*)", rest[match.end() if (match := user.match(rest)) else 0 :], re.DOTALL
    ).groups()  # type: ignore[union-attr]
    host_and_port = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:@\[\]]*)(?::(\d{0,5}))?", authority)
    if host_and_port is None or int(host_and_port[2] or 0) > MAX_PORT:
        return False
    return not is_http or (bool(host_and_port[1]) and "@" not in tail)


def _hide_match(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    body = rest.rstrip(PUNCTUATION)
    return f"{scheme}{_hide(body, has_path=not rest.startswith('/'))}{rest[len(body) :]}"


def _hide(rest: str, *, has_path: bool) -> str:
    """Return the part of an address after ``://`` without its secrets.

    Parameters
    ----------
    rest : str
    has_path : bool
        False for an address of a local file, which has no user.
    """
    shown = PARAMETER.sub(_hide_parameter, rest)
    if not has_path:
        return shown
    # A hidden value with an @ may be the end of the password.
    if "@" in rest and rest.count("@") != shown.count("@"):
        return HIDDEN
    before, at, after = shown.rpartition("@")
    authority = re.split(r"[/?#]", shown, maxsplit=1)[0]
    if at and ("@" in authority or ":" in before):
        return f"{HIDDEN}@{after}"
    host, colon, port = authority.rpartition(":")
    # `user:secret` without a host: no address has such a port.
    unfinished = colon and not PORT.fullmatch(port) and not host.startswith("[")
    return HIDDEN if unfinished else shown


def _hide_parameter(match: re.Match[str]) -> str:
    separator, name, value = match.groups()
    return f"{separator}{name}={HIDDEN if SECRET_NAMES.search(unquote_plus(name)) else value}"


def escape_controls(text: str) -> str:
    """Return a text on one line of printable characters; all others are shown as Python's escapes.

    These are line breaks, terminal sequences, marks that change the direction of text, characters without width, and
    surrogates. Spaces of any width stay.
    """
    if text.isprintable():
        return text
    return "".join(
        letter
        if letter.isprintable() or unicodedata.category(letter) == "Zs"
        else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def describe_without_values(error: BaseException) -> str:
    """Return an exception's type and place, for an error of a model: its text may quote a person's data."""
    places = traceback.extract_tb(error.__traceback__)
    place = f" in {places[-1].name}, line {places[-1].lineno} of {PurePath(places[-1].filename).name}" if places else ""
    return f"{type(error).__name__}{place}"
