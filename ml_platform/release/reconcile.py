"""Comparison of MLflow with the ledger: changes made in MLflow are granted, reverted or repaired."""

import logging
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ml_platform.database.decided import decided_candidate, decided_verdict
from ml_platform.errors import ConflictError, DigestMismatchError, EvidenceError, MissingInRegistryError
from ml_platform.inference import golden_requests
from ml_platform.inference.publish_served_files import served_bytes
from ml_platform.model_spec import ModelSpec
from ml_platform.monitoring.alerts import Alert, send, write_log
from ml_platform.platform import Platform
from ml_platform.records.ledger import Action, Alerting, LedgerEntry, Registration, RegistryDrift, RegistrySnapshot
from ml_platform.records.verdict import Candidate
from ml_platform.release.ledger import decisions
from ml_platform.release.ledger.follow import (
    log_in_file,
    promotion_lock,
    require_sound_ledger,
    sync_alias,
    sync_registry,
)
from ml_platform.release.ledger.verification import anchor_gaps
from ml_platform.release.promote import promote_version, staged_evidence
from ml_platform.release.rollback import roll_back
from ml_platform.release.rollout.traffic import store_plan
from ml_platform.storage import ledger_anchor
from ml_platform.storage.mlflow_registry import VERDICT_FILE, run_files
from ml_platform.storage.model_files import file_digest

log = logging.getLogger("ml_platform")

# Reason and actor, in the ledger, of a promotion by a moved alias: MLflow does not record who moved it.
ALIAS_REASON = "manual: alias moved in MLflow"
ALIAS_ACTOR = "MLflow alias"


@dataclass(frozen=True, kw_only=True)
class _Snapshot:
    """Ledger and MLflow at the same moment; `confirmed` is True if the alias has shown the champion before."""

    champion: LedgerEntry | None
    confirmed: bool
    head: LedgerEntry | None
    shown: RegistrySnapshot


def reconcile(platform: Platform, spec: ModelSpec, *, actor: str, read_bytes: bool = True) -> list[RegistryDrift]:
    """Compare MLflow's state of a model with the ledger and repair the differences. It relies on no events.

    Parameters
    ----------
    platform : Platform
    spec : ModelSpec
    actor : str
        The user or process that reconciles; the ledger names it if a version is replaced or withdrawn.
    read_bytes : bool
        True downloads and digests the champion's bytes too; False reads MLflow's tables only.

    Returns
    -------
    list of RegistryDrift
        Empty if MLflow agrees with the ledger. If another process changes the ledger at the same time, the remaining
        differences are left to the next call.

    Raises
    ------
    RegistryError
        MLflow refuses or does not answer: nothing was decided, the ledger is unchanged.
    LedgerError
        The ledger, its anchor in MLflow, or the evidence of a decision was changed.
    """
    require_sound_ledger(platform, spec.name, ask_mlflow=False)
    snapshot = _take_snapshot(platform, spec.name)
    differences = list[RegistryDrift]()
    for step in (_grant_alias_move, _finish_decision, _repair_champion, _restore_log, _restore_alias):
        drift = list(step(platform, spec, snapshot, actor, read_bytes)) if snapshot else []
        differences += drift
        snapshot = _take_snapshot(platform, spec.name) if drift else snapshot
    if snapshot:
        differences += _sync_other_aliases(platform, spec.name, snapshot)
        differences += _find_unknown_versions(platform, spec.name, snapshot)
    return differences


def _take_snapshot(platform: Platform, model: str) -> _Snapshot | None:
    """Read ledger and MLflow; ``None`` if the ledger changed meanwhile, because they then differ in time."""
    head, champion = platform.database.ledger_head(model), platform.database.champion(model)
    confirmed = champion is not None and decisions.is_confirmed(platform.database, champion)
    shown = platform.registry.shown(model)
    if platform.database.ledger_head(model) != head:
        return None
    return _Snapshot(champion=champion, confirmed=confirmed, head=head, shown=shown)


# A moved alias: a request


def _grant_alias_move(
    platform: Platform, spec: ModelSpec, snapshot: _Snapshot, _actor: str, _read_bytes: bool
) -> Iterator[RegistryDrift]:
    """Promote the version that the alias champion was moved to by hand, if its evidence holds; else revert the move."""
    requested, champion = snapshot.shown.aliases.get("champion"), snapshot.champion
    if requested is None or (champion is not None and (requested == champion.version or not snapshot.confirmed)):
        return
    registration = platform.database.registration(spec.name, requested)
    if registration is None:
        unknown = EvidenceError(f"The platform has not registered a version {requested} of {spec.name!r}.")
        yield _revert_alias_move(platform, spec.name, snapshot, requested, unknown)
        return
    try:
        candidate = platform.database.candidate(registration.candidate)
        entry = promote_version(platform, spec, candidate, reason=ALIAS_REASON, actor=ALIAS_ACTOR)
    except (EvidenceError, ConflictError, MissingInRegistryError) as error:
        yield _revert_alias_move(platform, spec.name, snapshot, requested, error)
    else:
        yield RegistryDrift(
            model=spec.name,
            what="RequestGranted",
            version=requested,
            summary=f"The alias champion of {spec.name} was moved to version {requested}, whose evidence holds: "
            "promoted.",
            entry=entry,
        )


