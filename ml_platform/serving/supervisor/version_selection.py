"""The versions that a server has to serve, read from the ledger, its evidence and the traffic plan, not from aliases.

The ledger's entry names a verdict by digest, the verdict names the model's file by digest, and this host's copies are
verified against both. A plan splits traffic between champions only: a plan with another version is ignored, and the
champion gets all traffic.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from ml_platform.database.decided import chained_candidate
from ml_platform.errors import (
    RESTORE,
    ConfigurationError,
    DatabaseUnavailableError,
    EvidenceError,
    LedgerError,
    MissingFilesError,
    ModelError,
    PlatformError,
    RegistryError,
)
from ml_platform.model_spec import Rollout
from ml_platform.platform import Platform
from ml_platform.records.ledger import LedgerEntry, LedgerHead
from ml_platform.records.verdict import Candidate
from ml_platform.release.ledger.champions import champion_stack
from ml_platform.release.ledger.follow import require_sound_ledger
from ml_platform.release.ledger.verification import anchor_problems
from ml_platform.release.rollout import policy
from ml_platform.serving import version_cache
from ml_platform.serving.state import STATE_FILE, DesiredState, ServedVersion
from ml_platform.serving.supervisor.background_fetches import BackgroundFetches
from ml_platform.storage.ledger_anchor import make_ledger_head

log = logging.getLogger("ml_platform.serving")

# Number of former champions whose files a host keeps for rollbacks.
FORMER_CHAMPIONS = 3
# Pause before an unchanged ledger is read again because a version cannot be served, in seconds; it doubles.
MIN_PAUSE, MAX_PAUSE = 2.0, 30.0

UNCHANGED = "The server continues with the versions that it serves now."

Mark = tuple[object, ...]


class VersionSelector:
    """Selects the versions that a server has to serve.

    Each call queries a cheap mark of the database; ledger and evidence are read only if the mark has changed, a fetch
    has ended, or a version could not be served and its pause is over. No call waits for MLflow, except
    `store_champion`: files that are not on this host are fetched in the background.

    Parameters
    ----------
    platform : Platform
    model : str
    home : Path
        The folder of the model's server, for the local copies.
    on_fetched : callable
        Called in another thread after the files of a version were fetched, or could not be.

    Attributes
    ----------
    seen : tuple of (int, str) or None
        Sequence and digest of the ledger's last entry that this host has followed: a ledger without it was truncated
        or replaced. ``None`` before the first entry.
    missing : list of ServedVersion
        The versions of the last reading whose files are not on this host; most are being fetched.
    """

    def __init__(
        self, platform: Platform, model: str, home: Path, on_fetched: Callable[[], None] = lambda: None
    ) -> None:
        self.platform = platform
        self.model = model
        self.home = home
        self.seen: tuple[int, str] | None = None
        self.missing: list[ServedVersion] = []
        self._on_fetched = on_fetched
        self._fetches = BackgroundFetches(self._note_fetch)
        self._mark: Mark | None = None
        self._again = threading.Event()
        self._pause, self._retry_at = 0.0, math.inf
        self._refusal: PlatformError | None = None

    def reset_mark(self) -> None:
        """Make the next `read_changes` read the whole state."""
        self._again.set()

    def _note_fetch(self) -> None:
        self.reset_mark()
        self._on_fetched()

    def read_changes(self) -> DesiredState | None:
        """Return the desired state; ``None`` if it has not changed since the last call.

        Raises
        ------
        DatabaseUnavailableError
            The database does not answer, or its file does not exist.
        LedgerError
            The ledger does not verify.
        EvidenceError
            There is no champion, or its evidence is missing or not valid.
        MissingFilesError
            This host does not have the files of the stable version; they may be being fetched.
        """
        state = None
        try:
            require_database(self.platform)
            mark = self.platform.database.traffic_mark(self.model)
            if mark != self._mark or self._again.is_set() or time.monotonic() >= self._retry_at:
                self._again.clear()
                self._pause = min(max(2 * self._pause, MIN_PAUSE), MAX_PAUSE) if mark == self._mark else MIN_PAUSE
                state = self._read_marked_state(mark)
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseUnavailableError(
                f"The platform's database does not answer: {str(error).splitlines()[0]}. {UNCHANGED}"
            ) from error
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)  # it is raised at each call, and must not grow
        return state

    def _read_marked_state(self, mark: Mark) -> DesiredState | None:
        """Return the state, and remember its mark; ``None`` if it cannot be served, with the reason in `_refusal`."""
        self._mark = self._refusal = None  # a database that does not answer is asked again at the next call
        state = None
        try:
            state = self._read_state()
        except DatabaseUnavailableError:
            raise
        except PlatformError as error:
            self._refusal = error
        healthy = state is not None and not state.problems
        self._mark, self._retry_at = mark, math.inf if healthy else time.monotonic() + self._pause
        return state

    def _read_state(self) -> DesiredState:
        database = self.platform.database
        require_sound_ledger(self.platform, self.model, ask_mlflow=False, evidence=False)
        self._require_last_followed_entry()
        history, head = database.history(self.model), database.ledger_head(self.model)
        if not history or head is None:
            raise EvidenceError(f"{self.model!r} has no champion yet. Train one: ml-platform retrain {self.model}.")
        champions, _ = champion_stack(history)
        self.missing = []
        plan = policy.in_force(history, database.traffic_plan(self.model)) or policy.make_single_version_plan(
            history[-1], sequence=1
        )
        versions, problems = self._store_versions(plan.versions, history)
        if plan.stable not in versions:
            raise MissingFilesError(problems[plan.stable])
        former = [version for version in champions if version != history[-1].version][-FORMER_CHAMPIONS:]
        known, missing = self._store_versions(former, history)
        rollback_target = dict([*known.items()][-1:])
        last = make_ledger_head(head)
        self.seen = (last.sequence, last.digest)
        return DesiredState(
            model=self.model,
            revision=0,
            plan=plan,
            arms={**rollback_target, **versions},
            known=tuple(known.values()),
            deadline_ms=(policy.read_declared_rollout(history) or Rollout()).deadline_ms,
            ledger_head=self.seen,
            decision=history[-1].sequence,
            problems={**missing, **problems},
        )

    def _require_last_followed_entry(self) -> None:
        """Refuse a ledger without the entry that this host followed last."""
        if self.seen is None:
            return
        head = LedgerHead(model=self.model, sequence=self.seen[0], digest=self.seen[1])
        stored = self.platform.database.stored_ledger(self.model)
        if problems := anchor_problems("this host's server", [head], stored):
            raise LedgerError(
                f"The ledger of {self.model!r} does not contain the entry that this host followed last: {problems[0]}. "
                f"{UNCHANGED} {RESTORE}"
            )

    def _store_versions(
        self, versions: Sequence[int], history: Sequence[LedgerEntry]
    ) -> tuple[dict[int, ServedVersion], dict[int, str]]:
        """Store verified local copies of versions; return the stored versions, and the problems of the others."""
        stored, problems = dict[int, ServedVersion](), dict[int, str]()
        for version in versions:
            try:
                stored[version] = self._store_from_host(version, history)
            except (EvidenceError, ModelError) as error:
                problems[version] = str(error)
                log.warning("version %s of %s cannot be served: %s", version, self.model, error)
        return stored, problems

    def store_copy(self, version: int) -> ServedVersion:
        """Store a verified local copy of a champion or former champion from the files of this host; return the version.

        Raises
        ------
        EvidenceError
            The version never was champion, or its evidence is missing or not valid.
        MissingFilesError
            This host does not have its files; they are being fetched.
        """
        return self._store_from_host(version, self.platform.database.history(self.model))

    def _store_from_host(self, version: int, history: Sequence[LedgerEntry]) -> ServedVersion:
        """Store a verified local copy of a version from this host's files; start to fetch them if there are none."""
        served, candidate = self._find_version(version, history)
        try:
            version_cache.store_version_files(self.home, served, [lambda _: self.platform.candidate_folder(candidate)])
        except MissingFilesError:
            self.missing.append(served)
            problem = self._fetches.start(served, lambda: self._store_from_anywhere(served, candidate))
            raise MissingFilesError(
                problem
                or f"Version {version} cannot be served yet: its files are not on this host and are being fetched from "
                f"MLflow. {UNCHANGED}"
            ) from None
        return served

    def _store_from_anywhere(self, served: ServedVersion, candidate: Candidate) -> None:
        """Store a verified local copy of a version from this host's files or MLflow's, which may take long."""

        def fetch_from_mlflow(folder: Path) -> Path:
            if candidate.mlflow_run_id is None:
                raise ModelError(f"candidate {candidate.id} has no MLflow run")
            folder.mkdir()
            try:
                return self.platform.registry.fetch_folder(candidate.mlflow_run_id, "serving", folder)
            except RegistryError as error:
                raise ModelError(str(error)) from error

        local_folder = self.platform.candidate_folder
        version_cache.store_version_files(self.home, served, [lambda _: local_folder(candidate), fetch_from_mlflow])

    def _find_version(self, version: int, history: Sequence[LedgerEntry]) -> tuple[ServedVersion, Candidate]:
        """Return a version with the digests from the ledger's evidence, and its candidate."""
        entry = next((entry for entry in reversed(history) if entry.version == version), None)
        if entry is None:
            raise EvidenceError(
                f"{self.model!r} never had version {version} as its champion. To list its champions: ml-platform "
                f"history {self.model}"
            )
        candidate = chained_candidate(self.platform.database, entry)
        if candidate.served_digest is None:
            raise EvidenceError(
                f"Version {version} of {self.model!r} was evaluated before the platform had servers, so files that "
                f"they need are missing. Train another version: ml-platform retrain {self.model} --reason …"
            )
        served = ServedVersion(
            version=version,
            candidate=candidate.id,
            model_digest=candidate.model_digest,
            served_digest=candidate.served_digest,
        )
        return served, candidate

    def store_champion(self, version: int | None) -> ServedVersion:
        """Store a verified local copy of the champion (``None``) or of an earlier champion, and return the version.

        Raises
        ------
        LedgerError
            The ledger does not verify.
        EvidenceError
            The version never was champion, or its evidence is missing or not valid.
        DigestMismatchError
            No source has its files.
        """
        require_sound_ledger(self.platform, self.model, ask_mlflow=False, evidence=False)
        self._require_last_followed_entry()
        history = self.platform.database.history(self.model)
        if not history:
            raise EvidenceError(f"{self.model!r} has no champion yet. Train one: ml-platform retrain {self.model}.")
        served, candidate = self._find_version(history[-1].version if version is None else version, history)
        self._store_from_anywhere(served, candidate)
        return served


