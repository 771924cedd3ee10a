"""The steps of `promote.yml`: test of a version, promotion bound to a verdict, wait for the rollout, rollback."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ml_platform.cli import lifecycle
from ml_platform.database import PlatformDatabase
from ml_platform.database.tables import servers
from ml_platform.errors import ApprovalNeededError, EvidenceError
from ml_platform.models import discovery
from ml_platform.platform import Platform
from ml_platform.records.ledger import Action, LedgerEntry
from ml_platform.release.check_version import check_version
from ml_platform.release.rollback import roll_back
from ml_platform.release.rollout import wait
from ml_platform.release.rollout.traffic import plan_in_force
from ml_platform.release.rollout.wait import RolloutOutcome
from ml_platform_tests.support import fakes
from ml_platform_tests.support.command_line import call
from ml_platform_tests.support.lifecycle import live
from ml_platform_tests.support.rollouts import SPEC, beats, count, promoted, read_plan, step

pytestmark = pytest.mark.slow

MANUAL = fakes.uncompared_spec(approval="manual")


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "PAUSE", 0.01)


def wait_for(platform: Platform, version: int, seconds: float) -> wait.RolloutResult:
    return wait.wait_for_rollout(platform, SPEC, version, seconds=seconds, actor="promote.yml")


def actions(platform: Platform) -> list[tuple[str, int]]:
    return [(entry.action, entry.version) for entry in platform.database.history("visits")]


def test_the_first_champion_has_arrived_at_once(platform: Platform) -> None:
    promoted(platform)

    assert wait_for(platform, 1, 0).end is RolloutOutcome.ARRIVED


def test_a_rollout_is_followed_until_it_arrives(platform: Platform) -> None:
    promoted(platform, 2)
    beats(platform)
    result = list[wait.RolloutResult]()
    thread = threading.Thread(target=lambda: result.append(wait_for(platform, 2, 60)))
    thread.start()
    for _ in range(2):  # as the sensor does once there are enough requests
        count(platform, 1, 900)
        count(platform, 2, 1_000)
        step(platform)
        beats(platform)
    thread.join(30)

    assert [(one.end, one.champion) for one in result] == [(RolloutOutcome.ARRIVED, 2)]
    assert actions(platform) == [("promotion", 1), ("promotion", 2)]


def test_unfinished_rollout_after_timeout_is_rolled_back(platform: Platform) -> None:
    promoted(platform, 2)
    beats(platform)

    result = wait_for(platform, 2, 0.05)

    assert (result.end, result.champion) == (RolloutOutcome.WENT_BACK, 1)
    assert actions(platform)[-1] == ("rollback", 1)
    assert "did not arrive within" in platform.database.history("visits")[-1].reason
    assert read_plan(platform).stable == 1


def test_repeated_wait_rolls_back_once(platform: Platform) -> None:
    """A second job finds the rollback done, and does not roll back further."""
    promoted(platform, 3)
    beats(platform)

    ends = [wait_for(platform, 3, 0).end for _ in range(3)]

    assert ends == [RolloutOutcome.WENT_BACK] * 3
    assert [action for action, _ in actions(platform)].count("rollback") == 1


def test_wait_reports_an_aborted_rollout(platform: Platform) -> None:
    promoted(platform, 2)
    beats(platform)
    count(platform, 1, 900)
    count(platform, 2, 50, failures=40)

    result = wait_for(platform, 2, 60)

    assert (result.end, result.champion) == (RolloutOutcome.WENT_BACK, 1)
    assert "canary aborted" in result.why


def test_wait_without_live_server_does_not_roll_back(platform: Platform) -> None:
    promoted(platform, 2)

    assert wait_for(platform, 2, 0.05).end is RolloutOutcome.NOBODY_SERVES
    assert actions(platform)[-1] == ("promotion", 2)


def test_wait_for_replaced_version_changes_nothing(platform: Platform) -> None:
    promoted(platform, 3)

    assert wait_for(platform, 2, 0).end is RolloutOutcome.OVERTAKEN
    assert actions(platform)[-1] == ("promotion", 3)


def test_wait_for_version_never_champion_is_refused(platform: Platform) -> None:
    promoted(platform)

    with pytest.raises(EvidenceError, match="Version 9 of 'visits' never was champion"):
        wait_for(platform, 9, 0)


def test_wait_carries_out_due_steps(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Dagster sensor is deployed to carry them out."""
    promoted(platform, 2)
    beats(platform)
    count(platform, 1, 900)
    count(platform, 2, 100)
    later = read_plan(platform).since + timedelta(minutes=6)
    monkeypatch.setattr("ml_platform.release.rollout.steps.now", lambda: later)
    monkeypatch.setattr("ml_platform.release.rollout.wait.time.sleep", _stop)

    with pytest.raises(_StopError):
        wait_for(platform, 2, 60)

    assert read_plan(platform).share == 1.0


