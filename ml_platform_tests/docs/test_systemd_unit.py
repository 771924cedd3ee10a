"""The systemd unit of the page on serving: its command exists, and systemd accepts it."""

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ml_platform.cli import app
from ml_platform.serving.http.connection_limits import SECONDS_TO_FINISH
from ml_platform.serving.supervisor.worker_pool import SECONDS_TO_STOP
from ml_platform.settings import PROJECT_ROOT


def read_unit() -> str:
    page = (PROJECT_ROOT / "docs" / "how-to" / "serving.md").read_text()
    (unit,) = re.findall(r"```ini\n(\[Unit\]\n.*?)```", page, re.DOTALL)
    return str(unit)


def parse_unit() -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(read_unit())
    return unit


def test_systemd_unit_names_an_existing_command() -> None:
    program, *arguments = shlex.split(parse_unit()["Service"]["ExecStart"])

    assert program.endswith("/.venv/bin/ml-platform")
    assert (Path(sys.executable).parent / "ml-platform").exists()
    help_page = CliRunner().invoke(app, [arguments[0], "--help"]).output
    assert "--workers" in help_page
    assert arguments == ["serve", "%i", "--workers", "2"]


def test_systemd_unit_restarts_and_stops_gracefully() -> None:
    service = parse_unit()["Service"]

    assert (service["Restart"], service["KillSignal"], service["KillMode"]) == ("always", "SIGTERM", "mixed")
    assert int(service["TimeoutStopSec"]) > SECONDS_TO_STOP + SECONDS_TO_FINISH
    assert service["ProtectSystem"] == "strict"
    assert service["ReadWritePaths"] == "/srv/ml-platform/var"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="apt-get install systemd")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    program = str(Path(sys.executable).parent / "ml-platform")
    environment = tmp_path / "serve.env"
    environment.touch()
    unit = read_unit().replace("/srv/ml-platform/.venv/bin/ml-platform", program)
    unit = unit.replace("/etc/ml-platform/serve.env", str(environment))
    file = tmp_path / "ml-platform-serve@churn.service"
    file.write_text(unit)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(file)], capture_output=True, text=True
    )

    assert (checked.returncode, checked.stderr) == (0, "")
