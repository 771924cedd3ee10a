import gzip
from pathlib import Path

import pandas as pd
import pytest

from ml_platform.data import preview
from ml_platform_tests.support import fakes

ROWS = fakes.visits(20)


def write_rows(folder: Path, name: str) -> Path:
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
def test_preview_has_count_and_first_five_rows(tmp_path: Path, name: str, rows: int, lines: int) -> None:
    result = preview.preview(write_rows(tmp_path, name))

    assert result is not None
    assert (result.rows, result.lines) == (rows, lines)
    assert [row["visitor"] for row in result.head] == ["1", "2", "3", "4", "5"]
    assert list(result.head[0]) == list(ROWS.columns)


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.parquet", b"none"), ("a.csv.gz", b"none"), ("a.jsonl", b"{"), ("a.too-large.json", b'{"name": "a.csv"}')],
)
def test_preview_unreadable_file_is_none(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)

    assert preview.preview(tmp_path / name) is None


def test_preview_file_without_rows_is_empty(tmp_path: Path) -> None:
    ROWS.head(0).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_bytes(b"")

    assert preview.preview(tmp_path / "a.parquet") == preview.Preview(rows=0, head=[])
    assert preview.preview(tmp_path / "a.csv") == preview.Preview(lines=0, head=[])


@pytest.mark.fault("D18")
def test_preview_lines_are_counted_up_to_limit(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.csv.gz"
    with gzip.open(bomb, "wb") as writer:
        writer.write(b"a\n" * 5_000_000)

    result = preview.preview(bomb, max_bytes=2_000_000)

    assert result is not None
    assert 1_000_000 <= (result.lines or 0) < 2_000_000


def test_preview_missing_value_is_empty_text(tmp_path: Path) -> None:
    pd.DataFrame({"a": pd.array([None], dtype="Int64")}).to_parquet(tmp_path / "a.parquet")

    assert preview.preview(tmp_path / "a.parquet") == preview.Preview(rows=1, head=[{"a": ""}])
