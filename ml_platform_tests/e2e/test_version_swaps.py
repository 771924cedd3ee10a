"""Swaps and rollbacks under constant load from another process: no request fails, and the log has every answer.

R5 and R6 of docs/faults.md; `make soak` runs more swaps and rollbacks.
"""

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_platform.platform import Platform
from ml_platform_tests.support import prediction_server
from ml_platform_tests.support.prediction_server import Load, Server, logged, wait_until


@pytest.fixture
def server(served: Platform) -> Iterator[Server]:
    with prediction_server.serving(served.settings.home, workers=2) as started:
        started.wait_for(3)
        wait_until("a server that is not stale", lambda: not started.facts["stale"])
        yield started


def require_sound(server: Server, results: list[dict[str, Any]]) -> None:
    """Compare every answer with the log: none failed, and the log has its version and score."""
    failed = [result for result in results if result["status"] != 200]
    assert not failed, failed[:5]
    wait_until("the log of all answers", lambda: len(logged(server)) >= len(results), 20)
    lines = {line["http"]["request"]["id"]: line["ml"] for line in logged(server)}
    for result in results:
        line = lines[result["id"]]
        assert (str(line["version"]), line["digest"]) == (result["version"], result["digest"])
        assert [line["score"]] == result["score"]


@pytest.mark.fault("R5")
@pytest.mark.parametrize("swaps", [8, pytest.param(100, marks=pytest.mark.soak)])
def test_swaps_under_load_fail_no_request(served: Platform, server: Server, tmp_path: Path, swaps: int) -> None:
    with Load(server, tmp_path) as load:
        for number in range(swaps):
            promoted(served, server, seed=100 + number)
    require_sound(server, load.results)
    assert {int(result["version"]) for result in load.results} == set(range(3, 4 + swaps))


@pytest.mark.fault("R6")
@pytest.mark.parametrize("rollbacks", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_rollbacks_under_load_take_under_a_second(
    served: Platform, server: Server, tmp_path: Path, rollbacks: int
) -> None:
    """Each rolls back a version that was promoted just before; the ledger follows."""
    with Load(server, tmp_path) as load:
        for number in range(rollbacks):
            version = 3 if number == 0 else promoted(served, server, seed=10 + number)
            before = prediction_server.list_champions(served)[-2]
            began = time.monotonic()
            answer = server.admin_ask("/rollback", {"reason": f"rollback {number}"})
            seconds = time.monotonic() - began
            result = {name: answer.json[name] for name in ("version", "instead_of", "swapped", "workers")}
            assert result == {"version": before, "instead_of": version, "swapped": True, "workers": 2}
            assert seconds < 1
            assert server.ask().version == before
            wait_until("the ledger", functools.partial(is_champion, served, before))
    require_sound(server, load.results)
    wait_until("a closed journal", lambda: all(one["closed"] for one in server.admin_ask("/log").json["rollbacks"]))
    wait_until("the end of the override", lambda: not server.facts["override"])
    assert server.ask().version == 2


def promoted(platform: Platform, server: Server, *, seed: int) -> int:
    """Promote another version; return its number once it is served."""
    registration = prediction_server.served_version(platform, seed=seed)
    prediction_server.promote(platform, registration)
    server.wait_for(registration.version)
    return registration.version


def is_champion(platform: Platform, version: int) -> bool:
    return prediction_server.list_champions(platform)[-1] == version
