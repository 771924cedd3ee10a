"""Run a compiled contract over a file or a table, a few rows at a time.

The scan keeps two bytes per row in memory, and the values of a limited number of rows per broken rule.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ml_platform.data.validation.schema_compiler import RAISED_BY_CHECKS, Contract, PanderaRule, Rule, UniqueRule
from ml_platform.errors import shorten

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from ml_platform.data.datasets import PublishedRows, PublishedState

    ReadOther = Callable[[str, NDArray[np.int64]], pl.Series]

ROW = "_row"
# Maximum number of 64-bit key hashes that are sorted at once, 8 bytes each. More keys take further passes.
KEYS_AT_ONCE = 2**26
# Approximate number of rows with a repeated hash that are compared by value at once.
TWINS_AT_ONCE = 2**22
# Rows per batch of a check that pandera runs.
ROWS_AT_ONCE = 250_000
# Column of the position of another row with the same key.
POSITION = "_position"
# A violation shows at most this many columns, and characters of a value.
COLUMNS_SHOWN = 5
LONGEST_VALUE = 60


@dataclass(frozen=True)
class BrokenRule:
    """Number of violations of a rule, and the first rows that break it, with their values.

    Rows and values are two lists: a million pairs would be a million more objects for the garbage collector.
    """

    columns: tuple[str, ...]
    check: str
    name: str
    count: int = 0
    rows: list[int] = field(default_factory=list)
    values: list[str] = field(default_factory=list)


class BatchScan:
    """A batch whose rows are scanned: `bad` is True for rows that break a rule, `passed` for rows to pass over.

    Parameters
    ----------
    source : polars LazyFrame
        The rows; it is read once per query.
    rows : int
        Number of rows.
    schema : pyarrow Schema
        Types of the columns for pandas.
    limit : int
        Maximum number of rows named per broken rule; further ones are only counted.
    unread : ndarray of shape (rows,) or None
        True for rows that could not be read: they are bad, and no rule is checked on them. ``None`` if all were read.
    """

    def __init__(
        self,
        source: pl.LazyFrame,
        rows: int,
        schema: "pa.Schema",
        limit: int,
        unread: "NDArray[np.bool_] | None" = None,
    ) -> None:
        self.source = source.with_row_index(ROW)
        self.rows, self.schema, self.limit = rows, schema, limit
        self.bad: NDArray[np.bool_] = np.zeros(rows, dtype=bool)
        self.passed: NDArray[np.bool_] = np.zeros(rows, dtype=bool)
        if unread is not None and unread.any():
            self.source = self.source.filter(pl.lit(pl.Series(~unread)))
            self.bad |= unread
        self._twins: dict[tuple[str, ...], list[pl.DataFrame]] = {}

    def hold(self, contract: Contract) -> list[BrokenRule]:
        """Check all rows against a contract and set `bad` to True for rows that break a rule.

        A broken rule of pandera's on the whole batch has a count and no rows.
        """
        results = self._check_rows(contract.rules) if contract.rules else []
        results += [self._mark(rule, self._find_repeated(rule)) for rule in contract.unique]
        results += [self._run_pandera(rule, contract) for rule in contract.left_over]
        return [broken for broken in results if broken.count]

    def bytes_of_text(self) -> int:
        """Return the total number of bytes of all text values, repeated values included."""
        texts = pl.col(pl.String).str.len_bytes().cast(pl.UInt64).sum()
        lengths = self.source.select(texts).collect(engine="streaming")
        return int(sum(lengths.row(0))) if lengths.width else 0

    def _check_rows(self, rules: Sequence[Rule]) -> list[BrokenRule]:
        marks = [f"_broken_{number}" for number in range(len(rules))]
        values = sorted({name for rule in rules for name in rule.columns})
        # Few rows are bad: only they are tested for each rule.
        marked = [rule.broken.fill_null(value=False).alias(mark) for rule, mark in zip(rules, marks, strict=True)]
        query = self.source.filter(pl.any_horizontal(rule.broken for rule in rules)).select(ROW, *values, *marked)
        results = [BrokenRule(rule.columns, rule.check, rule.name) for rule in rules]
        for part in query.collect_batches(chunk_size=ROWS_AT_ONCE, engine="streaming"):
            self.bad[part[ROW].to_numpy()] = True
            counts = part.select(pl.col(marks).sum()).row(0) if part.height else [0] * len(marks)
            results = [
                self._add_rows(broken, part.filter(pl.col(mark)), count) if count else broken
                for broken, mark, count in zip(results, marks, counts, strict=True)
            ]
        return results

    def _add_rows(self, broken: BrokenRule, part: pl.DataFrame, count: int) -> BrokenRule:
        named = part.head(max(self.limit - len(broken.rows), 0))
        texts = [list(map(shorten, _to_texts(named[name]))) for name in broken.columns]
        broken.rows.extend(named[ROW].to_list())
        broken.values.extend(map(", ".join, zip(*texts, strict=True)) if texts else [""] * named.height)
        return replace(broken, count=broken.count + count)

    def _mark(self, rule: UniqueRule, parts: Iterable[pl.DataFrame]) -> BrokenRule:
        """Mark the rows of `parts` as bad; return the broken rule."""
        broken = BrokenRule(rule.shown or rule.columns, rule.check, rule.name)
        for part in parts:
            self.bad[part[ROW].to_numpy()] = True
            broken = self._add_rows(broken, part, part.height)
        return broken

    def _find_repeated(self, rule: UniqueRule) -> Iterator[pl.DataFrame]:
        """Yield the rows that a rule rejects because their key is repeated, for some of the keys at a time."""
        names = tuple(sorted(rule.columns))
        key = pl.struct(names)
        bad = {"first": ~key.is_first_distinct(), "last": ~key.is_last_distinct(), "none": key.is_duplicated()}
        for part in self._twins[names] if names in self._twins else self._read_twins(names):
            yield part.filter(bad[rule.keep])

    def _read_twins(self, names: tuple[str, ...]) -> Iterator[pl.DataFrame]:
        """Yield the rows that share a hash of some columns with other rows; few rows are cached for the next rule.

        Equal keys have equal hashes, so that only rows with a repeated hash are compared by value.
        """
        dtypes = self.source.select(names).collect_schema()
        keys = self.source.select(ROW, *(_replace_nan(name, dtypes[name]) for name in names))
        keys = keys.filter(~pl.all_horizontal(pl.col(names).is_null()))
        hashed = keys.with_columns(pl.struct(names).hash().alias("_hash"))
        kept: list[pl.DataFrame] = []
        rows = 0
        for hashes in self._find_repeated_hashes(hashed.select("_hash")):
            twins = hashed.filter(pl.col("_hash").is_in(hashes.implode())).drop("_hash")
            part = twins.collect(engine="streaming").sort(ROW)
            yield part
            rows += part.height
            if rows <= ROWS_AT_ONCE:
                kept.append(part)
        if rows <= ROWS_AT_ONCE:
            self._twins[names] = kept

    def _find_repeated_hashes(self, hashed: pl.LazyFrame) -> Iterator[pl.Series]:
        """Yield the repeated hashes, in parts that cover about `TWINS_AT_ONCE` rows each."""
        passes = -(-self.rows // KEYS_AT_ONCE)
        for number in range(passes):
            part = hashed if passes == 1 else hashed.filter(pl.col("_hash") % passes == number)
            # Filled part by part and sorted in place: a collected column would need twice the memory.
            hashes, end = np.empty(self.rows, dtype=np.uint64), 0
            for batch in part.collect_batches(chunk_size=ROWS_AT_ONCE, maintain_order=False, engine="streaming"):
                start, end = end, end + batch.height
                hashes[start:end] = batch["_hash"].to_numpy()
            hashes = hashes[:end]
            hashes.sort()
            repeated = hashes[1:][hashes[1:] == hashes[:-1]]
            del hashes
            parts = -(-len(repeated) // TWINS_AT_ONCE)
            yield from map(pl.Series, np.array_split(np.unique(repeated), parts) if parts else [])

    def check_keys(
        self, rule: UniqueRule, published: "PublishedState | None", name: str, *, corrects: bool = False
    ) -> list[BrokenRule]:
        """Compare rows with the published rows, and with each other, that have their entity and time.

        A row with all values of the other one is set in `passed`. A row with other values breaks a rule: `name` if the
        other one is published, and else `rule`; its violation shows both values. Rows that break another rule are not
        compared. With `corrects`, a row may differ from a published one, which it replaces.

        Raises
        ------
        StorageError, DatasetError
            The published rows cannot be read.
        """
        results = (
            [self.compare_with_published(replace(rule, name=name), published, corrects=corrects)] if published else []
        )
        results.append(self._compare_repeated(rule))
        return [broken for broken in results if broken.count]

    def compare_with_published(
        self, rule: UniqueRule, published: "PublishedState", *, corrects: bool = False
    ) -> BrokenRule:
        """Compare rows with the published rows that have their entity and time, as `check_keys` does."""
        broken = BrokenRule(rule.shown, rule.check, rule.name)
        rows = published.open(self.schema.names)
        pairs = self._find_published(rule, rows) if rows else None
        if rows and pairs is not None and pairs[ROW].is_duplicated().any():
            # A time with several published rows: in their order, so that a violation shows the newest one.
            rows = published.open(self.schema.names, in_order=True)
            pairs = self._find_published(rule, rows) if rows else None
        if not rows or pairs is None or not pairs.height:
            return broken
        if corrects:
            pairs = pairs.unique(ROW, keep="last", maintain_order=True)
        positions = pairs[POSITION].to_numpy()

        def read(column: str, chosen: "NDArray[np.int64]") -> pl.Series:
            return _read_column(rows, column).gather(positions[chosen])

        numbers = pairs[ROW].to_numpy()
        if corrects:
            self.passed[numbers[self._find_same(rule, numbers, read)]] = True
            return broken
        return self._settle(rule, broken, numbers, read, "published")

    def _find_published(self, rule: UniqueRule, rows: "PublishedRows") -> pl.DataFrame:
        """Return pairs of a row and the position of a published row with its key, ordered by row and position."""
        entity, time = rule.columns
        ends = self.source.select(since=pl.col(time).min(), until=pl.col(time).max()).collect(engine="streaming")
        since, until = (column[0] for column in ends.to_arrow().columns)
        rows.limit_times(time, since, until)
        keys = pl.DataFrame([_read_column(rows, name) for name in rule.columns]).with_row_index(POSITION)
        # As stored: a table has microseconds, and text where a file has categories.
        wanted = self.source.select(ROW, *(pl.col(name).cast(keys.schema[name], strict=False) for name in rule.columns))
        pairs = wanted.join(keys.lazy(), on=[entity, time], nulls_equal=True).select(ROW, POSITION)
        found = pairs.collect(engine="streaming")
        return found.filter(~pl.Series(self.bad[found[ROW].to_numpy()])).sort(ROW, POSITION)

    def _compare_repeated(self, rule: UniqueRule) -> BrokenRule:
        names = tuple(sorted(rule.columns))
        broken = BrokenRule(rule.shown, rule.check, rule.name)
        for part in self._twins[names] if names in self._twins else self._read_twins(names):
            left = part.filter(~pl.Series((self.bad | self.passed)[part[ROW].to_numpy()]))
            left = left.with_columns(pl.col(ROW).min().over(names).alias(POSITION))
            pairs = left.filter(pl.col(ROW) != pl.col(POSITION)).sort(ROW)
            if pairs.height:
                first = pairs[POSITION].to_numpy()
                read = partial(self._read_first, first)
                broken = self._settle(rule, broken, pairs[ROW].to_numpy(), read, "in an earlier row")
        return broken

    def _read_first(self, first: "NDArray[Any]", column: str, chosen: "NDArray[np.int64]") -> pl.Series:
        return self._read(column, first[chosen])

    def _settle(
        self, rule: UniqueRule, broken: BrokenRule, rows: "NDArray[Any]", read: "ReadOther", place: str
    ) -> BrokenRule:
        """Compare rows with others of their key, one column at a time; set `passed` and `bad`, return the broken rule.

        Parameters
        ----------
        rows : ndarray of shape (n_pairs,)
            Numbers of rows in ascending order; a row occurs once for each other row of its key.
        read : callable
            Returns a column of the other rows of some pairs.
        place : str
            Words for the place of the other rows.
        """
        self.passed[rows[self._find_same(rule, rows, read)]] = True
        left = np.flatnonzero(~self.passed[rows])
        left = left[np.append(rows[left][1:] != rows[left][:-1], True)[: len(left)]]
        self.bad[rows[left]] = True
        named = left[: max(self.limit - len(broken.rows), 0)]
        differences: list[list[str]] = [[] for _ in named]
        for name in self._list_compared(rule) if len(named) else []:
            ours, theirs = self._read(name, rows[named]), read(name, named)
            values = zip(differences, ~_are_equal(ours, theirs), _show(ours), _show(theirs), strict=True)
            for texts, differs, ours_shown, theirs_shown in values:
                if differs:
                    texts.append(f"{name} is {ours_shown} here, {theirs_shown} {place}")
        entities = _to_texts(self._read(rule.columns[0], rows[named])) if len(named) else []
        broken.rows.extend(rows[named].tolist())
        for entity, texts in zip(entities, differences, strict=True):
            more = [f"and {len(texts) - COLUMNS_SHOWN} more columns"] if len(texts) > COLUMNS_SHOWN else []
            broken.values.append(f"{entity}: {'; '.join([*texts[:COLUMNS_SHOWN], *more])}")
        return replace(broken, count=broken.count + len(left))

    def _find_same(self, rule: UniqueRule, rows: "NDArray[Any]", read: "ReadOther") -> "NDArray[np.bool_]":
        """Compare each pair of a row and another one by all columns; ndarray of shape (n_pairs,)."""
        same, every = np.ones(len(rows), dtype=bool), np.arange(len(rows))
        for name in self._list_compared(rule):
            same &= _are_equal(self._read(name, rows), read(name, every))
        return same

    def _list_compared(self, rule: UniqueRule) -> list[str]:
        return [name for name in self.schema.names if name not in rule.columns]

    def _read(self, column: str, rows: "NDArray[Any]") -> pl.Series:
        """Read a column of some rows, which may repeat."""
        wanted = np.zeros(self.rows, dtype=bool)
        wanted[rows] = True
        numbers = np.flatnonzero(wanted)
        source = self.source.select(ROW, column)
        if len(numbers) < self.rows:
            source = source.filter(pl.col(ROW).is_in(pl.Series(numbers).implode()))
        values = source.collect(engine="streaming").sort(ROW)[column]
        return values if np.array_equal(numbers, rows) else values.gather(np.searchsorted(numbers, rows))

    # Checks that only pandera can run

    def _run_pandera(self, rule: PanderaRule, contract: Contract) -> BrokenRule:
        broken = BrokenRule((rule.column,) if rule.column else (), "values", rule.name)
        try:
            query = self._select_input(rule, contract)
            if rule.check.groupby:
                return self._run_on_whole_batch(rule, query, broken)
            for part in query.collect_batches(chunk_size=ROWS_AT_ONCE, engine="streaming"):
                result = _run_check(rule, self._to_pandas(part, rule.column)) if part.height else True
                if result is False or (result is True and self.rows > ROWS_AT_ONCE and part.height):
                    return self._run_on_whole_batch(rule, query, broken)
                if not isinstance(result, bool):
                    failed = part.filter(~pl.Series(result))
                    self.bad[failed[ROW].to_numpy()] = True
                    broken = self._add_rows(broken, failed, failed.height)
        except _CheckRaisedError as error:
            # As in pandera, the batch breaks the check. The error's text may quote a value, so only its type is given.
            return replace(broken, name=f"{rule.name}, which raised {error}", count=1)
        return broken

    def _run_on_whole_batch(self, rule: PanderaRule, query: pl.LazyFrame, broken: BrokenRule) -> BrokenRule:
        """Run a check whose single result is about all rows: it needs all of them at once."""
        column = None if rule.check.groupby else rule.column
        result = _run_check(rule, self._to_pandas(query.collect(engine="streaming"), column))
        return replace(broken, count=0 if np.all(result) else 1)

    def _select_input(self, rule: PanderaRule, contract: Contract) -> pl.LazyFrame:
        """Return the rows that a check runs on, without missing values: pandas would convert integers to floats."""
        if rule.column is not None and rule.check.groupby:
            return self.source
        if rule.column is None:
            return self.source.filter(~pl.any_horizontal(contract.empty.values())) if contract.empty else self.source
        rows = self.source.select(ROW, rule.column)
        if not rule.check.ignore_na:
            return rows
        dtype = rows.collect_schema()[rule.column]
        return rows.filter(_replace_nan(rule.column, dtype).is_not_null())

    def _to_pandas(self, part: pl.DataFrame, column: str | None) -> Any:
        import pyarrow as pa

        names = self.schema.names if column is None else [column]
        table = part.select(names).to_arrow().cast(pa.schema([self.schema.field(name) for name in names]))
        frame = table.to_pandas()
        frame.index = part[ROW].to_numpy()
        return frame if column is None else frame[column]


class _CheckRaisedError(Exception):
    """An author's check raised an error; the message is its type."""


