"""Erasure of one entity from files, tables, candidates and golden requests."""

import contextlib
import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pandera
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from ml_platform.data import arrivals, datasets, erasure, quarantine, reading
from ml_platform.data.ingest import publish_batches, store_raw_batches
from ml_platform.data.landing import waiting_arrivals
from ml_platform.data.pin import pin_dataset
from ml_platform.errors import (
    ConfigurationError,
    ConflictError,
    DataError,
    DatasetError,
    ForgottenError,
    LandingZoneError,
)
from ml_platform.evaluation.judge import judge_candidate
from ml_platform.governance import forget
from ml_platform.governance.status import status
from ml_platform.inference import golden_requests
from ml_platform.platform import Platform
from ml_platform.records.data import Outcome
from ml_platform.records.verdict import Candidate
from ml_platform.storage import atomic_files
from ml_platform.training import fit
from ml_platform.training.train import current_candidate, train_candidate
from ml_platform_tests.support import fakes
from ml_platform_tests.support.simulated_death import ProcessDiedError, die
from ml_platform_tests.support.steps import count_pinned_rows, publish

pytestmark = pytest.mark.slow

SPEC = fakes.visits_spec()
FIXED = fakes.visits_spec(contract=fakes.VisitsWithTrials)
SECRET = 987_654_321
SECONDS = 71.234_567_89


class VisitsWithReferrer(fakes.Visits):
    """The contract of ``Visits`` with another column."""

    referrer: str


class NamedVisits(fakes.Visits):
    """The contract of ``Visits`` with visitors that have names."""

    visitor: str  # type: ignore[assignment]


def make_visitors(n: int = 600, **changes: Any) -> pd.DataFrame:
    """Return visitors, one of them with two unique values."""
    rows = fakes.visits(n, **{"first": 2_000_000_000, **changes})
    held_out = next(v for v in range(SECRET, SECRET + 99) if datasets._fraction("visits", v) < SPEC.holdout_share)
    rows.loc[0, ["visitor", "seconds"]] = [held_out, SECONDS]
    return rows.astype({"visitor": "int64"})


def first_visitor(rows: pd.DataFrame) -> str:
    return f"{rows['visitor'].iloc[0]}"


def traces(folder: Path, *values: str) -> list[str]:
    """Return the files below a folder that contain one of some values, compressed or not."""
    return [str(file) for file in sorted(folder.rglob("*")) if file.is_file() and any(v in text(file) for v in values)]


def text(file: Path) -> str:
    if file.suffix == ".parquet":
        return f"{pq.read_table(file).to_pandas().to_csv()} {pq.read_metadata(file).to_dict()}"
    data = file.read_bytes()
    return (gzip.decompress(data) if file.suffix == ".gz" else data).decode(errors="replace")


def train_and_judge(platform: Platform) -> Candidate:
    pin_dataset(platform, SPEC)
    candidate = train_candidate(platform, SPEC, reason="schedule")
    judge_candidate(platform, SPEC, candidate)
    return candidate


def test_after_forgetting_no_byte_holds_the_entity(platform: Platform) -> None:
    home, rows = platform.settings.home, make_visitors()
    entity, values = first_visitor(rows), (first_visitor(rows), str(SECONDS))
    fakes.drop(platform, "monday.parquet", rows)
    rows.assign(seen_at=rows["seen_at"] + pd.Timedelta("1D"), plan="none such").head(20).to_csv(
        home / "landing" / "visits" / "bad.csv.gz", index=False
    )
    fakes.drop(platform, "again.csv", rows.head(1))
    part = rows.assign(seen_at=rows["seen_at"] + pd.Timedelta("2D"))
    part.loc[0, "seconds"] = -SECONDS  # quoted in the commit, as an example of a violation
    fakes.drop(platform, "part.parquet", part)
    bad_text = rows.head(3).astype({"seconds": "str"})
    fakes.drop(platform, "text.csv", bad_text.assign(seconds=[f"{SECONDS} s", "1", "2"]))
    publish(platform)
    fakes.drop(platform, "tuesday.parquet", fakes.visits(50, first=2_000, day=3))
    publish(platform)
    candidate = train_and_judge(platform)
    before = traces(home, *values)

    done = forget.forget(platform, SPEC, entity, reason="request 17", actor="ann")

    assert {Path(file).parent.name for file in before} >= {"rows", "quarantine", "raw", "visits", candidate.id}
    assert traces(home, *values) == []
    assert done["unsearched"] == []
    assert done["figures"]["rows_of_the_table"] == 1
    assert done["figures"]["golden_requests"] >= 1
    (stone,) = platform.database.tombstones("visits")
    assert (stone.reason, stone.actor, stone.figures) == ("request 17", "ann", done["figures"])
    assert stone.completed_at is not None
    assert entity not in str(stone)


