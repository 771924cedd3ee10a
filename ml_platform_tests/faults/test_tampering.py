"""Each row and file of a deployment is edited and deleted alone: docs/explanation/threats.md says what notices it.

The tables come from the schema, and the files from the folder, so that a new one must be declared in the document.
"""

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ml_platform.database import metadata
from ml_platform.errors import PlatformError
from ml_platform.platform import Platform
from ml_platform.records.ledger import Alerting
from ml_platform.release import reconcile as release_reconcile
from ml_platform.release.ledger.follow import verify_ledger
from ml_platform.release.promote import staged_evidence
from ml_platform.settings import PROJECT_ROOT
from ml_platform.storage.mlflow_registry import LEDGER_TAG
from ml_platform_tests.support import fakes, mutants

pytestmark = pytest.mark.slow

DOCUMENT = PROJECT_ROOT / "docs" / "explanation" / "threats.md"
NOTICES = {"ledger verify", "when read", "nothing"}
TABLES = [(table.name, column.name) for table in metadata.sorted_tables for column in table.columns]


def declared(store: str) -> dict[str, str]:
    """Return the notices of the document's table by the items of a store."""
    rows = re.findall(rf"^\| {store} \| `([^`]+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|$", DOCUMENT.read_text(), re.MULTILINE)
    return dict(rows)


def notice(store: str, item: str) -> str:
    """Return the notice of an item, of the longest pattern that matches it; fail without one."""
    matching = [pattern for pattern in declared(store) if fnmatch(item, pattern)]
    assert matching, f"docs/explanation/threats.md does not list {item!r} of the {store}"
    return declared(store)[max(matching, key=len)]


@pytest.fixture(scope="module")
def promoted(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A deployment with a champion and a staged successor; each test restores what it changes."""
    opened = fakes.copied_platform(honest, tmp_path_factory.mktemp("tampering") / "home")
    with closing(raw_connection(opened)) as connection:
        triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in triggers:
            connection.execute(f"DROP TRIGGER {name}")
    assert find_problem(opened) == ""
    yield opened
    opened.database.close()


def raw_connection(platform: Platform) -> sqlite3.Connection:
    """Connect to the database's file as its owner could: without foreign keys, and with each statement committed."""
    return sqlite3.connect(platform.settings.home / "platform.db", isolation_level=None)


def find_problem(platform: Platform) -> str:
    """Return the first finding of `ledger verify`, or the refusal of the successor; empty without a problem."""
    try:
        for ask_mlflow in (False, True):  # MLflow is slow, and mostly not needed
            report = verify_ledger(platform, "visits", ask_mlflow=ask_mlflow, deep=True)
            if findings := (*report.problems, *report.missing, *report.unread):
                return findings[0]
        registration = platform.database.registration("visits", 2)
        if registration is None:
            return "the successor is not registered"
        if registration.model != platform.database.candidate(registration.candidate).model:
            return "the successor is registered under another model"
        staged_evidence(platform, mutants.SPEC, registration)
    except PlatformError as error:
        return str(error)
    return ""


# Rows of the database


def another(column: str, value: Any) -> Any:
    """Return another value of the same type."""
    if isinstance(value, int | float):
        return 1 - value if column == "passed" else value + 1_000
    if value is None or not re.match(r"\d{4}-\d\d-\d\d ", value):
        return f"{value or 'e'}0"
    return value.replace("20", "19", 1)


def read_rows(platform: Platform, table: str) -> list[dict[str, Any]]:
    with closing(raw_connection(platform)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT rowid AS place, * FROM {table}")]  # noqa: S608 - of the schema


def write(platform: Platform, statement: str, *values: Any) -> None:
    with closing(raw_connection(platform)) as connection:
        connection.execute(statement, values)


def unnoticed_edits(platform: Platform, table: str, column: str) -> list[str]:
    """Edit a column in each row; return the edits that are not noticed."""
    unnoticed, rows = list[str](), read_rows(platform, table)
    statement = f"UPDATE {table} SET {column} = ? WHERE rowid = ?"  # noqa: S608 - of the schema
    for row in rows:
        write(platform, statement, another(column, row[column]), row["place"])
        if not find_problem(platform):
            unnoticed.append(f"{table}.{column} of row {row['place']}")
        write(platform, statement, row[column], row["place"])
    return unnoticed


@pytest.mark.fault("E1", "E2")
@pytest.mark.parametrize(("table", "column"), TABLES)
def test_edited_column_is_noticed_or_declared(promoted: Platform, table: str, column: str) -> None:
    expected = notice("database", f"{table}.{column}")
    assert expected in NOTICES

    if expected == "ledger verify":
        assert unnoticed_edits(promoted, table, column) == []


@pytest.mark.fault("E2")
@pytest.mark.parametrize("table", [table.name for table in metadata.sorted_tables])
def test_deleted_row_is_noticed_or_declared(promoted: Platform, table: str) -> None:
    if notice("database", f"{table}.model") != "ledger verify":
        return
    for row in read_rows(promoted, table):
        write(promoted, f"DELETE FROM {table} WHERE rowid = ?", row["place"])  # noqa: S608 - of the schema
        problem = find_problem(promoted)
        names = ", ".join(name if name != "place" else "rowid" for name in row)
        marks = ", ".join("?" * len(row))
        write(promoted, f"INSERT INTO {table} ({names}) VALUES ({marks})", *row.values())  # noqa: S608 - of the schema

        assert problem, f"row {row['place']} of {table} was deleted"


@pytest.mark.parametrize("table", ["ledger", "verdicts", "candidates", "registrations"])
def test_swapped_rows_are_noticed(promoted: Platform, table: str) -> None:
    first, second = read_rows(promoted, table)[:2]
    columns = [name for name in first if name not in {"place", *key_columns(table)}]
    names = ", ".join(f"{name} = ?" for name in columns)
    statement = f"UPDATE {table} SET {names} WHERE rowid = ?"  # noqa: S608 - of the schema
    exchanged = ((first, second), (second, first))
    unique = f"UPDATE {table} SET {columns[0]} = 'x' WHERE rowid = ?"  # noqa: S608 - of the schema

    write(promoted, unique, first["place"])
    for row, other in reversed(exchanged):
        write(promoted, statement, *(other[name] for name in columns), row["place"])
    problem = find_problem(promoted)
    write(promoted, unique, first["place"])
    for row, _ in reversed(exchanged):
        write(promoted, statement, *(row[name] for name in columns), row["place"])

    assert problem
    assert find_problem(promoted) == ""


def key_columns(table: str) -> set[str]:
    return {column.name for column in metadata.tables[table].primary_key}


# Files


@contextmanager
def restored(path: Path, folder: Path) -> Iterator[None]:
    """Restore a file after a block."""
    kept = shutil.copy2(path, folder / "kept")
    try:
        yield
    finally:
        shutil.copy2(kept, path)


def test_files_of_deployment_are_noticed_or_declared(promoted: Platform, tmp_path: Path) -> None:
    home, decided = promoted.settings.home, mutants.champion(promoted).candidate
    run = promoted.database.candidate(decided).mlflow_run_id
    unnoticed = []
    for path in sorted(path for path in home.rglob("*") if path.is_file()):
        item = path.relative_to(home).as_posix()
        expected = notice("folder", item)
        assert expected in NOTICES
        of_successor = item.startswith("models/") and decided not in item
        database = path.parent == home and path.name.startswith(("platform.db", "mlflow.db"))
        if expected != "ledger verify" or of_successor or database:  # see the tests above
            continue
        with restored(path, tmp_path):
            data = bytearray(path.read_bytes())
            data[-4] ^= 1  # in the log, the last digit of a digest
            path.write_bytes(data)
            if not find_problem(promoted):
                unnoticed.append(item)

    assert run is not None
    assert unnoticed == []


@pytest.mark.fault("E3")
def test_deleted_log_line_is_noticed(promoted: Platform, tmp_path: Path) -> None:
    path = promoted.settings.ledger_anchor_file
    lines = path.read_bytes().splitlines(keepends=True)
    unnoticed = []
    for number in range(len(lines)):
        with restored(path, tmp_path):
            path.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))
            if not find_problem(promoted):
                unnoticed.append(lines[number])

    assert unnoticed == []


