import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ml_platform.database import PlatformDatabase
from ml_platform.errors import ApprovalNeededError, ApprovalRefusedError, ConflictError, EvidenceError
from ml_platform.model_spec import Approval
from ml_platform.records.canonical import sha256_text
from ml_platform.records.ledger import GivenApproval, LedgerEntry, Person, approval_audience
from ml_platform.records.verdict import Candidate, Lineage
from ml_platform.release.ledger.champions import champion_stack
from ml_platform.release.ledger.decisions import approve, confirm, given_approval, is_confirmed, promote, roll_back
from ml_platform_tests.support import fakes


@pytest.fixture
def database(tmp_path: Path) -> Iterator[PlatformDatabase]:
    opened = PlatformDatabase(f"sqlite:///{tmp_path / 'platform.db'}")
    yield opened
    opened.close()


def trained(database: PlatformDatabase, version: int, **changes: Any) -> Candidate:
    """Return the candidate of a version; candidates are trained in the order of the calls."""
    try:
        return database.candidate(f"candidate-{version}")
    except EvidenceError:
        database.record_candidate(fakes.candidate(f"candidate-{version}", **changes))
    return database.candidate(f"candidate-{version}")


def promote_numbered(database: PlatformDatabase, version: int, reason: str = "schedule", **changes: Any) -> LedgerEntry:
    candidate = trained(database, version, **changes)
    verdict = fakes.verdict(candidate)
    return promote(database, fakes.registration(candidate, version), verdict, reason=reason, actor="test")


def test_the_first_promotion_opens_the_ledger(database: PlatformDatabase) -> None:
    entry = promote_numbered(database, 1)

    assert (entry.sequence, entry.version, entry.previous_version) == (1, 1, None)
    assert database.champion("visits") == entry


def test_promotion_names_evidence_reason_and_actor(database: PlatformDatabase) -> None:
    candidate = fakes.candidate()
    verdict = fakes.verdict(candidate)

    registration = fakes.registration(candidate, 3)
    entry = promote(database, registration, verdict, reason="manual: a test", actor="ada")

    assert (entry.action, entry.candidate, entry.verdict_digest) == ("promotion", candidate.id, verdict.digest)
    assert (entry.reason, entry.actor) == ("manual: a test", "ada")


def test_each_promotion_follows_the_one_before(database: PlatformDatabase) -> None:
    for version in (1, 5, 2):
        promote_numbered(database, version)

    history = database.history("visits")
    assert [entry.version for entry in history] == [1, 5, 2]
    assert [entry.sequence for entry in history] == [1, 2, 3]
    assert [entry.previous_version for entry in history] == [None, 1, 5]


def test_promoting_the_champion_again_changes_nothing(database: PlatformDatabase) -> None:
    promote_numbered(database, 1)
    first = promote_numbered(database, 2, reason="schedule")

    again = promote_numbered(database, 2, reason="manual: once more")

    assert again == first
    assert len(database.history("visits")) == 2


def test_promotion_of_older_candidate_is_a_conflict(database: PlatformDatabase) -> None:
    slow = trained(database, 2)
    champion = promote_numbered(database, 3)

    with pytest.raises(
        ConflictError, match="Version 3 of 'visits' is champion and was trained on newer rows, or later"
    ):
        promote_numbered(database, 2)

    assert slow.trained_at < trained(database, 3).trained_at
    assert database.history("visits") == [champion]


def test_promotion_of_older_rows_is_a_conflict(database: PlatformDatabase) -> None:
    old_rows = replace(fakes.candidate().lineage, dataset_version=1)
    champion = promote_numbered(database, 1)

    with pytest.raises(ConflictError, match="trained on newer rows"):
        promote_numbered(database, 2, lineage=old_rows)

    assert database.champion("visits") == champion


class Held(PlatformDatabase):
    """A database whose readers of the champion wait for each other."""

    all_have_read = threading.Barrier(2)

    def champion(self, model: str) -> LedgerEntry | None:
        champion = super().champion(model)
        self.all_have_read.wait(timeout=20)
        return champion


