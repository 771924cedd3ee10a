"""Read a model's published rows: pin a dataset version, compute its digest, split it.

A model has two Delta tables: ``rows``, its valid rows with their arrival in the column ``_arrival``, and
``quarantine``. Each commit carries an application transaction named after the arrival's sha256, so that concurrent
processes commit the same bytes once.

deltalake never calls fsync: `delta_table.publish` makes each commit durable before it returns.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.errors import DatasetError
from ml_platform.model_spec import ModelSpec
from ml_platform.records.data import DatasetVersion
from ml_platform.storage.delta_table import ARRIVAL, _load_version, _open, _require_columns

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def read_entity_rows(table: Path, spec: ModelSpec, entity: str) -> "pd.DataFrame | None":
    """Return all rows of an entity, given as text, with the columns of the contract; ``None`` without a table."""
    opened = _open(table)
    if opened is None:
        return None
    rows: pd.DataFrame = opened.to_pyarrow_table(columns=spec.columns).to_pandas()
    return rows[rows[spec.entity].astype(str) == entity]


@dataclass(frozen=True, kw_only=True)
class PublishedState:
    """Newest event times in one version of a table.

    `version` is -1 if there is no table; `newest` holds the newest event time of each entity, indexed by entity, and is
    None if there are no rows.
    """

    version: int
    newest: "pd.Series[Any] | None"


def read_published_state(table: Path, spec: ModelSpec, version: int | None = None) -> PublishedState:
    """Read the state that a new batch is validated against, of one version; ``None`` reads the newest."""
    opened = _open(table)
    if opened is None:
        return PublishedState(version=-1, newest=None)
    if version is not None:
        _load_version(opened, version)
    frame = opened.to_pyarrow_table(columns=[spec.entity, spec.event_time]).to_pandas()
    newest = None if frame.empty else frame.groupby(spec.entity)[spec.event_time].max()
    return PublishedState(version=opened.version(), newest=newest)


def keys_published_from(table: Path, spec: ModelSpec, arrival: str, version: int) -> "pa.Table":
    """Return entity and event time of one arrival's rows in one version of a table."""
    opened = _open(table)
    if opened is None:
        raise DatasetError(f"Nothing was published for {spec.name!r} yet.")
    _load_version(opened, version)
    rows: pa.Table = opened.to_pyarrow_table(columns=[spec.entity, spec.event_time], filters=[(ARRIVAL, "=", arrival)])
    return rows


def pin(table: Path, spec: ModelSpec, version: int | None = None) -> tuple[DatasetVersion, "pd.DataFrame"]:
    """Read one version of a model's table: each entity's newest row, ordered by entity.

    Parameters
    ----------
    table : Path
        Folder of the Delta table.
    spec : ModelSpec
        Declares the columns.
    version : int or None
        The version to read; ``None`` reads the newest.

    Returns
    -------
    dataset : DatasetVersion
    rows : DataFrame of shape (n_entities, n_columns)
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
    rows = _select_newest_rows(stored, spec)
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
    rows: pd.DataFrame = _select_newest_rows(opened.to_pyarrow_table(columns=spec.columns), spec).to_pandas()
    return rows


def _select_newest_rows(stored: "pa.Table", spec: ModelSpec) -> "pa.Table":
    newest = stored.group_by(spec.entity).aggregate([(spec.event_time, "max")])
    joined = newest.rename_columns([spec.entity, spec.event_time]).join(
        stored, keys=[spec.entity, spec.event_time], join_type="left outer"
    )
    return joined.select(spec.columns).sort_by([(spec.entity, "ascending"), (spec.event_time, "ascending")])


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
    """Split rows, one per entity, into training rows and holdout, as the model's author declares.

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
