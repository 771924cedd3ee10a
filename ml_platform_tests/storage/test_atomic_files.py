import contextlib
from pathlib import Path

import pytest

from ml_platform.errors import StorageError
from ml_platform.storage import atomic_files


def test_write_creates_folders_and_nothing_else(tmp_path: Path) -> None:
    atomic_files.write(tmp_path / "a" / "b" / "file", b"old")
    atomic_files.write(tmp_path / "a" / "b" / "file", b"new")

    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "file"]


def test_write_failure_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")

    with contextlib.suppress(KeyError), atomic_files.temporary_beside(tmp_path / "file") as temporary:
        temporary.write_bytes(b"half of the n")
        raise KeyError

    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_write_name_of_any_length(tmp_path: Path) -> None:
    atomic_files.write(tmp_path / ("n" * 255), b"")

    assert (tmp_path / ("n" * 255)).exists()


def test_write_below_file_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")

    with pytest.raises(StorageError, match=rf"stored in {tmp_path}/a/b: File exists. Check that .* run the step again"):
        atomic_files.write(tmp_path / "a" / "b" / "file", b"")
