import contextlib
from pathlib import Path

import pytest

from ml_platform import durable
from ml_platform.errors import StorageError


def test_a_file_is_written_with_the_folders_that_it_needs_and_nothing_else(tmp_path: Path) -> None:
    durable.write(tmp_path / "a" / "b" / "file", b"old")
    durable.write(tmp_path / "a" / "b" / "file", b"new")

    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "file"]


def test_what_a_failed_write_leaves_is_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")

    with contextlib.suppress(KeyError), durable.temporary_beside(tmp_path / "file") as temporary:
        temporary.write_bytes(b"half of the n")
        raise KeyError

    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_name_of_any_length_can_be_written(tmp_path: Path) -> None:
    durable.write(tmp_path / ("n" * 255), b"")

    assert (tmp_path / ("n" * 255)).exists()


def test_a_file_where_a_folder_should_be_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")

    with pytest.raises(StorageError, match=rf"stored in {tmp_path}/a/b: File exists. See that .* run the step again"):
        durable.write(tmp_path / "a" / "b" / "file", b"")
