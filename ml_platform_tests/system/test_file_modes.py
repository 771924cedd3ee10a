import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_platform.settings import PROJECT_ROOT
from ml_platform.system import file_modes

PROGRAM = Path(sys.executable).parent / "ml-platform"


@pytest.fixture(autouse=True)
def users_umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the user's umask be 022, and restore the test's at the end."""
    monkeypatch.setattr(file_modes, "_of_user", [])
    before = os.umask(0o022)
    yield
    os.umask(before)


def read_mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_files_are_private_except_users(tmp_path: Path) -> None:
    file_modes.make_files_private()
    file_modes.make_files_private()
    (tmp_path / "private").touch()
    with file_modes.users_file_modes():
        (tmp_path / "shared").touch()
    (tmp_path / "folder").mkdir()

    assert [read_mode(tmp_path / name) for name in ("private", "shared", "folder")] == [0o600, 0o644, 0o700]


def test_users_file_modes_alone_change_nothing(tmp_path: Path) -> None:
    with file_modes.users_file_modes():
        (tmp_path / "file").touch()

    assert read_mode(tmp_path / "file") == 0o644


def test_commands_create_private_home(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml").read_text())
    home, file = tmp_path / "home", tmp_path / "bad.csv"
    file.write_text("no_column\n1\n")
    environment = {**os.environ, "ML_PLATFORM_HOME": str(home), "DAGSTER_HOME": str(tmp_path)}

    for arguments in (["land", str(file), "--model", "churn"], ["ingest", "churn"], ["reconcile", "churn"]):
        subprocess.run([PROGRAM, *arguments], env=environment, umask=0, capture_output=True, timeout=120)

    created = [home, *home.rglob("*"), tmp_path / "var", *(tmp_path / "var").rglob("*")]
    assert {path.name for path in created} >= {"platform.db", "mlflow.db", "landing", "raw", "dagster"}
    assert [path for path in created if read_mode(path) & 0o077] == []


def test_land_keeps_users_mode_in_shared_zone(tmp_path: Path) -> None:
    zone, file = tmp_path / "zone", tmp_path / "file.csv"
    (zone / "churn").mkdir(parents=True)
    file.write_text("a\n1\n")
    environment = {**os.environ, "ML_PLATFORM_LANDING_ZONE": str(zone)}

    subprocess.run([PROGRAM, "land", file, "--model", "churn"], env=environment, umask=0o027, check=True, timeout=120)

    assert read_mode(zone / "churn" / "file.csv") == 0o640
