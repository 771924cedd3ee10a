import socket
from pathlib import Path

import pytest

from ml_platform.dev import run_servers
from ml_platform.errors import ConfigurationError, PortInUseError, SecondDaemonError
from ml_platform.one_daemon import LOCK, require_no_daemon
from ml_platform.workflows import Platform
from ml_platform_tests.e2e.servers import free_port

ROOT = Path(__file__).resolve().parent.parent


def test_a_port_in_use_is_named_before_anything_starts(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(ROOT))
    said: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(PortInUseError, match=f"Port {port} on 127.0.0.1 cannot be used: Address already in use"):
            run_servers(platform.settings, ["visits"], port, port + 1, said.append)

    assert said == []


@pytest.mark.fault("P6")
def test_a_daemon_that_runs_already_is_named_before_anything_starts(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(ROOT))
    said: list[str] = []
    with platform.database.locked(LOCK), pytest.raises(SecondDaemonError, match="A daemon runs for this deployment"):
        run_servers(platform.settings, ["visits"], free_port(), free_port(), said.append)

    assert said == []
    require_no_daemon(platform)


def test_without_dagster_home_nothing_starts(platform: Platform) -> None:
    with pytest.raises(ConfigurationError, match="DAGSTER_HOME is not set"):
        run_servers(platform.settings, [], 0, 0, lambda _: None)
