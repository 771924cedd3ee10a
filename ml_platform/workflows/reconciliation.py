"""MLflow held against the ledger: what people did there is granted, put back or registered again."""

import logging
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ml_platform.errors import ConflictError, DigestMismatchError, EvidenceError, MissingInRegistryError
from ml_platform.model_spec import ModelSpec
from ml_platform.monitoring.alerts import Alert, send, write_log
from ml_platform.predictor import file_digest
from ml_platform.records import (
    Action,
    Alerting,
    Candidate,
    Finding,
    LedgerEntry,
    Registration,
    ShownModel,
    Verdict,
)
from ml_platform.stages import ledger, promotion, staging
from ml_platform.stages.registry import run_files
from ml_platform.workflows.ledger import follow_ledger, promotion_lock, require_sound_ledger
from ml_platform.workflows.platform import Platform
from ml_platform.workflows.promotion import promote_version, roll_back, show_champion, staged_evidence
from ml_platform.workflows.served import served_bytes
from ml_platform.workflows.traffic import keep_plan

log = logging.getLogger("ml_platform")

# What the ledger says of a promotion that somebody asked for by moving the alias: MLflow does not say who.
ALIAS_REASON = "manual: alias moved in MLflow"
ALIAS_ACTOR = "MLflow alias"


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What the ledger and MLflow say at the same moment; `confirmed`: the alias has shown the champion before."""

    champion: LedgerEntry | None
    confirmed: bool
    head: LedgerEntry | None
    shown: ShownModel


def reconcile(platform: Platform, spec: ModelSpec, *, actor: str, read_bytes: bool = True) -> list[Finding]:
    """Compare what MLflow shows of a model with the ledger, whatever events were missed; mend what differs.

    Parameters
    ----------
    platform : Platform
    spec : ModelSpec
    actor : str
        Who looks; the ledger names them where a version is replaced or withdrawn.
    read_bytes : bool
        Whether the champion's bytes are downloaded and digested too; without it nothing but MLflow's tables is read.

    Returns
    -------
    list of Finding
        Empty where MLflow shows what the ledger says. Where somebody changes the ledger at this moment, the rest is
        left to the next look.

    Raises
    ------
    RegistryError
        MLflow refuses or does not answer: nothing was decided, the ledger stands.
    LedgerError
        The ledger, or its anchor in MLflow, is not what was written.
    """
    look = _look(platform, spec.name)
    findings = list[Finding]()
    for step in (_requested, _unfinished, _gone, _unshown):
        found = list(step(platform, spec, look, actor, read_bytes)) if look else []
        findings += found
        look = _look(platform, spec.name) if found else look
    if look:
        findings += [*_followers(platform, spec.name, look), *_strangers(platform, spec.name, look)]
    return findings


def _look(platform: Platform, model: str) -> _Look | None:
    """Read ledger and MLflow; ``None`` if the ledger moved on meanwhile, so that they are not of one moment."""
    head, champion = platform.database.ledger_head(model), platform.database.champion(model)
    confirmed = champion is not None and promotion.is_confirmed(platform.database, champion)
    shown = platform.registry.shown(model)
    if platform.database.ledger_head(model) != head:
        return None
    return _Look(champion=champion, confirmed=confirmed, head=head, shown=shown)


# An alias that was moved: a request


def _requested(platform: Platform, spec: ModelSpec, look: _Look, _actor: str, _read_bytes: bool) -> Iterator[Finding]:
    """Take the alias champion, moved by hand, as the wish to promote what it shows."""
    asked, champion = look.shown.aliases.get("champion"), look.champion
    if asked is None or (champion is not None and (asked == champion.version or not look.confirmed)):
        return
    try:
        entry = _promote(platform, spec, asked)
    except (EvidenceError, ConflictError, MissingInRegistryError) as error:
        yield _refused(platform, spec.name, look, asked, error)
    else:
        summary = f"The alias champion of {spec.name} was moved to version {asked}, whose evidence holds: promoted."
        yield Finding(model=spec.name, what="RequestGranted", version=asked, summary=summary, entry=entry)


def _promote(platform: Platform, spec: ModelSpec, version: int) -> LedgerEntry:
    registration = platform.database.registration(spec.name, version)
    if registration is None:
        raise EvidenceError(f"The platform has not registered a version {version} of {spec.name!r}.")
    candidate = platform.database.candidate(registration.candidate)
    return promote_version(platform, spec, candidate, reason=ALIAS_REASON, actor=ALIAS_ACTOR)


def _refused(platform: Platform, model: str, look: _Look, asked: int, error: Exception) -> Finding:
    """Put the alias back; where its version is gone too, the next step restores that."""
    champion = look.champion
    if champion is None:
        platform.registry.delete_alias(model, "champion")
    elif champion.version in look.shown.versions:
        show_champion(platform, model)
    stays = "there is no champion" if champion is None else f"version {champion.version} stays champion"
    return Finding(
        model=model,
        what="AliasMoveRefused",
        version=asked,
        summary=f"The alias champion of {model} was moved to version {asked} in MLflow; {stays}: {error}",
        alerting=Alerting.EVENT,
    )


# A promotion that nobody finished


def _unfinished(platform: Platform, spec: ModelSpec, look: _Look, actor: str, _read_bytes: bool) -> Iterator[Finding]:
    """Finish a decision whose process died before the alias showed it, or withdraw it if its evidence is gone."""
    champion = look.champion
    if champion is None or look.confirmed:
        return
    try:
        if champion.action == Action.PROMOTION:
            staged_evidence(platform, spec, _registration(champion))
        elif _bytes_problem(platform, champion):
            return  # `_gone` mends it and finishes the decision
    except MissingInRegistryError:
        return
    except EvidenceError as error:
        yield _withdrawn(platform, spec, champion, error, actor)
        return
    show_champion(platform, spec.name)
    yield Finding(
        model=spec.name,
        what="DecisionFinished",
        version=champion.version,
        summary=f"The {champion.action} of version {champion.version} of {spec.name} was not finished: it is now.",
    )


def _withdrawn(platform: Platform, spec: ModelSpec, champion: LedgerEntry, why: EvidenceError, actor: str) -> Finding:
    """Return to the champion before; a model that never had another keeps the one that it has."""
    reason = f"withdrawn before it was shown: {str(why).partition('. ')[0]}"
    entry, outcome = None, "withdrawn"
    try:
        entry = roll_back(platform, spec.name, lambda: spec, to=None, reason=reason, actor=actor)
    except (EvidenceError, DigestMismatchError, MissingInRegistryError) as error:
        outcome = f"left as it is: {error}"
    return Finding(
        model=spec.name,
        what="PromotionWithdrawn" if entry else "EvidenceLost",
        version=champion.version,
        summary=f"The promotion of version {champion.version} of {spec.name} was not finished, and is {outcome}: {why}",
        alerting=Alerting.EVENT if entry else Alerting.LASTING,
        entry=entry,
    )


# A version that is gone, or is not what it was


def _gone(platform: Platform, spec: ModelSpec, look: _Look, actor: str, read_bytes: bool) -> Iterator[Finding]:
    """Register the champion again from the verified copy where MLflow lost or changed it."""
    champion = look.champion
    if champion is None:
        return
    problem = "was deleted in MLflow"
    if champion.version in look.shown.versions:
        ours = look.shown.versions[champion.version] == champion.candidate
        read_bytes = read_bytes or not ours or not look.confirmed
        problem = _bytes_problem(platform, champion) if read_bytes else ""
    if problem:
        yield from _restored(platform, spec, look, champion, f"version {champion.version} {problem}", actor)


def _bytes_problem(platform: Platform, version: LedgerEntry | Registration) -> str:
    """Return what is wrong with a version's bytes in MLflow; empty if they are those that were gated."""
    gated = platform.database.candidate(version.candidate).model_digest
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        try:
            found = file_digest(platform.registry.fetch(version.model, version.version, Path(folder)))
        except MissingInRegistryError:
            return "has lost its bytes in MLflow"
    return "" if found == gated else f"has other bytes in MLflow (sha256 {found[:12]}) than those that were gated"


