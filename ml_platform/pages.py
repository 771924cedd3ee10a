"""What the headers of a Parquet file's pages say, without decoding a page: checksums, sizes, numbers of values.

Polars does not look at the checksums, and a footer can say anything. A page's header is a Thrift struct in the compact
protocol: its second field is the size that the page decompresses to, its fourth the CRC-32 of the bytes that follow,
and the header of a data page within it starts with the number of values (github.com/apache/parquet-format,
src/main/thrift/parquet.thrift, PageHeader; thrift-compact-protocol.md).
"""

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from ml_platform.errors import TooLargeError, UnreadableFileError

BOOLEANS, BYTE, INTEGERS, DOUBLE, BINARY, LISTS, STRUCT = {1, 2}, 3, {4, 5, 6}, 7, 8, {9, 10}, 12
UNCOMPRESSED_SIZE, COMPRESSED_SIZE, CRC, DATA_PAGE, DATA_PAGE_V2, VALUES = 2, 3, 4, 5, 8, 1
# Bytes that are read at once, of a header and of what follows.
HEADER, AT_ONCE = 2**9, 2**18
THREADS = 2


class Page(NamedTuple):
    """Where a page's bytes stand, what they decompress to, its values, and its checksum; None if it has none."""

    start: int
    end: int
    uncompressed: int
    values: int
    checksum: int | None


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


def _verify_group(path: Path, group: Any) -> None:
    buffer = memoryview(bytearray(AT_ONCE))
    with path.open("rb", buffering=0) as file:
        for chunk in map(group.column, range(group.num_columns)):
            for page in _pages(file, chunk):
                if page.checksum is not None and _crc(file, buffer, page.start, page.end) != page.checksum % 2**32:
                    raise _unreadable(chunk.path_in_schema, page.start)


def require_bounded_pages(path: Path, most_bytes: int) -> None:
    """Refuse a file whose pages decompress to too much, or hold other numbers of values than its footer says.

    Whoever reads it allocates what the footer and the headers of the pages say: no more than both allow.

    Raises
    ------
    TooLargeError
        The pages decompress to more than `most_bytes`.
    UnreadableFileError
        The footer and the pages contradict each other, or something is no page.
    """
    import pyarrow.parquet as pq

    metadata, total = pq.read_metadata(path), 0
    with path.open("rb", buffering=0) as file:
        for rows, chunk in _chunks(metadata):
            values = 0
            for page in _pages(file, chunk):
                total, values = total + page.uncompressed, values + page.values
                if total > most_bytes:
                    raise TooLargeError(f"its pages decompress to more than {most_bytes:,} bytes")
            _require_values(chunk, rows, values)
    if metadata.num_rows != sum(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)):
        raise UnreadableFileError("it is no readable parquet file: its footer counts other rows than its row groups do")


def _require_values(chunk: Any, rows: int | None, values: int) -> None:
    if values != chunk.num_values or rows not in {None, values}:
        promised = chunk.num_values if values != chunk.num_values else rows
        raise UnreadableFileError(
            f"it is no readable parquet file: its footer names {promised:,} values of column {chunk.path_in_schema!r}, "
            f"and its pages have {values:,}"
        )


def _chunks(metadata: Any) -> Iterator[tuple[int | None, Any]]:
    """Yield every column chunk with the rows of its group; None where a row may hold several values."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in range(metadata.num_columns):
            flat = metadata.schema.column(column).max_repetition_level == 0
            yield (group.num_rows if flat else None), group.column(column)


def _pages(file: FileIO, chunk: Any) -> Iterator[Page]:
    place = chunk.dictionary_page_offset or chunk.data_page_offset
    end, column = place + chunk.total_compressed_size, chunk.path_in_schema
    while place < end:
        try:
            fields, length = _header(file, place, end)
        except (IndexError, ValueError, RecursionError) as error:  # structs in structs in structs
            raise _unreadable(column, place) from error
        start = place + length
        place, uncompressed = start + fields.get(COMPRESSED_SIZE, -1), fields.get(UNCOMPRESSED_SIZE, -1)
        values = (fields.get(DATA_PAGE) or fields.get(DATA_PAGE_V2) or {VALUES: 0}).get(VALUES, -1)
        if not start <= place <= end or min(uncompressed, values) < 0:
            raise _unreadable(column, start)
        yield Page(start, place, uncompressed, values, fields.get(CRC))


def _header(file: FileIO, place: int, end: int) -> tuple[dict[int, Any], int]:
    """Return a page header's integers and structs by field, and its length."""
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


def _struct(data: bytes, place: int) -> tuple[dict[int, Any], int]:
    """Return a struct's integers and structs by field, and where it ends."""
    fields: dict[int, Any] = {}
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
        elif kind == STRUCT:
            fields[number], place = _struct(data, place)
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
