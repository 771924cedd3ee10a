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

# How long this host's server waits for what the database says of the others, and how long a person does once it has
# swapped, in seconds.
PATIENCE, LAST_PATIENCE = 0.3, 2.0
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
    """What the database says: where the rollback goes, None where it cannot tell, and who serves; or what it lacks."""

    target: int | None
    addresses: tuple[str, ...] = ()
    problem: PlatformError | None = None


def go_back(
    platform: Platform, model: str, declared: Callable[[], ModelSpec], *, to: int | None, reason: str, actor: str
) -> Return:
    """Let an earlier champion answer again, everywhere and at once, and write it into the ledger.

    The servers are asked first, each by its admin port: this host's by the address that it left, so that the database
    need not be there; those of other hosts by what they told the database. A server that is not reached reads the
    ledger within a second or two.

    Parameters
    ----------
    platform, model, declared, to, reason, actor
        As `roll_back`.

    Raises
    ------
    DatabaseUnavailableError, ConfigurationError, StorageError
        The database is not there, and no server swapped.
    EvidenceError, DigestMismatchError, ConflictError, LedgerError
        As `roll_back`: the ledger does not take it, and servers that swapped return to what it says.
    """
    require_reason(reason)
    looks: queue.SimpleQueue[_Look] = queue.SimpleQueue()
    # A database that does not answer must neither keep the servers waiting nor this process alive.
    threading.Thread(target=_answer, args=(looks, platform, model, to), daemon=True).start()
    swap = partial(admin.swap_all, platform.settings, model, reason=reason, actor=actor)
    here = admin.local_address(platform.settings, model)
    look = _next(looks, PATIENCE if here else None)
    swaps = swap([here] if here else [], to=look.target if look else to)
    swapped = _version_of(swaps)
    look = look or _next(looks, LAST_PATIENCE if swapped else None) or _Look(to, problem=_silent())
    others = [address for address in look.addresses if address != here]
    swaps += swap(others, to=swapped or look.target)
    swapped = _version_of(swaps)
    if look.problem is not None:
        if swapped is None or not isinstance(look.problem, GONE):
            raise look.problem
        return Return(version=swapped, entry=None, swaps=swaps, problem=str(look.problem))
    asked = {"reason": reason, "actor": actor, "show": swapped is None}
    entry = _written(platform, model, declared, swapped, to=swapped or look.target, **asked)
    return Return(version=entry.version, entry=entry, swaps=swaps)


def _answer(looks: "queue.SimpleQueue[_Look]", platform: Platform, model: str, to: int | None) -> None:
    found = _Look(to, problem=_silent())
    try:
        found = _look(platform, model, to)
    finally:  # whatever happens here, nobody waits for ever
        looks.put(found)


def _look(platform: Platform, model: str, to: int | None) -> _Look:
    try:
        _require_database(platform, model)
        champions, _ = standing(platform.database.history(model))
        addresses = tuple(beat.admin_address for beat in living_servers(platform, model))
    except PlatformError as error:
        return _Look(to, problem=error)
    except sa.exc.SQLAlchemyError as error:
        return _Look(to, problem=DatabaseUnavailableError(f"The platform's database does not answer: {error}"))
    before = champions[-2] if len(champions) > 1 else None
    return _Look(before if to is None else to, addresses)


def _require_database(platform: Platform, model: str) -> None:
    """Refuse a database that is a file and is gone while there are servers: it would be made again, empty."""
    url = sa.make_url(platform.settings.database)
    gone = url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file()
    if gone and admin.local_address(platform.settings, model):
        raise DatabaseUnavailableError(f"The platform's database {url.database} is gone. Restore it from a backup.")


def _silent() -> DatabaseUnavailableError:
    return DatabaseUnavailableError("The platform's database does not answer.")


def _next(looks: "queue.SimpleQueue[_Look]", seconds: float | None) -> _Look | None:
    try:
        return looks.get(timeout=seconds)
    except queue.Empty:
        return None


def _version_of(swaps: Sequence[Swap]) -> int | None:
    """Return what the servers that swapped answer with; ``None`` if none did."""
    return next((swap.version for swap in swaps if swap.version is not None), None)


def _written(
    platform: Platform,
    model: str,
    declared: Callable[[], ModelSpec],
    swapped: int | None,
    **asked: Any,
) -> LedgerEntry:
    """Return the ledger's entry: one that a server wrote from its journal meanwhile is as good as ours."""
    try:
        return roll_back(platform, model, declared, **asked)
    except ConflictError:
        champion = platform.database.champion(model)
        if champion is None or swapped is None or champion.version != swapped:
            raise
        return champion
