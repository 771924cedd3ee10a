"""`make soak`: the stack is killed at random moments; no file is lost and none is published twice."""

import os
import random
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from ml_platform.data import datasets
from ml_platform.devtools import demo_data
from ml_platform.models.churn import churn
from ml_platform.storage.mlflow_registry import Registry
from ml_platform_tests.support import dev_servers as files
from ml_platform_tests.support.dev_servers import Bad, Bucket, DropZone, Folder, Servers, wait_for

KILLS = int(os.environ.get("KILLS", "20"))
SEED = int(os.environ.get("SEED", "0"))
ZONE = os.environ.get("ZONE", "folder")
CUSTOMERS = 5_000
# Enough rows after each kill for one more retraining; enough before the first kill for candidates that pass.
ROWS, EXPORTS_A_KILL = 35, 3
BAD = (files.without_a_column, files.out_of_range, files.truncated)
# Most kills wait for one of these steps, and then for a part of these seconds.
AIMS = {
    "": 25.0,
    "churn_ingest: churn__raw_batches": 1.0,
    "churn_ingest: churn__validated_batches": 3.0,
    "churn_retrain: churn__trained_model": 10.0,
    "churn_retrain: churn__registered_version": 1.0,
    "churn_retrain: churn__staging_version": 3.0,
    "churn_retrain: churn__champion_version": 0.3,
}
ODDS = (4, 1, 5, 4, 2, 2, 2)
LONGEST_AIM = 180

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(7_200)]


