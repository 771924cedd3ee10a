"""Show and release quarantined rows."""

from typing import Any

import pytest

from ml_platform.data import quarantine
from ml_platform.data.arrivals import Manifest
from ml_platform.data.validation import validate
from ml_platform.errors import ConflictError, DataError
from ml_platform.governance import forget
from ml_platform.platform import Platform, exclusive_data_lock
from ml_platform.records.data import Outcome
from ml_platform.storage import delta_table
from ml_platform_tests.support import fakes
from ml_platform_tests.support.simulated_death import ProcessDiedError, die
from ml_platform_tests.support.steps import count_pinned_rows, publish

SPEC = fakes.visits_spec()
FIXED = fakes.visits_spec(contract=fakes.VisitsWithTrials)


def drop_with_trials(platform: Platform, name: str, bad: int, n: int = 100, **changes: Any) -> None:
    rows = fakes.visits(n, **changes)
    rows.loc[: bad - 1, "plan"] = "trial"
    fakes.drop(platform, name, rows)


def test_show_describes_quarantined_rows(platform: Platform) -> None:
    drop_with_trials(platform, "whole.parquet", 60)
    drop_with_trials(platform, "part.csv", 3, first=500)
    (fakes.landing(platform) / "visits" / "noise.parquet").write_bytes(b"noise")
    fakes.drop(platform, "good.parquet", fakes.visits(50, first=900))
    publish(platform)

    described = {arrival["name"]: arrival for arrival in quarantine.show(platform, "visits")}

    assert set(described) == {"whole.parquet", "part.csv", "noise.parquet"}
    (violation,) = described["whole.parquet"]["violations"]
    assert (violation["check"], violation["column"], violation["count"]) == ("values", "plan", 60)
    assert violation["examples"] == [{"row": row, "value": "trial"} for row in range(5)]
    assert described["part.csv"]["quarantined_rows"] == 3
    assert described["noise.parquet"]["violations"][0]["examples"][0]["row"] is None


def test_show_has_at_most_ten_rules(platform: Platform) -> None:
    rows = fakes.visits(100).drop(columns="plan").assign(**{f"more_{n}": 1 for n in range(12)})
    fakes.drop(platform, "wide.parquet", rows)
    publish(platform)

    (arrival,) = quarantine.show(platform, "visits")

    assert (len(arrival["violations"]), arrival["more_rules"]) == (10, 3)


def test_release_fixed_contract_publishes_whole_batch(platform: Platform) -> None:
    drop_with_trials(platform, "monday.parquet", 60)
    publish(platform)

    (still,) = quarantine.release(platform, SPEC, [], actor="ann")
    (released,) = quarantine.release(platform, FIXED, ["monday.parquet"], actor="ann")
    (again,) = quarantine.release(platform, FIXED, ["monday.parquet"], actor="bob")

    assert (still["outcome"], still["released_rows"], still["stays"]) == ("quarantined", 0, True)
    assert (released["outcome"], released["released_rows"], released["stays"]) == ("published", 100, False)
    assert (again["released_rows"], again["stays"]) == (0, False)
    assert count_pinned_rows(platform) == platform.new_rows("visits") == 100
    assert quarantine.show(platform, "visits") == []
    (record,) = platform.database.releases("visits", released["arrival"])
    assert (record.actor, record.rows, record.number) == ("ann", 100, 1)


def test_release_partly_published_batch_publishes_passing_rows(platform: Platform) -> None:
    rows = fakes.visits(100)
    rows.loc[:2, "plan"] = "trial"
    rows.loc[3, "pages"] = -1
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    # Newer rows of published entities must not make the published rows of the arrival violations.
    fakes.drop(platform, "tuesday.parquet", fakes.visits(90, first=11, day=2))
    publish(platform)
    before = platform.database.newest_publication("visits")

    (released,) = quarantine.release(platform, FIXED, [], actor="ann")

    assert (released["released_rows"], released["quarantined_rows"], released["stays"]) == (3, 1, True)
    assert count_pinned_rows(platform) == 99
    assert platform.database.rows_published_after("visits", before) == 3
    assert platform.database.rows_published_after("visits", None) == 189
    (remaining,) = quarantine.show(platform, "visits")
    assert [(violation["column"], violation["examples"]) for violation in remaining["violations"]] == [
        ("pages", [{"row": 3, "value": "-1"}])
    ]


def test_release_keeps_superseded_violations(platform: Platform) -> None:
    drop_with_trials(platform, "monday.parquet", 3)
    (result,) = publish(platform)

    quarantine.release(platform, FIXED, [], actor="ann")

    superseded = delta_table.read_violations(platform.quarantine("visits"), [result.arrival.key], 0)
    assert [row["value"] for row in superseded] == ["trial"] * 3


