"""A retraining is unique by model, reason and slot: two clocks, even wrong ones, make one."""

import json
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
import sqlalchemy as sa

from ml_platform import pipeline, runs, workflows
from ml_platform.commands import github, shared
from ml_platform.database import Database
from ml_platform.definitions import defs
from ml_platform.errors import ConfigurationError, ConflictError
from ml_platform.records import Slot, slot_name
from ml_platform.resources import REASON_TAG, SLOT_TAG, PlatformResource
from ml_platform.runs import RunFailedError
from ml_platform.workflows import Platform
from ml_platform_tests import fakes
from ml_platform_tests.postgres import Postgres
from ml_platform_tests.test_cli import call
from ml_platform_tests.test_pipeline import ingest, repository, run, why

ROOT = Path(__file__).resolve().parent.parent
MONDAY = datetime(2026, 11, 23, 2, tzinfo=UTC)
SLOT = Slot(model="visits", reason="schedule", slot="2026-11-23T02:00Z")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()


def test_the_first_run_has_the_slot_and_keeps_it(database: Database) -> None:
    assert database.slot_holder(SLOT) is None
    assert database.claim_slot(SLOT, "first") == "first"
    assert database.claim_slot(SLOT, "second") == "first"
    assert database.claim_slot(SLOT, "first") == "first"
    assert database.slot_holder(SLOT) == "first"


@pytest.mark.parametrize(
    "other",
    [
        Slot(model="churn", reason=SLOT.reason, slot=SLOT.slot),
        Slot(model=SLOT.model, reason="manual: x", slot=SLOT.slot),
        Slot(model=SLOT.model, reason=SLOT.reason, slot="2026-11-30T02:00Z"),
    ],
    ids=str,
)
def test_another_model_reason_or_time_is_another_slot(database: Database, other: Slot) -> None:
    database.claim_slot(SLOT, "first")

    assert database.claim_slot(other, "second") == "second"


def test_a_slot_is_given_back_by_its_holder_alone(database: Database) -> None:
    database.claim_slot(SLOT, "first")

    database.release_slot(SLOT, "second")
    assert database.slot_holder(SLOT) == "first"
    database.claim_slot(replace(SLOT, model="churn"), "first")
    database.release_slot(SLOT, "first")
    assert database.claim_slot(SLOT, "second") == "second"
    assert database.slot_holder(replace(SLOT, model="churn")) == "first"