def descendants(pid: int) -> list[int]:
    """Return a process and all its descendants, as listed in /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    tree = [pid]
    for parent in tree:
        tree += children.get(parent, [])
    return tree


def send(number: signal.Signals, processes: list[int]) -> None:
    for pid in processes:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it ended by itself


def kill_the_stack(servers: Servers) -> None:
    """Stop the whole tree before killing any of it: processes started meanwhile would survive."""
    stopped: list[int] = []
    while (tree := descendants(servers.process.pid)) != stopped:
        send(signal.SIGSTOP, tree)
        stopped = tree
    send(signal.SIGKILL, stopped)
    servers.process.wait(30)


class Stack:
    """A deployment that is started, killed and restarted, and its runs as seen from outside."""

    def __init__(self, folder: Path, zone: DropZone) -> None:
        self.folder, self.zone = folder, zone
        self.servers = Servers(folder, zone)
        self.instance = dg.DagsterInstance.from_config(str(folder))
        self.killed = set[str]()

    def live(self, *statuses: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
        """Return the runs in these states, without those that were killed with an earlier stack."""
        runs = self.instance.get_runs(dg.RunsFilter(statuses=list(statuses)))
        return [run for run in runs if run.run_id not in self.killed]

    def require_running(self) -> None:
        ended = self.servers.process.poll()
        assert ended is None, f"the stack ended with status {ended}: {self.servers.log.read_text()[-2_000:]}"

    def is_under_way(self, step: str) -> bool:
        self.require_running()
        return any(self.step_of(run) == step for run in self.live(dg.DagsterRunStatus.STARTED))

    def unfinished(self) -> list[dg.DagsterRun]:
        return [run for run in self.instance.get_runs() if not run.is_finished]

    def step_of(self, run: dg.DagsterRun) -> str:
        """Return the job and the current step of a run, or its state before or between its steps."""
        step = ""
        for record in self.instance.all_logs(run.run_id):
            if record.dagster_event and record.dagster_event.is_step_start:
                step = record.step_key or ""
            elif record.dagster_event and (
                record.dagster_event.is_step_success or record.dagster_event.is_step_failure
            ):
                step = ""
        return f"{run.job_name}: {step or run.status.value}"

    def wait_for_the_moment(self, moments: random.Random) -> None:
        aim = moments.choices(list(AIMS), weights=ODDS)[0]
        # A step may never start, for example after a failed gate; the kill does not wait longer.
        deadline = time.monotonic() + LONGEST_AIM
        while aim and time.monotonic() < deadline and not self.is_under_way(aim):
            time.sleep(0.2)
        time.sleep(moments.uniform(0, AIMS[aim]))

    def kill(self) -> list[str]:
        """Kill everything; return the steps that were in progress."""
        kill_the_stack(self.servers)
        live = self.live(dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED)
        self.killed |= {run.run_id for run in live}
        return [self.step_of(run) for run in live]

    def start_again(self) -> None:
        self.servers = Servers(self.folder, self.zone)

    def is_at_rest(self, arrivals: int) -> bool:
        """Return True if every file has an outcome, there is a champion, and no run is left or due."""
        self.require_running()
        done = len(self.servers.outcomes()) >= arrivals and self.servers.champion() is not None
        return done and not self.unfinished() and not self.is_retraining_due()

    def is_retraining_due(self) -> bool:
        newest = self.servers.database.newest_candidate("churn")
        version = newest.lineage.dataset_version if newest else None
        return self.servers.database.rows_published_after("churn", version) >= churn.retraining.min_new_rows


def customers(first: int, number: int) -> pd.DataFrame:
    """Return `number` customers from `first` on, counted from 0; no other file has them."""
    rows = pd.read_parquet(demo_data.DATA).iloc[first : first + number]
    times = pd.date_range(demo_data.START, periods=len(rows), freq="min", unit="us")
    return rows.assign(customer=range(first + 1, first + number + 1), observed_at=times)


def first_file() -> bytes:
    return files.parquet(customers(0, CUSTOMERS - KILLS * EXPORTS_A_KILL * ROWS))


def good_files(kill: int) -> dict[str, bytes]:
    """Return the files dropped before a kill; each remaining customer is in one of all these files."""
    numbers = range(kill * EXPORTS_A_KILL, (kill + 1) * EXPORTS_A_KILL)
    start = CUSTOMERS - KILLS * EXPORTS_A_KILL * ROWS
    return {f"export-{n:03}.parquet": files.parquet(customers(start + n * ROWS, ROWS)) for n in numbers}


def bad_file(kill: int) -> dict[str, Bad]:
    rows = customers(kill * ROWS, ROWS)
    rows = rows.assign(customer=rows["customer"] + 100_000)
    return {f"bad-{kill:03}.parquet": BAD[kill % len(BAD)](rows)}


@pytest.fixture
def stack(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    # dagster.yaml names its folder relative to where its commands start.
    monkeypatch.chdir(tmp_path)
    zone: DropZone = Folder(tmp_path / "var" / "landing")
    if ZONE == "s3":
        zone = Bucket(request.getfixturevalue("seaweedfs"), uuid.uuid4().hex)
    started = Stack(tmp_path, zone)
    try:
        yield started
    finally:
        if started.servers.process.poll() is None:
            kill_the_stack(started.servers)
        started.instance.dispose()


@pytest.mark.fault("P3", "P5")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="without /proc the stack's processes are not found")
def test_killed_stack_publishes_each_file_once(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    moments = random.Random(SEED)  # noqa: S311 - moments, not secrets
    good, bad, hit = {"first.parquet"}, dict[str, Bad](), list[str]()
    stack.zone.drop("first.parquet", first_file())
    for kill in range(KILLS):
        dropped, rejected = good_files(kill), bad_file(kill)
        for name, data in {**dropped, **{name: file.data for name, file in rejected.items()}}.items():
            stack.zone.drop(name, data)
        good, bad = good | set(dropped), bad | rejected
        stack.wait_for_the_moment(moments)
        now = stack.kill()
        hit += now
        with capsys.disabled():
            sys.stdout.write(f"\nkill {kill + 1} of {KILLS} hit {', '.join(now) or 'no run'}")
            sys.stdout.flush()
        stack.start_again()

    began = time.monotonic()
    wait_for("the end of all runs", partial(stack.is_at_rest, len(good) + len(bad)), seconds=900)
    with capsys.disabled():
        sys.stdout.write(f"\nat rest {time.monotonic() - began:.0f} s after the last start; {len(hit)} runs were hit")
        sys.stdout.write("".join(f"\n{number:4} {step}" for step, number in Counter(hit).most_common()) + "\n")

    assert stack.servers.stop() == 0
    require_each_file_once(stack, good, bad)
    require_one_champion(stack)


def require_each_file_once(stack: Stack, good: set[str], bad: dict[str, Bad]) -> None:
    outcomes = stack.servers.outcomes()
    found = {row["name"]: row for row in outcomes}
    assert sorted(row["name"] for row in outcomes) == sorted([*good, *bad])
    assert {name for name, row in found.items() if row["outcome"] == "published"} == good
    assert {name for name, row in found.items() if row["outcome"] == "quarantined"} == set(bad)
    assert [name for name, file in bad.items() if not found[name]["reason"].startswith(file.reason)] == []
    assert sorted(stack.servers.rows("rows")["customer"]) == list(range(1, CUSTOMERS + 1))
    assert datasets.pin(stack.folder / "var" / "models" / "churn" / "rows", churn)[0].rows == CUSTOMERS
    named = Counter(stack.servers.rows("quarantine")["_arrival"])
    assert named == {found[name]["key"]: file.named for name, file in bad.items()}


def require_one_champion(stack: Stack) -> None:
    """Check the ledger: no candidate was promoted twice, and the registry's alias is its last entry."""
    history = stack.servers.database.history("churn")
    verdicts = [entry.verdict_digest for entry in history]
    assert len(set(verdicts)) == len(verdicts)
    registry = Registry(f"sqlite:///{stack.folder}/var/mlflow.db", stack.folder / "var" / "mlartifacts")
    assert registry.alias("churn", "champion") == stack.servers.champion()
