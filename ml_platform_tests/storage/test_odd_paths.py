"""Deployments in folders whose names hold the separators and escapes of addresses."""

from pathlib import Path

import pytest

from ml_platform.governance.explain import explain
from ml_platform.governance.status import status
from ml_platform.settings import sqlite_address
from ml_platform_tests.support import fakes, lifecycle

pytestmark = pytest.mark.fault("X3")


@pytest.mark.parametrize("name", ["50% off?#1 ü", "100%&a=b;c@d:e*"])
def test_home_with_odd_name_promotes_champion(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / name
    monkeypatch.setenv("ML_PLATFORM_HOME", str(home))
    platform = fakes.platform_in(home)
    fakes.drop(platform, "monday.parquet", fakes.visits(600))

    entry = lifecycle.live(platform)

    assert platform.registry.alias("visits", "champion") == entry.version
    assert explain(platform, "visits")["ledger"]["verifies"]
    assert status(platform)[0]["champion"] == entry.version
    assert {path.name for path in tmp_path.iterdir()} == {name}
    assert (home / "platform.db").is_file()
    assert (home / "mlflow.db").is_file()


def test_sqlite_address_escapes_separators() -> None:
    assert sqlite_address(Path("/a/50%?#1 ü@:b.db")) == "sqlite:////a/50%25%3F%231 ü@:b.db"
