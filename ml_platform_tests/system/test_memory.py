"""A training run that exceeds its memory limit fails alone; the kernel does not kill other processes."""

import contextlib
import resource
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ml_platform.data.pin import pin_dataset
from ml_platform.errors import OutOfMemoryError
from ml_platform.platform import Platform
from ml_platform.settings import Settings
from ml_platform.system import memory
from ml_platform.training.train import train_candidate
from ml_platform_tests.support import fakes, steps
from ml_platform_tests.support.daemon_location import SPECS, TOO_MUCH

pytestmark = pytest.mark.slow

MB = 2**20
# A process in a control group that allocates some megabytes, prints "taken" and waits for the end of its input.
TAKES = """
import sys
from pathlib import Path
from ml_platform.system import memory
group, megabytes, killed_first = sys.argv[1:]
Path(group, "cgroup.procs").write_text("0")
# Its parent may have run a training: processes inherit the score.
memory.SCORE.write_text("0")
if killed_first == "yes":
    memory.prefer_oom_kill()
taken = b"x" * (int(megabytes) * 2**20)
sys.stdout.write("taken")
sys.stdout.flush()
sys.stdin.read()
"""
on_linux = pytest.mark.skipif(not memory.STATUS.exists(), reason="the memory of a process is read from /proc")


@on_linux
@pytest.mark.fault("P4")
def test_allocation_above_limit_fails_only_inside() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)

    with memory.limit_memory(100 * MB):
        np.empty(50 * MB, dtype="int8")
        with pytest.raises(MemoryError):
            np.empty(200 * MB, dtype="int8")

    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    np.empty(200 * MB, dtype="int8")


def test_limit_none_is_unlimited() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)

    with memory.limit_memory(None):
        assert resource.getrlimit(resource.RLIMIT_DATA) == before


@on_linux
def test_limit_of_parent_process_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    limits_set = list[tuple[int, int]]()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10 * MB, 20 * MB))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: limits_set.append(limits))

    with memory.limit_memory(2**40):
        assert limits_set == [(10 * MB, 20 * MB)]


@on_linux
@pytest.mark.fault("P4")
def test_training_above_limit_fails_and_stores_nothing(tmp_path: Path) -> None:
    small = Platform(fakes.platform_in(tmp_path / "home").settings.model_copy(update={"training_memory_bytes": 2**30}))
    for model in ("greedy", "visits"):
        publish(small, model)
        pin_dataset(small, SPECS[model])

    with pytest.raises(OutOfMemoryError) as caught:
        train_candidate(small, SPECS["greedy"], reason="arrival")

    assert "the model 'greedy' on" in str(caught.value)
    assert f"Unable to allocate {TOO_MUCH / 2**30:.1f} GiB" in str(caught.value)
    assert "ML_PLATFORM_TRAINING_MEMORY_BYTES" in str(caught.value)
    assert small.database.newest_candidate("greedy") is None
    assert not (small.settings.model_home("greedy") / "candidates").exists()
    assert train_candidate(small, SPECS["visits"], reason="arrival").model == "visits"
    small.database.close()


def publish(platform: Platform, model: str) -> None:
    platform.zone.prepare(model)
    fakes.drop(platform, "a.parquet", fakes.visits(100), model)
    steps.publish(platform, SPECS[model])


def test_limit_setting_with_wrong_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1048576"):
        Settings(training_memory_bytes=4096)


@contextlib.contextmanager
def group(max_bytes: int) -> Iterator[Path]:
    """Create a control group with a memory limit, swap included; skip the test if that is not permitted."""
    first, limits = Path("/sys/fs/cgroup/memory"), ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    if not first.is_dir():
        first, limits = Path("/sys/fs/cgroup"), ["memory.max", "memory.swap.max"]
    folder = first / f"ml-platform-{uuid.uuid4().hex}"
    try:
        folder.mkdir()
        (folder / limits[0]).write_text(str(max_bytes))
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"the memory of processes cannot be limited here: {error}")
    with contextlib.suppress(OSError):  # the file is missing if the kernel does not count swap
        (folder / limits[1]).write_text(str(max_bytes) if limits[1].endswith("in_bytes") else "0")
    try:
        yield folder
    finally:
        folder.rmdir()


@contextlib.contextmanager
def taking(group: Path, megabytes: int, *, killed_first: bool) -> Iterator[tuple[subprocess.Popen[bytes], bytes]]:
    """Start a process that allocates memory; yield it and its output."""
    command = [sys.executable, "-c", TAKES, str(group), str(megabytes), "yes" if killed_first else "no"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process, process.stdout.read(5)
        process.kill()


@pytest.mark.fault("P4")
def test_oom_kills_run_before_larger_process() -> None:
    with group(200 * MB) as together, taking(together, 120, killed_first=False) as (neighbour, output):
        assert output == b"taken"
        with taking(together, 100, killed_first=True) as (run, killed):
            assert killed == b""
            assert run.wait(30) == -9
        assert neighbour.poll() is None
