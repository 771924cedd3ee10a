"""Run a compiled contract over a file or a table, a few rows at a time.

What is kept of a batch is one byte a row, and the values of as many broken rules as somebody will read.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ml_platform.contracts import RAISED_BY_CHECKS, Contract, PanderaRule, Rule, UniqueRule

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

ROW = "_row"
# Keys are told apart by 64 bits of hash, so many at a time: 8 bytes each, sorted. More are looked for by reading again.
KEYS_AT_ONCE = 2**26
# So many rows whose hash comes twice are compared by value at once.
TWINS_AT_ONCE = 2**22
# What pandera sees at once of the checks that only it can run.
ROWS_AT_ONCE = 250_000


@dataclass(frozen=True)
class Broken:
    """How often a rule is broken in all, and by which rows first, with their values.

    Rows and values are two lists: a million pairs would be as many objects more for the garbage collector to visit.
    """

    columns: tuple[str, ...]
    check: str
    name: str
    count: int = 0
    rows: list[int] = field(default_factory=list)
    values: list[str] = field(default_factory=list)


class Batch:
    """Rows to be scanned.

    Parameters
    ----------
    source : polars LazyFrame
        Where they come from; it is read once for each question.
    rows : int
        How many there are.
    schema : pyarrow Schema
        Their types, as pandas must see them.
    limit : int
        So many rows are named of each broken rule; the others are counted.
    """

    def __init__(self, source: pl.LazyFrame, rows: int, schema: "pa.Schema", limit: int) -> None:
        self.source = source.with_row_index(ROW)
        self.rows, self.schema, self.limit = rows, schema, limit
        self.bad: NDArray[np.bool_] = np.zeros(rows, dtype=bool)
        self._twins: dict[tuple[str, ...], list[pl.DataFrame]] = {}

    def hold(self, contract: Contract) -> list[Broken]:
        """Hold all rows against a contract; `bad` is then true where a row broke a rule.

        A rule of pandera's that speaks of the whole batch has a count and no rows.
        """
        found = self._hold_rows(contract.rules)
        found += [self._hold_unique(rule) for rule in contract.unique]
        found += [self._hold_pandera(rule, contract) for rule in contract.left_over]
        return [broken for broken in found if broken.count]

    def bytes_of_text(self) -> int:
        """Return how many bytes the texts of all rows have in all, a text that comes again counted again."""
        texts = pl.col(pl.String).str.len_bytes().cast(pl.UInt64).sum()
        lengths = self.source.select(texts).collect(engine="streaming")
        return int(sum(lengths.row(0))) if lengths.width else 0

    def _hold_rows(self, rules: Sequence[Rule]) -> list[Broken]:
        if not rules:
            return []
        marks = [f"_broken_{number}" for number in range(len(rules))]
        values = sorted({name for rule in rules for name in rule.columns})
        # Few rows are bad: which rules they broke is asked of them only.
        marked = [rule.broken.fill_null(value=False).alias(mark) for rule, mark in zip(rules, marks, strict=True)]
        query = self.source.filter(pl.any_horizontal(rule.broken for rule in rules)).select(ROW, *values, *marked)
        found = [Broken(rule.columns, rule.check, rule.name) for rule in rules]
        for part in query.collect_batches(chunk_size=ROWS_AT_ONCE, engine="streaming"):
            self.bad[part[ROW].to_numpy()] = True
            counts = part.select(pl.col(marks).sum()).row(0) if part.height else [0] * len(marks)
            found = [
                self._more(broken, part.filter(pl.col(mark)), count) if count else broken
                for broken, mark, count in zip(found, marks, counts, strict=True)
            ]
        return found

    def _more(self, broken: Broken, part: pl.DataFrame, count: int) -> Broken:
        shown = part.head(max(self.limit - len(broken.rows), 0))
        broken.rows.extend(shown[ROW].to_list())
        broken.values.extend(_texts(shown, broken.columns))
        return replace(broken, count=broken.count + count)

    def _mark(self, of: UniqueRule, parts: Iterable[pl.DataFrame]) -> Broken:
        broken = Broken(of.shown or of.columns, of.check, of.name)
        for part in parts:
            self.bad[part[ROW].to_numpy()] = True
            broken = self._more(broken, part, part.height)
        return broken

    def _hold_unique(self, rule: UniqueRule) -> Broken:
        return self._mark(rule, self._repeated(rule))

    def _repeated(self, rule: UniqueRule) -> Iterator[pl.DataFrame]:
        """Return the rows whose key came before, after or at all, for some of the keys at a time."""
        names = tuple(sorted(rule.columns))
        for part in self._twins[names] if names in self._twins else self._read_twins(names):
            yield _excess(part, names, rule)

    def _read_twins(self, names: tuple[str, ...]) -> Iterator[pl.DataFrame]:
        """Return the rows that share a hash of some columns with others; few are kept for the next rule that asks.

        Equal keys have equal hashes, so that only the rows behind a hash that comes twice are compared by value.
        """
        hashed = self._hashed(names)
        kept: list[pl.DataFrame] = []
        rows = 0
        for hashes in self._come_twice(hashed.select("_hash")):
            twins = hashed.filter(pl.col("_hash").is_in(hashes.implode())).drop("_hash")
            part = twins.collect(engine="streaming").sort(ROW)
            yield part
            rows += part.height
            if rows <= ROWS_AT_ONCE:
                kept.append(part)
        if rows <= ROWS_AT_ONCE:
            self._twins[names] = kept

    def _come_twice(self, hashed: pl.LazyFrame) -> Iterator[pl.Series]:
        """Return the hashes that come more than once, in parts that stand for about `TWINS_AT_ONCE` rows each."""
        passes = -(-self.rows // KEYS_AT_ONCE)
        for number in range(passes):
            part = hashed if passes == 1 else hashed.filter(pl.col("_hash") % passes == number)
            again = _repetitions(self._sorted(part))
            parts = -(-len(again) // TWINS_AT_ONCE)
            yield from map(pl.Series, np.array_split(np.unique(again), parts) if parts else [])

    def _sorted(self, hashed: pl.LazyFrame) -> "NDArray[np.uint64]":
        # Filled part by part and sorted in place: a column that is collected would be there twice.
        hashes = np.empty(self.rows, dtype=np.uint64)
        end = 0
        for part in hashed.collect_batches(chunk_size=ROWS_AT_ONCE, maintain_order=False, engine="streaming"):
            start, end = end, end + part.height
            hashes[start:end] = part["_hash"].to_numpy()
        hashes[:end].sort()
        return hashes[:end]

    def _hashed(self, names: Sequence[str]) -> pl.LazyFrame:
        dtypes = self.source.select(names).collect_schema()
        keys = self.source.select(ROW, *(_without_nan(name, dtypes[name]) for name in names))
        keys = keys.filter(~pl.all_horizontal(pl.col(names).is_null()))
        return keys.with_columns(pl.struct(names).hash().alias("_hash"))

    def hold_keys(self, rule: UniqueRule, newest: "pd.Series[Any] | None", name: str) -> list[Broken]:
        """Hold rows, by a rule of entity and time, against each other and against what is published.

        A row is blamed once: for coming again, or else, under `name`, for not being newer than its entity's `newest`.
        """
        again: NDArray[np.bool_] = np.zeros(self.rows, dtype=bool)
        found = [self._mark(rule, _noted(again, self._repeated(rule)))]
        if newest is not None:
            older = replace(rule, name=name)
            found.append(self._mark(older, self._not_newer(rule.columns, newest, again)))
        return [broken for broken in found if broken.count]

    def _not_newer(
        self, columns: Sequence[str], newest: "pd.Series[Any]", again: "NDArray[np.bool_]"
    ) -> Iterator[pl.DataFrame]:
        entity, time = columns
        types = self.source.select(entity, time).collect_schema()
        published = _from_arrow(_as_table(newest, entity)).cast({entity: types[entity], "_newest": types[time]})
        rows = self.source.select(ROW, entity, time).join(published.lazy(), on=entity)
        for part in rows.filter(pl.col(time) <= pl.col("_newest")).collect_batches(engine="streaming"):
            yield part.filter(~pl.Series(again[part[ROW].to_numpy()]))

    # What only pandera can say

    def _hold_pandera(self, rule: PanderaRule, contract: Contract) -> Broken:
        broken = Broken((rule.column,) if rule.column else (), "values", rule.name)
        try:
            return self._ask_pandera(rule, self._seen_by_pandera(rule, contract), broken)
        except _CheckRaisedError as error:
            # As pandera has it, the batch breaks the check. What was raised may quote a value: its kind must do.
            return replace(broken, name=f"{rule.name}, which raised {error}", count=1)

    def _ask_pandera(self, rule: PanderaRule, query: pl.LazyFrame, broken: Broken) -> Broken:
        if rule.check.groupby:
            return self._hold_whole(rule, query, broken)
        for part in query.collect_batches(chunk_size=ROWS_AT_ONCE, engine="streaming"):
            answer = _answer(rule, self._to_pandas(part, rule.column)) if part.height else True
            if answer is False or (answer is True and self.rows > ROWS_AT_ONCE and part.height):
                return self._hold_whole(rule, query, broken)
            if not isinstance(answer, bool):
                failed = part.filter(~pl.Series(answer))
                self.bad[failed[ROW].to_numpy()] = True
                broken = self._more(broken, failed, failed.height)
        return broken

    def _hold_whole(self, rule: PanderaRule, query: pl.LazyFrame, broken: Broken) -> Broken:
        """Ask a check that answers for all of its rows at once: it must have seen all of them."""
        column = None if rule.check.groupby else rule.column
        kept = _answer(rule, self._to_pandas(query.collect(engine="streaming"), column))
        return replace(broken, count=0 if np.all(kept) else 1)

    def _seen_by_pandera(self, rule: PanderaRule, contract: Contract) -> pl.LazyFrame:
        """Return the rows without what is missing: pandas would turn integers into fractions to say so."""
        if rule.column is not None and rule.check.groupby:
            return self.source
        if rule.column is None:
            return self.source.filter(~pl.any_horizontal(contract.empty.values())) if contract.empty else self.source
        rows = self.source.select(ROW, rule.column)
        if not rule.check.ignore_na:
            return rows
        dtype = rows.collect_schema()[rule.column]
        return rows.filter(_without_nan(rule.column, dtype).is_not_null())

    def _to_pandas(self, part: pl.DataFrame, column: str | None) -> Any:
        import pyarrow as pa

        names = self.schema.names if column is None else [column]
        table = part.select(names).to_arrow().cast(pa.schema([self.schema.field(name) for name in names]))
        frame = table.to_pandas()
        frame.index = part[ROW].to_numpy()
        return frame if column is None else frame[column]


class _CheckRaisedError(Exception):
    """An author's check raised; the message says what kind of error."""


