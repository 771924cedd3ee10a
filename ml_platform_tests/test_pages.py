"""Every byte of a page is covered by its checksum."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_platform.errors import UnreadableFileError
from ml_platform.pages import require_bounded_pages, verify_pages
from ml_platform_tests import fakes

ROWS = pa.Table.from_pandas(fakes.visits(300), preserve_index=False)


def written(folder: Path, **options: object) -> Path:
    path = folder / "a.parquet"
    pq.write_table(ROWS, path, **options)
    return path


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("checksums", [True, False])
def test_whole_pages_pass(tmp_path: Path, version: str, codec: str, checksums: bool) -> None:
    path = written(
        tmp_path,
        compression=codec,
        data_page_version=version,
        data_page_size=256,
        row_group_size=100,
        write_page_checksum=checksums,
    )

    verify_pages(path)
    require_bounded_pages(path, 2**20)


def test_lists_and_missing_values_are_counted_as_their_footer_counts_them(tmp_path: Path) -> None:
    pq.write_table(pa.table({"lists": [[1, 2], [], None, [3]], "holes": [None, 1, None, 2]}), tmp_path / "a.parquet")

    require_bounded_pages(tmp_path / "a.parquet", 2**20)


@pytest.mark.fault("D18")
def test_structs_in_structs_without_end_are_no_page(tmp_path: Path) -> None:
    path = written(tmp_path)
    place = pq.read_metadata(path).row_group(0).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    end = place + pq.read_metadata(path).row_group(0).column(0).total_compressed_size
    data[place:end] = bytes([0x1C]) * (end - place)  # each byte begins a struct within the one before
    path.write_bytes(data)

    with pytest.raises(UnreadableFileError, match="is not what was written"):
        require_bounded_pages(path, 2**20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.mark.fault("D5")
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_bit_flipped_in_a_page_is_noticed(folder: Path, data: st.DataObject) -> None:
    path = written(folder, write_page_checksum=True, write_statistics=False)
    column = pq.read_metadata(path).row_group(0).column(data.draw(st.integers(0, ROWS.num_columns - 1)))
    # The last bytes of a chunk are its last page's data: its header is not covered by the checksum.
    end = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size
    place = end - data.draw(st.integers(1, 8))
    changed = bytearray(path.read_bytes())
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)

    with pytest.raises(UnreadableFileError, match="is not what was written"):
        verify_pages(path)
