r"""Find the records of CSV text in one pass of bounded memory: their number, fields and quotes.

A reader that meets a quote without an end takes the rest of the file for one cell, and may drop it silently. This pass
follows the quotes itself, so that such a file is refused and every record can be held against the rows that were read.

A field is quoted if its first character is a quote; ``""`` within it is one quote. Elsewhere a quote is a character as
any other. Lines end in ``\n``, ``\r\n`` or ``\r``; empty lines outside quotes are no records.
"""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ml_platform.errors import TooLargeError, UnreadableFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Positions = NDArray[np.int64]

NEWLINE, RETURN, QUOTE, COMMA = b'\n\r",'
SPACE, TAB, ZERO, LETTER_X = b" \t0x"
# The bit that upper-case letters lack.
LOWER = np.uint8(32)
MARK = codecs.BOM_UTF8
# Bytes beside which a quote opens or closes a field.
SEPARATORS = np.isin(np.arange(256), [NEWLINE, RETURN, COMMA])
BESIDE_QUOTES = SEPARATORS | (np.arange(256) == QUOTE)


@dataclass(frozen=True, kw_only=True)
class CsvStructure:
    """The records of a CSV file.

    Parameters
    ----------
    rows : int
        Number of records after the header.
    fields : int
        Number of fields of the header.
    header : tuple of int
        Offsets of the header's first byte and of the byte after its line, in the decompressed bytes.
    longest : int
        Number of bytes of the longest record.
    ragged : ndarray of shape (n_ragged, 2)
        Number and number of fields of each row with other fields than the header, in order.
    offsets : ndarray of shape (rows, 2)
        Offsets of each row's first byte and of the byte after its line; no rows unless they were asked for.
    plain : bool
        True if no field begins or ends with a space or tab, and ``0x`` does not occur: Arrow would take such numbers.
    """

    rows: int
    fields: int
    header: tuple[int, int]
    longest: int
    ragged: "Positions"
    offsets: "Positions"
    plain: bool


def scan_csv(blocks: Iterable[bytes], max_rows: int, *, offsets: bool = False) -> CsvStructure:
    """Find the records of a CSV file.

    Parameters
    ----------
    blocks : iterable of bytes
        The decompressed bytes, in parts of any size.
    max_rows : int
        Maximum number of rows. Each line outside quotes counts as a row.
    offsets : bool
        Keep the offsets of every row, 16 bytes each.

    Raises
    ------
    TooLargeError
        There are more lines than a header and `max_rows` rows.
    UnreadableFileError
        There is no header, a quote does not close, text follows a closing quote, or the text is not UTF-8.
    """
    scan = _Scan(max_rows, offsets)
    held = b""
    for block in _skip_mark(scan, blocks):
        if held:
            scan.read(held, block[0])
        held = block
    scan.read(held if held.endswith((b"\n", b"\r")) else held + b"\n", 0)
    return scan.finish()


