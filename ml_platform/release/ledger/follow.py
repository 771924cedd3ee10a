"""Verification of the ledger against its anchors, and the update of the anchors and MLflow's alias after a decision."""

import logging

from ml_platform.errors import RESTORE, LedgerError, RegistryError
from ml_platform.monitoring import alerts
from ml_platform.monitoring.alerts import Alert
from ml_platform.platform import Platform
from ml_platform.records.ledger import LedgerHead, LedgerReport
from ml_platform.release.ledger import decision_evidence, decisions, verification
from ml_platform.release.ledger.verification import LOG, MLFLOW
from ml_platform.storage import ledger_anchor

log = logging.getLogger("ml_platform")


def promotion_lock(model: str) -> str:
    """Return the name of the lock on a model's promotions."""
    return f"promotion-{model}"


def ledgers(platform: Platform) -> list[str]:
    """Return the models that have a ledger, or had one according to the log of heads, sorted."""
    models = set(platform.database.ledger_models()) | set(platform.database.models())
    return sorted(models | set(platform.ledger_anchor.models()))


def verify_ledger(
    platform: Platform, model: str, *, ask_mlflow: bool = True, evidence: bool = True, deep: bool = False
) -> LedgerReport:
    """Verify a model's ledger by its own digests, its anchors, and the evidence of its decisions.

    Parameters
    ----------
    platform : Platform
    model : str
    ask_mlflow : bool
        True reads MLflow's anchor too, which may be unreachable.
    evidence : bool
        False verifies chain and anchors alone. A server does so: it checks the evidence of each version that it loads,
        and an old decision must not stop its rollback to another version.
    deep : bool
        True verifies all verdicts and registrations, the decisions' files on this host and their runs in MLflow too.

    Returns
    -------
    LedgerReport
        It names each anchor that cannot be read: a changed one as a problem, an unreachable one as unread.
    """
    problems, missing, unread = list[str](), list[str](), list[str]()
    anchors: dict[str, list[LedgerHead]] = {}
    # The anchors are read first: an entry that is appended meanwhile puts them behind the ledger, never ahead.
    for where in (LOG, MLFLOW) if ask_mlflow else (LOG,):
        try:
            anchors[where] = _read_anchor(platform, model, where)
        except LedgerError as error:
            problems.append(str(error))
        except RegistryError as error:
            unread.append(str(error))
    try:
        stored = platform.database.stored_ledger(model)
    except LedgerError as error:
        return LedgerReport(model=model, entries=0, problems=(*problems, str(error)), unread=tuple(unread))
    # guard: ledger-chain
    problems += verification.chain_problems(stored)
    for where, heads in anchors.items():
        # guard: ledger-anchors
        problems += verification.anchor_problems(where, heads, stored)
    entries = [entry for entry, _ in stored]
    if evidence:
        # guard: decision-evidence
        problems += decision_evidence.decision_problems(platform, entries)
    behind, gone = verification.late_anchors(anchors, stored)
    if deep and not problems:
        more = decision_evidence.verify_stores(platform, model, entries, ask_mlflow=ask_mlflow)
        problems, missing, unread = [*problems, *more.problems], list(more.missing), [*unread, *more.unread]
    return LedgerReport(
        model=model,
        entries=len(stored),
        problems=tuple(problems),
        missing=(*gone, *missing),
        behind=tuple(behind),
        unread=tuple(unread),
    )


def _read_anchor(platform: Platform, model: str, where: str) -> list[LedgerHead]:
    # no guard: selects the anchor
    if where == LOG:
        return platform.ledger_anchor.heads(model)
    head = platform.registry.ledger_head(model)
    # no guard: an anchor may be empty
    return [head] if head else []


def require_sound_ledger(
    platform: Platform, model: str, *, ask_mlflow: bool = True, evidence: bool = True
) -> LedgerReport:
    """Verify a model's ledger as `verify_ledger` does, and refuse one that was changed.

    Raises
    ------
    LedgerError
        The ledger does not verify.
    """
    report = verify_ledger(platform, model, ask_mlflow=ask_mlflow, evidence=evidence)
    # guard: ledger-problems
    if report.problems:
        raise LedgerError(
            f"The ledger of {model!r} was changed: {'; '.join(report.problems[:3])}. Nothing is decided on it. Run: "
            f"ml-platform ledger verify. {RESTORE}"
        )
    return report


def is_shown(platform: Platform, model: str) -> bool:
    """Return True if the alias, its confirmation and the anchors agree with the ledger."""
    champion, head = platform.database.champion(model), platform.database.ledger_head(model)
    # no guard: an empty ledger has nothing to show
    if head is None:
        return True
    shown = champion is None or (
        platform.registry.alias(model, "champion") == champion.version
        and decisions.is_confirmed(platform.database, champion)
    )
    # guard: shown-alias
    # no guard: an anchor that is behind follows with the next decision
    return shown and all(
        ledger_anchor.make_ledger_head(head) in _read_anchor(platform, model, where) for where in (LOG, MLFLOW)
    )


def sync_registry(platform: Platform, model: str) -> None:
    """Move the alias, confirm it in the ledger and update the anchors. The caller holds the promotion lock.

    Raises the errors of `sync_alias`.
    """
    # An anchor that contradicts the ledger is evidence: the alias does not move, and the anchor is not overwritten.
    # guard: alias-ledger
    _require_anchored_ledger(platform, model)
    entry = platform.database.champion(model)
    while entry is not None:
        if platform.registry.alias(model, "champion") != entry.version:
            platform.registry.set_alias(model, "champion", entry.version)
        if decisions.confirm(platform.database, entry):
            break
        entry = platform.database.champion(model)
    log_in_file(platform, model)
    stored = platform.database.stored_ledger(model)
    if late := verification.unanchored(_read_anchor(platform, model, MLFLOW), stored):
        platform.registry.set_ledger_head(ledger_anchor.make_ledger_head(late[-1]))


def _require_anchored_ledger(platform: Platform, model: str) -> None:
    """Refuse a ledger that was changed, and raise an alert for an anchor that is missing and is written again."""
    missing = require_sound_ledger(platform, model).missing
    alerts.write_log([Alert(name="AnchorMissing", summary=anchor, labels={"model": model}) for anchor in missing])


def log_in_file(platform: Platform, model: str) -> None:
    """Append the entries of a model's ledger that the log of heads does not have, or has lost.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    stored = platform.database.stored_ledger(model)
    logged = {head.sequence for head in platform.ledger_anchor.heads(model)}
    late = [entry for entry, _ in stored if entry.sequence not in logged]
    platform.ledger_anchor.append(late)
    for entry in late:
        log.debug("ledger of %s: entry %s, digest %s", model, entry.sequence, entry.digest)


# Maximum wait for another process's promotion, in seconds.
WAIT_FOR_PROMOTION = 20.0


def sync_alias(platform: Platform, model: str) -> None:
    """Bring the alias, its confirmation and the anchors up to the ledger, also after a crash of an earlier process.

    If another process is promoting, it is waited for; if it takes too long, the update is left to it.

    Raises
    ------
    LedgerError
        The ledger does not verify.
    RegistryError
        MLflow refuses or does not answer.
    """
    # guard: champion-shown
    if is_shown(platform, model):
        return
    with platform.database.locked(promotion_lock(model), WAIT_FOR_PROMOTION) as held:
        if held:
            sync_registry(platform, model)
        else:
            log.warning("another process is promoting a version of %s and will update MLflow", model)
