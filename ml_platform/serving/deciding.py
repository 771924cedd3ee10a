"""What a server must serve, read from the ledger and its evidence, and the plan: never from an alias.

A decision names a verdict by digest, the verdict the model's file, and the copies on this host are held against both.
A plan moves traffic between champions only: one that names anything else is refused, and the champion is served alone.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from ml_platform.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    DigestMismatchError,
    EvidenceError,
    ModelError,
    RegistryError,
)
from ml_platform.model_spec import Rollout
from ml_platform.records import Candidate, LedgerEntry
from ml_platform.serving import copies
from ml_platform.serving.state import DesiredState, ServedVersion
from ml_platform.stages import rollout
from ml_platform.stages.ledger import head_of
from ml_platform.stages.promotion import standing
from ml_platform.workflows import Platform
from ml_platform.workflows.ledger import require_sound_ledger

log = logging.getLogger("ml_platform.serving")

# How many former champions a host keeps, ready for a rollback.
FORMER = 3

Mark = tuple[object, ...]


class Decisions:
    """Reads what a server must serve; the database is asked for more than a mark only where that has changed.

    Parameters
    ----------
    platform : Platform
    model : str
    home : Path
        The folder of the model's server, for the kept copies.
    """

    def __init__(self, platform: Platform, model: str, home: Path) -> None:
        self.platform = platform
        self.model = model
        self.home = home
        self._mark: Mark | None = None

    def mark(self) -> Mark:
        """Return what changes whenever something changes that a server obeys; one cheap query.

        Raises
        ------
        DatabaseUnavailableError
            The database does not answer, or is gone.
        """
        require_database(self.platform)
        return self.platform.database.traffic_mark(self.model)

    def forget_mark(self) -> None:
        """Let the next look read everything again."""
        self._mark = None

    def look(self) -> DesiredState | None:
        """Return what is to be served; ``None`` where nothing changed since the last look that succeeded.

        Raises
        ------
        DatabaseUnavailableError
            The database does not answer, or is gone.
        LedgerError
            The ledger does not verify.
        EvidenceError
            There is no champion, or no evidence for the one there is.
        DigestMismatchError
            The files of the version that must answer are nowhere.
        """
        try:
            mark = self.mark()
            if mark == self._mark:
                return None
            state = self._read()
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseUnavailableError(
                f"The platform's database does not answer: {str(error).splitlines()[0]}. What is served stays."
            ) from error
        self._mark = mark
        return state

    def _read(self) -> DesiredState:
        database = self.platform.database
        require_sound_ledger(self.platform, self.model, ask_mlflow=False)
        history, head = database.history(self.model), database.ledger_head(self.model)
        if not history or head is None:
            raise EvidenceError(f"{self.model!r} has no champion yet. Train one: ml-platform retrain {self.model}.")
        champions, _ = standing(history)
        plan = rollout.in_force(history, database.traffic_plan(self.model)) or rollout.alone(history[-1], sequence=1)
        arms, problems = self._kept(plan.versions, history)
        if plan.stable not in arms:
            raise DigestMismatchError(problems[plan.stable])
        former = [version for version in champions if version != history[-1].version][-FORMER:]
        known, missing = self._kept(former, history)
        back_to = dict([*known.items()][-1:])
        shown = head_of(head)
        return DesiredState(
            model=self.model,
            revision=0,
            plan=plan,
            arms={**back_to, **arms},
            known=tuple(known.values()),
            deadline_ms=(rollout.rollout_of(history) or Rollout()).deadline_ms,
            ledger_head=(shown.sequence, shown.digest),
            decision=history[-1].sequence,
            problems={**missing, **problems},
        )

    def _kept(
        self, versions: Sequence[int], history: Sequence[LedgerEntry]
    ) -> tuple[dict[int, ServedVersion], dict[int, str]]:
        """Return the versions whose files are here and right, and why the others are not."""
        kept, problems = dict[int, ServedVersion](), dict[int, str]()
        for version in versions:
            try:
                served, candidate = self._proved(version, history)
                copies.keep(self.home, served, self._sources(candidate))
                kept[version] = served
            except (EvidenceError, ModelError) as error:
                problems[version] = str(error)
                log.warning("version %s of %s is not served: %s", version, self.model, error)
        return kept, problems

    def _proved(self, version: int, history: Sequence[LedgerEntry]) -> tuple[ServedVersion, Candidate]:
        """Return a version with the digests that the ledger's evidence names."""
        entry = next(entry for entry in reversed(history) if entry.version == version)
        verdict = self.platform.database.verdict_under(entry.verdict_digest)
        if verdict.candidate != entry.candidate or not verdict.passed:
            raise EvidenceError(
                f"The verdict that made version {version} of {self.model!r} champion speaks of another candidate, or "
                "did not pass. It is not served."
            )
        candidate = self.platform.database.candidate(entry.candidate)
        if candidate.served_digest is None:
            raise EvidenceError(
                f"Version {version} of {self.model!r} was judged before there were servers: what they need of it is "
                f"not there. Train another: ml-platform retrain {self.model} --reason …"
            )
        served = ServedVersion(
            version=version,
            candidate=candidate.id,
            model_digest=verdict.model_digest,
            served_digest=candidate.served_digest,
        )
        return served, candidate

    def bring(self, version: int | None) -> ServedVersion:
        """Have the files of one version here, verified; ``None`` asks for the champion.

        Raises
        ------
        LedgerError
            The ledger does not verify.
        EvidenceError
            It never was champion, or its evidence does not hold.
        DigestMismatchError
            Its files are nowhere.
        """
        require_sound_ledger(self.platform, self.model, ask_mlflow=False)
        history = self.platform.database.history(self.model)
        number = history[-1].version if version is None and history else version
        if number not in {entry.version for entry in history}:
            what = "has no champion yet" if number is None else f"never had version {number} as its champion"
            raise EvidenceError(f"{self.model!r} {what}. Look at `ml-platform history {self.model}`.")
        served, candidate = self._proved(int(number or 0), history)
        copies.keep(self.home, served, self._sources(candidate))
        return served

    def _sources(self, candidate: Candidate) -> list[copies.Source]:
        def from_this_host(_: Path) -> Path:
            return self.platform.candidate_folder(candidate)

        def from_mlflow(folder: Path) -> Path:
            if candidate.mlflow_run_id is None:
                raise ModelError(f"candidate {candidate.id} has no MLflow run")
            folder.mkdir()
            try:
                return self.platform.registry.fetch_folder(candidate.mlflow_run_id, "serving", folder)
            except RegistryError as error:
                raise ModelError(str(error)) from error

        return [from_this_host, from_mlflow]


