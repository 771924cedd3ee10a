"""Remove one entity's rows from every version of Delta tables and from golden requests; names of entities.

Entities are compared by the contract's type: ``007``, ``7.0`` and ``0x7`` equal ``7`` in a column of integers.
"""

import contextlib
import hashlib
import hmac
import io
import json
import re
import uuid
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ml_platform.errors import DatasetError
from ml_platform.model_spec import ModelSpec
from ml_platform.storage import atomic_files
from ml_platform.storage.delta_table import ARRIVAL

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

WITHHELD = "withheld: it quoted rows of a forgotten entity"
PLAIN_INTEGER = re.compile("-?[0-9]{1,19}")
HEXADECIMAL = re.compile("-?0[xX][0-9a-fA-F]{1,32}")
LONGEST_INTEGER = 40


# Entities


def canonical(value: object, spec: ModelSpec) -> str:
    """Return an entity as text in the canonical form of the entity column's type."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    if not _are_numbers(cast("Hashable", spec.contract), spec.entity):
        return text
    try:
        if PLAIN_INTEGER.fullmatch(text):
            return str(int(text))
        if HEXADECIMAL.fullmatch(text):
            return str(int(text, 16))
        # The bytes of quarantined rows stay, and may have other types: databases export 7 as 7.00, 10^16 as 1e+16.
        number = Decimal(text.strip())
        return str(int(number)) if abs(number.adjusted()) < LONGEST_INTEGER and number == int(number) else text
    except (ArithmeticError, ValueError):
        return text


@cache
def _are_numbers(table: Any, column: str) -> bool:
    # Cached: called for every row, and pandera's lookup takes ten times longer than the other work.
    return "int" in str(table.to_schema().columns[column].dtype).lower()


@dataclass(frozen=True, kw_only=True)
class Entities:
    """Entities to remove, as a function of their canonical text: one by its name, or all with a tombstone.

    Parameters
    ----------
    model : str
    name : str or None
        Canonical text of one entity.
    key : bytes
        The key of the digests.
    digests : frozenset of str
        Keyed digests of erased entities.
    """

    model: str
    name: str | None = None
    key: bytes = b""
    digests: frozenset[str] = frozenset()

    def __call__(self, entity: str) -> bool:
        """Return True if an entity is one of these."""
        return entity == self.name or (
            bool(self.digests) and keyed_digest(self.key, self.model, entity) in self.digests
        )

    def to_json(self) -> dict[str, Any]:
        """Return a description from which `from_json` makes an equal object in another process."""
        return {"model": self.model, "name": self.name, "key": self.key.hex(), "digests": sorted(self.digests)}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "Entities":
        """Return the object that `to_json` describes."""
        key, digests = bytes.fromhex(given["key"]), frozenset(given["digests"])
        return cls(model=given["model"], name=given["name"], key=key, digests=digests)


def keyed_digest(key: bytes, model: str, entity: str) -> str:
    """Return HMAC-SHA256 of an entity's canonical text, by model: the key prevents guessing the entity."""
    return hmac.new(key, f"{model}\0{entity}".encode(), hashlib.sha256).hexdigest()