def _revert_alias_move(
    platform: Platform, model: str, snapshot: _Snapshot, requested: int, error: Exception
) -> RegistryDrift:
    """Move the alias back to the champion. If the champion's version is missing too, the next step restores it."""
    champion = snapshot.champion
    if champion is None:
        platform.registry.delete_alias(model, "champion")
    elif champion.version in snapshot.shown.versions:
        sync_alias(platform, model)
    outcome = "there is no champion" if champion is None else f"version {champion.version} stays champion"
    return RegistryDrift(
        model=model,
        what="AliasMoveRefused",
        version=requested,
        summary=f"The alias champion of {model} was moved to version {requested} in MLflow; {outcome}: {error}",
        alerting=Alerting.EVENT,
    )


# An unfinished decision


def _finish_decision(
    platform: Platform, spec: ModelSpec, snapshot: _Snapshot, actor: str, _read_bytes: bool
) -> Iterator[RegistryDrift]:
    """Finish a decision whose process exited before the alias was moved, or withdraw it if its evidence is gone."""
    champion = snapshot.champion
    if champion is None or snapshot.confirmed:
        return
    try:
        if champion.action == Action.PROMOTION:
            registration = Registration(model=spec.name, version=champion.version, candidate=champion.candidate)
            staged_evidence(platform, spec, registration)
        elif _find_bytes_problem(platform, champion, decided_candidate(platform.database, champion)):
            return  # `_repair_champion` repairs the bytes and finishes the decision
    except MissingInRegistryError:
        return
    except EvidenceError as error:
        yield _withdraw_promotion(platform, spec, champion, error, actor)
        return
    sync_alias(platform, spec.name)
    yield RegistryDrift(
        model=spec.name,
        what="DecisionFinished",
        version=champion.version,
        summary=f"The {champion.action} of version {champion.version} of {spec.name} was not finished: it is now.",
    )


def _withdraw_promotion(
    platform: Platform, spec: ModelSpec, champion: LedgerEntry, cause: EvidenceError, actor: str
) -> RegistryDrift:
    """Roll back to the previous champion; a model's first champion stays."""
    reason = f"withdrawn before it was shown: {str(cause).partition('. ')[0]}"
    entry, outcome = None, "withdrawn"
    try:
        entry = roll_back(platform, spec.name, load_spec=lambda _: spec, to=None, reason=reason, actor=actor)
    except (EvidenceError, DigestMismatchError, MissingInRegistryError) as error:
        outcome = f"left as it is: {error}"
    return RegistryDrift(
        model=spec.name,
        what="PromotionWithdrawn" if entry else "EvidenceLost",
        version=champion.version,
        summary=f"The promotion of version {champion.version} of {spec.name} was not finished, and is {outcome}: "
        f"{cause}",
        alerting=Alerting.EVENT if entry else Alerting.LASTING,
        entry=entry,
    )


# A missing or changed version


def _repair_champion(
    platform: Platform, spec: ModelSpec, snapshot: _Snapshot, actor: str, read_bytes: bool
) -> Iterator[RegistryDrift]:
    """Register the champion again from this host's verified copy if MLflow lost or changed it."""
    champion = snapshot.champion
    if champion is None:
        return
    problem, candidate = "was deleted in MLflow", decided_candidate(platform.database, champion)
    if champion.version in snapshot.shown.versions:
        intact = snapshot.shown.versions[champion.version] == champion.candidate
        read_bytes = read_bytes or not intact or not snapshot.confirmed
        problem = _find_bytes_problem(platform, champion, candidate) if read_bytes else ""
    if not problem:
        return
    reason = f"version {champion.version} {problem}"
    copy = platform.model_file(candidate)
    if copy.is_file() and file_digest(copy) == candidate.model_digest:
        yield from _replace_champion(platform, spec, candidate, champion, reason, actor)
        return
    reason = f"{reason}, and no verified copy is kept here"
    if not snapshot.confirmed and champion.action == Action.PROMOTION:
        yield _withdraw_promotion(platform, spec, champion, EvidenceError(reason), actor)
        return
    yield RegistryDrift(
        model=spec.name,
        what="VersionLost",
        version=champion.version,
        summary=f"The champion of {spec.name}: {reason}. Run ml-platform rollback, or retrain.",
        alerting=Alerting.LASTING,
    )