def _restored(
    platform: Platform, spec: ModelSpec, look: _Look, champion: LedgerEntry, why: str, actor: str
) -> Iterator[Finding]:
    candidate = platform.database.candidate(champion.candidate)
    copy = platform.model_file(candidate)
    if not copy.is_file() or file_digest(copy) != candidate.model_digest:
        yield _lost(platform, spec, look, champion, f"{why}, and no verified copy is kept here", actor)
        return
    with platform.database.locked(promotion_lock(spec.name)) as held:
        if not held or platform.database.champion(spec.name) != champion:
            return  # somebody else promotes: the next look sees what came of it
        require_sound_ledger(platform, spec.name)
        version = _registered_again(platform, spec, candidate, champion)
        entry = promotion.replace_version(platform.database, champion, version, reason=why, actor=actor)
        keep_plan(platform, spec.name)
        follow_ledger(platform, spec.name)
    yield Finding(
        model=spec.name,
        what="VersionReplaced",
        version=version,
        summary=f"The champion of {spec.name}: {why}; its verified copy is registered again as version {version}.",
        alerting=Alerting.EVENT,
        entry=entry,
    )


def _lost(platform: Platform, spec: ModelSpec, look: _Look, champion: LedgerEntry, why: str, actor: str) -> Finding:
    if not look.confirmed and champion.action == Action.PROMOTION:
        return _withdrawn(platform, spec, champion, EvidenceError(why), actor)
    return Finding(
        model=spec.name,
        what="VersionLost",
        version=champion.version,
        summary=f"The champion of {spec.name}: {why}. Run ml-platform rollback, or retrain.",
        alerting=Alerting.LASTING,
    )