def _run_check(rule: PanderaRule, data: Any) -> "NDArray[np.bool_] | bool":
    """Return a check's result for each row, or a single result for all of them."""
    try:
        output = rule.check(data, rule.column if rule.check.groupby else None).check_output
    except RAISED_BY_CHECKS as error:
        raise _CheckRaisedError(type(error).__name__) from error
    if getattr(output, "ndim", 0) == 2:
        output = output.all(axis="columns")
    if getattr(output, "ndim", 0) == 1 and output.index.equals(data.index):
        return output.fillna(value=False).to_numpy(dtype=bool)  # type: ignore[no-any-return]
    return bool(np.all(output))


def _to_texts(column: pl.Series) -> list[str]:
    # NumPy supports years that Python's datetime does not.
    is_time = isinstance(column.dtype, pl.Datetime)
    return list(map(str, column.dt.replace_time_zone(None).to_numpy() if is_time else column.to_list()))


def _show(column: pl.Series) -> list[str]:
    """Return values as short texts, text in quotes, so that two different values look different."""
    texts = map(repr, column.to_list()) if column.dtype == pl.String else _to_texts(column)
    return [text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…" for text in texts]


def _read_column(rows: "PublishedRows", name: str) -> pl.Series:
    return pl.Series(name, pl.from_arrow(rows.read(name).column(0)))


def _are_equal(ours: pl.Series, theirs: pl.Series) -> "NDArray[np.bool_]":
    """Compare values as stored: null equals null, NaN equals NaN; ndarray of shape (n_rows,)."""
    return ours.cast(theirs.dtype, strict=False).eq_missing(theirs).to_numpy()


def _replace_nan(name: str, dtype: pl.DataType) -> pl.Expr:
    return pl.col(name).fill_nan(None) if dtype.is_float() else pl.col(name)
