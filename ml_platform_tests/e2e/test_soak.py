"""`make soak`: what takes longer than a test may. The stack is killed at random moments; nothing is lost or doubled."""

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from ml_platform import demo
from ml_platform.defs.models.churn import churn
from ml_platform.records import Outcome
from ml_platform.stages import datasets
from ml_platform_tests.e2e.test_dev import Servers, wait_for

KILLS = int(os.environ.get("KILLS", "20"))
EXPORTS = KILLS * 3
ROWS = 5_000 // EXPORTS
SEED = int(os.environ.get("SEED", "0"))

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(3_600)]


def descendants(pid: int) -> list[int]:
    """Return a process and all that it started, directly or not, as /proc shows them."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def kill_the_stack(servers: Servers) -> None:
    for pid in descendants(servers.process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it ended by itself
    servers.process.wait(30)


def is_past(moment: float) -> bool:
    return time.monotonic() > moment


def export(number: int) -> pd.DataFrame:
    """Return customers whom no other export has."""
    rows = pd.read_parquet(demo.DATA).iloc[number * ROWS : (number + 1) * ROWS]
    times = pd.date_range(demo.START, periods=len(rows), freq="min", unit="us")
    first = number * ROWS + 1
    return rows.assign(customer=range(first, first + len(rows)), observed_at=times)


@pytest.mark.fault("P3", "P5")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="without /proc the stack's processes are not found")
def test_killing_the_stack_at_random_moments_loses_and_doubles_nothing(tmp_path: Path) -> None:
    moments = random.Random(SEED)  # noqa: S311 - moments, not secrets
    for kill in range(KILLS):
        servers = Servers(tmp_path)
        deadline = time.monotonic() + moments.uniform(5, 30)
        for number in range(kill * 3, kill * 3 + 3):
            hidden = servers.landing / f".{number:03}"
            export(number).to_parquet(hidden, index=False)
            hidden.rename(servers.landing / f"export-{number:03}.parquet")
        wait_for("the moment of the kill", partial(is_past, deadline))
        kill_the_stack(servers)

    servers = Servers(tmp_path)
    try:
        wait_for("every outcome", lambda: len(servers.database.arrival_outcomes("churn")) == EXPORTS, seconds=600)
        wait_for("a champion", servers.champion, seconds=600)
    finally:
        servers.stop()

    outcomes = servers.database.arrival_outcomes("churn")
    assert {row["outcome"] for row in outcomes} == {Outcome.PUBLISHED}
    table = datasets._open(tmp_path / "var" / "models" / "churn" / "rows").to_pyarrow_table().to_pandas()
    assert sorted(table["customer"]) == list(range(1, EXPORTS * ROWS + 1))
    assert datasets.pin(tmp_path / "var" / "models" / "churn" / "rows", churn)[0].rows == EXPORTS * ROWS
