"""How much a file may hold, found out without holding it: a bomb is refused before anything of it is read as rows.

A file that is larger than the deployment takes is not copied; a note is kept in the place of its bytes.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_platform.errors import TooLargeError
from ml_platform.pages import require_bounded_pages
from ml_platform.records import Arrival
from ml_platform.settings import MOST_BYTES

BLOCK = 1 << 20
NOTE_SUFFIX = ".too-large.json"


def note(arrival: Arrival, most_bytes: int) -> bytes:
    """Return what is kept in the place of an arrival's bytes that are too many: which it is, and why."""
    problem = (
        f"it has {arrival.size:,} bytes, and this deployment takes at most {most_bytes:,} (ML_PLATFORM_MOST_BYTES): "
        "its bytes were not kept"
    )
    return json.dumps({"arrival": arrival.key, "name": arrival.name, "problem": problem}).encode()


def is_note(path: Path) -> bool:
    """Whether a kept file is the note on one that was too large, which has no rows."""
    return path.name.endswith(NOTE_SUFFIX)


def require_bounded(path: Path, most_rows: int, most_bytes: int = MOST_BYTES) -> None:
    """Refuse a Parquet, CSV or JSON Lines file that holds too much, in memory that does not depend on what it holds.

    Parameters
    ----------
    path : Path
        Its suffix says what it is.
    most_rows : int
        The most rows. A line of text counts as one before it is read.
    most_bytes : int
        The most bytes, of the file and of what it decompresses to.

    Raises
    ------
    TooLargeError
        It holds more; the message gives the numbers.
    UnreadableFileError
        A Parquet file's footer does not tell the truth about its pages.
    pyarrow.ArrowException, OSError
        The bytes are not what the suffix says.
    """
    if is_note(path):
        raise TooLargeError(json.loads(path.read_bytes())["problem"])
    _require(path.stat().st_size, most_bytes, "bytes")
    if path.suffix == ".parquet":
        _require_bounded_parquet(path, most_rows, most_bytes)
    else:
        _require_bounded_text(path, most_rows, most_bytes)


def _require_bounded_parquet(path: Path, most_rows: int, most_bytes: int) -> None:
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    _require(metadata.num_rows, most_rows, "rows")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    promised = sum(group.total_byte_size for group in groups)
    _require(promised, most_bytes, "bytes once it is decompressed")
    require_bounded_pages(path, most_bytes)


def _require_bounded_text(path: Path, most_rows: int, most_bytes: int) -> None:
    read = lines = returns = 0
    for block in _blocks(path):
        read, lines, returns = read + len(block), lines + block.count(b"\n"), returns + block.count(b"\r")
        if read > most_bytes:
            raise TooLargeError(f"it has more than {most_bytes:,} bytes once it is decompressed")
        # The header's line is no row. A line may end in either sign or in both.
        if max(lines, returns) > most_rows + 1:
            raise TooLargeError(f"it has more than {most_rows + 1:,} lines, at most {most_rows:,} rows are taken")


def _blocks(path: Path) -> Iterator[bytes]:
    import pyarrow as pa

    # The decoder that reads the rows later, so that what is counted is what would be read.
    compression = "gzip" if path.suffix == ".gz" else None
    with pa.input_stream(str(path), compression=compression) as stream:
        yield from iter(lambda: stream.read(BLOCK), b"")


def _require(found: Any, most: int, what: str) -> None:
    if found > most:
        raise TooLargeError(f"it has {found:,} {what}, at most {most:,} are taken")
