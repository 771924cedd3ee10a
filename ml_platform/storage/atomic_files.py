"""Write files atomically and durably: temporary file, fsync, rename, fsync of the folder.

All evidence is written with these functions. After a crash or a power cut, a file is complete or unchanged. A full,
read-only or broken disk raises a StorageError that names the folder; temporary files are removed if possible.
"""

import contextlib
import glob
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from ml_platform.errors import StorageError


def write(target: Path, data: bytes) -> None:
    """Write or replace a file; create its folder if it is missing.

    Raises
    ------
    StorageError
        The file could not be written or made durable.
    """
    with temporary_beside(target) as temporary:
        temporary.write_bytes(data)
        atomic_replace(temporary, target)


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """Yield a hidden path in a file's folder; create the folder, and remove a file left at the path on exit.

    Raises
    ------
    StorageError
        The folder cannot be created, or the body raised an OSError.
    """
    temporary = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}")
    with raise_storage_errors(target.parent):
        make_folder(target.parent)
        try:
            yield temporary
        finally:
            # An error of the body is more useful than a failure to remove the temporary file.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def find_leftovers(target: Path) -> list[Path]:
    """Return the temporary files of killed processes that were writing a file."""
    return sorted(target.parent.glob(f".{glob.escape(target.name[:100])}.*"))


def atomic_replace(temporary: Path, target: Path) -> None:
    """Rename a file atomically and durably: the target has all its bytes, or is unchanged."""
    sync(temporary)
    temporary.replace(target)
    sync(target.parent)


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk; raise OSError if that fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def raise_storage_errors(folder: Path) -> Iterator[None]:
    """Convert an OSError to a StorageError that names the folder and the remedy."""
    try:
        yield
    except OSError as error:
        raise make_storage_error(folder, error.strerror or str(error)) from error


def make_storage_error(place: object, reason: str) -> StorageError:
    """Return the error for a folder or file that could not be written."""
    return StorageError(
        f"Nothing could be stored in {place}: {reason}. Check that the disk has free space, is writable and works, "
        "then run the step again. Earlier data is unchanged."
    )
