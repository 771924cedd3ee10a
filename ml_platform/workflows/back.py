"""A rollback that a person asks for: the servers first, which answers everybody, then the ledger, which says so."""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ml_platform import admin
from ml_platform.admin import Swap
from ml_platform.errors import (
    ConfigurationError,
    ConflictError,
    DatabaseUnavailableError,
    PlatformError,
    StorageError,
)
from ml_platform.model_spec import ModelSpec
from ml_platform.records import LedgerEntry
from ml_platform.stages.promotion import standing
from ml_platform.workflows.platform import Platform
from ml_platform.workflows.promotion import require_reason, roll_back
from ml_platform.workflows.traffic import living_servers

# How long the database is waited for once a server has swapped, in seconds.
PATIENCE = 2.0
# With these the ledger cannot be asked, which says nothing against the rollback.
GONE = (DatabaseUnavailableError, ConfigurationError, StorageError)


@dataclass(frozen=True, kw_only=True)
class Return:
    """What came of a rollback.

    Parameters
    ----------
    version : int
        What answers again.
    entry : LedgerEntry or None
        The ledger's entry; ``None`` where the database is not there: the servers have it in their journals.
    swaps : list of Swap
        What the servers did that were alive.
    problem : str
        Why the ledger does not say it yet; empty if it does.
    """

    version: int
    entry: LedgerEntry | None
    swaps: list[Swap]
    problem: str = ""


@dataclass(frozen=True)
class _Look:
    """What the database says: the champion's entry, where a rollback goes (None where nowhere), and who serves."""

    champion: LedgerEntry | None = None
    target: int | None = None
    addresses: tuple[str, ...] = ()
    problem: PlatformError | None = None


def go_back(
    platform: Platform,
    model: str,
    declared: Callable[[], ModelSpec],
    *,
    to: int | None,
    reason: str,
    actor: str,
    first: Sequence[Swap] = (),
) -> Return:
    """Let an earlier champion answer again, everywhere and at once, and write it into the ledger.

    The server of this host comes first, by the address that it left, so that neither the database nor importing its
    driver is waited for; then those of other hosts, by what they told the database. Where the ledger knows another
    champion before than a server did, the ledger's it is. A server that is not reached reads the ledger within a second
    or two.

    Parameters
    ----------
    platform, model, declared, to, reason, actor
        As `roll_back`.
    first : sequence of Swap
        What this host's server did already; empty asks it here, if there is one.

    Raises
    ------
    DatabaseUnavailableError, ConfigurationError, StorageError
        The database is not there, and no server swapped.
    EvidenceError, DigestMismatchError, ConflictError, LedgerError
        As `roll_back`: the ledger does not take it, and servers that swapped return to what it says.
    """
    require_reason(reason)
    looks: queue.SimpleQueue[_Look] = queue.SimpleQueue()
    # A database that does not answer must not keep this process alive.
    threading.Thread(target=_answer, args=(looks, platform, model, to), daemon=True).start()
    swap = partial(admin.swap_all, platform.settings, model, reason=reason, actor=actor)
    swaps = list(first) or swap(_here(platform, model), to=to)
    swapped = _version_of(swaps)
    look = _next(looks, PATIENCE if swapped else None)
    if look.problem is not None:
        if swapped is None or not isinstance(look.problem, GONE):
            raise look.problem
        return Return(version=swapped, entry=None, swaps=swaps, problem=str(look.problem))
    # A server's journal may have written it meanwhile: then the champion before is another one already.
    written = look.champion is not None and look.champion.version == swapped
    target = swapped if written else look.target
    late = [done.address for done in swaps if done.version not in {None, target}]
    swaps = [done for done in swaps if done.address not in late]
    known = [*late, *(done.address for done in swaps)]
    swaps += swap([*late, *(a for a in look.addresses if a not in known)], to=target)
    asked = {"reason": reason, "actor": actor, "show": _version_of(swaps) is None}
    entry = look.champion if written and look.champion else _entry(platform, model, declared, swaps, to=target, **asked)
    return Return(version=entry.version, entry=entry, swaps=swaps)


def _here(platform: Platform, model: str) -> list[str]:
    address = admin.local_address(platform.settings, model)
    return [address] if address else []


def _answer(looks: "queue.SimpleQueue[_Look]", platform: Platform, model: str, to: int | None) -> None:
    found = _Look(problem=_silent())
    try:
        found = _look(platform, model, to)
    finally:  # whatever happens here, nobody waits for ever
        looks.put(found)


def _look(platform: Platform, model: str, to: int | None) -> _Look:
    try:
        _require_database(platform, model)
        history = platform.database.history(model)
        addresses = tuple(beat.admin_address for beat in living_servers(platform, model))
    except PlatformError as error:
        return _Look(problem=error)
    except sa.exc.SQLAlchemyError as error:
        return _Look(problem=DatabaseUnavailableError(f"The platform's database does not answer: {error}"))
    champions, _ = standing(history)
    before = champions[-2] if len(champions) > 1 else None
    return _Look(history[-1] if history else None, before if to is None else to, addresses)


def _require_database(platform: Platform, model: str) -> None:
    """Refuse a database that is a file and is gone while there are servers: it would be made again, empty."""
    url = sa.make_url(platform.settings.database)
    gone = url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file()
    if gone and admin.local_address(platform.settings, model):
        raise DatabaseUnavailableError(f"The platform's database {url.database} is gone. Restore it from a backup.")


def _silent() -> DatabaseUnavailableError:
    return DatabaseUnavailableError("The platform's database does not answer.")


def _next(looks: "queue.SimpleQueue[_Look]", seconds: float | None) -> _Look:
    try:
        return looks.get(timeout=seconds)
    except queue.Empty:
        return _Look(problem=_silent())


def _version_of(swaps: Sequence[Swap]) -> int | None:
    """Return what the servers that swapped answer with; ``None`` if none did."""
    return next((swap.version for swap in swaps if swap.version is not None), None)


def _entry(
    platform: Platform, model: str, declared: Callable[[], ModelSpec], swaps: Sequence[Swap], **asked: Any
) -> LedgerEntry:
    """Return the ledger's entry: one that a server writes from its journal at this moment is as good as ours."""
    try:
        return roll_back(platform, model, declared, **asked)
    except ConflictError:
        champion = platform.database.champion(model)
        if champion is None or champion.version != _version_of(swaps):
            raise
        return champion
