"""The landing zone as an interface. No other module knows what kind of place it is.

A zone holds one folder a model. It lists, reads and writes whole files by name; what a name means, and which file is an
arrival, is said in `arrivals`.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from ml_platform.errors import ArrivalChangedError, LandingZoneError
from ml_platform.records import Arrival

BLOCK = 1 << 20
REGULAR_FILES_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class Found:
    """A name in a model's folder; `regular` is False for a link, a pipe or a device, which is never opened."""

    name: str
    regular: bool
    size: int = 0
    mtime_ns: int = 0
    etag: str = ""


class LandingZone(Protocol):
    """Where other people drop files.

    Every method raises LandingZoneError where the place itself is missing, refuses or does not answer.
    """

    address: str

    @property
    def shows_whole_files_only(self) -> bool:
        """Whether a file is listed only once its last byte is there."""

    def files(self, model: str) -> Iterator[Found]:
        """Yield what stands directly in a model's folder, but for folders; in no order."""

    def read(self, model: str, names: Iterable[str], longest: int) -> dict[str, bytes]:
        """Return the first `longest` bytes of each of these files, without those that are gone or not regular."""

    def copy(self, arrival: Arrival, target: Path) -> str:
        """Write an arrival's bytes to a new local file and return their sha256; refuse those that changed."""

    def write(self, model: str, name: str, data: bytes) -> None:
        """Write a file, whole or not at all, in the place of one of the same name."""

    def remove(self, model: str, name: str) -> None:
        """Remove a file if it is there."""

    def prepare(self, model: str) -> None:
        """Make a model's folder where there can be none without it."""


def open_zone(address: Path) -> LandingZone:
    """Return the landing zone at an address; nothing is opened yet."""
    return LocalZone(address)


def changed(arrival: Arrival) -> ArrivalChangedError:
    """Return the error for a file that is no longer the one that was found."""
    return ArrivalChangedError(
        f"{arrival.model}/{arrival.name} changed since it was found. It will be found again as a new arrival."
    )


class LocalZone:
    """A folder of this machine, or one that is mounted here.

    Links, pipes, devices and folders are not opened, also when one takes the place of a file that was found.
    """

    shows_whole_files_only = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = str(folder)

    def files(self, model: str) -> Iterator[Found]:
        """List the folder; a file that disappears meanwhile is not there."""
        folder = self.folder / model
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=True):
                        with contextlib.suppress(FileNotFoundError):
                            yield _found(entry)
        except OSError as error:
            raise LandingZoneError(
                f"The landing zone {folder} cannot be listed: {error.strerror}. Make the folder, or set "
                "ML_PLATFORM_LANDING_ZONE to the one that holds it."
            ) from error

    def read(self, model: str, names: Iterable[str], longest: int) -> dict[str, bytes]:
        """Read the beginning of each file that is regular."""
        contents = {}
        for name in names:
            with contextlib.suppress(OSError), _open_regular(self.folder / model / name) as reader:
                contents[name] = reader.read(longest)
        return contents

    def copy(self, arrival: Arrival, target: Path) -> str:
        """Copy and digest; size and time are compared on the open file, before and after."""
        source = self.folder / arrival.model / arrival.name
        try:
            reader = _open_regular(source)
        except OSError as error:
            raise ArrivalChangedError(f"The arrival {source} cannot be opened: {error.strerror}.") from error
        digest = hashlib.sha256()
        with reader, target.open("wb") as writer:
            _require_unchanged(arrival, reader)
            while block := reader.read(BLOCK):
                digest.update(block)
                writer.write(block)
            _require_unchanged(arrival, reader)
            writer.flush()
            os.fsync(writer.fileno())
        return digest.hexdigest()

    def write(self, model: str, name: str, data: bytes) -> None:
        """Write under a hidden name, then rename."""
        folder = self.folder / model
        self.prepare(model)
        temporary = folder / f".{name}.{os.getpid()}"
        try:
            temporary.write_bytes(data)
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, model: str, name: str) -> None:
        """Unlink the file."""
        (self.folder / model / name).unlink(missing_ok=True)

    def prepare(self, model: str) -> None:
        """Make the folder."""
        (self.folder / model).mkdir(parents=True, exist_ok=True)


def _found(entry: os.DirEntry[str]) -> Found:
    if not entry.is_file(follow_symlinks=False):
        return Found(entry.name, regular=False)
    status = entry.stat(follow_symlinks=False)
    return Found(entry.name, True, status.st_size, status.st_mtime_ns)


def _open_regular(path: Path) -> BufferedReader:
    # O_NOFOLLOW and O_NONBLOCK: a link out of the zone is refused and a pipe does not hang.
    descriptor = os.open(path, REGULAR_FILES_ONLY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is no regular file")
    return os.fdopen(descriptor, "rb")


def _require_unchanged(arrival: Arrival, reader: BufferedReader) -> None:
    status = os.fstat(reader.fileno())
    if (status.st_size, status.st_mtime_ns) != (arrival.size, arrival.mtime_ns):
        raise changed(arrival)
