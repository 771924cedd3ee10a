"""Disks that are full, read-only or broken, and processes that are killed during a rename or a commit."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from ml_platform.data import datasets
from ml_platform.data.ingest import publish_batches, store_raw_batches
from ml_platform.data.landing import waiting_arrivals
from ml_platform.data.pin import pin_dataset, profile_dataset
from ml_platform.database import PlatformDatabase
from ml_platform.errors import StorageError
from ml_platform.inference.predictor import load
from ml_platform.platform import Platform
from ml_platform.settings import PROJECT_ROOT
from ml_platform.storage import delta_table
from ml_platform_tests.support import fakes
from ml_platform_tests.support.disks import full, read_only
from ml_platform_tests.support.steps import publish, train

SPEC = fakes.visits_spec()
PAGE = 4096
BAD_ROWS = 2


# A disk of a few megabytes


@pytest.fixture
def small(disk: Path, tmp_path: Path) -> Iterator[Platform]:
    """A platform on the small disk with one published version; its landing zone is on another disk."""
    settings = fakes.platform_in(disk / "home").settings
    opened = Platform(settings.model_copy(update={"landing_zone": str(tmp_path / "landing")}))
    fakes.landing(opened).joinpath("visits").mkdir(parents=True)
    publish_first(opened)
    yield opened
    opened.database.close()


def publish_first(platform: Platform) -> None:
    fakes.drop(platform, "first.parquet", fakes.visits(300))
    publish(platform)
    pin_dataset(platform, SPEC)


def drop_second(platform: Platform) -> None:
    rows = fakes.visits(300, first=301)
    rows.loc[: BAD_ROWS - 1, "plan"] = "none such"
    fakes.drop(platform, "second.parquet", rows)


def count_rows(platform: Platform) -> int:
    """Count the rows of the newest version as a reader of the table."""
    return datasets.pin(platform.rows("visits"), SPEC)[0].rows


def quarantined(platform: Platform) -> int:
    opened = delta_table._open(platform.quarantine("visits"))
    return 0 if opened is None else len(opened.to_pyarrow_table())


def unfinished_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".") or "#" in path.name]


def outcomes(platform: Platform) -> dict[str, str | None]:
    return {row["name"]: row["outcome"] for row in platform.database.arrival_outcomes("visits")}


def require_published_once(platform: Platform) -> None:
    assert outcomes(platform) == {"first.parquet": "published", "second.parquet": "published"}
    assert (count_rows(platform), quarantined(platform)) == (600 - BAD_ROWS, BAD_ROWS)


def try_with_ever_more_space(disk: Path, step: Callable[[], object], check: Callable[[], object]) -> list[str]:
    """Run a step on a disk with no free page, with one, and so on; return the errors until it succeeds."""
    errors: list[str] = []
    while len(errors) < 100:
        with full(disk, but_for=len(errors) * PAGE):
            try:
                step()
            except StorageError as error:
                errors.append(str(error))
            else:
                return errors
            check()
    raise AssertionError(errors)


@pytest.mark.fault("S1")
def test_full_disk_loses_and_doubles_nothing(small: Platform, disk: Path) -> None:
    drop_second(small)

    def check() -> None:
        assert count_rows(small) in {300, 600 - BAD_ROWS}
        assert outcomes(small).get("second.parquet") is None
        assert unfinished_files(disk) == []

    errors = try_with_ever_more_space(disk, lambda: publish(small), check)

    for place in ("raw", "rows", "quarantine", "platform.db"):
        assert any(re.search(rf"(?s)stored in \S*/{place}: .*(No space left|full)", line) for line in errors), (
            place,
            errors,
        )
    require_published_once(small)
    publish(small)
    require_published_once(small)


@pytest.mark.fault("S1")
def test_full_disk_stores_no_partial_candidate(small: Platform, disk: Path) -> None:
    def check() -> None:
        assert small.database.newest_candidate("visits") is None
        assert unfinished_files(disk) == []

    errors = try_with_ever_more_space(disk, lambda: train(small), check)

    assert any("/candidates/" in line and "No space left" in line for line in errors), errors
    candidate = small.database.newest_candidate("visits")
    assert candidate is not None
    assert load(small.model_file(candidate), candidate.model_digest).digest == candidate.model_digest


@pytest.mark.fault("S1")
def test_full_disk_keeps_previous_page(small: Platform, disk: Path) -> None:
    dataset = small.database.newest_dataset("visits")
    assert dataset is not None
    profile_dataset(small, SPEC, dataset)
    page = small.profile_page(dataset)
    before = page.read_text()

    with full(disk), pytest.raises(StorageError, match=r"profiles: No space left"):
        profile_dataset(small, SPEC, dataset)

    assert page.read_text() == before
    assert unfinished_files(disk) == []
    profile_dataset(small, SPEC, dataset)
    assert page.read_text() == before


# A disk that is read-only


@pytest.fixture
def on_two_disks(disk: Path, tmp_path: Path) -> Iterator[Platform]:
    """A platform with a version and a candidate, its files on the small disk and its database on another."""
    settings = fakes.platform_in(disk / "home").settings
    elsewhere = {
        "landing_zone": str(tmp_path / "landing"),
        "database_url": SecretStr(f"sqlite:///{tmp_path}/platform.db"),
    }
    opened = Platform(settings.model_copy(update=elsewhere))
    fakes.landing(opened).joinpath("visits").mkdir(parents=True)
    publish_first(opened)
    train(opened)
    yield opened
    opened.database.close()


@pytest.mark.fault("S2")
@pytest.mark.parametrize(
    ("step", "place"), [(publish, "raw"), (train, r"candidates/[0-9a-f-]+")], ids=["publish", "train"]
)
def test_read_only_folder_error_gives_advice(
    on_two_disks: Platform, disk: Path, step: Callable[[Platform], None], place: str
) -> None:
    drop_second(on_two_disks)
    with read_only(disk):
        with pytest.raises(StorageError, match=rf"visits/{place}: Read-only file system. Check that .* is writable"):
            step(on_two_disks)
        assert count_rows(on_two_disks) == 300

    publish(on_two_disks)
    require_published_once(on_two_disks)


@pytest.mark.fault("S2")
def test_read_only_table_error_gives_advice(on_two_disks: Platform, disk: Path) -> None:
    drop_second(on_two_disks)
    keys = [arrival.key for arrival in waiting_arrivals(on_two_disks, "visits")]
    store_raw_batches(on_two_disks, "visits", keys)

    with read_only(disk), pytest.raises(StorageError, match=r"/visits: .*Read-only file system.* is writable"):
        publish_batches(on_two_disks, SPEC, keys)

    publish(on_two_disks)
    require_published_once(on_two_disks)


@pytest.mark.fault("S2")
def test_read_only_database_error_gives_advice(disk: Path) -> None:
    url = f"sqlite:///{disk}/platform.db"
    PlatformDatabase(url).close()

    with read_only(disk), pytest.raises(StorageError, match=r"disk/platform.db: .*is writable"):
        PlatformDatabase(url)

    assert PlatformDatabase(url).models() == []


@pytest.mark.fault("S2")
def test_model_on_read_only_disk_predicts(on_two_disks: Platform, disk: Path) -> None:
    candidate = on_two_disks.database.newest_candidate("visits")
    assert candidate is not None
    rows = fakes.visits(5)[SPEC.features]
    before = load(on_two_disks.model_file(candidate), candidate.model_digest).scores(rows)

    with read_only(disk):
        after = load(on_two_disks.model_file(candidate), candidate.model_digest).scores(rows)

    assert after.tolist() == before.tolist()


# System calls that fail or kill


@pytest.fixture
def strace() -> str:
    """The path of strace; tests are skipped if it is not installed or not allowed to trace."""
    path = shutil.which("strace")
    if path is None:
        pytest.skip("no strace on PATH: apt-get install strace (.ci/run does)")
    tried = subprocess.run([path, "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"strace may not trace here, for instance in a container without SYS_PTRACE: {tried.stderr}")
    return path


@pytest.fixture
def two(platform: Platform) -> Platform:
    """A platform with one published version and a second file that waits."""
    publish_first(platform)
    drop_second(platform)
    return platform


# deltalake renames the files of a table and links its commits. Each architecture has some of these calls only.
RENAMES, LINKS = "?rename,?renameat,?renameat2", "?link,?linkat"
SYNCS = "fsync,fdatasync"


def run_with(
    strace: str, platform: Platform, step: str, fault: str, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a step with a fault injected into its system calls, for all files or for one."""
    only = ["-P", str(path)] if path else []
    # With the filter, other system calls run at full speed, but a signal is delivered after its call.
    fast = ["--seccomp-bpf"] if "error=" in fault else []
    command = [strace, "-f", "-qq", "-o", os.devnull, *fast, "-e", f"trace={fault.partition(':')[0]}"]
    command += [*only, "-e", f"inject={fault}"]
    command += [sys.executable, "-m", "ml_platform_tests.support.steps", str(platform.settings.home), step]
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, timeout=120)


