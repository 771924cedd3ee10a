"""Delta tables: publish a batch, quarantine what is bad, pin a version, split it.

A model has two tables: ``rows``, its valid rows with the arrival that brought them in the column ``_arrival``, and
``quarantine``. Each commit carries an application transaction named after the arrival's sha256, so that the same
bytes are committed once, whoever tries.

deltalake never calls fsync. What is reported as published is therefore made durable here, before anybody records it.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform import durable
from ml_platform.errors import ConflictError, DatasetError
from ml_platform.model_spec import ModelSpec, Task
from ml_platform.records import DatasetVersion

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

ARRIVAL = "_arrival"
# In the quarantine: after which of the arrival's releases the finding was made; 0 is when it came.
RELEASE = "_release"
ATTEMPTS = 20
# A single feature this good is not signal but the label in disguise.
GIVEAWAY = 0.99
LEAST_ROWS_A_CATEGORY = 5
# A table of so many files is read slowly.
MANY_FILES = 100
HOURS_TO_FINISH = 24
# Into so many parts of equal size a numeric feature is cut to see whether it gives one of several classes away.
BINS = 200


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A commit that stands in a table, with the figures that its writer noted in it."""

    version: int
    notes: dict[str, Any]


def published(table: Path, sha256: str) -> Publication | None:
    """Return the commit that holds an arrival's bytes; ``None`` if there is none.

    Raises
    ------
    StorageError
        It stands there and could not be made durable.
    """
    opened = _open(table)
    return None if opened is None else _publication(table, opened, sha256)


def _publication(table: Path, opened: Any, sha256: str) -> Publication | None:
    # The transaction's version is the table's: history() numbers commits relative to what was loaded, which is
    # wrong while others write.
    version = opened.transaction_version(sha256)
    if version is None:
        return None
    # Delta drops old commits from the log and keeps their transactions: then the figures are gone.
    notes = next((commit["notes"] for commit in opened.history() if commit.get("sha256") == sha256), None)
    if notes is None:
        raise DatasetError(f"Version {version} of {opened.table_uri} holds {sha256}, but its commit was cleaned up.")
    # Its writer may have died before the commit was on the disk.
    _make_durable(table, version)
    return Publication(version=version, notes=json.loads(notes))


def _make_durable(table: Path, version: int) -> None:
    log = table / "_delta_log"
    commit = log / f"{version:020}.json"
    with durable.storing_in(table):
        actions = [json.loads(line) for line in commit.read_text().splitlines()]
        files = [table / action["add"]["path"] for action in actions if "add" in action]
        for path in (*files, commit, log, table):
            durable.sync(path)


def publish(
    table: Path,
    rows: "pa.Table",
    *,
    arrival: str,
    sha256: str,
    notes: dict[str, Any],
    read_at: int | None = None,
    quoted: str | None = None,
) -> Publication:
    """Append an arrival's rows in one commit, once.

    Parameters
    ----------
    table : Path
        Folder of the Delta table; made at the first commit.
    rows : pyarrow Table of shape (n_rows, n_columns)
        What to append; ``_arrival`` is added.
    arrival, sha256 : str
        The arrival's key, and the digest of its bytes, which names the transaction.
    notes : dict
        Figures to keep in the commit, for a writer that dies before it can report them.
    read_at : int or None
        The version that the rows were validated against: nobody may have committed since. ``None`` does not mind.
    quoted : str or None
        The column whose least and greatest values a table that is made now notes in its log; ``None`` for all columns.

    Raises
    ------
    ConflictError
        Others committed to the table since `read_at`, or `ATTEMPTS` times in a row; nothing was written.
    DatasetError
        The table has other columns: the contract was changed since it was made.
    StorageError
        The disk is full, read-only or broken: nothing was published, or what was is not durable; run it again.
    """
    import pyarrow as pa

    data = rows.append_column(ARRIVAL, pa.array([arrival] * rows.num_rows, pa.string())).replace_schema_metadata(None)
    for _ in range(ATTEMPTS):
        opened = _open(table) or _create(table, data.schema, quoted)
        if done := opened and _publication(table, opened, sha256):
            return done
        if opened and read_at is not None and opened.version() > max(read_at, 0):
            raise ConflictError(f"Others wrote to {table} since version {read_at}. Validate {arrival} again.")
        if opened:
            _require_columns(opened, data.column_names)
        if opened and _commit(table, opened, data, arrival, sha256, notes):
            _make_durable(table, opened.version())
            return Publication(version=opened.version(), notes=notes)
    raise ConflictError(f"Others wrote to {table} {ATTEMPTS} times while {arrival} was published. Run it again.")