@dataclass(frozen=True)
class Back:
    """Where a rollback goes, and from where."""

    target: ServedVersion
    leaves: int


def way_back(state: DesiredState, to: int | None) -> Back:
    """Return where a rollback goes: to the version that is asked for, else to the champion before.

    Raises
    ------
    EvidenceError
        There is none before, or its files are not kept here.
    """
    if not state.known:
        raise EvidenceError(f"No champion of {state.model!r} stands before version {state.champion} on this host.")
    if to is None:
        return Back(state.known[-1], state.champion)
    found = [served for served in state.known if served.version == to]
    if not found:
        kept = [served.version for served in state.known]
        raise EvidenceError(
            f"Version {to} of {state.model!r} is none of the champions that are kept here, {kept}. Name one of them, "
            f"or run: ml-platform rollback {state.model} --to {to} --reason …"
        )
    return Back(found[0], state.champion)


def require_database(platform: Platform) -> None:
    """Refuse to go on without the database; one that is a file and is gone must not be made again, empty.

    Raises
    ------
    DatabaseUnavailableError
        It is gone, or cannot be opened.
    """
    url = sa.make_url(platform.settings.database)
    if url.get_backend_name() == "sqlite" and not (url.database and Path(url.database).is_file()):
        raise DatabaseUnavailableError(f"The platform's database {url.database} is gone. What is served stays.")
    try:
        platform.database  # noqa: B018 - it is opened
    except (ConfigurationError, sa.exc.SQLAlchemyError) as error:
        raise DatabaseUnavailableError(f"{error} What is served stays.") from error
