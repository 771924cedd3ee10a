"""Files that are there whole or not at all, also after a power cut: temporary file, fsync, rename, fsync of the folder.

Whatever evidence depends on is written through here. A disk that is full, read-only or broken is one typed error that
names the folder; nothing half-written is left under the file's name, and no temporary file where it can be removed.
"""

import contextlib
import glob
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from ml_platform.errors import StorageError


def write(target: Path, data: bytes) -> None:
    """Write a file, in the place of one of the same name; its folder is made where it is missing.

    Raises
    ------
    StorageError
        It could not be written or not be made durable.
    """
    with temporary_beside(target) as temporary:
        temporary.write_bytes(data)
        place(temporary, target)


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """Yield a hidden path in the folder of a file, which is made; what stands there in the end is removed.

    Raises
    ------
    StorageError
        The folder cannot be made, or the body met an OSError.
    """
    temporary = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}")
    with storing_in(target.parent):
        make_folder(target.parent)
        try:
            yield temporary
        finally:
            # The first error says more than that the temporary file could not be removed either.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def leftovers(target: Path) -> list[Path]:
    """Return what processes that died while they wrote a file left beside it."""
    return sorted(target.parent.glob(f".{glob.escape(target.name[:100])}.*"))


def place(temporary: Path, target: Path) -> None:
    """Rename a file so that it stands under its name with all its bytes, or not at all."""
    sync(temporary)
    temporary.replace(target)
    sync(target.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing; each is known to the folder above it after a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk; OSError where it does not get there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storing_in(folder: Path) -> Iterator[None]:
    """Turn an OSError into a StorageError that names a folder and what to do."""
    try:
        yield
    except OSError as error:
        raise refused(folder, error.strerror or str(error)) from error


def refused(place: object, why: str) -> StorageError:
    """Return the error for a place that took nothing."""
    return StorageError(
        f"Nothing could be stored in {place}: {why}. See that the disk has space, is writable and sound, then run the "
        "step again: what was stored before is still there."
    )
