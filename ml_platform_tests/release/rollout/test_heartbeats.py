"""Tests of who counts as a live server, by heartbeats and clocks that are set."""

from datetime import timedelta

import pytest

from ml_platform.database import PlatformDatabase
from ml_platform.database import traffic as traffic_records
from ml_platform.database.tables import servers
from ml_platform.platform import Platform
from ml_platform.records.canonical import now
from ml_platform.records.traffic import ServerHeartbeat
from ml_platform.release.rollout.heartbeats import ALIVE, HeartbeatWatch
from ml_platform.release.rollout.traffic import list_live_servers
from ml_platform_tests.support.postgres_server import Postgres

DAY = timedelta(days=1)


@pytest.fixture
def database(database_url: str) -> PlatformDatabase:
    return PlatformDatabase(database_url)


def heartbeat(number: int | None, *, age: float | None = None, server: str = "a") -> ServerHeartbeat:
    address = "http://127.0.0.1:9"
    return ServerHeartbeat(model="visits", server=server, admin_address=address, says={}, number=number, age=age)


class Reader:
    """A process that reads heartbeats at times that a test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.watch = HeartbeatWatch(lambda: self.seconds)

    def sees(self, at: float, *beats: ServerHeartbeat) -> list[str]:
        self.seconds = at
        return [beat.server for beat in self.watch.find_live(beats)]


@pytest.mark.fault("R18")
@pytest.mark.parametrize("age", [0.0, 86_400.0, -86_400.0])
def test_changed_number_is_life_at_any_age(age: float) -> None:
    reader = Reader()
    reader.sees(0, heartbeat(1, age=age))
    assert reader.sees(5, heartbeat(2, age=age)) == ["a"]


@pytest.mark.fault("R18")
@pytest.mark.parametrize("age", [0.0, 86_400.0, -86_400.0])
def test_unchanged_number_is_death_at_any_age(age: float) -> None:
    reader = Reader()
    reader.sees(0, heartbeat(1, age=0.0))
    assert reader.sees(30, heartbeat(1, age=age)) == ["a"]
    assert reader.sees(ALIVE, heartbeat(1, age=age)) == []


@pytest.mark.fault("R18")
@pytest.mark.parametrize(
    ("age", "live"), [(0.0, True), (59.0, True), (60.0, False), (86_400.0, False), (-86_400.0, False)]
)
@pytest.mark.parametrize("number", [1, None])
def test_first_reading_takes_the_age(number: int | None, age: float, live: bool) -> None:
    assert Reader().sees(1_000, heartbeat(number, age=age)) == (["a"] if live else [])


@pytest.mark.fault("R18")
def test_change_during_long_pause_proves_nothing() -> None:
    """The server may have ended just after the heartbeat that the reader missed."""
    reader = Reader()
    reader.sees(0, heartbeat(1, age=0.0))
    assert reader.sees(200, heartbeat(2, age=150.0)) == []
    assert reader.sees(205, heartbeat(3, age=4.0)) == ["a"]


def test_servers_are_told_apart() -> None:
    reader = Reader()
    reader.sees(0, heartbeat(1, age=0.0), heartbeat(1, age=0.0, server="b"))
    reader.sees(20, heartbeat(1, age=20.0), heartbeat(9, age=0.0, server="b"))
    assert reader.sees(61, heartbeat(1, age=61.0), heartbeat(10, age=0.0, server="b")) == ["b"]


@pytest.mark.fault("R18")
@pytest.mark.parametrize("step", [DAY, -DAY])
def test_clock_set_by_a_day_changes_no_life(
    database: PlatformDatabase, monkeypatch: pytest.MonkeyPatch, step: timedelta
) -> None:
    reader = Reader()

    def beats_and_reads(at: float, number: int) -> list[str]:
        database.beat(heartbeat(number, server="living"))
        return reader.sees(at, *database.servers("visits"))

    database.beat(heartbeat(1, server="ended"))
    assert beats_and_reads(0, 1) == ["ended", "living"]
    monkeypatch.setattr(traffic_records, "now", lambda: now() + step)
    assert beats_and_reads(5, 2) == ["ended", "living"]
    assert beats_and_reads(50, 3) == ["ended", "living"]
    assert beats_and_reads(61, 4) == ["living"]


@pytest.mark.fault("R18")
@pytest.mark.slow
@pytest.mark.parametrize("step", [DAY, -DAY])
def test_clock_of_server_has_no_effect_with_postgresql(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, step: timedelta
) -> None:
    database = PlatformDatabase(postgres.new_database())
    with monkeypatch.context() as patch:
        patch.setattr(traffic_records, "now", lambda: now() + step)
        database.beat(heartbeat(1))
    (beat,) = database.servers("visits")
    assert beat.age is not None
    assert abs(beat.age) < 30
    assert Reader().sees(0, beat) == ["a"]


@pytest.mark.fault("R18")
def test_process_keeps_watching_when_platform_is_opened_again(platform: Platform) -> None:
    platform.database.beat(heartbeat(1))
    assert list_live_servers(Platform(platform.settings), "visits")
    with platform.database.engine.begin() as connection:
        connection.execute(servers.update().values(document='{"beat":2}', seen_at=now() - DAY))
    assert list_live_servers(Platform(platform.settings), "visits")
    assert list_live_servers(Platform(platform.settings), "churn") == []


def test_start_deletes_rows_of_long_ended_servers(database: PlatformDatabase) -> None:
    database.beat(heartbeat(1, server="old"))
    database.beat(heartbeat(1, server="recent"))
    with database.engine.begin() as connection:
        before = now() - traffic_records.FORGOTTEN_AFTER - timedelta(seconds=1)
        old = servers.c.name == "old"
        connection.execute(servers.update().where(old).values(seen_at=before))
    database.beat(heartbeat(2, server="recent"))
    assert [beat.server for beat in database.servers("visits")] == ["old", "recent"]
    database.beat(heartbeat(1, server="started"))
    assert [beat.server for beat in database.servers("visits")] == ["recent", "started"]
