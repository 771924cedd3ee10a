"""The admin ports of prediction servers, as a caller sees them: where they are, which token they take, a rollback.

Nothing here needs the database, and nothing imports more than the standard library: a rollback has a second.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_platform.errors import AdminError
from ml_platform.settings import Settings

# What the server of this host leaves in its folder, `<home>/serving/<model>`: its admin port, and the token for it.
ADDRESS_FILE, TOKEN_FILE = "admin.address", "admin.token"
# How long a server may take to confirm a swap, in seconds.
SECONDS = 5.0
MOST_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Swap:
    """What a server did about a rollback.

    Parameters
    ----------
    address : str
        Its admin port.
    version : int or None
        The version that it answers with; ``None`` where it refused or did not answer.
    journal : str
        Its journal's entry, from which the ledger is written if nobody else does it; empty where there is none.
    swapped : bool
        Whether every worker has confirmed.
    problem : str
        Why it refused or did not answer; empty if it did neither.
    """

    address: str
    version: int | None = None
    journal: str = ""
    swapped: bool = False
    problem: str = ""


def local_address(settings: Settings, model: str) -> str | None:
    """Return the admin port of this host's server of a model; ``None`` where none ever ran here."""
    try:
        return _server_folder(settings, model).joinpath(ADDRESS_FILE).read_text().strip() or None
    except OSError:
        return None


def token_for(settings: Settings, model: str, address: str) -> str:
    """Return the token for an admin port; empty where none is known.

    The token that this host's server made is for that server alone: no other address is told it.
    """
    if settings.admin_token is not None:
        return settings.admin_token.get_secret_value()
    if address != local_address(settings, model):
        return ""
    try:
        return _server_folder(settings, model).joinpath(TOKEN_FILE).read_text().strip()
    except OSError:
        return ""


def _server_folder(settings: Settings, model: str) -> Path:
    return settings.home / "serving" / model


def swap_all(
    settings: Settings, model: str, addresses: Sequence[str], *, to: int | None, reason: str, actor: str
) -> list[Swap]:
    """Ask servers to answer with an earlier champion from now on, all at the same time.

    Parameters
    ----------
    settings : Settings
    model : str
    addresses : sequence of str
        Their admin ports, ``http://host:port``.
    to : int or None
        The version; ``None`` is the champion before, as each of them knows it.
    reason, actor : str
        Why, and who asks.

    Returns
    -------
    list of Swap
        In the order of `addresses`; one that failed says why.
    """
    asked = {"to": to, "reason": reason, "actor": actor}
    if not addresses:
        return []
    with ThreadPoolExecutor(max_workers=len(addresses)) as threads:
        return list(threads.map(lambda address: _swap(settings, model, address, asked), addresses))


def _swap(settings: Settings, model: str, address: str, asked: dict[str, Any]) -> Swap:
    try:
        said = post(f"{address}/rollback", token_for(settings, model, address), asked)
        version, journal, swapped = int(said["version"]), str(said["journal"]), bool(said["swapped"])
    except AdminError as error:
        return Swap(address=address, problem=str(error))
    except (KeyError, TypeError, ValueError):
        return Swap(address=address, problem=f"{address} answers, and is no admin port of this platform")
    return Swap(address=address, version=version, journal=journal, swapped=swapped)


def post(url: str, token: str, document: dict[str, Any], *, timeout: float = SECONDS) -> Any:
    """Post JSON to an admin port and return what it answers.

    No proxy is asked, and no redirection followed: the token is for this address.

    Raises
    ------
    AdminError
        It refused, with its status and reason, or did not answer in time.
    """
    if not url.startswith(("http://", "https://")):
        raise AdminError(f"An admin port must start with http:// or https://. Got {url!r} instead.")
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, json.dumps(document).encode(), headers)  # noqa: S310 - checked above
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirection)
    try:
        with opener.open(request, timeout=timeout) as answer:
            return json.loads(answer.read(MOST_BYTES))
    except urllib.error.HTTPError as error:
        raise AdminError(f"{url} answers {error.code}: {_reason(error)}") from error
    except (OSError, ValueError) as error:
        raise AdminError(f"{url} gave no answer: {getattr(error, 'reason', error)}") from error


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(MOST_BYTES))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(error.reason)