@pytest.mark.fault("P7")
@pytest.mark.parametrize("champions_before", [0, 1])
def test_two_promotions_at_once_one_is_a_conflict(database: PlatformDatabase, champions_before: int) -> None:
    for version in range(1, champions_before + 1):
        promote_numbered(database, version)
    for version in (8, 9):
        trained(database, version)
    address = database.url.render_as_string(hide_password=False)
    outcomes: dict[int, str] = {}

    def try_to_promote(version: int) -> None:
        reference = Held(address)
        try:
            outcomes[version] = f"promoted {promote_numbered(reference, version).version}"
        except ConflictError:
            outcomes[version] = "conflict"
        finally:
            reference.close()

    threads = [threading.Thread(target=try_to_promote, args=(version,)) for version in (8, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    (winner,) = [version for version, outcome in outcomes.items() if outcome == f"promoted {version}"]
    assert sorted(outcomes.values()) == ["conflict", f"promoted {winner}"]
    history = database.history("visits")
    assert [entry.sequence for entry in history] == list(range(1, champions_before + 2))
    assert [entry.previous_version for entry in history] == [None, *(entry.version for entry in history[:-1])]
    assert history[-1].version == winner


# Confirmations


def test_a_decision_is_confirmed_once(database: PlatformDatabase) -> None:
    entry = promote_numbered(database, 1)
    assert not is_confirmed(database, entry)

    assert [confirm(database, entry), confirm(database, entry)] == [True, True]

    assert is_confirmed(database, entry)
    assert [each.action for each in database.ledger("visits")] == ["promotion", "confirmation"]
    assert database.champion("visits") == entry
    assert database.history("visits") == [entry]


def test_confirmation_of_older_decision_is_refused(database: PlatformDatabase) -> None:
    first = promote_numbered(database, 1)
    promote_numbered(database, 2)

    assert not confirm(database, first)
    assert not is_confirmed(database, first)


class Late(PlatformDatabase):
    """A database whose ledger gets another entry right after each read of its head."""

    def ledger_head(self, model: str) -> LedgerEntry | None:
        head = super().ledger_head(model)
        if head is not None and head.action == "promotion":
            reference = fakes.candidate("reference")
            note = replace(head, sequence=head.sequence + 1, action="request", previous_digest=head.digest)
            self.append_to_ledger(replace(note, candidate=reference.id, previous_version=head.version))
        return head


def test_confirmation_after_another_entry_is_refused(database: PlatformDatabase) -> None:
    entry = promote_numbered(database, 1)
    late = Late(database.url.render_as_string(hide_password=False))

    assert not confirm(late, entry)
    assert not is_confirmed(database, entry)
    late.close()


# Rollbacks


def roll_back_to(database: PlatformDatabase, version: int) -> LedgerEntry:
    target = fakes.registration(trained(database, version), version)
    return roll_back(database, target, "0" * 64, reason="it is worse", actor="ada")


def test_a_rollback_is_a_decision_with_its_reason(database: PlatformDatabase) -> None:
    for version in (1, 2):
        promote_numbered(database, version)

    entry = roll_back_to(database, 1)

    assert database.champion("visits") == entry
    assert (entry.action, entry.version, entry.previous_version) == ("rollback", 1, 2)
    assert (entry.reason, entry.actor, entry.candidate) == ("it is worse", "ada", "candidate-1")


def test_rolling_back_to_the_champion_is_a_conflict(database: PlatformDatabase) -> None:
    promote_numbered(database, 1)

    with pytest.raises(ConflictError, match="Version 1 of 'visits' is champion already"):
        roll_back_to(database, 1)


STEPS = {
    "p1": ([1], set()),
    "p1 p2 p3": ([1, 2, 3], set()),
    "p1 p2 r1": ([1], {2}),
    "p1 p2 p3 r1": ([1], {2, 3}),
    "p1 p2 p3 r2": ([1, 2], {3}),
    "p1 p2 r1 p3": ([1, 3], {2}),
    "p1 p2 r1 r2": ([1, 2], {1}),
    "p1 p2 p3 r1 r3": ([1, 3], {1, 2}),
    "p1 p2 r1 p3 r1": ([1], {2, 3}),
    "p1 p2 r1 p3 r2": ([1, 3, 2], {3}),
}


@pytest.mark.parametrize("steps", STEPS)
def test_champion_stack_follows_from_history(steps: str) -> None:
    actions = {"p": "promotion", "r": "rollback"}
    decision = LedgerEntry(
        model="visits",
        sequence=1,
        action="promotion",
        version=1,
        previous_version=None,
        candidate="",
        verdict_digest="",
        reason="",
        actor="",
        recorded_at=fakes.candidate().trained_at,
    )
    history = [replace(decision, action=actions[step[0]], version=int(step[1])) for step in steps.split()]

    assert champion_stack(history) == STEPS[steps]


def test_promotion_of_rolled_back_version_is_refused(database: PlatformDatabase) -> None:
    for version in (1, 2):
        promote_numbered(database, version)
    champion = roll_back_to(database, 1)

    for reason in ("schedule", "manual: again"):
        with pytest.raises(EvidenceError, match=r"Version 2 of 'visits' was rolled back: .*rollback visits --to 2"):
            promote_numbered(database, 2, reason=reason)

    assert database.champion("visits") == champion


def test_promotion_of_version_skipped_by_rollback_is_refused(database: PlatformDatabase) -> None:
    for version in (1, 2, 3):
        promote_numbered(database, version)
    roll_back_to(database, 1)

    with pytest.raises(EvidenceError, match="Version 2 of 'visits' was rolled back"):
        promote_numbered(database, 2)


def make_lineage(reason: str, rows: str = "dataset") -> Lineage:
    return replace(fakes.candidate().lineage, reason=reason, dataset_digest=sha256_text(rows))


def test_promotion_of_same_model_retrained_automatically_is_refused(database: PlatformDatabase) -> None:
    for version in (1, 2):
        promote_numbered(database, version, lineage=make_lineage("arrival", f"rows {version}"))
    champion = roll_back_to(database, 1)

    with pytest.raises(
        EvidenceError, match="made from the same rows, code and lock as version 2, which was rolled back"
    ):
        promote_numbered(database, 3, lineage=make_lineage("schedule", "rows 2"))

    assert database.champion("visits") == champion


@pytest.mark.parametrize("lineage", [make_lineage("manual: I looked", "rows 2"), make_lineage("schedule", "rows 3")])
def test_promotion_of_manual_or_new_rows_candidate_succeeds(database: PlatformDatabase, lineage: Lineage) -> None:
    for version in (1, 2):
        promote_numbered(database, version, lineage=make_lineage("arrival", f"rows {version}"))
    roll_back_to(database, 1)

    assert promote_numbered(database, 3, lineage=lineage).version == 3


@pytest.mark.fault("A4")
@pytest.mark.parametrize("requested_at", [None, datetime(2024, 1, 1, tzinfo=UTC)], ids=["unknown", "before"])
@pytest.mark.parametrize("likeness", ["making", "bytes"])
def test_manual_retraining_requested_before_rollback_is_refused(
    database: PlatformDatabase, requested_at: datetime | None, likeness: str
) -> None:
    for version in (1, 2):
        promote_numbered(database, version, lineage=make_lineage("arrival", f"rows {version}"))
    champion = roll_back_to(database, 1)
    same_bytes, other_bytes = sha256_text("candidate-2"), sha256_text("candidate-3")
    rows, digest, message = {
        "making": ("rows 2", other_bytes, "was made from the same rows, code and lock as version 2"),
        "bytes": ("rows 3", same_bytes, "has the same bytes as version 2"),
    }[likeness]

    with pytest.raises(EvidenceError, match=rf"Version 3 of 'visits' {message}.*rollback visits --to 3"):
        promote_numbered(
            database,
            3,
            lineage=make_lineage("manual: new prices", rows),
            model_digest=digest,
            requested_at=requested_at,
        )

    assert database.champion("visits") == champion


@pytest.mark.fault("A4")
def test_manual_retraining_requested_after_rollback_is_promoted(database: PlatformDatabase) -> None:
    for version in (1, 2):
        promote_numbered(database, version, lineage=make_lineage("arrival", f"rows {version}"))
    roll_back_to(database, 1)

    entry = promote_numbered(
        database, 3, lineage=make_lineage("manual: again", "rows 2"), model_digest=sha256_text("candidate-2")
    )

    assert entry.version == 3


@pytest.mark.fault("A4")
def test_trigger_retraining_with_rolled_back_bytes_is_refused(database: PlatformDatabase) -> None:
    for version in (1, 2):
        promote_numbered(database, version)
    roll_back_to(database, 1)

    with pytest.raises(EvidenceError, match="has the same bytes as version 2, which was rolled back"):
        promote_numbered(
            database, 3, lineage=make_lineage("schedule", "rows 3"), model_digest=sha256_text("candidate-2")
        )


def test_rollback_to_rolled_back_version_restores_it(database: PlatformDatabase) -> None:
    for version in (1, 2):
        promote_numbered(database, version)
    roll_back_to(database, 1)

    assert roll_back_to(database, 2).version == 2
    assert promote_numbered(database, 2).action == "rollback"


# Approvals

RULE = Approval(authenticated_by=("os_user", "token"), expires_after_hours=24)
BOB = Person(name="bob@desk", authenticated_by="os_user", identity={"uid": "7"})


def promote_approved(
    database: PlatformDatabase, candidate: Candidate, version: int = 1, **metrics: float
) -> LedgerEntry:
    verdict, registration = fakes.verdict(candidate, **metrics), fakes.registration(candidate, version)
    return promote(database, registration, verdict, reason="schedule", actor="test", needed=RULE)


def give_approval(
    database: PlatformDatabase, candidate: Candidate, person: Person = BOB, rule: Approval = RULE
) -> GivenApproval:
    registration, verdict = fakes.registration(candidate, 1), fakes.verdict(candidate)
    return approve(database, registration, verdict, rule, person, reason="looked at it")


def test_promotion_without_approval_records_one_request(database: PlatformDatabase) -> None:
    candidate = trained(database, 1, actor="ada@desk")

    for _ in range(2):
        with pytest.raises(ApprovalNeededError, match=r"waits for approval.*ml-platform approve visits 1 --reason"):
            promote_approved(database, candidate)

    (request,) = database.ledger("visits")
    assert (request.action, request.version, request.actor) == ("request", 1, "ada@desk")
    assert database.champion("visits") is None
    assert database.newest_settled_candidate("visits") == candidate


def test_promotion_names_its_approval(database: PlatformDatabase) -> None:
    candidate = trained(database, 1, actor="ada@desk")
    approval = give_approval(database, candidate)

    entry = promote_approved(database, candidate)

    assert entry.details == {"approval": approval.digest}
    recorded, _ = database.ledger("visits")
    assert recorded.digest == approval.digest
    assert given_approval(recorded) == approval
    assert (recorded.action, recorded.actor, recorded.reason) == ("approval", "bob@desk", "looked at it")
    assert approval.expires_at - approval.approved_at == timedelta(hours=24)


def test_an_approval_is_for_one_verdict_alone(database: PlatformDatabase) -> None:
    candidate = trained(database, 1)
    give_approval(database, candidate)

    with pytest.raises(ApprovalNeededError):
        promote_approved(database, candidate, auc_roc=0.9)
    with pytest.raises(ApprovalNeededError):
        promote_approved(database, trained(database, 2), version=2)


def test_an_approval_expires(database: PlatformDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = trained(database, 1)
    approval = give_approval(database, candidate)

    monkeypatch.setattr("ml_platform.release.ledger.decisions.now", lambda: approval.expires_at)
    with pytest.raises(ApprovalNeededError, match=r"The approval by bob@desk expired at 20.*UTC\."):
        promote_approved(database, candidate)
    monkeypatch.setattr("ml_platform.release.ledger.decisions.now", lambda: approval.expires_at - timedelta(seconds=1))

    assert promote_approved(database, candidate).version == 1


@pytest.mark.parametrize("name", ["ada@desk", "ada@elsewhere", "ADA@token", "ada"])
def test_approval_by_training_requester_is_refused(database: PlatformDatabase, name: str) -> None:
    candidate = trained(database, 1, actor="ada@desk")

    with pytest.raises(ApprovalRefusedError, match="asked for the training of candidate candidate-1"):
        give_approval(database, candidate, replace(BOB, name=name))

    assert database.ledger("visits") == []


@pytest.mark.fault("A1")
@pytest.mark.parametrize("way", ["os_user", "token"])
def test_approval_by_training_user_is_refused(database: PlatformDatabase, way: str) -> None:
    candidate = trained(database, 1, actor="carl@github", trained_by="bob@runner")

    with pytest.raises(ApprovalRefusedError, match="bob@desk trained candidate candidate-1, in the name of carl"):
        give_approval(database, candidate, replace(BOB, authenticated_by=way))

    assert database.ledger("visits") == []


def github_reviewer(name: str, candidate: Candidate, version: int = 1) -> Person:
    """Return the reviewer of a job whose token is for the verdict on a candidate."""
    audience = approval_audience("visits", version, fakes.verdict(candidate).digest)
    return Person(name=f"{name}@github", authenticated_by="github_environment", identity={"aud": audience})


@pytest.mark.fault("A1")
def test_approval_by_token_for_other_verdict_is_refused(database: PlatformDatabase) -> None:
    rule = Approval(authenticated_by=("github_environment",))
    candidate, other = (trained(database, version, actor="ada@desk") for version in (1, 2))

    for reviewer in (github_reviewer("bob", other), github_reviewer("bob", candidate, version=2)):
        with pytest.raises(ApprovalRefusedError, match="issued for another approval than ml-platform:visits:1:"):
            give_approval(database, candidate, reviewer, rule)
    by_variables = Person(name="bob@github", authenticated_by="github_environment", identity={"reviewer": "bob"})
    with pytest.raises(ApprovalRefusedError, match="issued for another approval"):
        give_approval(database, candidate, by_variables, rule)


@pytest.mark.fault("A1")
def test_approval_in_github_ignores_shared_user(database: PlatformDatabase) -> None:
    rule = Approval(authenticated_by=("github_environment",))
    candidate = trained(database, 1, actor="carl@github", trained_by="runner@host")
    reviewer = github_reviewer("runner", candidate)

    assert give_approval(database, candidate, reviewer, rule).person == reviewer

    with pytest.raises(ApprovalRefusedError, match="carl@github asked for the training"):
        give_approval(database, candidate, replace(reviewer, name="carl@github"), rule)


@pytest.mark.fault("A1")
def test_approval_of_triggered_training_by_its_user_succeeds(database: PlatformDatabase) -> None:
    candidate = trained(database, 1, actor=None, trained_by="bob@desk")

    assert give_approval(database, candidate).person == BOB


def test_approval_of_training_without_actor_succeeds(database: PlatformDatabase) -> None:
    candidate = trained(database, 1, actor=None)

    assert give_approval(database, candidate).person == BOB


def test_approval_by_other_authentication_is_refused(database: PlatformDatabase) -> None:
    github = replace(BOB, authenticated_by="github_environment")

    with pytest.raises(ApprovalRefusedError, match=r"accepts approvals by os_user, token\. Got github_environment"):
        give_approval(database, trained(database, 1), github)


def test_approval_by_formerly_accepted_authentication_is_refused(database: PlatformDatabase) -> None:
    candidate = trained(database, 1)
    wide = Approval(authenticated_by=("github_environment",))
    give_approval(database, candidate, github_reviewer("bob", candidate), wide)

    with pytest.raises(ApprovalNeededError, match="Got github_environment instead"):
        promote_approved(database, candidate)


def test_approval_of_rolled_back_version_is_refused(database: PlatformDatabase) -> None:
    promote_numbered(database, 1)
    second = trained(database, 2)
    approve(database, fakes.registration(second, 2), fakes.verdict(second), RULE, BOB, reason="fine")
    promote_approved(database, second, version=2)
    roll_back_to(database, 1)

    with pytest.raises(EvidenceError, match="was rolled back"):
        promote_approved(database, second, version=2)
