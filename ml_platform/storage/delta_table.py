"""Delta tables of a model's rows: publish each batch once; versions stay readable while others are written."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ml_platform.errors import ConflictError, DatasetError
from ml_platform.storage import atomic_files

if TYPE_CHECKING:
    import pyarrow as pa


ARRIVAL = "_arrival"
# Column of the quarantine table: number of the arrival's release that found the violation; 0 is the first validation.
RELEASE = "_release"
ATTEMPTS = 20
# Number of files above which a table is compacted, because reading becomes slow.
MANY_FILES = 100
HOURS_TO_FINISH = 24


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A commit of a table, with the counts that its writer stored in it."""

    version: int
    notes: dict[str, Any]


def published(table: Path, sha256: str) -> Publication | None:
    """Return the commit that holds an arrival's bytes; ``None`` if there is none.

    Raises
    ------
    StorageError
        The commit exists and could not be made durable.
    """
    opened = _open(table)
    return None if opened is None else _find_publication(table, opened, sha256)


def _find_publication(table: Path, opened: Any, sha256: str) -> Publication | None:
    # The transaction's version is the table's. history() numbers commits relative to the loaded version, which is wrong
    # during concurrent writes.
    version = opened.transaction_version(sha256)
    if version is None:
        return None
    # Delta may drop old commits from the log and keep their transactions: the counts are lost with the commit.
    notes = next((commit["notes"] for commit in opened.history() if commit.get("sha256") == sha256), None)
    if notes is None:
        raise DatasetError(
            f"Version {version} of {opened.table_uri} holds the bytes with sha256 {sha256}, but its commit was cleaned "
            "up. Restore the table's _delta_log from a backup."
        )
    # Its writer may have been killed before the commit was on the disk.
    _make_durable(table, version)
    return Publication(version=version, notes=json.loads(notes))


def _make_durable(table: Path, version: int) -> None:
    log = table / "_delta_log"
    commit = log / f"{version:020}.json"
    with atomic_files.raise_storage_errors(table):
        # Bytes are split at line feeds alone; text would be split at U+2028 within a quoted value, too.
        actions = [json.loads(line) for line in commit.read_bytes().splitlines()]
        files = [table / action["add"]["path"] for action in actions if "add" in action]
        for path in (*files, commit, log, table):
            atomic_files.sync(path)


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
    """Append an arrival's rows in one commit; a second call for the same bytes returns the first commit.

    Parameters
    ----------
    table : Path
        Folder of the Delta table; created with the first commit.
    rows : pyarrow Table of shape (n_rows, n_columns)
        The rows, without the column ``_arrival``, which is added.
    arrival, sha256 : str
        The arrival's key, and the digest of its bytes, which names the transaction.
    notes : dict
        Counts to store in the commit, for a writer that is killed before it reports them.
    read_at : int or None
        The version that the rows were validated against: the table must not have a newer one. ``None`` allows any.
    quoted : str or None
        The only column with minimum and maximum values in the log of a new table; ``None`` for all columns.

    Raises
    ------
    ConflictError
        Another process committed after `read_at`, or `ATTEMPTS` times in a row; nothing was written.
    DatasetError
        The table has other columns: the contract has changed since it was created.
    StorageError
        The disk is full, read-only or broken: nothing was published, or the commit is not durable. Run it again.
    """
    import pyarrow as pa

    data = rows.append_column(ARRIVAL, pa.array([arrival] * rows.num_rows, pa.string())).replace_schema_metadata(None)
    for _ in range(ATTEMPTS):
        opened = _open(table) or _create(table, data.schema, quoted)
        if done := opened and _find_publication(table, opened, sha256):
            return done
        if opened and read_at is not None and opened.version() > max(read_at, 0):
            raise ConflictError(f"Another process wrote to {table} after version {read_at}. Validate {arrival} again.")
        if opened:
            _require_columns(opened, data.column_names)
        if opened and _commit(table, opened, data, arrival, sha256, notes):
            _make_durable(table, opened.version())
            return Publication(version=opened.version(), notes=notes)
    raise ConflictError(
        f"Other processes wrote to {table} {ATTEMPTS} times while {arrival} was published. Run it again."
    )


def _create(table: Path, schema: "pa.Schema", quoted: str | None) -> Any:
    """Create an empty table and open it; return None if another process created it at the same time."""
    from deltalake import CommitProperties, DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        with _raise_disk_errors(table):
            atomic_files.make_folder(table)
            created = DeltaTable.create(
                table,
                schema,
                mode="error",
                # Versions with trained models stay readable: by default, Delta drops old commits after 30 days.
                configuration={
                    "delta.enableExpiredLogCleanup": "false",
                    **({"delta.dataSkippingStatsColumns": quoted} if quoted else {}),
                },
                # With retries, the library would write a second creation after another process's first.
                commit_properties=CommitProperties(max_commit_retries=0),
            )
            _make_durable(table, 0)
    except DeltaError:
        if DeltaTable.is_deltatable(str(table)):
            return None
        raise
    return created


@contextlib.contextmanager
def _raise_disk_errors(table: Path) -> Iterator[None]:
    """Convert errors of the disk to StorageError, also if deltalake reports them as one of its own errors."""
    from deltalake.exceptions import DeltaError

    try:
        with atomic_files.raise_storage_errors(table):
            yield
    except DeltaError as error:
        if "(os error " not in str(error):
            raise
        raise atomic_files.make_storage_error(table, str(error)) from error