def test_release_rows_unlike_published_stay(platform: Platform) -> None:
    drop_with_trials(platform, "monday.parquet", 2)
    publish(platform)
    fakes.drop(platform, "tuesday.parquet", fakes.visits(1).assign(plan="paid"))
    publish(platform)

    (released,) = quarantine.release(platform, FIXED, [], actor="ann")

    assert (released["released_rows"], released["quarantined_rows"]) == (1, 1)
    (remaining,) = quarantine.show(platform, "visits")
    assert remaining["rules"] == {"keys": {"as published": 1}}


@pytest.mark.parametrize("bad", [3, 60])
@pytest.mark.parametrize("step", ["store_violations", "record_release"])
def test_release_after_crash_publishes_once(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, bad: int, step: str
) -> None:
    rows = fakes.visits(100)
    rows.loc[: bad - 1, "plan"] = "trial"
    rows.loc[0, "pages"] = -1
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)

    with monkeypatch.context() as died:
        died.setattr(quarantine if step == "store_violations" else type(platform.database), step, die)
        with pytest.raises(ProcessDiedError):
            quarantine.release(platform, FIXED, [], actor="ann")
    (released,) = quarantine.release(platform, FIXED, [], actor="ann")

    assert (released["outcome"], released["quarantined_rows"]) == ("published", 1)
    assert count_pinned_rows(platform) == platform.new_rows("visits") == 99


def test_release_equal_bytes_publishes_once(platform: Platform) -> None:
    drop_with_trials(platform, "monday.parquet", 60)
    drop_with_trials(platform, "twin.parquet", 60)
    publish(platform)

    released = quarantine.release(platform, FIXED, [], actor="ann")

    assert sorted(row["outcome"] for row in released) == [Outcome.DUPLICATE, Outcome.PUBLISHED]
    assert count_pinned_rows(platform) == 100


def test_release_unknown_arrival_is_an_error(platform: Platform) -> None:
    drop_with_trials(platform, "monday.parquet", 60)
    publish(platform)

    with pytest.raises(DataError, match=r"is called 'none\.parquet'"):
        quarantine.release(platform, FIXED, ["monday.parquet", "none.parquet"], actor="ann")

    assert platform.database.newest_publication("visits") is None


def test_release_validates_rows_beyond_named_ones(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "FINDINGS", 2)
    rows = fakes.visits(200)
    rows.loc[:8, "plan"] = "trial"
    rows.loc[8, "pages"] = -1
    rows.loc[9] = rows.loc[10]  # repeated: one of the two is published
    rows.loc[9, "pages"] = 999
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)

    (released,) = quarantine.release(platform, FIXED, [], actor="ann")

    assert (released["released_rows"], released["quarantined_rows"]) == (8, 2)
    assert count_pinned_rows(platform) == platform.new_rows("visits") == 198


@pytest.mark.fault("D6")
def test_release_bytes_contradicting_manifest_stay(platform: Platform) -> None:
    path = fakes.drop(platform, "monday.parquet", fakes.visits(100))
    path.with_name("monday.parquet.manifest.json").write_bytes(Manifest(path.stat().st_size, "0" * 64).data)
    publish(platform)

    (released,) = quarantine.release(platform, SPEC, [], actor="ann")

    assert (released["outcome"], released["released_rows"], released["stays"]) == ("quarantined", 0, True)
    assert platform.database.newest_publication("visits") is None


def test_release_after_crash_survives_contract_change(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    drop_with_trials(platform, "monday.parquet", 60)
    publish(platform)

    with monkeypatch.context() as died:
        died.setattr(type(platform.database), "record_release", die)
        with pytest.raises(ProcessDiedError):
            quarantine.release(platform, FIXED, [], actor="ann")
    (released,) = quarantine.release(platform, SPEC, [], actor="ann")

    assert (released["outcome"], released["released_rows"], released["quarantined_rows"]) == ("published", 100, 0)
    assert count_pinned_rows(platform) == platform.new_rows("visits") == 100


@pytest.mark.slow
def test_release_during_other_correction_is_a_conflict(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "SECONDS_TO_WAIT", 0.05)
    drop_with_trials(platform, "monday.parquet", 60)
    publish(platform)

    with exclusive_data_lock(platform, "visits"), exclusive_data_lock(platform, "others"):
        with pytest.raises(ConflictError, match="Another release, erasure or compaction"):
            quarantine.release(platform, FIXED, [], actor="ann")
        with pytest.raises(ConflictError, match="Another release, erasure or compaction"):
            forget.forget(platform, SPEC, "1", reason="request 17", actor="ann")

    assert platform.database.tombstones("visits") == []
    assert quarantine.release(platform, FIXED, [], actor="ann")[0]["released_rows"] == 100
