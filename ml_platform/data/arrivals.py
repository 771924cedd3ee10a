"""Find files in the landing zone, detect complete ones and store their bytes."""

import hashlib
import json
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ml_platform.data.validation.size_limits import NOTE_SUFFIX, note
from ml_platform.errors import LandingZoneError, StorageError
from ml_platform.records.data import Arrival, RawBatch
from ml_platform.settings import MAX_FILE_BYTES
from ml_platform.storage import atomic_files
from ml_platform.storage.landing_zone import LandingZone, ListedFile, make_changed_error

SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl")
# No path separator, no leading dot, no control character, nothing that a shell or Dagster's partition ranges
# would read as syntax.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+")
LONGEST_NAME = 200
MANIFEST_SUFFIX = ".manifest.json"
LONGEST_MANIFEST = 1 << 16
SHA256 = re.compile(r"[0-9a-f]{64}")
# Limit of a run's arrivals and of a scan's remembered files: keeps ticks short and cursors small.
ARRIVALS_A_RUN = 500
# A manual ingest accepts a file that is at least this old without waiting for a second scan.
SECONDS_OF_REST = 60
# A file that has not matched its manifest for this long needs a person's attention.
STUCK_HOURS = 24.0
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Listing:
    """A model's folder of the landing zone.

    `arrivals` are sorted by modification time, then by name; `with_manifest` are the names of files that have a
    manifest; `ignored` are the names that cannot be arrivals, sorted.
    """

    arrivals: list[Arrival]
    with_manifest: set[str]
    ignored: list[str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Size and digest that a file's writer declares: ``{"size": …, "sha256": "…"}`` in ``<file>.manifest.json``.

    ``"corrects": true`` declares a correction of published rows.
    """

    size: int
    sha256: str
    corrects: bool = False

    @property
    def data(self) -> bytes:
        """The content of the manifest's file."""
        correction = {"corrects": True} if self.corrects else {}
        return json.dumps({"size": self.size, "sha256": self.sha256, **correction}).encode()


@dataclass(slots=True)
class LandingZoneScan:
    """Result of one scan of the waiting files.

    `complete` are arrivals; `held` are the keys of files that are complete if the next scan finds them unchanged;
    `incomplete` counts the other files and `examples` gives the reasons for a few. `stuck` names the incomplete files
    that have not matched their manifests for too long; they come first in `examples`. `ignored` are names in the folder
    that cannot be arrivals.
    """

    complete: list[Arrival] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    incomplete: int = 0
    examples: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def _add_incomplete(self, name: str, reason: str) -> None:
        self.incomplete += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{name}: {reason}")


def list_files(zone: LandingZone, model: str) -> Listing:
    """List a model's folder of the landing zone.

    Hidden files are unfinished and are not listed. Unsafe names, other formats, links and pipes are ignored; manifests
    are neither arrivals nor ignored.

    Raises
    ------
    LandingZoneError
        The folder is missing or cannot be listed, which differs from "no new files".
    """
    listing = Listing([], set(), [])
    files, manifests = list[ListedFile](), dict[str, int]()
    for file in zone.files(model):
        if file.regular and is_safe_name(file.name):
            files.append(file)
        elif file.regular and is_safe_name(described := file.name.removesuffix(MANIFEST_SUFFIX)):
            listing.with_manifest.add(described)
            manifests[described] = file.ctime_ns
        elif not file.name.startswith("."):
            listing.ignored.append(file.name)
    for file in files:
        ctime_ns = max(file.ctime_ns, manifests.get(file.name, 0))
        listing.arrivals.append(
            Arrival(
                model=model,
                name=file.name,
                size=file.size,
                mtime_ns=file.mtime_ns,
                etag=file.etag,
                ctime_ns=ctime_ns,
            )
        )
    listing.arrivals.sort(key=lambda arrival: (arrival.mtime_ns, arrival.name))
    listing.ignored.sort()
    return listing


def distinguish(listed: Iterable[Arrival], change_times: Mapping[str, int]) -> list[Arrival]:
    """Distinguish files from earlier arrivals with the same name, size and modification time.

    A tool that copies modification times can put other bytes, or a corrected manifest, under an old name. The change
    time tells the two apart: no tool can set it. A change of permissions alone gives an arrival with equal bytes, a
    duplicate.

    Parameters
    ----------
    listed : iterable of Arrival
    change_times : mapping of str to int
        `ctime_ns` of the known arrivals by key; 0 if it was not recorded.
    """
    if not change_times:
        return list(listed)
    return [
        replace(arrival, changed_ns=arrival.ctime_ns)
        if arrival.ctime_ns and change_times.get(arrival.key, 0) not in {0, arrival.ctime_ns}
        else arrival
        for arrival in listed
    ]


def find_complete_arrivals(
    zone: LandingZone,
    waiting: Sequence[Arrival],
    with_manifest: Collection[str],
    *,
    seen: Iterable[str] = (),
    at_rest: bool = False,
    limit: int = ARRIVALS_A_RUN,
    stuck_hours: float = STUCK_HOURS,
) -> LandingZoneScan:
    """Sort the waiting files into complete and incomplete ones.

    A file with a manifest is complete when it has the manifest's size. A file without one is complete at once if the
    zone lists whole files only, otherwise when it is unchanged since the previous scan.

    Parameters
    ----------
    zone : LandingZone
        The zone that holds the files.
    waiting : sequence of Arrival
        Arrivals without an outcome, oldest first: a growing file is the newest and does not delay others.
    with_manifest : collection of str
        Names of the files that have a manifest.
    seen : iterable of str
        The keys in `held` of the previous scan.
    at_rest : bool
        True accepts a file that was last written at least `SECONDS_OF_REST` ago at once.
    limit : int
        Maximum number of complete arrivals, and of held keys.
    stuck_hours : float
        A file that does not match its manifest is stuck if its last change is more than this many hours ago, or lies as
        far in the future.
    """
    result, before = LandingZoneScan(), set(seen)
    latest = time.time_ns() - SECONDS_OF_REST * 10**9
    for start in range(0, len(waiting), limit):
        part, full = waiting[start : start + limit], len(result.complete) >= limit
        if full and len(result.held) >= limit:
            break
        names = [arrival.name + MANIFEST_SUFFIX for arrival in part if arrival.name in with_manifest and not full]
        contents = zone.read(part[0].model, names, LONGEST_MANIFEST)
        for arrival in part:
            rested = zone.shows_whole_files_only or (at_rest and max(arrival.mtime_ns, arrival.changed_ns) <= latest)
            is_whole = rested or arrival.key in before
            # Where change times are not stable, a changed file never rests: it does not arrive again with each scan.
            if arrival.name in with_manifest and (is_whole or not arrival.changed_ns):
                if not full:
                    data = contents.get(arrival.name + MANIFEST_SUFFIX, b"")
                    _judge_by_manifest(result, arrival, _parse_manifest(data), stuck_hours)
                continue
            if not is_whole:
                result._add_incomplete(arrival.name, "it has no manifest, and two scans have not yet seen it unchanged")
            if is_whole and len(result.complete) < limit:
                result.complete.append(arrival)
            else:
                result.held.append(arrival.key)
        del result.complete[limit:], result.held[limit:]
    return result


def _judge_by_manifest(
    result: LandingZoneScan, arrival: Arrival, manifest: Manifest | None, stuck_hours: float
) -> None:
    if manifest and manifest.size == arrival.size:
        result.complete.append(arrival)
        return
    reason = "its manifest is not a JSON object with 'size' and 'sha256'"
    if manifest:
        reason = f"it has {arrival.size:,} bytes, its manifest expects {manifest.size:,}"
    if abs(time.time_ns() - arrival.mtime_ns) <= stuck_hours * 3600 * 10**9:
        result._add_incomplete(arrival.name, reason)
        return
    result.incomplete += 1
    result.examples.insert(
        len(result.stuck), f"{arrival.name}: stuck, unchanged for more than {stuck_hours:g} h: {reason}"
    )
    result.stuck.append(arrival.name)
    del result.examples[EXAMPLES:]


def _parse_manifest(data: bytes) -> Manifest | None:
    """Parse a manifest; ``None`` if it is not a valid one, for instance because its writer has not finished."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    size, sha256 = (document.get("size"), document.get("sha256")) if isinstance(document, dict) else (None, None)
    if type(size) is not int or not isinstance(sha256, str) or not SHA256.fullmatch(sha256.lower()):
        return None
    corrects = document.get("corrects", False)
    return Manifest(size, sha256.lower(), corrects) if isinstance(corrects, bool) else None


def land(zone: LandingZone, model: str, name: str, data: bytes, *, corrects: bool = False) -> bool:
    """Write a file with its manifest into a model's folder of the landing zone, the manifest first.

    The manifest declares a correction if `corrects` is True.

    Returns
    -------
    bool
        False if the folder already holds this file with the same bytes; it is left unchanged.

    Raises
    ------
    LandingZoneError
        The name is unsafe or has an unknown suffix.
    """
    require_safe_names([name])
    if holds(zone, model, name, data):
        return False
    manifest = Manifest(len(data), hashlib.sha256(data).hexdigest(), corrects)
    zone.write(model, name + MANIFEST_SUFFIX, manifest.data)
    try:
        zone.write(model, name, data)
    except (LandingZoneError, StorageError):
        zone.remove(model, name + MANIFEST_SUFFIX)
        raise
    return True


def require_safe_names(names: Iterable[str]) -> None:
    """Raise LandingZoneError for the first name that cannot be an arrival."""
    for name in names:
        if not is_safe_name(name):
            raise LandingZoneError(
                f"The file name must consist of letters, digits, '-', '_' and '.' and end in {', '.join(SUFFIXES)}. "
                f"Got {name!r} instead. Nothing was landed."
            )


def holds(zone: LandingZone, model: str, name: str, data: bytes) -> bool:
    """Return True if a model's folder of the landing zone holds a file of this name with these bytes."""
    return zone.read(model, [name], len(data) + 1).get(name) == data


def is_correction(zone: LandingZone, model: str, name: str) -> bool:
    """Return True if a file's manifest in the landing zone declares a correction."""
    data = zone.read(model, [name + MANIFEST_SUFFIX], LONGEST_MANIFEST).get(name + MANIFEST_SUFFIX, b"")
    manifest = _parse_manifest(data)
    return manifest is not None and manifest.corrects


def is_safe_name(name: str) -> bool:
    """Return True if a file of this name can be an arrival."""
    return len(name) <= LONGEST_NAME and bool(SAFE_NAME.fullmatch(name)) and name.lower().endswith(SUFFIXES)


def store_bytes(arrival: Arrival, zone: LandingZone, store: Path, max_bytes: int = MAX_FILE_BYTES) -> RawBatch:
    """Copy an arrival's bytes to ``<store>/<sha256><suffix>``; equal bytes are stored once.

    The manifest's digest is recorded with them; validation compares the two. If the arrival has more than `max_bytes`,
    a note is stored in place of its bytes and validation quarantines it.

    Raises
    ------
    ArrivalChangedError
        The file is gone, is not a regular file, or changed since it was found: the changed file is a new arrival.
    LandingZoneError
        The landing zone does not respond, or denies access.
    StorageError
        The store's disk is full, read-only or broken.
    """
    if arrival.size > max_bytes:
        data = note(arrival, max_bytes)
        # The digest of the note, which names the arrival: the file itself was not read.
        sha256 = hashlib.sha256(data).hexdigest()
        target = store / f"{sha256}{NOTE_SUFFIX}"
        atomic_files.write(target, data)
        return RawBatch(arrival=arrival, sha256=sha256, path=str(target))
    name = arrival.name + MANIFEST_SUFFIX
    with atomic_files.temporary_beside(store / arrival.key) as temporary:
        sha256 = zone.copy(arrival, temporary)
        content = zone.read(arrival.model, [name], LONGEST_MANIFEST).get(name)
        manifest = None if content is None else _parse_manifest(content)
        # An unreadable manifest declares a size and a digest, too: they are unknown until it is complete.
        if content is not None and (manifest is None or manifest.size != arrival.size):
            raise make_changed_error(arrival)
        target = store / f"{sha256}{parse_suffix(arrival.name)}"
        atomic_files.atomic_replace(temporary, target)
    promised, corrects = (manifest.sha256, manifest.corrects) if manifest else (None, False)
    return RawBatch(arrival=arrival, sha256=sha256, path=str(target), promised_sha256=promised, corrects=corrects)


def parse_suffix(name: str) -> str:
    """Return the suffix that gives the format of a file with a safe name, in lower case."""
    return next(s for s in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(s))


def remove(zone: LandingZone, arrival: Arrival) -> None:
    """Remove an arrival's file and its manifest from the landing zone.

    Raises
    ------
    ArrivalChangedError
        An unhandled file has replaced it under its name; that file and the manifest stay.
    """
    zone.remove_arrival(arrival)
    zone.remove(arrival.model, arrival.name + MANIFEST_SUFFIX)
