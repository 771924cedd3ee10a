"""Rollouts as a deployment lives through them: promotion, steps, abort, conflict, replacement; both databases."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from ml_platform import workflows
from ml_platform.database.tables import servers
from ml_platform.errors import ConflictError, RolloutUnderWayError
from ml_platform.model_spec import Rollout
from ml_platform.records import LedgerEntry, Lineage, now, sha256_text
from ml_platform.stages import promotion, rollout
from ml_platform.stages.rollout import Step
from ml_platform.traffic import Mode, ServerBeat, TrafficFigures, TrafficPlan
from ml_platform.workflows import Platform
from ml_platform.workflows.rollout import Traffic
from ml_platform_tests import fakes

SPEC = fakes.unrivalled_spec(rollout=Rollout(kind="canary", steps=(0.1, 1.0), hold_minutes=5, least_requests=100))
BLUE_GREEN = fakes.unrivalled_spec()


@pytest.fixture
def deployment(platform: Platform, database_url: str) -> Iterator[Platform]:
    """A platform whose database is of each kind, and MLflow on SQLite."""
    opened = Platform(platform.settings.model_copy(update={"database_url": SecretStr(database_url)}))
    yield opened
    opened.database.close()


def rows(name: str) -> Lineage:
    return replace(fakes.candidate().lineage, dataset_digest=sha256_text(name))


def promoted(platform: Platform, times: int = 1) -> LedgerEntry:
    """Promote so many new versions of rows of their own; return the last entry."""
    for _ in range(times):
        number = platform.database.candidates_of("visits", 3)
        version = fakes.staged_version(platform, lineage=rows(f"rows {number}"))
        candidate = platform.database.candidate(version.candidate)
        entry = workflows.promote_version(platform, SPEC, candidate, reason="schedule", actor="test")
    return entry


def plan_of(platform: Platform) -> TrafficPlan:
    plan = workflows.plan_in_force(platform, "visits")
    assert plan is not None
    assert platform.database.traffic_plan("visits") == plan  # it is stored, too
    return plan


def beats(platform: Platform, name: str = "a", **says: object) -> None:
    """Let a server say that it is alive and obeys the plan in force, unless it says something else."""
    said = {"plan": plan_of(platform).sequence, **says}
    platform.database.beat(ServerBeat(model="visits", server=name, admin_address="http://127.0.0.1:9", says=said))


def count(platform: Platform, version: int, records: int, failures: int = 0) -> None:
    plan = plan_of(platform)
    latencies = [records, *[0] * 12]
    platform.database.count_traffic(
        TrafficFigures(
            model="visits",
            plan=plan.sequence,
            server="a",
            version=version,
            requests=records,
            records=records,
            failures=failures,
            latencies=latencies,
        )
    )


def step(platform: Platform, minutes: float = 6) -> Traffic:
    """Let the asset do its step, so many minutes after the plan was made."""
    at = plan_of(platform).since + timedelta(minutes=minutes)
    return workflows.step_rollout(platform, SPEC, actor="test", at=at)


def shown(plan: TrafficPlan) -> tuple[Mode, int, int | None, float]:
    return plan.mode, plan.stable, plan.successor, plan.share


def test_a_promotion_begins_the_rollout_that_its_author_declared(deployment: Platform) -> None:
    first = promoted(deployment)
    assert shown(plan_of(deployment)) == (Mode.ALL, 1, None, 0.0)
    assert first.details == {"rollout": SPEC.rollout.model_dump(mode="json")}

    second = promoted(deployment)

    assert second.details["from_version"] == 1
    plan = plan_of(deployment)
    assert shown(plan) == (Mode.CANARY, 1, 2, 0.1)
    assert plan == rollout.begin(deployment.database.history("visits"), sequence=2)


def test_a_canary_that_holds_arrives_by_its_steps(deployment: Platform) -> None:
    promoted(deployment, 2)
    beats(deployment)
    count(deployment, 1, 900)
    count(deployment, 2, 100)
    assert step(deployment, 4.9).step is Step.HOLD

    assert step(deployment).step is Step.ADVANCE
    assert shown(plan_of(deployment)) == (Mode.CANARY, 1, 2, 1.0)
    assert step(deployment).why == "version 2 has answered 0 of 100 requests"
    count(deployment, 2, 1_000)
    last = step(deployment)

    assert last.step is Step.ADVANCE
    assert last.report is not None
    assert last.report.arms[0].records == 900  # what the old version did in the step before
    assert shown(plan_of(deployment)) == (Mode.ALL, 2, None, 0.0)
    assert step(deployment).why == "version 2 answers everything"
    assert [entry.action for entry in deployment.database.history("visits")] == ["promotion", "promotion"]


@pytest.mark.fault("M2")
def test_a_canary_that_fails_goes_back_and_the_ledger_names_the_figures(deployment: Platform) -> None:
    promoted(deployment, 2)
    beats(deployment)
    count(deployment, 1, 900)
    count(deployment, 2, 50, failures=40)

    aborted = step(deployment, 0)

    entry = deployment.database.champion("visits")
    assert entry is not None
    assert aborted.entry == entry
    assert (entry.action, entry.version, entry.previous_version) == ("rollback", 1, 2)
    assert entry.reason.startswith("canary aborted: version 2 fails 80.00% of 50 records, version 1 0.00% of 900")
    stable, successor = entry.details["traffic"]["figures"]["versions"]
    assert (stable["records"], successor["records"], successor["failures"]) == (900, 50, 40)
    assert shown(plan_of(deployment)) == (Mode.ALL, 1, None, 0.0)
    assert plan_of(deployment).decision == entry.sequence
    assert deployment.registry.alias("visits", "champion") == 1
    assert workflows.verify_ledger(deployment, "visits").problems == ()
    assert step(deployment).entry is None


def test_a_step_is_done_once(deployment: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(deployment, 2)
    count(deployment, 1, 900)
    count(deployment, 2, 100)
    look = workflows.rollout.traffic_of

    def overtaken(platform: Platform, model: str, **options: object) -> Traffic:
        found = look(platform, model, **options)  # type: ignore[arg-type]
        monkeypatch.undo()
        assert step(deployment).step is Step.ADVANCE
        return found

    monkeypatch.setattr(workflows.rollout, "traffic_of", overtaken)
    late = step(deployment)

    assert late.step is Step.HOLD
    assert late.why.startswith("somebody else was faster: The traffic plan of 'visits' changed meanwhile")
    assert plan_of(deployment).sequence == 3


def test_an_abort_does_not_undo_what_was_decided_since(deployment: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(deployment, 2)
    count(deployment, 1, 900)
    count(deployment, 2, 50, failures=50)
    look = workflows.rollout.traffic_of

    def overtaken(platform: Platform, model: str, **options: object) -> Traffic:
        found = look(platform, model, **options)  # type: ignore[arg-type]
        promoted(deployment)
        return found

    monkeypatch.setattr(workflows.rollout, "traffic_of", overtaken)
    late = step(deployment)

    assert (late.step, late.entry) == (Step.HOLD, None)
    champion = deployment.database.champion("visits")
    assert champion is not None
    assert (champion.action, champion.version) == ("promotion", 3)


# Promotions and rollbacks meanwhile


def test_a_promotion_during_a_rollout_is_a_typed_conflict(deployment: Platform) -> None:
    promoted(deployment, 2)
    beats(deployment)

    with pytest.raises(RolloutUnderWayError, match=r"from version 1 to version 2 \(canary, step 1\): version 3 has to"):
        promoted(deployment)

    champion = deployment.database.champion("visits")
    assert champion is not None
    assert champion.version == 2
    again = deployment.database.candidate(champion.candidate)
    assert workflows.promote_version(deployment, SPEC, again, reason="schedule", actor="again") == champion


@pytest.mark.parametrize("gone", [True, False], ids=["a server that is gone", "a server that obeys another plan"])
def test_without_a_server_the_newer_version_takes_over_from_the_one_that_answers(
    deployment: Platform, gone: bool
) -> None:
    promoted(deployment, 2)
    beats(deployment, plan=plan_of(deployment).sequence if gone else 1)
    if gone:
        with deployment.database.engine.begin() as connection:
            connection.execute(sa.update(servers).values(seen_at=now() - timedelta(seconds=61)))

    entry = promoted(deployment)

    assert (entry.version, entry.previous_version, entry.details["from_version"]) == (3, 2, 1)
    assert shown(plan_of(deployment)) == (Mode.CANARY, 1, 3, 0.1)
    assert workflows.roll_back(deployment, "visits", lambda: SPEC, to=None, reason="worse", actor="ada").version == 1


def test_a_rollback_by_a_person_ends_the_rollout(deployment: Platform) -> None:
    promoted(deployment, 2)
    beats(deployment)

    entry = workflows.roll_back(deployment, "visits", lambda: SPEC, to=None, reason="I saw it", actor="ada@desk")

    assert (entry.version, entry.details) == (1, {})
    assert shown(plan_of(deployment)) == (Mode.ALL, 1, None, 0.0)
    assert promoted(deployment).version == 3


def test_a_new_number_of_the_champion_goes_on_where_the_old_one_was(deployment: Platform) -> None:
    promoted(deployment, 2)
    count(deployment, 1, 900)
    count(deployment, 2, 100)
    step(deployment)
    champion = deployment.database.champion("visits")
    assert champion is not None
    promotion.replace_version(deployment.database, champion, 7, reason="it was deleted", actor="test")

    workflows.keep_plan(deployment, "visits")

    assert shown(plan_of(deployment)) == (Mode.CANARY, 1, 7, 1.0)
    count(deployment, 7, 100)
    assert step(deployment).step is Step.ADVANCE
    assert shown(plan_of(deployment)) == (Mode.ALL, 7, None, 0.0)


def test_a_plan_that_died_with_its_promotion_is_stored_by_the_next_look(deployment: Platform) -> None:
    promoted(deployment)
    version = fakes.staged_version(deployment, lineage=rows("second"))
    candidate = deployment.database.candidate(version.candidate)
    promotion.promote(
        deployment.database,
        version,
        fakes.verdict_by(SPEC, candidate),
        reason="schedule",
        actor="test",
        rollout=SPEC.rollout,
    )
    in_force = workflows.plan_in_force(deployment, "visits")
    assert deployment.database.traffic_plan("visits") != in_force

    workflows.step_rollout(deployment, SPEC, actor="test")

    assert plan_of(deployment) == in_force
    assert shown(plan_of(deployment)) == (Mode.CANARY, 1, 2, 0.1)


def test_two_that_store_the_same_plan_at_once_store_it_once(
    deployment: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
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


# Servers that refuse


@pytest.mark.fault("R8")
def test_a_version_that_no_server_loads_goes_back_when_its_step_has_passed(deployment: Platform) -> None:
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
    assert shown(plan_of(deployment)) == (Mode.ALL, 1, None, 0.0)


def test_what_answered_before_is_not_rolled_back_because_a_server_cannot_load_it_now(deployment: Platform) -> None:
    promoted(deployment)
    version = fakes.staged_version(deployment, lineage=rows("second"))
    candidate = deployment.database.candidate(version.candidate)
    workflows.promote_version(deployment, BLUE_GREEN, candidate, reason="schedule", actor="test")
    count(deployment, 2, 1)
    beats(deployment, refused={"2": "its copy is gone"})

    assert step(deployment, 60).step is Step.HOLD


def test_how_traffic_stands_is_told_in_full(deployment: Platform) -> None:
    assert workflows.traffic_of(deployment, "visits").document["mode"] is None
    promoted(deployment, 2)
    beats(deployment)
    count(deployment, 2, 10)

    document = workflows.traffic_of(deployment, "visits").document

    assert (document["mode"], document["stable"], document["successor"], document["share"]) == ("canary", 1, 2, 0.1)
    assert document["next"] == "hold"
    assert document["servers"] == [{"server": "a", "admin_address": "http://127.0.0.1:9", "plan": 2}]
    assert [version["requests"] for version in document["figures"]["versions"]] == [0, 10]
    assert workflows.described(plan_of(deployment)) == "canary, step 1: 10% to version 2, the rest to version 1"
