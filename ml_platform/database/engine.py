"""Open the platform's database: address, transactions, locks, migration."""

import fcntl
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ml_platform.errors import RESTORE, ConfigurationError, DatabaseUnavailableError, EvidenceError
from ml_platform.records.canonical import sha256_text
from ml_platform.safe_text import hide_secrets, show_address
from ml_platform.storage import atomic_files

# The newest migration, so that opening an up-to-date database does not import Alembic. A test compares it with
# ml_platform/database/migrations.
HEAD = "0006"
# SQLite's codes for a disk that is full, read-only or broken; not for a database that another process has locked.
DISK_ERRORS = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
# Longest wait for a PostgreSQL server that restarts, and the pause between attempts to connect; in seconds.
PATIENCE = 20.0
PAUSE = 0.1

# Device and inode of a file.
FileId = tuple[int, int]


class DatabaseEngine:
    """One database: every method of its subclasses is one transaction.

    An SQLite file that is replaced while it is open, as by the restore of a backup, is opened again by the next
    transaction.

    Parameters
    ----------
    url : str
        SQLAlchemy's address. A missing SQLite file and its folder are created; the schema is migrated to `HEAD`.

    Raises
    ------
    ConfigurationError
        The database cannot be opened. The message shows no password.
    """

    def __init__(self, url: str) -> None:
        # No wait for the first connection: a server that never answered is a wrong address.
        self._patience = 0.0
        self._file: FileId | None = None
        self._opening = threading.RLock()
        try:
            self.url = sa.make_url(url)
            if self.url.drivername == "postgresql":
                # SQLAlchemy 2.1 takes a bare postgresql:// for psycopg 3; the extra `postgres` installs psycopg2, as
                # Dagster's does.
                self.url = self.url.set(drivername="postgresql+psycopg2")
            self.engine = _create_engine(self.url)
            self._migrate()
            self._file = self._find_file()
        except (sa.exc.SQLAlchemyError, DatabaseUnavailableError, ImportError, OSError, ValueError) as error:
            # Its cause may repeat the password: Dagster shows causes.
            raise ConfigurationError(
                f"The platform's database {show_address(url)} cannot be opened: {_first_line(error, url)}. "
                "Check ML_PLATFORM_DATABASE_URL or, for an SQLite file, ML_PLATFORM_HOME."
            ) from None
        self._patience = PATIENCE

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """Yield a connection in a transaction, which is committed at the end and rolled back on an error.

        Raises
        ------
        DatabaseUnavailableError
            The server was unreachable for `PATIENCE` seconds, or the connection was lost in the middle.
        StorageError
            SQLite's disk is full, read-only or broken.
        ConfigurationError
            The SQLite file was replaced by one that is no database of the platform.
        """
        with self._typed_errors(), self._connect() as connection, connection.begin():
            yield connection

    def _connect(self) -> sa.Connection:
        """Connect; retry while a server restarts, which is safe before the first statement."""
        self._follow_file()
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return self.engine.connect()
            except sa.exc.OperationalError:
                if not self._is_server or time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE)

    def _follow_file(self) -> None:
        """Open the SQLite file again if it was replaced: open connections stay with the old file, which has no name."""
        with self._opening:  # a thread waits until another has opened the file
            if self._file is None or self._file == (found := self._find_file()):
                return
            before, self._file = self._file, None  # the migration below connects, too
            try:
                self.engine.dispose()
                self._migrate(empty=False)
            except sa.exc.SQLAlchemyError as error:
                raise DatabaseUnavailableError(
                    f"The platform's database {self.url.database} was replaced by a file that cannot be read: "
                    f"{_first_line(error, str(self.url.database))}. {RESTORE}"
                ) from error
            finally:
                self._file = before
            self._file = found

    def _find_file(self) -> FileId | None:
        """Return the identity of the SQLite file; ``None`` for a database in memory or on a server.

        Raises
        ------
        DatabaseUnavailableError
            The file does not exist or is empty: SQLite would make a new, empty database of it.
        """
        if self._is_server or not self.url.database:
            return None
        try:
            found = Path(self.url.database).stat()
        except FileNotFoundError:
            found = None
        if found is None or found.st_size == 0:
            raise DatabaseUnavailableError(
                f"The platform's database {self.url.database} {'is empty' if found else 'does not exist'}; it had "
                f"records before. {RESTORE}"
            )
        return found.st_dev, found.st_ino

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            if isinstance(error.orig, sqlite3.Error) and error.orig.sqlite_errorcode & 0xFF in DISK_ERRORS:
                raise atomic_files.make_storage_error(self.url.database, str(error.orig)) from error
            # An unanswered statement has no code; a server that stops or starts answers with 57P0x.
            code = getattr(error.orig, "pgcode", None)
            unanswered = isinstance(error, sa.exc.OperationalError) and (code is None or code.startswith("57P"))
            if not (self._is_server and (error.connection_invalidated or unanswered)):
                raise
            address = self.url.render_as_string(hide_password=False)
            raise DatabaseUnavailableError(
                f"The connection to the platform's database {show_address(address)} was lost: "
                f"{_first_line(error.orig, address)}. The open transaction was rolled back. Run the step again."
            ) from error

    @property
    def _is_server(self) -> bool:
        return self.engine.dialect.name != "sqlite"

    @contextmanager
    def locked(self, name: str, wait_seconds: float = 0.0) -> Iterator[bool]:
        """Hold a lock that one process can hold at a time; it ends with its process, also if that is killed.

        With SQLite it is a lock on a file next to the database, on one host; with PostgreSQL an advisory lock of a
        session, whose connection must not go through a pooler that shares it. The lock opens no transaction.

        Parameters
        ----------
        name : str
        wait_seconds : float
            Longest wait for another holder, in seconds.

        Yields
        ------
        bool
            True if this process holds the lock, False if another does.
        """
        lock = self._advisory_lock(name) if self._is_server else self._file_lock(name)
        with lock as try_to_lock:
            deadline = time.monotonic() + wait_seconds
            held = try_to_lock()
            while not held and time.monotonic() < deadline:
                time.sleep(PAUSE)
                held = try_to_lock()
            yield held

    @contextmanager
    def _file_lock(self, name: str) -> Iterator[Callable[[], bool]]:
        if not self.url.database:  # a database in memory belongs to one process
            yield lambda: True
            return
        with Path(f"{self.url.database}.{name}.lock").open("wb") as file:

            def try_to_lock() -> bool:
                try:
                    fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                return True

            yield try_to_lock

    @contextmanager
    def _advisory_lock(self, name: str) -> Iterator[Callable[[], bool]]:
        lock = sa.select(sa.func.pg_try_advisory_lock(int(sha256_text(f"ml-platform {name}")[:15], 16)))
        with self._typed_errors():
            session = self._connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            yield lambda: bool(session.scalar(lock))
        finally:
            # In the pool, the session would keep the lock.
            session.invalidate()
            session.close()

    def _migrate(self, *, empty: bool = True) -> None:
        """Bring the schema to the newest migration; an empty database is refused unless it may be `empty`."""
        revision = self.revision()
        if revision == HEAD:
            return
        if revision is None and not empty:
            raise DatabaseUnavailableError(
                f"The platform's database {self.url.database} was replaced by one without records. {RESTORE}"
            )
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", "ml_platform.database:migrations")
        with self._transaction() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def revision(self) -> str | None:
        """Return the schema's newest migration; ``None`` for an empty database."""
        with self._transaction() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
            return revision

    def compact(self) -> None:
        """Rewrite an SQLite file and empty its journal, as both may hold deleted rows; PostgreSQL does so itself."""
        if self.engine.dialect.name != "sqlite":
            return
        self._follow_file()
        connection = self.engine.raw_connection()
        try:
            connection.cursor().execute("VACUUM")
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            connection.close()

    def _row(self, query: sa.Select[Any]) -> dict[str, Any] | None:
        with self._transaction() as connection:
            try:
                row = connection.execute(query).first()
            except (ValueError, TypeError) as error:  # a time that is none
                tables = " and ".join(source.description for source in query.get_final_froms())
                raise EvidenceError(
                    f"A row of the table {tables} cannot be read: {error}. It was changed. {RESTORE}"
                ) from error
            return dict(row._mapping) if row else None


def _first_line(error: BaseException | None, address: str) -> str:
    return next(iter(hide_secrets(str(error), address).splitlines()), type(error).__name__)


def _create_engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True)
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    # Several processes write: a writer waits for the others, up to 30 seconds.
    engine = sa.create_engine(url, connect_args={"timeout": 30})

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions: `begin_immediate` does, so that a transaction that reads and then
        # writes cannot lose its lock in between. FULL: a reported commit survives a power cut.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin_immediate(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