def test_forget_contract_with_new_column_erases_entity(platform: Platform) -> None:
    rows = make_visitors()
    entity = first_visitor(rows)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    train_and_judge(platform)
    changed = fakes.visits_spec(contract=VisitsWithReferrer)

    done = forget.forget(platform, changed, entity, reason="request 17", actor="ann")

    assert traces(platform.settings.home, entity, str(SECONDS)) == []
    assert (done["figures"]["rows_of_the_table"], done["figures"]["golden_requests"]) == (1, 1)


class RenamedVisits(fakes.Visits):
    """The contract of ``Visits`` with another name of the entity column."""

    visitor: int = pandera.Field(ge=1, alias="person")


def test_forget_refused_waiting_file_has_way_out(platform: Platform) -> None:
    rows = make_visitors(100)
    entity = first_visitor(rows)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    changed = fakes.visits_spec(contract=VisitsWithReferrer)
    later = rows.assign(referrer="x", seen_at=rows["seen_at"] + pd.Timedelta("1D"))
    fakes.drop(platform, "tuesday.parquet", later)
    with pytest.raises(DatasetError):
        publish(platform, changed)

    with pytest.raises(ConflictError, match="ml-platform quarantine add visits FILE"):
        forget.forget(platform, changed, entity, reason="request 17", actor="ann")
    quarantine.add(platform, "visits", "tuesday.parquet", reason="other columns", actor="ann")
    done = forget.forget(platform, changed, entity, reason="request 17", actor="ann")

    assert (done["figures"]["rows_of_the_table"], done["figures"]["rows_of_kept_files"]) == (1, 2)
    assert traces(platform.settings.home / "models", entity) == []


def test_forget_renamed_entity_column_is_refused(platform: Platform) -> None:
    rows = make_visitors(100)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    renamed = fakes.visits_spec(contract=RenamedVisits, entity="person")

    with pytest.raises(DatasetError, match="has no column 'person'"):
        forget.forget(platform, renamed, first_visitor(rows), reason="request 17", actor="ann")

    assert platform.database.tombstones("visits") == []


def test_forget_blank_text_entity_is_erased(platform: Platform) -> None:
    spec = fakes.visits_spec(contract=NamedVisits)
    rows = fakes.visits(20).astype({"visitor": "str"})
    rows.loc[0, "visitor"] = " "
    fakes.drop(platform, "monday.csv", rows)
    publish(platform, spec)

    done = forget.forget(platform, spec, " ", reason="request 17", actor="ann")

    assert done["figures"]["rows_of_the_table"] == 1
    with pytest.raises(DataError, match=r"must be text\. Got '' instead"):
        forget.forget(platform, spec, "", reason="request 17", actor="ann")


def test_forget_marks_candidates_and_keeps_other_rows(platform: Platform) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600, first=5_000))
    publish(platform)
    untouched, _ = datasets.pin(platform.rows("visits"), SPEC)
    platform.database.record_dataset(untouched)
    rows = make_visitors()
    fakes.drop(platform, "tuesday.parquet", rows)
    publish(platform)
    candidate = train_and_judge(platform)

    forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")

    assert datasets.pin(platform.rows("visits"), SPEC, untouched.version)[0] == untouched
    platform.database.record_dataset(untouched)
    assert datasets.pin(platform.rows("visits"), SPEC, candidate.lineage.dataset_version)[0].rows == 1_199
    assert platform.database.candidate(candidate.id).forgotten_at is not None
    with pytest.raises(ForgottenError, match="cannot be reproduced"):
        judge_candidate(platform, SPEC, candidate)
    assert train_and_judge(platform).lineage.dataset_version > candidate.lineage.dataset_version
    assert status(platform)[0]["last_run"]["reproducible"] is True


@pytest.mark.parametrize("name", ["monday.parquet", "other.parquet", "other.csv"])
def test_file_landed_again_does_not_restore_entity(platform: Platform, name: str) -> None:
    rows = make_visitors(100)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")

    newer = rows.assign(seen_at=rows["seen_at"] + pd.Timedelta("1D"))
    fakes.drop(platform, name, rows if name.startswith("monday") else newer)
    (result,) = publish(platform)

    assert result.outcome is (Outcome.DUPLICATE if name.startswith("monday") else Outcome.PUBLISHED)
    assert count_pinned_rows(platform) == 99
    assert traces(platform.settings.home / "models", first_visitor(rows)) == []
    assert traces(fakes.landing(platform), first_visitor(rows)) == []