def _create(table: Path, schema: "pa.Schema", quoted: str | None) -> Any:
    """Make an empty table and open it; return None if somebody else was making it at the same time."""
    from deltalake import CommitProperties, DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        with _storing_in(table):
            durable.make_folder(table)
            made = DeltaTable.create(
                table,
                schema,
                mode="error",
                # A version that a model was trained on stays readable: Delta would drop old commits after 30 days.
                configuration={
                    "delta.enableExpiredLogCleanup": "false",
                    **({"delta.dataSkippingStatsColumns": quoted} if quoted else {}),
                },
                # With retries the library would write a second creation after somebody else's first.
                commit_properties=CommitProperties(max_commit_retries=0),
            )
            _make_durable(table, 0)
    except DeltaError:
        if DeltaTable.is_deltatable(str(table)):
            return None
        raise
    return made


@contextlib.contextmanager
def _storing_in(table: Path) -> Iterator[None]:
    """Tell a disk that takes nothing from what else deltalake can say: one of its errors may be either."""
    from deltalake.exceptions import DeltaError

    try:
        with durable.storing_in(table):
            yield
    except DeltaError as error:
        if "(os error " not in str(error):
            raise
        raise durable.refused(table, str(error)) from error


def _commit(table: Path, opened: Any, data: "pa.Table", arrival: str, sha256: str, notes: dict[str, Any]) -> bool:
    """Commit as the very next version of the table as it was opened; return False if another commit was faster.

    Without retries inside the library, the version that is noted in the transaction is the one that is written, and
    what was read of the table before is still true when it is.
    """
    from deltalake import CommitProperties, Transaction, write_deltalake
    from deltalake.exceptions import CommitFailedError

    properties = CommitProperties(
        custom_metadata={"sha256": sha256, "arrival": arrival, "notes": json.dumps(notes)},
        app_transactions=[Transaction(app_id=sha256, version=opened.version() + 1)],
        max_commit_retries=0,
    )
    try:
        with _storing_in(table):
            write_deltalake(opened, data, mode="append", commit_properties=properties)
    except CommitFailedError:
        return False
    return True


def rows_of(table: Path, spec: ModelSpec, entity: str) -> "pd.DataFrame | None":
    """Return all rows of an entity, given as text, with the columns of the contract; ``None`` without a table."""
    opened = _open(table)
    if opened is None:
        return None
    rows: pd.DataFrame = opened.to_pyarrow_table(columns=spec.columns).to_pandas()
    return rows[rows[spec.entity].astype(str) == entity]


def commit_nothing(table: Path) -> None:
    """Make a version that differs in nothing, so that whoever read an earlier one has to look again."""
    from deltalake import CommitProperties, write_deltalake
    from deltalake.exceptions import CommitFailedError

    for _ in range(ATTEMPTS):
        opened = _open(table)
        if opened is None:
            return
        none = opened.to_pyarrow_dataset().schema.empty_table()
        try:
            properties = CommitProperties(custom_metadata={"rows": "none"}, max_commit_retries=0)
            write_deltalake(opened, none, mode="append", commit_properties=properties)
        except CommitFailedError:
            continue
        return
    raise ConflictError(f"Others wrote to {table} {ATTEMPTS} times meanwhile. Run it again.")


def newest_version(table: Path) -> tuple[int | None, int]:
    """Return the number of a table's newest version and its rows; None and 0 where there is no table."""
    opened = _open(table)
    return (None, 0) if opened is None else (int(opened.version()), int(opened.count()))


def tidy(table: Path, column: str, since: datetime) -> int:
    """Delete rows of before a time, once a day, and make one file of many; return how many rows were deleted.

    Files that are no longer in the newest version are removed a day later: whoever reads them now can finish. Nobody
    else may change files of the table meanwhile; others may append.

    Parameters
    ----------
    column : str
        Holds the time of a row.
    since : datetime
        In UTC. While no row is a day older than this, none is deleted.

    Raises
    ------
    StorageError
        The disk is full, read-only or broken.
    """
    opened = _open(table)
    if opened is None:
        return 0
    with _storing_in(table):
        deleted = _delete_before(opened, column, since)
        many = len(opened.file_uris()) >= MANY_FILES
        if many:
            opened.optimize.compact()
        if deleted or many:
            _make_durable(table, opened.version())
            opened.vacuum(retention_hours=HOURS_TO_FINISH, dry_run=False, enforce_retention_duration=False)
            _make_durable(table, opened.version())
    return deleted