def commit(table: Path, version: int) -> Path:
    return table / "_delta_log" / f"{version:020}.json"


@pytest.mark.fault("S3")
@pytest.mark.parametrize(
    ("fault", "place"),
    [
        ("fsync:error=EIO:when=1", ""),
        ("fsync:error=EIO", "models/visits/raw"),
        ("fsync:error=EIO", "models/visits/rows/_delta_log/00000000000000000002.json"),
        (f"{SYNCS}:error=EIO", "platform.db-wal"),
    ],
    ids=["raw bytes", "raw folder", "rows", "database"],
)
def test_unsynced_bytes_are_not_reported_as_published(strace: str, two: Platform, fault: str, place: str) -> None:
    two.database.close()
    done = run_with(strace, two, "publish", fault, two.settings.home / place if place else None)

    assert done.returncode == 1
    assert re.search(r"StorageError: Nothing could be stored in .*(Input/output|disk I/O) error", done.stderr)
    assert outcomes(two).get("second.parquet") is None
    assert count_rows(two) in {300, 600 - BAD_ROWS}
    assert unfinished_files(two.settings.home) == []
    # A file that was not synced to the disk is never renamed to its final name.
    assert len(list(two.rows("visits").with_name("raw").iterdir())) == (2 if place else 1)
    publish(two)
    require_published_once(two)


