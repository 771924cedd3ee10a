"""`ml-platform dev` with its real daemon and servers, a folder and a bucket to drop files in, and a real browser."""

import io
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ml_platform.devtools import demo_data
from ml_platform.models.churn import churn
from ml_platform.settings import PROJECT_ROOT
from ml_platform_tests.support import dev_servers as files
from ml_platform_tests.support.dev_servers import Bad, Bucket, DropZone, Folder, Servers, answers, wait_for

CHROMIUM = shutil.which("chromium")
# Pictures as in the README; written here so that a test run leaves the checkout clean.
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", PROJECT_ROOT / "var" / "screenshots"))

# Two processes that run tests of this module may have a stack each, on two cores.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on PATH: apt-get install chromium (.ci/run does)"
)


@cache
def good_files() -> dict[str, bytes]:
    """Return the shipped dataset in five files, and a file of fifty more customers that has a manifest."""
    exports = demo_data.exports()
    few = pd.read_parquet(io.BytesIO(next(iter(exports.values())))).head(50)
    return {**exports, "named.parquet": files.parquet(few.assign(customer=range(5_001, 5_051)))}


@cache
def bad_files() -> dict[str, Bad]:
    """Return a file for each kind of problem."""
    rows = pd.read_parquet(io.BytesIO(next(iter(good_files().values())))).head(100)
    others = rows.assign(customer=rows["customer"] + 10_000)
    return {
        "damaged.parquet": Bad(
            files.parquet(others), "it was changed or damaged on its way: its manifest names sha256"
        ),
        "cut.parquet": files.truncated(others),
        "negative.parquet": files.out_of_range(others),
        "no-state.parquet": files.without_a_column(others),
    }


def drop_all(zone: DropZone) -> None:
    """Drop every file and two manifests: a correct one, and one of a file that was damaged since."""
    good, bad = good_files(), bad_files()
    damaged = bad["damaged.parquet"].data
    zone.drop("named.parquet.manifest.json", files.manifest(good["named.parquet"]))
    zone.drop("damaged.parquet.manifest.json", files.manifest(damaged[:-1] + b"?"))
    for name, data in {**good, **{name: file.data for name, file in bad.items()}}.items():
        zone.drop(name, data)


@pytest.fixture(scope="module", params=["folder", pytest.param("s3", marks=pytest.mark.soak)])
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The stack with every file dropped, once for each kind of landing zone in each process that runs tests of it."""
    folder = tmp_path_factory.mktemp(request.param)
    zone: DropZone = Folder(folder / "var" / "landing")
    if request.param == "s3":
        zone = Bucket(request.getfixturevalue("seaweedfs"), uuid.uuid4().hex)
    started = Servers(folder, zone)
    try:
        for url in (f"{started.dagster}/server_info", f"{started.mlflow}/health"):
            wait_for(url, partial(started.answers_or_ended, url))
        assert started.process.poll() is None, started.log.read_text()[-3_000:]
        drop_all(zone)
        yield started
    finally:
        if started.process.poll() is None:
            started.stop()


def wait_for_outcomes(servers: Servers) -> list[dict[str, Any]]:
    """Wait until every dropped file has an outcome, and return the outcomes."""
    wait_for("every outcome", lambda: len(servers.outcomes()) >= len(good_files()) + len(bad_files()))
    return servers.outcomes()


@pytest.mark.fault("D1", "D5", "D7")
def test_dropped_files_are_published_or_quarantined_once(servers: Servers) -> None:
    good, bad = good_files(), bad_files()

    wait_for_outcomes(servers)

    outcomes = {row["name"]: row for row in servers.outcomes()}
    assert sorted(row["name"] for row in servers.outcomes()) == sorted([*good, *bad])
    assert {name for name, row in outcomes.items() if row["outcome"] == "published"} == set(good)
    assert sorted(servers.rows("rows")["customer"]) == list(range(1, 5_051))
    for name, file in bad.items():
        assert outcomes[name]["outcome"] == "quarantined"
        assert outcomes[name]["reason"].startswith(file.reason)
    named = servers.rows("quarantine")["_arrival"].value_counts()
    assert named.to_dict() == {outcomes[name]["key"]: file.named for name, file in bad.items()}


@pytest.mark.parametrize("servers", ["folder"], indirect=True)
def test_published_files_lead_to_a_champion(servers: Servers) -> None:
    wait_for("a champion", servers.champion)

    first = servers.database.history("churn")[0]
    assert (first.version, first.reason) == (1, "arrival")


@contextmanager
def browser(height: int) -> Iterator[Any]:
    """Open a page in a real browser."""
    from playwright.sync_api import sync_playwright

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = opened.new_page(viewport={"width": 1900, "height": height})
        page.set_default_timeout(60_000)
        yield page
        opened.close()


@in_a_browser
def test_ui_shows_outcome_and_reason_of_files(servers: Servers) -> None:
    from playwright.sync_api import expect

    outcomes = wait_for_outcomes(servers)
    asset = f"{servers.dagster}/assets/churn/validated_batches"
    with browser(height=900) as page:
        for name in ("customers-2024-01-01-1.parquet", "negative.parquet"):
            (row,) = [row for row in outcomes if row["name"] == name]
            page.goto(f"{asset}?view=partitions&partition={row['key']}")
            for shown in (name, row["outcome"], row["reason"]):
                expect(page.get_by_role("cell", name=shown, exact=True)).to_be_in_viewport(timeout=60_000)
            page.screenshot(path=SCREENSHOTS / f"{row['outcome']}.png")
        page.goto(f"{asset}?view=checks&checkDetail=schema")
        expect(page.get_by_role("cell", name="column 'state' is missing", exact=True)).to_be_in_viewport(timeout=60_000)
        expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
        page.screenshot(path=SCREENSHOTS / "failed-check.png")


@in_a_browser
@pytest.mark.parametrize("servers", ["folder"], indirect=True)
def test_user_materialises_and_sees_passed_gates(servers: Servers) -> None:
    from playwright.sync_api import expect

    wait_for("a champion", servers.champion)
    before = servers.champion() or 0
    with browser(height=640) as page:
        page.goto(f"{servers.dagster}/locations/ml_platform/asset-groups/churn/lineage")
        page.get_by_role("button", name="Materialize all").click(timeout=60_000)
        wait_for("the champion of the manual run", lambda: (servers.champion() or 0) > before)
        for checks_of_an_asset in ("5 / 5 Passed", "7 / 7 Passed", "1 / 1 Passed"):
            expect(page.get_by_text(checks_of_an_asset)).to_have_count(1, timeout=60_000)
        page.screenshot(path=SCREENSHOTS / "graph.png")
        page.goto(f"{servers.dagster}/assets/churn/trained_model?view=checks")
        for gate in churn.conditions:
            expect(page.get_by_text(gate, exact=True).first).to_be_visible(timeout=60_000)
        reported = 1  # the check of the fast path
        expect(page.get_by_text("Succeeded", exact=True)).to_have_count(len(churn.conditions) + reported)
        expect(page.get_by_text("auc_roc >= 0.8, on rows the model has not seen")).to_be_visible(timeout=60_000)
        page.screenshot(path=SCREENSHOTS / "gates.png")


def test_stop_ends_every_server(servers: Servers) -> None:
    assert servers.stop() == 0
    for url in (f"{servers.dagster}/server_info", f"{servers.mlflow}/health"):
        assert not answers(url)
