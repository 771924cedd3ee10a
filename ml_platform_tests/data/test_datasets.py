from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_platform.data import datasets
from ml_platform.data.dataset_checks import build_dataset_report, target
from ml_platform.errors import DatasetError
from ml_platform_tests.support import fakes
from ml_platform_tests.support.delta_tables import publish

SPEC = fakes.visits_spec()
quick = settings(max_examples=30, deadline=None, database=None)
cells = st.fixed_dictionaries(
    {
        "a": st.none() | st.integers(-(2**63), 2**63 - 1),
        "b": st.none() | st.floats(allow_nan=False),
        "c": st.none() | st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=5),
    }
)
CELLS = pa.schema([("a", pa.int64()), ("b", pa.float64()), ("c", pa.string())])


def test_published_state_without_table_has_no_rows(tmp_path: Path) -> None:
    state = datasets.read_published_state(tmp_path / "rows")

    assert (state.version, state.open(SPEC.columns)) == (-1, None)


def test_published_state_other_columns_has_no_rows(tmp_path: Path) -> None:
    publish(tmp_path / "rows", fakes.visits(4), "a")

    assert datasets.read_published_state(tmp_path / "rows").open(SPEC.columns[1:]) is None


def test_published_rows_in_order_of_publication(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    for number, name in enumerate("cabed"):
        publish(table, fakes.visits(2, first=10 * number + 1), name)

    rows = datasets.read_published_state(table, 4).open(SPEC.columns, in_order=True)

    assert rows is not None
    assert rows.read("visitor")["visitor"].to_pylist() == [1, 2, 11, 12, 21, 22, 31, 32]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_published_rows_limited_to_times(tmp_path: Path, unit: str) -> None:
    table = tmp_path / "rows"
    for day in (1, 2, 3):
        publish(table, fakes.visits(2, day=day, first=day), str(day))
    rows = datasets.read_published_state(table).open(SPEC.columns)
    assert rows is not None
    noon = pa.scalar(1_704_196_800, pa.timestamp("s", "UTC")).cast(pa.timestamp(unit, "UTC"))

    rows.limit_times("seen_at", pa.scalar(1_704_153_600, pa.timestamp("s", "UTC")).cast(noon.type), noon)

    assert rows.read("visitor")["visitor"].to_pylist() == [2, 3]


def test_published_rows_extreme_times_do_not_overflow(tmp_path: Path) -> None:
    publish(tmp_path / "rows", fakes.visits(2), "a")
    rows = datasets.read_published_state(tmp_path / "rows").open(SPEC.columns)
    assert rows is not None

    rows.limit_times(
        "seen_at", *(pa.scalar(end, pa.int64()).cast(pa.timestamp("ms", "UTC")) for end in (-(2**63), 2**63 - 1))
    )

    assert rows.read("visitor").num_rows == 2


def test_published_rows_damaged_file_is_dataset_error(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    publish(table, fakes.visits(2), "a")
    for file in table.glob("*.parquet"):
        file.write_bytes(file.read_bytes()[:100])
    rows = datasets.read_published_state(table).open(SPEC.columns)
    assert rows is not None

    with pytest.raises(DatasetError, match="Published rows cannot be read"):
        rows.read("visitor")


# Pinning


def test_pin_returns_newest_row_per_entity(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    old, new = fakes.visits(4, day=1, seed=1), fakes.visits(2, day=2, seed=2)
    publish(table, old, "a")
    publish(table, new, "b")

    dataset, rows = datasets.pin(table, SPEC)

    expected = pd.concat([new, old[old["visitor"] > 2]], ignore_index=True)
    pd.testing.assert_frame_equal(rows, expected)
    assert (dataset.model, dataset.version, dataset.rows) == ("visits", 2, 4)
    assert list(rows.columns) == SPEC.columns


def test_pin_all_rows_orders_by_entity_and_time(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    new, old = fakes.visits(2, day=2, seed=2), fakes.visits(2, day=1, seed=1)
    publish(table, new, "a")
    publish(table, old, "b")

    dataset, rows = datasets.pin(table, fakes.visits_spec(rows="all"))

    expected = pd.concat([old.head(1), new.head(1), old.tail(1), new.tail(1)], ignore_index=True)
    pd.testing.assert_frame_equal(rows, expected)
    assert dataset.rows == 4


@pytest.mark.parametrize("split", ["entity", "time"])
def test_all_rows_of_entities_can_be_split(tmp_path: Path, split: str) -> None:
    spec = fakes.visits_spec(rows="all", split=split)
    for day in (1, 2, 3):
        publish(tmp_path / "rows", fakes.visits(100, day=day, seed=day), str(day))
    dataset, rows = datasets.pin(tmp_path / "rows", spec)

    report = build_dataset_report(dataset, rows, target(rows, spec), spec)

    assert report.problems == {}
    assert report.training_rows + report.holdout_rows == 300
    training, holdout = datasets.split(rows, spec)
    shared = set(training["visitor"]) & set(holdout["visitor"])
    assert bool(shared) == (split == "time")


def test_pin_old_version_is_unchanged(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    publish(table, fakes.visits(4), "a")
    before, rows_before = datasets.pin(table, SPEC)
    publish(table, fakes.visits(4, day=2, seed=9), "b")

    after, rows_after = datasets.pin(table, SPEC, before.version)

    assert after == before
    pd.testing.assert_frame_equal(rows_after, rows_before)
    assert datasets.pin(table, SPEC)[0].digest != before.digest


def test_pin_digest_is_independent_of_batches(tmp_path: Path) -> None:
    rows = fakes.visits(9)
    publish(tmp_path / "whole", rows, "a")
    publish(tmp_path / "parts", rows.iloc[::-1].head(5), "a")
    publish(tmp_path / "parts", rows.head(4), "b")

    digests = {datasets.pin(tmp_path / name, SPEC)[0].digest for name in ("whole", "parts")}

    assert len(digests) == 1


def test_pin_without_publication_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"Nothing was published for 'visits' yet.*ml-platform ingest visits"):
        datasets.pin(tmp_path / "rows", SPEC)


@pytest.mark.parametrize("version", [2, 10_000])
def test_pin_missing_version_is_an_error(tmp_path: Path, version: int) -> None:
    publish(tmp_path / "rows", fakes.visits(5), "a")

    with pytest.raises(DatasetError, match=f"Version {version} of .* cannot be read"):
        datasets.pin(tmp_path / "rows", SPEC, version)


@quick
@given(rows=st.lists(cells, min_size=1, max_size=6), data=st.data())
def test_digest_is_independent_of_order(rows: list[dict[str, object]], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(rows))
    columns = data.draw(st.permutations(CELLS.names))

    again = pa.Table.from_pylist(shuffled, schema=CELLS).select(columns)

    assert datasets.digest(again) == datasets.digest(pa.Table.from_pylist(rows, schema=CELLS))


@quick
@given(rows=st.lists(cells, min_size=1, max_size=6), data=st.data())
def test_digest_changes_with_any_cell(rows: list[dict[str, object]], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(rows) - 1))
    changed = data.draw(cells.filter(lambda row: row != rows[position]))

    before, after = (
        pa.Table.from_pylist(r, schema=CELLS) for r in (rows, [*rows[:position], changed, *rows[position + 1 :]])
    )

    assert datasets.digest(before) != datasets.digest(after)


def test_digest_counts_equal_rows() -> None:
    once = pa.table({"a": [1]})

    assert datasets.digest(once) != datasets.digest(pa.concat_tables([once, once]))


def test_digest_missing_text_differs_from_empty_text() -> None:
    assert datasets.digest(pa.table({"a": [""]})) != datasets.digest(pa.table({"a": pa.array([None], pa.string())}))


# Splitting


def test_split_keeps_each_row_once() -> None:
    rows = fakes.visits(200)

    training, holdout = datasets.split(rows, SPEC)

    pd.testing.assert_frame_equal(pd.concat([training, holdout]).sort_index(), rows)
    assert len(training) > 0
    assert len(holdout) > 0


@quick
@given(entities=st.lists(st.integers(1, 10**6), min_size=1, max_size=30), others=st.lists(st.integers(1, 10**6)))
def test_split_entity_side_is_independent_of_others(entities: list[int], others: list[int]) -> None:
    alone, together = (pd.DataFrame({"visitor": visitors}) for visitors in (entities, [*others, *entities]))

    held_out = set(datasets.split(alone, SPEC)[1]["visitor"])
    training, holdout = datasets.split(together, SPEC)

    assert set(holdout["visitor"]) & set(entities) == held_out
    assert set(training["visitor"]).isdisjoint(holdout["visitor"])


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_split_holdout_has_its_share(share: float) -> None:
    n = 5_000
    rows = pd.DataFrame({"visitor": np.arange(n)})

    _, holdout = datasets.split(rows, fakes.visits_spec(holdout_share=share))

    four_standard_errors = 4 * np.sqrt(share * (1 - share) / n)
    assert abs(len(holdout) / n - share) < four_standard_errors


def test_split_greater_holdout_contains_smaller() -> None:
    rows = fakes.visits(500)

    small, large = (datasets.split(rows, fakes.visits_spec(holdout_share=share))[1] for share in (0.1, 0.3))

    assert set(small["visitor"]) < set(large["visitor"])


def test_split_other_model_has_other_holdout() -> None:
    rows = fakes.visits(500)

    holdouts = [datasets.split(rows, fakes.visits_spec(name=name))[1] for name in ("visits", "others")]

    assert set(holdouts[0]["visitor"]) != set(holdouts[1]["visitor"])


def test_split_by_time_holds_out_newest_rows() -> None:
    rows = fakes.visits(100).sample(frac=1, random_state=0)

    training, holdout = datasets.split(rows, fakes.visits_spec(split="time", holdout_share=0.25))

    assert (len(training), len(holdout)) == (75, 25)
    assert training["seen_at"].max() < holdout["seen_at"].min()


def test_split_by_time_equal_times_stay_together() -> None:
    rows = fakes.visits(100)
    rows["seen_at"] = rows["seen_at"].clip(upper=rows["seen_at"].iloc[50])

    training, holdout = datasets.split(rows, fakes.visits_spec(split="time", holdout_share=0.5))

    assert (len(training), len(holdout)) == (50, 50)
    training, holdout = datasets.split(rows, fakes.visits_spec(split="time", holdout_share=0.2))
    assert (len(training), len(holdout)) == (100, 0)


@pytest.mark.parametrize("split", ["entity", "time"])
def test_split_no_rows_is_empty(split: str) -> None:
    training, holdout = datasets.split(fakes.visits(3).head(0), fakes.visits_spec(split=split))

    assert (len(training), len(holdout)) == (0, 0)
    assert list(training.columns) == list(holdout.columns) == SPEC.columns
