"""The ledger proved against its anchors, and the anchors and the alias brought up to it."""

import logging

from ml_platform.errors import LedgerError, RegistryError
from ml_platform.records import LedgerHead, LedgerReport
from ml_platform.stages import ledger, promotion
from ml_platform.workflows.platform import Platform

log = logging.getLogger("ml_platform")

LOG, MLFLOW = "the log of heads", "MLflow"


def promotion_lock(model: str) -> str:
    """Return the name of the lock that a model's promotion holds."""
    return f"promotion-{model}"


def ledgers(platform: Platform) -> list[str]:
    """Return the models that have a ledger, or had one as the log of heads says, sorted."""
    models = set(platform.database.ledger_models()) | set(platform.database.models())
    return sorted(models | set(platform.heads_log.models()))


def verify_ledger(platform: Platform, model: str, *, ask_mlflow: bool = True) -> LedgerReport:
    """Hold a model's ledger against its own digests and what its anchors saw.

    Parameters
    ----------
    platform : Platform
    model : str
    ask_mlflow : bool
        Whether MLflow's anchor is asked, which may not answer.

    Returns
    -------
    LedgerReport
        An anchor that cannot be read is named there: a changed one as a problem, an unreachable one as unread.
    """
    problems, behind, unread = list[str](), list[str](), list[str]()
    anchors: dict[str, list[LedgerHead]] = {}
    # Anchors before the ledger: what is appended meanwhile makes them late, never ahead.
    for where in (LOG, MLFLOW) if ask_mlflow else (LOG,):
        try:
            anchors[where] = _seen(platform, model, where)
        except LedgerError as error:
            problems.append(str(error))
        except RegistryError as error:
            unread.append(str(error))
    try:
        stored = platform.database.stored_ledger(model)
    except LedgerError as error:
        return LedgerReport(model=model, entries=0, problems=(*problems, str(error)), unread=tuple(unread))
    problems += ledger.chain_problems(stored)
    for where, heads in anchors.items():
        problems += ledger.anchor_problems(where, heads, stored)
        if late := ledger.unanchored(heads, stored):
            behind.append(f"{where} has not seen the last {len(late)} of {len(stored)} entries")
    return LedgerReport(
        model=model, entries=len(stored), problems=tuple(problems), behind=tuple(behind), unread=tuple(unread)
    )


def _seen(platform: Platform, model: str, where: str) -> list[LedgerHead]:
    if where == LOG:
        return platform.heads_log.heads(model)
    head = platform.registry.ledger_head(model)
    return [head] if head else []


def require_sound_ledger(platform: Platform, model: str, *, ask_mlflow: bool = True) -> LedgerReport:
    """Refuse to decide anything upon a ledger that was changed.

    Raises
    ------
    LedgerError
        The ledger does not verify.
    """
    report = verify_ledger(platform, model, ask_mlflow=ask_mlflow)
    if report.problems:
        raise LedgerError(
            f"The ledger of {model!r} is not what was written: {'; '.join(report.problems[:3])}. Nothing is decided on "
            "it. Look at `ml-platform ledger verify`, and restore the database from a backup."
        )
    return report


def is_shown(platform: Platform, model: str) -> bool:
    """Whether alias, confirmation and anchors say what the ledger says."""
    champion, head = platform.database.champion(model), platform.database.ledger_head(model)
    if head is None:
        return True
    shown = champion is None or (
        platform.registry.alias(model, "champion") == champion.version
        and promotion.is_confirmed(platform.database, champion)
    )
    return shown and all(ledger.head_of(head) in _seen(platform, model, where) for where in (LOG, MLFLOW))


def follow_ledger(platform: Platform, model: str) -> None:
    """Move the alias, write the confirmation and the anchors; the caller holds the lock. Errors: `show_champion`."""
    # What contradicts the ledger is evidence: neither does the alias follow it, nor is an anchor written over.
    require_sound_ledger(platform, model)
    entry = platform.database.champion(model)
    while entry is not None:
        if platform.registry.alias(model, "champion") != entry.version:
            platform.registry.set_alias(model, "champion", entry.version)
        if promotion.confirm(platform.database, entry):
            break
        entry = platform.database.champion(model)
    _anchor(platform, model)


def _anchor(platform: Platform, model: str) -> None:
    log_in_file(platform, model)
    stored = platform.database.stored_ledger(model)
    if late := ledger.unanchored(_seen(platform, model, MLFLOW), stored):
        platform.registry.set_ledger_head(ledger.head_of(late[-1]))


def log_in_file(platform: Platform, model: str) -> None:
    """Append to the log of heads what it has not seen of a model's ledger.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    stored = platform.database.stored_ledger(model)
    late = ledger.unanchored(platform.heads_log.heads(model), stored)
    platform.heads_log.append(late)
    for entry in late:
        log.debug("ledger of %s: entry %s, digest %s", model, entry.sequence, entry.digest)
