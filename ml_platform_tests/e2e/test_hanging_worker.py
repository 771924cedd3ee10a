"""A worker whose model hangs is killed and replaced, while the others answer."""

import contextlib
import json
import sys
import threading
from pathlib import Path

import pytest

from ml_platform_tests.support import misbehaving_worker, prediction_server
from ml_platform_tests.support.prediction_server import RECORD, wait_until

ODD = [sys.executable, "-m", "ml_platform_tests.support.misbehaving_server"]
KILLED = 'ml_platform_serving_workers_killed_total{model="visits"} 1.0'


@pytest.mark.slow
@pytest.mark.fault("R16")
@pytest.mark.parametrize("seconds", [misbehaving_worker.WAITS, misbehaving_worker.SPINS])
def test_hanging_worker_is_killed_and_replaced(
    seconds: float, three_champions: Path, tmp_path: Path, empty_mlflow: Path
) -> None:
    platform = prediction_server.copied(three_champions, tmp_path / "home", empty_mlflow)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ml_platform.storage.model_files.TRUSTED_TYPES", misbehaving_worker.TRUSTED)
        prediction_server.promote(
            platform, prediction_server.served_version(platform, model=misbehaving_worker.Moody())
        )
    platform.database.close()
    hangs = json.dumps({"dataframe_records": [{**RECORD, "seconds": seconds}]}).encode()

    def ask_and_hang() -> None:
        with contextlib.suppress(OSError):  # the connection ends with the worker
            server.ask(body=hangs, seconds=120)

    settings = {"command": ODD, "workers": 2, "ML_PLATFORM_WORKER_SILENCE_SECONDS": "3"}
    with prediction_server.serving(tmp_path / "home", **settings) as server:
        server.wait_for(4)
        before = server.pids()
        client = threading.Thread(target=ask_and_hang)
        client.start()
        wait_until("the replacement", lambda: set(server.pids()) - set(before) and len(server.pids()) == 2)
        client.join()
        after = server.pids()
        server.wait_for(4)
        said = server.log.read_text()

        assert len(before) == 2
        assert len(set(before) & set(after)) == 1
        assert server.ask().status == 200
        assert KILLED in server.ask("/metrics", None).body.decode()
    assert "was killed because it gave no sign of life for" in said
    assert "ServingWorkerDied" in said
