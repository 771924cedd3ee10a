"""The landing zone: an interface with implementations for a local folder and S3.

A zone has one folder per model, and lists, reads and writes whole files by name. `ml_platform.data.arrivals` defines
the meaning of the names.
"""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol

from ml_platform.errors import ArrivalChangedError, LandingZoneError
from ml_platform.records.data import Arrival
from ml_platform.settings import require_folder_name
from ml_platform.storage import atomic_files

BLOCK = 1 << 20
# A request to S3 fails after three attempts, at most half a minute: less than the time limit of a sensor's tick.
ATTEMPTS = 3
CONNECT_SECONDS, READ_SECONDS = 3, 5
READERS = 16
# An object that distinguishes an empty landing zone in S3 from a mistyped prefix.
MARKER, MARK = ".landing-zone", b"ml-platform\n"
GONE = {"404", "NoSuchKey", "412", "PreconditionFailed"}
# 0 comes from `_open_regular`; ELOOP is a link, ENXIO a socket.
NOT_THERE = {0, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EISDIR}
REGULAR_FILES_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A name in a model's folder; `regular` is False for a link, a pipe or a device, which is never opened."""

    name: str
    regular: bool
    size: int = 0
    mtime_ns: int = 0
    etag: str = ""
    ctime_ns: int = 0


class LandingZone(Protocol):
    """The place where data providers put files.

    Every method raises LandingZoneError if the place is missing, denies access or does not respond.
    """

    address: str

    @property
    def shows_whole_files_only(self) -> bool:
        """True if a file is listed only after its last byte was written."""

    def files(self, model: str) -> Iterator[ListedFile]:
        """Yield the entries of a model's folder except subfolders, in no particular order."""

    def read(self, model: str, names: Iterable[str], longest: int) -> dict[str, bytes]:
        """Return the first `longest` bytes of each of these files, except missing and irregular ones."""

    def copy(self, arrival: Arrival, target: Path) -> str:
        """Copy an arrival's bytes to a new local file and return their sha256; ArrivalChangedError if they changed."""

    def write(self, model: str, name: str, data: bytes) -> None:
        """Write or replace a file atomically."""

    def remove(self, model: str, name: str) -> None:
        """Remove a file if it exists."""

    def remove_arrival(self, arrival: Arrival) -> None:
        """Remove an arrival's file if it exists; ArrivalChangedError if it changed."""

    def prepare(self, model: str) -> None:
        """Create the landing zone and a model's folder in it."""


def open_zone(address: str) -> LandingZone:
    """Return the landing zone at an absolute path or ``s3://bucket/prefix``, without accessing it."""
    return S3Zone(address) if address.startswith("s3://") else LocalZone(Path(address))


def make_changed_error(arrival: Arrival) -> ArrivalChangedError:
    """Return the error for a file that changed after the scan that found it."""
    return ArrivalChangedError(
        f"{arrival.model}/{arrival.name} changed since it was found. The next scan finds it as a new arrival."
    )


