"""The checksums of a Parquet file's pages, without decoding a page: Polars does not look at them.

A page's header is a Thrift struct in the compact protocol, and its fourth field the CRC-32 of the bytes that follow
(github.com/apache/parquet-format, src/main/thrift/parquet.thrift, PageHeader; thrift-compact-protocol.md).
"""

import zlib
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from ml_platform.errors import UnreadableFileError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

BOOLEANS, BYTE, INTEGERS, DOUBLE, BINARY, LISTS, STRUCT = {1, 2}, 3, {4, 5, 6}, 7, 8, {9, 10}, 12
COMPRESSED_SIZE, CRC = 3, 4
# Bytes that are read at once, of a header and of what follows.
HEADER, AT_ONCE = 2**9, 2**18
THREADS = 2


def verify_pages(path: Path) -> None:
    """Hold every page that has a checksum against it; a page that has none is not looked at.

    Raises
    ------
    UnreadableFileError
        Bytes were changed after they were written, or are no page.
    """
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    # Checksums are computed outside of Python's lock.
    with ThreadPoolExecutor(THREADS) as threads:
        for done in [threads.submit(_verify_group, path, group) for group in groups]:
            done.result()


def _verify_group(path: Path, group: "pq.RowGroupMetaData") -> None:
    buffer = memoryview(bytearray(AT_ONCE))
    with path.open("rb", buffering=0) as file:
        for chunk in map(group.column, range(group.num_columns)):
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            _verify_chunk(file, buffer, start, start + chunk.total_compressed_size, chunk.path_in_schema)


def _verify_chunk(file: FileIO, buffer: memoryview, place: int, end: int, column: str) -> None:
    while place < end:
        try:
            fields, length = _header(file, place, end)
        except (IndexError, ValueError, RecursionError) as error:  # structs in structs in structs
            raise _unreadable(column, place) from error
        start = place + length
        place = start + fields.get(COMPRESSED_SIZE, -1)
        if not start <= place <= end:
            raise _unreadable(column, start)
        checksum = fields.get(CRC)
        if checksum is not None and _crc(file, buffer, start, place) != checksum % 2**32:
            raise _unreadable(column, start)


def _header(file: FileIO, place: int, end: int) -> tuple[dict[int, int], int]:
    """Return a page header's integers by field, and its length."""
    size = HEADER
    while True:
        file.seek(place)
        data = file.read(min(size, end - place))
        try:
            return _struct(data, 0)
        except IndexError:
            # The statistics in a header may be long.
            if size >= end - place:
                raise
            size *= 8


def _crc(file: FileIO, buffer: memoryview, place: int, end: int) -> int:
    # Read, not mapped: what is mapped stays in the process's memory, and a file is larger than that may be.
    checksum = 0
    file.seek(place)
    while place < end:
        read = file.readinto(buffer[: end - place])
        if not read:
            raise UnreadableFileError(f"it is no readable parquet file: it ends at byte {place}")
        checksum = zlib.crc32(buffer[:read], checksum)
        place += read
    return checksum


def _unreadable(column: str, place: int) -> UnreadableFileError:
    return UnreadableFileError(
        f"it is no readable parquet file: a page of column {column!r} at byte {place} is not what was written"
    )


def _struct(data: bytes, place: int) -> tuple[dict[int, int], int]:
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


def _skip(data: bytes, place: int, kind: int) -> int:
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


def _integer(data: bytes, place: int) -> tuple[int, int]:
    value, place = _unsigned(data, place)
    return value >> 1 ^ -(value & 1), place


def _unsigned(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        shift, place = shift + 7, place + 1
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("a number is too long")
