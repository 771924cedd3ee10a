"""Read the rows of CSV and JSON Lines files; a row that cannot be read is one bad row, named with column and value.

Arrow splits the text into cells, and `value_grammar` gives each its value. The records of the file are counted apart
from Arrow: a file whose records and rows differ in number is refused.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.types as types
from numpy.typing import NDArray

from ml_platform.data.validation.csv_structure import MARK, CsvStructure, scan_csv
from ml_platform.data.validation.schema_scan import BrokenRule
from ml_platform.data.validation.size_limits import open_text, read_blocks, require_file_size
from ml_platform.data.validation.value_grammar import describe_type, quote, read_values
from ml_platform.errors import UnreadableFileError

OPEN, CLOSE = b"{}"
# Bytes that Arrow reads at once; more if a record is longer.
AT_ONCE = 1 << 22
# Maximum number of bytes of a record: Arrow counts the bytes of a block in 32 bits.
LONGEST_RECORD = 1 << 30
OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
# Lines that are read one by one to find those that Arrow cannot read.
FEW_LINES = 16


@dataclass(frozen=True)
class TextRows:
    """The rows of a text file.

    Parameters
    ----------
    table : pyarrow Table of shape (n_rows, n_columns)
        A row that cannot be read is null in every column.
    unread : ndarray of shape (n_rows,)
        True for rows that cannot be read.
    broken : list of BrokenRule
        Reasons, by column.
    """

    table: pa.Table
    unread: NDArray[np.bool_]
    broken: list[BrokenRule]

    def take(self, rows: Sequence[int]) -> "TextRows":
        """Return some rows, all unread ones among them, with new numbers."""
        new = {row: number for number, row in enumerate(rows)}
        broken = [replace(one, rows=[new[row] for row in one.rows]) for one in self.broken]
        return TextRows(self.table.take(pa.array(rows, pa.int64())), self.unread[list(rows)], broken)


class _Collector:
    """Collects the rows of a file, part by part, and the reasons why rows cannot be read."""

    def __init__(self, schema: pa.Schema, limit: int) -> None:
        self.schema, self.limit = schema, limit
        self.parts: list[pa.Table] = []
        self.unread: list[NDArray[np.bool_]] = []
        self.reasons: dict[tuple[str, str], BrokenRule] = {}
        self.rows = 0

    def refuse(self, column: str, rule: str, rows: Sequence[int], values: Sequence[str]) -> None:
        """Add rows that break a rule, numbered in the file; ``""`` as column stands for the whole row."""
        columns = (column,) if column else ()
        broken = self.reasons.get((column, rule), BrokenRule(columns, "schema", rule))
        free = max(self.limit - len(broken.rows), 0)
        broken.rows.extend(rows[:free])
        broken.values.extend(values[:free])
        self.reasons[column, rule] = replace(broken, count=broken.count + len(rows))

    def add(self, cells: Sequence[pa.Array], numbers: NDArray[np.int64], unread: NDArray[np.bool_]) -> None:
        """Add rows of a part of the file.

        Parameters
        ----------
        cells : sequence of pyarrow Arrays
            One for each column of the schema: values of its type, or texts.
        numbers : ndarray of int
            Number of each row of `cells` in the part; other rows of the part are unread.
        unread : ndarray of bool
            True for rows of the part that cannot be read, for a reason that was added already.
        """
        values, unread = [], unread.copy()
        for array, wanted in zip(cells, self.schema, strict=True):
            if array.type == wanted.type:
                values.append(array)
                continue
            read, failed = read_values(array, wanted.type)
            values.append(read)
            if failed.any():
                places = np.flatnonzero(failed)
                rows, texts = (numbers[places] + self.rows).tolist(), array.take(pa.array(places)).to_pylist()
                self.refuse(wanted.name, f"type({describe_type(wanted.type)})", rows, list(map(quote, texts)))
                unread[numbers[places]] = True
        part = pa.Table.from_arrays(values, schema=self.schema)
        if unread.any():
            place = np.zeros(len(unread), dtype=np.int64)
            place[numbers] = np.arange(len(numbers))
            part = part.take(pa.array(place, mask=unread))
        self.parts.append(part)
        self.unread.append(unread)
        self.rows += len(unread)

    def finish(self) -> TextRows:
        """Return all rows."""
        table = pa.concat_tables([self.schema.empty_table(), *self.parts])
        unread = np.concatenate([np.zeros(0, dtype=bool), *self.unread])
        return TextRows(table, unread, list(self.reasons.values()))


# CSV


def read_csv(path: Path, schema: pa.Schema, limit: int, max_rows: int, max_bytes: int) -> TextRows:
    """Read a CSV file, gzipped if its suffix is ``.gz``.

    Parameters
    ----------
    schema : pyarrow Schema
        The contract's columns; other columns of the file are text.
    limit : int
        Maximum number of unread rows named per rule.
    max_rows, max_bytes : int
        As of `require_bounded`; only line ends outside quotes are counted.

    Raises
    ------
    UnreadableFileError
        The file has no header, column names are not unique, fields have another separator, a quote does not close, the
        text is not UTF-8, or a record has more than `LONGEST_RECORD` bytes.
    TooLargeError
        The file has too many bytes or lines.
    pyarrow.ArrowException, OSError
        The bytes are no gzip stream, or a column's type is not supported.
    """
    require_file_size(path, max_bytes)
    structure = scan_csv(read_blocks(path, max_bytes), max_rows)
    names = read_header(path, structure)
    if len(set(names)) < len(names):
        raise UnreadableFileError(f"column names must be unique. Got {names} instead.")
    for separator, word in OTHER_SEPARATORS.items():
        if len(names) == 1 < len(schema) and separator in names[0]:
            raise UnreadableFileError(f"its fields are separated by {word}, and must be by commas")
    known = {field.name: field.type for field in schema}
    types_of_file = pa.schema([pa.field(name, known.get(name, pa.string())) for name in names])
    if structure.plain:
        # Arrow's own conversion is three times as fast, and takes and refuses the same values in such a file.
        with suppress(pa.ArrowInvalid):
            return read_csv_rows(path, structure, types_of_file, limit, converted=True)
    return read_csv_rows(path, structure, types_of_file, limit, converted=False)


def read_csv_rows(path: Path, structure: CsvStructure, schema: pa.Schema, limit: int, *, converted: bool) -> TextRows:
    """Read the rows of a CSV file.

    Parameters
    ----------
    converted : bool
        True to let Arrow convert the values of a plain file, False to read its texts by `value_grammar`.

    Raises
    ------
    pyarrow.ArrowInvalid
        With `converted`: a value must be read by `value_grammar`.
    UnreadableFileError
        Arrow read another number of rows than the file has records.
    """
    rows, ragged = _Collector(schema, limit), structure.ragged
    for fields in np.unique(ragged[:, 1]):
        numbers = ragged[ragged[:, 1] == fields][:, 0]
        rows.refuse("", f"fields({len(schema)})", numbers.tolist(), [f"{fields}"] * len(numbers))
    whole = np.ones(structure.rows, dtype=bool)
    whole[ragged[:, 0]] = False
    places = np.flatnonzero(whole)
    done = 0
    # Arrow converts the text of these types exactly as `value_grammar` does in a plain file.
    exact = (types.is_integer, types.is_floating, types.is_boolean, types.is_timestamp) if converted else ()
    kinds = [kind if any(of_kind(kind) for of_kind in exact) else pa.string() for kind in schema.types]
    for batch in read_csv_batches(path, structure, kinds):
        if converted and not _is_finite(batch.columns):
            raise pa.ArrowInvalid("a number is not finite")
        chosen = places[done : done + batch.num_rows]
        if len(chosen) < batch.num_rows:
            break
        # A part ends before the next row that Arrow has read.
        end = structure.rows if done + len(chosen) == len(places) else int(places[done + len(chosen)])
        rows.add(batch.columns, chosen - rows.rows, ~whole[rows.rows : end])
        done += batch.num_rows
    if not len(places):
        rows.add(rows.schema.empty_table().columns, places, ~whole)
    if rows.rows != structure.rows or done != len(places):
        raise UnreadableFileError(f"it is no readable csv file: {done:,} of its {len(places):,} records were read")
    return rows.finish()


def read_header(path: Path, structure: CsvStructure) -> list[str]:
    """Return the column names of a CSV file."""
    first, end = structure.header
    _require_short(end - first)
    with open_text(path) as stream:
        stream.read(first)
        text = bytes(stream.read(end - first)).decode()
    return next(csv.reader(io.StringIO(text, newline=""), strict=True))


def _is_finite(columns: Sequence[pa.Array]) -> bool:
    """Return False if a column has nan or infinity: Arrow takes further words for them, and 1e400."""
    numbers = [column for column in columns if types.is_floating(column.type)]
    return all(pc.all(pc.is_finite(column)).as_py() is not False for column in numbers)


def read_csv_batches(
    path: Path, structure: CsvStructure, kinds: Sequence[pa.DataType], only: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a CSV file, without those that have other fields than the header.

    Only an empty field is missing: "NA" may be a customer's name.

    Parameters
    ----------
    kinds : sequence of pyarrow DataType
        Types of the columns.
    only : int or None
        Number of the only column to return; ``None`` for all columns.
    """
    _require_short(structure.longest)
    if structure.rows == len(structure.ragged):
        return
    by_number = {str(number): kind for number, kind in enumerate(kinds)}
    read = pa.csv.ReadOptions(block_size=max(AT_ONCE, structure.longest + 2), column_names=list(by_number))
    parse = pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda _: "skip")
    convert = pa.csv.ConvertOptions(
        include_columns=None if only is None else [str(only)],
        column_types=by_number,
        null_values=[""],
        strings_can_be_null=True,
        check_utf8=False,
    )
    with open_text(path) as stream:
        skip = structure.header[1]
        while skip > 0:
            skip -= len(stream.read(min(skip, AT_ONCE)))
        yield from pa.csv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert)