def _find_bytes_problem(platform: Platform, version: LedgerEntry | Registration, candidate: Candidate) -> str:
    """Return the problem of a version's bytes in MLflow; empty if they are the candidate's, which passed the gates."""
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        try:
            digest = file_digest(platform.registry.fetch(version.model, version.version, Path(folder)))
        except MissingInRegistryError:
            return "has lost its bytes in MLflow"
    return (
        ""
        if digest == candidate.model_digest
        else f"has other bytes in MLflow (sha256 {digest[:12]}) than those that were gated"
    )


def _replace_champion(
    platform: Platform, spec: ModelSpec, candidate: Candidate, champion: LedgerEntry, reason: str, actor: str
) -> Iterator[RegistryDrift]:
    """Register the champion's verified copy under a new number, and record the replacement in the ledger."""
    with platform.database.locked(promotion_lock(spec.name)) as held:
        if not held or platform.database.champion(spec.name) != champion:
            return  # another process is promoting: the next call sees its result
        require_sound_ledger(platform, spec.name)
        version = _register_again(platform, spec, candidate, champion)
        entry = decisions.replace_version(platform.database, champion, version, reason=reason, actor=actor)
        store_plan(platform, spec.name)
        sync_registry(platform, spec.name)
    yield RegistryDrift(
        model=spec.name,
        what="VersionReplaced",
        version=version,
        summary=f"The champion of {spec.name}: {reason}; its verified copy is registered again as version {version}.",
        alerting=Alerting.EVENT,
        entry=entry,
    )


def _register_again(platform: Platform, spec: ModelSpec, candidate: Candidate, champion: LedgerEntry) -> int:
    """Return the number of a version in MLflow with a candidate's bytes, created now or before a crash."""
    import pandas as pd

    taken = platform.database.version_numbers(spec.name)
    shown = platform.registry.shown(spec.name).versions
    for number in sorted(number for number, of in shown.items() if of == candidate.id and number not in taken):
        registered = Registration(model=spec.name, version=number, candidate=candidate.id)
        if not _find_bytes_problem(platform, registered, candidate):
            return number
    verdict = decided_verdict(platform.database, champion)
    features = pd.read_parquet(platform.candidate_folder(candidate) / golden_requests.GOLDEN_REQUESTS)
    documents = {VERDICT_FILE: verdict.document.encode()}
    with run_files(platform.model_file(candidate), features, documents) as files:
        folder = f"instead-of-version-{champion.version}"
        number, run_id = platform.registry.register_again(candidate, verdict, files, folder, taken)
    # Also at the root of a run that was created again.
    platform.registry.show_files(run_id, {**documents, **served_bytes(platform, candidate)})
    platform.database.link_mlflow_run(candidate.id, run_id)
    registered = Registration(model=spec.name, version=number, candidate=candidate.id)
    if problem := _find_bytes_problem(platform, registered, candidate):
        raise DigestMismatchError(f"Version {number} of {spec.name!r}, registered just now, {problem}.")
    return number


# Aliases and the anchor


def _restore_log(
    platform: Platform, spec: ModelSpec, snapshot: _Snapshot, _actor: str, _read_bytes: bool
) -> Iterator[RegistryDrift]:
    """Write the lines of the log of heads again that were there, as MLflow's anchor or later lines show."""
    heads, anchor = platform.ledger_anchor.heads(spec.name), snapshot.shown.head
    if snapshot.champion is None or not snapshot.confirmed:
        return
    last = max((head.sequence for head in heads), default=0)
    lost = not heads or bool(anchor_gaps(heads)) or (anchor is not None and anchor.sequence > last)
    if not lost:
        return
    log_in_file(platform, spec.name)
    yield _report_missing_anchor(spec.name, snapshot.champion.version, "The log of heads")


def _report_missing_anchor(model: str, version: int, where: str) -> RegistryDrift:
    return RegistryDrift(
        model=model,
        what="AnchorMissing",
        version=version,
        summary=f"{where} had lost entries of the ledger of {model}, and has them again. They were deleted, or a "
        f"process ended early. Compare the ledger with a copy: ml-platform history {model}.",
        alerting=Alerting.EVENT,
    )