def _delete_before(opened: Any, column: str, since: datetime) -> int:
    import pyarrow.compute as pc

    day_older = pc.scalar(since - timedelta(days=1))
    # Files whose noted ends say that all is newer are not opened.
    if not opened.to_pyarrow_dataset().count_rows(filter=pc.field(column) < day_older):
        return 0
    deleted: int = opened.delete(f"{column} < '{since.isoformat()}'")["num_deleted_rows"]
    return deleted


def _require_columns(opened: Any, names: list[str]) -> None:
    there = {field.name for field in opened.schema().fields}
    if there != set(names):
        missing, more = sorted(there - set(names)), sorted(set(names) - there)
        raise DatasetError(
            f"The table {opened.table_uri} was made under another contract: it has {missing or 'nothing'} more and "
            f"lacks {more or 'nothing'}. Change the contract back, or move the table away and land the files again."
        )


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is published at one version of a table.

    `version` is -1 where there is no table; `newest` holds the newest event time of each entity, indexed by entity,
    and is None where there is none.
    """

    version: int
    newest: "pd.Series[Any] | None"


def what_is_published(table: Path, spec: ModelSpec, version: int | None = None) -> Published:
    """Read what a new batch must be held against, in one version of the table; ``None`` takes the newest."""
    opened = _open(table)
    if opened is None:
        return Published(version=-1, newest=None)
    if version is not None:
        _load_version(opened, version)
    frame = opened.to_pyarrow_table(columns=[spec.entity, spec.event_time]).to_pandas()
    newest = None if frame.empty else frame.groupby(spec.entity)[spec.event_time].max()
    return Published(version=opened.version(), newest=newest)


def findings(table: Path, arrivals: list[str], release: int) -> list[dict[str, Any]]:
    """Return what stands in a quarantine table against arrivals since one of their releases, 0 since they came.

    Earlier findings stay in the table: a release supersedes them and takes nothing away.
    """
    opened = _open(table)
    if opened is None:
        return []
    wanted = [(ARRIVAL, "in", arrivals), (RELEASE, "=", release)]
    rows: list[dict[str, Any]] = opened.to_pyarrow_table(filters=wanted).to_pylist()
    return rows


def keys_published_from(table: Path, spec: ModelSpec, arrival: str, version: int) -> "pa.Table":
    """Return entity and event time of the rows of one arrival that one version of a table holds."""
    opened = _open(table)
    if opened is None:
        raise DatasetError(f"Nothing was published for {spec.name!r} yet.")
    _load_version(opened, version)
    columns, wanted = [spec.entity, spec.event_time], [(ARRIVAL, "=", arrival)]
    rows: pa.Table = opened.to_pyarrow_table(columns=columns, filters=wanted)
    return rows


def pin(table: Path, spec: ModelSpec, version: int | None = None) -> tuple[DatasetVersion, "pd.DataFrame"]:
    """Read one version of a model's table: each entity's newest row, ordered by entity.

    Parameters
    ----------
    table : Path
        Folder of the Delta table.
    spec : ModelSpec
        Names the columns.
    version : int or None
        The version to read; ``None`` takes the newest.

    Returns
    -------
    dataset : DatasetVersion
    rows : DataFrame of shape (n_entities, n_columns)
        The columns of the contract, in its order.

    Raises
    ------
    DatasetError
        Nothing was published yet, or the version is not there.
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
    rows = _newest_row_of_each(stored, spec)
    dataset = DatasetVersion(model=spec.name, version=opened.version(), digest=digest(rows), rows=rows.num_rows)
    return dataset, rows.to_pandas()


def read_version(table: Path, spec: ModelSpec, version: int) -> "pd.DataFrame":
    """Read the rows of a pinned version as `pin` does, without computing its digest again.

    Raises
    ------
    DatasetError
        The table or the version is not there.
    """
    opened = _open(table)
    if opened is None:
        raise DatasetError(f"Nothing was published for {spec.name!r} yet.")
    _load_version(opened, version)
    rows: pd.DataFrame = _newest_row_of_each(opened.to_pyarrow_table(columns=spec.columns), spec).to_pandas()
    return rows