def _require_short(size: int) -> None:
    if size > LONGEST_RECORD:
        raise UnreadableFileError(f"a record has {size:,} bytes, at most {LONGEST_RECORD:,} are read")


# JSON Lines


class _Number(str):
    """The text of a JSON number."""

    __slots__ = ()


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of a JSON object, repeated keys included."""


class _Cell(NamedTuple):
    """A value of a JSON object as text, and False if its JSON type is not that of the column."""

    text: str | None
    fits: bool

    @property
    def shown(self) -> str:
        return "null" if self.text is None else quote(self.text)


def read_json_lines(path: Path, schema: pa.Schema, limit: int, max_bytes: int) -> TextRows:
    """Read a JSON Lines file: one object a line, whose keys are columns of the contract. Blank lines are no rows.

    Parameters and errors are those of `read_csv`. A missing key is a missing value.
    """
    rows = _Collector(schema, limit)
    for lines in read_lines(path, max_bytes):
        _read_objects(rows, lines)
    if not rows.rows:
        raise UnreadableFileError("it is no readable jsonl file: it has no rows")
    return rows.finish()


def read_lines(path: Path, max_bytes: int) -> Iterator[list[bytes]]:
    """Yield the lines of a text file that are not blank, some at a time, without spaces around them."""
    number, buffer = 0, bytearray()

    def split(data: bytes) -> list[bytes]:
        if not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError as error:
                line = number + data[: error.start].count(b"\n") + 1
                raise UnreadableFileError(f"line {line} is not UTF-8 text: {error.reason}. Save it as UTF-8") from error
        return [line for line in (line.strip(b" \t\r") for line in data.split(b"\n")) if line]

    for block in read_blocks(path, max_bytes):
        buffer += block
        end = buffer.rfind(b"\n") + 1
        _require_short(len(buffer) - end)
        if end >= AT_ONCE:
            data = bytes(buffer[:end])
            yield split(data if number else data.removeprefix(MARK))
            number += data.count(b"\n")
            del buffer[:end]
    yield split(bytes(buffer) if number else bytes(buffer).removeprefix(MARK))


def _read_objects(rows: _Collector, lines: list[bytes]) -> None:
    """Add the objects of some lines: together by Arrow, or one by one if Arrow cannot read them all."""
    table = _read_with_arrow(rows.schema, lines)
    if table is not None:
        everything = np.arange(len(lines))
        for batch in table.combine_chunks().to_batches():
            rows.add(batch.columns, everything, np.zeros(len(lines), dtype=bool))
    elif len(lines) <= FEW_LINES:
        _read_one_by_one(rows, lines)
    else:
        half = len(lines) // 2
        _read_objects(rows, lines[:half])
        _read_objects(rows, lines[half:])


def _read_with_arrow(schema: pa.Schema, lines: list[bytes]) -> pa.Table | None:
    """Return a table, with texts for types that JSON lacks; None if a line is not an object with these types."""
    # Arrow crashes on other values. Lines of this form hold at least one object each, and no object of two lines.
    if not all(line[0] == OPEN and line[-1] == CLOSE for line in lines):
        return None
    kinds = (types.is_integer, types.is_floating, types.is_boolean)
    texts = [field.with_type(pa.string()) for field in schema]
    wanted = pa.schema(
        [
            field if any(of_kind(field.type) for of_kind in kinds) else text
            for field, text in zip(schema, texts, strict=True)
        ]
    )
    read = pa.json.ReadOptions(block_size=max(AT_ONCE // 4, max(map(len, lines), default=0) + 2))
    parse = pa.json.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="error")
    try:
        source = pa.BufferReader(b"\n".join(lines))
        table = pa.json.read_json(source, read_options=read, parse_options=parse).select(schema.names)
    except pa.ArrowInvalid:
        return None
    # Arrow accepts NaN and Infinity, which JSON does not have.
    return table if _is_finite(table.columns) and table.num_rows == len(lines) else None


def _read_one_by_one(rows: _Collector, lines: list[bytes]) -> None:
    cells: dict[str, list[str | None]] = {name: [] for name in rows.schema.names}
    unread = np.zeros(len(lines), dtype=bool)
    for place, line in enumerate(lines):
        values = _read_object(rows, line.decode(), rows.rows + place)
        unread[place] = values is None
        for name, texts in cells.items():
            if values is not None:
                texts.append(values.get(name))
    arrays = [pa.array(texts, pa.string()) for texts in cells.values()]
    rows.add(arrays, np.flatnonzero(~unread), unread)


def parse_object(line: str) -> list[tuple[str, Any]] | None:
    """Return the keys and values of a line's JSON object, numbers as text; None if it is not one object."""
    try:
        document = json.loads(
            line, object_pairs_hook=_Pairs, parse_int=_Number, parse_float=_Number, parse_constant=_Number
        )
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, _Pairs) else None


