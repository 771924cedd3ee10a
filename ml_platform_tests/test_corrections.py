"""The quarantine explained and released; one entity forgotten."""

import contextlib
import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from ml_platform import corrections, durable, workflows
from ml_platform.errors import ConfigurationError, ConflictError, DataError, ForgottenError, LandingZoneError
from ml_platform.model_spec import ModelSpec
from ml_platform.records import BatchResult, Candidate, Outcome
from ml_platform.stages import arrivals, datasets, erasure, staging, training, validation
from ml_platform.stages.arrivals import Manifest
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
    (fakes.landing(platform) / "visits" / "noise.parquet").write_bytes(b"noise")
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


def test_every_quarantined_row_is_looked_at_though_few_are_named(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "FINDINGS", 2)
    rows = fakes.visits(200)
    rows.loc[:8, "plan"] = "trial"
    rows.loc[8, "pages"] = -1
    rows.loc[9] = rows.loc[10]  # comes again: of the two one is published
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)

    (released,) = corrections.release(platform, FIXED, [], actor="ann")

    assert (released["released_rows"], released["quarantined_rows"]) == (8, 2)
    assert pinned_rows(platform) == platform.new_rows("visits") == 198


@pytest.mark.fault("D6")
def test_bytes_that_their_manifest_does_not_name_are_never_released(platform: Platform) -> None:
    path = fakes.drop(platform, "monday.parquet", fakes.visits(100))
    path.with_name("monday.parquet.manifest.json").write_bytes(Manifest(path.stat().st_size, "0" * 64).data)
    publish(platform)

    (released,) = corrections.release(platform, SPEC, [], actor="ann")

    assert (released["outcome"], released["released_rows"], released["stays"]) == ("quarantined", 0, True)
    assert platform.database.newest_publication("visits") is None