def _restore_alias(
    platform: Platform, spec: ModelSpec, snapshot: _Snapshot, _actor: str, _read_bytes: bool
) -> Iterator[RegistryDrift]:
    """Restore the alias champion and MLflow's anchor of the ledger if they were deleted or are behind."""
    champion, alias = snapshot.champion, snapshot.shown.aliases.get("champion")
    if champion is None or not snapshot.confirmed or champion.version not in snapshot.shown.versions:
        return
    anchored = snapshot.head is not None and snapshot.shown.head == ledger_anchor.make_ledger_head(snapshot.head)
    if alias not in {None, champion.version} or (alias and anchored):
        return  # an alias that was moved again just now is a request for the next call
    sync_alias(platform, spec.name)
    if alias is not None and snapshot.shown.head is None:
        yield _report_missing_anchor(spec.name, champion.version, "MLflow's tag")
        return
    restored = f"The alias champion of {spec.name} was deleted in MLflow; it shows version {champion.version} again."
    updated = f"MLflow's anchor of the ledger of {spec.name} was behind; it is up to date now."
    yield RegistryDrift(
        model=spec.name,
        what="AliasRestored" if alias is None else "AnchorFollowed",
        version=champion.version,
        summary=restored if alias is None else updated,
        alerting=Alerting.EVENT if alias is None else Alerting.NONE,
    )


def _sync_other_aliases(platform: Platform, model: str, snapshot: _Snapshot) -> Iterator[RegistryDrift]:
    """Move challenger and staging to the newest versions in the platform's records."""
    database = platform.database
    newest_versions = {"challenger": database.newest_registered(model), "staging": database.newest_staged(model)}
    for alias, newest in newest_versions.items():
        shown = snapshot.shown.aliases.get(alias)
        if shown == (newest.version if newest else None):
            continue
        if newest is None:
            platform.registry.delete_alias(model, alias)
            summary = f"The alias {alias} of {model} shows nothing again."
            yield RegistryDrift(model=model, what="AliasFollowed", version=shown or 0, summary=summary)
        elif newest.version in snapshot.shown.versions:
            platform.registry.set_alias(model, alias, newest.version)
            summary = f"The alias {alias} of {model} shows version {newest.version} again."
            yield RegistryDrift(model=model, what="AliasFollowed", version=newest.version, summary=summary)
        # A version that was promoted before may be deleted.
        elif alias == "challenger" and all(entry.candidate != newest.candidate for entry in database.history(model)):
            summary = f"Version {newest.version} of {model} was deleted in MLflow before it was promoted: "
            yield RegistryDrift(
                model=model,
                what="ChallengerDeleted",
                version=newest.version,
                summary=f"{summary}ml-platform retrain {model} --reason … makes another.",
                alerting=Alerting.ONCE,
            )


def _find_unknown_versions(platform: Platform, model: str, snapshot: _Snapshot) -> Iterator[RegistryDrift]:
    """Report the versions that were registered in MLflow by hand; the platform never promotes them."""
    known = platform.database.version_numbers(model)
    for number in sorted(set(snapshot.shown.versions) - known):
        candidate = snapshot.shown.versions[number]
        try:  # a candidate without registration is being registered now, or its process crashed before it was recorded
            if candidate and not platform.database.find_registration(platform.database.candidate(candidate).id):
                continue
        except EvidenceError:
            log.debug("version %s of %s names the unknown candidate %s", number, model, candidate)
        summary = f"Version {number} of {model} was not registered by the platform: it is never promoted."
        yield RegistryDrift(model=model, what="UnknownVersion", version=number, summary=summary, alerting=Alerting.ONCE)


# Alerts


def alert(platform: Platform, differences: Collection[RegistryDrift], told: Collection[str] = ()) -> list[str]:
    """Raise alerts for differences: in the log, and in Alertmanager if the deployment has one.

    Parameters
    ----------
    platform : Platform
    differences : collection of RegistryDrift
    told : collection of str
        Keys that the last call returned: a lasting difference is reported once as long as it is found.

    Returns
    -------
    list of str
        Keys of the lasting differences, sorted.

    Raises
    ------
    AlertError
        Alertmanager did not accept the alerts; the log has them.
    """
    due = [
        drift
        for drift in differences
        if drift.alerting is Alerting.EVENT or (drift.alerting is not Alerting.NONE and drift.key not in told)
    ]
    write_log([_make_alert(drift) for drift in due])
    sent = [drift for drift in differences if drift.alerting is Alerting.LASTING or drift in due]
    send([_make_alert(drift) for drift in sent], platform.settings.alertmanager)
    return sorted(drift.key for drift in differences if drift.alerting in {Alerting.ONCE, Alerting.LASTING})


def _make_alert(drift: RegistryDrift) -> Alert:
    labels = {"model": drift.model, "version": str(drift.version)}
    return Alert(name=drift.what, summary=drift.summary, labels=labels)