def _load_version(opened: Any, version: int) -> None:
    from deltalake.exceptions import DeltaError

    try:
        opened.load_as_version(version)
    except DeltaError as error:
        raise DatasetError(f"Version {version} of {opened.table_uri} cannot be read: {error}.") from error


def _newest_row_of_each(stored: "pa.Table", spec: ModelSpec) -> "pa.Table":
    newest = stored.group_by(spec.entity).aggregate([(spec.event_time, "max")])
    joined = newest.rename_columns([spec.entity, spec.event_time]).join(
        stored, keys=[spec.entity, spec.event_time], join_type="left outer"
    )
    return joined.select(spec.columns).sort_by([(spec.entity, "ascending"), (spec.event_time, "ascending")])


def digest(rows: "pa.Table") -> str:
    """Return the hex sha256 of the rows in any order: columns by name, rows sorted by all of them, as CSV.

    CSV because its text depends on the values alone: Arrow's own bytes also hold padding and what lies under nulls.
    """
    import pyarrow.csv

    names = sorted(rows.column_names)
    ordered = rows.select(names).sort_by([(name, "ascending") for name in names])
    text = io.BytesIO()
    pyarrow.csv.write_csv(ordered, text)
    return hashlib.sha256(text.getbuffer()).hexdigest()


def split(rows: "pd.DataFrame", spec: ModelSpec) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Split rows, one an entity, into training rows and holdout, as the author says.

    By entity, an entity is on the same side in every dataset version, so that a model is never judged on whom its
    predecessor was trained on. By time, every row of the holdout is newer than all training rows; rows of the very
    same time are on the same side.

    Returns
    -------
    training, holdout : DataFrame
    """
    held_out = _newest(rows, spec) if spec.split == "time" else _by_hash(rows, spec)
    return rows[~held_out], rows[held_out]


def _newest(rows: "pd.DataFrame", spec: ModelSpec) -> "pd.Series[bool]":
    times = rows[spec.event_time]
    last_of_training = times.quantile(1 - spec.holdout_share, interpolation="lower")
    return times > last_of_training


def _by_hash(rows: "pd.DataFrame", spec: ModelSpec) -> "pd.Series[bool]":
    return rows[spec.entity].map(lambda entity: _fraction(spec.name, entity) < spec.holdout_share).astype(bool)


def _fraction(model: str, entity: object) -> float:
    """Map an entity to a number in 0 to 1 that depends on nothing but its name and the model's."""
    return int.from_bytes(hashlib.sha256(f"{model}\0{entity}".encode()).digest()[:8]) / 2**64


def _open(table: Path) -> Any:
    from deltalake import DeltaTable

    return DeltaTable(table) if DeltaTable.is_deltatable(str(table)) else None


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """What a person wants to know of a dataset version before a model is trained on it.

    `share_positive` is None but for two classes. `problems` says, by the name of the check, why no model may be; an
    empty dict means that one may.
    """

    dataset: DatasetVersion
    training_rows: int
    holdout_rows: int
    share_positive: float | None
    problems: dict[str, str]


def look_at(dataset: DatasetVersion, rows: "pd.DataFrame", labels: "NDArray[Any]", spec: ModelSpec) -> DatasetReport:
    """Hold a dataset version, its labels as training sees them, against what its author asks, and against leakage."""
    training, holdout = split(rows, spec)
    shared = set(training[spec.entity]) & set(holdout[spec.entity])
    leaks = giveaways(rows[spec.features], labels, spec.task)
    problems = {}
    if len(rows) < spec.least_rows or not len(training) or not len(holdout):
        problems["least_rows"] = f"it has {len(rows)} rows, {spec.least_rows} are asked for"
    if unbalanced := _unbalanced(labels, spec):
        problems["class_balance"] = unbalanced
    if shared:
        problems["disjoint_split"] = f"{len(shared)} entities are both in the training rows and in the holdout"
    if leaks:
        said = ", ".join(f"{name} ({score:.3f})" for name, score in leaks.items())
        problems["leakage"] = f"a single feature gives the label away: {said}"
    return DatasetReport(
        dataset=dataset,
        training_rows=len(training),
        holdout_rows=len(holdout),
        share_positive=_share_positive(labels) if spec.task == "binary" else None,
        problems=problems,
    )


