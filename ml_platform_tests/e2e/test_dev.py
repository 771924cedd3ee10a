"""`ml-platform dev` with its real daemon and servers, and a real browser in front of them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ml_platform import demo
from ml_platform.database import Database
from ml_platform.defs.models.churn import churn

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
CHROMIUM = shutil.which("chromium")
# The picture that the README shows; written here so that a test run leaves the checkout clean.
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", ROOT / "var" / "screenshots"))

pytestmark = pytest.mark.e2e


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 150) -> Any:
    """Ask until the answer is true; fail with the name of what did not come."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.2)
    pytest.fail(f"{what} did not come within {seconds} s")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - loopback
            return bool(response.status == 200)
    except OSError:
        return False


class Servers:
    """`ml-platform dev` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        (folder / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
        self.folder = folder
        self.landing = folder / "var" / "landing" / "churn"
        self.landing.mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, "DAGSTER_HOME": str(folder), "ML_PLATFORM_HOME": str(folder / "var")}
        self.dagster, self.mlflow = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
        ports = ["--port", self.dagster.rpartition(":")[2], "--mlflow-port", self.mlflow.rpartition(":")[2]]
        self.database = Database(f"sqlite:///{folder}/var/platform.db")
        self.log = folder / "servers.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(BIN / "ml-platform"), "dev", *ports], env=self.environment, stdout=log, stderr=log
            )

    def answers_or_ended(self, url: str) -> bool:
        return self.process.poll() is not None or answers(url)

    def champion(self) -> int | None:
        entry = self.database.champion("churn")
        return entry.version if entry else None

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    started = Servers(tmp_path_factory.mktemp("dev"))
    try:
        for url in (f"{started.dagster}/server_info", f"{started.mlflow}/health"):
            wait_for(url, partial(started.answers_or_ended, url))
        assert started.process.poll() is None, started.log.read_text()[-3_000:]
        yield started
    finally:
        if started.process.poll() is None:
            started.stop()


def test_files_dropped_while_it_runs_lead_to_a_champion_without_a_hand(servers: Servers) -> None:
    for name, data in demo.exports().items():
        temporary = servers.landing / f".{name}"
        temporary.write_bytes(data)
        temporary.rename(servers.landing / name)

    wait_for("a champion", servers.champion)

    (entry,) = servers.database.history("churn")
    published = [row["name"] for row in servers.database.arrival_outcomes("churn") if row["outcome"] == "published"]
    assert sorted(published) == sorted(demo.exports())
    assert (entry.version, entry.reason) == (1, "arrival")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: apt-get install chromium (.ci/run does)")
def test_a_person_materialises_in_the_browser_and_sees_the_gates_green(servers: Servers) -> None:
    from playwright.sync_api import expect, sync_playwright

    wait_for("a champion to stand on", servers.champion)
    before = servers.champion() or 0
    group = f"{servers.dagster}/locations/ml_platform/asset-groups/churn/lineage"
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": 1900, "height": 640})
        page.goto(group)
        page.get_by_role("button", name="Materialize all").click(timeout=60_000)
        wait_for("the champion that was asked for by hand", lambda: (servers.champion() or 0) > before)
        for checks_of_an_asset in ("5 / 5 Passed", "6 / 6 Passed", "1 / 1 Passed"):
            expect(page.get_by_text(checks_of_an_asset)).to_have_count(1, timeout=60_000)
        page.screenshot(path=SCREENSHOTS / "graph.png")
        page.goto(f"{servers.dagster}/assets/churn/trained_model?view=checks")
        for gate in churn.conditions:
            expect(page.get_by_text(gate, exact=True).first).to_be_visible(timeout=60_000)
        expect(page.get_by_text("Succeeded", exact=True)).to_have_count(len(churn.conditions))
        expect(page.get_by_text("auc_roc >= 0.8, on rows the model has not seen")).to_be_visible(timeout=60_000)
        page.screenshot(path=SCREENSHOTS / "gates.png")
        browser.close()


def test_stopping_it_stops_everything_that_it_started(servers: Servers) -> None:
    assert servers.stop() == 0
    for url in (f"{servers.dagster}/server_info", f"{servers.mlflow}/health"):
        assert not answers(url)
