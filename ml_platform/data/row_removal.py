"""Read a file of rows without the rows of some entities; every other byte of text stays as it is.

Text is split into rows as validation splits it, so that rows have the same numbers. A row that validation cannot read
may still name an entity: it is removed if any of its words does.
"""

import gzip
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.data.erasure import canonical, rebuild_dictionaries
from ml_platform.data.validation.size_limits import is_note, require_bounded
from ml_platform.errors import DataError, UnreadableFileError, one_line
from ml_platform.model_spec import ModelSpec
from ml_platform.settings import MAX_FILE_BYTES

if TYPE_CHECKING:
    from ml_platform.data.validation.csv_structure import CsvStructure

# Characters between two words of a row that cannot be read. Ids may have points, signs and "@".
BETWEEN_WORDS = re.compile(r"""[\s,;:"'\[\]{}()<>=]+""")


def read_without_entities(
    source: Path, spec: ModelSpec, forgotten: Callable[[str], bool], max_bytes: int = MAX_FILE_BYTES
) -> tuple[bytes, list[int]]:
    """Read a Parquet, CSV or JSON Lines file without the rows of some entities.

    Parameters
    ----------
    forgotten : callable
        Returns True for the canonical text of an entity to remove.

    Returns
    -------
    data : bytes
        The file without these rows; empty if none was removed.
    removed : list of int
        Numbers of the removed rows, from 0.

    Raises
    ------
    DataError
        The file cannot be searched: its format is invalid, it has no entity column, it has more rows than the model
        allows, or more than `max_bytes` bytes, compressed or decompressed.
    """
    import pyarrow as pa

    if is_note(source):
        return b"", []
    search = _Search(spec, forgotten)
    try:
        if source.suffix == ".parquet":
            require_bounded(source, spec.max_batch_rows, max_bytes)
            return _filter_parquet(source, search)
        kept, removed = (_filter_json_lines if source.suffix == ".jsonl" else _filter_csv)(source, search, max_bytes)
    except (pa.ArrowException, OSError, EOFError, ValueError, KeyError, UnreadableFileError) as error:
        raise DataError(f"{source} cannot be searched for values of {spec.entity!r}: {one_line(error)}.") from error
    if not removed:
        return b"", []
    data = b"".join(kept)
    return (gzip.compress(data) if source.suffix == ".gz" else data), removed


@dataclass(frozen=True)
class _Search:
    spec: ModelSpec
    forgotten: Callable[[str], bool]

    def __call__(self, value: object) -> bool:
        return value is not None and self.forgotten(canonical(value, self.spec))

    def find_in(self, values: Iterable[object]) -> list[bool]:
        """Search many values; equal ones are searched once."""
        known: dict[object, bool] = {}
        return [known[value] if value in known else known.setdefault(value, self(value)) for value in values]

    def find_word(self, text: str) -> bool:
        """Return True if a row that cannot be read has an entity as one of its words, or as its whole text."""
        return any(self(word) for word in {text, *BETWEEN_WORDS.split(text)} if word)


def _filter_parquet(source: Path, search: _Search) -> tuple[bytes, list[int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, written = pq.read_table(source), io.BytesIO()
    found = search.find_in(rows.column(search.spec.entity).to_pylist())
    if any(found):
        pq.write_table(rebuild_dictionaries(rows.filter(pa.array([not remove for remove in found]))), written)
    return written.getvalue(), [number for number, remove in enumerate(found) if remove]


def _filter_json_lines(source: Path, search: _Search, max_bytes: int) -> tuple[list[bytes], list[int]]:
    from ml_platform.data.validation.text_rows import parse_object, read_lines

    require_bounded(source, search.spec.max_batch_rows, max_bytes)
    lines = [line for part in read_lines(source, max_bytes) for line in part]
    kept, removed = list[bytes](), list[int]()
    for number, line in enumerate(lines):
        pairs = parse_object(text := line.decode())
        if pairs is None:
            found = search.find_word(text)
        else:
            values = [value for key, value in pairs if key == search.spec.entity]
            found = any(search(leaf) for value in values for leaf in _list_leaves(value))
        removed += [number] if found else []
        kept += [] if found else [line, b"\n"]
    return kept, removed


def _list_leaves(value: Any) -> list[Any]:
    """Return the values in a JSON value: lists and objects have several."""
    nested, leaves = [value], []
    while nested:
        one = nested.pop()
        if isinstance(one, list | tuple):
            nested.extend(one)
        else:
            leaves.append(one)
    return leaves


def _filter_csv(source: Path, search: _Search, max_bytes: int) -> tuple[list[bytes], list[int]]:
    import numpy as np

    from ml_platform.data.validation.csv_structure import scan_csv
    from ml_platform.data.validation.size_limits import read_blocks, require_file_size
    from ml_platform.data.validation.text_rows import read_header

    require_file_size(source, max_bytes)
    structure = scan_csv(read_blocks(source, max_bytes), search.spec.max_batch_rows, offsets=True)
    columns = [place for place, name in enumerate(read_header(source, structure)) if name == search.spec.entity]
    if not columns:
        raise KeyError(search.spec.entity)
    data = b"".join(read_blocks(source, max_bytes))
    found = np.zeros(structure.rows, dtype=bool)
    ragged = structure.ragged[:, 0]
    whole = np.setdiff1d(np.arange(structure.rows), ragged, assume_unique=True)
    for place in columns:
        found[whole] |= np.array(search.find_in(_read_column(source, structure, place)), dtype=bool)
    for number in ragged.tolist():
        start, end = structure.offsets[number]
        found[number] = search.find_word(data[start:end].decode())
    first, end = structure.header
    kept = [data[first:end], *(data[start:stop] for start, stop in structure.offsets[~found])]
    return kept, np.flatnonzero(found).tolist()


def _read_column(source: Path, structure: "CsvStructure", place: int) -> list[str | None]:
    """Return the texts of a column of a CSV file, without rows that have other fields than the header."""
    import pyarrow as pa

    from ml_platform.data.validation.text_rows import read_csv_batches

    kinds: list[pa.DataType] = [pa.string()] * structure.fields
    texts: list[str | None] = []
    for batch in read_csv_batches(source, structure, kinds, only=place):
        texts += batch.column(0).to_pylist()
    if len(texts) != structure.rows - len(structure.ragged):
        raise UnreadableFileError(f"{len(texts):,} of its {structure.rows - len(structure.ragged):,} records were read")
    return texts