def test_a_release_that_died_is_recorded_though_the_contract_changed_since(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_with_trials(platform, "monday.parquet", 60)
    publish(platform)

    with monkeypatch.context() as died:
        died.setattr(type(platform.database), "record_release", die)
        with pytest.raises(ProcessDiedError):
            corrections.release(platform, FIXED, [], actor="ann")
    (released,) = corrections.release(platform, SPEC, [], actor="ann")

    assert (released["outcome"], released["released_rows"], released["quarantined_rows"]) == ("published", 100, 0)
    assert pinned_rows(platform) == platform.new_rows("visits") == 100


def test_two_corrections_of_one_model_do_not_meet(platform: Platform) -> None:
    drop_with_trials(platform, "monday.parquet", 60)
    publish(platform)

    with workflows.alone(platform, "visits"), workflows.alone(platform, "others"):
        with pytest.raises(ConflictError, match="Somebody releases, forgets or tidies up"):
            corrections.release(platform, FIXED, [], actor="ann")
        with pytest.raises(ConflictError, match="Somebody releases, forgets or tidies up"):
            corrections.forget(platform, SPEC, "1", reason="request 17", actor="ann")

    assert platform.database.tombstones("visits") == []
    assert corrections.release(platform, FIXED, [], actor="ann")[0]["released_rows"] == 100


# Deletion

SECRET = 987_654_321
SECONDS = 71.234_567_89


def with_secret(n: int = 600, **changes: Any) -> pd.DataFrame:
    """Return visitors of whom one can be told from all others by two values."""
    rows = fakes.visits(n, **{"first": 2_000_000_000, **changes})
    held_out = next(v for v in range(SECRET, SECRET + 99) if datasets._fraction("visits", v) < SPEC.holdout_share)
    rows.loc[0, ["visitor", "seconds"]] = [held_out, SECONDS]
    return rows.astype({"visitor": "int64"})


def secret_of(rows: pd.DataFrame) -> str:
    return f"{rows['visitor'].iloc[0]}"


def traces(folder: Path, *values: str) -> list[str]:
    """Return the files below a folder that hold one of some values, compressed or not."""
    return [str(file) for file in sorted(folder.rglob("*")) if file.is_file() and any(v in text(file) for v in values)]


def text(file: Path) -> str:
    if file.suffix == ".parquet":
        return f"{pq.read_table(file).to_pandas().to_csv()} {pq.read_metadata(file).to_dict()}"
    data = file.read_bytes()
    return (gzip.decompress(data) if file.suffix == ".gz" else data).decode(errors="replace")


def judged(platform: Platform) -> Candidate:
    workflows.pin_dataset(platform, SPEC)
    candidate = workflows.train_candidate(platform, SPEC, reason="schedule")
    workflows.judge_candidate(platform, SPEC, candidate)
    return candidate


def test_after_forgetting_no_byte_holds_the_entity(platform: Platform) -> None:
    home, rows = platform.settings.home, with_secret()
    entity, values = secret_of(rows), (secret_of(rows), str(SECONDS))
    fakes.drop(platform, "monday.parquet", rows)
    rows.assign(seen_at=rows["seen_at"] + pd.Timedelta("1D"), plan="none such").head(20).to_csv(
        home / "landing" / "visits" / "bad.csv.gz", index=False
    )
    fakes.drop(platform, "again.csv", rows.head(1))
    part = rows.assign(seen_at=rows["seen_at"] + pd.Timedelta("2D"))
    part.loc[0, "seconds"] = -SECONDS  # quoted in the commit, as an example of what was quarantined
    fakes.drop(platform, "part.parquet", part)
    bad_text = rows.head(3).astype({"seconds": "str"})
    fakes.drop(platform, "text.csv", bad_text.assign(seconds=[f"{SECONDS} s", "1", "2"]))
    publish(platform)
    fakes.drop(platform, "tuesday.parquet", fakes.visits(50, first=2_000, day=3))
    publish(platform)
    candidate = judged(platform)
    before = traces(home, *values)

    done = corrections.forget(platform, SPEC, entity, reason="request 17", actor="ann")

    assert {Path(file).parent.name for file in before} >= {"rows", "quarantine", "raw", "visits", candidate.id}
    assert traces(home, *values) == []
    assert done["unsearched"] == []
    assert done["figures"]["rows_of_the_table"] == 1
    assert done["figures"]["golden_requests"] >= 1
    (stone,) = platform.database.tombstones("visits")
    assert (stone.reason, stone.actor, stone.figures) == ("request 17", "ann", done["figures"])
    assert stone.completed_at is not None
    assert entity not in str(stone)


def test_what_was_made_of_the_entity_is_marked_and_the_rest_stays_readable(platform: Platform) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600, first=5_000))
    publish(platform)
    untouched, _ = datasets.pin(platform.rows("visits"), SPEC)
    platform.database.record_dataset(untouched)
    rows = with_secret()
    fakes.drop(platform, "tuesday.parquet", rows)
    publish(platform)
    candidate = judged(platform)

    corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")

    assert datasets.pin(platform.rows("visits"), SPEC, untouched.version)[0] == untouched
    platform.database.record_dataset(untouched)
    assert datasets.pin(platform.rows("visits"), SPEC, candidate.lineage.dataset_version)[0].rows == 1_199
    assert platform.database.candidate(candidate.id).forgotten_at is not None
    with pytest.raises(ForgottenError, match="cannot be reproduced"):
        workflows.judge_candidate(platform, SPEC, candidate)
    assert judged(platform).lineage.dataset_version > candidate.lineage.dataset_version
    assert workflows.status(platform)[0]["last_run"]["reproducible"] is True


@pytest.mark.parametrize("name", ["monday.parquet", "other.parquet", "other.csv"])
def test_a_file_that_lands_again_does_not_bring_the_entity_back(platform: Platform, name: str) -> None:
    rows = with_secret(100)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")

    newer = rows.assign(seen_at=rows["seen_at"] + pd.Timedelta("1D"))
    fakes.drop(platform, name, rows if name.startswith("monday") else newer)
    (result,) = publish(platform)

    assert result.outcome is (Outcome.DUPLICATE if name.startswith("monday") else Outcome.PUBLISHED)
    assert pinned_rows(platform) == 99
    assert traces(platform.settings.home / "models", secret_of(rows)) == []
    assert traces(fakes.landing(platform), secret_of(rows)) == []


