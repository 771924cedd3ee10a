"""Real daemons on a small code location: one is killed within a tick, one finds another, a run takes all memory."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ml_platform.data.ingest import publish_batches, store_raw_batches
from ml_platform.data.landing import land_files, waiting_arrivals
from ml_platform.errors import SecondDaemonError
from ml_platform.orchestration.daemon_lock import LEFT, LOCK, require_no_daemon
from ml_platform.orchestration.run_monitoring import exit_reason
from ml_platform.orchestration.trigger_record import was_triggered
from ml_platform.platform import Platform
from ml_platform.settings import PROJECT_ROOT, Settings
from ml_platform_tests.support import fakes
from ml_platform_tests.support.daemon_location import SPECS, TRIGGERS
from ml_platform_tests.support.dev_servers import parquet, wait_for

FAILURE = dg.DagsterRunStatus.FAILURE
# A daemon's calls in a tick that publishes files, in this order. One test kills it at one of them, a longer one at all:
# after the first, the files have partitions and no run; before the second, they have a run that is not queued.
ADD, SUBMIT = (f"dagster:DagsterInstance.{call}" for call in ("add_dynamic_partitions", "submit_run"))
IN_A_TICK = [(ADD, "before"), (ADD, "after"), (SUBMIT, "before"), (SUBMIT, "after")]

pytestmark = pytest.mark.e2e


class Stack:
    """A deployment in a folder: its code server, daemons started on it, and their state as seen from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml").read_text())
        self.instance = dg.DagsterInstance.from_config(str(folder))
        socket = folder / "code.sock"
        server = f"{{socket: {socket}, location_name: small}}"
        (folder / "workspace.yaml").write_text(f"load_from:\n  - grpc_server: {server}\n")
        self.platform = Platform(Settings(home=folder / "var"))
        for model in SPECS:
            self.platform.zone.prepare(model)
        location = ["--module-name", "ml_platform_tests.support.daemon_location", "--location-name", "small"]
        self.log, self.processes = folder / "log", list[subprocess.Popen[bytes]]()
        self.server = self.start("dagster", "api", "grpc", *location, "--socket", socket)
        wait_for("the code server", socket.exists)

    def start(self, *command: Any, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        home = {"DAGSTER_HOME": self.folder, "ML_PLATFORM_HOME": self.folder / "var"}
        more = {"ML_PLATFORM_TRAINING_MEMORY_BYTES": str(2**30)}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", *map(str, command)],
                cwd=self.folder,
                env={**os.environ, **more, **{name: str(path) for name, path in home.items()}},
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
            )
        self.processes.append(process)
        return process

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.instance.dispose()
        self.platform.database.close()

    @contextmanager
    def daemon(self) -> Iterator[subprocess.Popen[bytes]]:
        process = self.start("dagster._daemon", "run", "--workspace", "workspace.yaml")
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def drop(self, name: str, first: int, model: str = "visits") -> None:
        """Drop a file with its manifest."""
        land_files(self.platform, model, {name: parquet(fakes.visits(100, first=first))})

    def publish(self, model: str) -> None:
        """Publish rows for a model."""
        self.drop("a.parquet", 1, model)
        keys = [arrival.key for arrival in waiting_arrivals(self.platform, model)]
        store_raw_batches(self.platform, model, keys)
        publish_batches(self.platform, SPECS[model], keys)

    def outcomes(self) -> dict[str, str]:
        return {row["name"]: row["outcome"] for row in self.platform.database.arrival_outcomes("visits")}

    def has_ticked_since(self, moment: float) -> bool:
        """Return True if the arrival sensor has finished a tick since."""
        (state,) = [s for s in self.instance.all_instigator_state() if s.name == TRIGGERS["visits"]]
        ticks = self.instance.get_ticks(state.instigator_origin_id, state.selector_id, after=moment)
        return any(tick.end_timestamp for tick in ticks)

    def runs(self, job: str) -> list[dg.DagsterRun]:
        """Return the runs of a job, oldest first."""
        return list(reversed(self.instance.get_runs(dg.RunsFilter(job_name=job))))

    def failed(self, model: str) -> dg.DagsterRun | None:
        runs = self.runs(f"{model}_retrain")
        return runs[0] if runs and runs[0].status is FAILURE else None


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("daemon")
    with chdir(folder):  # dagster.yaml names its folder relative to where its commands start
        started = Stack(folder)
        try:
            yield started
        finally:
            started.stop()


