"""A successor that misbehaves in a real server: the stable version answers instead, and failures are counted."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_platform.model_spec import Rollout
from ml_platform.platform import Platform
from ml_platform.records.canonical import now
from ml_platform.records.traffic import Mode, TrafficPlan, TrafficStats
from ml_platform_tests.support import misbehaving_worker, prediction_server
from ml_platform_tests.support.prediction_server import RECORD, Server, logged, wait_until

ODD = [sys.executable, "-m", "ml_platform_tests.support.misbehaving_server"]
CANARY = Rollout(kind="canary", steps=(0.5, 1.0), deadline_ms=200.0)
STABLE, SUCCESSOR = 3, 4


class Rolling:
    """A server whose plan the test changes in the database, as the rollout's asset does."""

    def __init__(self, platform: Platform, server: Server) -> None:
        self.platform, self.server = platform, server
        self.plan = TrafficPlan.from_document(json.dumps(server.admin_ask("/state").json["desired"]["plan"]))

    def move(self, **changes: Any) -> TrafficPlan:
        """Store another plan; return it when the server follows it."""
        newest = self.platform.database.traffic_plan(prediction_server.MODEL)
        sequence = newest.sequence + 1 if newest else 1
        self.plan = replace(self.plan, sequence=sequence, since=now(), reason="test", **changes)
        self.platform.database.append_traffic_plan(self.plan)
        wait_until("the plan", lambda: self.server.facts["plan"] == sequence)
        return self.plan

    def key_of(self, version: int) -> str:
        return next(key for key in map(str, range(1_000)) if self.plan.version_for(key) == version)

    def ask(self, seconds: float, version: int | None = None) -> prediction_server.Answer:
        body = json.dumps({"dataframe_records": [{**RECORD, "seconds": seconds}]}).encode()
        headers = {} if version is None else {"ml-platform-key": self.key_of(version)}
        return self.server.ask(body=body, headers=headers)

    def figures(self, version: int) -> TrafficStats | None:
        stats = self.platform.database.traffic_figures(prediction_server.MODEL, self.plan.sequence)
        return next((one for one in stats if one.version == version), None)

    def wait_for_figures(self, version: int, records: int) -> TrafficStats:
        def counted() -> TrafficStats | None:
            figures = self.figures(version)
            return figures if figures and figures.records >= records else None

        stats: TrafficStats = wait_until("the figures", counted)
        return stats