def _registered_again(platform: Platform, spec: ModelSpec, candidate: Candidate, champion: LedgerEntry) -> int:
    """Return the number of a version in MLflow that holds a candidate's bytes, made now or before a crash."""
    taken = platform.database.version_numbers(spec.name)
    shown = platform.registry.shown(spec.name).versions
    for number in sorted(number for number, of in shown.items() if of == candidate.id and number not in taken):
        if not _bytes_problem(platform, Registration(model=spec.name, version=number, candidate=candidate.id)):
            return number
    verdict = platform.database.verdict_on(candidate.id)
    if verdict is None or verdict.digest != champion.verdict_digest:
        raise EvidenceError(f"The verdict on candidate {candidate.id} is not the one that its promotion stands on.")
    with _files(platform, candidate, verdict) as files:
        folder = f"instead-of-version-{champion.version}"
        number, run_id = platform.registry.register_again(candidate, verdict, files, folder, taken)
    platform.registry.show_files(run_id, served_bytes(platform, candidate))
    platform.database.link_mlflow_run(candidate.id, run_id)
    problem = _bytes_problem(platform, Registration(model=spec.name, version=number, candidate=candidate.id))
    if problem:
        raise DigestMismatchError(f"Version {number} of {spec.name!r}, registered just now, {problem}.")
    return number


@contextmanager
def _files(platform: Platform, candidate: Candidate, verdict: Verdict) -> Iterator[Path]:
    import pandas as pd

    features = pd.read_parquet(platform.candidate_folder(candidate) / staging.GOLDEN_REQUESTS)
    extra = {"verdict.json": verdict.document.encode()}
    with run_files(platform.model_file(candidate), features, extra) as files:
        yield files


def _registration(entry: LedgerEntry) -> Registration:
    return Registration(model=entry.model, version=entry.version, candidate=entry.candidate)


# Aliases and the anchor, which follow


def _unshown(platform: Platform, spec: ModelSpec, look: _Look, _actor: str, _read_bytes: bool) -> Iterator[Finding]:
    """Show the champion and the ledger's head again where somebody deleted or moved them."""
    champion, alias = look.champion, look.shown.aliases.get("champion")
    if champion is None or not look.confirmed or champion.version not in look.shown.versions:
        return
    anchored = look.head is not None and look.shown.head == ledger.head_of(look.head)
    if alias not in {None, champion.version} or (alias and anchored):
        return  # moved again at this moment: a request of the next look
    show_champion(platform, spec.name)
    lost = f"The alias champion of {spec.name} was deleted in MLflow; it shows version {champion.version} again."
    late = f"MLflow's anchor of the ledger of {spec.name} was behind; it follows."
    yield Finding(
        model=spec.name,
        what="AliasRestored" if alias is None else "AnchorFollowed",
        version=champion.version,
        summary=lost if alias is None else late,
        alerting=Alerting.EVENT if alias is None else Alerting.NONE,
    )


