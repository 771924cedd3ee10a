"""The checksums of a Parquet file's pages, without decoding a page: Polars does not look at them.

A page's header is a Thrift struct in the compact protocol, and its fourth field the CRC-32 of the bytes that follow
(github.com/apache/parquet-format, src/main/thrift/parquet.thrift, PageHeader; thrift-compact-protocol.md).
"""

import mmap
import zlib
from pathlib import Path

from ml_platform.errors import UnreadableFileError

BOOLEANS, BYTE, INTEGERS, DOUBLE, BINARY, LISTS, STRUCT = {1, 2}, 3, {4, 5, 6}, 7, 8, {9, 10}, 12
COMPRESSED_SIZE, CRC = 3, 4


def verify_pages(path: Path) -> None:
    """Hold every page that has a checksum against it; a page that has none is not looked at.

    Raises
    ------
    UnreadableFileError
        Bytes were changed after they were written, or are no page.
    """
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                _verify_chunk(data, start, start + chunk.total_compressed_size, chunk.path_in_schema)


def _verify_chunk(data: mmap.mmap, place: int, end: int, column: str) -> None:
    while place < end:
        try:
            fields, start = _struct(data, place)
        except (IndexError, ValueError, RecursionError) as error:  # structs in structs in structs
            raise _unreadable(column, place) from error
        place = start + fields.get(COMPRESSED_SIZE, -1)
        if not start <= place <= end:
            raise _unreadable(column, start)
        checksum = fields.get(CRC)
        with memoryview(data) as view, view[start:place] as page:
            if checksum is not None and zlib.crc32(page) != checksum % 2**32:
                raise _unreadable(column, start)


def _unreadable(column: str, place: int) -> UnreadableFileError:
    return UnreadableFileError(
        f"it is no readable parquet file: a page of column {column!r} at byte {place} is not what was written"
    )


def _struct(data: mmap.mmap, place: int) -> tuple[dict[int, int], int]:
    """Return a struct's integers by field, and where it ends."""
    fields: dict[int, int] = {}
    number = 0
    while head := data[place]:
        place += 1
        step, kind = head >> 4, head & 15
        if step:
            number += step
        else:
            number, place = _integer(data, place)
        if kind in INTEGERS:
            fields[number], place = _integer(data, place)
        else:
            place = _skip(data, place, kind)
    return fields, place + 1


def _skip(data: mmap.mmap, place: int, kind: int) -> int:
    """Return where a value of no interest ends."""
    if kind in BOOLEANS:
        return place
    if kind == BINARY:
        length, place = _unsigned(data, place)
        return place + length
    if kind == STRUCT:
        return _struct(data, place)[1]
    if kind in {BYTE, DOUBLE}:
        return place + (1 if kind == BYTE else 8)
    raise ValueError(f"a page header has no value of type {kind}")


def _integer(data: mmap.mmap, place: int) -> tuple[int, int]:
    value, place = _unsigned(data, place)
    return value >> 1 ^ -(value & 1), place


def _unsigned(data: mmap.mmap, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        shift, place = shift + 7, place + 1
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("a number is too long")
