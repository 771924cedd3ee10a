"""A successor that misbehaves in a real server: who meets it is answered by the stable version, and it is counted."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_platform.model_spec import Rollout
from ml_platform.records import now
from ml_platform.traffic import Mode, TrafficFigures, TrafficPlan
from ml_platform.workflows import Platform
from ml_platform_tests.serving import living, odd
from ml_platform_tests.serving.living import RECORD, Server, logged, wait_until

ODD = [sys.executable, "-m", "ml_platform_tests.serving.odd_server"]
CANARY = Rollout(kind="canary", steps=(0.5, 1.0), deadline_ms=200.0)
STABLE, SUCCESSOR = 3, 4


class Rolling:
    """A server whose plan the test moves, as the rollout's asset does: through the database."""

    def __init__(self, platform: Platform, server: Server) -> None:
        self.platform, self.server = platform, server
        self.plan = TrafficPlan.from_document(json.dumps(server.admin_ask("/state").json["desired"]["plan"]))

    def move(self, **changes: Any) -> TrafficPlan:
        """Store another plan; return it once the server obeys it."""
        newest = self.platform.database.traffic_plan(living.MODEL)
        sequence = newest.sequence + 1 if newest else 1
        self.plan = replace(self.plan, sequence=sequence, since=now(), reason="test", **changes)
        self.platform.database.append_traffic_plan(self.plan)
        wait_until("the plan", lambda: self.server.facts["plan"] == sequence)
        return self.plan

    def key_of(self, version: int) -> str:
        return next(key for key in map(str, range(1_000)) if self.plan.version_for(key) == version)

    def ask(self, seconds: float, version: int | None = None) -> living.Answer:
        body = json.dumps({"dataframe_records": [{**RECORD, "seconds": seconds}]}).encode()
        headers = {} if version is None else {"ml-platform-key": self.key_of(version)}
        return self.server.ask(body=body, headers=headers)

    def figures(self, version: int) -> TrafficFigures | None:
        found = self.platform.database.traffic_figures(living.MODEL, self.plan.sequence)
        return next((one for one in found if one.version == version), None)

    def wait_for_figures(self, version: int, records: int) -> TrafficFigures:
        def counted() -> TrafficFigures | None:
            figures = self.figures(version)
            return figures if figures and figures.records >= records else None

        found: TrafficFigures = wait_until("the figures", counted)
        return found


