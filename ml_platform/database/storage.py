"""Open the platform's database: address, transactions, migration."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ml_platform import durable
from ml_platform.errors import ConfigurationError

# The newest migration; a test compares it with ml_platform/migrations, so that opening an up-to-date database
# does not pay for importing Alembic.
HEAD = "0001"
# SQLite's word for a disk that is full, read-only or broken; not for a database that another process holds.
DISK_ERRORS = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}


class Storage:
    """One database: every method of its subclasses is one transaction.

    Parameters
    ----------
    url : str
        SQLAlchemy's address. A missing SQLite file and its folder are made; the schema is migrated to `HEAD`.

    Raises
    ------
    ConfigurationError
        It cannot be opened; a password in the address is not shown.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url = _with_driver(sa.make_url(url))
            self.engine = _engine(self.url)
            self._migrate()
        except (sa.exc.SQLAlchemyError, ImportError, OSError) as error:
            raise ConfigurationError(
                f"The platform's database {_without_password(url)} cannot be opened: {str(error).splitlines()[0]}. "
                "Check ML_PLATFORM_DATABASE_URL, or ML_PLATFORM_HOME where it is a file."
            ) from error

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self.engine.begin() as connection:
                yield connection
        except sa.exc.OperationalError as error:
            if isinstance(error.orig, sqlite3.Error) and error.orig.sqlite_errorcode & 0xFF in DISK_ERRORS:
                raise durable.refused(self.url.database, str(error.orig)) from error
            raise

    def _migrate(self) -> None:
        if self.revision() == HEAD:
            return
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", "ml_platform:migrations")
        with self._transaction() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def revision(self) -> str | None:
        """Return the migration that the schema stands at; ``None`` for an empty database."""
        with self._transaction() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
            return revision

    def compact(self) -> None:
        """Rewrite an SQLite file and empty its journal, which hold what was overwritten; elsewhere the server does."""
        if self.engine.dialect.name != "sqlite":
            return
        connection = self.engine.raw_connection()
        try:
            connection.cursor().execute("VACUUM")
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            connection.close()

    def _row(self, query: sa.Select[Any]) -> dict[str, Any] | None:
        with self._transaction() as connection:
            row = connection.execute(query).first()
            return dict(row._mapping) if row else None


def _with_driver(url: sa.URL) -> sa.URL:
    # SQLAlchemy 2.1 takes a bare postgresql:// for psycopg 3; the extra `postgres` brings psycopg2, as Dagster's does.
    return url.set(drivername="postgresql+psycopg2") if url.drivername == "postgresql" else url


def _without_password(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return "address"


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, **_engine_options(url))
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, **_engine_options(url))
    sa.event.listen(engine, "connect", _configure_sqlite)
    sa.event.listen(engine, "begin", _begin_immediate)
    return engine


def _engine_options(url: sa.URL) -> dict[str, Any]:
    # Several processes write: a writer waits for the other instead of failing at once.
    return {"connect_args": {"timeout": 30}} if url.get_backend_name() == "sqlite" else {"pool_pre_ping": True}


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not begin transactions by itself: _begin_immediate does, so that a transaction that reads
    # and then writes cannot lose its lock in between. FULL: a commit that was reported survives a power cut.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
