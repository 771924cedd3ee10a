"""The digests of a decided version come from the ledger and the verdict."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ml_platform.database import PlatformDatabase
from ml_platform.database.decided import chained_candidate, decided_candidate
from ml_platform.database.tables import candidates
from ml_platform.errors import EvidenceError
from ml_platform.records.canonical import now, sha256_text
from ml_platform.records.ledger import LedgerEntry
from ml_platform.release.ledger import decisions
from ml_platform_tests.support import fakes

SERVED = sha256_text("served")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[PlatformDatabase]:
    opened = PlatformDatabase(f"sqlite:///{tmp_path / 'platform.db'}")
    yield opened
    opened.close()


def decide(database: PlatformDatabase, *, legacy: bool = False, **changes: Any) -> LedgerEntry:
    """Promote a candidate that a server can load; a legacy verdict binds neither origin nor served files."""
    candidate = fakes.candidate(served_digest=SERVED)
    verdict = fakes.verdict(candidate)
    if legacy:
        verdict = replace(verdict, origin_digest=None, served_digest=None)
    verdict = replace(verdict, **changes)
    registration = fakes.registration(candidate, 1)
    database.record_candidate(candidate)
    database.record_verdict(verdict)
    database.record_registration(registration)
    return decisions.promote(database, registration, verdict, reason="schedule", actor="test")


def edit(database: PlatformDatabase, **values: Any) -> None:
    with database._transaction() as connection:
        connection.execute(sa.update(candidates).values(**values))


def test_decided_candidate_is_the_stored_one(database: PlatformDatabase) -> None:
    decision = decide(database)

    assert decided_candidate(database, decision) == database.candidate(decision.candidate)


BOUND: dict[str, Any] = {
    "model_digest": "0" * 64,
    "dataset_version": 9,
    "dataset_digest": "0" * 64,
    "code_revision": "1" * 40,
    "lock_digest": "0" * 64,
    "served_digest": "0" * 64,
    "reason": "manual: mine",
    "actor": "eve@desk",
    "run_id": "other",
    "trained_at": now(),
}


@pytest.mark.fault("E1")
@pytest.mark.parametrize("field", BOUND)
def test_edited_record_of_decided_candidate_is_refused(database: PlatformDatabase, field: str) -> None:
    decision = decide(database)
    before = database.candidate(decision.candidate)
    edit(database, **{field: BOUND[field]})

    with pytest.raises(EvidenceError, match="was changed since its verdict"):
        decided_candidate(database, decision)
    chained = chained_candidate(database, decision)
    assert (chained.model_digest, chained.served_digest) == (before.model_digest, before.served_digest)


def test_legacy_verdict_binds_model_digest_alone(database: PlatformDatabase) -> None:
    decision = decide(database, legacy=True)
    edit(database, served_digest="0" * 64)
    assert decided_candidate(database, decision).served_digest == "0" * 64

    edit(database, model_digest="0" * 64)
    with pytest.raises(EvidenceError, match="model_digest"):
        decided_candidate(database, decision)


@pytest.mark.fault("E2")
@pytest.mark.parametrize("changes", [{"candidate": "20240101-000000-00000001", "model": "others"}, {"results": []}])
def test_verdict_of_other_model_or_failed_is_refused(database: PlatformDatabase, changes: dict[str, Any]) -> None:
    decision = decide(database, **changes)

    with pytest.raises(EvidenceError, match="belongs to another candidate, or did not pass"):
        decided_candidate(database, decision)


def erase(database: PlatformDatabase, decision: LedgerEntry, text: str) -> str:
    digest = sha256_text(text)
    database.record_served_again(database.candidate(decision.candidate), digest)
    return digest


def test_erasure_of_decided_candidate_is_an_entry(database: PlatformDatabase) -> None:
    decision = decide(database)

    erase(database, decision, "first")
    second = erase(database, decision, "second")

    *_, last = database.ledger("visits")
    assert (last.action, last.candidate, last.details) == ("erasure", decision.candidate, {"served_digest": second})
    assert decided_candidate(database, decision).served_digest == second
    assert database.champion("visits") == decision


def test_erasure_of_unregistered_candidate_is_no_entry(database: PlatformDatabase) -> None:
    candidate = fakes.candidate(served_digest=SERVED)
    verdict = fakes.verdict(candidate)
    database.record_candidate(candidate)
    database.record_verdict(verdict)

    database.record_served_again(candidate, "1" * 64)

    assert database.ledger("visits") == []
    assert database.candidate(candidate.id).served_digest == "1" * 64


def test_erasure_does_not_settle_a_candidate(database: PlatformDatabase) -> None:
    candidate = fakes.candidate(served_digest=SERVED)
    database.record_candidate(candidate)
    database.record_verdict(fakes.verdict(candidate))
    database.record_registration(fakes.registration(candidate, 1))

    database.record_served_again(candidate, "1" * 64)

    assert [entry.action for entry in database.ledger("visits")] == ["erasure"]
    assert database.newest_settled_candidate("visits") is None
