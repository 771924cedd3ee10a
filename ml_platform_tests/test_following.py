"""What `promote.yml` calls: a version's test, its promotion bound to a verdict, its rollout, and the way back."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ml_platform import workflows
from ml_platform.commands import deciding, shared
from ml_platform.database import Database
from ml_platform.database.tables import servers
from ml_platform.errors import ApprovalNeededError, EvidenceError
from ml_platform.records import Action, LedgerEntry
from ml_platform.workflows import End, Platform, following
from ml_platform.workflows.traffic import plan_in_force
from ml_platform_tests import fakes
from ml_platform_tests.life import live
from ml_platform_tests.test_cli import call
from ml_platform_tests.test_rollout import SPEC, beats, count, plan_of, promoted, step

MANUAL = fakes.unrivalled_spec(approval="manual")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PAUSE", 0.01)


def follow(platform: Platform, version: int, seconds: float) -> following.Followed:
    return workflows.follow_rollout(platform, SPEC, version, seconds=seconds, actor="promote.yml")


def actions(platform: Platform) -> list[tuple[str, int]]:
    return [(entry.action, entry.version) for entry in platform.database.history("visits")]


def test_the_first_champion_has_arrived_at_once(platform: Platform) -> None:
    promoted(platform)

    assert follow(platform, 1, 0).end is End.ARRIVED


def test_a_rollout_is_followed_until_it_arrives(platform: Platform) -> None:
    promoted(platform, 2)
    beats(platform)
    found = list[following.Followed]()
    thread = threading.Thread(target=lambda: found.append(follow(platform, 2, 60)))
    thread.start()
    for _ in range(2):  # as the sensor's step would, once the figures are there
        count(platform, 1, 900)
        count(platform, 2, 1_000)
        step(platform)
        beats(platform)
    thread.join(30)

    assert [(one.end, one.champion) for one in found] == [(End.ARRIVED, 2)]
    assert actions(platform) == [("promotion", 1), ("promotion", 2)]


def test_a_rollout_that_does_not_arrive_in_time_goes_back(platform: Platform) -> None:
    promoted(platform, 2)
    beats(platform)

    found = follow(platform, 2, 0.05)

    assert (found.end, found.champion) == (End.WENT_BACK, 1)
    assert actions(platform)[-1] == ("rollback", 1)
    assert "did not arrive within" in platform.database.history("visits")[-1].reason
    assert plan_of(platform).stable == 1


def test_a_job_that_was_stopped_goes_back_once_and_no_further(platform: Platform) -> None:
    """Whoever comes second finds it done: the champion before the champion before stays where it is."""
    promoted(platform, 3)
    beats(platform)

    ends = [follow(platform, 3, 0).end for _ in range(3)]

    assert ends == [End.WENT_BACK] * 3
    assert [action for action, _ in actions(platform)].count("rollback") == 1


def test_a_rollout_that_the_figures_ended_is_told(platform: Platform) -> None:
    promoted(platform, 2)
    beats(platform)
    count(platform, 1, 900)
    count(platform, 2, 50, failures=40)

    found = follow(platform, 2, 60)

    assert (found.end, found.champion) == (End.WENT_BACK, 1)
    assert "canary aborted" in found.why


def test_where_nobody_serves_there_is_nothing_to_go_back_from(platform: Platform) -> None:
    promoted(platform, 2)

    assert follow(platform, 2, 0.05).end is End.NOBODY_SERVES
    assert actions(platform)[-1] == ("promotion", 2)


def test_what_another_promotion_overtook_is_left_alone(platform: Platform) -> None:
    promoted(platform, 3)

    assert follow(platform, 2, 0).end is End.OVERTAKEN
    assert actions(platform)[-1] == ("promotion", 3)


def test_what_never_was_champion_has_no_rollout(platform: Platform) -> None:
    promoted(platform)

    with pytest.raises(EvidenceError, match="Version 9 of 'visits' never was champion"):
        follow(platform, 9, 0)


def test_a_step_that_is_due_is_done_by_whoever_follows(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Dagster is deployed whose sensor would do it."""
    promoted(platform, 2)
    beats(platform)
    count(platform, 1, 900)
    count(platform, 2, 100)
    later = plan_of(platform).since + timedelta(minutes=6)
    monkeypatch.setattr("ml_platform.workflows.rollout.now", lambda: later)
    monkeypatch.setattr("ml_platform.workflows.following.time.sleep", _stop)

    with pytest.raises(_StopError):
        follow(platform, 2, 60)

    assert plan_of(platform).share == 1.0


