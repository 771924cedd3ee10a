"""The landing zone as an interface. No other module knows what kind of place it is.

A zone holds one folder a model. It lists, reads and writes whole files by name; what a name means, and which file is an
arrival, is said in `arrivals`.
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

from ml_platform import durable
from ml_platform.errors import ArrivalChangedError, LandingZoneError
from ml_platform.records import Arrival

BLOCK = 1 << 20
# A call to S3 is given up after three attempts, at most half a minute: before the sensor's tick is.
ATTEMPTS = 3
CONNECT_SECONDS, READ_SECONDS = 3, 5
READERS = 16
# What a landing zone in S3 holds so that an empty one differs from a mistyped prefix.
MARKER, MARK = ".landing-zone", b"ml-platform\n"
GONE = {"404", "NoSuchKey", "412", "PreconditionFailed"}
# 0 is that of `_open_regular`; a link is ELOOP, a folder's pipe that nobody writes ENXIO.
NOT_THERE = {0, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EISDIR}
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

    def remove_arrival(self, arrival: Arrival) -> None:
        """Remove an arrival's file if it is there; refuse one that changed."""

    def prepare(self, model: str) -> None:
        """Make the place and a model's folder in it where they cannot be there without it."""


def open_zone(address: str) -> LandingZone:
    """Return the landing zone at an absolute path or ``s3://bucket/prefix``; nothing is opened yet."""
    return S3Zone(address) if address.startswith("s3://") else LocalZone(Path(address))


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
                    with contextlib.suppress(FileNotFoundError):
                        if not _is_folder(entry):
                            yield _found(entry)
        except OSError as error:
            raise LandingZoneError(
                f"The landing zone {folder} cannot be listed: {error.strerror}. Make the folder, or set "
                "ML_PLATFORM_LANDING_ZONE to the one that holds it."
            ) from error

    def read(self, model: str, names: Iterable[str], longest: int) -> dict[str, bytes]:
        """Read the beginning of each file that is regular; one that is there and cannot be read is empty."""
        return {name: data for name in names if (data := self._read(model, name, longest)) is not None}

    def _read(self, model: str, name: str, longest: int) -> bytes | None:
        try:
            with _open_regular(self.folder / model / name) as reader:
                return reader.read(longest)
        except OSError as error:
            return None if error.errno in NOT_THERE else b""

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
            for block in _blocks(arrival, reader):
                digest.update(block)
                writer.write(block)
            _require_unchanged(arrival, reader)
        return digest.hexdigest()

    def write(self, model: str, name: str, data: bytes) -> None:
        """Write under a hidden name, then rename."""
        durable.write(self.folder / model / name, data)

    def remove(self, model: str, name: str) -> None:
        """Unlink the file."""
        (self.folder / model / name).unlink(missing_ok=True)

    def remove_arrival(self, arrival: Arrival) -> None:
        """Compare size and time, then unlink."""
        try:
            reader = _open_regular(self.folder / arrival.model / arrival.name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise changed(arrival) from error
        with reader:
            _require_unchanged(arrival, reader)
        self.remove(arrival.model, arrival.name)

    def prepare(self, model: str) -> None:
        """Make the folder."""
        with durable.storing_in(self.folder / model):
            durable.make_folder(self.folder / model)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=True)
    except OSError:
        if entry.is_symlink():  # one that leads nowhere, to itself for instance, hides no other file
            return False
        raise


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


def _blocks(arrival: Arrival, reader: BufferedReader) -> Iterator[bytes]:
    """Read no more than the file had when it was found, and one byte by which it shows that it grew."""
    left = arrival.size + 1
    try:
        while block := reader.read(min(BLOCK, left)):
            left -= len(block)
            yield block
    except OSError as error:
        raise LandingZoneError(f"{arrival.model}/{arrival.name} cannot be read: {error.strerror}.") from error


def _require_unchanged(arrival: Arrival, reader: BufferedReader) -> None:
    status = os.fstat(reader.fileno())
    if (status.st_size, status.st_mtime_ns) != (arrival.size, arrival.mtime_ns):
        raise changed(arrival)


