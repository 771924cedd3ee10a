"""Records of dataset versions, candidates, verdicts and registrations."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from ml_platform.database.engine import DatabaseEngine
from ml_platform.database.tables import candidates, datasets, ledger, registrations, verdicts
from ml_platform.errors import ConflictError, EvidenceError, ForgottenError
from ml_platform.records.canonical import now
from ml_platform.records.data import DatasetVersion
from ml_platform.records.ledger import Action, Registration
from ml_platform.records.verdict import Candidate, Lineage, Verdict


class CandidateRecords(DatabaseEngine):
    """Records of dataset versions, candidates, verdicts and registrations."""

    def record_dataset(self, dataset: DatasetVersion) -> None:
        """Pin a dataset version.

        Raises
        ------
        ConflictError
            The version is already pinned under another digest: its rows have changed.
        ForgottenError
            Its rows have changed because a person's data was erased.
        """
        with self._transaction() as connection:
            query = sa.select(datasets.c.digest, datasets.c.forgotten_at).where(
                datasets.c.model == dataset.model, datasets.c.version == dataset.version
            )
            digest, forgotten_at = connection.execute(query).first() or (None, None)
            if digest is None:
                connection.execute(datasets.insert().values(**asdict(dataset), pinned_at=now()))
            # guard: erased-dataset
            elif forgotten_at is not None:
                raise ForgottenError(
                    f"Version {dataset.version} of the dataset of {dataset.model!r} lost rows on "
                    f"{forgotten_at:%Y-%m-%d} because a person's data was erased: it cannot be reproduced. "
                    f"Train on a newer version: ml-platform retrain {dataset.model}."
                )
            # guard: changed-dataset
            elif digest != dataset.digest:
                raise ConflictError(
                    f"Version {dataset.version} of the dataset of {dataset.model!r} was pinned with digest "
                    f"{digest[:12]} and now has {dataset.digest[:12]}: its files were changed. Restore them."
                )

    def newest_dataset(self, model: str) -> DatasetVersion | None:
        """Return the highest dataset version that is pinned; ``None`` before the first."""
        query = sa.select(datasets).where(datasets.c.model == model).order_by(datasets.c.version.desc()).limit(1)
        row = self._row(query)
        return DatasetVersion(**{k: row[k] for k in ("model", "version", "digest", "rows")}) if row else None

    def dataset_before(self, dataset: DatasetVersion) -> DatasetVersion | None:
        """Return the highest pinned dataset version below this one; ``None`` if there is none."""
        earlier = sa.and_(datasets.c.model == dataset.model, datasets.c.version < dataset.version)
        row = self._row(sa.select(datasets).where(earlier).order_by(datasets.c.version.desc()).limit(1))
        return DatasetVersion(**{k: row[k] for k in ("model", "version", "digest", "rows")}) if row else None

    def record_candidate(self, candidate: Candidate) -> None:
        """Store a candidate with a new identifier."""
        fields = {**asdict(candidate), **asdict(candidate.lineage)}
        del fields["lineage"]
        version = candidate.lineage.dataset_version
        trained_on = sa.and_(datasets.c.model == candidate.model, datasets.c.version == version)
        with self._transaction() as connection:
            fields["forgotten_at"] = connection.scalar(sa.select(datasets.c.forgotten_at).where(trained_on))
            connection.execute(candidates.insert().values(fields))

    def link_mlflow_run(self, candidate: str, run_id: str) -> None:
        """Store the identifier of a candidate's MLflow run."""
        with self._transaction() as connection:
            connection.execute(candidates.update().where(candidates.c.id == candidate).values(mlflow_run_id=run_id))

    def record_served(self, candidate: str, digest: str) -> None:
        """Store the digest of the list of files that a server needs of a candidate."""
        with self._transaction() as connection:
            connection.execute(candidates.update().where(candidates.c.id == candidate).values(served_digest=digest))

    def candidate(self, identifier: str) -> Candidate:
        """Return one candidate.

        Raises
        ------
        EvidenceError
            There is no such candidate.
        """
        row = self._row(sa.select(candidates).where(candidates.c.id == identifier))
        if row is None:
            raise EvidenceError(f"There is no candidate {identifier!r}. Train one: ml-platform retrain MODEL.")
        return _candidate(row)

    def candidates_by_id(self, identifiers: Sequence[str]) -> list[Candidate]:
        """Return the candidates with some identifiers in the order of training; unknown identifiers are left out."""
        query = sa.select(candidates).where(candidates.c.id.in_(identifiers)).order_by(candidates.c.trained_at)
        with self._transaction() as connection:
            return [_candidate(dict(row._mapping)) for row in connection.execute(query)]

    def newest_candidate(self, model: str, run_id: str | None = None) -> Candidate | None:
        """Return the candidate that was trained last, by any or by one Dagster run; ``None`` if there is none."""
        query = sa.select(candidates).where(candidates.c.model == model)
        if run_id is not None:
            query = query.where(candidates.c.run_id == run_id)
        row = self._row(query.order_by(candidates.c.trained_at.desc()).limit(1))
        return _candidate(row) if row else None

    def newest_settled_candidate(self, model: str) -> Candidate | None:
        """Return the newest candidate that was refused or is named in the ledger; ``None`` if there is none.

        The ledger also names a candidate that waits for an approval. A candidate that passed its gates and has no
        entry, or was never judged, is not settled: its run was interrupted. An erasure's entry does not count.
        """
        refused = sa.select(verdicts.c.candidate).where(verdicts.c.passed.is_(False))
        named = sa.select(ledger.c.candidate).where(ledger.c.action != Action.ERASURE)
        settled = sa.or_(candidates.c.id.in_(refused), candidates.c.id.in_(named))
        query = sa.select(candidates).where(candidates.c.model == model, settled)
        row = self._row(query.order_by(candidates.c.trained_at.desc()).limit(1))
        return _candidate(row) if row else None

    def count_candidates(self, model: str, dataset_version: int) -> int:
        """Count the candidates that were trained on a dataset version."""
        of_version = sa.and_(candidates.c.model == model, candidates.c.dataset_version == dataset_version)
        with self._transaction() as connection:
            return int(connection.scalar(sa.select(sa.func.count()).where(of_version)) or 0)

    def record_verdict(self, verdict: Verdict) -> None:
        """Store a verdict under its digest; storing it twice changes nothing."""
        with self._transaction() as connection:
            if connection.scalar(sa.select(verdicts.c.digest).where(verdicts.c.digest == verdict.digest)) is None:
                connection.execute(
                    verdicts.insert().values(
                        digest=verdict.digest,
                        candidate=verdict.candidate,
                        passed=verdict.passed,
                        document=verdict.document,
                        judged_at=now(),
                    )
                )

    def verdict_on(self, candidate: str) -> Verdict | None:
        """Return the newest verdict on a candidate; ``None`` if it was never judged.

        Raises
        ------
        EvidenceError
            The stored document has another digest than it was stored under, or is not a verdict.
        """
        query = sa.select(verdicts).where(verdicts.c.candidate == candidate).order_by(verdicts.c.judged_at.desc())
        row = self._row(query.limit(1))
        # guard: no-stored-verdict
        if row is None:
            return None
        return _read_verdict(row)

    def verdict_under(self, digest: str) -> Verdict:
        """Return the verdict that is stored under a digest.

        Raises
        ------
        EvidenceError
            There is none, or the stored document has another digest or is not a verdict.
        """
        row = self._row(sa.select(verdicts).where(verdicts.c.digest == digest))
        if row is None:
            raise EvidenceError(f"There is no verdict {digest[:12]}. Judge its candidate again.")
        return _read_verdict(row)

    def verdict_problems(self, model: str) -> tuple[dict[str, str], list[str]]:
        """Return the candidates of a model's stored verdicts by digest, and the verdicts that were changed."""
        query = sa.select(verdicts).join(candidates, candidates.c.id == verdicts.c.candidate)
        rows, problems = dict[str, str](), list[str]()
        with self._transaction() as connection:
            found = [dict(row) for row in connection.execute(query.where(candidates.c.model == model)).mappings()]
        for row in found:
            rows[row["digest"]] = row["candidate"]
            try:
                _read_verdict(row)
            except EvidenceError as error:
                problems.append(str(error).partition(". ")[0])
        return rows, problems

    def record_registration(self, registration: Registration) -> None:
        """Store a candidate's version number in the registry; storing it twice changes nothing."""
        if self.find_registration(registration.candidate) is None:
            with self._transaction() as connection:
                connection.execute(registrations.insert().values(asdict(registration)))

    def find_registration(self, candidate: str) -> Registration | None:
        """Return the registration of a candidate; ``None`` if it has none."""
        row = self._row(sa.select(registrations).where(registrations.c.candidate == candidate))
        return _registration(row) if row else None

    def registration(self, model: str, version: int) -> Registration | None:
        """Return the registration of a version number; ``None`` if there is none."""
        this = sa.and_(registrations.c.model == model, registrations.c.version == version)
        row = self._row(sa.select(registrations).where(this))
        return _registration(row) if row else None

    def newest_registered(self, model: str) -> Registration | None:
        """Return the registration of the candidate that was trained last; ``None`` if none is registered."""
        return self._newest(registrations.c.model == model)

    def newest_staged(self, model: str) -> Registration | None:
        """Return the newest registration that passed its integration tests; ``None`` if none did."""
        return self._newest(sa.and_(registrations.c.model == model, registrations.c.staged_at.is_not(None)))

    def _newest(self, condition: sa.ColumnElement[bool]) -> Registration | None:
        # Ordered by training, not by number: an old version that was deleted in MLflow is registered again under a new
        # number.
        joined = sa.select(registrations).join(candidates, candidates.c.id == registrations.c.candidate)
        newest = joined.where(condition).order_by(candidates.c.trained_at.desc(), registrations.c.version.desc())
        row = self._row(newest.limit(1))
        return _registration(row) if row else None

    def version_numbers(self, model: str) -> set[int]:
        """Return every version number in use or in the ledger; none of them may be given to another candidate."""
        registered = sa.select(registrations.c.version).where(registrations.c.model == model)
        recorded = sa.select(ledger.c.version).where(ledger.c.model == model)
        with self._transaction() as connection:
            return {*connection.scalars(registered), *connection.scalars(recorded)}

    def mark_staged(self, registration: Registration) -> None:
        """Record that a version passed its integration tests."""
        with self._transaction() as connection:
            connection.execute(
                registrations.update()
                .where(registrations.c.candidate == registration.candidate)
                .values(staged_at=now())
            )

    def is_staged(self, registration: Registration) -> bool:
        """Return True if a version passed its integration tests."""
        row = self._row(sa.select(registrations).where(registrations.c.candidate == registration.candidate))
        return bool(row and row["staged_at"])


