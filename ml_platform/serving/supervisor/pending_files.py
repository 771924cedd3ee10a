"""Files of a server that a full or read-only disk may refuse for a time."""

import logging
from pathlib import Path

from ml_platform.errors import StorageError
from ml_platform.storage import atomic_files

log = logging.getLogger("ml_platform.serving")


class PendingFiles:
    """Writes files; those that the disk refuses stay in memory until `store` succeeds."""

    def __init__(self) -> None:
        self._waiting: dict[Path, bytes] = {}
        self._problem = ""

    def write(self, path: Path, data: bytes) -> None:
        """Write or replace a file, durably if the disk accepts it."""
        self._waiting[path] = data
        self.store()

    def store(self) -> None:
        """Write the files that the disk refused before. Each new problem is logged once."""
        for path, data in [*self._waiting.items()]:
            try:
                atomic_files.write(path, data)
            except StorageError as error:
                if str(error) != self._problem:
                    log.warning("%s is only in memory, and is stored when the disk accepts it: %s", path.name, error)
                self._problem = str(error)
            else:
                del self._waiting[path]
                self._problem = ""
