"""Run a compiled contract over a file or a table, a few rows at a time.

The scan keeps one byte per row in memory, and the values of a limited number of rows per broken rule.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ml_platform.data.validation.schema_compiler import RAISED_BY_CHECKS, Contract, PanderaRule, Rule, UniqueRule
from ml_platform.errors import shorten

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

ROW = "_row"
# Maximum number of 64-bit key hashes that are sorted at once, 8 bytes each. More keys take further passes.
KEYS_AT_ONCE = 2**26
# Approximate number of rows with a repeated hash that are compared by value at once.
TWINS_AT_ONCE = 2**22
# Rows per batch of a check that pandera runs.
ROWS_AT_ONCE = 250_000


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
    """A batch whose rows are scanned.

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
    """

    def __init__(self, source: pl.LazyFrame, rows: int, schema: "pa.Schema", limit: int) -> None:
        self.source = source.with_row_index(ROW)
        self.rows, self.schema, self.limit = rows, schema, limit
        self.bad: NDArray[np.bool_] = np.zeros(rows, dtype=bool)
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
        texts = []
        for column in (named[name] for name in broken.columns):
            # NumPy supports years that Python's datetime does not.
            is_time = isinstance(column.dtype, pl.Datetime)
            values = column.dt.replace_time_zone(None).to_numpy() if is_time else column.to_list()
            texts.append([shorten(str(value)) for value in values])
        broken.rows.extend(named[ROW].to_list())
        broken.values.extend(map(", ".join, zip(*texts, strict=True)) if texts else [""] * named.height)
        return replace(broken, count=broken.count + count)

    def _mark(
        self, rule: UniqueRule, parts: Iterable[pl.DataFrame], marked: "NDArray[np.bool_] | None" = None
    ) -> BrokenRule:
        """Mark the rows of `parts` as bad, and in `marked` if given; return the broken rule."""
        broken = BrokenRule(rule.shown or rule.columns, rule.check, rule.name)
        for part in parts:
            rows = part[ROW].to_numpy()
            self.bad[rows] = True
            if marked is not None:
                marked[rows] = True
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

    def check_keys(self, rule: UniqueRule, newest: "pd.Series[Any] | None", name: str) -> list[BrokenRule]:
        """Check rows, by a rule on entity and time, against each other and against the published rows.

        A row breaks at most one of two rules: it is repeated, or else, under `name`, not newer than its entity's time
        in `newest`.
        """
        import pyarrow as pa

        repeated: NDArray[np.bool_] = np.zeros(self.rows, dtype=bool)
        results = [self._mark(rule, self._find_repeated(rule), repeated)]
        if newest is not None:
            entity, time = rule.columns
            types = self.source.select(entity, time).collect_schema()
            frame = newest.rename("_newest").rename_axis(entity).reset_index()
            published = pl.DataFrame(pl.from_arrow(pa.Table.from_pandas(frame, preserve_index=False)))
            published = published.cast({entity: types[entity], "_newest": types[time]})
            rows = self.source.select(ROW, entity, time).join(published.lazy(), on=entity)
            older = rows.filter(pl.col(time) <= pl.col("_newest")).collect_batches(engine="streaming")
            new = (part.filter(~pl.Series(repeated[part[ROW].to_numpy()])) for part in older)
            results.append(self._mark(replace(rule, name=name), new))
        return [broken for broken in results if broken.count]

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


def _replace_nan(name: str, dtype: pl.DataType) -> pl.Expr:
    return pl.col(name).fill_nan(None) if dtype.is_float() else pl.col(name)
