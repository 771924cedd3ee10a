"""The quarantine explained and released."""

from typing import Any

import pandera.pandas as pa
import pytest

from ml_platform import corrections, workflows
from ml_platform.errors import DataError
from ml_platform.model_spec import ModelSpec
from ml_platform.records import BatchResult, Outcome
from ml_platform.stages import datasets
from ml_platform.workflows import Platform
from ml_platform_tests import fakes

SPEC = fakes.visits_spec()


class Wider(fakes.Visits):
    """The contract after its author allowed a third plan."""

    plan: str = pa.Field(isin=["free", "paid", "trial"])


FIXED = fakes.visits_spec(table=Wider)


class ProcessDiedError(Exception):
    """A process that died at this very call."""


def die(*_: Any, **__: Any) -> None:
    raise ProcessDiedError


def publish(platform: Platform, spec: ModelSpec = SPEC) -> list[BatchResult]:
    keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, "visits")]
    workflows.keep_raw_batches(platform, "visits", keys)
    return workflows.publish_batches(platform, spec, keys)


def drop_with_trials(platform: Platform, name: str, bad: int, n: int = 100, **changes: Any) -> None:
    rows = fakes.visits(n, **changes)
    rows.loc[: bad - 1, "plan"] = "trial"
    fakes.drop(platform, name, rows)


def pinned_rows(platform: Platform) -> int:
    return datasets.pin(platform.rows("visits"), SPEC)[0].rows


def test_the_quarantine_is_explained_from_its_table(platform: Platform) -> None:
    drop_with_trials(platform, "whole.parquet", 60)
    drop_with_trials(platform, "part.csv", 3, first=500)
    (platform.settings.landing / "visits" / "noise.parquet").write_bytes(b"noise")
    fakes.drop(platform, "good.parquet", fakes.visits(50, first=900))
    publish(platform)

    found = {arrival["name"]: arrival for arrival in corrections.show(platform, "visits")}

    assert set(found) == {"whole.parquet", "part.csv", "noise.parquet"}
    (finding,) = found["whole.parquet"]["findings"]
    assert (finding["check"], finding["column"], finding["count"]) == ("values", "plan", 60)
    assert finding["examples"] == [{"row": row, "value": "trial"} for row in range(5)]
    assert found["part.csv"]["quarantined_rows"] == 3
    assert found["noise.parquet"]["findings"][0]["examples"][0]["row"] is None


def test_no_more_than_ten_rules_are_shown(platform: Platform) -> None:
    rows = fakes.visits(100).drop(columns="plan").assign(**{f"more_{n}": 1 for n in range(12)})
    fakes.drop(platform, "wide.parquet", rows)
    publish(platform)

    (arrival,) = corrections.show(platform, "visits")

    assert (len(arrival["findings"]), arrival["more_rules"]) == (10, 3)


def test_a_whole_batch_is_released_once_the_contract_is_fixed(platform: Platform) -> None:
    drop_with_trials(platform, "monday.parquet", 60)
    publish(platform)

    (still,) = corrections.release(platform, SPEC, [], actor="ann")
    (released,) = corrections.release(platform, FIXED, ["monday.parquet"], actor="ann")
    (again,) = corrections.release(platform, FIXED, ["monday.parquet"], actor="bob")

    assert (still["outcome"], still["released_rows"], still["stays"]) == ("quarantined", 0, True)
    assert (released["outcome"], released["released_rows"], released["stays"]) == ("published", 100, False)
    assert (again["released_rows"], again["stays"]) == (0, False)
    assert pinned_rows(platform) == platform.new_rows("visits") == 100
    assert corrections.show(platform, "visits") == []
    (record,) = platform.database.releases("visits", released["arrival"])
    assert (record.actor, record.rows, record.number) == ("ann", 100, 1)


def test_a_partly_published_arrival_releases_only_bad_rows_that_pass(platform: Platform) -> None:
    rows = fakes.visits(100)
    rows.loc[:2, "plan"] = "trial"
    rows.loc[3, "pages"] = -1
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    # Newer rows of those that are published: they must not count against the arrival.
    fakes.drop(platform, "tuesday.parquet", fakes.visits(90, first=11, day=2))
    publish(platform)
    before = platform.database.newest_publication("visits")

    (released,) = corrections.release(platform, FIXED, [], actor="ann")

    assert (released["released_rows"], released["quarantined_rows"], released["stays"]) == (3, 1, True)
    assert pinned_rows(platform) == 99
    assert platform.database.rows_published_after("visits", before) == 3
    assert platform.database.rows_published_after("visits", None) == 189
    (left,) = corrections.show(platform, "visits")
    assert [(f["column"], f["examples"]) for f in left["findings"]] == [("pages", [{"row": 3, "value": "-1"}])]


def test_what_a_release_supersedes_stays_in_the_table(platform: Platform) -> None:
    drop_with_trials(platform, "monday.parquet", 3)
    (result,) = publish(platform)

    corrections.release(platform, FIXED, [], actor="ann")

    superseded = datasets.findings(platform.quarantine("visits"), [result.arrival.key], 0)
    assert [row["value"] for row in superseded] == ["trial"] * 3


def test_rows_older_than_what_was_published_since_are_not_released(platform: Platform) -> None:
    drop_with_trials(platform, "monday.parquet", 2)
    publish(platform)
    fakes.drop(platform, "tuesday.parquet", fakes.visits(1, day=2))
    publish(platform)

    (released,) = corrections.release(platform, FIXED, [], actor="ann")

    assert (released["released_rows"], released["quarantined_rows"]) == (1, 1)
    (left,) = corrections.show(platform, "visits")
    assert left["rules"] == {"keys": {"newer than published": 1}}


@pytest.mark.parametrize("bad", [3, 60])
@pytest.mark.parametrize("step", ["keep_findings", "record_release"])
def test_a_release_that_died_behind_its_commit_publishes_once(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, bad: int, step: str
) -> None:
    rows = fakes.visits(100)
    rows.loc[: bad - 1, "plan"] = "trial"
    rows.loc[0, "pages"] = -1
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)

    with monkeypatch.context() as died:
        died.setattr(workflows if step == "keep_findings" else type(platform.database), step, die)
        with pytest.raises(ProcessDiedError):
            corrections.release(platform, FIXED, [], actor="ann")
    (released,) = corrections.release(platform, FIXED, [], actor="ann")

    assert (released["outcome"], released["quarantined_rows"]) == ("published", 1)
    assert pinned_rows(platform) == platform.new_rows("visits") == 99


def test_equal_bytes_are_released_once(platform: Platform) -> None:
    drop_with_trials(platform, "monday.parquet", 60)
    drop_with_trials(platform, "twin.parquet", 60)
    publish(platform)

    released = corrections.release(platform, FIXED, [], actor="ann")

    assert sorted(row["outcome"] for row in released) == [Outcome.DUPLICATE, Outcome.PUBLISHED]
    assert pinned_rows(platform) == 100


def test_an_arrival_that_nobody_knows_cannot_be_released(platform: Platform) -> None:
    drop_with_trials(platform, "monday.parquet", 60)
    publish(platform)

    with pytest.raises(DataError, match=r"There is no arrival 'none\.parquet'"):
        corrections.release(platform, FIXED, ["monday.parquet", "none.parquet"], actor="ann")

    assert platform.database.newest_publication("visits") is None
