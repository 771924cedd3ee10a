"""Client of the prediction servers' admin ports: addresses, tokens, and the request that rolls a server back.

It needs no database and imports the standard library only, because a rollback must finish within a second.
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

# Files that this host's server writes into `<home>/serving/<model>`: its admin port, and the token for it.
ADDRESS_FILE, TOKEN_FILE = "admin.address", "admin.token"
# Maximum time for a server to confirm a swap, in seconds.
SECONDS = 5.0
MAX_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Swap:
    """A server's result of a rollback.

    Parameters
    ----------
    address : str
        The server's admin port.
    version : int or None
        The version that the server now serves; ``None`` if it refused or did not reply.
    journal : str
        Id of the entry in the server's rollback journal; the server appends the rollback to the ledger if no other
        process does. Empty if there is none.
    swapped : bool
        True if every worker of the server has confirmed.
    problem : str
        Reason for a refusal or a missing reply; empty otherwise.
    """

    address: str
    version: int | None = None
    journal: str = ""
    swapped: bool = False
    problem: str = ""


def local_address(settings: Settings, model: str) -> str | None:
    """Return the admin port of this host's server of a model; ``None`` if none ever ran here."""
    try:
        return _server_folder(settings, model).joinpath(ADDRESS_FILE).read_text().strip() or None
    except OSError:
        return None


def token_for(settings: Settings, model: str, address: str) -> str:
    """Return the token for an admin port; empty if none is known.

    The token that this host's server created is sent to that server only, never to another address.
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
    return settings.serving_home(model)


def swap_all(
    settings: Settings, model: str, addresses: Sequence[str], *, to: int | None, reason: str, actor: str
) -> list[Swap]:
    """Switch servers to an earlier champion, all at the same time.

    Parameters
    ----------
    settings : Settings
    model : str
    addresses : sequence of str
        The servers' admin ports, ``http://host:port``.
    to : int or None
        The version; ``None`` is the previous champion, as each server knows it.
    reason, actor : str
        Reason for the rollback, and the user or process that requests it.

    Returns
    -------
    list of Swap
        In the order of `addresses`; `problem` is set for each server that failed.
    """
    request = {"to": to, "reason": reason, "actor": actor}
    if not addresses:
        return []

    def swap(address: str) -> Swap:
        try:
            reply = post(f"{address}/rollback", token_for(settings, model, address), request)
            version, journal, swapped = int(reply["version"]), str(reply["journal"]), bool(reply["swapped"])
        except AdminError as error:
            return Swap(address=address, problem=str(error))
        except (KeyError, TypeError, ValueError):
            return Swap(address=address, problem=f"{address} is not an admin port: its reply is not a rollback result")
        return Swap(address=address, version=version, journal=journal, swapped=swapped)

    with ThreadPoolExecutor(max_workers=len(addresses)) as threads:
        return list(threads.map(swap, addresses))


def post(url: str, token: str, document: dict[str, Any], *, timeout: float = SECONDS) -> Any:
    """Post JSON to an admin port and return the decoded reply.

    Proxies are bypassed and redirections refused: the token is for this address only.

    Raises
    ------
    AdminError
        The server refused, with its status and reason, or did not reply in time.
    """
    if not url.startswith(("http://", "https://")):
        raise AdminError(f"An admin port must start with http:// or https://. Got {url!r} instead.")
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, json.dumps(document).encode(), headers)  # noqa: S310 - checked above
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirection)
    try:
        with opener.open(request, timeout=timeout) as answer:
            return json.loads(answer.read(MAX_BYTES))
    except urllib.error.HTTPError as error:
        try:
            reason = str(json.loads(error.read(MAX_BYTES))["error"])
        except (OSError, ValueError, KeyError, TypeError):
            reason = str(error.reason)
        raise AdminError(f"{url} answers {error.code}: {reason}") from error
    except (OSError, ValueError) as error:
        raise AdminError(f"{url} gave no answer: {getattr(error, 'reason', error)}") from error


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
