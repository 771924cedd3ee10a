"""Reconciliation of a real MLflow on SQLite, changed by hand, with the ledger."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from pydantic import SecretStr

from ml_platform.database.tables import registrations
from ml_platform.errors import EvidenceError, LedgerError
from ml_platform.governance.explain import explain
from ml_platform.inference import golden_requests
from ml_platform.model_spec import Approval, ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.canonical import sha256_text
from ml_platform.records.ledger import Alerting, LedgerEntry, Person, Registration, RegistryDrift
from ml_platform.release import reconcile as release_reconcile
from ml_platform.release.ledger import champions, decisions
from ml_platform.release.ledger.follow import verify_ledger
from ml_platform.release.promote import promote_version
from ml_platform.release.rollback import roll_back
from ml_platform.storage.mlflow_registry import CANDIDATE_TAG, LEDGER_TAG, Registry
from ml_platform.storage.model_files import MODEL_FILE, file_digest
from ml_platform_tests.support import fakes
from ml_platform_tests.support.promote_process import promote_in_a_process

pytestmark = pytest.mark.slow

SPEC = fakes.uncompared_spec()
MANUAL = fakes.uncompared_spec(approval=Approval(authenticated_by=("os_user",)))
BOB = Person(name="bob@desk", authenticated_by="os_user", identity={"uid": "7"})


@pytest.fixture
def mlflow(platform: Platform) -> MlflowClient:
    """The client of a user who changes MLflow by hand."""
    return MlflowClient(platform.settings.tracking_uri, platform.settings.tracking_uri)


def staged(platform: Platform, name: str) -> Registration:
    """Return a staged version with its own rows, ready for promotion."""
    lineage = replace(fakes.candidate().lineage, dataset_digest=sha256_text(name))
    version = fakes.staged_version(platform, lineage=lineage)
    candidate = platform.database.candidate(version.candidate)
    fakes.visits(5)[SPEC.features].to_parquet(platform.candidate_folder(candidate) / golden_requests.GOLDEN_REQUESTS)
    registry = platform.registry
    with registry._asking("tag the version") as client:
        client.set_model_version_tag("visits", str(version.version), CANDIDATE_TAG, candidate.id)
    registry.set_alias("visits", "challenger", version.version)
    registry.set_alias("visits", "staging", version.version)
    return version


def promote(platform: Platform, version: Registration, spec: ModelSpec = SPEC) -> LedgerEntry:
    candidate = platform.database.candidate(version.candidate)
    return promote_version(platform, spec, candidate, reason="schedule", actor="test")


def promoted(platform: Platform, name: str = "first") -> LedgerEntry:
    return promote(platform, staged(platform, name))


def reconcile(platform: Platform, spec: ModelSpec = SPEC, *, read_bytes: bool = True) -> list[RegistryDrift]:
    return release_reconcile.reconcile(platform, spec, actor="test", read_bytes=read_bytes)


def get_single(differences: list[RegistryDrift]) -> RegistryDrift:
    (difference,) = differences
    return difference


def champion(platform: Platform) -> int:
    """Return the champion; assert that ledger, alias, bytes and anchors agree on it."""
    entry = platform.database.champion("visits")
    assert entry is not None
    assert platform.registry.alias("visits", "champion") == entry.version
    report = verify_ledger(platform, "visits")
    assert (report.problems, report.behind) == ((), ())
    assert reconcile(platform) == []
    return entry.version


def artifact(mlflow: MlflowClient, version: int) -> Path:
    source = mlflow.get_model_version_download_uri("visits", str(version))
    return Path(source.removeprefix("file://")) / MODEL_FILE


def actions(platform: Platform) -> list[str]:
    return [entry.action for entry in platform.database.ledger("visits")]


# Nothing to do


def test_reconcile_in_sync_makes_two_requests(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(platform)
    promoted(platform, "second")
    calls = list[str]()
    for name in ("search_registered_models", "search_model_versions", "get_model_version_download_uri"):
        called = getattr(MlflowClient, name)

        def counting(*args: object, _called: object = called, _name: str = name, **options: object) -> object:
            calls.append(_name)
            return _called(*args, **options)  # type: ignore[operator]

        monkeypatch.setattr(MlflowClient, name, counting)

    differences = reconcile(platform, read_bytes=False)

    assert differences == []
    assert calls == ["search_registered_models", "search_model_versions"]
    assert len(platform.database.ledger("visits")) == 4


def test_reconcile_untrained_model_finds_nothing(platform: Platform) -> None:
    assert reconcile(platform) == []


# A moved alias: a request


def test_moved_alias_with_valid_evidence_promotes(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    second = staged(platform, "second")

    mlflow.set_registered_model_alias("visits", "champion", str(second.version))
    difference = get_single(reconcile(platform))

    assert (difference.what, difference.version, difference.alerting) == (
        "RequestGranted",
        second.version,
        Alerting.NONE,
    )
    assert difference.entry == platform.database.champion("visits")
    assert difference.entry is not None
    assert (difference.entry.action, difference.entry.reason, difference.entry.actor) == (
        "promotion",
        "manual: alias moved in MLflow",
        "MLflow alias",
    )
    assert champion(platform) == second.version


def test_moved_alias_can_promote_the_first_champion(platform: Platform, mlflow: MlflowClient) -> None:
    first = staged(platform, "first")

    mlflow.set_registered_model_alias("visits", "champion", str(first.version))

    assert get_single(reconcile(platform)).what == "RequestGranted"
    assert champion(platform) == first.version


def register_without_candidate(platform: Platform, mlflow: MlflowClient) -> int:
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


def previous_champion(_platform: Platform, _mlflow: MlflowClient) -> int:
    return 1


REFUSED: dict[str, tuple[Callable[[Platform, MlflowClient], int], str]] = {
    "registered by hand": (register_without_candidate, "The platform has not registered a version 3"),
    "registered by hand with our tags": (with_forged_tags, "The platform has not registered a version 3"),
    "other bytes": (with_other_bytes, "the model's bytes have sha256"),
    "no bytes": (without_bytes, "are gone"),
    "failed gates": (with_a_failed_verdict, "auc_roc is 0.5"),
    "not staged": (not_staged, "has not passed its integration test"),
    "overtaken": (previous_champion, "was trained on newer rows, or later"),
}


@pytest.mark.parametrize(("make", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_moved_alias_without_evidence_is_reverted_with_alert(
    platform: Platform, mlflow: MlflowClient, make: Callable[[Platform, MlflowClient], int], why: str
) -> None:
    promoted(platform)
    promoted(platform, "second")
    requested = make(platform, mlflow)

    mlflow.set_registered_model_alias("visits", "champion", str(requested))
    difference = reconcile(platform)[0]

    assert (difference.what, difference.version, difference.alerting) == ("AliasMoveRefused", requested, Alerting.EVENT)
    assert difference.summary.startswith(
        f"The alias champion of visits was moved to version {requested} in MLflow; version 2 stays champion: "
    )
    assert why in difference.summary
    assert platform.registry.alias("visits", "champion") == 2
    assert actions(platform) == ["promotion", "confirmation"] * 2


def test_moved_alias_to_rolled_back_version_is_reverted(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    second = promoted(platform, "second")
    roll_back(platform, "visits", load_spec=lambda _: SPEC, to=None, reason="it is worse", actor="ada@desk")

    mlflow.set_registered_model_alias("visits", "champion", str(second.version))
    difference = get_single(reconcile(platform))

    assert "Version 2 of 'visits' was rolled back: it is not promoted automatically" in difference.summary
    assert champion(platform) == 1


def test_moved_alias_does_not_replace_an_approval(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    second = staged(platform, "second")

    mlflow.set_registered_model_alias("visits", "champion", str(second.version))
    difference = get_single(reconcile(platform, MANUAL))

    assert "passed its gates and waits for approval" in difference.summary
    assert champion(platform) == 1
    assert actions(platform)[-1] == "request"


def test_moved_alias_with_valid_approval_promotes(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    second = staged(platform, "second")
    verdict = platform.database.verdict_on(second.candidate)
    assert verdict is not None
    assert MANUAL.approval_needed is not None
    decisions.approve(platform.database, second, verdict, MANUAL.approval_needed, BOB, reason="looked at it")

    mlflow.set_registered_model_alias("visits", "champion", str(second.version))
    difference = get_single(reconcile(platform, MANUAL))

    assert difference.what == "RequestGranted"
    assert champion(platform) == second.version


def test_without_a_champion_a_refused_alias_is_deleted(platform: Platform, mlflow: MlflowClient) -> None:
    version = with_a_failed_verdict(platform, mlflow)

    mlflow.set_registered_model_alias("visits", "champion", str(version))
    difference = get_single(reconcile(platform))

    assert "there is no champion: Candidate candidate-1 of 'visits' is refused" in difference.summary
    assert platform.registry.alias("visits", "champion") is None
    assert reconcile(platform) == []


def test_promotion_during_reconcile_is_not_a_request(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_reconcile_reports_repairs_before_a_ledger_change(
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

    assert get_single(reconcile(platform)).what == "AliasRestored"
    assert champion(platform) == second.version


# A killed promotion


def append_promotion_only(platform: Platform, version: Registration) -> LedgerEntry:
    """Append a promotion to the ledger only, as a process does that is killed right afterwards."""
    verdict = platform.database.verdict_on(version.candidate)
    assert verdict is not None
    return decisions.promote(platform.database, version, verdict, reason="schedule", actor="died")


@pytest.mark.fault("P2")
def test_promotion_killed_after_ledger_entry_is_finished(platform: Platform) -> None:
    promoted(platform)
    entry = append_promotion_only(platform, staged(platform, "second"))

    difference = get_single(reconcile(platform))

    assert (difference.what, difference.alerting) == ("DecisionFinished", Alerting.NONE)
    assert platform.database.champion("visits") == entry
    assert champion(platform) == 2
    assert actions(platform) == ["promotion", "confirmation"] * 2


@pytest.mark.fault("P2")
@pytest.mark.parametrize(
    ("call", "version", "drift"),
    [
        ("ml_platform.database:PlatformDatabase.append_to_ledger", 1, []),
        ("mlflow:MlflowClient.set_registered_model_alias", 2, ["DecisionFinished"]),
        ("ml_platform.storage.ledger_anchor:LedgerAnchor.append", 2, ["AnchorFollowed"]),
    ],
    ids=["before the ledger", "before the alias", "before the anchors"],
)
def test_promotion_killed_at_any_call_is_finished(
    platform: Platform, call: str, version: int, drift: list[str]
) -> None:
    promoted(platform)
    second = staged(platform, "second")
    with promote_in_a_process(platform, second.candidate, call) as stopped:
        assert os.WIFSTOPPED(os.waitpid(stopped.pid, os.WUNTRACED)[1])
        stopped.kill()

    assert [difference.what for difference in reconcile(platform)] == drift
    assert champion(platform) == version
    assert promote(platform, second).version == 2
    assert actions(platform) == ["promotion", "confirmation"] * 2


@pytest.mark.fault("P2")
def test_rollback_killed_after_ledger_entry_is_finished(platform: Platform) -> None:
    first = promoted(platform)
    promoted(platform, "second")
    target = Registration(model="visits", version=1, candidate=first.candidate)
    decisions.roll_back(platform.database, target, first.verdict_digest, reason="worse", actor="ada")

    assert get_single(reconcile(platform)).what == "DecisionFinished"
    assert champion(platform) == 1


@pytest.mark.fault("P2")
def test_killed_promotion_without_evidence_is_withdrawn(platform: Platform) -> None:
    promoted(platform)
    second = staged(platform, "second")
    append_promotion_only(platform, second)
    platform.database.record_verdict(fakes.verdict_by(SPEC, platform.database.candidate(second.candidate), auc_roc=0.5))

    difference = get_single(reconcile(platform))

    assert (difference.what, difference.alerting) == ("PromotionWithdrawn", Alerting.EVENT)
    assert champion(platform) == 1
    entry = platform.database.history("visits")[-1]
    assert (entry.action, entry.previous_version, entry.actor) == ("rollback", 2, "test")
    assert entry.reason.startswith("withdrawn before it was shown: Candidate candidate-2 of 'visits' is refused")


def test_first_promotion_without_evidence_is_not_withdrawn(platform: Platform) -> None:
    first = staged(platform, "first")
    append_promotion_only(platform, first)
    platform.database.record_verdict(fakes.verdict_by(SPEC, platform.database.candidate(first.candidate), auc_roc=0.5))

    difference = get_single(reconcile(platform))

    assert (difference.what, difference.alerting) == ("EvidenceLost", Alerting.LASTING)
    assert [entry.action for entry in platform.database.history("visits")] == ["promotion"]
    assert platform.registry.alias("visits", "champion") is None


def test_killed_promotion_without_bytes_is_withdrawn(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    second = staged(platform, "second")
    append_promotion_only(platform, second)
    mlflow.delete_model_version("visits", "2")
    platform.model_file(platform.database.candidate(second.candidate)).unlink()

    assert get_single(reconcile(platform)).what == "PromotionWithdrawn"
    assert champion(platform) == 1


# Deletions and changes


def test_deleted_alias_is_restored(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)

    mlflow.delete_registered_model_alias("visits", "champion")
    difference = get_single(reconcile(platform))

    assert (difference.what, difference.alerting) == ("AliasRestored", Alerting.EVENT)
    assert champion(platform) == 1
    assert len(platform.database.ledger("visits")) == 2


def test_deleted_anchor_is_restored(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)

    mlflow.delete_registered_model_tag("visits", LEDGER_TAG)

    difference = get_single(reconcile(platform))

    assert (difference.what, difference.alerting) == ("AnchorMissing", Alerting.EVENT)
    assert champion(platform) == 1


def test_contradicting_anchor_stops_reconcile(platform: Platform, mlflow: MlflowClient) -> None:
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
def test_lost_champion_is_replaced_in_the_ledger(platform: Platform, mlflow: MlflowClient, loss: str) -> None:
    promoted(platform)
    second = promoted(platform, "second")
    candidate = platform.database.candidate(second.candidate)

    LOSSES[loss](platform, mlflow)
    difference = reconcile(platform)[0]

    assert (difference.what, difference.version, difference.alerting) == ("VersionReplaced", 3, Alerting.EVENT)
    entry = platform.database.champion("visits")
    assert entry == difference.entry
    assert entry is not None
    assert (entry.action, entry.version, entry.previous_version) == ("replacement", 3, 2)
    assert (entry.reason, entry.actor, entry.details) == (WHY[loss], "test", {"replaces": 2})
    assert (entry.candidate, entry.verdict_digest) == (second.candidate, second.verdict_digest)
    assert platform.database.find_registration(candidate.id) == fakes.registration(candidate, 3)
    assert platform.database.registration("visits", 2) is None
    assert file_digest(artifact(mlflow, 3)) == candidate.model_digest
    assert mlflow.get_model_version("visits", "3").tags[CANDIDATE_TAG] == candidate.id
    assert champion(platform) == 3
    assert explain(platform, "visits")["replaces"] == [2]


def test_replacement_keeps_its_place_among_champions(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    promoted(platform, "second")
    delete_version(platform, mlflow)
    reconcile(platform)
    third = promoted(platform, "third")

    again = roll_back(platform, "visits", load_spec=lambda _: SPEC, to=None, reason="worse", actor="ada")
    first = roll_back(platform, "visits", load_spec=lambda _: SPEC, to=None, reason="worse", actor="ada")

    assert (third.version, again.version, first.version) == (4, 3, 1)
    assert champions.champion_stack(platform.database.history("visits")) == ([1], {3, 4})
    with pytest.raises(EvidenceError, match="Version 3 of 'visits' was rolled back"):
        promote(platform, Registration(model="visits", version=3, candidate="candidate-2"))


def test_newest_version_is_the_last_trained_one(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    second = staged(platform, "second")
    mlflow.delete_model_version("visits", "1")

    assert get_single(reconcile(platform)).version == 3
    assert platform.database.newest_staged("visits") == second
    assert platform.database.newest_registered("visits") == second
    assert platform.database.version_numbers("visits") == {1, 2, 3}
    assert platform.registry.alias("visits", "staging") == 2


def test_rollback_to_version_deleted_in_mlflow_is_finished(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    promoted(platform, "second")
    mlflow.delete_model_version("visits", "1")
    roll_back(platform, "visits", load_spec=lambda _: SPEC, to=1, reason="worse", actor="ada")

    difference = get_single(reconcile(platform))

    assert (difference.what, difference.version) == ("VersionReplaced", 3)
    assert champion(platform) == 3


@pytest.mark.fault("V1")
def test_killed_replacement_creates_no_second_version(
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
        dying.setattr(decisions, "replace_version", die)
        with pytest.raises(Died):
            reconcile(platform)
    reconcile(platform)

    assert champion(platform) == 3
    assert sorted(int(v.version) for v in mlflow.search_model_versions("name = 'visits'")) == [1, 3]


def test_version_with_forged_tag_does_not_replace_champion(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    promoted(platform, "second")
    delete_version(platform, mlflow)
    source = (platform.settings.artifacts / "candidate-1").as_uri()
    mlflow.create_model_version("visits", source, tags={CANDIDATE_TAG: "candidate-2"})

    differences = reconcile(platform)

    assert [(difference.what, difference.version) for difference in differences] == [
        ("VersionReplaced", 4),
        ("AliasFollowed", 4),
        ("AliasFollowed", 4),
        ("UnknownVersion", 3),
    ]


def test_deleted_registered_model_is_recreated_with_new_numbers(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    promoted(platform, "second")

    mlflow.delete_registered_model("visits")
    difference = reconcile(platform)[0]
    third = staged(platform, "third")

    assert (difference.what, difference.version) == ("VersionReplaced", 3)
    assert third.version == 4
    assert champion(platform) == 3
    assert [int(v.version) for v in mlflow.search_model_versions("name = 'visits'")] == [4, 3]


def test_registered_model_recreated_by_hand_is_not_trusted(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    mlflow.delete_registered_model("visits")
    other = platform.settings.artifacts / "other"
    other.mkdir()
    (other / MODEL_FILE).write_text("other")
    mlflow.create_registered_model("visits")
    mlflow.create_model_version("visits", other.as_uri())
    mlflow.set_registered_model_alias("visits", "champion", "1")

    difference = reconcile(platform, read_bytes=False)[0]

    assert (difference.what, difference.version) == ("VersionReplaced", 2)
    assert champion(platform) == 2


def test_deleted_runs_are_ignored_until_bytes_are_missing(platform: Platform, mlflow: MlflowClient) -> None:
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
    difference = reconcile(platform)[0]

    assert (difference.what, difference.version) == ("VersionReplaced", 3)
    assert champion(platform) == 3


@pytest.mark.parametrize("kept", ["nothing", "other bytes"])
def test_lost_champion_without_copy_is_a_lasting_alert(platform: Platform, mlflow: MlflowClient, kept: str) -> None:
    promoted(platform)
    copy = platform.model_file(platform.database.candidate("candidate-1"))
    copy.unlink()
    if kept == "other bytes":
        copy.write_text("other")
    mlflow.delete_model_version("visits", "1")

    difference = get_single(reconcile(platform))

    assert (difference.what, difference.alerting) == ("VersionLost", Alerting.LASTING)
    assert "no verified copy is kept here" in difference.summary
    assert get_single(reconcile(platform)) == difference
    assert actions(platform) == ["promotion", "confirmation"]


# Challenger, staging, unknown versions


def test_moved_challenger_and_staging_are_restored_without_alert(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    promoted(platform, "second")
    mlflow.set_registered_model_alias("visits", "challenger", "1")
    mlflow.delete_registered_model_alias("visits", "staging")

    differences = reconcile(platform)

    assert {(difference.what, difference.alerting) for difference in differences} == {("AliasFollowed", Alerting.NONE)}
    assert platform.registry.alias("visits", "challenger") == 2
    assert platform.registry.alias("visits", "staging") == 2
    assert champion(platform) == 2


def test_challenger_of_unknown_version_is_deleted(platform: Platform, mlflow: MlflowClient) -> None:
    mlflow.create_registered_model("visits")
    mlflow.create_model_version("visits", platform.settings.artifacts.as_uri())
    mlflow.set_registered_model_alias("visits", "challenger", "1")

    assert [difference.what for difference in reconcile(platform)] == ["AliasFollowed", "UnknownVersion"]
    assert platform.registry.alias("visits", "challenger") is None


def test_deleted_challenger_is_reported_unless_promoted_before(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    promoted(platform, "second")
    roll_back(platform, "visits", load_spec=lambda _: SPEC, to=None, reason="worse", actor="ada")
    mlflow.delete_model_version("visits", "2")
    tidied = reconcile(platform)
    staged(platform, "third")
    mlflow.delete_model_version("visits", "3")

    difference = get_single(reconcile(platform))

    assert tidied == []
    assert (difference.what, difference.version, difference.alerting) == ("ChallengerDeleted", 3, Alerting.ONCE)


def test_registration_under_way_is_not_reported(platform: Platform, mlflow: MlflowClient) -> None:
    promoted(platform)
    made = fakes.candidate("candidate-under-way")
    platform.database.record_candidate(made)
    mlflow.create_model_version("visits", platform.settings.artifacts.as_uri(), tags={CANDIDATE_TAG: made.id})

    assert reconcile(platform) == []


# Alerts


def register_by_hand(platform: Platform, mlflow: MlflowClient) -> int:
    promoted(platform)
    return register_without_candidate(platform, mlflow)


def test_version_registered_by_hand_alerts_once(
    platform: Platform, mlflow: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    number, manager = register_by_hand(platform, mlflow), fakes.Alertmanager()
    with manager.running() as address:
        settings = platform.settings.model_copy(update={"alertmanager_url": SecretStr(address)})
        keys = release_reconcile.alert(Platform(settings), reconcile(platform))
        again = release_reconcile.alert(Platform(settings), reconcile(platform), keys)

    assert keys == again == [f"UnknownVersion {number}"]
    assert [alert["labels"] for alert in manager.taken] == [
        {"alertname": "UnknownVersion", "model": "visits", "version": str(number)}
    ]
    messages = [record.getMessage() for record in caplog.records if record.name == "ml_platform.alerts"]
    assert messages == [
        f"UnknownVersion: Version {number} of visits was not registered by the platform: it is never promoted."
    ]


def test_lasting_alert_is_logged_once_and_sent_again(platform: Platform, caplog: pytest.LogCaptureFixture) -> None:
    lost = RegistryDrift(model="visits", what="VersionLost", version=1, summary="gone", alerting=Alerting.LASTING)
    moved = RegistryDrift(model="visits", what="AliasMoveRefused", version=2, summary="moved", alerting=Alerting.EVENT)
    quiet = RegistryDrift(model="visits", what="AliasFollowed", version=2, summary="quiet")
    manager = fakes.Alertmanager()
    with manager.running() as address:
        opened = Platform(platform.settings.model_copy(update={"alertmanager_url": SecretStr(address)}))
        keys = release_reconcile.alert(opened, [lost, moved, quiet])
        keys = release_reconcile.alert(opened, [lost, moved, quiet], keys)

    assert keys == ["VersionLost 1"]
    assert [alert["labels"]["alertname"] for alert in manager.taken] == ["VersionLost", "AliasMoveRefused"] * 2
    messages = [record.getMessage() for record in caplog.records if record.name == "ml_platform.alerts"]
    assert messages == ["VersionLost: gone", "AliasMoveRefused: moved", "AliasMoveRefused: moved"]