def _read_verdict(row: Mapping[str, Any]) -> Verdict:
    """Return a stored verdict whose document is canonical, and whose digest and columns are those of the document."""
    candidate = row["candidate"]
    try:
        verdict = Verdict.from_document(row["document"])
        same, digest = verdict.document == row["document"], verdict.digest
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise EvidenceError(
            f"The verdict on candidate {candidate!r} cannot be read: {error}. Judge the candidate again."
        ) from error
    # guard: stored-verdict-form
    if not same:
        raise EvidenceError(
            f"The verdict on candidate {candidate!r} is not in its canonical form: it was changed since it was stored. "
            "Judge the candidate again."
        )
    # guard: stored-verdict-digest
    if digest != row["digest"]:
        raise EvidenceError(
            f"The verdict on candidate {candidate!r} has been changed since it was stored: digest {digest[:12]} "
            f"instead of {row['digest'][:12]}. Judge the candidate again."
        )
    # guard: stored-verdict-columns
    if (verdict.candidate, verdict.passed) != (candidate, row["passed"]):
        raise EvidenceError(
            f"The verdict on candidate {candidate!r} has other columns than its document says: it was changed since it "
            "was stored. Judge the candidate again."
        )
    return verdict


def _candidate(row: dict[str, Any]) -> Candidate:
    lineage = {name: row.pop(name) for name in Lineage.__dataclass_fields__}
    return Candidate(**row, lineage=Lineage(**lineage))


def _registration(row: dict[str, Any]) -> Registration:
    return Registration(model=row["model"], version=row["version"], candidate=row["candidate"])
