"""A first look at the bytes of an arrival: how many rows or lines they have, and what the first ones say."""

import csv
import gzip
import io
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

HEAD = 5
MOST_BYTES = 1 << 33
BLOCK = 1 << 20
# Nobody looks at a preview for more: a line that is longer is no table's.
LONGEST_HEAD = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a file begins with.

    Parameters
    ----------
    rows : int or None
        As a Parquet file's footer has it; ``None`` for text, whose rows only a reader can tell.
    lines : int or None
        Lines of a text, a header among them; ``None`` for Parquet.
    head : list of dict
        Up to five rows, values as text, by column.
    """

    rows: int | None = None
    lines: int | None = None
    head: list[dict[str, str]]


def preview(path: Path, most_bytes: int = MOST_BYTES) -> Preview | None:
    """Look at a Parquet, CSV or JSON Lines file.

    Parameters
    ----------
    path : Path
        Its suffix says what it is.
    most_bytes : int
        Text is read so far, decompressed bytes counted, and no further.

    Returns
    -------
    Preview or None
        ``None`` if the bytes are not what the name says; validation is going to say why.
    """
    import pyarrow as pa

    try:
        return _parquet(path) if path.suffix == ".parquet" else _text(path, most_bytes)
    except (pa.ArrowException, OSError, EOFError, ValueError, csv.Error):
        return None


def _parquet(path: Path) -> Preview:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        first = next(file.iter_batches(batch_size=HEAD), None)
        rows = [] if first is None else first.slice(0, HEAD).to_pylist()
        return Preview(rows=file.metadata.num_rows, head=[_shown(row.items()) for row in rows])


def _text(path: Path, most_bytes: int) -> Preview:
    with _opened(path) as file:
        first = file.read(LONGEST_HEAD)
        text = io.StringIO(first.decode("utf-8-sig", errors="replace"), newline="")
        head = _json_head(text) if path.suffix == ".jsonl" else _csv_head(text)
        return Preview(lines=_lines(first, file, most_bytes), head=head)


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _csv_head(text: io.StringIO) -> list[dict[str, str]]:
    rows = list(itertools.islice(csv.reader(text), HEAD + 1))
    return [_shown(zip(rows[0], row, strict=False)) for row in rows[1:]]


def _json_head(text: io.StringIO) -> list[dict[str, str]]:
    rows = [json.loads(line) for line in itertools.islice(text, HEAD) if line.strip()]
    return [_shown(row.items()) for row in rows if isinstance(row, dict)]


def _shown(row: Iterable[tuple[object, object]]) -> dict[str, str]:
    return {str(name): "" if value is None else str(value) for name, value in row}


def _lines(first: bytes, file: IO[bytes], most_bytes: int) -> int:
    lines, read, last, block = 0, 0, b"\n", first
    while block and read < most_bytes:
        lines, read, last = lines + block.count(b"\n"), read + len(block), block[-1:]
        block = file.read(BLOCK)
    return lines + (last != b"\n")
