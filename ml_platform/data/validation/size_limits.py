"""Limits on a file's size and rows, checked in bounded memory: a decompression bomb is refused before rows are read.

A file above the deployment's limit is not copied; a note is stored in place of its bytes.
"""

import json
from pathlib import Path
from typing import Any

from ml_platform.data.validation.parquet_pages import require_bounded_pages
from ml_platform.errors import TooLargeError
from ml_platform.records.data import Arrival
from ml_platform.settings import MAX_FILE_BYTES

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
    import pyarrow as pa
    import pyarrow.parquet as pq

    if is_note(path):
        raise TooLargeError(json.loads(path.read_bytes())["problem"])
    _require(path.stat().st_size, max_bytes, "bytes")
    if path.suffix == ".parquet":
        metadata = pq.read_metadata(path)
        _require(metadata.num_rows, max_rows, "rows")
        promised = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
        _require(promised, max_bytes, "bytes once it is decompressed")
        require_bounded_pages(path, max_bytes)
        return
    size = lines = returns = 0
    # Arrow's decoder, which also reads the rows later: both see the same bytes.
    compression = "gzip" if path.suffix == ".gz" else None
    with pa.input_stream(str(path), compression=compression) as stream:
        while block := stream.read(BLOCK):
            size, lines, returns = size + len(block), lines + block.count(b"\n"), returns + block.count(b"\r")
            if size > max_bytes:
                raise TooLargeError(f"it has more than {max_bytes:,} bytes once it is decompressed")
            # One line more for the header. Lines may end in "\n", "\r" or both.
            if max(lines, returns) > max_rows + 1:
                raise TooLargeError(f"it has more than {max_rows + 1:,} lines, at most {max_rows:,} rows are taken")


def _require(value: Any, maximum: int, unit: str) -> None:
    if value > maximum:
        raise TooLargeError(f"it has {value:,} {unit}, at most {maximum:,} are taken")
