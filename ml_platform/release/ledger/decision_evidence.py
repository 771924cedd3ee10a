"""Verification of the evidence behind a ledger: verdicts, records of candidates, MLflow's runs and model files."""

import json
from collections.abc import Iterator, Sequence

from ml_platform.database.decided import decided_candidate, decided_verdict
from ml_platform.errors import EvidenceError, MissingInRegistryError, RegistryError
from ml_platform.inference.served_files import SERVED_LIST
from ml_platform.platform import Platform
from ml_platform.records.ledger import LedgerEntry, LedgerReport
from ml_platform.records.verdict import Candidate, Verdict
from ml_platform.storage.model_files import file_digest


def decision_problems(platform: Platform, entries: Sequence[LedgerEntry]) -> list[str]:
    """Return the problems of the verdicts and records behind a ledger's decisions, as sentences.

    It reads the database alone. Two decisions on the same candidate report a problem once.
    """
    problems = dict[tuple[str, str], str]()
    for entry in entries:
        if not entry.decides or (entry.candidate, entry.verdict_digest) in problems:
            continue
        try:
            decided_candidate(platform.database, entry)
        except EvidenceError as error:
            problem = f"entry {entry.sequence}, {entry.action} of version {entry.version}: {_first_sentence(error)}"
            problems[entry.candidate, entry.verdict_digest] = problem
    return list(problems.values())


def record_problems(platform: Platform, model: str, entries: Sequence[LedgerEntry]) -> list[str]:
    """Return the differences between all verdicts and registrations of a model, its ledger and its log of heads.

    Raises
    ------
    LedgerError
        The log of heads has a line that the platform did not write.
    """
    stored, problems = platform.database.verdict_problems(model)
    logged = platform.ledger_anchor.verdicts(model)
    for candidate, digests in logged.items():
        problems += [
            f"the verdict {digest[:12]} on candidate {candidate!r} is in the log of heads, and not in the database"
            for digest in digests
            if stored.get(digest) != candidate
        ]
    for digest, candidate in stored.items():
        if candidate in logged and digest not in logged[candidate]:
            problems.append(f"the verdict {digest[:12]} on candidate {candidate!r} is not in the log of heads")
    for entry in {entry.candidate: entry for entry in entries if entry.decides}.values():
        registration = platform.database.find_registration(entry.candidate)
        expected = (entry.model, entry.version)
        if registration is None or (registration.model, registration.version) != expected:
            problems.append(f"the registration of version {entry.version} was changed or deleted")
        elif not platform.database.is_staged(registration):
            problems.append(f"the registration of version {entry.version} does not say that it was staged")
    return problems


def missing_verdict_lines(platform: Platform, model: str, entries: Sequence[LedgerEntry]) -> list[str]:
    """Return the decisions whose verdict has no line in the log of heads, although its release writes one."""
    logged, missing = platform.ledger_anchor.verdicts(model), dict[str, str]()
    for entry in entries:
        if entry.decides and entry.candidate not in logged and entry.verdict_digest not in missing:
            try:
                verdict = decided_verdict(platform.database, entry)
            except EvidenceError:
                continue  # `decision_problems` reports it
            if verdict.origin_digest is not None:
                digest = entry.verdict_digest
                missing[digest] = (
                    f"the log of heads has no line for the verdict {digest[:12]} of version {entry.version}"
                )
    return list(missing.values())


def find_anchor_problem(platform: Platform, candidate: Candidate, verdict: Verdict) -> str:
    """Return the reason why a verdict is not the one that log of heads and MLflow's run hold; empty if it is.

    A verdict of an earlier release has no line in the log; MLflow's run anchors it alone.

    Raises
    ------
    LedgerError
        The log of heads has a line that the platform did not write.
    RegistryError
        MLflow rejects the request, or does not respond.
    """
    logged = platform.ledger_anchor.verdicts(candidate.model).get(candidate.id, [])
    if verdict.digest not in logged[-1:] and (logged or verdict.origin_digest is not None):
        return f"the log of heads does not have the verdict {verdict.digest[:12]} as the last one on the candidate"
    try:
        return platform.registry.find_run_problem(candidate, verdict)
    except MissingInRegistryError as error:
        return f"its verdict has no anchor in MLflow: {_first_sentence(error)}"


def store_problems(platform: Platform, entries: Sequence[LedgerEntry]) -> tuple[list[str], list[str]]:
    """Return the problems of decisions' MLflow runs, and the runs that are missing.

    Raises
    ------
    RegistryError
        MLflow rejects a request, or does not respond.
    """
    problems, missing = list[str](), list[str]()
    for entry, candidate in _decided_candidates(platform, entries):
        try:
            verdict = decided_verdict(platform.database, entry)
            if problem := platform.registry.find_run_problem(candidate, verdict):
                problems.append(f"version {entry.version}: {problem}")
        except MissingInRegistryError as error:
            missing.append(f"version {entry.version}: {_first_sentence(error)}")
    return problems, missing


def file_problems(platform: Platform, entries: Sequence[LedgerEntry]) -> list[str]:
    """Return the files of decided candidates on this host that differ from the digests of their verdicts.

    A file that is not on this host is no problem: it is fetched again, and checked by its digest.
    """
    return [
        f"version {entry.version}: {problem}"
        for entry, candidate in _decided_candidates(platform, entries)
        for problem in _find_changed_files(platform, candidate)
    ]


def verify_stores(platform: Platform, model: str, entries: Sequence[LedgerEntry], *, ask_mlflow: bool) -> LedgerReport:
    """Verify what no decision reads: all verdicts and registrations, files on this host and runs in MLflow."""
    problems = record_problems(platform, model, entries)
    problems += file_problems(platform, entries)
    missing, unread = missing_verdict_lines(platform, model, entries), list[str]()
    try:
        changed, gone = store_problems(platform, entries) if ask_mlflow else ([], [])
        problems, missing = [*problems, *changed], [*missing, *gone]
    except RegistryError as error:
        unread.append(str(error))
    return LedgerReport(
        model=model, entries=len(entries), problems=tuple(problems), missing=tuple(missing), unread=tuple(unread)
    )


def _decided_candidates(platform: Platform, entries: Sequence[LedgerEntry]) -> Iterator[tuple[LedgerEntry, Candidate]]:
    """Yield the last decision on each candidate, and the candidate; `decision_problems` reports the others."""
    for entry in {entry.candidate: entry for entry in entries if entry.decides}.values():
        try:
            yield entry, decided_candidate(platform.database, entry)
        except EvidenceError:
            continue


def _find_changed_files(platform: Platform, candidate: Candidate) -> Iterator[str]:
    folder = platform.candidate_folder(candidate)
    digests = {platform.model_file(candidate).name: candidate.model_digest, SERVED_LIST: candidate.served_digest}
    served = folder / SERVED_LIST
    if served.is_file() and file_digest(served) == candidate.served_digest:
        digests |= json.loads(served.read_bytes())
    for name, digest in digests.items():
        if digest is not None and (folder / name).is_file() and file_digest(folder / name) != digest:
            yield f"{name} of candidate {candidate.id} on this host has other bytes than those that were gated"


def _first_sentence(error: Exception) -> str:
    return str(error).partition(". ")[0].removesuffix(".")
