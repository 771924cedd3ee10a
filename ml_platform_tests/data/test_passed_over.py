"""Full dumps and late files: rows that are published already, rows that contradict them, rows of earlier times."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_platform.data import datasets, quarantine
from ml_platform.data.landing import land_files
from ml_platform.data.pin import pin_dataset
from ml_platform.data.validation import schema_scan, validate
from ml_platform.data.validation.schema_compiler import UniqueRule
from ml_platform.governance import forget
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.data import BatchResult, Outcome
from ml_platform.storage import delta_table
from ml_platform_tests.support import fakes
from ml_platform_tests.support.delta_tables import arrow
from ml_platform_tests.support.delta_tables import publish as append
from ml_platform_tests.support.simulated_death import ProcessDiedError, die
from ml_platform_tests.support.steps import publish

SPEC = fakes.visits_spec()
TOLERANT = fakes.visits_spec(quarantine_tolerance=1.0)


def counts(result: BatchResult) -> tuple[int, int, int, int]:
    """Return the numbers of all rows, and of published, quarantined and passed over ones."""
    return result.rows, result.published_rows, result.quarantined_rows, result.passed_over_rows


def pinned(platform: Platform) -> pd.DataFrame:
    return datasets.pin(platform.rows("visits"), SPEC)[1]


def check(tmp_path: Path, rows: pd.DataFrame, *published: pd.DataFrame) -> validate.Report:
    """Validate rows against published ones."""
    for number, one in enumerate(published):
        append(tmp_path / "rows", one, str(number))
    return validate.validate(arrow(rows), TOLERANT, datasets.read_published_state(tmp_path / "rows"))


# Full dumps


@pytest.mark.fault("D24")
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_full_dump_publishes_new_rows_only(platform: Platform, suffix: str) -> None:
    first = fakes.visits(680)
    fakes.drop(platform, f"monday.{suffix}", first)
    publish(platform)
    dump = pd.concat([first, fakes.visits(30, first=2_000, day=2)], ignore_index=True)
    fakes.drop(platform, f"tuesday.{suffix}", dump)

    (result,) = publish(platform)

    assert result.outcome is Outcome.PUBLISHED
    assert counts(result) == (710, 30, 0, 680)
    assert result.reason == "30 rows in version 2, 680 passed over"
    assert platform.database.rows_published_after("visits", None) == 710
    pd.testing.assert_frame_equal(pinned(platform), dump)


@pytest.mark.fault("D24")
def test_dump_without_new_rows_makes_no_version(platform: Platform) -> None:
    rows = fakes.visits(100)
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    fakes.drop(platform, "tuesday.csv", rows)

    (result,) = publish(platform)

    assert (result.outcome, result.dataset_version, result.rules) == (Outcome.PUBLISHED, None, {})
    assert counts(result) == (100, 0, 0, 100)
    assert result.reason == "no rows published, 100 passed over"
    assert delta_table.newest_version(platform.rows("visits")) == (1, 100)
    assert quarantine.show(platform, "visits") == []


@pytest.mark.fault("D24")
def test_tolerance_counts_no_passed_over_rows(platform: Platform) -> None:
    first, more = fakes.visits(100), fakes.visits(10, first=500)
    fakes.drop(platform, "monday.parquet", first)
    publish(platform)
    more.loc[0, "pages"] = -1
    fakes.drop(platform, "tuesday.parquet", pd.concat([first, more], ignore_index=True))

    (result,) = publish(platform)

    assert result.outcome is Outcome.QUARANTINED
    assert result.reason.startswith("1 of 10 rows are bad (10.0%, tolerance 5.0%)")
    assert counts(result) == (110, 0, 10, 100)


@pytest.mark.parametrize("column", ["pages", "seconds", "plan", "bought"])
def test_row_with_other_value_names_both(tmp_path: Path, column: str) -> None:
    before = fakes.visits(3).assign(pages=7, seconds=0.1, plan="free", bought="no")
    after = before.copy()
    after.loc[1, column] = {"pages": 8, "seconds": np.nextafter(0.1, 1), "plan": "paid", "bought": "yes"}[column]

    report = check(tmp_path, after, before)

    new, old = {
        "pages": ("8", "7"),
        "seconds": ("0.10000000000000002", "0.1"),
        "plan": ("'paid'", "'free'"),
        "bought": ("'yes'", "'no'"),
    }[column]
    assert report.rules == {"keys": {"as published": 1}}
    assert report.examples["keys"] == [
        "row 1: visitor must have the values that are published for its time: "
        f"got 2: {column} is {new} here, {old} published"
    ]
    assert (report.valid_rows, report.passed_over_rows) == (0, 2)


def test_long_values_and_many_columns_are_cut() -> None:
    frame = pa.table({"k": [1, 1], **{f"c{n}": ["x" * 100, "y" * 100] for n in range(7)}})
    batch = schema_scan.BatchScan(pl.LazyFrame(pl.from_arrow(frame)), 2, frame.schema, 10)
    rule = UniqueRule(columns=("k",), check="keys", name="one row a time", keep="first", shown=("k",))

    (broken,) = batch.check_keys(rule, None, "as published")

    assert len(broken.values[0]) < 1_000
    assert broken.values[0].endswith("and 2 more columns")


def test_bad_row_is_quarantined_though_published(tmp_path: Path) -> None:
    rows = fakes.visits(3).assign(plan="trial")

    report = check(tmp_path, rows, rows)

    assert (report.quarantined_rows, report.passed_over_rows) == (3, 0)
    assert list(report.rules) == ["values"]


@pytest.mark.fault("D24")
def test_crash_after_commit_keeps_passed_over_count(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fakes.visits(100)
    fakes.drop(platform, "monday.parquet", first)
    publish(platform)
    dump = pd.concat([first, fakes.visits(30, first=500)], ignore_index=True)
    dump.loc[3, "pages"] = 999
    fakes.drop(platform, "tuesday.parquet", dump)

    with monkeypatch.context() as died:
        died.setattr(type(platform.database), "record_outcome", die)
        with pytest.raises(ProcessDiedError):
            publish(platform)
    (result,) = publish(platform)

    assert counts(result) == (130, 30, 1, 99)
    assert result.rules == {"keys": {"as published": 1}}
    assert len(pinned(platform)) == 130


def test_erased_entity_is_not_compared(platform: Platform) -> None:
    first = fakes.visits(100)
    fakes.drop(platform, "monday.parquet", first)
    publish(platform)
    forget.forget(platform, SPEC, "7", reason="request 17", actor="ann")
    dump = pd.concat([first, fakes.visits(1, first=500)], ignore_index=True)
    fakes.drop(platform, "tuesday.parquet", dump)

    (result,) = publish(platform)

    assert counts(result) == (100, 1, 0, 99)
    assert 7 not in set(pinned(platform)["visitor"])


# Late files


@pytest.mark.fault("D24")
def test_late_file_is_published_with_its_times(platform: Platform) -> None:
    march = fakes.visits(60, day=20)
    february = fakes.visits(100, day=10, seed=1)
    fakes.drop(platform, "march.parquet", march)
    publish(platform)
    fakes.drop(platform, "february.parquet", february)

    (result,) = publish(platform)

    assert counts(result) == (100, 100, 0, 0)
    expected = pd.concat([march, february.tail(40)], ignore_index=True)
    pd.testing.assert_frame_equal(pinned(platform), expected)


def test_other_choice_of_rows_makes_a_version(platform: Platform) -> None:
    for day in (20, 10):
        fakes.drop(platform, f"{day}.parquet", fakes.visits(60, day=day, seed=day))
        publish(platform)
    every = fakes.visits_spec(rows="all")

    pinned_datasets = [pin_dataset(platform, spec).dataset for spec in (SPEC, every, every, SPEC)]

    assert [(dataset.version, dataset.rows) for dataset in pinned_datasets] == [(2, 60), (3, 120), (3, 120), (4, 60)]
    assert pinned_datasets[0].digest == pinned_datasets[3].digest


# Rows of one file


@pytest.mark.fault("D24")
def test_identical_row_of_file_is_passed_over(platform: Platform) -> None:
    rows = fakes.visits(100)
    fakes.drop(platform, "a.parquet", pd.concat([rows, rows.head(60)], ignore_index=True))

    (result,) = publish(platform)

    assert counts(result) == (160, 100, 0, 60)
    pd.testing.assert_frame_equal(pinned(platform), rows)


def test_contradicting_row_of_file_names_both(tmp_path: Path) -> None:
    rows = fakes.visits(3).assign(pages=4)
    again = rows.head(1).assign(pages=5)

    report = check(tmp_path, pd.concat([rows, again, rows.head(1), again], ignore_index=True))

    assert report.examples["keys"] == [
        f"row {row}: visitor must come once at a time: got 1: pages is 5 here, 4 in an earlier row" for row in (3, 5)
    ]
    assert report.passed is not None
    assert (report.valid_rows, report.passed.nonzero()[0].tolist()) == (3, [4])


def test_good_row_after_bad_row_is_published(tmp_path: Path) -> None:
    rows = fakes.visits(3)
    bad = rows.head(1).assign(pages=-1)

    report = check(tmp_path, pd.concat([bad, rows], ignore_index=True))

    assert report.rules == {"values": {"greater_than_or_equal_to(0)": 1}}
    assert report.valid.equals(arrow(rows))


def test_missing_values_are_equal(tmp_path: Path) -> None:
    rows = arrow(fakes.visits(3))
    pages = pa.array([None, float("nan"), 1.0])
    rows = rows.set_column(2, "pages", pages)
    delta_table.publish(tmp_path / "rows", rows, arrival="a", sha256="a" * 64, notes={})

    state = datasets.read_published_state(tmp_path / "rows")
    same = validate.find_published_rows(rows, SPEC, state)
    other = validate.find_published_rows(rows.set_column(2, "pages", pages.take([2, 0, 1])), SPEC, state)

    assert same.tolist() == [True, True, True]
    assert other.tolist() == [False, False, False]


# Corrections


def land(platform: Platform, name: str, rows: pd.DataFrame, *, corrects: bool = True) -> BatchResult:
    """Land a file and publish it."""
    fakes.landing(platform)
    land_files(platform, "visits", {name: fakes.parquet_bytes(rows)}, corrects=corrects)
    (result,) = publish(platform)
    return result


@pytest.mark.fault("D24")
@pytest.mark.parametrize("rows_taken", ["newest", "all"])
def test_correction_replaces_published_rows(platform: Platform, rows_taken: Any) -> None:
    spec, right = fakes.visits_spec(rows=rows_taken), fakes.visits(100)
    land(platform, "monday.parquet", right.assign(pages=900), corrects=False)
    before, _ = datasets.pin(platform.rows("visits"), spec)
    wrong_again = land(platform, "tuesday.parquet", right.assign(pages=901), corrects=False)

    result = land(platform, "wednesday.parquet", right)

    assert (wrong_again.outcome, counts(result)) == (Outcome.QUARANTINED, (100, 100, 0, 0))
    pd.testing.assert_frame_equal(datasets.pin(platform.rows("visits"), spec)[1], right)
    assert datasets.pin(platform.rows("visits"), spec, before.version)[0] == before


def test_last_of_several_corrections_counts(platform: Platform) -> None:
    rows = fakes.visits(10)
    for pages, n in ((1, 9), (2, 8), (3, 7), (2, 6)):
        land(platform, f"{n}.parquet", rows.head(n).assign(pages=pages))

    assert pinned(platform)["pages"].tolist() == [2] * 6 + [3, 2, 1]


def test_correction_equal_to_published_is_passed_over(platform: Platform) -> None:
    rows = fakes.visits(10)
    land(platform, "a.parquet", rows.assign(pages=1))
    land(platform, "b.parquet", rows.assign(pages=2))

    current = land(platform, "c.parquet", rows.head(5).assign(pages=2))
    former = land(platform, "d.parquet", rows.head(4).assign(pages=1), corrects=False)
    back = land(platform, "e.parquet", rows.head(3).assign(pages=1))

    assert [counts(result) for result in (current, former, back)] == [(5, 0, 0, 5), (4, 0, 0, 4), (3, 3, 0, 0)]
    assert pinned(platform)["pages"].tolist() == [1] * 3 + [2] * 7


# Release


def test_release_passes_over_rows_published_since(platform: Platform) -> None:
    rows = fakes.visits(100)
    rows.loc[:2, "plan"] = "trial"
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    fixed = fakes.visits_spec(contract=fakes.VisitsWithTrials)
    fakes.drop(platform, "tuesday.parquet", pd.concat([rows.head(2), fakes.visits(1, first=500)], ignore_index=True))
    publish(platform, fixed)

    (released,) = quarantine.release(platform, fixed, ["monday.parquet"], actor="ann")
    (again,) = quarantine.release(platform, fixed, ["monday.parquet"], actor="ann")

    assert (released["released_rows"], released["stays"], again["released_rows"]) == (1, False, 0)
    assert released["passed_over_rows"] == 2
    (result,) = platform.database.outcomes("visits", [released["arrival"]])
    assert counts(result) == (100, 98, 0, 2)
    assert len(pinned(platform)) == 101


def test_release_of_file_published_since_passes_over(platform: Platform) -> None:
    rows = fakes.visits(100).assign(plan="trial")
    fakes.drop(platform, "monday.parquet", rows)
    publish(platform)
    fixed = fakes.visits_spec(contract=fakes.VisitsWithTrials)
    fakes.drop(platform, "tuesday.csv", rows)
    publish(platform, fixed)

    (released,) = quarantine.release(platform, fixed, ["monday.parquet"], actor="ann")

    assert (released["outcome"], released["released_rows"], released["stays"]) == ("published", 0, False)
    (result,) = platform.database.outcomes("visits", [released["arrival"]])
    assert counts(result) == (100, 0, 0, 100)
    assert quarantine.show(platform, "visits") == []


# Any sequence of files


rows_of_files = st.lists(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=6), min_size=1, max_size=4
)


@settings(max_examples=15, deadline=None, database=None)
@given(files=rows_of_files)
def test_any_order_of_files_gives_model_rows(tmp_path_factory: pytest.TempPathFactory, files: Any) -> None:
    keys = {key for file in files for key in file}
    newest = {entity: max(time for one, time in keys if one == entity) for entity, _ in keys}
    folder, datasets_pinned = tmp_path_factory.mktemp("any"), []

    for name, order in {"forward": files, "backward": files[::-1]}.items():
        model: set[tuple[int, int]] = set()
        for number, file in enumerate(order):
            report = publish_valid(folder / name, _frame(file), SPEC, str(number))
            assert (report.valid_rows, report.quarantined_rows) == (len(set(file) - model), 0)
            model.update(file)
        datasets_pinned.append(datasets.pin(folder / name, SPEC))

    for dataset, rows in datasets_pinned:
        pages = {entity: _pages((entity, time)) for entity, time in newest.items()}
        assert dict(zip(rows["visitor"], rows["pages"], strict=True)) == pages
        assert dataset.digest == datasets_pinned[0][0].digest


@settings(max_examples=25, deadline=None, database=None)
@given(
    files=st.lists(
        st.lists(st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(0, 1)), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    )
)
def test_first_published_values_win(tmp_path_factory: pytest.TempPathFactory, files: Any) -> None:
    table = tmp_path_factory.mktemp("any") / "rows"
    model: dict[tuple[int, int], int] = {}
    for number, cells in enumerate(files):
        frame = _frame([cell[:2] for cell in cells]).assign(pages=[cell[2] for cell in cells])
        report = publish_valid(table, frame, TOLERANT, str(number))
        expected = {"published": 0, "passed": 0, "bad": 0}
        for entity, time, pages in cells:
            known = model.setdefault((entity, time), -1)
            expected["published" if known == -1 else "passed" if known == pages else "bad"] += 1
            model[entity, time] = pages if known == -1 else known
        assert expected == {
            "published": report.valid_rows,
            "passed": report.passed_over_rows,
            "bad": report.quarantined_rows,
        }

    stored = datasets.read_published_state(table).open(SPEC.columns)

    assert stored is not None
    assert sorted(stored.read("pages")["pages"].to_pylist()) == sorted(model.values())


def publish_valid(table: Path, frame: pd.DataFrame, spec: ModelSpec, name: str) -> validate.Report:
    """Validate rows against a table and append the valid ones, if there are any."""
    report = validate.validate(arrow(frame), spec, datasets.read_published_state(table))
    if report.valid_rows:
        delta_table.publish(table, report.valid, arrival=name, sha256=name, notes={})
    return report


def _pages(key: tuple[int, int]) -> int:
    return 10 * key[0] + key[1]


def _frame(keys: list[tuple[int, int]]) -> pd.DataFrame:
    """Return one row for each entity and day, the same each time."""
    start = pd.Timestamp("2024-01-01", tz="UTC")
    return pd.DataFrame(
        {
            "visitor": [entity for entity, _ in keys],
            "seen_at": pd.Series([start + pd.Timedelta(days=day) for _, day in keys]).astype("datetime64[us, UTC]"),
            "pages": [_pages(key) for key in keys],
            "seconds": 1.0,
            "plan": "free",
            "bought": "yes",
        }
    ).astype({"plan": "str", "bought": "str"})
