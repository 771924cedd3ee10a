"""Take one entity's rows out of files and Delta tables, in every version.

A text's bytes are compared as the contract's type has them: ``007`` and ``7.0`` are ``7`` in a column of integers.
"""

import contextlib
import csv
import gzip
import hashlib
import hmac
import io
import json
import os
import re
import uuid
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ml_platform import durable
from ml_platform.errors import ConfigurationError, DataError, DatasetError
from ml_platform.model_spec import ModelSpec
from ml_platform.settings import MOST_BYTES
from ml_platform.volumes import is_note, require_bounded

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

WITHHELD = "withheld: it quoted rows of someone who was forgotten"
KEY_BYTES = 32
PLAIN_INTEGER = re.compile("-?[0-9]{1,19}")
LONGEST_INTEGER = 40


# Who


def canonical(value: object, spec: ModelSpec) -> str:
    """Return an entity as text, as the contract's type of the entity column has it."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    if not _are_numbers(cast("Hashable", spec.table), spec.entity):
        return text
    try:
        if PLAIN_INTEGER.fullmatch(text):
            return str(int(text))
        # A file of other types is quarantined and kept: databases export 7 as 7.00, and 10^16 may come as 1e+16.
        number = Decimal(text.strip())
        return str(int(number)) if abs(number.adjusted()) < LONGEST_INTEGER and number == int(number) else text
    except (ArithmeticError, ValueError):
        return text


@cache
def _are_numbers(table: Any, column: str) -> bool:
    # Asked for every row, and pandera's answer takes ten times longer than the rest.
    return "int" in str(table.to_schema().columns[column].dtype).lower()


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
        It is missing, and may not be made, or is cut: then nobody could tell who was forgotten.
    """
    if make and not file.exists():
        _make_key(file)
    try:
        key = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"The key {file} cannot be read: {error.strerror}. Without it nobody can tell who was forgotten, and "
            "their data would come back with the next file. Restore it from its backup."
        ) from error
    if len(key) != KEY_BYTES:
        raise ConfigurationError(f"The key {file} must have {KEY_BYTES} bytes. Got {len(key)}. Restore it.")
    return key


def _make_key(file: Path) -> None:
    """Make a key file, whole or not at all: half a key could be guessed. Of two processes the first wins."""
    with durable.temporary_beside(file) as temporary:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as writer:
            writer.write(os.urandom(KEY_BYTES))
        durable.sync(temporary)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, file)
        durable.sync(file.parent)


def keyed_digest(key: bytes, model: str, entity: str) -> str:
    """Return HMAC-SHA256 of an entity's canonical text, by model: without the key, nobody can try who it was."""
    return hmac.new(key, f"{model}\0{entity}".encode(), hashlib.sha256).hexdigest()


# Files of rows


def without(
    source: Path, spec: ModelSpec, forgotten: Callable[[str], bool], most_bytes: int = MOST_BYTES
) -> tuple[bytes, list[int]]:
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
        It cannot be searched: it is no such file, has no column for the entity, or holds more rows than the model or
        more bytes, also once decompressed, than `most_bytes`.
    """
    import pyarrow as pa

    if is_note(source):
        return b"", []
    search = _Search(spec, forgotten)
    try:
        require_bounded(source, spec.most_rows_a_batch, most_bytes)
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
    pq.write_table(_unpacked(rows.filter(pa.array(keep, pa.bool_()))), written)
    return written.getvalue(), removed


def _unpacked(rows: "pa.Table") -> "pa.Table":
    """Return rows with dictionaries of the values that are left in them: Arrow would write those of all rows."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    for place, field in enumerate(rows.schema):
        if types.is_dictionary(field.type):
            plain = pc.cast(rows.column(place), field.type.value_type)
            rows = rows.set_column(place, field, plain.dictionary_encode().cast(field.type))
    return rows


