import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_platform.errors import ConflictError, DatasetError
from ml_platform.stages import datasets
from ml_platform.stages.datasets import Publication
from ml_platform_tests import fakes

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


def arrow(frame: pd.DataFrame) -> Any:
    return pa.Table.from_pandas(frame, preserve_index=False)


def publish(table: Path, frame: pd.DataFrame, name: str) -> Publication:
    return datasets.publish(table, arrow(frame), arrival=f"{name}-key", sha256=name * 64, notes={"rows": len(frame)})


def test_a_published_batch_stands_in_the_table_with_its_arrival(tmp_path: Path) -> None:
    done = publish(tmp_path / "rows", fakes.visits(10), "a")

    stored = DeltaTable(tmp_path / "rows").to_pyarrow_table()
    rows = stored.drop_columns([datasets.ARRIVAL])
    assert done == Publication(version=DeltaTable(tmp_path / "rows").version(), notes={"rows": 10})
    assert rows.equals(arrow(fakes.visits(10)).cast(rows.schema))
    assert set(stored[datasets.ARRIVAL].to_pylist()) == {"a-key"}


@pytest.mark.fault("D2")
def test_the_same_bytes_are_committed_once_whoever_tries_and_whatever_came_between(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    first = publish(table, fakes.visits(10), "a")
    publish(table, fakes.visits(10, first=11), "b")

    again = datasets.publish(table, arrow(fakes.visits(10)), arrival="another-key", sha256="a" * 64, notes={"rows": 99})

    assert again == first == datasets.published(table, "a" * 64)
    assert DeltaTable(table).to_pyarrow_table().num_rows == 20


def test_each_batch_is_one_commit_and_is_found_by_its_bytes(tmp_path: Path) -> None:
    table = tmp_path / "rows"

    done = {name: publish(table, fakes.visits(i + 1, first=10 * i + 1), name) for i, name in enumerate("abc")}

    assert [publication.version for publication in done.values()] == [1, 2, 3]
    assert {name: datasets.published(table, name * 64) for name in "abc"} == done


def test_bytes_that_nobody_published_are_not_found(tmp_path: Path) -> None:
    assert datasets.published(tmp_path / "rows", "a" * 64) is None
    publish(tmp_path / "rows", fakes.visits(1), "a")
    assert datasets.published(tmp_path / "rows", "b" * 64) is None


def test_a_batch_whose_commit_is_missing_was_not_published_and_can_be_again(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    publish(table, fakes.visits(5), "a")
    before = {path for path in table.rglob("*") if path.is_file()}
    publish(table, fakes.visits(5, first=6), "b")
    commit = table / "_delta_log" / f"{2:020}.json"
    assert commit not in before
    commit.unlink()  # what a writer leaves that was killed before its commit: the rows' file and no more

    assert datasets.published(table, "b" * 64) is None
    assert datasets.pin(table, SPEC)[0].rows == 5
    assert publish(table, fakes.visits(5, first=6), "b").version == 2
    assert datasets.pin(table, SPEC)[0].rows == 10


def at_once(*tasks: Callable[[], Publication]) -> list[Publication]:
    """Start the tasks at the same moment in a thread each; return what they returned."""
    start = threading.Barrier(len(tasks))

    def run(task: Callable[[], Publication]) -> Publication:
        start.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(run, tasks))


@pytest.mark.parametrize("attempt", range(10))
@pytest.mark.parametrize("there_already", [False, True])
def test_writers_of_the_same_bytes_at_once_publish_them_once(tmp_path: Path, there_already: bool, attempt: int) -> None:
    table, rows = tmp_path / "rows", fakes.visits(10, seed=attempt)
    if there_already:
        publish(table, fakes.visits(10, first=11), "a")

    done = at_once(*[partial(publish, table, rows, "b")] * 3)

    assert done == [datasets.published(table, "b" * 64)] * 3
    assert done[0].notes == {"rows": 10}
    assert DeltaTable(table).to_pyarrow_table().num_rows == 10 * (1 + there_already)


@pytest.mark.parametrize("attempt", range(10))
def test_writers_of_different_bytes_at_once_learn_the_right_versions(tmp_path: Path, attempt: int) -> None:
    table = tmp_path / "rows"

    done = at_once(*(partial(publish, table, fakes.visits(i, seed=attempt), name) for i, name in enumerate("abc", 1)))

    assert done == [datasets.published(table, name * 64) for name in "abc"]
    assert sorted(publication.version for publication in done) == [1, 2, 3]
    for publication in done:
        before, after = (DeltaTable(table, version=publication.version - back) for back in (1, 0))
        added = after.to_pyarrow_table().num_rows - before.to_pyarrow_table().num_rows
        assert added == publication.notes["rows"]


@pytest.fixture
def rival(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return what lets somebody else commit first, before each of the next so many writes."""
    write = deltalake.write_deltalake

    def let_win(times: int) -> None:
        left = iter(range(times))

        def write_second(table: DeltaTable, data: Any, **options: Any) -> None:
            if next(left, None) is not None:
                write(table.table_uri, data.slice(0, 0), mode="append")
            write(table, data, **options)

        monkeypatch.setattr(deltalake, "write_deltalake", write_second)

    return let_win


def test_a_writer_whom_others_overtake_tries_again_on_what_they_wrote(
    tmp_path: Path, rival: Callable[[int], None]
) -> None:
    rival(datasets.ATTEMPTS - 2)

    done = publish(tmp_path / "rows", fakes.visits(10), "a")

    assert done.version == DeltaTable(tmp_path / "rows").version() == datasets.ATTEMPTS - 1
    assert datasets.published(tmp_path / "rows", "a" * 64) == done


def test_a_writer_who_is_always_overtaken_gives_up_and_wrote_nothing(
    tmp_path: Path, rival: Callable[[int], None]
) -> None:
    rival(datasets.ATTEMPTS)

    with pytest.raises(ConflictError, match=rf"{datasets.ATTEMPTS} times while a-key was published. Run it again"):
        publish(tmp_path / "rows", fakes.visits(10), "a")
    assert datasets.published(tmp_path / "rows", "a" * 64) is None
    assert DeltaTable(tmp_path / "rows").to_pyarrow_table().num_rows == 0


def test_the_newest_time_of_each_entity_is_that_of_its_newest_row(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    assert datasets.what_is_published(table, SPEC) == datasets.Published(version=-1, newest=None)
    old, new = fakes.visits(4, day=1), fakes.visits(2, day=2)
    publish(table, new, "a")
    publish(table, old, "b")

    newest = datasets.what_is_published(table, SPEC).newest

    assert newest is not None
    assert newest.to_dict() == {
        **dict(zip(old["visitor"], old["seen_at"], strict=True)),
        **dict(zip(new["visitor"], new["seen_at"], strict=True)),
    }


# Pinning


def test_a_pinned_version_has_each_entitys_newest_row(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    old, new = fakes.visits(4, day=1, seed=1), fakes.visits(2, day=2, seed=2)
    publish(table, old, "a")
    publish(table, new, "b")

    dataset, rows = datasets.pin(table, SPEC)

    expected = pd.concat([new, old[old["visitor"] > 2]], ignore_index=True)
    pd.testing.assert_frame_equal(rows, expected)
    assert (dataset.model, dataset.version, dataset.rows) == ("visits", 2, 4)
    assert list(rows.columns) == SPEC.columns


def test_an_old_version_stays_what_it_was(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    publish(table, fakes.visits(4), "a")
    before, rows_before = datasets.pin(table, SPEC)
    publish(table, fakes.visits(4, day=2, seed=9), "b")

    after, rows_after = datasets.pin(table, SPEC, before.version)

    assert after == before
    pd.testing.assert_frame_equal(rows_after, rows_before)
    assert datasets.pin(table, SPEC)[0].digest != before.digest


def test_the_digest_does_not_depend_on_how_the_rows_came(tmp_path: Path) -> None:
    rows = fakes.visits(9)
    publish(tmp_path / "whole", rows, "a")
    publish(tmp_path / "parts", rows.iloc[::-1].head(5), "a")
    publish(tmp_path / "parts", rows.head(4), "b")

    digests = {datasets.pin(tmp_path / name, SPEC)[0].digest for name in ("whole", "parts")}

    assert len(digests) == 1


def test_nothing_published_cannot_be_pinned(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"Nothing was published for 'visits' yet.*ml-platform ingest visits"):
        datasets.pin(tmp_path / "rows", SPEC)


@pytest.mark.parametrize("version", [2, 10_000])
def test_a_version_that_is_not_there_cannot_be_pinned(tmp_path: Path, version: int) -> None:
    publish(tmp_path / "rows", fakes.visits(5), "a")

    with pytest.raises(DatasetError, match=f"Version {version} of .* cannot be read"):
        datasets.pin(tmp_path / "rows", SPEC, version)


@quick
@given(rows=st.lists(cells, min_size=1, max_size=6), data=st.data())
def test_the_digest_of_rows_does_not_depend_on_the_order_of_rows_or_columns(
    rows: list[dict[str, object]], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(rows))
    columns = data.draw(st.permutations(CELLS.names))

    again = pa.Table.from_pylist(shuffled, schema=CELLS).select(columns)

    assert datasets.digest(again) == datasets.digest(pa.Table.from_pylist(rows, schema=CELLS))


@quick
@given(rows=st.lists(cells, min_size=1, max_size=6), data=st.data())
def test_the_digest_changes_with_any_cell(rows: list[dict[str, object]], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(rows) - 1))
    changed = data.draw(cells.filter(lambda row: row != rows[position]))

    before, after = (
        pa.Table.from_pylist(r, schema=CELLS) for r in (rows, [*rows[:position], changed, *rows[position + 1 :]])
    )

    assert datasets.digest(before) != datasets.digest(after)


def test_the_digest_counts_equal_rows() -> None:
    once = pa.table({"a": [1]})

    assert datasets.digest(once) != datasets.digest(pa.concat_tables([once, once]))


def test_a_missing_text_is_not_an_empty_one() -> None:
    assert datasets.digest(pa.table({"a": [""]})) != datasets.digest(pa.table({"a": pa.array([None], pa.string())}))


# Splitting


def test_a_split_loses_no_row_and_doubles_none() -> None:
    rows = fakes.visits(200)

    training, holdout = datasets.split(rows, SPEC)

    pd.testing.assert_frame_equal(pd.concat([training, holdout]).sort_index(), rows)
    assert len(training) > 0
    assert len(holdout) > 0


@quick
@given(entities=st.lists(st.integers(1, 10**6), min_size=1, max_size=30), others=st.lists(st.integers(1, 10**6)))
def test_an_entity_is_on_the_same_side_whoever_else_is_there(entities: list[int], others: list[int]) -> None:
    alone, together = (pd.DataFrame({"visitor": visitors}) for visitors in (entities, [*others, *entities]))

    held_out = set(datasets.split(alone, SPEC)[1]["visitor"])
    training, holdout = datasets.split(together, SPEC)

    assert set(holdout["visitor"]) & set(entities) == held_out
    assert set(training["visitor"]).isdisjoint(holdout["visitor"])


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_the_holdout_has_about_its_share_of_the_entities(share: float) -> None:
    n = 5_000
    rows = pd.DataFrame({"visitor": np.arange(n)})

    _, holdout = datasets.split(rows, fakes.visits_spec(holdout_share=share))

    four_standard_errors = 4 * np.sqrt(share * (1 - share) / n)
    assert abs(len(holdout) / n - share) < four_standard_errors


def test_a_greater_holdout_contains_the_smaller_one() -> None:
    rows = fakes.visits(500)

    small, large = (datasets.split(rows, fakes.visits_spec(holdout_share=share))[1] for share in (0.1, 0.3))

    assert set(small["visitor"]) < set(large["visitor"])


def test_another_model_holds_out_other_entities() -> None:
    rows = fakes.visits(500)

    holdouts = [datasets.split(rows, fakes.visits_spec(name=name))[1] for name in ("visits", "others")]

    assert set(holdouts[0]["visitor"]) != set(holdouts[1]["visitor"])


def test_a_split_by_time_holds_out_the_newest_rows() -> None:
    rows = fakes.visits(100).sample(frac=1, random_state=0)

    training, holdout = datasets.split(rows, fakes.visits_spec(split="time", holdout_share=0.25))

    assert (len(training), len(holdout)) == (75, 25)
    assert training["seen_at"].max() < holdout["seen_at"].min()


def test_rows_of_the_same_time_are_on_the_same_side() -> None:
    rows = fakes.visits(100)
    rows["seen_at"] = rows["seen_at"].clip(upper=rows["seen_at"].iloc[50])

    training, holdout = datasets.split(rows, fakes.visits_spec(split="time", holdout_share=0.5))

    assert (len(training), len(holdout)) == (50, 50)
    training, holdout = datasets.split(rows, fakes.visits_spec(split="time", holdout_share=0.2))
    assert (len(training), len(holdout)) == (100, 0)


@pytest.mark.parametrize("split", ["entity", "time"])
def test_splitting_no_rows_gives_none(split: str) -> None:
    training, holdout = datasets.split(fakes.visits(3).head(0), fakes.visits_spec(split=split))

    assert (len(training), len(holdout)) == (0, 0)
    assert list(training.columns) == list(holdout.columns) == SPEC.columns


# Giveaways


def labelled(n: int = 400) -> tuple[pd.DataFrame, Any]:
    rows = fakes.visits(n)
    return rows[SPEC.features], (rows["bought"] == "yes").to_numpy().astype("int64")


def test_honest_features_give_nothing_away() -> None:
    features, labels = labelled()

    assert datasets.giveaways(features, labels) == {}


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_that_equals_the_label_gives_it_away_either_way_round(sign: int) -> None:
    features, labels = labelled()

    assert datasets.giveaways(features.assign(copy=sign * labels), labels) == {"copy": 1.0}


def test_a_category_that_equals_the_label_gives_it_away() -> None:
    features, labels = labelled()

    assert datasets.giveaways(features.assign(copy=np.where(labels == 1, "y", "n")), labels) == {"copy": 1.0}


def test_a_giveaway_scores_as_scikit_learns_auc() -> None:
    from sklearn.metrics import roc_auc_score

    _, labels = labelled()
    almost = pd.DataFrame({"almost": labels.astype(float)})
    almost.loc[[0, 1], "almost"] = 0.5

    assert datasets.giveaways(almost, labels) == pytest.approx({"almost": roc_auc_score(labels, almost["almost"])})


def test_a_category_of_its_own_for_each_row_is_no_giveaway() -> None:
    _, labels = labelled()

    assert datasets.giveaways(pd.DataFrame({"id": [f"v{i}" for i in range(len(labels))]}), labels) == {}


def test_a_constant_category_is_no_giveaway_where_a_class_is_rare() -> None:
    labels = np.array([1] + [0] * 199)

    assert datasets.giveaways(pd.DataFrame({"same": ["x"] * 200}), labels) == {}


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_has_no_giveaways(label: int) -> None:
    assert datasets.giveaways(pd.DataFrame({"a": [1, 2, 3]}), np.array([label] * 3)) == {}


def test_a_publication_whose_commit_delta_cleaned_up_is_said_to_be_lost(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    for i, name in enumerate("ab"):
        publish(table, fakes.visits(10, first=1 + 10 * i), name)
    DeltaTable(table).create_checkpoint()
    for version in (0, 1):
        (table / "_delta_log" / f"{version:020}.json").unlink()

    with pytest.raises(DatasetError, match="was cleaned up"):
        datasets.published(table, "a" * 64)


def test_an_old_version_stays_readable_however_many_came_after_it(tmp_path: Path) -> None:
    table = tmp_path / "rows"
    publish(table, fakes.visits(10), "a")
    long_ago = 1_500_000_000
    for file in (table / "_delta_log").iterdir():
        os.utime(file, (long_ago, long_ago))

    # Delta checkpoints its log, and cleans up behind it, every hundred commits.
    for number in range(1, 106):
        publish(table, fakes.visits(1, first=1_000 + number), f"{number:03}")

    assert list((table / "_delta_log").glob("*.checkpoint.parquet"))
    assert datasets.pin(table, SPEC, 1)[0].rows == 10
    assert datasets.published(table, "a" * 64) == Publication(version=1, notes={"rows": 10})
