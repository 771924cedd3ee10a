"""Find files in the landing zone, tell which are complete, and keep their bytes."""

import hashlib
import json
import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ml_platform import durable
from ml_platform.errors import LandingZoneError, StorageError
from ml_platform.records import Arrival, RawBatch
from ml_platform.settings import MOST_BYTES
from ml_platform.stages._landing import Found, LandingZone, changed
from ml_platform.volumes import NOTE_SUFFIX, note

SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl")
# No path separator, no leading dot, no control character, nothing that a shell or Dagster's partition ranges
# would read as syntax.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+")
LONGEST_NAME = 200
MANIFEST_SUFFIX = ".manifest.json"
LONGEST_MANIFEST = 1 << 16
SHA256 = re.compile(r"[0-9a-f]{64}")
# What one run takes, and one look remembers: a tick stays short and its cursor small however many files wait.
ARRIVALS_A_RUN = 500
# Nobody has written for so long: a person who asks for a file now need not wait for a second look.
SECONDS_OF_REST = 60
# A file that its manifest does not fit for so long will not become complete by waiting: somebody must look.
STUCK_HOURS = 24.0
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Listing:
    """A model's folder of the landing zone.

    `arrivals` come by modification time, then by name; `with_manifest` are the names of files that a manifest stands
    beside; `ignored` are the names that can be no arrival, sorted.
    """

    arrivals: list[Arrival]
    with_manifest: set[str]
    ignored: list[str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the writer of a file says of it: ``{"size": …, "sha256": "…"}`` in ``<file>.manifest.json``."""

    size: int
    sha256: str

    @property
    def data(self) -> bytes:
        """The manifest as its file has it."""
        return json.dumps({"size": self.size, "sha256": self.sha256}).encode()


@dataclass(slots=True)
class Look:
    """What one look at the waiting files found.

    `complete` are arrivals; `held` are the keys of files that are complete if the next look finds them unchanged;
    `incomplete` counts the others and `examples` says of a few what they wait for. Of the incomplete, `stuck` names
    those whose manifest has not fitted for so long that they wait in vain; they come first in `examples`. `ignored` are
    names beside them that can be no arrival.
    """

    complete: list[Arrival] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    incomplete: int = 0
    examples: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def _add_incomplete(self, name: str, why: str) -> None:
        self.incomplete += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{name}: {why}")

    def _add_stuck(self, name: str, why: str, hours: float) -> None:
        self.incomplete += 1
        self.examples.insert(len(self.stuck), f"{name}: stuck, unchanged for more than {hours:g} h: {why}")
        self.stuck.append(name)
        del self.examples[EXAMPLES:]


def list_files(zone: LandingZone, model: str) -> Listing:
    """List a model's folder of the landing zone.

    Files whose name is hidden are somebody's unfinished work and not listed. Names that are unsafe or of another
    format, links and pipes are ignored; manifests are neither arrivals nor ignored.

    Raises
    ------
    LandingZoneError
        The folder is missing or cannot be listed: that is not the same as "no new files".
    """
    listing = Listing([], set(), [])
    for found in zone.files(model):
        if found.regular and is_safe_name(found.name):
            listing.arrivals.append(_arrival(model, found))
        elif found.regular and is_safe_name(named := found.name.removesuffix(MANIFEST_SUFFIX)):
            listing.with_manifest.add(named)
        elif not found.name.startswith("."):
            listing.ignored.append(found.name)
    listing.arrivals.sort(key=lambda arrival: (arrival.mtime_ns, arrival.name))
    listing.ignored.sort()
    return listing


def _arrival(model: str, found: Found) -> Arrival:
    return Arrival(model=model, name=found.name, size=found.size, mtime_ns=found.mtime_ns, etag=found.etag)


def look(
    zone: LandingZone,
    waiting: Sequence[Arrival],
    with_manifest: Collection[str],
    *,
    seen: Iterable[str] = (),
    at_rest: bool = False,
    limit: int = ARRIVALS_A_RUN,
    stuck_hours: float = STUCK_HOURS,
) -> Look:
    """Tell which of the waiting files are complete.

    A file beside a manifest is complete when its size is the manifest's. Another one is complete at once where the
    zone shows whole files only, else when the last look saw it as it is now.

    Parameters
    ----------
    zone : LandingZone
        Where they stand.
    waiting : sequence of Arrival
        Those without an outcome, oldest first: a file that grows is the newest and holds up nobody.
    with_manifest : collection of str
        The names that a manifest stands beside.
    seen : iterable of str
        The keys in `held` of the look before.
    at_rest : bool
        Whether a file that was last written `SECONDS_OF_REST` ago or earlier is complete at once.
    limit : int
        The most that are returned as complete, and as held.
    stuck_hours : float
        A file that is not what its manifest says is stuck so long after its last change, or if that lies so far ahead.
    """
    result, before = Look(), set(seen)
    latest = time.time_ns() - SECONDS_OF_REST * 10**9
    for some in _in_parts(waiting, limit):
        full = len(result.complete) >= limit
        if full and len(result.held) >= limit:
            break
        named = [arrival.name for arrival in some if arrival.name in with_manifest and not full]
        manifests = _read_manifests(zone, some[0].model, named)
        for arrival in some:
            if arrival.name in manifests:
                _judge_by_manifest(result, arrival, manifests[arrival.name], stuck_hours)
            elif arrival.name not in with_manifest:
                rested = zone.shows_whole_files_only or (at_rest and arrival.mtime_ns <= latest)
                _judge_by_rest(result, arrival, rested or arrival.key in before, limit)
        del result.complete[limit:]
    return result


def _in_parts(waiting: Sequence[Arrival], size: int) -> Iterator[Sequence[Arrival]]:
    for start in range(0, len(waiting), size):
        yield waiting[start : start + size]


def _judge_by_manifest(result: Look, arrival: Arrival, manifest: Manifest | None, stuck_hours: float) -> None:
    why = _misfit(arrival, manifest)
    if why is None:
        result.complete.append(arrival)
    elif abs(time.time_ns() - arrival.mtime_ns) > stuck_hours * 3600 * 10**9:
        result._add_stuck(arrival.name, why, stuck_hours)
    else:
        result._add_incomplete(arrival.name, why)


def _misfit(arrival: Arrival, manifest: Manifest | None) -> str | None:
    if manifest is None:
        return "its manifest is no JSON object with size and sha256"
    if manifest.size != arrival.size:
        return f"{arrival.size:,} of the {manifest.size:,} bytes that its manifest names"
    return None


def _judge_by_rest(result: Look, arrival: Arrival, is_whole: bool, limit: int) -> None:
    if is_whole and len(result.complete) < limit:
        result.complete.append(arrival)
    elif len(result.held) < limit:
        result.held.append(arrival.key)
    if not is_whole:
        result._add_incomplete(arrival.name, "no manifest names it and it was not seen twice unchanged")


def _read_manifests(zone: LandingZone, model: str, names: Sequence[str]) -> dict[str, Manifest | None]:
    contents = zone.read(model, [name + MANIFEST_SUFFIX for name in names], LONGEST_MANIFEST)
    return {name: _manifest(contents.get(name + MANIFEST_SUFFIX, b"")) for name in names}


def _manifest(data: bytes) -> Manifest | None:
    """Read a manifest; ``None`` if it is none, for instance because it is still being written."""
    try:
        read = json.loads(data)
    except (ValueError, RecursionError):
        return None
    size, sha256 = (read.get("size"), read.get("sha256")) if isinstance(read, dict) else (None, None)
    if type(size) is not int or not isinstance(sha256, str) or not SHA256.fullmatch(sha256.lower()):
        return None
    return Manifest(size, sha256.lower())


def land(zone: LandingZone, model: str, name: str, data: bytes) -> bool:
    """Put a file with its manifest into a model's folder of the landing zone, the manifest first.

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
    if holds(zone, model, name, data):
        return False
    zone.write(model, name + MANIFEST_SUFFIX, Manifest(len(data), hashlib.sha256(data).hexdigest()).data)
    try:
        zone.write(model, name, data)
    except (LandingZoneError, StorageError):
        zone.remove(model, name + MANIFEST_SUFFIX)
        raise
    return True


def require_safe_names(names: Iterable[str]) -> None:
    """Raise LandingZoneError for the first name that cannot be an arrival's."""
    for name in names:
        if not is_safe_name(name):
            raise LandingZoneError(
                f"The file name must consist of letters, digits, '-', '_' and '.' and end in {', '.join(SUFFIXES)}. "
                f"Got {name!r} instead. Nothing was landed."
            )


def holds(zone: LandingZone, model: str, name: str, data: bytes) -> bool:
    """Whether a model's folder of the landing zone holds a file of this name with these bytes."""
    return zone.read(model, [name], len(data) + 1).get(name) == data


def is_safe_name(name: str) -> bool:
    """Whether a file of this name can be an arrival."""
    return len(name) <= LONGEST_NAME and bool(SAFE_NAME.fullmatch(name)) and name.lower().endswith(SUFFIXES)


def keep_bytes(arrival: Arrival, zone: LandingZone, store: Path, most_bytes: int = MOST_BYTES) -> RawBatch:
    """Copy an arrival's bytes to ``<store>/<sha256><suffix>``, once; equal bytes are kept once.

    What a manifest promises is noted with them and held against them when they are validated. Of an arrival that has
    more than `most_bytes` a note is kept in the place of its bytes: validation says so and quarantines it.

    Raises
    ------
    ArrivalChangedError
        The file is gone, is no regular file, or changed since it was found: the changed file is a new arrival.
    LandingZoneError
        The landing zone does not answer or refuses.
    StorageError
        The store takes nothing: the disk is full, read-only or broken.
    """
    if arrival.size > most_bytes:
        return _keep_note(arrival, store, most_bytes)
    with durable.temporary_beside(store / arrival.key) as temporary:
        sha256 = zone.copy(arrival, temporary)
        manifest = _manifest_of(zone, arrival)
        if manifest and manifest.size != arrival.size:
            raise changed(arrival)
        target = store / f"{sha256}{suffix_of(arrival.name)}"
        durable.place(temporary, target)
    promised = manifest.sha256 if manifest else None
    return RawBatch(arrival=arrival, sha256=sha256, path=str(target), promised_sha256=promised)


def _manifest_of(zone: LandingZone, arrival: Arrival) -> Manifest | None:
    """Return the manifest of an arrival, ``None`` if it has none; one that cannot be read promises something too."""
    name = arrival.name + MANIFEST_SUFFIX
    data = zone.read(arrival.model, [name], LONGEST_MANIFEST).get(name)
    manifest = None if data is None else _manifest(data)
    if data is not None and manifest is None:
        raise changed(arrival)
    return manifest


def suffix_of(name: str) -> str:
    """Return the suffix that says what a file is, in small letters; its name is a safe one."""
    return next(s for s in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(s))


def remove(zone: LandingZone, arrival: Arrival) -> None:
    """Remove an arrival's file and its manifest from the landing zone.

    Raises
    ------
    ArrivalChangedError
        Another file has its name by now, which was not handled: both stay.
    """
    zone.remove_arrival(arrival)
    zone.remove(arrival.model, arrival.name + MANIFEST_SUFFIX)


def _keep_note(arrival: Arrival, store: Path, most_bytes: int) -> RawBatch:
    data = note(arrival, most_bytes)
    sha256 = hashlib.sha256(data).hexdigest()
    target = store / f"{sha256}{NOTE_SUFFIX}"
    durable.write(target, data)
    # The digest of the note, which names the arrival: nobody has read the file's own.
    return RawBatch(arrival=arrival, sha256=sha256, path=str(target))
