"""A rollback on request: switch the servers first, so that traffic recovers at once, then record it in the ledger."""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ml_platform.errors import (
    RESTORE,
    ConfigurationError,
    ConflictError,
    DatabaseUnavailableError,
    PlatformError,
    StorageError,
)
from ml_platform.model_spec import ModelSpec
from ml_platform.models import discovery
from ml_platform.platform import Platform
from ml_platform.records.ledger import LedgerEntry
from ml_platform.release import admin_client
from ml_platform.release.admin_client import Swap
from ml_platform.release.ledger.champions import champion_stack
from ml_platform.release.promote import require_reason
from ml_platform.release.rollback import roll_back
from ml_platform.release.rollout.traffic import list_live_servers

# Maximum wait for the database after a server has swapped, in seconds.
PATIENCE = 2.0
# Errors of an unreachable ledger: they do not contradict the rollback.
GONE = (DatabaseUnavailableError, ConfigurationError, StorageError)
NO_REPLY = "The platform's database does not answer."


@dataclass(frozen=True, kw_only=True)
class RollbackResult:
    """Result of a rollback.

    Parameters
    ----------
    version : int
        The version that is served again.
    entry : LedgerEntry or None
        The ledger's entry; ``None`` if the database is unreachable: the servers keep the rollback in their journals.
    swaps : list of Swap
        Results of the live servers.
    problem : str
        Reason why the rollback is not in the ledger yet; empty if it is.
    """

    version: int
    entry: LedgerEntry | None
    swaps: list[Swap]
    problem: str = ""


@dataclass(frozen=True)
class _LedgerState:
    """The database's view: the champion's entry, the rollback's target (None if there is none), the live servers."""

    champion: LedgerEntry | None = None
    target: int | None = None
    addresses: tuple[str, ...] = ()
    problem: PlatformError | None = None


def run_fast_rollback(
    platform: Platform,
    model: str,
    *,
    to: int | None,
    reason: str,
    actor: str,
    first: Sequence[Swap] = (),
    load_spec: Callable[[str], ModelSpec] = discovery.load,
) -> RollbackResult:
    """Switch all servers to an earlier champion at once, and record the rollback in the ledger.

    The server of this host is switched first, by the address in its file, so that the rollback waits neither for the
    database nor for the import of its driver; then the servers of other hosts, by their addresses in the database. If
    the ledger's previous champion differs from a server's, the ledger's is used. A server that cannot be reached reads
    the ledger within two seconds.

    Parameters
    ----------
    platform, model, to, reason, actor, load_spec
        As in `roll_back`.
    first : sequence of Swap
        Results of this host's server, if it was switched before; empty switches it here, if there is one.

    Raises
    ------
    DatabaseUnavailableError, ConfigurationError, StorageError
        The database is unreachable, and no server swapped.
    EvidenceError, DigestMismatchError, ConflictError, LedgerError
        As in `roll_back`: the ledger refuses the rollback, and servers that swapped return to the ledger's champion.
    """
    require_reason(reason)
    states: queue.SimpleQueue[_LedgerState] = queue.SimpleQueue()
    # A daemon thread: an unresponsive database must not keep this process alive.
    threading.Thread(target=_read_ledger_state, args=(states, platform, model, to), daemon=True).start()
    swap = partial(admin_client.swap_all, platform.settings, model, reason=reason, actor=actor)
    local = admin_client.local_address(platform.settings, model)
    swaps = list(first) or swap([local] if local else [], to=to)
    swapped = _find_swapped_version(swaps)
    try:
        state = states.get(timeout=PATIENCE if swapped else None)
    except queue.Empty:
        state = _LedgerState(problem=DatabaseUnavailableError(NO_REPLY))
    if state.problem is not None:
        if swapped is None or not isinstance(state.problem, GONE):
            raise state.problem
        return RollbackResult(version=swapped, entry=None, swaps=swaps, problem=str(state.problem))
    # A server may have appended the rollback from its journal meanwhile: the previous champion is then another one.
    recorded = state.champion is not None and state.champion.version == swapped
    target = swapped if recorded else state.target
    late = [done.address for done in swaps if done.version not in {None, target}]
    swaps = [done for done in swaps if done.address not in late]
    known = [*late, *(done.address for done in swaps)]
    swaps += swap([*late, *(a for a in state.addresses if a not in known)], to=target)
    options = {"reason": reason, "actor": actor, "show": _find_swapped_version(swaps) is None, "load_spec": load_spec}
    entry = state.champion if recorded else None
    entry = entry or _record_rollback(platform, model, swaps, to=target, **options)
    return RollbackResult(version=entry.version, entry=entry, swaps=swaps)


def _read_ledger_state(
    states: "queue.SimpleQueue[_LedgerState]", platform: Platform, model: str, to: int | None
) -> None:
    """Put the database's view into a queue. Unexpected errors put one too, because the caller waits for it."""
    state = _LedgerState(problem=DatabaseUnavailableError(NO_REPLY))
    try:
        url = sa.make_url(platform.settings.database)
        missing = url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file()
        if missing and admin_client.local_address(platform.settings, model):  # it would be created again, empty
            message = f"The platform's database {url.database} is gone. {RESTORE}"
            state = _LedgerState(problem=DatabaseUnavailableError(message))
            return
        history = platform.database.history(model)
        addresses = tuple(beat.admin_address for beat in list_live_servers(platform, model))
        champions, _ = champion_stack(history)
        previous = champions[-2] if len(champions) > 1 else None
        state = _LedgerState(history[-1] if history else None, previous if to is None else to, addresses)
    except PlatformError as error:
        state = _LedgerState(problem=error)
    except sa.exc.SQLAlchemyError as error:
        state = _LedgerState(problem=DatabaseUnavailableError(f"The platform's database does not answer: {error}"))
    finally:
        states.put(state)


def _find_swapped_version(swaps: Sequence[Swap]) -> int | None:
    """Return the version of the servers that swapped; ``None`` if none did."""
    return next((swap.version for swap in swaps if swap.version is not None), None)


def _record_rollback(platform: Platform, model: str, swaps: Sequence[Swap], **options: Any) -> LedgerEntry:
    """Append the rollback to the ledger, unless a server appends the same one from its journal; return the entry."""
    try:
        return roll_back(platform, model, **options)
    except ConflictError:
        champion = platform.database.champion(model)
        if champion is None or champion.version != _find_swapped_version(swaps):
            raise
        return champion
