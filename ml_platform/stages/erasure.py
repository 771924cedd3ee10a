"""Take one entity's rows out of files and Delta tables, in every version.

A text's bytes are compared as the contract's type has them: ``007`` and ``7.0`` are ``7`` in a column of integers.
"""

import csv
import gzip
import hashlib
import hmac
import io
import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.errors import ConfigurationError, DataError, DatasetError
from ml_platform.model_spec import ModelSpec

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

WITHHELD = "withheld: it quoted rows of someone who was forgotten"
KEY_BYTES = 32


# Who


def canonical(value: object, spec: ModelSpec) -> str:
    """Return an entity as text, as the contract's type of the entity column has it."""
    text = str(value)
    if "int" not in str(spec.table.to_schema().columns[spec.entity].dtype).lower():
        return text
    try:
        return str(int(text.strip().removesuffix(".0")))
    except ValueError:
        return text


def read_key(file: Path, *, make: bool) -> bytes:
    """Return the key under which forgotten entities are recorded.

    Parameters
    ----------
    file : Path
        Where it stands, readable by its owner only.
    make : bool
        Make one where there is none.

    Raises
    ------
    ConfigurationError
        It is missing, and may not be made: then nobody could tell who was forgotten.
    """
    if make and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as writer:
            writer.write(os.urandom(KEY_BYTES))
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"The key {file} cannot be read: {error.strerror}. Without it nobody can tell who was forgotten, and "
            "their data would come back with the next file. Restore it from its backup."
        ) from error


def keyed_digest(key: bytes, model: str, entity: str) -> str:
    """Return HMAC-SHA256 of an entity's canonical text, by model: without the key, nobody can try who it was."""
    return hmac.new(key, f"{model}\0{entity}".encode(), hashlib.sha256).hexdigest()


# Files of rows


def without(source: Path, spec: ModelSpec, forgotten: Callable[[str], bool]) -> tuple[bytes, list[int]]:
    """Read a Parquet, CSV or JSON Lines file without the rows of some entities; text stays as it was written.

    Returns
    -------
    data : bytes
        The file without them; empty where none was removed.
    removed : list of int
        The rows' numbers, from 0.

    Raises
    ------
    DataError
        It cannot be searched: it is no such file, or has no column for the entity.
    """
    import pyarrow as pa

    search = _Search(spec, forgotten)
    try:
        if source.suffix == ".parquet":
            return _parquet_without(source, search)
        data = source.read_bytes()
        text = (gzip.decompress(data) if source.suffix == ".gz" else data).decode("utf-8-sig")
        kept, removed = _lines_without(text, search) if source.suffix == ".jsonl" else _csv_without(text, search)
    except (pa.ArrowException, OSError, EOFError, ValueError, KeyError, AttributeError, csv.Error) as error:
        raise DataError(f"{source} cannot be searched for {spec.entity}: {error}.") from error
    if not removed:
        return b"", []
    return (gzip.compress(kept.encode()) if source.suffix == ".gz" else kept.encode()), removed


@dataclass(frozen=True)
class _Search:
    spec: ModelSpec
    forgotten: Callable[[str], bool]

    def __call__(self, value: object) -> bool:
        return value is not None and self.forgotten(canonical(value, self.spec))


