"""The platform's HTTP client: timeouts, bounded responses, no redirection, no secrets in errors.

The standard library suffices: `requests` bounds no response and follows redirections unless each call forbids it.
`ml_platform.release.admin_client` has its own client, because a rollback must start within a second.
"""

import http.client
import json
import re
import urllib.error
import urllib.request
from typing import Any

from ml_platform.errors import ConfigurationError, RemoteServiceError, printable
from ml_platform.safe_text import show_address

MAX_BYTES = 4 * 2**20  # maximum size of a response
TOKEN = re.compile("[!-~]+")
SECONDS = 30.0  # default timeout of connecting and of each read


def send(url: str, body: bytes | None = None, *, token: str | None = None, seconds: float | None = None) -> bytes:
    """Send a GET request, or POST a JSON body, and return the response's body.

    Redirections are refused: the secret belongs to this address.

    Parameters
    ----------
    url : str
    body : bytes or None
        JSON to post; ``None`` sends a GET request.
    token : str or None
        Bearer token; ``None`` sends none.
    seconds : float or None
        Timeout; ``None`` is `SECONDS`.

    Raises
    ------
    ConfigurationError
        The URL is not an HTTP URL, or the token cannot be sent in a header.
    RemoteServiceError
        The server returned an error, a redirection, a part of a response or more than `MAX_BYTES`, or no response in
        time. The message shows neither the token, nor a password in the URL, nor the body.
    """
    require_address(url)
    if token and not TOKEN.fullmatch(token):
        raise ConfigurationError("A token must consist of visible ASCII characters. Check its last line break.")
    shown = show_address(url)
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"} if body is not None else {})  # noqa: S310
        if token:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.build_opener(_NoRedirection).open(request, timeout=seconds or SECONDS) as response:
            content: bytes = response.read(MAX_BYTES + 1)
            # `read` with a size returns the part of a response whose connection was lost.
            missing = len(content) <= MAX_BYTES and response.length
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise RemoteServiceError(
            f"{shown} returned {error.code} {printable(str(error.reason))}.", status=error.code
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        # An invalid URL's error repeats a part of the URL, which may be the password.
        invalid = isinstance(error, http.client.InvalidURL)
        reason = "invalid host or port" if invalid else getattr(error, "reason", error)
        # None: Dagster and tracebacks show the cause, too.
        raise RemoteServiceError(f"{shown} did not respond: {printable(str(reason))}.") from None
    if missing:
        raise RemoteServiceError(f"{shown} closed the connection {missing:,} bytes before the end of its response.")
    if len(content) > MAX_BYTES:
        raise RemoteServiceError(f"{shown} returned more than {MAX_BYTES:,} bytes.")
    return content


def post(url: str, token: str | None, document: dict[str, Any]) -> Any:
    """Post JSON and return the JSON response, ``None`` if it is empty.

    Parameters
    ----------
    url : str
    token : str or None
        Bearer token; ``None`` sends none.
    document : dict

    Raises
    ------
    ConfigurationError, RemoteServiceError
        As `send`; also a response that is not JSON.
    """
    content = send(url, json.dumps(document).encode(), token=token)
    try:
        return json.loads(content) if content.strip() else None
    except (ValueError, RecursionError) as error:
        raise RemoteServiceError(f"{show_address(url)} did not return valid JSON: {error}.") from error


def require_address(url: str) -> None:
    """Check the scheme of a URL.

    Raises
    ------
    ConfigurationError
        It is neither http nor https.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise ConfigurationError(f"The URL must start with http:// or https://. Got {show_address(url)!r}.")


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