def test_rollback_between_two_checks_is_not_an_arrival(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback between the reads of ledger and plan gives another version all traffic."""
    promoted(platform, 2)
    beats(platform)
    decided = list[str]()

    def after_a_rollback(opened: Platform, model: str) -> object:
        if not decided:
            decided.append("rollback")
            roll_back(opened, model, load_spec=lambda _: SPEC, to=1, reason="found by bob", actor="bob")
        return plan_in_force(opened, model)

    monkeypatch.setattr(wait, "plan_in_force", after_a_rollback)

    result = wait_for(platform, 2, 60)

    assert (result.end, result.champion) == (RolloutOutcome.WENT_BACK, 1)
    assert "found by bob" in result.why


def test_timeout_does_not_undo_a_concurrent_promotion(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(platform, 2)
    beats(platform, plan=0)  # it is alive, but does not follow the plan

    def overtaken(*given: Any, **options: Any) -> LedgerEntry:
        promoted(platform)
        return roll_back(*given, **options)

    monkeypatch.setattr(wait, "roll_back", overtaken)

    assert wait_for(platform, 2, 0).end is RolloutOutcome.OVERTAKEN
    assert actions(platform)[-1] == ("promotion", 3)


def test_timeout_rollback_is_retried_after_a_conflict(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """An approval of another version is appended between the read of the ledger's end and the rollback."""
    promoted(platform, 2)
    beats(platform)
    append, written = PlatformDatabase.append_to_ledger, list[str]()

    def second(database: PlatformDatabase, entry: LedgerEntry) -> None:
        if not written:
            written.append("approval")
            approval = replace(entry, action=Action.APPROVAL.value, version=2, reason="another's")
            append(database, approval)
        append(database, entry)

    monkeypatch.setattr(PlatformDatabase, "append_to_ledger", second)

    result = wait_for(platform, 2, 0)

    assert (result.end, result.champion) == (RolloutOutcome.WENT_BACK, 1)
    assert actions(platform)[-1] == ("rollback", 1)


class Clock:
    """A clock that advances only in `sleep`, which calls `meanwhile`."""

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
    monkeypatch.setattr(wait, "PAUSE", 5.0)
    monkeypatch.setattr(wait, "time", clock)
    return clock


@pytest.mark.parametrize(("seconds", "after"), [(3_600.0, 60.0), (30.0, 30.0)])
def test_wait_allows_servers_a_minute_to_start(platform: Platform, clock: Clock, seconds: float, after: float) -> None:
    promoted(platform, 2)

    assert wait_for(platform, 2, seconds).end is RolloutOutcome.NOBODY_SERVES
    assert clock.now == after


def test_rollout_with_killed_servers_is_rolled_back(platform: Platform, clock: Clock) -> None:
    """The servers were alive once, so that a rollout has begun that never finished."""
    promoted(platform, 2)
    beats(platform)

    def die() -> None:
        with platform.database._transaction() as connection:
            connection.execute(servers.delete())

    clock.meanwhile = die

    assert wait_for(platform, 2, 300).end is RolloutOutcome.WENT_BACK
    assert clock.now == 300
    assert platform.database.history("visits")[-1].reason.endswith("within 5 minutes")
    assert platform.database.history("visits")[-1].actor == "promote.yml"


@pytest.fixture
def due(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A deployment with a rollout of version 2 whose last step is due."""
    promoted(platform, 2)
    beats(platform)
    count(platform, 1, 900)
    count(platform, 2, 1_000)
    step(platform)
    beats(platform)
    count(platform, 2, 1_000)
    later = read_plan(platform).since + timedelta(minutes=6)
    monkeypatch.setattr("ml_platform.release.rollout.steps.now", lambda: later)
    return platform


def test_rollout_finished_by_own_step_returns_at_once(due: Platform, clock: Clock) -> None:
    assert wait_for(due, 2, 60).end is RolloutOutcome.ARRIVED
    assert clock.now == 0


def test_wait_zero_seconds_rolls_back_before_last_step(due: Platform, clock: Clock) -> None:
    """A stopped job must not carry out further steps."""
    assert wait_for(due, 2, 0).end is RolloutOutcome.WENT_BACK
    assert clock.now == 0


def test_the_rollout_of_another_version_is_not_stepped(due: Platform, clock: Clock) -> None:
    before = read_plan(due)

    assert wait_for(due, 1, 60).end is RolloutOutcome.OVERTAKEN
    assert read_plan(due) == before
    assert clock.now == 0


def test_timeout_rolls_back_to_the_stable_version(platform: Platform) -> None:
    """Version 3 was promoted during the rollout of version 2, without a server: version 1 is stable."""
    promoted(platform, 3)
    beats(platform)

    assert wait_for(platform, 3, 0).champion == read_plan(platform).stable == 1


class _StopError(Exception):
    pass


def _stop(_: float) -> None:
    raise _StopError


# The version


@pytest.fixture
def staged(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A deployment with a trained version 1, with a real model, that waits for an approval."""
    monkeypatch.setattr(discovery, "load", lambda _: MANUAL)
    monkeypatch.setattr(lifecycle, "_show_in_dagster", lambda *_: None)
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    with pytest.raises(ApprovalNeededError):
        live(platform, MANUAL)
    return platform


def refuse(*_: object) -> None:
    raise AssertionError("an alias was set: MLflow's webhook would start this job again")


def test_approve_accepts_only_the_verdict_of_check_version(staged: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("approve", "visits", "1", "--reason", "fine", "--verdict")
    with monkeypatch.context() as patched:
        patched.setattr("ml_platform.storage.mlflow_registry.Registry.set_alias", refuse)
        status, output = call("ci", "check-version", "visits", "1", "--json")
    check = json.loads(output)
    with pytest.raises(
        EvidenceError, match=f"must be the verdict on version 1 of 'visits', {check['verdict']}. Got '00"
    ):
        call(*command, "0" * 64)
    before = staged.database.champion("visits")
    approved, _ = call(*command, check["verdict"])

    assert (status, check["waits"], check["problem"], check["champion"]) == (0, True, None, None)
    assert before is None
    assert approved == 0
    champion = staged.database.champion("visits")
    assert champion is not None
    assert champion.verdict_digest == check["verdict"]
    assert json.loads(call("ci", "check-version", "visits", "1", "--json")[1])["waits"] is False
    # A second attempt of the same job, after its runner was killed.
    assert call(*command, check["verdict"])[0] == 0
    assert actions(staged) == [("promotion", 1)]


def test_check_version_unknown_version_is_refused(platform: Platform) -> None:
    with pytest.raises(EvidenceError, match=r"There is no version 9 of 'visits'\. Run: ml-platform status"):
        check_version(platform, MANUAL, 9)


def test_check_version_automatic_approval_does_not_wait(staged: Platform) -> None:
    assert check_version(staged, SPEC, 1).waits is False


# The command


def call_wait(monkeypatch: pytest.MonkeyPatch, version: int, *more: str) -> tuple[int, str]:
    monkeypatch.setattr(discovery, "load", lambda _: SPEC)
    return call("rollout", "wait", "visits", str(version), *more)


def test_the_command_ends_as_the_rollout_did(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(platform, 2)
    unserved = call_wait(monkeypatch, 2, "--timeout-minutes", "0")
    beats(platform)
    back = call_wait(monkeypatch, 2, "--timeout-minutes", "0")
    arrived = call_wait(monkeypatch, 1, "--timeout-minutes", "0", "--json")

    assert unserved == (0, "visits: no live server, no server of visits is alive\n")
    assert (back[0], back[1].partition(",")[0]) == (1, "visits: went back")
    assert (arrived[0], json.loads(arrived[1])["end"], json.loads(arrived[1])["champion"]) == (0, "arrived", 1)


def test_the_command_takes_minutes(platform: Platform, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(platform, 2)
    beats(platform)

    assert call_wait(monkeypatch, 2, "--timeout-minutes", "2")[0] == 1
    assert clock.now == 120


@pytest.mark.parametrize("minutes", ["-1", "nan", "inf"])
def test_the_command_takes_a_time_that_ends(monkeypatch: pytest.MonkeyPatch, minutes: str) -> None:
    assert call_wait(monkeypatch, 2, "--timeout-minutes", minutes)[0] == 2


def test_check_version_changed_bytes_do_not_wait(staged: Platform) -> None:
    for file in staged.settings.artifacts.rglob("*.skops"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")

    check = check_version(staged, MANUAL, 1)
    status, output = call("ci", "check-version", "visits", "1")

    assert check.problem is not None
    assert output.startswith("refused: ")
    assert "version 1: passed" not in output
    assert (check.waits, check.verdict, status) == (False, "", 1)
