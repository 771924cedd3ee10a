"""Rollouts in a deployment: promotion, steps, abort, conflict and replacement, with SQLite and PostgreSQL."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from ml_platform.database.tables import servers
from ml_platform.errors import ConflictError, RolloutUnderWayError
from ml_platform.platform import Platform
from ml_platform.records.canonical import now
from ml_platform.records.traffic import Mode, TrafficPlan
from ml_platform.release.ledger import decisions
from ml_platform.release.ledger.follow import verify_ledger
from ml_platform.release.promote import promote_version
from ml_platform.release.rollback import roll_back
from ml_platform.release.rollout import policy, steps
from ml_platform.release.rollout.policy import Step
from ml_platform.release.rollout.steps import Traffic
from ml_platform.release.rollout.traffic import plan_in_force, store_plan
from ml_platform_tests.support import fakes
from ml_platform_tests.support.promotions import rows
from ml_platform_tests.support.rollouts import SPEC, beats, count, promoted, read_plan, step

pytestmark = pytest.mark.slow

BLUE_GREEN = fakes.uncompared_spec()


def summarise(plan: TrafficPlan) -> tuple[Mode, int, int | None, float]:
    return plan.mode, plan.stable, plan.successor, plan.share


def test_promotion_begins_the_declared_rollout(deployment: Platform) -> None:
    first = promoted(deployment)
    assert summarise(read_plan(deployment)) == (Mode.ALL, 1, None, 0.0)
    assert first.details == {"rollout": SPEC.rollout.model_dump(mode="json")}

    second = promoted(deployment)

    assert second.details["from_version"] == 1
    plan = read_plan(deployment)
    assert summarise(plan) == (Mode.CANARY, 1, 2, 0.1)
    assert plan == policy.begin(deployment.database.history("visits"), sequence=2)


def test_a_canary_that_holds_arrives_by_its_steps(deployment: Platform) -> None:
    promoted(deployment, 2)
    beats(deployment)
    count(deployment, 1, 900)
    count(deployment, 2, 100)
    assert step(deployment, 4.9).step is Step.HOLD

    assert step(deployment).step is Step.ADVANCE
    assert summarise(read_plan(deployment)) == (Mode.CANARY, 1, 2, 1.0)
    assert step(deployment).why == "version 2 has answered 0 of 100 requests"
    count(deployment, 2, 1_000)
    last = step(deployment)

    assert last.step is Step.ADVANCE
    assert last.report is not None
    assert last.report.arms[0].records == 900  # of the stable version in the step before
    assert summarise(read_plan(deployment)) == (Mode.ALL, 2, None, 0.0)
    assert step(deployment).why == "version 2 serves all traffic"
    assert [entry.action for entry in deployment.database.history("visits")] == ["promotion", "promotion"]


@pytest.mark.fault("M2")
def test_failing_canary_aborts_with_measurements_in_ledger(deployment: Platform) -> None:
    promoted(deployment, 2)
    beats(deployment)
    count(deployment, 1, 900)
    count(deployment, 2, 50, failures=40)

    aborted = step(deployment, 0)

    entry = deployment.database.champion("visits")
    assert entry is not None
    assert aborted.entry == entry
    assert (entry.action, entry.version, entry.previous_version) == ("rollback", 1, 2)
    assert entry.reason.startswith("canary aborted: version 2 fails 80.00% of 50 units, version 1 0.00% of 900")
    stable, successor = entry.details["traffic"]["figures"]["versions"]
    assert (stable["records"], successor["records"], successor["failures"]) == (900, 50, 40)
    assert summarise(read_plan(deployment)) == (Mode.ALL, 1, None, 0.0)
    assert read_plan(deployment).decision == entry.sequence
    assert deployment.registry.alias("visits", "champion") == 1
    assert verify_ledger(deployment, "visits").problems == ()
    assert step(deployment).entry is None


def test_a_step_is_done_once(deployment: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(deployment, 2)
    count(deployment, 1, 900)
    count(deployment, 2, 100)
    read = steps.read_traffic

    def overtaken(platform: Platform, model: str, **options: object) -> Traffic:
        traffic = read(platform, model, **options)  # type: ignore[arg-type]
        monkeypatch.undo()
        assert step(deployment).step is Step.ADVANCE
        return traffic

    monkeypatch.setattr(steps, "read_traffic", overtaken)
    late = step(deployment)

    assert late.step is Step.HOLD
    assert late.why.startswith("another process acted first: The traffic plan of 'visits' changed meanwhile")
    assert read_plan(deployment).sequence == 3


def test_abort_does_not_undo_a_later_decision(deployment: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(deployment, 2)
    count(deployment, 1, 900)
    count(deployment, 2, 50, failures=50)
    read = steps.read_traffic

    def overtaken(platform: Platform, model: str, **options: object) -> Traffic:
        traffic = read(platform, model, **options)  # type: ignore[arg-type]
        promoted(deployment)
        return traffic

    monkeypatch.setattr(steps, "read_traffic", overtaken)
    late = step(deployment)

    assert (late.step, late.entry) == (Step.HOLD, None)
    champion = deployment.database.champion("visits")
    assert champion is not None
    assert (champion.action, champion.version) == ("promotion", 3)


# Promotions and rollbacks during a rollout


def test_promotion_during_rollout_is_a_conflict(deployment: Platform) -> None:
    promoted(deployment, 2)
    beats(deployment)

    with pytest.raises(RolloutUnderWayError, match=r"from version 1 to 2 \(canary, step 1\): version 3 must wait"):
        promoted(deployment)

    champion = deployment.database.champion("visits")
    assert champion is not None
    assert champion.version == 2
    again = deployment.database.candidate(champion.candidate)
    assert promote_version(deployment, SPEC, again, reason="schedule", actor="again") == champion


@pytest.mark.parametrize("gone", [True, False], ids=["a server that is gone", "a server that obeys another plan"])
def test_promotion_without_live_server_replaces_unfinished_rollout(deployment: Platform, gone: bool) -> None:
    promoted(deployment, 2)
    beats(deployment, plan=read_plan(deployment).sequence if gone else 1)
    if gone:
        with deployment.database.engine.begin() as connection:
            connection.execute(sa.update(servers).values(seen_at=now() - timedelta(seconds=61)))

    entry = promoted(deployment)

    assert (entry.version, entry.previous_version, entry.details["from_version"]) == (3, 2, 1)
    assert summarise(read_plan(deployment)) == (Mode.CANARY, 1, 3, 0.1)
    assert roll_back(deployment, "visits", load_spec=lambda _: SPEC, to=None, reason="worse", actor="ada").version == 1


def test_a_rollback_by_a_person_ends_the_rollout(deployment: Platform) -> None:
    promoted(deployment, 2)
    beats(deployment)

    entry = roll_back(deployment, "visits", load_spec=lambda _: SPEC, to=None, reason="I saw it", actor="ada@desk")

    assert (entry.version, entry.details) == (1, {})
    assert summarise(read_plan(deployment)) == (Mode.ALL, 1, None, 0.0)
    assert promoted(deployment).version == 3


def test_rollout_continues_after_version_replacement(deployment: Platform) -> None:
    promoted(deployment, 2)
    count(deployment, 1, 900)
    count(deployment, 2, 100)
    step(deployment)
    champion = deployment.database.champion("visits")
    assert champion is not None
    decisions.replace_version(deployment.database, champion, 7, reason="it was deleted", actor="test")

    store_plan(deployment, "visits")

    assert summarise(read_plan(deployment)) == (Mode.CANARY, 1, 7, 1.0)
    count(deployment, 7, 100)
    assert step(deployment).step is Step.ADVANCE
    assert summarise(read_plan(deployment)) == (Mode.ALL, 7, None, 0.0)


def test_step_rollout_stores_plan_of_killed_promotion(deployment: Platform) -> None:
    promoted(deployment)
    version = fakes.staged_version(deployment, lineage=rows("second"))
    candidate = deployment.database.candidate(version.candidate)
    decisions.promote(
        deployment.database,
        version,
        fakes.verdict_by(SPEC, candidate),
        reason="schedule",
        actor="test",
        rollout=SPEC.rollout,
    )
    in_force = plan_in_force(deployment, "visits")
    assert deployment.database.traffic_plan("visits") != in_force

    steps.step_rollout(deployment, SPEC, actor="test")

    assert read_plan(deployment) == in_force
    assert summarise(read_plan(deployment)) == (Mode.CANARY, 1, 2, 0.1)


def test_store_plan_concurrent_calls_store_one_plan(deployment: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(deployment)
    append = type(deployment.database).append_traffic_plan

    def slow(_: object, plan: TrafficPlan) -> None:
        monkeypatch.undo()
        append(deployment.database, plan)
        with pytest.raises(ConflictError):
            append(deployment.database, plan)
        raise ConflictError

    monkeypatch.setattr(type(deployment.database), "append_traffic_plan", slow)
    promoted(deployment)

    assert [plan.sequence for plan in deployment.database.traffic_plans("visits")] == [2, 1]


# Servers that refuse a version


@pytest.mark.fault("R8")
def test_version_refused_by_servers_aborts_after_step(deployment: Platform) -> None:
    promoted(deployment, 2)
    refused = {"2": "its golden requests are answered otherwise"}
    beats(deployment, refused=refused)
    beats(deployment, name="b")
    assert step(deployment).step is Step.HOLD  # one server has it

    beats(deployment, name="b", refused=refused)
    assert step(deployment, 1).step is Step.HOLD
    aborted = step(deployment)

    assert aborted.step is Step.ABORT
    assert aborted.why == "no server serves version 2: its golden requests are answered otherwise"
    assert summarise(read_plan(deployment)) == (Mode.ALL, 1, None, 0.0)


def test_refused_version_with_answers_is_not_aborted(deployment: Platform) -> None:
    promoted(deployment)
    version = fakes.staged_version(deployment, lineage=rows("second"))
    candidate = deployment.database.candidate(version.candidate)
    promote_version(deployment, BLUE_GREEN, candidate, reason="schedule", actor="test")
    count(deployment, 2, 1)
    beats(deployment, refused={"2": "its copy is gone"})

    assert step(deployment, 60).step is Step.HOLD


def test_traffic_document_is_complete(deployment: Platform) -> None:
    assert steps.read_traffic(deployment, "visits").document["mode"] is None
    promoted(deployment, 2)
    beats(deployment)
    count(deployment, 2, 10)

    document = steps.read_traffic(deployment, "visits").document

    assert (document["mode"], document["stable"], document["successor"], document["share"]) == ("canary", 1, 2, 0.1)
    assert document["next"] == "hold"
    assert document["servers"] == [{"server": "a", "admin_address": "http://127.0.0.1:9", "plan": 2}]
    assert [version["requests"] for version in document["figures"]["versions"]] == [0, 10]
    assert steps.describe_plan(read_plan(deployment)) == "canary, step 1: 10% to version 2, the rest to version 1"