class S3Zone:
    """A bucket, or a prefix in one; credentials, region and endpoint are those of the usual ``AWS_…`` variables.

    A key is text and nothing more: whatever it holds, no other object and no local file is reached by it. A folder
    need not be made, so an empty one and a missing one are the same. A missing bucket is an error, and so is a prefix
    that has no object at all, not even the marker that `prepare` leaves: it is mistyped.
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
        # botocore's own reading of times is half the cost of a long list.
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_read_time)
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
            max_pool_connections=READERS,
            # S3-compatible servers need not know the newer checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return session.create_client("s3", config=config)

    def files(self, model: str) -> Iterator[Found]:
        """List the objects directly under the folder, page by page."""
        folder = self._key(model, "")
        with self._asking("be listed"):
            pages, there = self._client.get_paginator("list_objects_v2"), False
            for page in pages.paginate(Bucket=self.bucket, Prefix=folder, Delimiter="/"):
                entries = page.get("Contents", [])
                there = there or bool(entries)
                yield from (_found_object(entry, folder) for entry in entries if entry["Key"] != folder)
            if not there:
                self._require_an_object(model)

    def _require_an_object(self, model: str) -> None:
        answer = self._client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
        if not answer.get("Contents"):
            raise LandingZoneError(
                f"The landing zone {self.address} is not there: nothing in the bucket {self.bucket!r} begins with "
                f"{self.prefix!r}. Check ML_PLATFORM_LANDING_ZONE. If the place is right, make it a landing zone: "
                f"`ml-platform land FILE --model {model}`, or put an object {self.prefix + MARKER!r}."
            )

    def read(self, model: str, names: Iterable[str], longest: int) -> dict[str, bytes]:
        """Read the beginnings side by side: a round trip each, one after the other, would outlast a tick."""
        names = list(names)
        with ThreadPoolExecutor(READERS) as readers:
            contents = readers.map(lambda name: self._read(model, name, longest), names)
            return {name: data for name, data in zip(names, contents, strict=True) if data is not None}

    def _read(self, model: str, name: str, longest: int) -> bytes | None:
        with self._asking(f"give {model}/{name}"):
            try:
                body = self._client.get_object(Bucket=self.bucket, Key=self._key(model, name))["Body"]
            except self._client.exceptions.NoSuchKey:
                return None
            with body:
                return bytes(body.read(longest))

    def copy(self, arrival: Arrival, target: Path) -> str:
        """Copy and digest the very object that was found; a transfer that breaks off is tried again."""
        from botocore.exceptions import BotoCoreError

        for attempt in range(ATTEMPTS):
            with self._asking(f"give {arrival.model}/{arrival.name}"):
                try:
                    return self._copy(arrival, target)
                except BotoCoreError:
                    if attempt == ATTEMPTS - 1:
                        raise
        raise AssertionError("the loop returns or raises")

    def _copy(self, arrival: Arrival, target: Path) -> str:
        from botocore.exceptions import ClientError

        wanted = {"IfMatch": f'"{arrival.etag}"'} if arrival.etag else {}
        try:
            key = self._key(arrival.model, arrival.name)
            body = self._client.get_object(Bucket=self.bucket, Key=key, **wanted)["Body"]
        except ClientError as error:
            if error.response["Error"]["Code"] in GONE:
                raise changed(arrival) from error
            raise
        digest, size = hashlib.sha256(), 0
        with body, target.open("wb") as writer:
            for block in body.iter_chunks(BLOCK):
                digest.update(block)
                size += writer.write(block)
                if size > arrival.size:
                    break
        if size != arrival.size:
            raise changed(arrival)
        return digest.hexdigest()

    def write(self, model: str, name: str, data: bytes) -> None:
        """Put the object; S3 shows it when it is whole."""
        with self._asking(f"take {model}/{name}"):
            self._client.put_object(Bucket=self.bucket, Key=self._key(model, name), Body=data)

    def remove(self, model: str, name: str) -> None:
        """Delete the object."""
        with self._asking(f"delete {model}/{name}"):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(model, name))

    def remove_arrival(self, arrival: Arrival) -> None:
        """Compare the ETag, then delete; not every server can do both at once."""
        from botocore.exceptions import ClientError

        key = self._key(arrival.model, arrival.name)
        with self._asking(f"delete {arrival.model}/{arrival.name}"):
            try:
                found = self._client.head_object(Bucket=self.bucket, Key=key)
            except ClientError as error:
                if error.response["Error"]["Code"] in GONE:
                    return
                raise
            if found["ETag"].strip('"') != arrival.etag:
                raise changed(arrival)
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def prepare(self, model: str) -> None:  # noqa: ARG002 - a folder is there with its first object
        """Mark the place as a landing zone, once."""
        marker = self.prefix + MARKER
        with self._asking(f"take {MARKER}"):
            try:
                self._client.get_object(Bucket=self.bucket, Key=marker)["Body"].close()
            except self._client.exceptions.NoSuchKey:
                self._client.put_object(Bucket=self.bucket, Key=marker, Body=MARK)

    def _key(self, model: str, name: str) -> str:
        return f"{self.prefix}{model}/{name}"

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise LandingZoneError(
                f"The landing zone {self.address} could not {what}: {error} Check ML_PLATFORM_LANDING_ZONE and the "
                "AWS_… variables: endpoint, region, credentials and what these may do."
            ) from error


def _found_object(entry: dict[str, Any], folder: str) -> Found:
    mtime_ns = int(entry["LastModified"].timestamp()) * 10**9
    return Found(entry["Key"].removeprefix(folder), True, entry["Size"], mtime_ns, entry.get("ETag", "").strip('"'))


def _read_time(value: Any) -> datetime:
    from botocore.utils import parse_timestamp

    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        parsed: datetime = parse_timestamp(value)
        return parsed
