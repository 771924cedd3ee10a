"""Explanations of versions: decision, evidence, data and approvals, with SQLite and PostgreSQL."""

import json
from dataclasses import replace

import pytest
import sqlalchemy as sa

from ml_platform.errors import EvidenceError
from ml_platform.governance.explain import explain
from ml_platform.platform import Platform
from ml_platform.records.canonical import sha256_text
from ml_platform.release.promote import approve_version
from ml_platform_tests.support import fakes
from ml_platform_tests.support.promotions import BOB, MANUAL, SPEC, promote, promoted, roll_back, rows
from ml_platform_tests.support.steps import publish


def test_explain_champion_includes_all_evidence(deployment: Platform) -> None:
    first = promoted(deployment)
    second = fakes.staged_version(deployment, actor="ada@desk", run_id="run-2", lineage=rows("more"))
    approval, entry = approve_version(deployment, MANUAL, second.version, BOB, reason="looked at it")

    explanation = explain(deployment, "visits")

    candidate = deployment.database.candidate(second.candidate)
    assert (explanation["version"], explanation["is_champion"], explanation["was_rolled_back"]) == (
        second.version,
        True,
        False,
    )
    assert explanation["decision"] == {
        "action": "promotion",
        "when": entry.recorded_at.isoformat(),
        "by": "bob@desk",
        "reason": "schedule",
        "instead_of": first.version,
        "ledger_entry": entry.sequence,
        "ledger_digest": entry.digest,
        "approval": approval.digest,
        "shown_in_mlflow": True,
    }
    assert explanation["ledger"] == {"entries": 5, "verifies": True, "problems": [], "anchors": []}
    assert explanation["candidate"]["asked_for_by"] == "ada@desk"
    assert explanation["candidate"]["trained_by"] is None
    assert explanation["candidate"]["code_revision"] == candidate.lineage.code_revision
    assert explanation["candidate"]["lock_digest"] == candidate.lineage.lock_digest
    assert (explanation["dataset"]["version"], explanation["dataset"]["digest"]) == (3, sha256_text("more"))
    assert [gate["result"] for gate in explanation["gates"]] == ["PASS"] * len(SPEC.gates)
    assert explanation["verdict_page"] is None
    page = deployment.verdict_page(candidate)
    page.write_text("a page")
    assert explain(deployment, "visits")["verdict_page"] == str(page)
    assert [given["digest"] for given in explanation["approvals"]] == [approval.digest]
    json.dumps(explanation)


def test_explain_lists_arrivals_of_the_dataset_version(platform: Platform) -> None:
    for name in ("a", "b", "c"):
        fakes.drop(platform, f"{name}.parquet", fakes.visits(50, first=50 * ord(name)))
        publish(platform, SPEC)
    versions = [row["dataset_version"] for row in platform.database.arrival_outcomes("visits")]
    version = fakes.staged_version(platform, lineage=replace(rows("two"), dataset_version=versions[1]))
    promote(platform, version)

    arrivals = explain(platform, "visits")["dataset"]["arrivals"]

    assert [(arrival["name"], arrival["rows"]) for arrival in arrivals] == [("a.parquet", 50), ("b.parquet", 50)]


def test_explain_rolled_back_and_never_promoted_versions(platform: Platform) -> None:
    promoted(platform)
    second = promoted(platform)
    roll_back(platform)
    third = fakes.staged_version(platform)

    back, never = (explain(platform, "visits", number) for number in (second.version, third.version))

    assert (back["is_champion"], back["was_rolled_back"], back["decision"]["action"]) == (False, True, "promotion")
    assert (never["is_champion"], never["was_rolled_back"], never["decision"]) == (False, False, None)
    for number in (None, 9):
        with pytest.raises(EvidenceError, match=r"never had a champion|There is no version 9"):
            explain(platform, "others" if number is None else "visits", number)


def test_an_explanation_says_that_the_ledger_was_changed(platform: Platform) -> None:
    promoted(platform)
    fakes.behind_the_triggers(platform.database, "UPDATE ledger SET actor = 'other' WHERE sequence = 1")

    proof = explain(platform, "visits")["ledger"]

    assert proof["verifies"] is False
    assert "entry 1 was changed" in proof["problems"][0]


@pytest.mark.fault("E2")
def test_explain_shows_the_verdict_of_the_decision(platform: Platform) -> None:
    entry = promoted(platform)
    candidate = platform.database.candidate(entry.candidate)
    fakes.store_verdict(platform, fakes.verdict_by(SPEC, candidate, auc_roc=0.5))
    platform.verdict_page(candidate).write_text("the page of the newer verdict")

    explanation = explain(platform, "visits")

    assert explanation["verdict"] == entry.verdict_digest
    assert [gate["result"] for gate in explanation["gates"]] == ["PASS"] * len(SPEC.gates)
    assert explanation["verdict_page"] is None


@pytest.mark.fault("E1", "E2")
@pytest.mark.parametrize("statement", ["DELETE FROM verdicts", "UPDATE candidates SET model_digest = 'x'"])
def test_explain_reports_changed_evidence(platform: Platform, statement: str) -> None:
    promoted(platform)
    with platform.database._transaction() as connection:
        connection.execute(sa.text(statement))

    proof = explain(platform, "visits")["ledger"]

    assert proof["verifies"] is False
    assert "entry 1, promotion of version 1: " in proof["problems"][0]
