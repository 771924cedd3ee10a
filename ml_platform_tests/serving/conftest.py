from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_platform.workflows import Platform
from ml_platform_tests.serving import living


@pytest.fixture(scope="session")
def three_champions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which three versions became champion: tests copy it."""
    return living.champions(tmp_path_factory.mktemp("champions") / "home", 3)


@pytest.fixture
def served(three_champions: Path, tmp_path: Path, empty_mlflow: Path) -> Iterator[Platform]:
    """A platform of its own with three champions, the third in office."""
    platform = living.copied(three_champions, tmp_path / "served", empty_mlflow)
    yield platform
    platform.database.close()