class LocalZone:
    """A local or mounted folder.

    Links, pipes, devices and folders are never opened, even if one replaces a listed file.
    """

    shows_whole_files_only = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = str(folder)

    def files(self, model: str) -> Iterator[ListedFile]:
        """List the folder, without files that disappear meanwhile."""
        folder = self._model_folder(model)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        if _is_folder(entry):
                            continue
                        if not entry.is_file(follow_symlinks=False):
                            yield ListedFile(entry.name, regular=False)
                            continue
                        status = entry.stat(follow_symlinks=False)
                        yield ListedFile(
                            entry.name, True, status.st_size, status.st_mtime_ns, ctime_ns=status.st_ctime_ns
                        )
        except OSError as error:
            raise LandingZoneError(
                f"The landing zone {folder} cannot be listed: {error.strerror}. Make the folder, or set "
                "ML_PLATFORM_LANDING_ZONE to its parent."
            ) from error

    def read(self, model: str, names: Iterable[str], longest: int) -> dict[str, bytes]:
        """Read the beginning of each regular file; an unreadable file is returned as empty."""
        folder = self._model_folder(model)
        return {name: data for name in names if (data := self._read(folder / name, longest)) is not None}

    def _read(self, path: Path, longest: int) -> bytes | None:
        try:
            with _open_regular(path) as reader:
                return reader.read(longest)
        except OSError as error:
            return None if error.errno in NOT_THERE else b""

    def copy(self, arrival: Arrival, target: Path) -> str:
        """Copy and digest; compare size and time of the open file before and after."""
        source = self._model_folder(arrival.model) / arrival.name
        try:
            reader = _open_regular(source)
        except OSError as error:
            raise ArrivalChangedError(f"The arrival {source} cannot be opened: {error.strerror}.") from error
        digest = hashlib.sha256()
        with reader, target.open("wb") as writer:
            _require_unchanged(arrival, reader)
            for block in _read_blocks(arrival, reader):
                digest.update(block)
                writer.write(block)
            _require_unchanged(arrival, reader)
        return digest.hexdigest()

    def write(self, model: str, name: str, data: bytes) -> None:
        """Write under a hidden name, then rename."""
        atomic_files.write(self._model_folder(model) / name, data)

    def remove(self, model: str, name: str) -> None:
        """Unlink the file."""
        (self._model_folder(model) / name).unlink(missing_ok=True)

    def remove_arrival(self, arrival: Arrival) -> None:
        """Compare size and time, then unlink."""
        try:
            reader = _open_regular(self._model_folder(arrival.model) / arrival.name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise make_changed_error(arrival) from error
        with reader:
            _require_unchanged(arrival, reader)
        self.remove(arrival.model, arrival.name)

    def prepare(self, model: str) -> None:
        """Create the folder."""
        folder = self._model_folder(model)
        with atomic_files.raise_storage_errors(folder):
            atomic_files.make_folder(folder)

    def _model_folder(self, model: str) -> Path:
        folder = self.folder / require_folder_name(model)
        if folder.is_symlink():
            raise LandingZoneError(
                f"The landing zone {folder} is a link, which may lead out of the landing zone. Replace it by a folder; "
                "to keep the files elsewhere, mount their folder there."
            )
        return folder


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=True)
    except OSError:
        if entry.is_symlink():  # a broken link, for instance to itself, must not hide other files
            return False
        raise


