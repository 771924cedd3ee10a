"""A retraining is unique by model, reason and slot: two schedulers, even with wrong clocks, start one."""

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

from ml_platform import pipeline
from ml_platform.cli import automation, launch
from ml_platform.cli.launch import RunFailedError
from ml_platform.database import PlatformDatabase
from ml_platform.definitions import defs
from ml_platform.errors import ConfigurationError, ConflictError
from ml_platform.models import discovery
from ml_platform.orchestration.resources import REASON_TAG, SLOT_TAG, PlatformResource
from ml_platform.platform import Platform
from ml_platform.records.retraining import Slot, slot_name
from ml_platform.settings import PROJECT_ROOT
from ml_platform.training.retraining import claim_slot
from ml_platform_tests.support import fakes
from ml_platform_tests.support.command_line import call
from ml_platform_tests.support.dagster_runs import ingest, repository, run, why
from ml_platform_tests.support.postgres_server import Postgres

MONDAY = datetime(2026, 11, 23, 2, tzinfo=UTC)
SLOT = Slot(model="visits", reason="schedule", slot="2026-11-23T02:00Z")


@pytest.fixture
def database(database_url: str) -> Iterator[PlatformDatabase]:
    opened = PlatformDatabase(database_url)
    yield opened
    opened.close()


def test_first_run_claims_and_keeps_slot(database: PlatformDatabase) -> None:
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
def test_other_model_reason_or_time_is_other_slot(database: PlatformDatabase, other: Slot) -> None:
    database.claim_slot(SLOT, "first")

    assert database.claim_slot(other, "second") == "second"


def test_slot_is_released_by_its_holder_only(database: PlatformDatabase) -> None:
    database.claim_slot(SLOT, "first")

    database.release_slot(SLOT, "second")
    assert database.slot_holder(SLOT) == "first"
    database.claim_slot(replace(SLOT, model="churn"), "first")
    database.release_slot(SLOT, "first")
    assert database.claim_slot(SLOT, "second") == "second"
    assert database.slot_holder(replace(SLOT, model="churn")) == "first"


@pytest.mark.fault("V5")
def test_concurrent_claims_have_one_holder(database: PlatformDatabase) -> None:
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
def test_slot_released_during_claim_is_claimed(postgres: Postgres) -> None:
    """The slot is released between the refused insert and the query of its holder, which SQLite's lock excludes."""
    ours, theirs = PlatformDatabase(url := postgres.new_database()), PlatformDatabase(url)
    theirs.claim_slot(SLOT, "first")
    sa.event.listen(ours.engine, "handle_error", lambda _: theirs.release_slot(SLOT, "first"))

    assert ours.claim_slot(SLOT, "second") == "second"
    assert theirs.slot_holder(SLOT) == "second"
    for opened in (ours, theirs):
        opened.close()


@pytest.mark.parametrize("slot", ["", "a b", "x" * 65, "../x", "\n", "-x"])
def test_invalid_slot_name_is_refused(slot: str) -> None:
    with pytest.raises(ConfigurationError, match="--slot must be"):
        Slot(model="visits", reason="schedule", slot=slot)


@pytest.mark.parametrize("more", [(), ("--slot", "x"), ("--dagster-url", "http://127.0.0.1:9")], ids=str)
def test_blank_reason_is_refused(more: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="--reason must say why"):
        call("retrain", "churn", "--reason", " ", *more)


def test_reason_longer_than_key_is_refused() -> None:
    assert len(Slot(model="visits", reason="x" * 255, slot="a").reason) == 255
    with pytest.raises(ConfigurationError, match=r"at most 255 characters\. Got 256"):
        Slot(model="visits", reason="x" * 256, slot="a")