def _parquet_without(source: Path, search: _Search) -> tuple[bytes, list[int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(source)
    keep = [not search(value) for value in rows.column(search.spec.entity).to_pylist()]
    removed = [row for row, kept in enumerate(keep) if not kept]
    if not removed:
        return b"", []
    written = io.BytesIO()
    pq.write_table(rows.filter(pa.array(keep, pa.bool_())), written)
    return written.getvalue(), removed


def _csv_without(text: str, search: _Search) -> tuple[str, list[int]]:
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    if not rows:
        return "", []
    column = rows[0].index(search.spec.entity)
    removed = [number for number, row in enumerate(rows[1:]) if column < len(row) and search(row[column])]
    dropped = set(removed)
    written = io.StringIO(newline="")
    kept = [rows[0], *(row for number, row in enumerate(rows[1:]) if number not in dropped)]
    csv.writer(written, lineterminator="\n").writerows(kept)
    return written.getvalue(), removed


def _lines_without(text: str, search: _Search) -> tuple[str, list[int]]:
    lines = [line for line in text.split("\n") if line.strip()]
    removed = [number for number, line in enumerate(lines) if search(json.loads(line).get(search.spec.entity))]
    dropped = set(removed)
    return "".join(line + "\n" for number, line in enumerate(lines) if number not in dropped), removed


# Delta tables


@dataclass(frozen=True, kw_only=True)
class Erased:
    """What a table lost: rows, in all its files, and the first version that held one; None if none did."""

    rows: int
    since: int | None


def first_version_with(table: Path, change: Callable[["pa.Table"], "pa.Table"]) -> int | None:
    """Return the first version of a table that a change would alter; None if there is none."""
    altered = set(_changed_files(table, change))
    versions = [version for version, file in _added_files(table) if file in altered]
    return min(versions, default=None)


def erase(table: Path, change: Callable[["pa.Table"], "pa.Table"], arrivals: set[str]) -> int:
    """Change a table's files in every version; return how many rows that took away.

    Versions stay, under their numbers. At any time the log points at files that are there: a changed file gets a new
    name, then the log's entry is replaced, without the statistics that would quote what was taken, then checkpoints
    go, which are copies of entries, then the old files.

    Parameters
    ----------
    change : callable
        Takes a file's rows and returns them changed; the very same object where there is nothing to change.
    arrivals : set of str
        Whose commits lose the examples that were noted in them.
    """
    import pyarrow.parquet as pq

    changed = _changed_files(table, change)
    entries, lost = dict[str, dict[str, Any]](), 0
    for name, (before, rows) in changed.items():
        new = f"part-{uuid.uuid4()}.parquet"
        pq.write_table(rows, table / new)
        stats = json.dumps({"numRecords": rows.num_rows})
        entries[name] = {"path": new, "size": (table / new).stat().st_size, "stats": stats}
        lost += before - rows.num_rows
    _rewrite_log(table, entries, arrivals)
    for name in changed:
        (table / name).unlink()
    return lost


def _changed_files(table: Path, change: Callable[["pa.Table"], "pa.Table"]) -> dict[str, tuple[int, "pa.Table"]]:
    import pyarrow.parquet as pq

    found = {}
    for file in sorted(table.glob("*.parquet")):
        rows = pq.read_table(file)
        after = change(rows)
        if after is not rows:
            found[file.name] = (rows.num_rows, after)
    return found


def _commits(table: Path) -> list[Path]:
    files = sorted((table / "_delta_log").glob("*.json"))
    if [int(file.stem) for file in files] != list(range(len(files))):
        raise DatasetError(f"The log of {table} has lost commits: its versions cannot be rewritten. Restore them.")
    return files


def _added_files(table: Path) -> Iterator[tuple[int, str]]:
    for version, commit in enumerate(_commits(table)):
        for line in commit.read_text().splitlines():
            if added := json.loads(line).get("add"):
                yield version, added["path"]


def _rewrite_log(table: Path, entries: dict[str, dict[str, Any]], arrivals: set[str]) -> None:
    for commit in _commits(table):
        before = commit.read_text()
        after = "\n".join(_rewritten(line, entries, arrivals) for line in before.splitlines()) + "\n"
        if after.strip() != before.strip():
            temporary = commit.with_name(f".{commit.name}.{os.getpid()}")
            temporary.write_text(after)
            temporary.replace(commit)
    if entries:
        (table / "_delta_log" / "_last_checkpoint").unlink(missing_ok=True)
        for checkpoint in (table / "_delta_log").glob("*.checkpoint*.parquet"):
            checkpoint.unlink()


def _rewritten(line: str, entries: dict[str, dict[str, Any]], arrivals: set[str]) -> str:
    action = json.loads(line)
    added, commit = action.get("add"), action.get("commitInfo", {})
    if added and added["path"] in entries:
        added.update(entries[added["path"]])
        return json.dumps(action)
    if commit.get("arrival") in arrivals and "examples" in (notes := json.loads(commit["notes"])):
        commit["notes"] = json.dumps({**notes, "examples": {}})
        return json.dumps(action)
    return line


def rows_without(spec: ModelSpec, entity: str) -> Callable[["pa.Table"], "pa.Table"]:
    """Return the change that takes an entity out of the table of valid rows."""
    import pyarrow as pa

    def change(rows: "pa.Table") -> "pa.Table":
        keep = [canonical(value, spec) != entity for value in rows.column(spec.entity).to_pylist()]
        return rows if all(keep) else rows.filter(pa.array(keep, pa.bool_()))

    return change


def findings_without(removed: dict[str, set[int]], arrival: str) -> Callable[["pa.Table"], "pa.Table"]:
    """Return the change that takes the findings on some rows out of the quarantine table.

    What is said of a whole file that held such a row is withheld: it may quote it.

    Parameters
    ----------
    removed : dict
        Numbers of the rows by arrival.
    arrival : str
        Name of the column that holds the arrival.
    """
    import pyarrow as pa

    def change(table: "pa.Table") -> "pa.Table":
        findings = table.to_pylist()
        kept = [f for f in findings if f["row"] not in removed.get(f[arrival], ()) or f["row"] is None]
        said = [
            {**f, "rule": WITHHELD, "value": WITHHELD} if f["row"] is None and f[arrival] in removed else f
            for f in kept
        ]
        return table if said == findings else pa.Table.from_pylist(said, schema=table.schema)

    return change


# What candidates keep


def requests_without(folder: Path, names: tuple[str, str], features: "pd.DataFrame") -> int:
    """Take an entity's features, and the answers to them, out of a candidate's golden requests; return how many.

    Parameters
    ----------
    names : tuple of str
        The file of the requests and that of the answers: lists by name, an answer a request.
    features : DataFrame
        Every row of the entity.
    """
    import pandas as pd

    file, answers_file = folder / names[0], folder / names[1]
    if not file.is_file() or features.empty:
        return 0
    requests = pd.read_parquet(file)
    known = set(map(tuple, features[list(requests)].astype(str).to_numpy()))
    keep = [tuple(row) not in known for row in requests.astype(str).to_numpy()]
    if not all(keep):
        answers = json.loads(answers_file.read_text())
        left = {name: [v for v, kept in zip(values, keep, strict=True) if kept] for name, values in answers.items()}
        answers_file.write_text(json.dumps(left))
        requests[keep].to_parquet(file, index=False)
    return keep.count(False)
