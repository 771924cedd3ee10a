"""Crashes, races and short cuts between the stages."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_platform import workflows
from ml_platform.errors import DatasetError, EvidenceError, LandingZoneError
from ml_platform.records import BatchResult, Candidate, LedgerEntry, Outcome
from ml_platform.stages import datasets
from ml_platform.workflows import Platform
from ml_platform_tests import fakes

SPEC = fakes.visits_spec()


class ProcessDiedError(Exception):
    """A process that died at this very call."""


def publish(platform: Platform) -> list[BatchResult]:
    keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, "visits")]
    workflows.keep_raw_batches(platform, "visits", keys)
    return workflows.publish_batches(platform, SPEC, keys)


def train_and_judge(platform: Platform) -> Candidate:
    workflows.pin_dataset(platform, SPEC)
    candidate = workflows.train_candidate(platform, SPEC, reason="schedule")
    workflows.judge_candidate(platform, SPEC, candidate)
    return platform.database.candidate(candidate.id)


def promote(platform: Platform, candidate: Candidate) -> LedgerEntry:
    workflows.register_candidate(platform, SPEC, candidate)
    _, problem = workflows.stage_version(platform, candidate)
    assert problem is None
    return workflows.promote_version(platform, SPEC, candidate, reason="schedule", actor="test")


def die(*_: Any) -> None:
    raise ProcessDiedError


def test_a_good_file_goes_all_the_way_to_champion(platform: Platform) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))

    assert [result.outcome for result in publish(platform)] == [Outcome.PUBLISHED]
    entry = promote(platform, train_and_judge(platform))

    assert entry.version == platform.registry.alias("visits", "champion") == 1
    assert platform.database.champion("visits") == entry
    assert platform.new_rows("visits") == 0


def test_a_dataset_with_problems_is_not_trained_on_whoever_asks(platform: Platform) -> None:
    rows = fakes.visits(600)
    fakes.drop(platform, "leak.parquet", rows.assign(pages=(rows["bought"] == "yes").astype("int64")))
    publish(platform)
    report = workflows.pin_dataset(platform, SPEC)

    with pytest.raises(EvidenceError, match="a single feature gives the label away: pages"):
        workflows.train_candidate(platform, SPEC, reason="schedule")

    assert set(report.problems) == {"leakage"}
    assert platform.database.newest_candidate("visits") is None


@pytest.mark.fault("P2")
def test_the_alias_follows_the_ledger_after_a_crash_between_them(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    publish(platform)
    promote(platform, train_and_judge(platform))
    fakes.drop(platform, "tuesday.parquet", fakes.visits(100, first=1_000))
    publish(platform)
    second = train_and_judge(platform)
    workflows.register_candidate(platform, SPEC, second)
    workflows.stage_version(platform, second)

    with monkeypatch.context() as died:
        died.setattr("ml_platform.workflows.promotion.follow_ledger", die)
        with pytest.raises(ProcessDiedError):
            workflows.promote_version(platform, SPEC, second, reason="schedule", actor="test")
    between = platform.registry.alias("visits", "champion")
    fakes.drop(platform, "noise.parquet", fakes.visits(700, day=3, signal=0.0, seed=1))
    publish(platform)
    refused = train_and_judge(platform)

    champion = platform.database.champion("visits")
    assert champion is not None
    assert (between, champion.version) == (1, 2)
    assert platform.registry.alias("visits", "champion") == 2
    assert platform.database.verdict_on(refused.id).passed is False  # type: ignore[union-attr]


def test_a_candidate_whose_run_died_is_trained_again(platform: Platform) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    publish(platform)
    workflows.pin_dataset(platform, SPEC)

    workflows.train_candidate(platform, SPEC, reason="schedule")
    never_judged = platform.new_rows("visits")
    train_and_judge(platform)
    never_promoted = platform.new_rows("visits")
    promote(platform, train_and_judge(platform))

    assert (never_judged, never_promoted, platform.new_rows("visits")) == (600, 600, 0)


def test_a_refused_candidate_is_settled(platform: Platform) -> None:
    fakes.drop(platform, "noise.parquet", fakes.visits(600, signal=0.0))
    publish(platform)

    train_and_judge(platform)

    assert platform.new_rows("visits") == 0
    assert [model["last_run"]["state"] for model in workflows.status(platform)] == ["refused"]


@pytest.mark.parametrize("bad_rows", [0, 3])
def test_a_process_that_died_behind_its_commit_has_published_once(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, bad_rows: int
) -> None:
    rows = fakes.visits(100)
    rows.loc[: bad_rows - 1, "plan"] = "none such"
    fakes.drop(platform, "monday.parquet", rows)

    with monkeypatch.context() as died:
        died.setattr("ml_platform.workflows.ingestion._quarantine", die)
        with pytest.raises(ProcessDiedError):
            publish(platform)
    (result,) = publish(platform)

    assert (result.outcome, result.rows, result.quarantined_rows) == (Outcome.PUBLISHED, 100, bad_rows)
    assert datasets.pin(platform.rows("visits"), SPEC)[0].rows == 100 - bad_rows
    kept = datasets.published(platform.quarantine("visits"), result.sha256)
    assert (kept is not None) == (bad_rows > 0)


def test_rows_are_held_against_what_another_process_publishes_meanwhile(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.drop(platform, "a.parquet", fakes.visits(100))
    fakes.drop(platform, "b.parquet", fakes.visits(100).assign(pages=1))
    keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, "visits")]
    first, second = workflows.keep_raw_batches(platform, "visits", sorted(keys))[0]
    read = datasets.what_is_published

    def read_and_be_overtaken(*arguments: Any) -> datasets.Published:
        found = read(*arguments)
        monkeypatch.setattr(datasets, "what_is_published", read)
        workflows.publish_batches(platform, SPEC, [second.arrival.key])
        return found

    monkeypatch.setattr(datasets, "what_is_published", read_and_be_overtaken)
    (result,) = workflows.publish_batches(platform, SPEC, [first.arrival.key])

    assert result.outcome is Outcome.QUARANTINED
    assert "visitor must be newer than what is published" in result.reason
    assert datasets.pin(platform.rows("visits"), SPEC)[0].rows == 100


def test_what_was_handled_before_is_reported_again(platform: Platform) -> None:
    fakes.drop(platform, "bad.parquet", fakes.visits(100).drop(columns="pages"))
    (first,) = publish(platform)

    (again,) = workflows.publish_batches(platform, SPEC, [first.arrival.key])

    assert again == first
    assert again.rules["schema"]


def test_a_contract_that_was_changed_is_named(platform: Platform) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(100))
    publish(platform)
    table = platform.rows("visits")
    fewer = datasets.what_is_published(table, SPEC)
    narrower = datasets.pin(table, SPEC)[1].drop(columns="plan")

    import pyarrow as pa

    data = pa.Table.from_pandas(narrower, preserve_index=False)
    with pytest.raises(DatasetError, match=r"made under another contract: it has \['plan'\] more and lacks nothing"):
        datasets.publish(table, data, arrival="k", sha256="f" * 64, notes={}, read_at=fewer.version)


def test_a_waiting_file_is_not_replaced(platform: Platform) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(100))

    with pytest.raises(LandingZoneError, match=r"'monday.parquet' with other bytes waits"):
        workflows.land_files(platform, "visits", {"sunday.parquet": b"new", "monday.parquet": b"other"})

    assert [arrival.name for arrival in workflows.waiting_arrivals(platform, "visits")] == ["monday.parquet"]


@pytest.mark.fault("D3")
def test_a_handled_files_name_can_be_used_again(platform: Platform) -> None:
    path = fakes.drop(platform, "export.parquet", fakes.visits(100))
    publish(platform)
    later = fakes.drop(platform, "later.parquet", fakes.visits(100, day=2))
    data = later.read_bytes()
    later.unlink()

    landed = workflows.land_files(platform, "visits", {path.name: data})

    assert landed == ["export.parquet"]
    assert [result.outcome for result in publish(platform)] == [Outcome.PUBLISHED]
    assert len(platform.database.arrival_outcomes("visits")) == 2


@pytest.mark.fault("D1")
def test_bytes_that_are_not_those_of_their_manifest_are_quarantined_with_the_reason(platform: Platform) -> None:
    path = fakes.drop(platform, "monday.parquet", fakes.visits(100))
    manifest = {"size": path.stat().st_size, "sha256": "f" * 64}
    Path(f"{path}.manifest.json").write_text(json.dumps(manifest))

    (result,) = publish(platform)
    again = workflows.publish_batches(platform, SPEC, [result.arrival.key])

    assert result.outcome is Outcome.QUARANTINED
    assert result.reason == (
        f"it was changed or damaged on its way: its manifest names sha256 {'f' * 64}, "
        f"and its bytes have {result.sha256}"
    )
    assert again == [result]
    assert datasets.published(platform.rows("visits"), result.sha256) is None
    assert workflows.waiting_arrivals(platform, "visits") == []


def test_a_landing_zone_that_refuses_a_file_is_said_and_does_not_count_as_gone(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(100))
    (arrival,) = workflows.waiting_arrivals(platform, "visits")

    def refuse(*_: Any) -> str:
        raise LandingZoneError("The landing zone refuses.")

    monkeypatch.setattr(platform.zone, "copy", refuse)
    with pytest.raises(LandingZoneError, match="refuses"):
        workflows.keep_raw_batches(platform, "visits", [arrival.key])


def test_files_that_can_be_no_arrival_are_named(platform: Platform) -> None:
    folder = fakes.landing(platform) / "visits"
    for name in ("my file.csv", "data.xlsx", ".hidden.csv", "good.csv"):
        (folder / name).write_text("x")

    assert workflows.ignored_files(platform, "visits") == ["data.xlsx", "my file.csv"]


def test_a_run_finds_the_candidate_that_its_chain_trained(platform: Platform) -> None:
    mine = fakes.candidate("mine", run_id="run-1")
    for candidate in (mine, fakes.candidate("newer", run_id="run-2")):
        platform.database.record_candidate(candidate)

    found = workflows.current_candidate(platform, "visits", "run-1")

    assert found == replace(mine, trained_at=found.trained_at)
    assert workflows.current_candidate(platform, "visits", "run-3").id == "newer"


@pytest.mark.fault("P3")
def test_bytes_that_were_kept_are_published_though_their_file_is_gone(platform: Platform) -> None:
    path = fakes.drop(platform, "monday.parquet", fakes.visits(100))
    fakes.drop(platform, "tuesday.parquet", fakes.visits(100, first=1_000))
    (monday, _) = workflows.waiting_arrivals(platform, "visits")
    workflows.keep_raw_batches(platform, "visits", [monday.key])
    path.unlink()

    look = workflows.look_for_arrivals(platform, "visits", at_rest=True, limit=1)

    assert [arrival.name for arrival in look.complete] == ["monday.parquet"]
    assert sorted(result.arrival.name for result in publish(platform)) == ["monday.parquet", "tuesday.parquet"]
    assert platform.new_rows("visits") == 200
    assert workflows.waiting_arrivals(platform, "visits") == []


@pytest.mark.fault("D1")
def test_the_status_names_the_files_that_are_stuck(platform: Platform) -> None:
    fakes.drop(platform, "good.parquet", fakes.visits(100))
    publish(platform)
    path = fakes.drop(platform, "monday.csv", fakes.visits(100))
    path.with_name("monday.csv.manifest.json").write_text("{")
    fresh = workflows.status(platform)[0]["stuck"]
    os.utime(path, (0, 0))

    assert fresh == []
    assert workflows.status(platform)[0]["stuck"] == ["monday.csv"]
