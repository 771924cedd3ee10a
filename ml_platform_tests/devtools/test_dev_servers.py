import socket

import pytest

from ml_platform.devtools.dev_servers import run_servers
from ml_platform.errors import ConfigurationError, PortInUseError, SecondDaemonError
from ml_platform.orchestration.daemon_lock import LOCK, require_no_daemon
from ml_platform.platform import Platform
from ml_platform.settings import PROJECT_ROOT
from ml_platform_tests.support.dev_servers import free_port


def test_dev_port_in_use_starts_nothing(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(PROJECT_ROOT))
    said: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(PortInUseError, match=f"Port {port} on 127.0.0.1 cannot be used: Address already in use"):
            run_servers(platform.settings, ["visits"], port, port + 1, said.append)

    assert said == []


@pytest.mark.fault("P6")
def test_dev_running_daemon_starts_nothing(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(PROJECT_ROOT))
    said: list[str] = []
    with platform.database.locked(LOCK), pytest.raises(SecondDaemonError, match="A daemon runs for this deployment"):
        run_servers(platform.settings, ["visits"], free_port(), free_port(), said.append)

    assert said == []
    require_no_daemon(platform)


def test_dev_without_dagster_home_starts_nothing(platform: Platform) -> None:
    with pytest.raises(ConfigurationError, match="DAGSTER_HOME is not set"):
        run_servers(platform.settings, [], 0, 0, lambda _: None)
