"""The clients of Triton and KServe, from an environment of their own, against a real server."""

import json
import re
import subprocess
import venv
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ml_platform_tests.support import prediction_server
from ml_platform_tests.support.prediction_server import MODEL

SUPPORT = Path(prediction_server.__file__).parent


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the clients."""
    folder = tmp_path_factory.mktemp("clients") / "venv"
    venv.create(folder, with_pip=True)
    lock = SUPPORT / "inference_clients.lock"
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--require-hashes", "--requirement", str(lock)]
    installed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if re.search("Connection|timed out|Could not fetch URL", installed.stderr) and installed.returncode:
        pytest.skip(f"the packages of {lock.name} cannot be fetched: {installed.stderr[-300:]}")
    assert installed.returncode == 0, installed.stderr
    return folder / "bin" / "python"


@pytest.mark.servers
def test_clients_read_the_servers_predictions(
    python: Path, three_champions: Path, tmp_path: Path, empty_mlflow: Path
) -> None:
    platform = prediction_server.copied(three_champions, tmp_path / "home", empty_mlflow)
    platform.database.close()
    rows = [{"pages": 40, "seconds": 3.0, "plan": "paid"}, {"pages": 3, "seconds": 1.5, "plan": "free"}]
    with prediction_server.serving(platform.settings.home) as server:
        server.wait_for(3)
        expected = server.ask(body=json.dumps({"inputs": rows}).encode()).json["predictions"]
        address = urlsplit(server.address).netloc
        command = [str(python), str(SUPPORT / "inference_clients.py"), address, MODEL]
        called = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert called.returncode == 0, called.stderr
    results = json.loads(called.stdout.splitlines()[-1])
    assert len(results) == 6
    assert results == dict.fromkeys(results, expected)
