import gzip
from pathlib import Path

import pandas as pd
import pytest

from ml_platform.stages import previews
from ml_platform_tests import fakes

ROWS = fakes.visits(20)


def written(folder: Path, name: str) -> Path:
    path = folder / name
    writers = {
        "a.parquet": lambda: ROWS.to_parquet(path, index=False),
        "a.csv": lambda: ROWS.to_csv(path, index=False),
        "a.csv.gz": lambda: ROWS.to_csv(path, index=False),
        "a.jsonl": lambda: ROWS.to_json(path, orient="records", lines=True, date_format="iso"),
    }
    writers[name]()
    return path


@pytest.mark.parametrize(
    ("name", "rows", "lines"),
    [("a.parquet", 20, None), ("a.csv", None, 21), ("a.csv.gz", None, 21), ("a.jsonl", None, 20)],
)
def test_a_preview_counts_and_shows_the_first_five(tmp_path: Path, name: str, rows: int, lines: int) -> None:
    found = previews.preview(written(tmp_path, name))

    assert found is not None
    assert (found.rows, found.lines) == (rows, lines)
    assert [row["visitor"] for row in found.head] == ["1", "2", "3", "4", "5"]
    assert list(found.head[0]) == list(ROWS.columns)


@pytest.mark.parametrize(("name", "data"), [("a.parquet", b"none"), ("a.csv.gz", b"none"), ("a.jsonl", b"{")])
def test_what_cannot_be_read_has_no_preview(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)

    assert previews.preview(tmp_path / name) is None


def test_a_file_without_rows_has_an_empty_preview(tmp_path: Path) -> None:
    ROWS.head(0).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_bytes(b"")

    assert previews.preview(tmp_path / "a.parquet") == previews.Preview(rows=0, head=[])
    assert previews.preview(tmp_path / "a.csv") == previews.Preview(lines=0, head=[])


@pytest.mark.fault("D18")
def test_a_text_is_counted_so_far_and_no_further(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.csv.gz"
    with gzip.open(bomb, "wb") as writer:
        writer.write(b"a\n" * 5_000_000)

    found = previews.preview(bomb, most_bytes=2_000_000)

    assert found is not None
    assert 1_000_000 <= (found.lines or 0) < 2_000_000


def test_a_value_that_is_missing_is_an_empty_text(tmp_path: Path) -> None:
    pd.DataFrame({"a": pd.array([None], dtype="Int64")}).to_parquet(tmp_path / "a.parquet")

    assert previews.preview(tmp_path / "a.parquet") == previews.Preview(rows=1, head=[{"a": ""}])
