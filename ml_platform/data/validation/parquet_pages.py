"""Read the headers of a Parquet file's pages without decoding a page: checksums, sizes, numbers of values.

Polars ignores the checksums, and a footer can be wrong. A page's header is a Thrift struct in the compact protocol: its
second field is the decompressed size of the page, its fourth the CRC-32 of the bytes that follow, and the header of a
data page within it starts with the number of values (github.com/apache/parquet-format,
src/main/thrift/parquet.thrift, PageHeader; thrift-compact-protocol.md).
"""

import itertools
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from ml_platform.errors import TooLargeError, UnreadableFileError

# Types in Thrift's compact protocol; WIDTHS: bytes after the type of true, false, a byte and a double.
INTEGERS, BINARY, STRUCT, WIDTHS = {4, 5, 6}, 8, 12, {1: 0, 2: 0, 3: 1, 7: 8}
UNCOMPRESSED_SIZE, COMPRESSED_SIZE, CRC, DATA_PAGE, DATA_PAGE_V2, VALUES = 2, 3, 4, 5, 8, 1
# Bytes per read of a header, and of a page.
HEADER, AT_ONCE = 2**9, 2**18
THREADS = 2


class Page(NamedTuple):
    """A page: offsets of its bytes in the file, decompressed size, number of values, and CRC-32 or None."""

    start: int
    end: int
    uncompressed: int
    values: int
    checksum: int | None


def verify_pages(path: Path) -> None:
    """Verify the checksum of every page that has one.

    Raises
    ------
    UnreadableFileError
        Bytes were changed after they were written, or are not a page.
    """
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    # zlib computes checksums without holding Python's lock.
    with ThreadPoolExecutor(THREADS) as threads:
        for done in [threads.submit(_verify_group, path, group) for group in groups]:
            done.result()


def _verify_group(path: Path, group: Any) -> None:
    # Read, not mapped: mapped bytes count as the process's memory, and the file may be larger than its limit.
    buffer = memoryview(bytearray(AT_ONCE))
    with path.open("rb", buffering=0) as file:
        for chunk in map(group.column, range(group.num_columns)):
            for page in _read_pages(file, chunk):
                if page.checksum is None:
                    continue
                checksum, position = 0, file.seek(page.start)
                while position < page.end:
                    size = file.readinto(buffer[: page.end - position])
                    if not size:
                        raise UnreadableFileError(f"it is no readable parquet file: it ends at byte {position}")
                    checksum, position = zlib.crc32(buffer[:size], checksum), position + size
                if checksum != page.checksum % 2**32:
                    raise _make_page_error(chunk.path_in_schema, page.start)


def require_bounded_pages(path: Path, max_bytes: int) -> None:
    """Refuse a file whose pages decompress to too many bytes, or whose footer has wrong numbers of values.

    A reader allocates memory by the footer and the page headers: this check bounds both.

    Raises
    ------
    TooLargeError
        The pages decompress to more than `max_bytes` bytes.
    UnreadableFileError
        The footer and the pages contradict each other, or bytes are not a page.
    """
    import pyarrow.parquet as pq

    metadata, total = pq.read_metadata(path), 0
    with path.open("rb", buffering=0) as file:
        for number, column in itertools.product(range(metadata.num_row_groups), range(metadata.num_columns)):
            group, values = metadata.row_group(number), 0
            chunk = group.column(column)
            for page in _read_pages(file, chunk):
                total, values = total + page.uncompressed, values + page.values
                if total > max_bytes:
                    raise TooLargeError(f"its pages decompress to more than {max_bytes:,} bytes")
            # A row of a nested column may hold several values.
            flat = metadata.schema.column(column).max_repetition_level == 0
            rows = group.num_rows if flat else None
            if values != chunk.num_values or rows not in {None, values}:
                promised = chunk.num_values if values != chunk.num_values else rows
                raise UnreadableFileError(
                    f"it is no readable parquet file: its footer names {promised:,} values of column "
                    f"{chunk.path_in_schema!r}, and its pages have {values:,}"
                )
    if metadata.num_rows != sum(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)):
        raise UnreadableFileError("it is no readable parquet file: its footer counts other rows than its row groups do")


def _read_pages(file: FileIO, chunk: Any) -> Iterator[Page]:
    position = chunk.dictionary_page_offset or chunk.data_page_offset
    end, column = position + chunk.total_compressed_size, chunk.path_in_schema
    while position < end:
        try:
            fields, length = _read_header(file, position, end)
        except (IndexError, ValueError, RecursionError) as error:  # structs nested too deeply
            raise _make_page_error(column, position) from error
        start = position + length
        position, uncompressed = start + fields.get(COMPRESSED_SIZE, -1), fields.get(UNCOMPRESSED_SIZE, -1)
        values = (fields.get(DATA_PAGE) or fields.get(DATA_PAGE_V2) or {VALUES: 0}).get(VALUES, -1)
        if not start <= position <= end or min(uncompressed, values) < 0:
            raise _make_page_error(column, start)
        yield Page(start, position, uncompressed, values, fields.get(CRC))


def _read_header(file: FileIO, position: int, end: int) -> tuple[dict[int, Any], int]:
    """Return a page header's integers and structs by field, and its length."""
    size = HEADER
    while True:
        file.seek(position)
        data = file.read(min(size, end - position))
        try:
            return _parse_struct(data, 0)
        except IndexError:
            # The statistics in a header may be long.
            if size >= end - position:
                raise
            size *= 8


def _make_page_error(column: str, position: int) -> UnreadableFileError:
    return UnreadableFileError(
        f"it is no readable parquet file: a page of column {column!r} at byte {position} is not what was written"
    )


def _parse_struct(data: bytes, position: int) -> tuple[dict[int, Any], int]:
    """Return a struct's integers and structs by field, and the position after its end."""
    fields: dict[int, Any] = {}
    number = 0
    while head := data[position]:
        position += 1
        step, kind = head >> 4, head & 15
        if step:
            number += step
        else:
            number, position = _parse_integer(data, position)
        if kind in INTEGERS:
            fields[number], position = _parse_integer(data, position)
        elif kind == STRUCT:
            fields[number], position = _parse_struct(data, position)
        elif kind == BINARY:
            length, position = _parse_unsigned(data, position)
            position += length
        elif kind not in WIDTHS:
            raise ValueError(f"a page header has no value of type {kind}")
        else:
            position += WIDTHS[kind]
    return fields, position + 1


def _parse_integer(data: bytes, position: int) -> tuple[int, int]:
    value, position = _parse_unsigned(data, position)
    return value >> 1 ^ -(value & 1), position


def _parse_unsigned(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        shift, position = shift + 7, position + 1
        if byte < 128:
            return value, position
        if shift > 63:
            raise ValueError("a number is too long")