def _csv_without(text: str, search: _Search) -> tuple[str, list[int]]:
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    if not rows:
        return "", []
    columns = [place for place, name in enumerate(rows[0]) if name == search.spec.entity]
    if not columns:
        raise KeyError(search.spec.entity)
    removed = [number for number, row in enumerate(rows[1:]) if any(search(row[c]) for c in columns if c < len(row))]
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

    _remove_leftovers(table)
    changed = _changed_files(table, change)
    entries, lost = dict[str, dict[str, Any]](), 0
    for name, (before, rows) in changed.items():
        new, written = f"part-{uuid.uuid4()}.parquet", io.BytesIO()
        pq.write_table(_unpacked(rows), written)
        durable.write(table / new, written.getvalue())
        stats = json.dumps({"numRecords": rows.num_rows})
        entries[name] = {"path": new, "size": (table / new).stat().st_size, "stats": stats}
        lost += before - rows.num_rows
    _rewrite_log(table, entries, arrivals)
    for name in changed:
        (table / name).unlink()
    return lost


def _remove_leftovers(table: Path) -> None:
    """Remove what writers that died left in a table's folders: rows, and entries with statistics that quote them.

    Delta stages a file under its name with ``#`` and a number, and leaves a link to a commit there.
    """
    for folder in (table, table / "_delta_log"):
        for file in folder.glob("*"):
            if file.is_file() and (file.name.startswith(".") or "#" in file.name):
                file.unlink()


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
            durable.write(commit, after.encode())
    if entries:
        (table / "_delta_log" / "_last_checkpoint").unlink(missing_ok=True)
        for checkpoint in (table / "_delta_log").glob("*.checkpoint*.parquet"):
            checkpoint.unlink()


def _rewritten(line: str, entries: dict[str, dict[str, Any]], arrivals: set[str]) -> str:
    action = json.loads(line)
    added, removed, commit = action.get("add"), action.get("remove"), action.get("commitInfo", {})
    if added and added["path"] in entries:
        added.update(entries[added["path"]])
        return json.dumps(action)
    if removed and removed["path"] in entries:
        new = entries[removed["path"]]
        removed.update({"path": new["path"], "size": new["size"]})
        removed.pop("stats", None)
        return json.dumps(action)
    if commit.get("arrival") in arrivals and "examples" in (notes := json.loads(commit["notes"])):
        commit["notes"] = json.dumps({**notes, "examples": {}})
        return json.dumps(action)
    return line


def rows_without(spec: ModelSpec, entity: str, column: str | None = None) -> Callable[["pa.Table"], "pa.Table"]:
    """Return the change that takes an entity out of a table; ``None`` for the column that the contract names."""
    import pyarrow as pa

    def change(rows: "pa.Table") -> "pa.Table":
        keep = [canonical(value, spec) != entity for value in rows.column(column or spec.entity).to_pylist()]
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

    files = _Pair(folder / names[0], folder / names[1])
    files.finish()
    if not files.requests.is_file() or features.empty:
        return 0
    requests = pd.read_parquet(files.requests)
    # A candidate of an older contract has other columns: rather one request too many than one too few.
    shared = [name for name in requests if name in features]
    known = set(map(tuple, features[shared].astype(str).to_numpy()))
    keep = [tuple(row) not in known for row in requests[shared].astype(str).to_numpy()]
    if not all(keep):
        answers = json.loads(files.answers.read_text())
        left = {name: [v for v, kept in zip(values, keep, strict=True) if kept] for name, values in answers.items()}
        files.replace(requests[keep].to_parquet(index=False), json.dumps(left).encode())
    return keep.count(False)


@dataclass(frozen=True)
class _Pair:
    """Golden requests and their answers, replaced together: whoever finds one new file alone finishes with it."""

    requests: Path
    answers: Path

    def replace(self, requests: bytes, answers: bytes) -> None:
        durable.write(_new(self.answers), answers)
        durable.write(_new(self.requests), requests)
        self.finish()

    def finish(self) -> None:
        """Put new files in place, the answers first, unless a process died before both were written."""
        if _new(self.requests).exists():
            with contextlib.suppress(FileNotFoundError):  # in place already
                _new(self.answers).replace(self.answers)
            _new(self.requests).replace(self.requests)
        for file in (_new(self.answers), _new(self.requests)):
            for left in (file, *durable.leftovers(file)):
                left.unlink(missing_ok=True)


def _new(file: Path) -> Path:
    return file.with_name(f"{file.name}.new")
