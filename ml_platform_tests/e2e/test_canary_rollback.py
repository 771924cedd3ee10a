"""A canary of a bad model in a real server: it is rolled back automatically, and every request is answered."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_platform.model_spec import Rollout
from ml_platform.platform import Platform
from ml_platform.release.rollout.policy import Step
from ml_platform.release.rollout.steps import Traffic, step_rollout
from ml_platform.release.rollout.traffic import store_plan
from ml_platform_tests.support import fakes, misbehaving_worker, prediction_server
from ml_platform_tests.support.prediction_server import RECORD, Server, wait_until

ODD = [sys.executable, "-m", "ml_platform_tests.support.misbehaving_server"]
CANARY = Rollout(kind="canary", steps=(0.5, 1.0), hold_minutes=60, deadline_ms=200.0)
STABLE = 3
# The request that the bad successor answers badly, and the condition that rolls it back.
BAD = {
    "NaN": (misbehaving_worker.NAN, "errors"),
    "slow": (misbehaving_worker.SLOW, "errors"),
    "shifted scores": (3.0, "scores"),
}


@pytest.fixture(scope="module")
def live(
    three_champions: Path, tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path
) -> Iterator[tuple[Platform, Server]]:
    platform = prediction_server.copied(three_champions, tmp_path_factory.mktemp("back") / "home", empty_mlflow)
    with prediction_server.serving(platform.settings.home, command=ODD) as server:
        server.wait_for(STABLE)
        yield platform, server
    platform.database.close()


def begin(platform: Platform, server: Server) -> int:
    """Promote a successor that misbehaves, and wait until the server sends it traffic."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ml_platform.storage.model_files.TRUSTED_TYPES", misbehaving_worker.TRUSTED)
        registration = prediction_server.served_version(platform, model=misbehaving_worker.Moody())
    prediction_server.promote(platform, registration, CANARY)
    store_plan(platform, prediction_server.MODEL)
    wait_until("the successor", lambda: server.facts["successor"] == registration.version)
    return registration.version


def ask(server: Server, number: int, seconds: float) -> int:
    body = {"dataframe_records": [{**RECORD, "pages": number % 50, "seconds": seconds}], "params": {"key": str(number)}}
    answer = server.ask(body=json.dumps(body).encode())
    assert answer.status == 200, answer.body
    return answer.version


def step(platform: Platform) -> Traffic | None:
    """Take the asset's step; return it if the rollout was aborted."""
    traffic = step_rollout(platform, fakes.uncompared_spec(), actor="test")
    return traffic if traffic.step is Step.ABORT else None


@pytest.mark.fault("M1")
@pytest.mark.fault("M2")
@pytest.mark.parametrize("bad", BAD)
def test_canary_of_bad_model_rolls_back(live: tuple[Platform, Server], bad: str) -> None:
    platform, server = live
    successor = begin(platform, server)
    seconds, condition = BAD[bad]

    versions = [ask(server, number, seconds) for number in range(100)]
    aborted: Traffic = wait_until("the abort", lambda: step(platform))

    assert set(versions) == ({STABLE} if condition == "errors" else {STABLE, successor})
    entry = platform.database.champion(prediction_server.MODEL)
    assert entry is not None
    assert aborted.entry == entry
    assert (entry.action, entry.version, entry.previous_version) == ("rollback", STABLE, successor)
    report = entry.details["traffic"]["figures"]
    assert condition in [one["name"] for one in report["conditions"] if one["outcome"] == "FAIL"]
    assert [version["version"] for version in report["versions"]] == [STABLE, successor]
    wait_until("the way back", lambda: server.facts["successor"] is None)
    assert {ask(server, number, 3.0) for number in range(20)} == {STABLE}