def rebuild_dictionaries(rows: "pa.Table") -> "pa.Table":
    """Rebuild the dictionaries of a table: Arrow would also write the values of removed rows."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    for index, field in enumerate(rows.schema):
        if types.is_dictionary(field.type):
            plain = pc.cast(rows.column(index), field.type.value_type)
            rows = rows.set_column(index, field, plain.dictionary_encode().cast(field.type))
    return rows


# Delta tables


@dataclass(frozen=True, kw_only=True)
class Erased:
    """Rows removed from all files of a table, and the first version that held one; None if there was none."""

    rows: int
    since: int | None


def first_version_with(table: Path, change: Callable[["pa.Table"], "pa.Table"]) -> int | None:
    """Return the first version of a table that a change would alter; None if there is none."""
    altered = set(_changed_files(table, change))
    for version, commit in enumerate(_commits(table)):
        actions = [json.loads(line) for line in commit.read_bytes().splitlines()]
        if any(action["add"]["path"] in altered for action in actions if action.get("add")):
            return version
    return None


def erase(table: Path, change: Callable[["pa.Table"], "pa.Table"], arrivals: set[str]) -> int:
    """Change a table's files in every version; return the number of rows that were removed.

    Versions keep their numbers, and the log always refers to existing files: first each changed file is written under a
    new name, then the log's entries are replaced, without the statistics that would quote removed values, then the
    checkpoints, which are copies of entries, are deleted, and then the old files.

    Parameters
    ----------
    change : callable
        Takes a file's rows and returns the changed rows, or the same object if nothing changes.
    arrivals : set of str
        Keys of the arrivals whose commits lose their examples of violations.
    """
    import pyarrow.parquet as pq

    # Killed writers leave rows, and entries whose statistics quote rows: Delta stages a file under its name with ``#``
    # and a number, and leaves a link to a commit there.
    for folder in (table, table / "_delta_log"):
        for file in folder.glob("*"):
            if file.is_file() and (file.name.startswith(".") or "#" in file.name):
                file.unlink()
    changed = _changed_files(table, change)
    entries, lost = dict[str, dict[str, Any]](), 0
    for name, (before, rows) in changed.items():
        new, written = f"part-{uuid.uuid4()}.parquet", io.BytesIO()
        pq.write_table(rebuild_dictionaries(rows), written)
        atomic_files.write(table / new, written.getvalue())
        stats = json.dumps({"numRecords": rows.num_rows})
        entries[name] = {"path": new, "size": (table / new).stat().st_size, "stats": stats}
        lost += before - rows.num_rows
    _rewrite_log(table, entries, arrivals)
    for name in changed:
        (table / name).unlink()
    return lost


def _changed_files(table: Path, change: Callable[["pa.Table"], "pa.Table"]) -> dict[str, tuple[int, "pa.Table"]]:
    import pyarrow.parquet as pq

    changed = {}
    for file in sorted(table.glob("*.parquet")):
        rows = pq.read_table(file)
        after = change(rows)
        if after is not rows:
            changed[file.name] = (rows.num_rows, after)
    return changed


def _commits(table: Path) -> list[Path]:
    files = sorted((table / "_delta_log").glob("*.json"))
    if [int(file.stem) for file in files] != list(range(len(files))):
        raise DatasetError(
            f"The log of {table} lacks commits, so its versions cannot be rewritten. Restore the missing files of "
            f"{table / '_delta_log'} from a backup."
        )
    return files


def _rewrite_log(table: Path, entries: dict[str, dict[str, Any]], arrivals: set[str]) -> None:
    for commit in _commits(table):
        before = commit.read_text()
        # Values in the statistics may hold U+2028, at which `splitlines` would cut.
        after = "\n".join(_rewrite_action(line, entries, arrivals) for line in before.rstrip("\n").split("\n")) + "\n"
        if after.strip() != before.strip():
            atomic_files.write(commit, after.encode())
    if entries:
        (table / "_delta_log" / "_last_checkpoint").unlink(missing_ok=True)
        for checkpoint in (table / "_delta_log").glob("*.checkpoint*.parquet"):
            checkpoint.unlink()


def _rewrite_action(line: str, entries: dict[str, dict[str, Any]], arrivals: set[str]) -> str:
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


def make_entity_remover(
    spec: ModelSpec, entity: str, column: str | None = None, sources: set[str] | None = None
) -> Callable[["pa.Table"], "pa.Table"]:
    """Return the change that removes an entity from a table.

    Parameters
    ----------
    column : str or None
        The column to search; ``None`` for the contract's entity column.
    sources : set of str or None
        Receives the arrivals of the removed rows, unless it is ``None``.
    """
    import pyarrow as pa

    def change(rows: "pa.Table") -> "pa.Table":
        keep = [canonical(value, spec) != entity for value in rows.column(column or spec.entity).to_pylist()]
        if all(keep):
            return rows
        if sources is not None:
            sources.update(rows.filter(pa.array([not kept for kept in keep])).column(ARRIVAL).to_pylist())
        return rows.filter(pa.array(keep, pa.bool_()))

    return change


def make_violation_remover(removed: dict[str, set[int]], arrival: str) -> Callable[["pa.Table"], "pa.Table"]:
    """Return the change that removes the violations of some rows from the quarantine table.

    Violations of a whole file that held such a row are replaced by a note, because they may quote the row.

    Parameters
    ----------
    removed : dict
        Numbers of the rows, by arrival.
    arrival : str
        Name of the column with the arrival.
    """
    import pyarrow as pa

    def change(table: "pa.Table") -> "pa.Table":
        before = table.to_pylist()
        after = [
            {**row, "rule": WITHHELD, "value": WITHHELD} if row["row"] is None and row[arrival] in removed else row
            for row in before
            if row["row"] is None or row["row"] not in removed.get(row[arrival], ())
        ]
        return table if after == before else pa.Table.from_pylist(after, schema=table.schema)

    return change


# Golden requests of candidates


def erase_golden_requests(folder: Path, names: tuple[str, str], features: "pd.DataFrame") -> int:
    """Remove an entity's requests and their responses from a candidate's golden files; return their number.

    Parameters
    ----------
    names : tuple of str
        Names of the request file and of the response file, which holds lists by name, one item per request.
    features : DataFrame
        Every row of the entity.
    """
    import pandas as pd

    files = _Pair(folder / names[0], folder / names[1])
    files.finish()
    if not files.requests.is_file() or features.empty:
        return 0
    requests = pd.read_parquet(files.requests)
    # A candidate of an older contract has other columns: comparing shared ones removes too many rather than too few.
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
    """Golden requests and responses, replaced together: `finish` completes an interrupted replacement."""

    requests: Path
    answers: Path

    def replace(self, requests: bytes, answers: bytes) -> None:
        atomic_files.write(_new(self.answers), answers)
        atomic_files.write(_new(self.requests), requests)
        self.finish()

    def finish(self) -> None:
        """Move new files into place, the responses first, unless a process was killed before it wrote both."""
        if _new(self.requests).exists():
            with contextlib.suppress(FileNotFoundError):  # already in place
                _new(self.answers).replace(self.answers)
            _new(self.requests).replace(self.requests)
        for file in (_new(self.answers), _new(self.requests)):
            for leftover in (file, *atomic_files.find_leftovers(file)):
                leftover.unlink(missing_ok=True)


def _new(file: Path) -> Path:
    return file.with_name(f"{file.name}.new")