@pytest.fixture(scope="module")
def rolling(three_champions: Path, tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[Rolling]:
    platform = prediction_server.copied(three_champions, tmp_path_factory.mktemp("rolling") / "home", empty_mlflow)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ml_platform.storage.model_files.TRUSTED_TYPES", misbehaving_worker.TRUSTED)
        registration = prediction_server.served_version(platform, model=misbehaving_worker.Moody())
    prediction_server.promote(platform, registration, CANARY)
    with prediction_server.serving(platform.settings.home, command=ODD) as server:
        server.wait_for(STABLE)
        wait_until("the successor", lambda: server.facts["successor"] == SUCCESSOR)
        yield Rolling(platform, server)
    platform.database.close()


def test_ledger_promotion_starts_a_rollout(rolling: Rolling) -> None:
    plan = rolling.plan
    assert (plan.mode, plan.stable, plan.successor, plan.share) == (Mode.CANARY, STABLE, SUCCESSOR, 0.5)


def test_key_selects_the_plans_version(rolling: Rolling) -> None:
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


def both(rolling: Rolling) -> list[TrafficStats]:
    return rolling.platform.database.traffic_figures(prediction_server.MODEL, rolling.plan.sequence)


@pytest.mark.fault("M2")
@pytest.mark.parametrize("seconds", [misbehaving_worker.NAN, misbehaving_worker.RAISES, misbehaving_worker.SLOW])
def test_stable_version_answers_if_successor_fails(rolling: Rolling, seconds: float) -> None:
    rolling.move(mode=Mode.CANARY, stable=STABLE, successor=SUCCESSOR, share=0.5)
    lines = len(logged(rolling.server))
    wait_until("the successor", lambda: rolling.ask(3.0, SUCCESSOR).version == SUCCESSOR)
    began = time.monotonic()
    answers = [rolling.ask(seconds, SUCCESSOR) for _ in range(3)]
    # The first request to a slow successor waits for the deadline; the others do not wait.
    assert time.monotonic() - began < 1.5
    assert [(answer.status, answer.version) for answer in answers] == [(200, STABLE)] * 3
    theirs = rolling.wait_for_figures(SUCCESSOR, 4)
    assert (theirs.records, theirs.requests, theirs.failures, sum(theirs.scores)) == (4, 4, 3, 1)
    assert rolling.wait_for_figures(STABLE, 3).failures == 0
    # The log has both versions: the one that answered, and the one that failed.
    wait_until("the log", lambda: len(logged(rolling.server)) == lines + 7)
    outcomes = [(line["ml"]["role"], line["event"]["outcome"]) for line in logged(rolling.server)]
    assert outcomes[-7:].count(("successor", "failure")) == 3
    assert outcomes[-7:].count(("champion", "success")) == 3


def test_shadow_neither_delays_nor_changes_answers(rolling: Rolling) -> None:
    wait_until("the end of slow answers", lambda: rolling.ask(3.0).status == 200)
    rolling.move(mode=Mode.SHADOW, stable=STABLE, successor=SUCCESSOR, share=0.0)
    began = time.monotonic()
    answers = [rolling.ask(misbehaving_worker.RAISES) for _ in range(3)]
    assert time.monotonic() - began < 1.0
    assert {(answer.status, answer.version) for answer in answers} == {(200, STABLE)}
    theirs = rolling.wait_for_figures(SUCCESSOR, 3)
    assert (theirs.requests, theirs.records, theirs.failures) == (3, 3, 3)
    wait_until("the log", lambda: sum(line["ml"]["role"] == "shadow" for line in logged(rolling.server)) == 3)


def test_failure_of_stable_version_is_returned(rolling: Rolling) -> None:
    rolling.move(mode=Mode.ALL, stable=SUCCESSOR, successor=None, share=0.0)
    answer = rolling.ask(misbehaving_worker.RAISES)
    assert (answer.status, answer.version) == (500, SUCCESSOR)
    assert "ValueError in predict_proba, line " in answer.json["error"]
    assert rolling.ask(3.0).status == 200


@pytest.mark.fault("R26")
def test_logs_hold_no_token_and_no_value(rolling: Rolling) -> None:
    """The author logs pages and plan; the entity is always logged."""
    server, secret = rolling.server, "hunter2-s3cret"
    rolling.move(mode=Mode.ALL, stable=SUCCESSOR, successor=None, share=0.0)
    wait_until("the plan", lambda: rolling.ask(misbehaving_worker.RAISES).status == 500)
    for seconds in (misbehaving_worker.RAISES, secret):
        body = json.dumps({"dataframe_records": [{**RECORD, "seconds": seconds, "colour": secret}]}).encode()
        headers = {"authorization": f"Bearer {secret}", "cookie": f"session={secret}", "content-encoding": "gzip"}
        assert server.ask(f"/invocations?token={secret}", body).status == 422
        assert server.ask(f"/invocations?token={secret}", body, headers=headers).status == 400
    with contextlib.suppress(OSError):
        prediction_server.ask(server.address, f"/?token={secret}", b"x", {"content-length": secret})
    for admin in ("/state", "/rollback", f"/log?token={secret}"):
        prediction_server.ask(server.admin, admin, headers={"authorization": f"Bearer {secret}"})
        assert server.admin_ask(f"{admin}?key={secret}", {"reason": 3} if admin == "/rollback" else None).status < 500
    wait_until("the log", lambda: any("error" in line for line in logged(server)))
    written = {file: file.read_bytes() for file in [server.log, *server.serving.glob("*.json*"), *log_files(server)]}
    assert any(b"ValueError in predict_proba" in text for text in written.values())
    for value in (secret, server.token, str(misbehaving_worker.RAISES)):
        assert [file.name for file, text in written.items() if value.encode() in text] == []


def log_files(server: Server) -> list[Path]:
    return sorted((server.serving / "predictions").iterdir())


def test_plan_without_the_champion_is_ignored(rolling: Rolling) -> None:
    """The ledger's champion answers alone; the plan that names version 1 is forged."""
    rolling.move(mode=Mode.CANARY, stable=STABLE, successor=SUCCESSOR, share=0.5)
    newest = rolling.platform.database.traffic_plan(prediction_server.MODEL)
    assert newest is not None
    forged = replace(newest, sequence=newest.sequence + 1, mode=Mode.ALL, stable=1, successor=None, share=0.0)
    rolling.platform.database.append_traffic_plan(forged)
    wait_until("the champion", lambda: rolling.server.facts["successor"] is None)
    assert {rolling.ask(3.0, None).version for _ in range(10)} == {SUCCESSOR}


# Versions that are not loaded


@pytest.fixture
def troubled(served: Platform) -> Iterator[Server]:
    """A server whose log has no folder, and whose successor's answers differ from those at its judgement."""
    registration = prediction_server.served_version(served, seed=9)
    prediction_server.rewrite_golden_answers(served, registration)
    prediction_server.promote(served, registration, CANARY)
    home = served.settings.serving_home(prediction_server.MODEL)
    home.mkdir(parents=True)
    Path(home / "predictions").write_text("a file, not a folder: even root cannot create files in it")
    with prediction_server.serving(served.settings.home) as server:
        server.wait_for(STABLE)
        yield server


@pytest.mark.fault("R8")
@pytest.mark.fault("R10")
@pytest.mark.fault("M3")
def test_failed_warm_up_and_full_log_are_harmless(served: Platform, troubled: Server) -> None:
    refused = wait_until("the refusal", lambda: troubled.facts["refused"].get("4"))
    assert "differ from those of its evaluation" in refused
    began = time.monotonic()
    answers = [troubled.ask(headers={"ml-platform-key": str(number)}) for number in range(50)]
    assert time.monotonic() - began < 5
    assert {(answer.status, answer.version) for answer in answers} == {(200, STABLE)}
    line = 'ml_platform_serving_log_dropped_total{model="visits",reason="disk"} 50.0'
    wait_until("the count", lambda: line in troubled.ask("/metrics", None).body.decode())
    wait_until(
        "the refusal in the heartbeat",
        lambda: any("4" in beat.says["refused"] for beat in served.database.servers(prediction_server.MODEL)),
    )
    # One byte of the next champion is flipped after its gates: the server keeps its version and reports it as stale.
    registration = prediction_server.served_version(served, seed=10)
    flip_a_byte(
        served.settings.model_home(prediction_server.MODEL) / "candidates" / registration.candidate / "model.skops"
    )
    prediction_server.promote(served, registration)
    facts = wait_until("the mark", lambda: "does not match" in troubled.facts["why_stale"] and troubled.facts)
    assert "model.skops does not match its sha256" in facts["why_stale"]
    wait_until("the header", lambda: troubled.ask().headers.get("ml-platform-stale") == "true")
    assert (troubled.ask().status, troubled.ask().version) == (200, STABLE)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