def _share_positive(labels: "NDArray[Any]") -> float:
    return float(labels.mean()) if len(labels) else 0.0


def _unbalanced(labels: "NDArray[Any]", spec: ModelSpec) -> str:
    """Say why the labels are too much alike to learn from; an empty text if they are not."""
    import numpy as np

    values, counts = np.unique(labels, return_counts=True)
    if spec.task == "regression":
        return "" if len(values) > 1 else "its label never varies"
    least, share = spec.least_share_of_a_class, _share_positive(labels) if spec.task == "binary" else 0.0
    if spec.task == "binary" and min(share, 1 - share) < least:
        return f"{share:.1%} of its rows are positive, a class must have at least {least:.1%}"
    if spec.task == "multiclass" and len(values) < 3:
        return f"it has {len(values)} classes, three are the least that are not binary"
    if spec.task == "multiclass" and counts.min() < least * len(labels):
        rarest, rare = values[counts.argmin()], counts.min() / len(labels)
        return f"{rare:.1%} of its rows are {rarest}, a class must have at least {least:.1%}"
    return ""


def giveaways(features: "pd.DataFrame", labels: "NDArray[Any]", task: Task = "binary") -> dict[str, float]:
    """Return the features that give the label away on their own, with how well they do.

    A numeric feature gives two classes away when its AUC, read either way round, is at least `GIVEAWAY`. A category
    does when predicting each category's majority is right that often and beats the overall majority by half of what is
    left; so does a numeric feature, cut into bins, with more than two classes. A feature gives a number away when its
    rank correlation, or the share of variance between its categories, is at least `GIVEAWAY`.

    Parameters
    ----------
    features : DataFrame of shape (n_samples, n_features)
    labels : ndarray of shape (n_samples,)
        0 and 1, classes, or numbers.
    task : "binary", "multiclass" or "regression"

    Returns
    -------
    dict
        AUC, accuracy, correlation or share of variance by column.
    """
    import pandas as pd
    from pandas.api.types import is_numeric_dtype

    label = pd.Series(labels, index=features.index)
    if label.nunique() < 2:
        return {}
    numeric, category = {
        "binary": (_auc_either_way, _majority),
        "multiclass": (_binned_majority, _majority),
        "regression": (_rank_correlation, _variance_between),
    }[task]
    scores = {
        str(name): numeric(column, label) if is_numeric_dtype(column) else category(column, label)
        for name, column in features.items()
    }
    return {name: score for name, score in scores.items() if score >= GIVEAWAY}


def _rank_correlation(column: "pd.Series[Any]", label: "pd.Series[Any]") -> float:
    ranks, others = column.astype("float64").rank(), label.rank()
    return 0.0 if ranks.nunique() < 2 else abs(float(ranks.corr(others)))


def _variance_between(column: "pd.Series[Any]", label: "pd.Series[Any]") -> float:
    if column.nunique() * LEAST_ROWS_A_CATEGORY > len(column):
        return 0.0
    means = label.groupby(column.fillna("")).transform("mean")
    return float(means.var() / label.var())


def _binned_majority(column: "pd.Series[Any]", label: "pd.Series[Any]") -> float:
    import pandas as pd

    bins = min(BINS, len(column) // LEAST_ROWS_A_CATEGORY)
    few = column.nunique() <= bins
    return _majority(
        (column if few else pd.qcut(column.astype("float64"), bins, duplicates="drop")).astype("str"), label
    )


def _auc_either_way(column: "pd.Series[Any]", positive: "pd.Series[Any]") -> float:
    # The Mann-Whitney form of the AUC, by mean ranks: Hanley and McNeil, Radiology 143 (1982), 29-36.
    ranks = column.rank()
    n_positive = int(positive.sum())
    area = (ranks[positive == 1].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * (len(column) - n_positive))
    return float(max(area, 1 - area))


def _majority(column: "pd.Series[Any]", label: "pd.Series[Any]") -> float:
    import pandas as pd

    if column.nunique() * LEAST_ROWS_A_CATEGORY > len(column):
        return 0.0  # with a category a row or so, the majority of each is right by itself
    table = pd.crosstab(column.fillna(""), label)
    accuracy, base = table.max(axis=1).sum() / len(label), table.sum().max() / len(label)
    return float(accuracy) if accuracy >= (1 + base) / 2 else 0.0