@pytest.mark.fault("E3")
@pytest.mark.parametrize("missing", ["tag", "log"])
def test_deleted_anchor_is_reported_and_restored(promoted: Platform, tmp_path: Path, missing: str) -> None:
    client = MlflowClient(promoted.settings.tracking_uri, promoted.settings.tracking_uri)
    path = promoted.settings.ledger_anchor_file
    with restored(path, tmp_path):
        if missing == "tag":
            client.delete_registered_model_tag("visits", LEDGER_TAG)
        else:
            path.unlink()

        report = verify_ledger(promoted, "visits", deep=True)
        drifts = release_reconcile.reconcile(promoted, mutants.SPEC, actor="test", read_bytes=False)
        after = verify_ledger(promoted, "visits")

    assert report.problems == ()
    assert report.missing
    assert [(drift.what, drift.alerting) for drift in drifts] == [("AnchorMissing", Alerting.EVENT)]
    assert after.missing == ()


@pytest.mark.fault("E4")
def test_rollback_on_forged_ledger_writes_nothing(honest: Path, tmp_path: Path) -> None:
    platform = fakes.copied_platform(honest, tmp_path / "home")
    mutants.promote(platform, mutants.SPEC)
    mutants.forged_champion(platform)
    before = platform.database.ledger("visits")

    with pytest.raises(PlatformError, match="was changed since its verdict: model_digest"):
        mutants.roll_back(platform, mutants.SPEC)

    assert platform.database.ledger("visits") == before
    platform.database.close()


def test_document_declares_each_item_once() -> None:
    for store in ("database", "folder"):
        items = re.findall(rf"^\| {store} \| `([^`]+)`", DOCUMENT.read_text(), re.MULTILINE)
        assert items
        assert len(items) == len(set(items)) == len(declared(store))
        assert set(declared(store).values()) <= NOTICES