def _followers(platform: Platform, model: str, look: _Look) -> Iterator[Finding]:
    """Let challenger and staging show the newest versions of the platform's records."""
    database = platform.database
    for alias, wanted in (
        ("challenger", database.newest_registered(model)),
        ("staging", database.newest_staged(model)),
    ):
        shown = look.shown.aliases.get(alias)
        if shown == (wanted.version if wanted else None):
            continue
        if wanted is None:
            platform.registry.delete_alias(model, alias)
        elif wanted.version in look.shown.versions:
            platform.registry.set_alias(model, alias, wanted.version)
        else:
            yield from _deleted(platform, wanted, alias)
            continue
        number = wanted.version if wanted else shown or 0
        summary = f"The alias {alias} of {model} shows " + (f"version {number} again." if wanted else "nothing again.")
        yield Finding(model=model, what="AliasFollowed", version=number, summary=summary)


def _deleted(platform: Platform, wanted: Registration, alias: str) -> Iterator[Finding]:
    """Say that a version was deleted that nobody has decided on; one that had its turn may go."""
    decided = any(entry.candidate == wanted.candidate for entry in platform.database.history(wanted.model))
    if alias == "challenger" and not decided:
        what = f"Version {wanted.version} of {wanted.model} was deleted in MLflow before it was promoted"
        yield Finding(
            model=wanted.model,
            what="ChallengerDeleted",
            version=wanted.version,
            summary=f"{what}: ml-platform retrain {wanted.model} --reason … makes another.",
            alerting=Alerting.ONCE,
        )


def _strangers(platform: Platform, model: str, look: _Look) -> Iterator[Finding]:
    """Name the versions that somebody registered in MLflow by hand; the platform never promotes them."""
    ours = platform.database.version_numbers(model)
    for number in sorted(set(look.shown.versions) - ours):
        if not _is_under_way(platform, look.shown.versions[number]):
            summary = f"Version {number} of {model} was not registered by the platform: it is never promoted."
            yield Finding(model=model, what="UnknownVersion", version=number, summary=summary, alerting=Alerting.ONCE)


def _is_under_way(platform: Platform, candidate: str | None) -> bool:
    """Whether a registration stands between MLflow and the platform's database, or its run died there."""
    if candidate is None:
        return False
    try:
        known = platform.database.candidate(candidate)
    except EvidenceError:
        return False
    return platform.database.registration_of(known.id) is None


# Telling people


def alert(platform: Platform, findings: Collection[Finding], told: Collection[str] = ()) -> list[str]:
    """Tell people what they should look at: in the log, and by Alertmanager where the deployment names one.

    Parameters
    ----------
    platform : Platform
    findings : collection of Finding
    told : collection of str
        What the last call returned: who was told once is not told again as long as it is found.

    Returns
    -------
    list of str
        What is to be told once, and was.

    Raises
    ------
    AlertError
        Alertmanager did not take them; they stand in the log.
    """
    new = [finding for finding in findings if finding.alerting is Alerting.EVENT or finding.key not in told]
    write_log([_alert(finding) for finding in new if finding.alerting is not Alerting.NONE])
    sent = [
        finding
        for finding in findings
        if finding.alerting is Alerting.LASTING or (finding in new and finding.alerting is not Alerting.NONE)
    ]
    send([_alert(finding) for finding in sent], platform.settings.alertmanager)
    return sorted(finding.key for finding in findings if finding.alerting in {Alerting.ONCE, Alerting.LASTING})


def _alert(finding: Finding) -> Alert:
    labels = {"model": finding.model, "version": str(finding.version)}
    return Alert(name=finding.what, summary=finding.summary, labels=labels)