def test_slot_name_is_utc_in_any_zone() -> None:
    berlin = MONDAY.astimezone(ZoneInfo("Europe/Berlin"))
    somewhere = MONDAY.astimezone(timezone(timedelta(hours=-11, minutes=-30)))

    assert slot_name(berlin) == slot_name(somewhere) == slot_name(MONDAY) == "2026-11-23T02:00Z"


# The schedulers


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
def test_daylight_saving_weekend_has_one_slot(sunday: datetime) -> None:
    """Check every hour from Saturday to Wednesday on a machine in a zone whose clocks change that night."""
    monday = sunday + timedelta(days=1, hours=2)
    hours = [sunday + timedelta(hours=hour) for hour in range(-24, 72)]

    slots = [launch.due_slot("churn", hour.astimezone(ZoneInfo("Europe/Berlin"))) for hour in hours]

    assert [slot_name(monday - timedelta(weeks=1))] * 50 + [slot_name(monday)] * 46 == slots


def test_due_slot_is_newest_tick() -> None:
    assert launch.due_slot("churn", MONDAY) == "2026-11-23T02:00Z"
    assert launch.due_slot("churn", MONDAY - timedelta(seconds=1)) == "2026-11-16T02:00Z"
    assert launch.due_slot("churn", MONDAY + timedelta(days=6, hours=23)) == "2026-11-23T02:00Z"


def weekly(at: datetime) -> Any:
    """Return the run request, or the reason to skip, of Dagster's schedule at a tick."""
    schedule = repository(fakes.visits_spec()).get_schedule_def("visits_weekly")
    context = dg.build_schedule_context(scheduled_execution_time=at, resources={"platform": PlatformResource()})
    return schedule(context)


@pytest.mark.slow
@pytest.mark.fault("V5")
@pytest.mark.parametrize("wrong", [timedelta(days=-1), timedelta(), timedelta(days=1)], ids=str)
@pytest.mark.parametrize("off", ["dagster", "github"])
def test_two_schedulers_with_wrong_clock_retrain_once(platform: Platform, wrong: timedelta, off: str) -> None:
    """Both request a run when their own clock shows Monday 02:00, the wrong clock again after it is corrected.

    GitHub starts late, too, and a user starts its job again three days later.
    """

    def dagster() -> bool:
        request = weekly(MONDAY)
        if isinstance(request, dg.SkipReason):
            return False
        slot = Slot(model="visits", reason=request.tags[REASON_TAG], slot=request.tags[SLOT_TAG])
        return platform.database.claim_slot(slot, holder := uuid.uuid4().hex) == holder

    def github(late: timedelta = timedelta(minutes=20)) -> bool:
        slot = Slot(model="visits", reason="schedule", slot=launch.due_slot("churn", MONDAY + late))
        return platform.database.claim_slot(slot, holder := uuid.uuid4().hex) == holder

    # Both clocks show the same time, but not at the same moment.
    at_two: dict[str, Callable[[], bool]] = {"dagster": dagster, "github": github}
    right = "github" if off == "dagster" else "dagster"
    ticks = [(-wrong, off), (timedelta(0), right), (timedelta(days=2), off)]

    started = [at_two[clock]() for _, clock in sorted(ticks)] + [github(timedelta(days=3))]

    assert sum(started) == 1


def test_schedule_requests_slot_until_it_is_claimed(platform: Platform) -> None:
    request = weekly(MONDAY)
    claim_slot(platform, SLOT, "a run of GitHub's")
    skipped = weekly(MONDAY)

    assert request.run_key == SLOT.slot
    assert {request.tags[REASON_TAG], request.tags[SLOT_TAG]} == {"schedule", SLOT.slot}
    assert skipped.skip_message == "Run a run of GitHub's has the slot 2026-11-23T02:00Z."
    assert not isinstance(weekly(MONDAY + timedelta(weeks=1)), dg.SkipReason)


def test_every_model_has_weekly_schedule() -> None:
    assert defs().get_repository_def().get_schedule_def("churn_weekly").cron_schedule == "0 2 * * 1"


# The run


