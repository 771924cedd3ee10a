"""A canary of a bad model under a real server: it goes back by itself, and nobody who asked was without an answer."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_platform import workflows
from ml_platform.model_spec import Rollout
from ml_platform.stages.rollout import Step
from ml_platform.workflows import Platform
from ml_platform.workflows.rollout import Traffic
from ml_platform_tests import fakes
from ml_platform_tests.serving import living, odd
from ml_platform_tests.serving.living import RECORD, Server, wait_until

ODD = [sys.executable, "-m", "ml_platform_tests.serving.odd_server"]
CANARY = Rollout(kind="canary", steps=(0.5, 1.0), hold_minutes=60, deadline_ms=200.0)
STABLE = 3
# What the requests ask that the bad successor answers badly, and the condition that sends it back.
BAD = {"NaN": (odd.NAN, "errors"), "slow": (odd.SLOW, "errors"), "shifted scores": (3.0, "scores")}


@pytest.fixture(scope="module")
def live(
    three_champions: Path, tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path
) -> Iterator[tuple[Platform, Server]]:
    platform = living.copied(three_champions, tmp_path_factory.mktemp("back") / "home", empty_mlflow)
    with living.serving(platform.settings.home, command=ODD) as server:
        server.wait_for(STABLE)
        yield platform, server
    platform.database.close()


def begin(platform: Platform, server: Server) -> int:
    """Promote a successor that is about to misbehave, and wait until the server sends it traffic."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ml_platform.predictor.TRUSTED_TYPES", odd.TRUSTED)
        registration = living.served_version(platform, model=odd.Moody())
    living.promote(platform, registration, CANARY)
    workflows.keep_plan(platform, living.MODEL)
    wait_until("the successor", lambda: server.facts["successor"] == registration.version)
    return registration.version


def ask(server: Server, number: int, seconds: float) -> int:
    body = {"dataframe_records": [{**RECORD, "pages": number % 50, "seconds": seconds}], "params": {"key": str(number)}}
    answer = server.ask(body=json.dumps(body).encode())
    assert answer.status == 200, answer.body
    return answer.version


def step(platform: Platform) -> Traffic | None:
    """Let the asset do its step; return it where the rollout went back."""
    found = workflows.step_rollout(platform, fakes.unrivalled_spec(), actor="test")
    return found if found.step is Step.ABORT else None


@pytest.mark.fault("M1")
@pytest.mark.fault("M2")
@pytest.mark.parametrize("bad", BAD)
def test_a_canary_of_a_bad_model_goes_back_by_itself(live: tuple[Platform, Server], bad: str) -> None:
    platform, server = live
    successor = begin(platform, server)
    seconds, condition = BAD[bad]

    versions = [ask(server, number, seconds) for number in range(100)]
    aborted: Traffic = wait_until("the abort", lambda: step(platform))

    assert set(versions) == ({STABLE} if condition == "errors" else {STABLE, successor})
    entry = platform.database.champion(living.MODEL)
    assert entry is not None
    assert aborted.entry == entry
    assert (entry.action, entry.version, entry.previous_version) == ("rollback", STABLE, successor)
    report = entry.details["traffic"]["figures"]
    assert condition in [one["name"] for one in report["conditions"] if one["outcome"] == "FAIL"]
    assert [version["version"] for version in report["versions"]] == [STABLE, successor]
    wait_until("the way back", lambda: server.facts["successor"] is None)
    assert {ask(server, number, 3.0) for number in range(20)} == {STABLE}
