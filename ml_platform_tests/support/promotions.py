"""Promotions and rollbacks of versions that are staged without training."""

from dataclasses import replace

from ml_platform.model_spec import Approval, ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.canonical import sha256_text
from ml_platform.records.ledger import LedgerEntry, Person, Registration
from ml_platform.records.verdict import Lineage
from ml_platform.release import rollback
from ml_platform.release.promote import promote_version
from ml_platform_tests.support import fakes

SPEC = fakes.uncompared_spec()
MANUAL = fakes.uncompared_spec(approval=Approval(authenticated_by=("os_user", "token")))
BOB = Person(name="bob@desk", authenticated_by="os_user", identity={"uid": "7"})


def rows(name: str) -> Lineage:
    """Return the lineage of a candidate that was trained on the named rows."""
    return replace(fakes.candidate().lineage, dataset_digest=sha256_text(name))


def promoted(platform: Platform, spec: ModelSpec = SPEC) -> LedgerEntry:
    """Promote a new version with new rows."""
    number = platform.database.count_candidates("visits", 3)
    return promote(platform, fakes.staged_version(platform, lineage=rows(f"rows {number}")), spec)


def promote(platform: Platform, version: Registration, spec: ModelSpec = SPEC) -> LedgerEntry:
    """Promote a staged version."""
    candidate = platform.database.candidate(version.candidate)
    return promote_version(platform, spec, candidate, reason="schedule", actor="test")


def roll_back(platform: Platform, to: int | None = None, spec: ModelSpec = SPEC) -> LedgerEntry:
    """Roll back to a version, or to the previous champion."""
    return rollback.roll_back(
        platform, "visits", load_spec=lambda _: spec, to=to, reason="it is worse", actor="ada@desk"
    )