@pytest.mark.fault("V5")
def test_of_many_who_ask_at_once_one_has_the_slot(database: Database) -> None:
    gate, holders = threading.Barrier(8), list[str]()

    def claim(name: str) -> None:
        gate.wait()
        holders.append(database.claim_slot(SLOT, name))

    threads = [threading.Thread(target=claim, args=(f"run-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(holders) == 8
    assert len(set(holders)) == 1


@pytest.mark.fault("V5")
def test_a_slot_that_is_given_back_at_that_moment_is_had(postgres: Postgres) -> None:
    """Between a refused insert and the look at who was first: SQLite lets nobody write in between."""
    ours, theirs = Database(url := postgres.new_database()), Database(url)
    theirs.claim_slot(SLOT, "first")
    sa.event.listen(ours.engine, "handle_error", lambda _: theirs.release_slot(SLOT, "first"))

    assert ours.claim_slot(SLOT, "second") == "second"
    assert theirs.slot_holder(SLOT) == "second"
    for opened in (ours, theirs):
        opened.close()


@pytest.mark.parametrize("slot", ["", "a b", "x" * 65, "../x", "\n", "-x"])
def test_a_slot_is_a_name(slot: str) -> None:
    with pytest.raises(ConfigurationError, match="--slot must be"):
        Slot(model="visits", reason="schedule", slot=slot)


@pytest.mark.parametrize("more", [(), ("--slot", "x"), ("--at", "http://127.0.0.1:9")], ids=str)
def test_a_reason_that_says_nothing_retrains_nothing(more: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="--reason must say why"):
        call("retrain", "churn", "--reason", " ", *more)


def test_a_reason_that_is_no_key_is_refused() -> None:
    assert len(Slot(model="visits", reason="x" * 255, slot="a").reason) == 255
    with pytest.raises(ConfigurationError, match=r"at most 255 characters\. Got 256"):
        Slot(model="visits", reason="x" * 256, slot="a")


def test_a_slot_is_told_in_utc_whatever_the_zone_of_the_clock() -> None:
    berlin = MONDAY.astimezone(ZoneInfo("Europe/Berlin"))
    somewhere = MONDAY.astimezone(timezone(timedelta(hours=-11, minutes=-30)))

    assert slot_name(berlin) == slot_name(somewhere) == slot_name(MONDAY) == "2026-11-23T02:00Z"


# The clocks


@pytest.fixture
def in_berlin() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.fault("V5")
@pytest.mark.usefixtures("in_berlin")
@pytest.mark.parametrize("sunday", [datetime(2026, 10, 25, tzinfo=UTC), datetime(2027, 3, 28, tzinfo=UTC)], ids=str)
def test_on_a_daylight_saving_weekend_there_is_one_slot(sunday: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hour from Saturday to Wednesday, on a machine whose own clock is moved that night."""
    monday = sunday + timedelta(days=1, hours=2)
    known = runs._repository()
    monkeypatch.setattr(runs, "_repository", lambda: known)
    hours = [sunday + timedelta(hours=hour) for hour in range(-24, 72)]

    slots = [runs.due_slot("churn", hour.astimezone(ZoneInfo("Europe/Berlin"))) for hour in hours]

    assert [slot_name(monday - timedelta(weeks=1))] * 50 + [slot_name(monday)] * 46 == slots


def test_the_slot_that_is_due_is_the_newest_tick() -> None:
    assert runs.due_slot("churn", MONDAY) == "2026-11-23T02:00Z"
    assert runs.due_slot("churn", MONDAY - timedelta(seconds=1)) == "2026-11-16T02:00Z"
    assert runs.due_slot("churn", MONDAY + timedelta(days=6, hours=23)) == "2026-11-23T02:00Z"


def weekly(at: datetime) -> Any:
    """What Dagster's schedule asks for at a tick."""
    schedule = repository(fakes.visits_spec()).get_schedule_def("visits_weekly")
    context = dg.build_schedule_context(scheduled_execution_time=at, resources={"platform": PlatformResource()})
    return schedule(context)


@pytest.mark.fault("V5")
@pytest.mark.parametrize("wrong", [timedelta(days=-1), timedelta(), timedelta(days=1)], ids=str)
@pytest.mark.parametrize("off", ["dagster", "github"])
def test_two_clocks_of_which_one_is_a_day_off_make_one_retraining(
    platform: Platform, wrong: timedelta, off: str
) -> None:
    """Both ask whenever their own clock says Monday at two; the wrong one is set right and comes to its Monday again.

    GitHub starts late besides, and is started again by hand three days later.
    """

    def dagster() -> bool:
        asked = weekly(MONDAY)
        if isinstance(asked, dg.SkipReason):
            return False
        slot = Slot(model="visits", reason=asked.tags[REASON_TAG], slot=asked.tags[SLOT_TAG])
        return platform.database.claim_slot(slot, holder := uuid.uuid4().hex) == holder

    def github(late: timedelta = timedelta(minutes=20)) -> bool:
        slot = Slot(model="visits", reason="schedule", slot=runs.due_slot("churn", MONDAY + late))
        return platform.database.claim_slot(slot, holder := uuid.uuid4().hex) == holder

    # What each clock shows is the same; when it shows it is not.
    at_two: dict[str, Callable[[], bool]] = {"dagster": dagster, "github": github}
    right = "github" if off == "dagster" else "dagster"
    ticks = [(-wrong, off), (timedelta(0), right), (timedelta(days=2), off)]

    done = [at_two[clock]() for _, clock in sorted(ticks)] + [github(timedelta(days=3))]

    assert sum(done) == 1


def test_the_schedule_asks_for_its_slot_until_somebody_has_it(platform: Platform) -> None:
    asks = weekly(MONDAY)
    workflows.claim_slot(platform, SLOT, "a run of GitHub's")
    waits = weekly(MONDAY)

    assert asks.run_key == SLOT.slot
    assert {asks.tags[REASON_TAG], asks.tags[SLOT_TAG]} == {"schedule", SLOT.slot}
    assert waits.skip_message == "Run a run of GitHub's has the slot 2026-11-23T02:00Z."
    assert not isinstance(weekly(MONDAY + timedelta(weeks=1)), dg.SkipReason)


def test_every_model_has_such_a_schedule() -> None:
    assert defs().get_repository_def().get_schedule_def("churn_weekly").cron_schedule == "0 2 * * 1"


# The run


def test_a_run_whose_slot_another_has_trains_nothing(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    ingest(platform, instance)
    tags = {SLOT_TAG: SLOT.slot, REASON_TAG: SLOT.reason}

    first, second = run("visits_retrain", instance, tags=tags), run("visits_retrain", instance, tags=tags)

    assert first.success, why(first)
    assert not second.success
    assert f"Run {first.run_id} retrains 'visits' for the slot" in why(second)[0]
    assert platform.database.slot_holder(SLOT) == first.run_id
    assert platform.database.candidates_of("visits", platform.database.newest_publication("visits") or 0) == 1


def test_a_run_that_is_run_again_has_its_slot_already(platform: Platform) -> None:
    """Dagster repeats a run under a new number, and says of which one it is the repetition."""

    def claims(run_id: str, root: str | None) -> None:
        tags = {SLOT_TAG: SLOT.slot, REASON_TAG: SLOT.reason}
        repeated = dg.DagsterRun("x", run_id=run_id, tags=tags, root_run_id=root, parent_run_id=root)
        pipeline._claim_slot(SimpleNamespace(run=repeated), platform, "visits")  # type: ignore[arg-type]

    claims("first", None)
    claims("second", "first")

    assert platform.database.slot_holder(SLOT) == "first"
    with pytest.raises(ConflictError):
        claims("third", None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The commands know the model visits, and keep their runs in a folder."""
    monkeypatch.setattr(runs, "_repository", lambda: repository(fakes.visits_spec()))
    monkeypatch.setattr(shared, "declared_models", lambda: ["visits"])
    shutil.copy(ROOT / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("small")
def test_the_command_retrains_once_a_slot(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    ingest(platform, instance)
    command = ("retrain", "visits", "--reason", "schedule", "--slot", "due")

    status, _ = call(*command)
    again, said = call(*command)

    assert (status, again) == (0, 0)
    assert "nothing is done: Run " in said
    [entry] = json.loads(call("history", "visits", "--json")[1])
    assert entry["reason"] == "schedule"


@pytest.mark.usefixtures("small")
def test_a_slot_whose_run_broke_is_free_again(platform: Platform) -> None:
    """Nothing is published: the run breaks before anything is trained."""
    asked = Slot(model="visits", reason="schedule", slot="x")

    with pytest.raises(RunFailedError):
        runs.retrain_once(platform, asked, "test")

    assert platform.database.slot_holder(asked) is None


@pytest.mark.usefixtures("small")
def test_a_slot_whose_run_was_interrupted_is_free_again(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """As GitHub does when somebody stops the job: the step's process is interrupted."""
    asked = Slot(model="visits", reason="schedule", slot="x")
    held = list[str | None]()

    def interrupt(*_: object) -> None:
        held.append(platform.database.slot_holder(asked))
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("ml_platform.workflows.pin_dataset", interrupt)
    with pytest.raises((KeyboardInterrupt, RunFailedError)):
        runs.retrain_once(platform, asked, "test")

    assert held != [None]
    assert platform.database.slot_holder(asked) is None


@pytest.mark.usefixtures("small", "platform")
def test_without_a_slot_a_reason_is_always_a_persons(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def note(_: str, reason: str, __: str) -> list[str]:
        asked.append(reason)
        return []

    monkeypatch.setattr(runs, "retrain", note)

    for reason in ("new prices", "schedule", "manual: new prices"):
        assert call("retrain", "visits", "--reason", reason)[0] == 0

    assert asked == ["manual: new prices", "manual: schedule", "manual: new prices"]


def test_a_reason_that_is_not_the_schedules_is_a_persons() -> None:
    asked = github._slot("churn", "new prices", "github-1", MONDAY)

    assert asked == Slot(model="churn", reason="manual: new prices", slot="github-1")


def test_who_comes_second_is_told_what_to_do(platform: Platform) -> None:
    workflows.claim_slot(platform, SLOT, "first")

    with pytest.raises(ConflictError, match=r"Run first retrains 'visits' for the slot .* To train once more"):
        workflows.claim_slot(platform, SLOT, "second")