@dataclass(frozen=True)
class RollbackTarget:
    """The version after a rollback, and the number of the one before it."""

    target: ServedVersion
    leaves: int


def find_rollback_target(state: DesiredState, to: int | None) -> RollbackTarget:
    """Return a rollback's target: the requested version, or the previous champion for ``None``.

    Raises
    ------
    EvidenceError
        There is no earlier champion, or this host does not have the version's files.
    """
    if not state.known:
        raise EvidenceError(f"This host has no champion of {state.model!r} before version {state.champion}.")
    if to is None:
        return RollbackTarget(state.known[-1], state.champion)
    target = next((served for served in state.known if served.version == to), None)
    if target is None:
        raise EvidenceError(
            f"The target of a rollback of {state.model!r} must be an earlier champion on this host, one of "
            f"{[served.version for served in state.known]}. Got version {to} instead. Choose one of them, or run: "
            f"ml-platform rollback {state.model} --to {to} --reason …"
        )
    return RollbackTarget(target, state.champion)


def require_servable_model(platform: Platform, model: str, declared: Sequence[str]) -> None:
    """Refuse the name of a model that is neither declared nor in the ledger, as a typing error is.

    A model that this host has served before is not refused: it is served without the database, too. A database that
    does not answer refuses no name.

    Raises
    ------
    ConfigurationError
        No model has this name; the message lists the known names.
    """
    if model in declared or (platform.settings.serving_home(model) / STATE_FILE).exists():
        return
    known = set(declared)
    url = sa.make_url(platform.settings.database)
    if url.get_backend_name() != "sqlite" or (url.database and Path(url.database).is_file()):
        try:
            known |= set(platform.database.ledger_models())
        except (PlatformError, sa.exc.SQLAlchemyError) as error:
            log.warning("the ledger cannot be read: %s", error)
            return
    if model not in known:
        raise ConfigurationError(
            f"There is no model {model!r}: it is not declared, and the ledger has no entry of it. Known models: "
            f"{', '.join(sorted(known)) or 'none'}."
        )


def require_database(platform: Platform) -> None:
    """Check that the database exists: opening a SQLite file that was deleted would create an empty one.

    Raises
    ------
    DatabaseUnavailableError
        The file does not exist, or the database cannot be opened.
    """
    url = sa.make_url(platform.settings.database)
    if url.get_backend_name() == "sqlite" and not (url.database and Path(url.database).is_file()):
        raise DatabaseUnavailableError(f"The platform's database {url.database} does not exist. {UNCHANGED} {RESTORE}")
    try:
        platform.database  # noqa: B018 - it is opened
    except (ConfigurationError, sa.exc.SQLAlchemyError) as error:
        raise DatabaseUnavailableError(f"{error} {UNCHANGED}") from error