def _answer(rule: PanderaRule, seen: Any) -> "NDArray[np.bool_] | bool":
    """Return what a check says of each row, or one answer for all of them."""
    try:
        output = rule.check(seen, rule.column if rule.check.groupby else None).check_output
    except RAISED_BY_CHECKS as error:
        raise _CheckRaisedError(type(error).__name__) from error
    if getattr(output, "ndim", 0) == 2:
        output = output.all(axis="columns")
    if getattr(output, "ndim", 0) == 1 and output.index.equals(seen.index):
        return output.fillna(value=False).to_numpy(dtype=bool)  # type: ignore[no-any-return]
    return bool(np.all(output))


def _noted(rows: "NDArray[np.bool_]", parts: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    for part in parts:
        rows[part[ROW].to_numpy()] = True
        yield part


def _without_nan(name: str, dtype: pl.DataType) -> pl.Expr:
    return pl.col(name).fill_nan(None) if dtype.is_float() else pl.col(name)


def _repetitions(hashes: "NDArray[np.uint64]") -> "NDArray[np.uint64]":
    """Return sorted hashes without the first of each."""
    again: NDArray[np.uint64] = hashes[1:][hashes[1:] == hashes[:-1]]
    return again


def _excess(rows: pl.DataFrame, names: Sequence[str], rule: UniqueRule) -> pl.DataFrame:
    """Return, of rows in their order, those that a rule does not let pass."""
    key = pl.struct(names)
    bad = {"first": ~key.is_first_distinct(), "last": ~key.is_last_distinct(), "none": key.is_duplicated()}
    return rows.filter(bad[rule.keep])


def _as_table(newest: "pd.Series[Any]", entity: str) -> "pa.Table":
    import pyarrow as pa

    return pa.Table.from_pandas(newest.rename("_newest").rename_axis(entity).reset_index(), preserve_index=False)


def _from_arrow(table: "pa.Table") -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)  # noqa: S101  (a table is never a series)
    return frame


def _texts(rows: pl.DataFrame, columns: Sequence[str]) -> list[str]:
    """Return the values of some columns, row by row, as people read them."""
    if not columns:
        return [""] * rows.height
    texts = [list(map(str, _plain(rows[name]))) for name in columns]
    return texts[0] if len(texts) == 1 else list(map(", ".join, zip(*texts, strict=True)))


def _plain(values: pl.Series) -> Iterable[object]:
    if not isinstance(values.dtype, pl.Datetime):
        return values.to_list()
    # NumPy can write a year that Python's datetime cannot.
    return values.dt.replace_time_zone(None).to_numpy()
