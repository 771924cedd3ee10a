"""Crashes, races and shortcuts between the stages of a model's lifecycle."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_platform.data import datasets
from ml_platform.data.ingest import publish_batches, store_raw_batches
from ml_platform.data.landing import ignored_files, land_files, scan_landing_zone, waiting_arrivals
from ml_platform.data.pin import pin_dataset
from ml_platform.errors import DatasetError, EvidenceError, LandingZoneError
from ml_platform.evaluation.judge import judge_candidate
from ml_platform.governance.status import status
from ml_platform.platform import Platform
from ml_platform.records.data import Outcome
from ml_platform.records.ledger import LedgerEntry
from ml_platform.records.verdict import Candidate
from ml_platform.release.ledger.follow import sync_alias
from ml_platform.release.promote import promote_version
from ml_platform.release.register import register_candidate, stage_version
from ml_platform.storage import delta_table
from ml_platform.training.train import current_candidate, train_candidate
from ml_platform_tests.support import fakes
from ml_platform_tests.support.simulated_death import ProcessDiedError, die
from ml_platform_tests.support.steps import publish

SPEC = fakes.visits_spec()


def train_and_judge(platform: Platform) -> Candidate:
    pin_dataset(platform, SPEC)
    candidate = train_candidate(platform, SPEC, reason="schedule")
    judge_candidate(platform, SPEC, candidate)
    sync_alias(platform, SPEC.name)  # as the step of the gates does
    return platform.database.candidate(candidate.id)


def promote(platform: Platform, candidate: Candidate) -> LedgerEntry:
    register_candidate(platform, SPEC, candidate)
    _, problem = stage_version(platform, candidate)
    assert problem is None
    return promote_version(platform, SPEC, candidate, reason="schedule", actor="test")


def test_good_file_becomes_champion(platform: Platform) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))

    assert [result.outcome for result in publish(platform)] == [Outcome.PUBLISHED]
    entry = promote(platform, train_and_judge(platform))

    assert entry.version == platform.registry.alias("visits", "champion") == 1
    assert platform.database.champion("visits") == entry
    assert platform.new_rows("visits") == 0


def test_dataset_with_problems_is_not_trained_on(platform: Platform) -> None:
    rows = fakes.visits(600)
    fakes.drop(platform, "leak.parquet", rows.assign(pages=(rows["bought"] == "yes").astype("int64")))
    publish(platform)
    report = pin_dataset(platform, SPEC)

    with pytest.raises(EvidenceError, match="a single feature gives the label away: pages"):
        train_candidate(platform, SPEC, reason="schedule")

    assert set(report.problems) == {"leakage"}
    assert platform.database.newest_candidate("visits") is None


@pytest.mark.fault("P2")
def test_alias_follows_ledger_after_crash(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    publish(platform)
    promote(platform, train_and_judge(platform))
    fakes.drop(platform, "tuesday.parquet", fakes.visits(100, first=1_000))
    publish(platform)
    second = train_and_judge(platform)
    register_candidate(platform, SPEC, second)
    stage_version(platform, second)

    with monkeypatch.context() as patched:
        patched.setattr("ml_platform.release.promote.sync_registry", die)
        with pytest.raises(ProcessDiedError):
            promote_version(platform, SPEC, second, reason="schedule", actor="test")
    between = platform.registry.alias("visits", "champion")
    fakes.drop(platform, "noise.parquet", fakes.visits(700, day=3, signal=0.0, seed=1))
    publish(platform)
    refused = train_and_judge(platform)

    champion = platform.database.champion("visits")
    assert champion is not None
    assert (between, champion.version) == (1, 2)
    assert platform.registry.alias("visits", "champion") == 2
    assert platform.database.verdict_on(refused.id).passed is False  # type: ignore[union-attr]


def test_candidate_of_killed_run_is_trained_again(platform: Platform) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    publish(platform)
    pin_dataset(platform, SPEC)

    train_candidate(platform, SPEC, reason="schedule")
    never_judged = platform.new_rows("visits")
    train_and_judge(platform)
    never_promoted = platform.new_rows("visits")
    promote(platform, train_and_judge(platform))

    assert (never_judged, never_promoted, platform.new_rows("visits")) == (600, 600, 0)


def test_refused_candidate_is_settled(platform: Platform) -> None:
    fakes.drop(platform, "noise.parquet", fakes.visits(600, signal=0.0))
    publish(platform)

    train_and_judge(platform)

    assert platform.new_rows("visits") == 0
    assert [model["last_run"]["state"] for model in status(platform)] == ["refused"]


@pytest.mark.parametrize("bad_rows", [0, 3])
def test_crash_after_commit_publishes_once(platform: Platform, monkeypatch: pytest.MonkeyPatch, bad_rows: int) -> None:
    rows = fakes.visits(100)
    rows.loc[: bad_rows - 1, "plan"] = "none such"
    fakes.drop(platform, "monday.parquet", rows)

    with monkeypatch.context() as patched:
        patched.setattr("ml_platform.data.ingest._quarantine", die)
        with pytest.raises(ProcessDiedError):
            publish(platform)
    (result,) = publish(platform)

    assert (result.outcome, result.rows, result.quarantined_rows) == (Outcome.PUBLISHED, 100, bad_rows)
    assert datasets.pin(platform.rows("visits"), SPEC)[0].rows == 100 - bad_rows
    quarantined = delta_table.published(platform.quarantine("visits"), result.sha256)
    assert (quarantined is not None) == (bad_rows > 0)


def test_rows_are_checked_against_concurrent_publication(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.drop(platform, "a.parquet", fakes.visits(100))
    fakes.drop(platform, "b.parquet", fakes.visits(100).assign(pages=1))
    keys = [arrival.key for arrival in waiting_arrivals(platform, "visits")]
    first, second = store_raw_batches(platform, "visits", sorted(keys))[0]
    read = delta_table.read_version

    def read_before_publication(table: Path) -> int:
        version = read(table)
        monkeypatch.setattr(delta_table, "read_version", read)
        publish_batches(platform, SPEC, [second.arrival.key])
        return version

    monkeypatch.setattr(delta_table, "read_version", read_before_publication)
    (result,) = publish_batches(platform, SPEC, [first.arrival.key])

    assert result.outcome is Outcome.QUARANTINED
    assert "visitor must have the values that are published for its time" in result.reason
    assert datasets.pin(platform.rows("visits"), SPEC)[0].rows == 100


def test_handled_file_is_reported_again(platform: Platform) -> None:
    fakes.drop(platform, "bad.parquet", fakes.visits(100).drop(columns="pages"))
    (first,) = publish(platform)

    (again,) = publish_batches(platform, SPEC, [first.arrival.key])

    assert again == first
    assert again.rules["schema"]


def test_changed_contract_is_named(platform: Platform) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(100))
    publish(platform)
    table = platform.rows("visits")
    fewer = datasets.read_published_state(table)
    narrower = datasets.pin(table, SPEC)[1].drop(columns="plan")

    import pyarrow as pa

    data = pa.Table.from_pandas(narrower, preserve_index=False)
    with pytest.raises(
        DatasetError,
        match=r"another contract: it has the extra columns \['plan'\] and lacks \[\]\. .* land exports that",
    ):
        delta_table.publish(table, data, arrival="k", sha256="f" * 64, notes={}, read_at=fewer.version)


def test_waiting_file_is_not_replaced(platform: Platform) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(100))

    with pytest.raises(LandingZoneError, match=r"'monday.parquet' with other bytes already waits"):
        land_files(platform, "visits", {"sunday.parquet": b"new", "monday.parquet": b"other"})

    assert [arrival.name for arrival in waiting_arrivals(platform, "visits")] == ["monday.parquet"]


@pytest.mark.fault("D3")
def test_name_of_handled_file_is_reusable(platform: Platform) -> None:
    path = fakes.drop(platform, "export.parquet", fakes.visits(100))
    publish(platform)
    later = fakes.drop(platform, "later.parquet", fakes.visits(100, day=2))
    data = later.read_bytes()
    later.unlink()

    landed = land_files(platform, "visits", {path.name: data})

    assert landed == ["export.parquet"]
    assert [result.outcome for result in publish(platform)] == [Outcome.PUBLISHED]
    assert len(platform.database.arrival_outcomes("visits")) == 2


@pytest.mark.fault("D1")
def test_bytes_differing_from_manifest_are_quarantined(platform: Platform) -> None:
    path = fakes.drop(platform, "monday.parquet", fakes.visits(100))
    manifest = {"size": path.stat().st_size, "sha256": "f" * 64}
    Path(f"{path}.manifest.json").write_text(json.dumps(manifest))

    (result,) = publish(platform)
    again = publish_batches(platform, SPEC, [result.arrival.key])

    assert result.outcome is Outcome.QUARANTINED
    assert result.reason == (
        f"it was changed or damaged on its way: its manifest names sha256 {'f' * 64}, "
        f"and its bytes have {result.sha256}"
    )
    assert again == [result]
    assert delta_table.published(platform.rows("visits"), result.sha256) is None
    assert waiting_arrivals(platform, "visits") == []


def test_refused_file_raises_and_is_not_gone(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(100))
    (arrival,) = waiting_arrivals(platform, "visits")

    def refuse(*_: Any) -> str:
        raise LandingZoneError("The landing zone refuses.")

    monkeypatch.setattr(platform.zone, "copy", refuse)
    with pytest.raises(LandingZoneError, match="refuses"):
        store_raw_batches(platform, "visits", [arrival.key])


def test_files_that_cannot_arrive_are_named(platform: Platform) -> None:
    folder = fakes.landing(platform) / "visits"
    for name in ("my file.csv", "data.xlsx", ".hidden.csv", "good.csv"):
        (folder / name).write_text("x")

    assert ignored_files(platform, "visits") == ["data.xlsx", "my file.csv"]


def test_run_finds_candidate_of_its_chain(platform: Platform) -> None:
    mine = fakes.candidate("mine", run_id="run-1")
    for candidate in (mine, fakes.candidate("newer", run_id="run-2")):
        platform.database.record_candidate(candidate)

    candidate = current_candidate(platform, "visits", "run-1")

    assert candidate == replace(mine, trained_at=candidate.trained_at)
    assert current_candidate(platform, "visits", "run-3").id == "newer"


@pytest.mark.fault("P3")
def test_stored_bytes_of_deleted_file_are_published(platform: Platform) -> None:
    path = fakes.drop(platform, "monday.parquet", fakes.visits(100))
    fakes.drop(platform, "tuesday.parquet", fakes.visits(100, first=1_000))
    (monday, _) = waiting_arrivals(platform, "visits")
    store_raw_batches(platform, "visits", [monday.key])
    path.unlink()

    scan = scan_landing_zone(platform, "visits", at_rest=True, limit=1)

    assert [arrival.name for arrival in scan.complete] == ["monday.parquet"]
    assert sorted(result.arrival.name for result in publish(platform)) == ["monday.parquet", "tuesday.parquet"]
    assert platform.new_rows("visits") == 200
    assert waiting_arrivals(platform, "visits") == []


@pytest.mark.fault("D1")
def test_status_names_stuck_files(platform: Platform) -> None:
    fakes.drop(platform, "good.parquet", fakes.visits(100))
    publish(platform)
    path = fakes.drop(platform, "monday.csv", fakes.visits(100))
    path.with_name("monday.csv.manifest.json").write_text("{")
    fresh = status(platform)[0]["stuck"]
    os.utime(path, (0, 0))

    assert fresh == []
    assert status(platform)[0]["stuck"] == ["monday.csv"]