def _skip_mark(scan: "_Scan", blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the blocks that have bytes, without the byte order mark that a file may begin with."""
    first = b""
    for block in blocks:
        if scan.position or len(first) >= len(MARK):
            yield from [block] if block else []
            continue
        first += block
        if len(first) >= len(MARK):
            if first.startswith(MARK):
                scan.position = scan.start = len(MARK)
            yield from [first[scan.position :]] if first[scan.position :] else []
    if len(first) < len(MARK) and first:
        yield first


def _is_plain(block: bytes, data: "NDArray[np.uint8]", previous: int, following: int) -> bool:
    """Return False if a space or tab is beside a separator, a quote or the file's end, or if ``0x`` occurs."""
    around = np.concatenate([np.array([previous], np.uint8), data, np.array([following], np.uint8)])
    if b" " in block or b"\t" in block:
        places = np.flatnonzero((data == SPACE) | (data == TAB))
        if BESIDE_QUOTES[around[places]].any() or BESIDE_QUOTES[around[places + 2]].any():
            return False
    if b"x" in block or b"X" in block:
        return not (around[np.flatnonzero(data | LOWER == LETTER_X)] == ZERO).any()
    return True


@dataclass
class _Scan:
    """State between two blocks."""

    max_rows: int
    keep_offsets: bool
    position: int = 0  # of the next block
    start: int = 0  # of the record that is open
    commas: int = 0  # of the record that is open
    lines: int = 0  # line ends, within quotes too
    records: int = 0  # line ends outside quotes
    rows: int = -1
    quoted: bool = False
    opened: int = 0  # line in which the newest quoted field begins
    plain: bool = True
    previous: int = NEWLINE  # byte before the next block; 0 for a quote that is a character
    fields: int = 0
    header: tuple[int, int] = (0, 0)
    longest: int = 0
    ragged: "list[Positions]" = field(default_factory=list)
    offsets: "list[Positions]" = field(default_factory=list)
    decoder: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8"))

    def read(self, block: bytes, following: int) -> None:
        """Read a block; `following` is the byte after it."""
        self.require_utf8(block)
        data = np.frombuffer(block, np.uint8)
        ends, commas = np.flatnonzero(data == NEWLINE), np.flatnonzero(data == COMMA)
        if b"\r" in block:
            after = np.append(data[1:], np.uint8(following))
            ends = np.flatnonzero((data == NEWLINE) | ((data == RETURN) & (after != NEWLINE)))
        self.plain = self.plain and _is_plain(block, data, self.previous, following)
        lines, last = len(ends), int(data[-1])
        if self.quoted or b'"' in block:
            quotes = self.find_quotes(data, np.flatnonzero(data == QUOTE), ends, following)
            commas, ends = (
                places[(np.searchsorted(quotes, places) + self.quoted) % 2 == 0] for places in (commas, ends)
            )
            self.quoted ^= bool(len(quotes) % 2)
            if last == QUOTE and not (len(quotes) and quotes[-1] == len(data) - 1):
                last = 0
        self.add_records(data, ends, commas)
        self.lines += lines
        self.position += len(data)
        self.previous = last

    def finish(self) -> CsvStructure:
        """Return the records, or refuse a file that ends within quotes or has no header."""
        if self.quoted:
            raise UnreadableFileError(f"the quote that opens a field in line {self.opened} does not close")
        if self.rows < 0:
            raise UnreadableFileError("it is no readable csv file: it has no header")
        none = np.empty((0, 2), np.int64)
        return CsvStructure(
            rows=self.rows,
            fields=self.fields,
            header=self.header,
            longest=self.longest,
            ragged=np.concatenate([none, *self.ragged]),
            offsets=np.concatenate([none, *self.offsets]),
            plain=self.plain,
        )

    def require_utf8(self, block: bytes) -> None:
        """Refuse a block that is not UTF-8, after those before it, with the line."""
        if block.isascii() and not self.decoder.getstate()[0]:
            return
        try:
            self.decoder.decode(block)
        except UnicodeDecodeError as error:
            line = self.lines + block[: error.start].count(b"\n") + 1
            raise UnreadableFileError(f"line {line} is not UTF-8 text: {error.reason}. Save it as UTF-8") from error

    def find_quotes(
        self, data: "NDArray[np.uint8]", quotes: "Positions", ends: "Positions", following: int
    ) -> "Positions":
        """Return the quotes that open or close a field, and those that are escaped, which close and open it again."""
        if not len(quotes):
            return quotes
        before, after = data[quotes - 1], data[np.minimum(quotes + 1, len(data) - 1)]
        if quotes[0] == 0:
            before[0] = self.previous
        if quotes[-1] == len(data) - 1:
            after[-1] = following
        inside = np.arange(len(quotes)) % 2 == (0 if self.quoted else 1)
        if not np.where(inside, BESIDE_QUOTES[after], BESIDE_QUOTES[before]).all():
            chosen = self.follow_quotes(quotes, before, after, ends)
            quotes, before = quotes[chosen], before[chosen]
            inside = np.arange(len(quotes)) % 2 == (0 if self.quoted else 1)
        openers = quotes[~inside & SEPARATORS[before]]
        if len(openers):
            self.opened = self._find_line(openers[-1], ends)
        return quotes

    def follow_quotes(
        self, quotes: "Positions", before: "NDArray[np.uint8]", after: "NDArray[np.uint8]", ends: "Positions"
    ) -> list[int]:
        """Return the numbers of the quotes that are no plain characters, one by one: slow, for rare files."""
        inside, opened, chosen = self.quoted, self.opened, list[int]()
        closed = -1 if self.previous == QUOTE else None
        for number, (place, left, right) in enumerate(zip(quotes.tolist(), before, after, strict=True)):
            if inside:
                inside, closed = False, place
                if not BESIDE_QUOTES[right]:
                    raise UnreadableFileError(
                        f"the quoted field that opens in line {opened} is followed by text in line "
                        f"{self._find_line(place, ends)}; a quote within a field is written as two"
                    )
            elif SEPARATORS[left]:
                inside, opened = True, self._find_line(place, ends)
            elif closed is not None and closed == place - 1:
                inside = True
            else:
                continue
            chosen.append(number)
        return chosen

    def _find_line(self, place: int, ends: "Positions") -> int:
        return self.lines + int(np.searchsorted(ends, place)) + 1

    def add_records(self, data: "NDArray[np.uint8]", ends: "Positions", commas: "Positions") -> None:
        """Count the records that end in a block, and their fields; `ends` and `commas` are outside quotes."""
        if not len(ends):
            self.commas += len(commas)
            return
        starts = np.append(self.start - self.position, ends[:-1] + 1)
        lengths, before = ends - starts, data[ends - 1]
        if ends[0] == 0:
            before[0] = self.previous
        fields = np.diff(np.searchsorted(commas, ends), prepend=0) + 1
        fields[0] += self.commas
        self.commas = len(commas) - int(np.searchsorted(commas, ends[-1]))
        self.start = self.position + int(ends[-1]) + 1
        self.longest = max(self.longest, int(lengths.max()))
        self.records += len(ends)
        if self.records > self.max_rows + 1:
            raise TooLargeError(
                f"it has more than {self.max_rows + 1:,} lines, at most {self.max_rows:,} rows are taken"
            )
        filled = (lengths > 1) | ((lengths == 1) & (before != RETURN))
        offsets, fields = np.column_stack([starts, ends + 1])[filled] + self.position, fields[filled]
        if self.rows < 0 and len(fields):
            self.rows, self.fields, self.header = 0, int(fields[0]), (int(offsets[0][0]), int(offsets[0][1]))
            offsets, fields = offsets[1:], fields[1:]
        other = np.flatnonzero(fields != self.fields)
        if len(other):
            self.ragged.append(np.column_stack([other + self.rows, fields[other]]))
        if self.keep_offsets:
            self.offsets.append(offsets)
        self.rows += len(fields)