def test_rows_are_released_by_their_old_numbers_after_one_was_forgotten(platform: Platform) -> None:
    rows = with_secret(100)
    rows.loc[[5, 7], "plan"] = "trial"
    rows.loc[7, "pages"] = -1
    fakes.drop(platform, "monday.csv", rows)
    publish(platform)
    corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")

    (released,) = corrections.release(platform, FIXED, [], actor="ann")

    assert (released["released_rows"], released["quarantined_rows"]) == (1, 1)
    (left,) = corrections.show(platform, "visits")
    assert left["findings"][0]["examples"] == [{"row": 7, "value": "-1"}]
    assert pinned_rows(platform) == 98


def test_forgetting_twice_changes_nothing_more(platform: Platform) -> None:
    rows = with_secret(100)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)

    first = corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")
    second = corrections.forget(platform, SPEC, secret_of(rows), reason="request 18", actor="bob")

    assert set(second["figures"].values()) == {0}
    (stone,) = platform.database.tombstones("visits")
    assert (stone.reason, stone.figures) == ("request 17", first["figures"])


@pytest.mark.parametrize("step", ["requests_without", "erase", "_rewrite_log"])
def test_a_deletion_that_died_is_finished_by_the_next(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    rows = with_secret()
    rows.loc[:2, "plan"] = "trial"
    fakes.drop(platform, "monday.parquet", rows)
    fakes.drop(platform, "tuesday.parquet", with_secret(100, day=2))
    publish(platform)
    judged(platform)

    with monkeypatch.context() as died:
        died.setattr(erasure, step, die)
        with pytest.raises(ProcessDiedError):
            corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")
    corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")

    assert traces(platform.settings.home / "models", secret_of(rows), str(SECONDS)) == []


def test_nothing_is_forgotten_while_files_wait(platform: Platform) -> None:
    rows = with_secret(100)
    fakes.drop(platform, "monday.parquet", rows)

    with pytest.raises(ConflictError, match="1 files of 'visits' wait"):
        corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")
    publish(platform)
    corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")

    assert pinned_rows(platform) == 99
    assert traces(fakes.landing(platform), secret_of(rows)) == []


def test_a_file_that_lands_meanwhile_keeps_its_other_rows(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = with_secret(100)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    real = erasure.first_version_with

    def while_a_file_lands(*options: Any) -> int | None:
        fakes.drop(platform, "tuesday.parquet", with_secret(100, day=2, first=5_000))
        return real(*options)

    monkeypatch.setattr(erasure, "first_version_with", while_a_file_lands)
    corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")
    (result,) = publish(platform)

    assert (result.arrival.name, result.outcome, result.rows) == ("tuesday.parquet", Outcome.PUBLISHED, 99)
    assert pinned_rows(platform) == 198
    assert traces(fakes.landing(platform), secret_of(rows)) == []


@pytest.mark.parametrize("name", ["A.PARQUET", "B.CSV.GZ", "C.Jsonl"])
def test_a_file_in_capitals_is_searched_as_what_it_is(platform: Platform, name: str) -> None:
    rows = with_secret(100)
    path = fakes.landing(platform) / "visits" / name
    if name.endswith("ET"):
        path.write_bytes(rows.to_parquet(index=False))
    elif name.endswith("GZ"):
        path.write_bytes(gzip.compress(rows.to_csv(index=False).encode()))
    else:
        rows.to_json(path, orient="records", lines=True, date_format="iso")
    publish(platform)

    done = corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")

    assert (done["figures"]["files_of_the_landing_zone"], done["unsearched"]) == (1, [])
    assert not path.exists()


def test_a_hidden_file_of_the_landing_zone_is_named(platform: Platform) -> None:
    (fakes.landing(platform) / "visits" / ".a.csv.4711").write_bytes(b"visitor\n1\n")

    done = corrections.forget(platform, SPEC, "1", reason="request 17", actor="ann")

    assert [Path(file).name for file in done["unsearched"]] == [".a.csv.4711"]


def test_a_landing_zone_that_is_not_there_is_not_made_and_not_taken_for_an_empty_one(platform: Platform) -> None:
    shutil.rmtree(fakes.landing(platform))

    with pytest.raises(LandingZoneError, match="cannot be listed"):
        corrections.forget(platform, SPEC, "1", reason="request 17", actor="ann")
    assert not fakes.landing(platform).exists()


@pytest.mark.fault("S6")
@pytest.mark.parametrize("call", [(durable, "sync"), (Path, "replace"), (Path, "unlink")])
@pytest.mark.parametrize("when", range(5))
def test_wherever_a_deletion_dies_the_table_is_readable_and_the_next_finishes_it(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, call: tuple[object, str], when: int
) -> None:
    rows = with_secret(100)
    rows.loc[0, "seconds"] = SECONDS
    fakes.drop(platform, "monday.parquet", rows)
    fakes.drop(platform, "tuesday.parquet", fakes.visits(50, first=7_000, day=3))
    publish(platform)
    left, real = iter(range(when)), getattr(*call)

    def die_at_last(target: Any, *options: Any, **more: Any) -> Any:
        if next(left, None) is None:
            if call[0] is durable and Path(str(target)).is_file():
                os.truncate(str(target), 10)  # what was not on the disk yet
            raise ProcessDiedError
        return real(target, *options, **more)

    with monkeypatch.context() as died:
        died.setattr(*call, die_at_last)
        with contextlib.suppress(ProcessDiedError):
            corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")
    assert pinned_rows(platform) in {149, 150}
    corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")

    assert pinned_rows(platform) == 149
    assert traces(platform.settings.home / "models", secret_of(rows), str(SECONDS)) == []


@pytest.mark.fault("S6")
@pytest.mark.parametrize("name", ["part-1.parquet#1", "_delta_log/00000000000000000001.json#1", "_delta_log/.1.json.9"])
def test_what_writers_left_in_a_table_goes_too(platform: Platform, name: str) -> None:
    rows = with_secret(100)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    (platform.rows("visits") / name).write_text(secret_of(rows))

    corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")

    assert traces(platform.rows("visits"), secret_of(rows)) == []
    assert pinned_rows(platform) == 99


def test_a_file_that_cannot_be_searched_is_named(platform: Platform) -> None:
    (fakes.landing(platform) / "visits" / "noise.parquet").write_bytes(b"noise")
    publish(platform)

    done = corrections.forget(platform, SPEC, "1", reason="request 17", actor="ann")

    assert [Path(file).parent.name for file in done["unsearched"]] == ["raw", "visits"]


@pytest.mark.parametrize("reason", ["visitor 7 asked", "visitor 007 asked", "asked by (0007)"])
def test_the_reason_must_not_say_who(platform: Platform, reason: str) -> None:
    with pytest.raises(DataError, match="must not say who"):
        corrections.forget(platform, SPEC, "007", reason=reason, actor="ann")

    assert platform.database.tombstones("visits") == []


@pytest.mark.parametrize("damage", [Path.unlink, lambda key: key.write_bytes(b"another")])
def test_without_its_key_nothing_is_published(platform: Platform, damage: Callable[[Path], object]) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(100))
    publish(platform)
    corrections.forget(platform, SPEC, "1", reason="request 17", actor="ann")
    damage(platform.settings.home / "forget.key")
    fakes.drop(platform, "tuesday.parquet", fakes.visits(100, day=2))

    with pytest.raises(ConfigurationError, match="Restore"):
        publish(platform)


def test_a_version_after_a_checkpoint_loses_the_entity_too(platform: Platform) -> None:
    rows = with_secret(100)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    DeltaTable(platform.rows("visits")).create_checkpoint()

    corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")

    assert pinned_rows(platform) == 99
    assert traces(platform.rows("visits"), secret_of(rows)) == []


def test_a_file_that_cannot_be_rewritten_does_not_bring_the_entity_back(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = with_secret(100)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")
    fakes.drop(platform, "tuesday.parquet", rows.assign(seen_at=rows["seen_at"] + pd.Timedelta("1D")))

    def refuse(*_: Any) -> None:
        raise DataError

    monkeypatch.setattr(erasure, "without", refuse)
    (result,) = publish(platform)

    assert result.outcome is Outcome.QUARANTINED
    assert "someone who was forgotten is in it" in result.reason
    assert [row["stays"] for row in corrections.release(platform, SPEC, [], actor="ann")] == [True]
    assert pinned_rows(platform) == 99


# Who was forgotten and comes again


def comes_again(platform: Platform) -> tuple[pd.DataFrame, list[str]]:
    """Forget somebody who then stands in a file whose bytes are kept; return the rows and the keys."""
    rows = with_secret(100)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")
    fakes.drop(platform, "tuesday.parquet", rows.assign(seen_at=rows["seen_at"] + pd.Timedelta("1D")))
    keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, "visits")]
    workflows.keep_raw_batches(platform, "visits", keys)
    return rows, keys