@pytest.mark.slow
def test_run_without_its_slot_trains_nothing(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    ingest(platform, instance)
    tags = {SLOT_TAG: SLOT.slot, REASON_TAG: SLOT.reason}

    first, second = run("visits_retrain", instance, tags=tags), run("visits_retrain", instance, tags=tags)

    assert first.success, why(first)
    assert not second.success
    assert f"Run {first.run_id} already retrains 'visits' for the slot" in why(second)[0]
    assert platform.database.slot_holder(SLOT) == first.run_id
    assert platform.database.count_candidates("visits", platform.database.newest_publication("visits") or 0) == 1


def test_retried_run_keeps_its_slot(platform: Platform) -> None:
    """Dagster retries a run under a new id, and records the id of the first run."""

    def claims(run_id: str, root: str | None) -> None:
        tags = {SLOT_TAG: SLOT.slot, REASON_TAG: SLOT.reason}
        retried = dg.DagsterRun("x", run_id=run_id, tags=tags, root_run_id=root, parent_run_id=root)
        pipeline._claim_slot(SimpleNamespace(run=retried), platform, "visits")  # type: ignore[arg-type]

    claims("first", None)
    claims("second", "first")

    assert platform.database.slot_holder(SLOT) == "first"
    with pytest.raises(ConflictError):
        claims("third", None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder in which the commands know the model visits and store their runs."""
    monkeypatch.setattr(discovery, "names", lambda: ["visits"])
    monkeypatch.setattr(discovery, "load", lambda _: fakes.visits_spec())
    shutil.copy(PROJECT_ROOT / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_command_retrains_once_per_slot(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    ingest(platform, instance)
    command = ("retrain", "visits", "--reason", "schedule", "--slot", "due")

    status, _ = call(*command)
    again, output = call(*command)

    assert (status, again) == (0, 0)
    assert "nothing to do: Run " in output
    [entry] = json.loads(call("history", "visits", "--json")[1])
    assert entry["reason"] == "schedule"


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_failed_run_releases_its_slot(platform: Platform) -> None:
    """Nothing is published, so that the run fails before it trains."""
    slot = Slot(model="visits", reason="schedule", slot="x")

    with pytest.raises(RunFailedError):
        launch.retrain_once(platform, slot, "test")

    assert platform.database.slot_holder(slot) is None


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_interrupted_run_releases_its_slot(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's process is interrupted, as when a user cancels GitHub's job."""
    slot = Slot(model="visits", reason="schedule", slot="x")
    holders = list[str | None]()

    def interrupt(*_: object) -> None:
        holders.append(platform.database.slot_holder(slot))
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("ml_platform.pipeline.pin_dataset", interrupt)
    with pytest.raises((KeyboardInterrupt, RunFailedError)):
        launch.retrain_once(platform, slot, "test")

    assert holders != [None]
    assert platform.database.slot_holder(slot) is None


@pytest.mark.usefixtures("small", "platform")
def test_retrain_without_slot_has_manual_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = list[str]()

    def note(_: str, reason: str, __: str) -> list[str]:
        reasons.append(reason)
        return []

    monkeypatch.setattr(launch, "retrain", note)

    for reason in ("new prices", "schedule", "manual: new prices"):
        assert call("retrain", "visits", "--reason", reason)[0] == 0

    assert reasons == ["manual: new prices", "manual: schedule", "manual: new prices"]


def test_slot_with_other_reason_is_manual() -> None:
    slot = automation._slot("churn", "new prices", "github-1", MONDAY)

    assert slot == Slot(model="churn", reason="manual: new prices", slot="github-1")


def test_second_claim_error_says_how_to_retrain(platform: Platform) -> None:
    claim_slot(platform, SLOT, "first")

    with pytest.raises(ConflictError, match=r"Run first already retrains 'visits' for the slot .* To train once more"):
        claim_slot(platform, SLOT, "second")
