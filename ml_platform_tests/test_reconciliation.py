"""MLflow held against the ledger: what people do by hand in a real MLflow on SQLite, and what becomes of it."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from pydantic import SecretStr

from ml_platform import workflows
from ml_platform.database.tables import registrations
from ml_platform.errors import EvidenceError, LedgerError
from ml_platform.model_spec import Approval, ModelSpec
from ml_platform.predictor import MODEL_FILE, file_digest
from ml_platform.records import Alerting, Finding, LedgerEntry, Person, Registration, sha256_text
from ml_platform.stages import promotion, staging
from ml_platform.stages.registry import CANDIDATE_TAG, LEDGER_TAG, Registry
from ml_platform.workflows import Platform
from ml_platform_tests import fakes
from ml_platform_tests.test_ledger import promote_in_a_process

SPEC = fakes.unrivalled_spec()
MANUAL = fakes.unrivalled_spec(approval=Approval(authenticated_by=("os_user",)))
BOB = Person(name="bob@desk", authenticated_by="os_user", identity={"uid": "7"})


@pytest.fixture
def mlflow(platform: Platform) -> MlflowClient:
    """Whoever works in MLflow by hand."""
    return MlflowClient(platform.settings.tracking_uri, platform.settings.tracking_uri)


def staged(platform: Platform, name: str) -> Registration:
    """Return a version of rows of its own that waits for its promotion, as a run leaves it."""
    lineage = replace(fakes.candidate().lineage, dataset_digest=sha256_text(name))
    version = fakes.staged_version(platform, lineage=lineage)
    candidate = platform.database.candidate(version.candidate)
    fakes.visits(5)[SPEC.features].to_parquet(platform.candidate_folder(candidate) / staging.GOLDEN_REQUESTS)
    registry = platform.registry
    with registry._asking("tag the version") as client:
        client.set_model_version_tag("visits", str(version.version), CANDIDATE_TAG, candidate.id)
    registry.set_alias("visits", "challenger", version.version)
    registry.set_alias("visits", "staging", version.version)
    return version


def promote(platform: Platform, version: Registration, spec: ModelSpec = SPEC) -> LedgerEntry:
    candidate = platform.database.candidate(version.candidate)
    return workflows.promote_version(platform, spec, candidate, reason="schedule", actor="test")


def promoted(platform: Platform, name: str = "first") -> LedgerEntry:
    return promote(platform, staged(platform, name))


def reconcile(platform: Platform, spec: ModelSpec = SPEC, *, read_bytes: bool = True) -> list[Finding]:
    return workflows.reconcile(platform, spec, actor="test", read_bytes=read_bytes)


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def champion(platform: Platform) -> int:
    """Return the champion, after making sure that ledger, alias, bytes and anchors agree on it."""
    entry = platform.database.champion("visits")
    assert entry is not None
    assert platform.registry.alias("visits", "champion") == entry.version
    report = workflows.verify_ledger(platform, "visits")
    assert (report.problems, report.behind) == ((), ())
    assert reconcile(platform) == []
    return entry.version


def artifact(mlflow: MlflowClient, version: int) -> Path:
    source = mlflow.get_model_version_download_uri("visits", str(version))
    return Path(source.removeprefix("file://")) / MODEL_FILE


def actions(platform: Platform) -> list[str]:
    return [entry.action for entry in platform.database.ledger("visits")]


# Nothing to do


def test_where_mlflow_shows_the_ledger_two_requests_find_nothing(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(platform)
    promoted(platform, "second")
    asked = list[str]()
    for name in ("search_registered_models", "search_model_versions", "get_model_version_download_uri"):
        called = getattr(MlflowClient, name)

        def counting(*args: object, _called: object = called, _name: str = name, **options: object) -> object:
            asked.append(_name)
            return _called(*args, **options)  # type: ignore[operator]

        monkeypatch.setattr(MlflowClient, name, counting)

    found = reconcile(platform, read_bytes=False)

    assert found == []
    assert asked == ["search_registered_models", "search_model_versions"]
    assert len(platform.database.ledger("visits")) == 4


def test_a_model_that_nobody_trained_is_no_finding(platform: Platform) -> None:
    assert reconcile(platform) == []


# The alias moved by hand: a request


def test_an_alias_moved_to_a_version_whose_evidence_holds_promotes_it(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    second = staged(platform, "second")

    mlflow.set_registered_model_alias("visits", "champion", str(second.version))
    finding = only(reconcile(platform))

    assert (finding.what, finding.version, finding.alerting) == ("RequestGranted", second.version, Alerting.NONE)
    assert finding.entry == platform.database.champion("visits")
    assert finding.entry is not None
    assert (finding.entry.action, finding.entry.reason, finding.entry.actor) == (
        "promotion",
        "manual: alias moved in MLflow",
        "MLflow alias",
    )
    assert champion(platform) == second.version


def test_the_first_champion_can_be_asked_for_by_its_alias(platform: Platform, mlflow: MlflowClient) -> None:
    first = staged(platform, "first")

    mlflow.set_registered_model_alias("visits", "champion", str(first.version))

    assert only(reconcile(platform)).what == "RequestGranted"
    assert champion(platform) == first.version


def of_no_candidate(platform: Platform, mlflow: MlflowClient) -> int:
    mlflow.create_model_version("visits", (platform.settings.artifacts / "candidate-1").as_uri())
    return int(max(int(v.version) for v in mlflow.search_model_versions("name = 'visits'")))


def with_forged_tags(platform: Platform, mlflow: MlflowClient) -> int:
    source, tags = (platform.settings.artifacts / "candidate-1").as_uri(), {CANDIDATE_TAG: "candidate-1"}
    return int(mlflow.create_model_version("visits", source, tags=tags).version)


def with_other_bytes(platform: Platform, mlflow: MlflowClient) -> int:
    version = staged(platform, "other bytes").version
    artifact(mlflow, version).write_text("other")
    return version


def without_bytes(platform: Platform, mlflow: MlflowClient) -> int:
    version = staged(platform, "no bytes").version
    artifact(mlflow, version).unlink()
    return version


def with_a_failed_verdict(platform: Platform, _mlflow: MlflowClient) -> int:
    version = staged(platform, "worse")
    failed = fakes.verdict_by(SPEC, platform.database.candidate(version.candidate), auc_roc=0.5)
    platform.database.record_verdict(failed)
    return version.version


def not_staged(platform: Platform, _mlflow: MlflowClient) -> int:
    version = staged(platform, "not staged")
    with platform.database.engine.begin() as connection:
        connection.execute(
            sa.update(registrations).where(registrations.c.version == version.version), {"staged_at": None}
        )
    platform.registry.delete_alias("visits", "staging")
    platform.registry.set_alias("visits", "staging", 2)
    return version.version


def the_one_before(_platform: Platform, _mlflow: MlflowClient) -> int:
    return 1


REFUSED: dict[str, tuple[Callable[[Platform, MlflowClient], int], str]] = {
    "registered by hand": (of_no_candidate, "The platform has not registered a version 3"),
    "registered by hand with our tags": (with_forged_tags, "The platform has not registered a version 3"),
    "other bytes": (with_other_bytes, "the model's bytes have sha256"),
    "no bytes": (without_bytes, "are gone"),
    "failed gates": (with_a_failed_verdict, "auc_roc is 0.5"),
    "not staged": (not_staged, "has not passed its integration test"),
    "overtaken": (the_one_before, "was made of newer rows, or later"),
}


@pytest.mark.parametrize(("make", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_an_alias_moved_to_a_version_without_evidence_goes_back_with_an_alert(
    platform: Platform, mlflow: MlflowClient, make: Callable[[Platform, MlflowClient], int], why: str
) -> None:
    promoted(platform)
    promoted(platform, "second")
    asked = make(platform, mlflow)

    mlflow.set_registered_model_alias("visits", "champion", str(asked))
    finding = reconcile(platform)[0]

    assert (finding.what, finding.version, finding.alerting) == ("AliasMoveRefused", asked, Alerting.EVENT)
    assert finding.summary.startswith(
        f"The alias champion of visits was moved to version {asked} in MLflow; version 2 stays champion: "
    )
    assert why in finding.summary
    assert platform.registry.alias("visits", "champion") == 2
    assert actions(platform) == ["promotion", "confirmation"] * 2


def test_what_was_rolled_back_does_not_return_by_its_alias(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    second = promoted(platform, "second")
    workflows.roll_back(platform, "visits", lambda: SPEC, to=None, reason="it is worse", actor="ada@desk")

    mlflow.set_registered_model_alias("visits", "champion", str(second.version))
    finding = only(reconcile(platform))

    assert "Version 2 of 'visits' was rolled back: it does not return by itself" in finding.summary
    assert champion(platform) == 1


def test_an_alias_is_no_approval(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    second = staged(platform, "second")

    mlflow.set_registered_model_alias("visits", "champion", str(second.version))
    finding = only(reconcile(platform, MANUAL))

    assert "passed its gates and waits for approval" in finding.summary
    assert champion(platform) == 1
    assert actions(platform)[-1] == "request"


def test_an_approval_that_counts_lets_the_alias_through(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    second = staged(platform, "second")
    verdict = platform.database.verdict_on(second.candidate)
    assert verdict is not None
    assert MANUAL.approval_needed is not None
    promotion.approve(platform.database, second, verdict, MANUAL.approval_needed, BOB, reason="looked at it")

    mlflow.set_registered_model_alias("visits", "champion", str(second.version))
    finding = only(reconcile(platform, MANUAL))

    assert finding.what == "RequestGranted"
    assert champion(platform) == second.version


def test_without_a_champion_a_refused_alias_is_deleted(platform: Platform, mlflow: MlflowClient) -> None:
    version = with_a_failed_verdict(platform, mlflow)

    mlflow.set_registered_model_alias("visits", "champion", str(version))
    finding = only(reconcile(platform))

    assert "there is no champion: Candidate candidate-1 of 'visits' is refused" in finding.summary
    assert platform.registry.alias("visits", "champion") is None
    assert reconcile(platform) == []


def test_a_promotion_that_runs_meanwhile_is_no_request(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(platform)
    second = staged(platform, "second")
    shown = Registry.shown

    def promote_meanwhile(registry: Registry, model: str) -> object:
        monkeypatch.undo()
        promote(platform, second)
        return shown(registry, model)

    monkeypatch.setattr(Registry, "shown", promote_meanwhile)

    assert reconcile(platform) == []
    assert champion(platform) == second.version


def test_what_was_done_is_said_though_the_ledger_moves_on_meanwhile(
    platform: Platform, mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(platform)
    second = staged(platform, "second")
    mlflow.delete_registered_model_alias("visits", "champion")
    shown, looks = Registry.shown, list[str]()

    def promote_at_the_second_look(registry: Registry, model: str) -> object:
        looks.append(model)
        if len(looks) == 2:
            promote(platform, second)
        return shown(registry, model)

    monkeypatch.setattr(Registry, "shown", promote_at_the_second_look)

    assert only(reconcile(platform)).what == "AliasRestored"
    assert champion(platform) == second.version


# A promotion that died


def decided_only(platform: Platform, version: Registration) -> LedgerEntry:
    """Leave what a process leaves that died right behind the ledger."""
    verdict = platform.database.verdict_on(version.candidate)
    assert verdict is not None
    return promotion.promote(platform.database, version, verdict, reason="schedule", actor="died")


@pytest.mark.fault("P2")
def test_a_promotion_that_died_behind_the_ledger_is_finished(platform: Platform) -> None:
    promoted(platform)
    entry = decided_only(platform, staged(platform, "second"))

    finding = only(reconcile(platform))

    assert (finding.what, finding.alerting) == ("DecisionFinished", Alerting.NONE)
    assert platform.database.champion("visits") == entry
    assert champion(platform) == 2
    assert actions(platform) == ["promotion", "confirmation"] * 2


@pytest.mark.fault("P2")
@pytest.mark.parametrize(
    ("call", "version", "found"),
    [
        ("ml_platform.database:Database.append_to_ledger", 1, []),
        ("mlflow:MlflowClient.set_registered_model_alias", 2, ["DecisionFinished"]),
        ("ml_platform.stages.ledger:HeadsLog.append", 2, ["AnchorFollowed"]),
    ],
    ids=["before the ledger", "before the alias", "before the anchors"],
)
def test_what_a_killed_promotion_left_is_finished(
    platform: Platform, call: str, version: int, found: list[str]
) -> None:
    promoted(platform)
    second = staged(platform, "second")
    with promote_in_a_process(platform, second.candidate, call) as stopped:
        assert os.WIFSTOPPED(os.waitpid(stopped.pid, os.WUNTRACED)[1])
        stopped.kill()

    assert [finding.what for finding in reconcile(platform)] == found
    assert champion(platform) == version
    assert promote(platform, second).version == 2
    assert actions(platform) == ["promotion", "confirmation"] * 2


@pytest.mark.fault("P2")
def test_a_rollback_that_died_behind_the_ledger_is_finished(platform: Platform) -> None:
    first = promoted(platform)
    promoted(platform, "second")
    target = Registration(model="visits", version=1, candidate=first.candidate)
    promotion.roll_back(platform.database, target, first.verdict_digest, reason="worse", actor="ada")

    assert only(reconcile(platform)).what == "DecisionFinished"
    assert champion(platform) == 1


@pytest.mark.fault("P2")
def test_a_promotion_that_died_and_whose_evidence_is_gone_is_withdrawn(platform: Platform) -> None:
    promoted(platform)
    second = staged(platform, "second")
    decided_only(platform, second)
    platform.database.record_verdict(fakes.verdict_by(SPEC, platform.database.candidate(second.candidate), auc_roc=0.5))

    finding = only(reconcile(platform))

    assert (finding.what, finding.alerting) == ("PromotionWithdrawn", Alerting.EVENT)
    assert champion(platform) == 1
    said = platform.database.history("visits")[-1]
    assert (said.action, said.previous_version, said.actor) == ("rollback", 2, "test")
    assert said.reason.startswith("withdrawn before it was shown: Candidate candidate-2 of 'visits' is refused")


def test_the_first_promotion_is_not_withdrawn_into_nothing(platform: Platform) -> None:
    first = staged(platform, "first")
    decided_only(platform, first)
    platform.database.record_verdict(fakes.verdict_by(SPEC, platform.database.candidate(first.candidate), auc_roc=0.5))

    finding = only(reconcile(platform))

    assert (finding.what, finding.alerting) == ("EvidenceLost", Alerting.LASTING)
    assert [entry.action for entry in platform.database.history("visits")] == ["promotion"]
    assert platform.registry.alias("visits", "champion") is None


def test_a_promotion_that_died_and_whose_bytes_are_gone_everywhere_is_withdrawn(
    platform: Platform, mlflow: MlflowClient
) -> None:
    promoted(platform)
    second = staged(platform, "second")
    decided_only(platform, second)
    mlflow.delete_model_version("visits", "2")
    platform.model_file(platform.database.candidate(second.candidate)).unlink()

    assert only(reconcile(platform)).what == "PromotionWithdrawn"
    assert champion(platform) == 1


# What was deleted or changed


def test_a_deleted_alias_comes_back(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)

    mlflow.delete_registered_model_alias("visits", "champion")
    finding = only(reconcile(platform))

    assert (finding.what, finding.alerting) == ("AliasRestored", Alerting.EVENT)
    assert champion(platform) == 1
    assert len(platform.database.ledger("visits")) == 2


def test_a_deleted_anchor_comes_back(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)

    mlflow.delete_registered_model_tag("visits", LEDGER_TAG)

    assert only(reconcile(platform)).what == "AnchorFollowed"
    assert champion(platform) == 1


def test_an_anchor_that_contradicts_the_ledger_is_no_reason_to_do_anything(
    platform: Platform, mlflow: MlflowClient
) -> None:
    promoted(platform)
    mlflow.set_registered_model_tag("visits", LEDGER_TAG, '{"sequence": 9, "digest": "00"}')
    mlflow.delete_registered_model_alias("visits", "champion")

    with pytest.raises(LedgerError, match="MLflow saw entry 9"):
        reconcile(platform)

    assert platform.registry.alias("visits", "champion") is None


def delete_version(_platform: Platform, mlflow: MlflowClient) -> None:
    mlflow.delete_model_version("visits", "2")


def change_bytes(_platform: Platform, mlflow: MlflowClient) -> None:
    artifact(mlflow, 2).write_text("other")


def remove_bytes(_platform: Platform, mlflow: MlflowClient) -> None:
    shutil.rmtree(artifact(mlflow, 2).parent)


LOSSES = {"deleted": delete_version, "changed": change_bytes, "removed": remove_bytes}
WHY = {
    "deleted": "version 2 was deleted in MLflow",
    "changed": "version 2 has other bytes in MLflow (sha256 d9298a10d1b0) than those that were gated",
    "removed": "version 2 has lost its bytes in MLflow",
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_lost_champion_is_registered_again_and_the_ledger_says_so(
    platform: Platform, mlflow: MlflowClient, loss: str
) -> None:
    promoted(platform)
    second = promoted(platform, "second")
    candidate = platform.database.candidate(second.candidate)

    LOSSES[loss](platform, mlflow)
    finding = reconcile(platform)[0]

    assert (finding.what, finding.version, finding.alerting) == ("VersionReplaced", 3, Alerting.EVENT)
    said = platform.database.champion("visits")
    assert said == finding.entry
    assert said is not None
    assert (said.action, said.version, said.previous_version) == ("replacement", 3, 2)
    assert (said.reason, said.actor, said.details) == (WHY[loss], "test", {"replaces": 2})
    assert (said.candidate, said.verdict_digest) == (second.candidate, second.verdict_digest)
    assert platform.database.registration_of(candidate.id) == fakes.registration(candidate, 3)
    assert platform.database.registration("visits", 2) is None
    assert file_digest(artifact(mlflow, 3)) == candidate.model_digest
    assert mlflow.get_model_version("visits", "3").tags[CANDIDATE_TAG] == candidate.id
    assert champion(platform) == 3
    assert workflows.explain(platform, "visits")["replaces"] == [2]


def test_a_version_that_replaces_another_stands_where_the_other_stood(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    promoted(platform, "second")
    delete_version(platform, mlflow)
    reconcile(platform)
    third = promoted(platform, "third")

    again = workflows.roll_back(platform, "visits", lambda: SPEC, to=None, reason="worse", actor="ada")
    first = workflows.roll_back(platform, "visits", lambda: SPEC, to=None, reason="worse", actor="ada")

    assert (third.version, again.version, first.version) == (4, 3, 1)
    assert promotion.standing(platform.database.history("visits")) == ([1], {3, 4})
    with pytest.raises(EvidenceError, match="Version 3 of 'visits' was rolled back"):
        promote(platform, Registration(model="visits", version=3, candidate="candidate-2"))


def test_the_newest_version_is_the_one_that_was_trained_last_whatever_its_number(
    platform: Platform, mlflow: MlflowClient
) -> None:
    promoted(platform)
    second = staged(platform, "second")
    mlflow.delete_model_version("visits", "1")

    assert only(reconcile(platform)).version == 3
    assert platform.database.newest_staged("visits") == second
    assert platform.database.newest_registered("visits") == second
    assert platform.database.version_numbers("visits") == {1, 2, 3}
    assert platform.registry.alias("visits", "staging") == 2


def test_a_rollback_to_a_version_that_was_deleted_in_mlflow_is_finished(
    platform: Platform, mlflow: MlflowClient
) -> None:
    promoted(platform)
    promoted(platform, "second")
    mlflow.delete_model_version("visits", "1")
    workflows.roll_back(platform, "visits", lambda: SPEC, to=1, reason="worse", actor="ada")

    finding = only(reconcile(platform))

    assert (finding.what, finding.version) == ("VersionReplaced", 3)
    assert champion(platform) == 3


@pytest.mark.fault("V1")
def test_a_restoration_that_died_behind_mlflow_makes_no_second_version(
    platform: Platform, mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(platform)
    promoted(platform, "second")
    delete_version(platform, mlflow)

    class Died(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Died

    with monkeypatch.context() as dying:
        dying.setattr(promotion, "replace_version", die)
        with pytest.raises(Died):
            reconcile(platform)
    reconcile(platform)

    assert champion(platform) == 3
    assert sorted(int(v.version) for v in mlflow.search_model_versions("name = 'visits'")) == [1, 3]


def test_a_version_that_claims_to_be_the_lost_one_is_not_taken_for_it(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    promoted(platform, "second")
    delete_version(platform, mlflow)
    source = (platform.settings.artifacts / "candidate-1").as_uri()
    mlflow.create_model_version("visits", source, tags={CANDIDATE_TAG: "candidate-2"})

    found = reconcile(platform)

    assert [(finding.what, finding.version) for finding in found] == [
        ("VersionReplaced", 4),
        ("AliasFollowed", 4),
        ("AliasFollowed", 4),
        ("UnknownVersion", 3),
    ]


def test_a_deleted_registered_model_is_made_again_and_no_number_names_two_candidates(
    platform: Platform, mlflow: MlflowClient
) -> None:
    promoted(platform)
    promoted(platform, "second")

    mlflow.delete_registered_model("visits")
    finding = reconcile(platform)[0]
    third = staged(platform, "third")

    assert (finding.what, finding.version) == ("VersionReplaced", 3)
    assert third.version == 4
    assert champion(platform) == 3
    assert [int(v.version) for v in mlflow.search_model_versions("name = 'visits'")] == [4, 3]


def test_a_registered_model_made_again_by_hand_is_not_taken_for_ours(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    mlflow.delete_registered_model("visits")
    other = platform.settings.artifacts / "other"
    other.mkdir()
    (other / MODEL_FILE).write_text("other")
    mlflow.create_registered_model("visits")
    mlflow.create_model_version("visits", other.as_uri())
    mlflow.set_registered_model_alias("visits", "champion", "1")

    finding = reconcile(platform, read_bytes=False)[0]

    assert (finding.what, finding.version) == ("VersionReplaced", 2)
    assert champion(platform) == 2


def test_deleted_runs_and_experiments_are_nothing_until_the_bytes_go(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    delete_bytes_of = artifact(mlflow, 1).parent
    shutil.rmtree(delete_bytes_of)
    reconcile(platform)  # now version 2, with a run
    run_id = platform.database.candidate("candidate-1").mlflow_run_id
    assert run_id is not None
    mlflow.delete_run(run_id)
    experiment = mlflow.get_experiment_by_name("visits")
    assert experiment is not None
    mlflow.delete_experiment(experiment.experiment_id)

    assert champion(platform) == 2

    shutil.rmtree(artifact(mlflow, 2).parent)
    finding = reconcile(platform)[0]

    assert (finding.what, finding.version) == ("VersionReplaced", 3)
    assert champion(platform) == 3


@pytest.mark.parametrize("kept", ["nothing", "other bytes"])
def test_a_lost_champion_without_a_verified_copy_is_an_alert_that_lasts(
    platform: Platform, mlflow: MlflowClient, kept: str
) -> None:
    promoted(platform)
    copy = platform.model_file(platform.database.candidate("candidate-1"))
    copy.unlink()
    if kept == "other bytes":
        copy.write_text("other")
    mlflow.delete_model_version("visits", "1")

    finding = only(reconcile(platform))

    assert (finding.what, finding.alerting) == ("VersionLost", Alerting.LASTING)
    assert "no verified copy is kept here" in finding.summary
    assert only(reconcile(platform)) == finding
    assert actions(platform) == ["promotion", "confirmation"]


# Challenger, staging, strangers


def test_challenger_and_staging_go_back_quietly(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    promoted(platform, "second")
    mlflow.set_registered_model_alias("visits", "challenger", "1")
    mlflow.delete_registered_model_alias("visits", "staging")

    found = reconcile(platform)

    assert {(finding.what, finding.alerting) for finding in found} == {("AliasFollowed", Alerting.NONE)}
    assert platform.registry.alias("visits", "challenger") == 2
    assert platform.registry.alias("visits", "staging") == 2
    assert champion(platform) == 2


def test_challenger_of_a_version_that_is_not_ours_goes(platform: Platform, mlflow: MlflowClient) -> None:
    mlflow.create_registered_model("visits")
    mlflow.create_model_version("visits", platform.settings.artifacts.as_uri())
    mlflow.set_registered_model_alias("visits", "challenger", "1")

    assert [finding.what for finding in reconcile(platform)] == ["AliasFollowed", "UnknownVersion"]
    assert platform.registry.alias("visits", "challenger") is None


def test_a_challenger_deleted_before_its_promotion_is_said_and_one_that_had_its_turn_is_not(
    platform: Platform, mlflow: MlflowClient
) -> None:
    promoted(platform)
    promoted(platform, "second")
    workflows.roll_back(platform, "visits", lambda: SPEC, to=None, reason="worse", actor="ada")
    mlflow.delete_model_version("visits", "2")
    tidied = reconcile(platform)
    staged(platform, "third")
    mlflow.delete_model_version("visits", "3")

    finding = only(reconcile(platform))

    assert tidied == []
    assert (finding.what, finding.version, finding.alerting) == ("ChallengerDeleted", 3, Alerting.ONCE)


def test_a_registration_under_way_is_no_stranger(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    made = fakes.candidate("candidate-under-way")
    platform.database.record_candidate(made)
    mlflow.create_model_version("visits", platform.settings.artifacts.as_uri(), tags={CANDIDATE_TAG: made.id})

    assert reconcile(platform) == []


# Telling people


def stranger(platform: Platform, mlflow: MlflowClient) -> int:
    promoted(platform)
    return of_no_candidate(platform, mlflow)


def test_a_version_registered_by_hand_is_told_of_once(
    platform: Platform, mlflow: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    number, manager = stranger(platform, mlflow), fakes.Alertmanager()
    with manager.running() as address:
        settings = platform.settings.model_copy(update={"alertmanager_url": SecretStr(address)})
        told = workflows.alert(Platform(settings), reconcile(platform))
        again = workflows.alert(Platform(settings), reconcile(platform), told)

    assert told == again == [f"UnknownVersion {number}"]
    assert [alert["labels"] for alert in manager.taken] == [
        {"alertname": "UnknownVersion", "model": "visits", "version": str(number)}
    ]
    said = [record.getMessage() for record in caplog.records if record.name == "ml_platform.alerts"]
    assert said == [
        f"UnknownVersion: Version {number} of visits was not registered by the platform: it is never promoted."
    ]


def test_what_lasts_is_logged_once_and_sent_until_it_is_mended(
    platform: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    lost = Finding(model="visits", what="VersionLost", version=1, summary="gone", alerting=Alerting.LASTING)
    moved = Finding(model="visits", what="AliasMoveRefused", version=2, summary="moved", alerting=Alerting.EVENT)
    quiet = Finding(model="visits", what="AliasFollowed", version=2, summary="quiet")
    manager = fakes.Alertmanager()
    with manager.running() as address:
        opened = Platform(platform.settings.model_copy(update={"alertmanager_url": SecretStr(address)}))
        told = workflows.alert(opened, [lost, moved, quiet])
        told = workflows.alert(opened, [lost, moved, quiet], told)

    assert told == ["VersionLost 1"]
    assert [alert["labels"]["alertname"] for alert in manager.taken] == ["VersionLost", "AliasMoveRefused"] * 2
    said = [record.getMessage() for record in caplog.records if record.name == "ml_platform.alerts"]
    assert said == ["VersionLost: gone", "AliasMoveRefused: moved", "AliasMoveRefused: moved"]