def kill_within_ticks(stack: Stack, ticks: list[tuple[str, str]]) -> set[str]:
    """Drop a file and kill a daemon in a tick, one after the other; return the names of all files."""
    dropped = set()
    for number, (where, when) in enumerate(ticks):
        name = f"{len(ticks)}-{number}.parquet"
        stack.drop(name, first=10_000 * len(ticks) + 1_000 * number)
        dropped.add(name)
        daemon = stack.start("ml_platform_tests.support.killed_daemon", where, when, "workspace.yaml")
        assert daemon.wait(60) == -signal.SIGKILL, stack.log.read_text()[-3_000:]
    return dropped


@pytest.mark.fault("P5")
@pytest.mark.parametrize(
    "ticks", [IN_A_TICK[2:3], pytest.param(IN_A_TICK, marks=pytest.mark.soak)], ids=["one call", "every call"]
)
def test_killed_daemon_publishes_each_file_once(stack: Stack, ticks: list[tuple[str, str]]) -> None:
    dropped = kill_within_ticks(stack, ticks)

    with stack.daemon():
        wait_for("every outcome", lambda: dropped <= set(stack.outcomes()))
        wait_for("one more tick", partial(stack.has_ticked_since, time.time()))

    # Each was published by one run.
    rows = [row for row in stack.platform.database.arrival_outcomes("visits") if row["name"] in dropped]
    assert sorted(row["name"] for row in rows) == sorted(dropped)
    assert {row["outcome"] for row in rows} == {"published"}
    ranges = [run.tags["dagster/asset_partition_range_start"] for run in stack.runs("visits_ingest")]
    assert len(set(ranges)) == len(ranges)


@pytest.mark.fault("P6")
def test_second_daemon_exits_with_a_message(stack: Stack) -> None:
    before, (reads, writes) = stack.instance.get_daemon_heartbeats(), os.pipe()
    with stack.platform.database.locked(LOCK) as held:
        assert held

        # As `dagster dev` starts its daemon.
        command = ("dagster._daemon", "run", "--shutdown-pipe", reads, "--workspace", "workspace.yaml")
        second = stack.start(*command, pass_fds=(reads,))
        assert second.wait(60) == LEFT

    os.close(reads)
    os.close(writes)
    assert "error: A daemon runs for this deployment already" in stack.log.read_text()
    assert stack.instance.get_daemon_heartbeats() == before


@pytest.mark.fault("P4", "P6")
def test_run_out_of_memory_fails_alone(stack: Stack) -> None:
    stack.publish("doomed")
    stack.drop("neighbour.parquet", first=1)

    with stack.daemon() as daemon:
        failed = wait_for("the failed run", partial(stack.failed, "doomed"))
        wait_for("the neighbour's outcome", lambda: "neighbour.parquet" in stack.outcomes())
        with pytest.raises(SecondDaemonError):
            require_no_daemon(stack.platform)
        assert (daemon.poll(), stack.server.poll()) == (None, None)

    reason = exit_reason(stack.instance, failed.run_id)
    assert "was terminated by signal 9 (SIGKILL)" in reason
    assert "running out of memory" in reason
    assert stack.outcomes()["neighbour.parquet"] == "published"
    assert stack.platform.database.newest_candidate("doomed") is None
    assert stack.platform.database.ledger("doomed") == []
    assert not (stack.platform.settings.model_home("doomed") / "candidates").exists()
    assert was_triggered(stack.instance, failed, "doomed")
