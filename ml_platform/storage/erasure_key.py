"""The secret key of tombstones, the records of erased entities."""

import contextlib
import os
from pathlib import Path

from ml_platform.errors import ConfigurationError
from ml_platform.storage import atomic_files

KEY_BYTES = 32


def read_key(file: Path, *, make: bool) -> bytes:
    """Return the key that digests erased entities.

    Parameters
    ----------
    file : Path
        The key's file, readable by its owner only.
    make : bool
        True creates a missing key.

    Raises
    ------
    ConfigurationError
        The key is missing and must not be created, or has a wrong length: erased entities could not be recognised.
    """
    if make and not file.exists():
        # Atomic: a part of a key could be guessed. Of two processes, the first one's key stays.
        with atomic_files.temporary_beside(file) as temporary:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as writer:
                writer.write(os.urandom(KEY_BYTES))
            atomic_files.sync(temporary)
            with contextlib.suppress(FileExistsError):
                os.link(temporary, file)
            atomic_files.sync(file.parent)
    try:
        key = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"The key {file} cannot be read: {error.strerror}. Without it, erased entities cannot be recognised and "
            "their data would be published again. Restore it from its backup."
        ) from error
    if len(key) != KEY_BYTES:
        raise ConfigurationError(
            f"The key {file} must have {KEY_BYTES} bytes. Got {len(key)}. Restore it from its backup."
        )
    return key