def test_release_after_forget_uses_original_row_numbers(platform: Platform) -> None:
    rows = make_visitors(100)
    rows.loc[[5, 7], "plan"] = "trial"
    rows.loc[7, "pages"] = -1
    fakes.drop(platform, "monday.csv", rows)
    publish(platform)
    forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")

    (released,) = quarantine.release(platform, FIXED, [], actor="ann")

    assert (released["released_rows"], released["quarantined_rows"]) == (1, 1)
    (left,) = quarantine.show(platform, "visits")
    assert left["violations"][0]["examples"] == [{"row": 7, "value": "-1"}]
    assert count_pinned_rows(platform) == 98


def test_forgetting_twice_changes_nothing_more(platform: Platform) -> None:
    rows = make_visitors(100)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)

    first = forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")
    second = forget.forget(platform, SPEC, first_visitor(rows), reason="request 18", actor="bob")

    assert set(second["figures"].values()) == {0}
    (stone,) = platform.database.tombstones("visits")
    assert (stone.reason, stone.figures) == ("request 17", first["figures"])


@pytest.mark.parametrize("step", ["erase_golden_requests", "erase", "_rewrite_log"])
def test_killed_erasure_is_finished_by_the_next(platform: Platform, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    rows = make_visitors()
    rows.loc[:2, "plan"] = "trial"
    fakes.drop(platform, "monday.parquet", rows)
    fakes.drop(platform, "tuesday.parquet", make_visitors(100, day=2))
    publish(platform)
    train_and_judge(platform)

    with monkeypatch.context() as died:
        died.setattr(erasure, step, die)
        with pytest.raises(ProcessDiedError):
            forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")
    forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")

    assert traces(platform.settings.home / "models", first_visitor(rows), str(SECONDS)) == []


def test_nothing_is_forgotten_while_files_wait(platform: Platform) -> None:
    rows = make_visitors(100)
    fakes.drop(platform, "monday.parquet", rows)

    with pytest.raises(ConflictError, match="1 files of 'visits' are waiting"):
        forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")
    publish(platform)
    forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")

    assert count_pinned_rows(platform) == 99
    assert traces(fakes.landing(platform), first_visitor(rows)) == []


def test_file_landed_during_erasure_keeps_other_rows(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_visitors(100)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    real = erasure.first_version_with

    def while_a_file_lands(*options: Any) -> int | None:
        fakes.drop(platform, "tuesday.parquet", make_visitors(100, day=2, first=5_000))
        return real(*options)

    monkeypatch.setattr(erasure, "first_version_with", while_a_file_lands)
    forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")
    (result,) = publish(platform)

    assert (result.arrival.name, result.outcome, result.rows) == ("tuesday.parquet", Outcome.PUBLISHED, 99)
    assert count_pinned_rows(platform) == 198
    assert traces(fakes.landing(platform), first_visitor(rows)) == []


@pytest.mark.parametrize("name", ["A.PARQUET", "B.CSV.GZ", "C.Jsonl"])
def test_forget_file_suffix_in_capitals_is_searched(platform: Platform, name: str) -> None:
    rows = make_visitors(100)
    path = fakes.landing(platform) / "visits" / name
    if name.endswith("ET"):
        path.write_bytes(rows.to_parquet(index=False))
    elif name.endswith("GZ"):
        path.write_bytes(gzip.compress(rows.to_csv(index=False).encode()))
    else:
        rows.to_json(path, orient="records", lines=True, date_format="iso")
    publish(platform)

    done = forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")

    assert (done["figures"]["files_of_the_landing_zone"], done["unsearched"]) == (1, [])
    assert not path.exists()


def test_forget_hidden_landing_file_is_reported(platform: Platform) -> None:
    (fakes.landing(platform) / "visits" / ".a.csv.4711").write_bytes(b"visitor\n1\n")

    done = forget.forget(platform, SPEC, "1", reason="request 17", actor="ann")

    assert [Path(file).name for file in done["unsearched"]] == [".a.csv.4711"]


def test_forget_missing_landing_zone_is_refused(platform: Platform) -> None:
    shutil.rmtree(fakes.landing(platform))

    with pytest.raises(LandingZoneError, match="cannot be listed"):
        forget.forget(platform, SPEC, "1", reason="request 17", actor="ann")
    assert not fakes.landing(platform).exists()


@pytest.mark.fault("S6")
@pytest.mark.parametrize("call", [(atomic_files, "sync"), (Path, "replace"), (Path, "unlink")])
@pytest.mark.parametrize("when", range(5))
def test_erasure_killed_anywhere_can_be_finished(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, call: tuple[object, str], when: int
) -> None:
    rows = make_visitors(100)
    rows.loc[0, "seconds"] = SECONDS
    fakes.drop(platform, "monday.parquet", rows)
    fakes.drop(platform, "tuesday.parquet", fakes.visits(50, first=7_000, day=3))
    publish(platform)
    left, real = iter(range(when)), getattr(*call)

    def die_at_last(target: Any, *options: Any, **more: Any) -> Any:
        if next(left, None) is None:
            if call[0] is atomic_files and Path(str(target)).is_file():
                os.truncate(str(target), 10)  # bytes that were not on the disk yet
            raise ProcessDiedError
        return real(target, *options, **more)

    with monkeypatch.context() as died:
        died.setattr(*call, die_at_last)
        with contextlib.suppress(ProcessDiedError):
            forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")
    assert count_pinned_rows(platform) in {149, 150}
    forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")

    assert count_pinned_rows(platform) == 149
    assert traces(platform.settings.home / "models", first_visitor(rows), str(SECONDS)) == []


@pytest.mark.fault("S6")
@pytest.mark.parametrize("name", ["part-1.parquet#1", "_delta_log/00000000000000000001.json#1", "_delta_log/.1.json.9"])
def test_what_writers_left_in_a_table_goes_too(platform: Platform, name: str) -> None:
    rows = make_visitors(100)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    (platform.rows("visits") / name).write_text(first_visitor(rows))

    forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")

    assert traces(platform.rows("visits"), first_visitor(rows)) == []
    assert count_pinned_rows(platform) == 99


def test_a_file_that_cannot_be_searched_is_named(platform: Platform) -> None:
    (fakes.landing(platform) / "visits" / "noise.parquet").write_bytes(b"noise")
    publish(platform)

    done = forget.forget(platform, SPEC, "1", reason="request 17", actor="ann")

    assert [Path(file).parent.name for file in done["unsearched"]] == ["raw", "visits"]


@pytest.mark.fault("D21")
def test_other_spellings_of_an_id_are_erased(platform: Platform) -> None:
    rows = make_visitors(300)
    entity = first_visitor(rows)
    spellings = rows.assign(visitor=rows["visitor"].astype(str), seen_at=rows["seen_at"] + pd.Timedelta("1D"))
    spellings.loc[0:1, "visitor"] = [hex(int(entity)), f"{entity}.0"]
    fakes.drop(platform, "monday.csv", spellings)
    (result,) = publish(platform)

    done = forget.forget(platform, SPEC, entity, reason="request 17", actor="ann")

    assert (result.quarantined_rows, result.outcome) == (2, Outcome.PUBLISHED)
    assert (done["figures"]["rows_of_the_table"], done["figures"]["rows_of_kept_files"]) == (0, 2)
    assert traces(platform.settings.home / "models", entity, hex(int(entity))) == []


@pytest.mark.fault("D21")
def test_table_rows_missing_in_kept_file_are_named(platform: Platform) -> None:
    rows = make_visitors(100)
    fakes.drop(platform, "monday.csv", rows)
    publish(platform)
    (batch,) = platform.database.list_raw_batches("visits")
    kept = Path(batch.path)
    kept.write_bytes(b"".join(kept.read_bytes().splitlines(keepends=True)[:1]))

    done = forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")

    assert done["figures"]["rows_of_the_table"] == 1
    assert (done["unmatched"], done["unsearched"], done["found"]) == ([str(kept)], [], True)


@pytest.mark.fault("D22")
def test_file_ending_its_reader_does_not_stop_erasure(platform: Platform) -> None:
    rows = make_visitors(100)
    fakes.drop(platform, "monday.parquet", rows)
    fakes.drop(platform, "tuesday.csv", make_visitors(100, day=2, first=5_000))
    publish(platform)
    large = next(Path(batch.path) for batch in platform.database.list_raw_batches("visits") if ".csv" in batch.path)
    large.write_bytes(large.read_bytes() * 3_000)
    limited = Platform(platform.settings.model_copy(update={"reader_memory_bytes": 2**23}))

    done = forget.forget(limited, SPEC, first_visitor(rows), reason="request 17", actor="ann")

    assert done["unsearched"] == [str(large)]
    assert done["figures"]["rows_of_the_table"] == 2


@pytest.mark.parametrize("reason", ["visitor 7 asked", "visitor 007 asked", "asked by (0007)"])
def test_the_reason_must_not_say_who(platform: Platform, reason: str) -> None:
    with pytest.raises(DataError, match="must not name the entity"):
        forget.forget(platform, SPEC, "007", reason=reason, actor="ann")

    assert platform.database.tombstones("visits") == []


@pytest.mark.parametrize("damage", [Path.unlink, lambda key: key.write_bytes(b"another")])
def test_without_its_key_nothing_is_published(platform: Platform, damage: Callable[[Path], object]) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(100))
    publish(platform)
    forget.forget(platform, SPEC, "1", reason="request 17", actor="ann")
    damage(platform.settings.home / "forget.key")
    fakes.drop(platform, "tuesday.parquet", fakes.visits(100, day=2))

    with pytest.raises(ConfigurationError, match="Restore"):
        publish(platform)


def test_version_after_checkpoint_loses_the_entity(platform: Platform) -> None:
    rows = make_visitors(100)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    DeltaTable(platform.rows("visits")).create_checkpoint()

    forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")

    assert count_pinned_rows(platform) == 99
    assert traces(platform.rows("visits"), first_visitor(rows)) == []


def test_unrewritable_file_does_not_restore_entity(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_visitors(100)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")
    fakes.drop(platform, "tuesday.parquet", rows.assign(seen_at=rows["seen_at"] + pd.Timedelta("1D")))

    def refuse(*_: Any) -> None:
        raise DataError

    monkeypatch.setattr(reading, "remove_entities", refuse)
    (result,) = publish(platform)

    assert result.outcome is Outcome.QUARANTINED
    assert "the file has rows of a forgotten entity" in result.reason
    assert [row["stays"] for row in quarantine.release(platform, SPEC, [], actor="ann")] == [True]
    assert count_pinned_rows(platform) == 99


# An erased entity that comes again


def store_file_of_erased_entity(platform: Platform) -> tuple[pd.DataFrame, list[str]]:
    """Erase an entity and store a raw file that contains it; return the rows and the keys."""
    rows = make_visitors(100)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")
    fakes.drop(platform, "tuesday.parquet", rows.assign(seen_at=rows["seen_at"] + pd.Timedelta("1D")))
    keys = [arrival.key for arrival in waiting_arrivals(platform, "visits")]
    store_raw_batches(platform, "visits", keys)
    return rows, keys


@pytest.mark.fault("S6")
@pytest.mark.parametrize("step", [(Path, "unlink"), (arrivals, "remove"), (None, "record_outcome")])
def test_whoever_comes_again_goes_wherever_the_run_died(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, step: tuple[Any, str]
) -> None:
    rows, keys = store_file_of_erased_entity(platform)

    with monkeypatch.context() as died:
        died.setattr(step[0] or type(platform.database), step[1], die)
        with pytest.raises(ProcessDiedError):
            publish_batches(platform, SPEC, keys)
    (result,) = publish(platform)

    assert (result.outcome, result.rows) == (Outcome.PUBLISHED, 99)
    assert traces(platform.settings.home / "models", first_visitor(rows)) == []
    assert traces(fakes.landing(platform), first_visitor(rows)) == []


@pytest.mark.fault("D3")
def test_file_that_replaced_an_arrival_stays(platform: Platform) -> None:
    _, keys = store_file_of_erased_entity(platform)
    path = fakes.drop(platform, "tuesday.parquet", fakes.visits(50, first=9_000, day=4))

    publish_batches(platform, SPEC, keys)

    assert path.exists()
    assert [result.rows for result in publish(platform)] == [50]


def test_golden_requests_stored_during_erasure_are_erased(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_visitors()
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    pin_dataset(platform, SPEC)
    candidate = train_candidate(platform, SPEC, reason="schedule")
    real = golden_requests.store_golden_requests

    def meanwhile(*options: Any) -> None:
        forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")
        real(*options)

    monkeypatch.setattr(golden_requests, "store_golden_requests", meanwhile)
    with pytest.raises(ForgottenError):
        judge_candidate(platform, SPEC, candidate)
    assert traces(platform.settings.home / "models", str(SECONDS)) == []


def test_candidate_trained_during_erasure_is_marked(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_visitors()
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    pin_dataset(platform, SPEC)
    real = fit.fit

    def meanwhile(*options: Any) -> Any:
        forget.forget(platform, SPEC, first_visitor(rows), reason="request 17", actor="ann")
        return real(*options)

    monkeypatch.setattr(fit, "fit", meanwhile)
    with pytest.raises(ForgottenError):
        train_candidate(platform, SPEC, reason="schedule")
    assert current_candidate(platform, "visits").forgotten_at is not None
