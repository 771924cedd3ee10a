import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_platform.pipeline import _start_of, process_is_gone, process_tag
from ml_platform.stages.registry import Registry
from ml_platform.workflows import Platform
from ml_platform_tests import fakes

# Two cores: one thread a process, whoever starts the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def no_deployment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads or writes the deployment of the person who runs it."""
    ours = [name for name in os.environ if name.startswith("ML_PLATFORM_")]
    for name in (*ours, "MLFLOW_TRACKING_URI", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ML_PLATFORM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database that has been through its migrations, which take two seconds: tests copy it."""
    folder = tmp_path_factory.mktemp("mlflow")
    Registry(f"sqlite:///{folder}/mlflow.db", folder).alias("visits", "champion")
    return folder / "mlflow.db"


@pytest.fixture
def platform(tmp_path: Path, empty_mlflow: Path) -> Iterator[Platform]:
    opened = fakes.platform_in(tmp_path / "home")
    shutil.copy(empty_mlflow, opened.settings.home / "mlflow.db")
    yield opened
    opened.database.close()


@pytest.fixture
def dead_process() -> str:
    """Return the tag of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        host, _, _ = process_tag().rsplit(":", 2)
        tag = f"{host}:{process.pid}:{_start_of(process.pid)}"
        assert not process_is_gone(tag)
    return tag