def test_a_decision_between_two_looks_is_no_arrival(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody goes back after the ledger was read and before the plan was: all traffic is the other version's."""
    promoted(platform, 2)
    beats(platform)
    decided = list[str]()

    def after_a_rollback(opened: Platform, model: str) -> object:
        if not decided:
            decided.append("rollback")
            workflows.roll_back(opened, model, lambda: SPEC, to=1, reason="somebody's", actor="bob")
        return plan_in_force(opened, model)

    monkeypatch.setattr(following, "plan_in_force", after_a_rollback)

    found = follow(platform, 2, 60)

    assert (found.end, found.champion) == (End.WENT_BACK, 1)
    assert "somebody's" in found.why


def test_what_somebody_promoted_meanwhile_is_not_taken_back(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(platform, 2)
    beats(platform, plan=0)  # it serves, but does not carry the rollout out

    def overtaken(*given: Any, **options: Any) -> LedgerEntry:
        promoted(platform)
        return workflows.roll_back(*given, **options)

    monkeypatch.setattr(following, "roll_back", overtaken)

    assert follow(platform, 2, 0).end is End.OVERTAKEN
    assert actions(platform)[-1] == ("promotion", 3)


def test_going_back_is_tried_again_where_somebody_wrote_meanwhile(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An approval of another version comes between the look at the ledger's end and the rollback."""
    promoted(platform, 2)
    beats(platform)
    append, written = Database.append_to_ledger, list[str]()

    def second(database: Database, entry: LedgerEntry) -> None:
        if not written:
            written.append("approval")
            approval = replace(entry, action=Action.APPROVAL.value, version=2, reason="another's")
            append(database, approval)
        append(database, entry)

    monkeypatch.setattr(Database, "append_to_ledger", second)

    found = follow(platform, 2, 0)

    assert (found.end, found.champion) == (End.WENT_BACK, 1)
    assert actions(platform)[-1] == ("rollback", 1)


class Clock:
    """Time that goes on only while somebody sleeps; a test may do something meanwhile."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.now, self.meanwhile = 0.0, meanwhile

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(following, "PAUSE", 5.0)
    monkeypatch.setattr(following, "time", clock)
    return clock


@pytest.mark.parametrize(("seconds", "after"), [(3_600.0, 60.0), (30.0, 30.0)])
def test_a_server_has_a_minute_to_show_itself(platform: Platform, clock: Clock, seconds: float, after: float) -> None:
    promoted(platform, 2)

    assert follow(platform, 2, seconds).end is End.NOBODY_SERVES
    assert clock.now == after


def test_a_rollout_whose_servers_died_on_the_way_goes_back(platform: Platform, clock: Clock) -> None:
    """They served once: a rollout has begun, and nobody says that it arrived."""
    promoted(platform, 2)
    beats(platform)

    def die() -> None:
        with platform.database._transaction() as connection:
            connection.execute(servers.delete())

    clock.meanwhile = die

    assert follow(platform, 2, 300).end is End.WENT_BACK
    assert clock.now == 300
    assert platform.database.history("visits")[-1].reason.endswith("within 5 minutes")
    assert platform.database.history("visits")[-1].actor == "promote.yml"


@pytest.fixture
def due(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """The rollout of version 2 stands before its last step, which is due."""
    promoted(platform, 2)
    beats(platform)
    count(platform, 1, 900)
    count(platform, 2, 1_000)
    step(platform)
    beats(platform)
    count(platform, 2, 1_000)
    later = plan_of(platform).since + timedelta(minutes=6)
    monkeypatch.setattr("ml_platform.workflows.rollout.now", lambda: later)
    return platform


def test_a_rollout_that_arrives_by_our_own_step_is_told_at_once(due: Platform, clock: Clock) -> None:
    assert follow(due, 2, 60).end is End.ARRIVED
    assert clock.now == 0


def test_without_any_time_it_goes_back_even_if_one_step_is_missing(due: Platform, clock: Clock) -> None:
    """Whoever stopped the job wants no step more."""
    assert follow(due, 2, 0).end is End.WENT_BACK
    assert clock.now == 0


def test_the_rollout_of_another_version_is_not_stepped(due: Platform, clock: Clock) -> None:
    before = plan_of(due)

    assert follow(due, 1, 60).end is End.OVERTAKEN
    assert plan_of(due) == before
    assert clock.now == 0


def test_it_goes_back_to_what_still_answers_and_not_to_the_champion_before(platform: Platform) -> None:
    """Nobody served while version 3 overtook version 2 on its way: version 1 answers, and is what 3 came from."""
    promoted(platform, 3)
    beats(platform)

    assert follow(platform, 3, 0).champion == plan_of(platform).stable == 1


class _StopError(Exception):
    pass


def _stop(_: float) -> None:
    raise _StopError


# The version


@pytest.fixture
def staged(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A trained version 1 that waits for an approval, with a real model."""
    monkeypatch.setattr(shared, "spec_of", lambda _: MANUAL)
    monkeypatch.setattr(deciding, "_show_in_dagster", lambda *_: None)
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    with pytest.raises(ApprovalNeededError):
        live(platform, MANUAL)
    return platform


def refuse(*_: object) -> None:
    raise AssertionError("an alias was set: MLflow would tell the receiver, which would ask for this again")


def test_a_version_is_tested_and_only_the_verdict_that_was_told_is_approved(
    staged: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("approve", "visits", "1", "--reason", "fine", "--verdict")
    with monkeypatch.context() as patched:
        patched.setattr("ml_platform.stages.registry.Registry.set_alias", refuse)
        status, said = call("check-version", "visits", "1", "--json")
    tested = json.loads(said)
    with pytest.raises(
        EvidenceError, match=f"must be the verdict on version 1 of 'visits', {tested['verdict']}. Got '00"
    ):
        call(*command, "0" * 64)
    before = staged.database.champion("visits")
    approved, _ = call(*command, tested["verdict"])

    assert (status, tested["waits"], tested["problem"], tested["champion"]) == (0, True, None, None)
    assert before is None
    assert approved == 0
    champion = staged.database.champion("visits")
    assert champion is not None
    assert champion.verdict_digest == tested["verdict"]
    assert json.loads(call("check-version", "visits", "1", "--json")[1])["waits"] is False
    # Another attempt of the same job, whose runner died after this.
    assert call(*command, tested["verdict"])[0] == 0
    assert actions(staged) == [("promotion", 1)]


def test_what_there_is_no_version_of_says_what_to_do(platform: Platform) -> None:
    with pytest.raises(EvidenceError, match=r"There is no version 9 of 'visits'\. Look at `ml-platform status`"):
        workflows.check_version(platform, MANUAL, 9)


def test_a_version_that_is_promoted_by_itself_waits_for_nobody(staged: Platform) -> None:
    assert workflows.check_version(staged, SPEC, 1).waits is False


# The command


def followed(monkeypatch: pytest.MonkeyPatch, version: int, *more: str) -> tuple[int, str]:
    monkeypatch.setattr(shared, "spec_of", lambda _: SPEC)
    return call("follow-rollout", "visits", str(version), *more)


def test_the_command_ends_as_the_rollout_did(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(platform, 2)
    nobody = followed(monkeypatch, 2, "--within", "0")
    beats(platform)
    back = followed(monkeypatch, 2, "--within", "0")
    arrived = followed(monkeypatch, 1, "--within", "0", "--json")

    assert nobody == (0, "visits: nobody serves, no server of visits is alive\n")
    assert (back[0], back[1].partition(",")[0]) == (1, "visits: went back")
    assert (arrived[0], json.loads(arrived[1])["end"], json.loads(arrived[1])["champion"]) == (0, "arrived", 1)


def test_the_command_takes_minutes(platform: Platform, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(platform, 2)
    beats(platform)

    assert followed(monkeypatch, 2, "--within", "2")[0] == 1
    assert clock.now == 120


@pytest.mark.parametrize("minutes", ["-1", "nan", "inf"])
def test_the_command_takes_a_time_that_ends(monkeypatch: pytest.MonkeyPatch, minutes: str) -> None:
    assert followed(monkeypatch, 2, "--within", minutes)[0] == 2


def test_bytes_that_changed_in_the_registry_wait_for_nothing(staged: Platform) -> None:
    for file in staged.settings.artifacts.rglob("*.skops"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")

    tested = workflows.check_version(staged, MANUAL, 1)
    status, said = call("check-version", "visits", "1")

    assert tested.problem is not None
    assert said.startswith("refused: ")
    assert "passed" not in said
    assert (tested.waits, tested.verdict, status) == (False, "", 1)