@pytest.mark.fault("S3")
def test_unsynced_candidate_is_not_recorded(strace: str, two: Platform) -> None:
    # The fourth and last sync: folder of all candidates, folder of this one, its file, and its folder again.
    done = run_with(strace, two, "train", "fsync:error=EIO:when=4")

    assert done.returncode == 1
    assert re.search(r"StorageError: Nothing could be stored in .*/candidates.*Input/output error", done.stderr)
    assert two.database.newest_candidate("visits") is None
    assert unfinished_files(two.settings.home) == []


@pytest.mark.fault("S6")
def test_publication_killed_anywhere_is_old_or_new(strace: str, two: Platform) -> None:
    rows, quarantine, home = two.rows("visits"), two.quarantine("visits"), two.settings.home
    old, new = 300, 600 - BAD_ROWS
    two.database.close()

    def killed_at(calls: str, path: Path | None = None) -> tuple[int, int, str | None]:
        done = run_with(strace, two, "publish", f"{calls}:signal=KILL", path)
        assert done.returncode == -signal.SIGKILL, done.stderr
        return count_rows(two), quarantined(two), outcomes(two).get("second.parquet")

    # Each process continues from the state that the previous one left, and gets further.
    assert killed_at(RENAMES) == (old, 0, None)  # the raw bytes
    keys = [arrival.key for arrival in waiting_arrivals(two, "visits")]
    assert store_raw_batches(two, "visits", keys)[1] == []
    assert killed_at(RENAMES) == (old, 0, None)  # the file of rows
    assert killed_at(LINKS, commit(rows, 2)) == (old, 0, None)
    assert killed_at(LINKS, commit(quarantine, 0)) == (new, 0, None)
    assert killed_at(RENAMES) == (new, 0, None)  # the file of violations
    assert killed_at(LINKS, commit(quarantine, 1)) == (new, 0, None)
    # Earlier commits of the database set the number of readings back and count this one; the third is the outcome.
    assert killed_at(f"{SYNCS}:when=3", home / "platform.db-wal")[:2] == (new, BAD_ROWS)
    publish(two)
    require_published_once(two)
    publish(two)
    require_published_once(two)


@pytest.mark.fault("S6")
def test_candidate_killed_at_rename_is_not_recorded(strace: str, two: Platform) -> None:
    done = run_with(strace, two, "train", f"{RENAMES}:signal=KILL")

    assert done.returncode == -signal.SIGKILL, done.stderr
    assert two.database.newest_candidate("visits") is None
    train(two)
    candidate = two.database.newest_candidate("visits")
    assert candidate is not None
    assert load(two.model_file(candidate), candidate.model_digest).digest == candidate.model_digest
