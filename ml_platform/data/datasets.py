"""Read a model's published rows: pin a dataset version, compute its digest, split it.

A model has two Delta tables: ``rows``, its valid rows with their arrival in the column ``_arrival``, and
``quarantine``. Each commit carries an application transaction named after the arrival's sha256, so that concurrent
processes commit the same bytes once.

deltalake never calls fsync: `delta_table.publish` makes each commit durable before it returns.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.errors import DatasetError
from ml_platform.model_spec import ModelSpec
from ml_platform.records.data import DatasetVersion
from ml_platform.storage import atomic_files
from ml_platform.storage.delta_table import ARRIVAL, _load_version, _open, _require_columns, open_dataset

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def read_entity_rows(table: Path, spec: ModelSpec, entity: str) -> "pd.DataFrame | None":
    """Return all rows of an entity, given as text; ``None`` without a table.

    The columns are those of the table, which may have been created with another contract.
    """
    opened = _open(table)
    if opened is None:
        return None
    rows: pd.DataFrame = opened.to_pyarrow_table().drop_columns([ARRIVAL]).to_pandas()
    return rows[rows[spec.entity].astype(str) == entity]


def require_entity_column(table: Path, spec: ModelSpec) -> None:
    """Refuse a table without the contract's entity column, in which no entity can be found.

    Raises
    ------
    DatasetError
        The table was created with a contract that has another entity column.
    """
    opened = _open(table)
    if opened is None:
        return
    columns = [field.name for field in opened.schema().fields]
    if spec.entity not in columns:
        raise DatasetError(
            f"The table {table} has no column {spec.entity!r}, the entity of the contract of {spec.name!r}: it was "
            f"created with another contract, and has {columns}. Change the entity back before entities are deleted."
        )


@dataclass(frozen=True, kw_only=True)
class PublishedState:
    """One version of a model's table, which a new batch is validated against; `version` is -1 without a table.

    It names rows and holds none, so that it can be passed to another process.
    """

    table: Path
    version: int

    def open(self, columns: Sequence[str], *, in_order: bool = False) -> "PublishedRows | None":
        """Open the published rows; ``None`` if there are none, or if the table has other columns than `columns`.

        Rows of another contract cannot be compared: `delta_table.publish` refuses to append to such a table.

        Parameters
        ----------
        columns : sequence of str
            The columns of the contract.
        in_order : bool
            True gives the rows in the order of their publication, which reads the whole log of the table.
        """
        opened = _open(self.table) if self.version >= 0 else None
        if opened is None:
            return None
        _load_version(opened, self.version)
        if {field.name for field in opened.schema().fields} != {*columns, ARRIVAL}:
            return None
        return PublishedRows(self.table, open_dataset(self.table, opened, in_order=in_order))


class PublishedRows:
    """The rows of one version of a table, read by column: the same rows in the same order each time."""

    def __init__(self, table: Path, dataset: Any) -> None:
        self._table, self._dataset = table, dataset
        self._condition: Any = None

    def limit_times(self, column: str, since: Any, until: Any) -> None:
        """Read only rows that have a time between two times, both included, or none; files outside are not opened.

        Parameters
        ----------
        column : str
            The event time.
        since, until : pyarrow Scalar
            Times; other types set no limit.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = self._dataset.schema.field(column).type
        if pa.types.is_timestamp(kind) and pa.types.is_timestamp(since.type) and since.is_valid:
            # The log may round a file's minimum and maximum: a second more on each side includes every file.
            second, scale = PER_SECOND[kind.unit], PER_SECOND[since.type.unit]
            numbers = (time.value * second // scale + more for time, more in ((since, -second), (until, second)))
            first, last = (pa.scalar(min(max(n, -(2**63)), 2**63 - 1), pa.int64()).cast(kind) for n in numbers)
            self._condition = ((pc.field(column) >= first) & (pc.field(column) <= last)) | pc.field(column).is_null()

    def read(self, *columns: str) -> "pa.Table":
        """Read some columns.

        Raises
        ------
        StorageError
            The disk is broken.
        DatasetError
            A file of the table is damaged.
        """
        import pyarrow as pa

        try:
            with atomic_files.raise_storage_errors(self._table):
                return self._dataset.to_table(columns=list(columns), filter=self._condition)
        except pa.ArrowException as error:
            raise DatasetError(f"Published rows cannot be read: {error}. Restore the table from a backup.") from error


def read_published_state(table: Path, version: int | None = None) -> PublishedState:
    """Return the state that a new batch is validated against, of one version; ``None`` takes the newest.

    Raises
    ------
    DatasetError
        The version does not exist.
    """
    opened = _open(table)
    if opened is None:
        return PublishedState(table=table, version=-1)
    if version is not None:
        _load_version(opened, version)
    return PublishedState(table=table, version=opened.version())


def pin(table: Path, spec: ModelSpec, version: int | None = None) -> tuple[DatasetVersion, "pd.DataFrame"]:
    """Read one version of a model's table: each entity's newest row, or all rows, ordered by entity and event time.

    Parameters
    ----------
    table : Path
        Folder of the Delta table.
    spec : ModelSpec
        Declares the columns, and which rows a dataset version has.
    version : int or None
        The version to read; ``None`` reads the newest.

    Returns
    -------
    dataset : DatasetVersion
    rows : DataFrame of shape (n_rows, n_columns)
        The columns of the contract, in its order.

    Raises
    ------
    DatasetError
        Nothing was published yet, or the version does not exist.
    """
    opened = _open(table)
    if opened is None:
        raise DatasetError(
            f"Nothing was published for {spec.name!r} yet. Drop a file into the landing zone and run "
            f"`ml-platform ingest {spec.name}`."
        )
    if version is not None:
        _load_version(opened, version)
    _require_columns(opened, [*spec.columns, ARRIVAL])
    stored = opened.to_pyarrow_table(columns=spec.columns)
    rows = _select_rows(stored, spec, partial(_read_in_order, table, opened, spec))
    dataset = DatasetVersion(model=spec.name, version=opened.version(), digest=digest(rows), rows=rows.num_rows)
    return dataset, rows.to_pandas()


def read_version(table: Path, spec: ModelSpec, version: int) -> "pd.DataFrame":
    """Read the rows of a pinned version as `pin` does, without computing its digest.

    Raises
    ------
    DatasetError
        The table or the version does not exist.
    """
    opened = _open(table)
    if opened is None:
        raise DatasetError(f"Nothing was published for {spec.name!r} yet.")
    _load_version(opened, version)
    rows: pd.DataFrame = _select_rows(
        opened.to_pyarrow_table(columns=spec.columns), spec, partial(_read_in_order, table, opened, spec)
    ).to_pandas()
    return rows


def _read_in_order(table: Path, opened: Any, spec: ModelSpec) -> "pa.Table":
    return open_dataset(table, opened, in_order=True).to_table(columns=spec.columns)


def _select_rows(stored: "pa.Table", spec: ModelSpec, read_in_order: "Callable[[], pa.Table]") -> "pa.Table":
    """Select the rows of a dataset version; of several with one entity and time, the one that was published last."""
    order = [(spec.entity, "ascending"), (spec.event_time, "ascending")]
    if spec.rows == "all":
        if stored.group_by([spec.entity, spec.event_time]).aggregate([]).num_rows < stored.num_rows:
            stored = _keep_corrections(read_in_order(), spec)
        return stored.select(spec.columns).sort_by(order)
    newest = stored.group_by(spec.entity).aggregate([(spec.event_time, "max")])
    joined = newest.rename_columns([spec.entity, spec.event_time]).join(
        stored, keys=[spec.entity, spec.event_time], join_type="left outer"
    )
    if joined.num_rows > newest.num_rows:
        corrected = _keep_corrections(read_in_order(), spec)
        return _select_rows(corrected, spec, lambda: corrected)
    return joined.select(spec.columns).sort_by(order)


def _keep_corrections(rows: "pa.Table", spec: ModelSpec) -> "pa.Table":
    """Keep the last row of each entity and time."""
    import numpy as np
    import pyarrow as pa

    numbered = rows.select([spec.entity, spec.event_time]).append_column("_number", pa.array(np.arange(rows.num_rows)))
    last = numbered.group_by([spec.entity, spec.event_time]).aggregate([("_number", "max")])
    return rows.take(last["_number_max"])


def digest(rows: "pa.Table") -> str:
    """Return the hex sha256 of the rows in any order: columns sorted by name, rows by all columns, as CSV.

    CSV depends on the values alone: Arrow's own bytes also hold padding and the contents of null slots.
    """
    import pyarrow.csv

    names = sorted(rows.column_names)
    ordered = rows.select(names).sort_by([(name, "ascending") for name in names])
    text = io.BytesIO()
    pyarrow.csv.write_csv(ordered, text)
    return hashlib.sha256(text.getbuffer()).hexdigest()


def split(rows: "pd.DataFrame", spec: ModelSpec) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Split rows into training rows and holdout, as the model's author declares.

    By entity, an entity is on the same side in every dataset version, so that no model is evaluated on its
    predecessor's training entities. By time, every row of the holdout is newer than all training rows; rows of the same
    time are on the same side.

    Returns
    -------
    training, holdout : DataFrame
    """
    if spec.split == "time":
        times = rows[spec.event_time]
        held_out = times > times.quantile(1 - spec.holdout_share, interpolation="lower")
    else:
        held_out = rows[spec.entity].map(lambda entity: _fraction(spec.name, entity) < spec.holdout_share).astype(bool)
    return rows[~held_out], rows[held_out]


def _fraction(model: str, entity: object) -> float:
    """Map an entity to a number from 0 to 1 that depends only on the names of the entity and the model."""
    return int.from_bytes(hashlib.sha256(f"{model}\0{entity}".encode()).digest()[:8]) / 2**64
