"""Open the platform's database: address, transactions, migration."""

import fcntl
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ml_platform import durable
from ml_platform.errors import ConfigurationError, DatabaseUnavailableError
from ml_platform.records import sha256_text

# The newest migration; a test compares it with ml_platform/migrations, so that opening an up-to-date database
# does not pay for importing Alembic.
HEAD = "0003"
# SQLite's word for a disk that is full, read-only or broken; not for a database that another process holds.
DISK_ERRORS = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
# How long a transaction waits for a PostgreSQL server that is being restarted, in seconds, and how often it asks.
PATIENCE = 20.0
PAUSE = 0.1


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
        # An address at which nothing ever answered is wrong: there is nothing to wait for.
        self._patience = 0.0
        try:
            self.url = _with_driver(sa.make_url(url))
            self.engine = _engine(self.url)
            self._migrate()
        except (sa.exc.SQLAlchemyError, DatabaseUnavailableError, ImportError, OSError) as error:
            raise ConfigurationError(
                f"The platform's database {_without_password(url)} cannot be opened: {str(error).splitlines()[0]}. "
                "Check ML_PLATFORM_DATABASE_URL, or ML_PLATFORM_HOME where it is a file."
            ) from error
        self._patience = PATIENCE

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """Yield a connection whose work is committed at the end, or not done at all.

        Raises
        ------
        DatabaseUnavailableError
            The server could not be reached for `PATIENCE` seconds, or went away in the middle.
        StorageError
            SQLite's disk is full, read-only or broken.
        """
        with self._typed(), self._connection() as connection, connection.begin():
            yield connection

    def _connection(self) -> sa.Connection:
        """Connect. Nothing has been done yet, so that it may be tried until a server that restarts is back."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return self.engine.connect()
            except sa.exc.OperationalError:
                if not self._is_server or time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE)

    @contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            if isinstance(error.orig, sqlite3.Error) and error.orig.sqlite_errorcode & 0xFF in DISK_ERRORS:
                raise durable.refused(self.url.database, str(error.orig)) from error
            if not (self._is_server and _went_away(error)):
                raise
            raise DatabaseUnavailableError(
                f"The platform's database {self.url.render_as_string(hide_password=True)} went away: "
                f"{str(error.orig).splitlines()[0]}. What was not committed was not done. Run the step again."
            ) from error

    @property
    def _is_server(self) -> bool:
        return self.engine.dialect.name != "sqlite"

    @contextmanager
    def locked(self, name: str, wait_seconds: float = 0.0) -> Iterator[bool]:
        """Hold a lock that one process can hold at a time; it ends with its process, whatever kills it.

        It is the database's own: a file beside SQLite's, which one host has; an advisory lock of a session in
        PostgreSQL, whose connection must not go through a pooler that shares it. No transaction is open meanwhile.

        Parameters
        ----------
        name : str
        wait_seconds : float
            How long to wait for another holder.

        Yields
        ------
        bool
            Whether it is held; if not, another process holds it.
        """
        holder = self._advisory_lock(name) if self._is_server else self._file_lock(name)
        with holder as try_to_lock:
            deadline = time.monotonic() + wait_seconds
            held = try_to_lock()
            while not held and time.monotonic() < deadline:
                time.sleep(PAUSE)
                held = try_to_lock()
            yield held

    @contextmanager
    def _file_lock(self, name: str) -> Iterator[Callable[[], bool]]:
        if not self.url.database:  # a database in memory has one process
            yield lambda: True
            return
        with Path(f"{self.url.database}.{name}.lock").open("wb") as file:
            yield lambda: _flock(file.fileno())

    @contextmanager
    def _advisory_lock(self, name: str) -> Iterator[Callable[[], bool]]:
        lock = sa.select(sa.func.pg_try_advisory_lock(int(sha256_text(f"ml-platform {name}")[:15], 16)))
        with self._typed():
            session = self._connection().execution_options(isolation_level="AUTOCOMMIT")
        try:
            yield lambda: bool(session.scalar(lock))
        finally:
            # Given back to the pool, the session would go on holding the lock.
            session.invalidate()
            session.close()

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


def _went_away(error: sa.exc.DBAPIError) -> bool:
    """Whether a server's connection is gone: no answer has a code, one that shuts down or starts says 57P0x."""
    code = getattr(error.orig, "pgcode", None)
    unanswered = isinstance(error, sa.exc.OperationalError) and (code is None or code.startswith("57P"))
    return error.connection_invalidated or unanswered


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
