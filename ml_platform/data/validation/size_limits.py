"""Limits on a file's size and rows, checked in bounded memory: a decompression bomb is refused before rows are read.

A file above the deployment's limit is not copied; a note is stored in place of its bytes.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.data.validation.parquet_pages import require_bounded_pages
from ml_platform.errors import TooLargeError
from ml_platform.records.data import Arrival
from ml_platform.settings import MAX_FILE_BYTES

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 1 << 20
NOTE_SUFFIX = ".too-large.json"


def note(arrival: Arrival, max_bytes: int) -> bytes:
    """Return the note that replaces the bytes of a too large arrival: its key, its name and the problem, as JSON."""
    problem = (
        f"it has {arrival.size:,} bytes, and this deployment takes at most {max_bytes:,} (ML_PLATFORM_MAX_FILE_BYTES): "
        "its bytes were not kept"
    )
    return json.dumps({"arrival": arrival.key, "name": arrival.name, "problem": problem}).encode()


def is_note(path: Path) -> bool:
    """Return True if a stored file is the note on a too large file, which has no rows."""
    return path.name.endswith(NOTE_SUFFIX)


def require_bounded(path: Path, max_rows: int, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Refuse a Parquet, CSV or JSON Lines file that is too large, in memory that does not depend on its content.

    Parameters
    ----------
    path : Path
        Its suffix gives the format.
    max_rows : int
        Maximum number of rows. Each line of text counts as a row.
    max_bytes : int
        Maximum number of bytes, compressed and decompressed.

    Raises
    ------
    TooLargeError
        The file exceeds a limit; the message gives the numbers.
    UnreadableFileError
        A Parquet file's footer contradicts its pages.
    pyarrow.ArrowException, OSError
        The bytes do not have the suffix's format.
    """
    import pyarrow.parquet as pq

    require_file_size(path, max_bytes)
    if path.suffix == ".parquet":
        metadata = pq.read_metadata(path)
        _require(metadata.num_rows, max_rows, "rows")
        promised = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
        _require(promised, max_bytes, "bytes once it is decompressed")
        require_bounded_pages(path, max_bytes)
        return
    lines = returns = 0
    for block in read_blocks(path, max_bytes):
        lines, returns = lines + block.count(b"\n"), returns + block.count(b"\r")
        # One line more for the header. Lines may end in "\n", "\r" or both.
        if max(lines, returns) > max_rows + 1:
            raise TooLargeError(f"it has more than {max_rows + 1:,} lines, at most {max_rows:,} rows are taken")


def require_file_size(path: Path, max_bytes: int) -> None:
    """Refuse a file with more than `max_bytes` bytes, or the note in its place, with a `TooLargeError`."""
    if is_note(path):
        raise TooLargeError(json.loads(path.read_bytes())["problem"])
    _require(path.stat().st_size, max_bytes, "bytes")


def read_blocks(path: Path, max_bytes: int) -> Iterator[bytes]:
    """Yield the decompressed bytes of a text file, some at a time.

    Raises
    ------
    TooLargeError
        There are more than `max_bytes` bytes.
    OSError
        A file with the suffix ``.gz`` is no gzip stream.
    """
    size = 0
    with open_text(path) as stream:
        while block := stream.read(BLOCK):
            size += len(block)
            if size > max_bytes:
                raise TooLargeError(f"it has more than {max_bytes:,} bytes once it is decompressed")
            yield block


def open_text(path: Path) -> "pa.NativeFile":
    """Open a text file to read its decompressed bytes."""
    import pyarrow as pa

    # Arrow's decoder, which also reads the rows later: both see the same bytes.
    return pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None)


def _require(value: Any, maximum: int, unit: str) -> None:
    if value > maximum:
        raise TooLargeError(f"it has {value:,} {unit}, at most {maximum:,} are taken")