def _commit(table: Path, opened: Any, data: "pa.Table", arrival: str, sha256: str, notes: dict[str, Any]) -> bool:
    """Commit the version after the opened one; return False if another process committed it first.

    Without retries inside the library, the transaction records the version that is written, and the state read from the
    opened table is still valid.
    """
    from deltalake import CommitProperties, Transaction, write_deltalake
    from deltalake.exceptions import CommitFailedError

    properties = CommitProperties(
        custom_metadata={"sha256": sha256, "arrival": arrival, "notes": json.dumps(notes)},
        app_transactions=[Transaction(app_id=sha256, version=opened.version() + 1)],
        max_commit_retries=0,
    )
    try:
        with _raise_disk_errors(table):
            write_deltalake(opened, data, mode="append", commit_properties=properties)
    except CommitFailedError:
        return False
    return True


def commit_nothing(table: Path) -> None:
    """Commit a version without changes, so that writers which read an earlier one must read the table again."""
    from deltalake import CommitProperties, write_deltalake
    from deltalake.exceptions import CommitFailedError

    for _ in range(ATTEMPTS):
        opened = _open(table)
        if opened is None:
            return
        empty = opened.to_pyarrow_dataset().schema.empty_table()
        try:
            properties = CommitProperties(custom_metadata={"rows": "none"}, max_commit_retries=0)
            write_deltalake(opened, empty, mode="append", commit_properties=properties)
        except CommitFailedError:
            continue
        return
    raise ConflictError(f"Other processes wrote to {table} {ATTEMPTS} times in a row. Run it again.")


def read_version(table: Path) -> int:
    """Return a table's newest version; -1 if there is no table."""
    opened = _open(table)
    return -1 if opened is None else int(opened.version())


def open_dataset(table: Path, opened: Any, *, in_order: bool = False) -> Any:
    """Return the opened version of a table as a pyarrow dataset; `in_order` sorts its files by their commits."""
    import pyarrow.dataset

    found = opened.to_pyarrow_dataset()
    if not in_order:
        return found
    commits = sorted((table / "_delta_log").glob("*.json"))[: opened.version() + 1]
    order = dict[str, int]()
    for commit in commits:
        actions = (json.loads(line) for line in commit.read_bytes().splitlines())
        added = [unquote(action["add"]["path"]) for action in actions if "add" in action]
        order.update((path, len(order)) for path in added)
    fragments = sorted(found.get_fragments(), key=lambda fragment: order[fragment.path])
    return pyarrow.dataset.FileSystemDataset(fragments, found.schema, found.format, found.filesystem)


def newest_version(table: Path) -> tuple[int | None, int]:
    """Return a table's newest version and its number of rows; None and 0 if there is no table."""
    opened = _open(table)
    return (None, 0) if opened is None else (int(opened.version()), int(opened.count()))


def compact_and_expire(table: Path, column: str, since: datetime) -> int:
    """Delete rows older than a time, at most once a day, and compact many files into one; return the deleted rows.

    Files outside the newest version are removed a day later, so that readers can finish. Other processes may append to
    the table meanwhile, but must not rewrite its files.

    Parameters
    ----------
    column : str
        The column with a row's time.
    since : datetime
        In UTC. Rows are deleted only once one is more than a day older than this.

    Raises
    ------
    StorageError
        The disk is full, read-only or broken.
    """
    import pyarrow.compute as pc

    opened, deleted = _open(table), 0
    if opened is None:
        return 0
    with _raise_disk_errors(table):
        expired = pc.field(column) < pc.scalar(since - timedelta(days=1))
        # Files whose minimum in the log is newer are not opened.
        if opened.to_pyarrow_dataset().count_rows(filter=expired):
            deleted = int(opened.delete(f"{column} < '{since.isoformat()}'")["num_deleted_rows"])
        many = len(opened.file_uris()) >= MANY_FILES
        if many:
            opened.optimize.compact()
        if deleted or many:
            _make_durable(table, opened.version())
            opened.vacuum(retention_hours=HOURS_TO_FINISH, dry_run=False, enforce_retention_duration=False)
            _make_durable(table, opened.version())
    return deleted


def _require_columns(opened: Any, names: list[str]) -> None:
    columns = {field.name for field in opened.schema().fields}
    if columns != set(names):
        extra, missing = sorted(columns - set(names)), sorted(set(names) - columns)
        raise DatasetError(
            f"The table {opened.table_uri} was created with another contract: it has the extra columns {extra} and "
            f"lacks {missing}. Change the contract back, or move the table away and land exports that have "
            "the contract's columns."
        )


def read_violations(table: Path, arrivals: list[str], release: int) -> list[dict[str, Any]]:
    """Return the violations of some arrivals that one of their releases found; 0 stands for the first validation.

    Superseded violations stay in the table.
    """
    opened = _open(table)
    if opened is None:
        return []
    wanted = [(ARRIVAL, "in", arrivals), (RELEASE, "=", release)]
    rows: list[dict[str, Any]] = opened.to_pyarrow_table(filters=wanted).to_pylist()
    return rows


def _load_version(opened: Any, version: int) -> None:
    from deltalake.exceptions import DeltaError

    try:
        opened.load_as_version(version)
    except DeltaError as error:
        raise DatasetError(f"Version {version} of {opened.table_uri} cannot be read: {error}.") from error


def _open(table: Path) -> Any:
    from deltalake import DeltaTable

    return DeltaTable(table) if DeltaTable.is_deltatable(str(table)) else None
