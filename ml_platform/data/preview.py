"""Preview an arrival's bytes: number of rows or lines, and the first rows."""

import csv
import gzip
import io
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ml_platform.data.validation.size_limits import is_note
from ml_platform.errors import shorten
from ml_platform.settings import MAX_FILE_BYTES

HEAD = 5
MAX_COLUMNS = 200
BLOCK = 1 << 20
# Bytes of text that the first rows are read from: a longer line is not a row of a table.
LONGEST_HEAD = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The beginning of a file.

    Parameters
    ----------
    rows : int or None
        Number of rows in a Parquet file's footer; ``None`` for text, whose rows are not counted.
    lines : int or None
        Number of lines of a text file, including the header; ``None`` for Parquet.
    head : list of dict
        Up to five rows, up to `MAX_COLUMNS` values of each as text by column; longer texts are cut.
    """

    rows: int | None = None
    lines: int | None = None
    head: list[dict[str, str]]


def preview(path: Path, max_bytes: int = MAX_FILE_BYTES) -> Preview | None:
    """Read the beginning of a Parquet, CSV or JSON Lines file.

    Parameters
    ----------
    path : Path
        Its suffix gives the format.
    max_bytes : int
        Maximum number of decompressed bytes of text to read.

    Returns
    -------
    Preview or None
        ``None`` if the bytes do not have the suffix's format, or the file was too large to be stored; validation
        reports the reason.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if is_note(path):
        return None
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as parquet:
                first = next(parquet.iter_batches(batch_size=HEAD), None)
                rows = [] if first is None else first.slice(0, HEAD).to_pylist()
                return Preview(rows=parquet.metadata.num_rows, head=[_format_row(row.items()) for row in rows])
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            block = file.read(LONGEST_HEAD)
            text = io.StringIO(block.decode("utf-8-sig", errors="replace"), newline="")
            if path.suffix == ".jsonl":
                documents = [json.loads(line) for line in itertools.islice(text, HEAD) if line.strip()]
                head = [_format_row(row.items()) for row in documents if isinstance(row, dict)]
            else:
                rows = list(itertools.islice(csv.reader(text), HEAD + 1))
                head = [_format_row(zip(rows[0], row, strict=False)) for row in rows[1:]]
            lines, size, last = 0, 0, b"\n"
            while block and size < max_bytes:
                lines, size, last = lines + block.count(b"\n"), size + len(block), block[-1:]
                block = file.read(BLOCK)
        return Preview(lines=lines + (last != b"\n"), head=head)
    except (pa.ArrowException, OSError, EOFError, ValueError, csv.Error):
        return None


def _format_row(row: Iterable[tuple[object, object]]) -> dict[str, str]:
    return {
        shorten(str(name)): "" if value is None else shorten(str(value))
        for name, value in itertools.islice(row, MAX_COLUMNS)
    }