@pytest.mark.fault("S6")
@pytest.mark.parametrize("step", [(Path, "unlink"), (arrivals, "remove"), (None, "record_outcome")])
def test_whoever_comes_again_goes_wherever_the_run_died(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, step: tuple[Any, str]
) -> None:
    rows, keys = comes_again(platform)

    with monkeypatch.context() as died:
        died.setattr(step[0] or type(platform.database), step[1], die)
        with pytest.raises(ProcessDiedError):
            workflows.publish_batches(platform, SPEC, keys)
    (result,) = publish(platform)

    assert (result.outcome, result.rows) == (Outcome.PUBLISHED, 99)
    assert traces(platform.settings.home / "models", secret_of(rows)) == []
    assert traces(fakes.landing(platform), secret_of(rows)) == []


@pytest.mark.fault("D3")
def test_a_file_that_took_the_place_of_theirs_stays(platform: Platform) -> None:
    _, keys = comes_again(platform)
    path = fakes.drop(platform, "tuesday.parquet", fakes.visits(50, first=9_000, day=4))

    workflows.publish_batches(platform, SPEC, keys)

    assert path.exists()
    assert [result.rows for result in publish(platform)] == [50]


def test_requests_that_are_kept_while_somebody_is_forgotten_go(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = with_secret()
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    workflows.pin_dataset(platform, SPEC)
    candidate = workflows.train_candidate(platform, SPEC, reason="schedule")
    real = staging.keep_golden_requests

    def meanwhile(*options: Any) -> None:
        corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")
        real(*options)

    monkeypatch.setattr(staging, "keep_golden_requests", meanwhile)
    with pytest.raises(ForgottenError):
        workflows.judge_candidate(platform, SPEC, candidate)
    assert traces(platform.settings.home / "models", str(SECONDS)) == []


def test_a_candidate_that_is_trained_while_somebody_is_forgotten_is_marked(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = with_secret()
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    workflows.pin_dataset(platform, SPEC)
    real = training.fit

    def meanwhile(*options: Any) -> Any:
        corrections.forget(platform, SPEC, secret_of(rows), reason="request 17", actor="ann")
        return real(*options)

    monkeypatch.setattr(training, "fit", meanwhile)
    with pytest.raises(ForgottenError):
        workflows.train_candidate(platform, SPEC, reason="schedule")
    assert workflows.current_candidate(platform, "visits").forgotten_at is not None
