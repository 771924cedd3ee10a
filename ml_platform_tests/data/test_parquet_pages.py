"""Checksums and sizes of Parquet pages."""

from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_platform.data.validation import parquet_pages
from ml_platform.data.validation.parquet_pages import require_bounded_pages, verify_pages
from ml_platform.errors import TooLargeError, UnreadableFileError
from ml_platform_tests.support import fakes

ROWS = pa.Table.from_pandas(fakes.visits(300), preserve_index=False)


def write_rows(folder: Path, **options: object) -> Path:
    path = folder / "a.parquet"
    pq.write_table(ROWS, path, **options)
    return path


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("checksums", [True, False])
def test_pages_of_valid_file_pass(tmp_path: Path, version: str, codec: str, checksums: bool) -> None:
    path = write_rows(
        tmp_path,
        compression=codec,
        data_page_version=version,
        data_page_size=256,
        row_group_size=100,
        write_page_checksum=checksums,
    )

    verify_pages(path)
    require_bounded_pages(path, 2**20)


def test_pages_lists_and_nulls_match_the_footer(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"lists": [[1, 2], [], None, [3]], "holes": [None, 1, None, 2]}), path)

    require_bounded_pages(path, 2**20)  # raises if the counts differ

    with pytest.raises(TooLargeError, match="more than 1 bytes"):
        require_bounded_pages(path, 1)


@pytest.mark.fault("D18")
def test_header_endless_structs_in_file_are_unreadable(tmp_path: Path) -> None:
    path = write_rows(tmp_path)
    start = pq.read_metadata(path).row_group(0).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    end = start + pq.read_metadata(path).row_group(0).column(0).total_compressed_size
    data[start:end] = bytes([0x1C]) * (end - start)  # each byte starts a nested struct
    path.write_bytes(data)

    with pytest.raises(UnreadableFileError, match="is not what was written"):
        require_bounded_pages(path, 2**20)


@pytest.mark.parametrize(("name", "at_once"), [("HEADER", 1), ("HEADER", 8), ("AT_ONCE", 1), ("AT_ONCE", 100)])
@pytest.mark.parametrize("flipped", [False, True])
def test_pages_longer_than_one_read_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, at_once: int, flipped: bool
) -> None:
    monkeypatch.setattr(parquet_pages, name, at_once)
    path = write_rows(tmp_path, write_page_checksum=True)
    column = pq.read_metadata(path).row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[column.dictionary_page_offset + column.total_compressed_size - 1] ^= flipped
    path.write_bytes(data)

    with pytest.raises(UnreadableFileError) if flipped else nullcontext():
        verify_pages(path)


@pytest.mark.fault("D5")
@pytest.mark.parametrize("byte", [0x00, 0x16, 0x1C, 0x18, 0x1F, 0xFF])
def test_header_invalid_bytes_are_unreadable(tmp_path: Path, byte: int) -> None:
    path = write_rows(tmp_path, data_page_size=100_000, use_dictionary=False)
    column = pq.read_metadata(path).row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = (
        bytes([byte]) * column.total_compressed_size
    )
    path.write_bytes(data)

    with pytest.raises(UnreadableFileError, match="is not what was written"):
        verify_pages(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.mark.fault("D5")
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_pages_any_flipped_bit_is_detected(folder: Path, data: st.DataObject) -> None:
    path = write_rows(folder, write_page_checksum=True, write_statistics=False)
    column = pq.read_metadata(path).row_group(0).column(data.draw(st.integers(0, ROWS.num_columns - 1)))
    # Change the last bytes of a chunk, its last page's data: the checksum does not cover page headers.
    end = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size
    start = end - data.draw(st.integers(1, 8))
    changed = bytearray(path.read_bytes())
    changed[start] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)

    with pytest.raises(UnreadableFileError, match="is not what was written"):
        verify_pages(path)


@pytest.mark.fault("D18")
def test_header_endless_structs_are_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["x" * 50_000]}), path, compression="none", use_dictionary=False)
    start = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    changed = bytearray(path.read_bytes())
    changed[start : start + 40_000] = b"\x1c" * 40_000
    path.write_bytes(changed)

    with pytest.raises(UnreadableFileError, match="is not what was written"):
        verify_pages(path)
