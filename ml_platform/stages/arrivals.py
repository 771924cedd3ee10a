"""Find files in the landing zone and keep their bytes."""

import hashlib
import os
import re
import stat
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path

from ml_platform.errors import LandingZoneError
from ml_platform.records import Arrival, RawBatch

SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl")
# No path separator, no leading dot, no control character, nothing that a shell or Dagster's partition ranges
# would read as syntax.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+")
LONGEST_NAME = 200
BLOCK = 1 << 20


def find_arrivals(landing: Path, model: str) -> list[Arrival]:
    """List the files that wait in a model's folder of the landing zone.

    Files whose name is hidden, unsafe or of another format, links, pipes and folders are no arrivals. Order is by
    modification time, then by name.

    Raises
    ------
    LandingZoneError
        The folder is missing or cannot be listed: that is not the same as "no new files".
    """
    folder = landing / model
    try:
        with os.scandir(folder) as entries:
            found = [_arrival(model, entry) for entry in entries if _is_candidate(entry)]
    except OSError as error:
        raise LandingZoneError(
            f"The landing zone {folder} cannot be listed: {error.strerror}. Make the folder, or set "
            "ML_PLATFORM_LANDING_ZONE to the one that holds it."
        ) from error
    return sorted(found, key=lambda arrival: (arrival.mtime_ns, arrival.name))


def land(folder: Path, name: str, data: bytes) -> bool:
    """Write a file into a folder of the landing zone under a hidden name and then rename it.

    Returns
    -------
    bool
        False if a file of this name with these bytes is there already; it is left alone.

    Raises
    ------
    LandingZoneError
        The name is not safe or of no known format.
    """
    require_safe_names([name])
    if holds(folder, name, data):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}"
    try:
        temporary.write_bytes(data)
        temporary.replace(folder / name)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def require_safe_names(names: Iterable[str]) -> None:
    """Raise LandingZoneError for the first name that cannot be an arrival's."""
    for name in names:
        if not is_safe_name(name):
            raise LandingZoneError(
                f"The file name must consist of letters, digits, '-', '_' and '.' and end in {', '.join(SUFFIXES)}. "
                f"Got {name!r} instead. Nothing was landed."
            )


def holds(folder: Path, name: str, data: bytes) -> bool:
    """Whether a folder of the landing zone holds a file of this name with these bytes."""
    target = folder / name
    return target.is_file() and target.read_bytes() == data


def _is_candidate(entry: os.DirEntry[str]) -> bool:
    return is_safe_name(entry.name) and entry.is_file(follow_symlinks=False)


def ignored_files(landing: Path, model: str) -> list[str]:
    """Return the names in a model's folder that can be no arrival, sorted, but for hidden ones: unfinished work."""
    with os.scandir(landing / model) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        return sorted(entry.name for entry in visible if not _is_candidate(entry) and not entry.is_dir())


def is_safe_name(name: str) -> bool:
    """Whether a file of this name can be an arrival."""
    return len(name) <= LONGEST_NAME and bool(SAFE_NAME.fullmatch(name)) and name.lower().endswith(SUFFIXES)


def _arrival(model: str, entry: os.DirEntry[str]) -> Arrival:
    status = entry.stat(follow_symlinks=False)
    return Arrival(model=model, name=entry.name, size=status.st_size, mtime_ns=status.st_mtime_ns)


def keep_bytes(arrival: Arrival, landing: Path, store: Path) -> RawBatch:
    """Copy an arrival's bytes to ``<store>/<sha256><suffix>``, once; equal bytes are kept once.

    Raises
    ------
    LandingZoneError
        The file is gone, is no regular file, or changed since it was found: the changed file is a new arrival.
    """
    store.mkdir(parents=True, exist_ok=True)
    temporary = store / f".{arrival.key}.{os.getpid()}"
    try:
        sha256 = _copy(arrival, landing / arrival.model / arrival.name, temporary)
        suffix = next(s for s in sorted(SUFFIXES, key=len, reverse=True) if arrival.name.lower().endswith(s))
        target = store / f"{sha256}{suffix}"
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return RawBatch(arrival=arrival, sha256=sha256, path=str(target))


def _copy(arrival: Arrival, source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with _open_arrival(arrival, source) as reader, target.open("wb") as writer:
        while block := reader.read(BLOCK):
            digest.update(block)
            writer.write(block)
        _require_unchanged(arrival, reader.fileno(), source)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def _open_arrival(arrival: Arrival, source: Path) -> BufferedReader:
    # O_NOFOLLOW and O_NONBLOCK: a link out of the zone is refused and a pipe does not hang the step.
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise LandingZoneError(f"The arrival {source} cannot be opened: {error.strerror}.") from error
    try:
        _require_unchanged(arrival, descriptor, source)
    except LandingZoneError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _require_unchanged(arrival: Arrival, descriptor: int, source: Path) -> None:
    status = os.fstat(descriptor)
    found, expected = (status.st_size, status.st_mtime_ns), (arrival.size, arrival.mtime_ns)
    if not stat.S_ISREG(status.st_mode) or found != expected:
        raise LandingZoneError(f"{source} changed since it was found. It will be found again as a new arrival.")
