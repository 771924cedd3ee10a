"""A training that asks for too much memory is red by itself, and the kernel leaves its neighbours alone."""

import contextlib
import resource
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ml_platform import memory, workflows
from ml_platform.errors import OutOfMemoryError
from ml_platform.settings import Settings
from ml_platform.workflows import Platform
from ml_platform_tests import fakes
from ml_platform_tests.small_location import SPECS, TOO_MUCH

MB = 2**20
# A process that takes so many megabytes in a group of processes, says so, and stays until it is told to end.
TAKES = """
import sys
from pathlib import Path
from ml_platform import memory
group, megabytes, gives_way = sys.argv[1:]
Path(group, "cgroup.procs").write_text("0")
# What started it may have run a training itself, and processes inherit whether they go first.
memory.SCORE.write_text("0")
if gives_way == "yes":
    memory.die_first()
taken = b"x" * (int(megabytes) * 2**20)
sys.stdout.write("taken")
sys.stdout.flush()
sys.stdin.read()
"""
on_linux = pytest.mark.skipif(not memory.STATUS.exists(), reason="without /proc nobody tells what a process may write")


@on_linux
@pytest.mark.fault("P4")
def test_who_asks_for_more_than_the_limit_gets_an_error_and_others_do_afterwards() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)

    with memory.limited(100 * MB):
        np.empty(50 * MB, dtype="int8")
        with pytest.raises(MemoryError):
            np.empty(200 * MB, dtype="int8")

    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    np.empty(200 * MB, dtype="int8")


def test_nobody_has_a_limit_who_asks_for_none() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)

    with memory.limited(None):
        assert resource.getrlimit(resource.RLIMIT_DATA) == before


@on_linux
def test_the_limit_of_whoever_started_the_process_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[int, int]]()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10 * MB, 20 * MB))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))

    with memory.limited(2**40):
        assert asked == [(10 * MB, 20 * MB)]


@on_linux
@pytest.mark.fault("P4")
def test_a_training_that_asks_for_too_much_says_so_and_stores_nothing(tmp_path: Path) -> None:
    small = Platform(fakes.platform_in(tmp_path / "home").settings.model_copy(update={"training_memory": 2**30}))
    for model in ("greedy", "visits"):
        publish(small, model)
        workflows.pin_dataset(small, SPECS[model])

    with pytest.raises(OutOfMemoryError) as said:
        workflows.train_candidate(small, SPECS["greedy"], reason="arrival")

    assert "the model 'greedy' on" in str(said.value)
    assert f"Unable to allocate {TOO_MUCH / 2**30:.1f} GiB" in str(said.value)
    assert "ML_PLATFORM_TRAINING_MEMORY" in str(said.value)
    assert small.database.newest_candidate("greedy") is None
    assert not (small.settings.model_home("greedy") / "candidates").exists()
    assert workflows.train_candidate(small, SPECS["visits"], reason="arrival").model == "visits"
    small.database.close()


def publish(platform: Platform, model: str) -> None:
    platform.zone.prepare(model)
    fakes.drop(platform, "a.parquet", fakes.visits(100), model)
    keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, model)]
    workflows.keep_raw_batches(platform, model, keys)
    workflows.publish_batches(platform, SPECS[model], keys)


def test_a_limit_that_can_only_be_a_mistake_in_its_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1048576"):
        Settings(training_memory=4096)


@contextlib.contextmanager
def group(most_bytes: int) -> Iterator[Path]:
    """Make a group of processes that have so much memory together, swap included; skip where that is not permitted."""
    first, limits = Path("/sys/fs/cgroup/memory"), ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    if not first.is_dir():
        first, limits = Path("/sys/fs/cgroup"), ["memory.max", "memory.swap.max"]
    made = first / f"ml-platform-{uuid.uuid4().hex}"
    try:
        made.mkdir()
        (made / limits[0]).write_text(str(most_bytes))
    except OSError as error:
        with contextlib.suppress(OSError):
            made.rmdir()
        pytest.skip(f"the memory of processes cannot be limited here: {error}")
    with contextlib.suppress(OSError):  # where the kernel does not count swap there is none
        (made / limits[1]).write_text(str(most_bytes) if limits[1].endswith("in_bytes") else "0")
    try:
        yield made
    finally:
        made.rmdir()


@contextlib.contextmanager
def taking(group: Path, megabytes: int, *, gives_way: bool) -> Iterator[tuple[subprocess.Popen[bytes], bytes]]:
    """Let a process take memory; yield it and what it said."""
    command = [sys.executable, "-c", TAKES, str(group), str(megabytes), "yes" if gives_way else "no"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process, process.stdout.read(5)
        process.kill()


@pytest.mark.fault("P4")
def test_the_kernel_kills_a_run_and_not_its_larger_neighbour() -> None:
    with group(200 * MB) as together, taking(together, 120, gives_way=False) as (neighbour, said):
        assert said == b"taken"
        with taking(together, 100, gives_way=True) as (run, died):
            assert died == b""
            assert run.wait(30) == -9
        assert neighbour.poll() is None