@pytest.fixture(scope="module")
def rolling(three_champions: Path, tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[Rolling]:
    platform = living.copied(three_champions, tmp_path_factory.mktemp("rolling") / "home", empty_mlflow)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ml_platform.predictor.TRUSTED_TYPES", odd.TRUSTED)
        registration = living.served_version(platform, model=odd.Moody())
    living.promote(platform, registration, CANARY)
    with living.serving(platform.settings.home, command=ODD) as server:
        server.wait_for(STABLE)
        wait_until("the successor", lambda: server.facts["successor"] == SUCCESSOR)
        yield Rolling(platform, server)
    platform.database.close()


def test_without_a_plan_in_the_database_the_ledgers_promotion_begins_its_rollout(rolling: Rolling) -> None:
    plan = rolling.plan
    assert (plan.mode, plan.stable, plan.successor, plan.share) == (Mode.CANARY, STABLE, SUCCESSOR, 0.5)


def test_a_key_meets_the_version_that_the_plan_gives_it_wherever_it_stands(rolling: Rolling) -> None:
    plan = rolling.move(mode=Mode.CANARY, stable=STABLE, successor=SUCCESSOR, share=0.5)
    for number in range(1, 30):
        expected = plan.version_for(str(number))
        body = json.dumps({"dataframe_records": [RECORD], "params": {"key": str(number)}}).encode()
        assert rolling.server.ask(body=body, headers={"ml-platform-key": "other"}).version == expected
        assert rolling.server.ask(headers={"ml-platform-key": str(number)}).version == expected
        about = json.dumps({"dataframe_records": [{**RECORD, "visitor": number}]}).encode()
        assert rolling.server.ask(body=about).version == expected
    ours = rolling.wait_for_figures(STABLE, 1)
    wait_until("all requests", lambda: sum(one.requests for one in both(rolling)) == 87)
    assert ours.failures == 0


def both(rolling: Rolling) -> list[TrafficFigures]:
    return rolling.platform.database.traffic_figures(living.MODEL, rolling.plan.sequence)


@pytest.mark.fault("M2")
@pytest.mark.parametrize("seconds", [odd.NAN, odd.RAISES, odd.SLOW])
def test_the_stable_version_answers_what_the_successor_does_not(rolling: Rolling, seconds: float) -> None:
    rolling.move(mode=Mode.CANARY, stable=STABLE, successor=SUCCESSOR, share=0.5)
    lines = len(logged(rolling.server))
    wait_until("the successor", lambda: rolling.ask(3.0, SUCCESSOR).version == SUCCESSOR)
    began = time.monotonic()
    answers = [rolling.ask(seconds, SUCCESSOR) for _ in range(3)]
    # Of a slow successor the first request waits for the deadline, and the others for nobody.
    assert time.monotonic() - began < 1.5
    assert [(answer.status, answer.version) for answer in answers] == [(200, STABLE)] * 3
    theirs = rolling.wait_for_figures(SUCCESSOR, 4)
    assert (theirs.records, theirs.requests, theirs.failures, sum(theirs.scores)) == (4, 4, 3, 1)
    assert rolling.wait_for_figures(STABLE, 3).failures == 0
    if seconds == odd.SLOW:
        assert sum(theirs.latencies[7:]) == 3  # above a tenth of a second
    # The log has both: who answered, and who did not.
    wait_until("the log", lambda: len(logged(rolling.server)) == lines + 7)
    outcomes = [(line["ml"]["slot"], line["event"]["outcome"]) for line in logged(rolling.server)]
    assert outcomes[-7:].count(("successor", "failure")) == 3
    assert outcomes[-7:].count(("stable", "success")) == 3


def test_a_shadow_is_asked_and_neither_delays_nor_changes_an_answer(rolling: Rolling) -> None:
    wait_until("the end of what was slow", lambda: rolling.ask(3.0).status == 200)
    rolling.move(mode=Mode.SHADOW, stable=STABLE, successor=SUCCESSOR, share=0.0)
    began = time.monotonic()
    answers = [rolling.ask(odd.RAISES) for _ in range(3)]
    assert time.monotonic() - began < 1.0
    assert {(answer.status, answer.version) for answer in answers} == {(200, STABLE)}
    theirs = rolling.wait_for_figures(SUCCESSOR, 3)
    assert (theirs.requests, theirs.records, theirs.failures) == (0, 3, 3)
    wait_until("the log", lambda: sum(line["ml"]["slot"] == "shadow" for line in logged(rolling.server)) == 3)


def test_the_stable_versions_own_failure_is_said(rolling: Rolling) -> None:
    rolling.move(mode=Mode.ALL, stable=SUCCESSOR, successor=None, share=0.0)
    answer = rolling.ask(odd.RAISES)
    assert (answer.status, answer.version) == (500, SUCCESSOR)
    assert "no plan fits" in answer.json["error"]
    assert rolling.ask(3.0).status == 200


def test_a_plan_that_names_no_champion_is_not_obeyed(rolling: Rolling) -> None:
    """The ledger's champion answers alone, whoever wrote that version 1 does."""
    rolling.move(mode=Mode.CANARY, stable=STABLE, successor=SUCCESSOR, share=0.5)
    newest = rolling.platform.database.traffic_plan(living.MODEL)
    assert newest is not None
    forged = replace(newest, sequence=newest.sequence + 1, mode=Mode.ALL, stable=1, successor=None, share=0.0)
    rolling.platform.database.append_traffic_plan(forged)
    wait_until("the champion", lambda: rolling.server.facts["successor"] is None)
    assert {rolling.ask(3.0, None).version for _ in range(10)} == {SUCCESSOR}


# Versions that are not loaded


@pytest.fixture
def troubled(served: Platform) -> Iterator[Server]:
    """A server whose log has no folder, and whose successor answers otherwise than when it was judged."""
    registration = living.served_version(served, seed=9)
    living.rewrite_golden_answers(served, registration)
    living.promote(served, registration, CANARY)
    home = served.settings.serving_home(living.MODEL)
    home.mkdir(parents=True)
    Path(home / "predictions").write_text("a file, into which nobody can put another, root neither")
    with living.serving(served.settings.home) as server:
        server.wait_for(STABLE)
        yield server


@pytest.mark.fault("R8")
@pytest.mark.fault("R10")
@pytest.mark.fault("M3")
def test_what_fails_its_warm_up_gets_no_traffic_and_a_log_that_takes_nothing_costs_no_request(
    served: Platform, troubled: Server
) -> None:
    refused = wait_until("the refusal", lambda: troubled.facts["refused"].get("4"))
    assert "otherwise than when it was judged" in refused
    began = time.monotonic()
    answers = [troubled.ask(headers={"ml-platform-key": str(number)}) for number in range(50)]
    assert time.monotonic() - began < 5
    assert {(answer.status, answer.version) for answer in answers} == {(200, STABLE)}
    line = 'ml_platform_serving_log_dropped_total{model="visits",reason="disk"} 50.0'
    wait_until("the count", lambda: line in troubled.ask("/metrics", None).body.decode())
    wait_until(
        "the beat's word",
        lambda: any("4" in beat.says["refused"] for beat in served.database.servers(living.MODEL, living.LONG_AGO)),
    )
    # One byte of the next champion is flipped after its gates: what was served goes on, and says so.
    registration = living.served_version(served, seed=10)
    flip_a_byte(served.settings.model_home(living.MODEL) / "candidates" / registration.candidate / "model.skops")
    living.promote(served, registration)
    facts = wait_until("the mark", lambda: "not the file" in troubled.facts["why_stale"] and troubled.facts)
    assert "model.skops is not the file that was judged" in facts["why_stale"]
    wait_until("the header", lambda: troubled.ask().headers.get("ml-platform-stale") == "true")
    assert (troubled.ask().status, troubled.ask().version) == (200, STABLE)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