def _read_object(rows: _Collector, line: str, number: int) -> dict[str, str | None] | None:
    """Return the texts of a line's object by column; None after its problems were added to `rows`."""
    pairs = parse_object(line)
    if pairs is None:
        rows.refuse("", "object", [number], [quote(line)])
        return None
    values, good = dict[str, str | None](), True
    for key, value in pairs:
        place = rows.schema.get_field_index(key)
        kind = rows.schema.field(place).type if place >= 0 else None
        cell = _as_text(value, kind) if kind is not None else _Cell(None, fits=False)
        if kind is None:
            rows.refuse("", "known_keys", [number], [quote(key)])
        elif not cell.fits:
            rows.refuse(key, f"type({describe_type(kind)})", [number], [cell.shown])
        elif key in values:
            rows.refuse(key, "key_uniqueness", [number], [cell.shown])
        else:
            values[key] = cell.text
            continue
        good = False
    return values if good else None


def _as_text(value: object, kind: pa.DataType) -> _Cell:
    """Return a JSON value as the text of a cell."""
    numeric = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    if value is None:
        return _Cell(None, fits=True)
    if isinstance(value, bool):
        return _Cell(str(value).lower(), fits=types.is_boolean(kind))
    if isinstance(value, _Number):
        # "NaN" and "Infinity" are numbers of Python's reader, not of JSON.
        return _Cell(str(value), fits=numeric and value[-1].isdigit())
    if isinstance(value, str):
        text = value.encode(errors="replace").decode()
        return _Cell(text, fits=text == value and not numeric and not types.is_boolean(kind))
    return _Cell("[…]" if type(value) is list else "{…}", fits=False)