def _open_regular(path: Path) -> BufferedReader:
    # O_NOFOLLOW refuses links, which may lead out of the zone; O_NONBLOCK keeps a pipe from blocking.
    descriptor = os.open(path, REGULAR_FILES_ONLY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is not a regular file")
    return os.fdopen(descriptor, "rb")


def _read_blocks(arrival: Arrival, reader: BufferedReader) -> Iterator[bytes]:
    """Yield the file up to its listed size and one byte more, which shows that it grew."""
    left = arrival.size + 1
    try:
        while block := reader.read(min(BLOCK, left)):
            left -= len(block)
            yield block
    except OSError as error:
        raise LandingZoneError(f"{arrival.model}/{arrival.name} cannot be read: {error.strerror}.") from error


def _require_unchanged(arrival: Arrival, reader: BufferedReader) -> None:
    status = os.fstat(reader.fileno())
    changed = (status.st_size, status.st_mtime_ns) != (arrival.size, arrival.mtime_ns)
    # Other bytes with the same size and modification time have a later change time. The manifest's may be later, too.
    if changed or (arrival.ctime_ns and status.st_ctime_ns > arrival.ctime_ns):
        raise make_changed_error(arrival)


class S3Zone:
    """A bucket, or a prefix in one; ``AWS_…`` environment variables give credentials, region and endpoint.

    A key is plain text: no key reaches another object or a local file. A model's folder exists with its first object,
    so that an empty and a missing folder are the same. A missing bucket is an error. So is a prefix without any object,
    even without the marker that `prepare` writes: it is probably mistyped.
    """

    shows_whole_files_only = True

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.bucket, _, prefix = self.address.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""

    @cached_property
    def _client(self) -> Any:
        from botocore.config import Config
        from botocore.session import get_session

        session = get_session()
        # botocore's own parser of times takes half of the time of a long listing.
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_read_time)
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
            max_pool_connections=READERS,
            # S3-compatible servers may not support the newer checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return session.create_client("s3", config=config)

    def files(self, model: str) -> Iterator[ListedFile]:
        """List the objects directly under the folder, page by page."""
        folder = self._key(model, "")
        with self._convert_errors("be listed"):
            pages, is_empty = self._client.get_paginator("list_objects_v2"), True
            for page in pages.paginate(Bucket=self.bucket, Prefix=folder, Delimiter="/"):
                for entry in page.get("Contents", []):
                    is_empty, name = False, entry["Key"].removeprefix(folder)
                    mtime_ns = int(entry["LastModified"].timestamp()) * 10**9
                    if name:
                        yield ListedFile(name, True, entry["Size"], mtime_ns, entry.get("ETag", "").strip('"'))
            if not is_empty:
                return
            response = self._client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
            if not response.get("Contents"):
                raise LandingZoneError(
                    f"The landing zone {self.address} does not exist: no object in the bucket {self.bucket!r} begins "
                    f"with {self.prefix!r}. Check ML_PLATFORM_LANDING_ZONE. If it is right, create the landing zone "
                    f"with `ml-platform land FILE --model {model}`, or put an object {self.prefix + MARKER!r}."
                )

    def read(self, model: str, names: Iterable[str], longest: int) -> dict[str, bytes]:
        """Read the files in parallel: sequential requests would exceed the time limit of a sensor's tick."""
        names = list(names)
        with ThreadPoolExecutor(READERS) as readers:
            contents = readers.map(lambda name: self._read(model, name, longest), names)
            return {name: data for name, data in zip(names, contents, strict=True) if data is not None}

    def _read(self, model: str, name: str, longest: int) -> bytes | None:
        with self._convert_errors(f"provide {model}/{name}"):
            try:
                body = self._client.get_object(Bucket=self.bucket, Key=self._key(model, name))["Body"]
            except self._client.exceptions.NoSuchKey:
                return None
            with body:
                return bytes(body.read(longest))

    def copy(self, arrival: Arrival, target: Path) -> str:
        """Copy and digest the object with the listed ETag; retry an interrupted transfer."""
        from botocore.exceptions import BotoCoreError

        for attempt in range(ATTEMPTS):
            with self._convert_errors(f"provide {arrival.model}/{arrival.name}"):
                try:
                    return self._copy(arrival, target)
                except BotoCoreError:
                    if attempt == ATTEMPTS - 1:
                        raise
        raise AssertionError("the loop returns or raises")

    def _copy(self, arrival: Arrival, target: Path) -> str:
        from botocore.exceptions import ClientError

        condition = {"IfMatch": f'"{arrival.etag}"'} if arrival.etag else {}
        try:
            key = self._key(arrival.model, arrival.name)
            body = self._client.get_object(Bucket=self.bucket, Key=key, **condition)["Body"]
        except ClientError as error:
            if error.response["Error"]["Code"] in GONE:
                raise make_changed_error(arrival) from error
            raise
        digest, size = hashlib.sha256(), 0
        with body, target.open("wb") as writer:
            for block in body.iter_chunks(BLOCK):
                digest.update(block)
                size += writer.write(block)
                if size > arrival.size:
                    break
        if size != arrival.size:
            raise make_changed_error(arrival)
        return digest.hexdigest()

    def write(self, model: str, name: str, data: bytes) -> None:
        """Put the object; S3 lists it once it is complete."""
        with self._convert_errors(f"store {model}/{name}"):
            self._client.put_object(Bucket=self.bucket, Key=self._key(model, name), Body=data)

    def remove(self, model: str, name: str) -> None:
        """Delete the object."""
        with self._convert_errors(f"delete {model}/{name}"):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(model, name))

    def remove_arrival(self, arrival: Arrival) -> None:
        """Compare the ETag, then delete: not every server supports both in one request."""
        from botocore.exceptions import ClientError

        key = self._key(arrival.model, arrival.name)
        with self._convert_errors(f"delete {arrival.model}/{arrival.name}"):
            try:
                current = self._client.head_object(Bucket=self.bucket, Key=key)
            except ClientError as error:
                if error.response["Error"]["Code"] in GONE:
                    return
                raise
            if current["ETag"].strip('"') != arrival.etag:
                raise make_changed_error(arrival)
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def prepare(self, model: str) -> None:  # noqa: ARG002 - a folder exists with its first object
        """Write the marker object if it is missing."""
        marker = self.prefix + MARKER
        with self._convert_errors(f"store {MARKER}"):
            try:
                self._client.get_object(Bucket=self.bucket, Key=marker)["Body"].close()
            except self._client.exceptions.NoSuchKey:
                self._client.put_object(Bucket=self.bucket, Key=marker, Body=MARK)

    def _key(self, model: str, name: str) -> str:
        return f"{self.prefix}{model}/{name}"

    @contextlib.contextmanager
    def _convert_errors(self, action: str) -> Iterator[None]:
        """Convert errors of botocore to a LandingZoneError: "could not" and the action."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise LandingZoneError(
                f"The landing zone {self.address} could not {action}: {error} Check ML_PLATFORM_LANDING_ZONE and the "
                "AWS_… variables: endpoint, region, credentials and their permissions."
            ) from error


def _read_time(value: Any) -> datetime:
    from botocore.utils import parse_timestamp

    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        parsed: datetime = parse_timestamp(value)
        return parsed
