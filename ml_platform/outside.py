"""Ask a service outside of this platform, GitHub's or Dagster's API, with a secret that goes nowhere else."""

import json
import urllib.error
import urllib.request
from typing import Any

from ml_platform.errors import ConfigurationError, OutsideError

# The most bytes of an answer that are read, and how long it may take, in seconds.
MOST_BYTES = 4 * 2**20
SECONDS = 30.0


def post(url: str, token: str | None, document: dict[str, Any]) -> Any:
    """Post JSON; return the JSON that is answered, ``None`` where the answer is empty.

    No redirection is followed: the secret is for this address.

    Parameters
    ----------
    url : str
    token : str or None
        A bearer token; ``None`` sends none.
    document : dict

    Raises
    ------
    ConfigurationError
        The address is none of the web.
    OutsideError
        It refused, did not answer in time, or answers no JSON. Neither the token nor what was sent is shown.
    """
    require_address(url)
    request = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})  # noqa: S310
    if token:
        # A header that urllib does not hand on to another address.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(_NoRedirection).open(request, timeout=SECONDS) as answer:
            body = answer.read(MOST_BYTES)
            return json.loads(body) if body.strip() else None
    except urllib.error.HTTPError as error:
        raise OutsideError(f"{url} answers {error.code} {error.reason}.", status=error.code) from error
    except (OSError, ValueError) as error:
        raise OutsideError(f"{url} gave no answer: {getattr(error, 'reason', error)}.") from error


def require_address(url: str) -> None:
    """Refuse what is no address of the web.

    Raises
    ------
    ConfigurationError
        It starts otherwise.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"The address must start with http:// or https://. Got {url!r} instead.")


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
