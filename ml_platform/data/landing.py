"""Files in the landing zone that wait for ingestion."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ml_platform.data import arrivals
from ml_platform.errors import LandingZoneError
from ml_platform.platform import Platform
from ml_platform.records.data import Arrival


def land_files(platform: Platform, model: str, files: Mapping[str, bytes], *, corrects: bool = False) -> list[str]:
    """Write files into a model's folder of the landing zone, each one atomically, as corrections if `corrects` is True.

    Returns
    -------
    list of str
        The names of the written files; a file that exists with the same bytes is left unchanged.

    Raises
    ------
    LandingZoneError
        A name cannot be an arrival, a waiting file has this name and other bytes, or a correction has the name and
        bytes of a file that was landed as none. Nothing was written.
    """
    zone = platform.zone
    arrivals.require_safe_names(files)
    zone.prepare(model)
    new = [name for name, data in files.items() if not arrivals.holds(zone, model, name, data)]
    kept = sorted(files.keys() - set(new)) if corrects else []
    if kept := [name for name in kept if not arrivals.is_correction(zone, model, name)]:
        raise LandingZoneError(
            f"The file {kept[0]!r} is in {zone.address}/{model} already, with the same bytes: it would not become a "
            "correction. Give your file another name. Nothing was landed."
        )
    waiting = {arrival.name for arrival in waiting_arrivals(platform, model)}
    if taken := sorted(waiting & set(new)):
        raise LandingZoneError(
            f"A file {taken[0]!r} with other bytes already waits in {zone.address}/{model}. Run "
            f"`ml-platform ingest {model}` first, or rename your file. Nothing was landed."
        )
    return [name for name in new if arrivals.land(zone, model, name, files[name], corrects=corrects)]


def ignored_files(platform: Platform, model: str) -> list[str]:
    """Return the names in a model's folder of the landing zone that cannot be arrivals."""
    return list_files(platform, model).ignored


def list_arrivals(platform: Platform, model: str) -> list[Arrival]:
    """Return all files in a model's folder of the landing zone that can be arrivals, handled or not."""
    return list_files(platform, model).arrivals


def list_files(platform: Platform, model: str) -> arrivals.Listing:
    """List a model's folder of the landing zone; changed files are distinguished from known arrivals.

    Raises
    ------
    LandingZoneError
        The landing zone cannot be listed.
    """
    listing = arrivals.list_files(platform.zone, model)
    known = platform.database.change_times(model)
    return replace(listing, arrivals=arrivals.distinguish(listing.arrivals, known))


def waiting_arrivals(platform: Platform, model: str) -> list[Arrival]:
    """Return the complete and incomplete files in the landing zone without an outcome, oldest first.

    Raises
    ------
    LandingZoneError
        The landing zone cannot be listed.
    """
    listed = list_files(platform, model).arrivals
    return [*_find_interrupted(platform, model, listed), *_without_outcome(platform, model, listed)]


def scan_landing_zone(platform: Platform, model: str, **options: Any) -> arrivals.LandingZoneScan:
    """Sort the waiting files into complete and incomplete ones, without changing anything.

    Parameters
    ----------
    platform : Platform
        Its landing zone is scanned.
    model : str
        Its folder there.
    **options
        Options of `arrivals.find_complete_arrivals`: the keys seen by the previous scan, limits.

    Raises
    ------
    LandingZoneError
        The landing zone cannot be listed.
    """
    options.setdefault("stuck_hours", platform.settings.stuck_hours)
    listing = list_files(platform, model)
    interrupted = _find_interrupted(platform, model, listing.arrivals)
    interrupted = interrupted[: options.get("limit", arrivals.ARRIVALS_A_RUN)]
    waiting = _without_outcome(platform, model, listing.arrivals)
    scan = arrivals.find_complete_arrivals(platform.zone, waiting, listing.with_manifest, **options)
    complete = [*interrupted, *scan.complete[: -len(interrupted)]] if interrupted else scan.complete
    return replace(scan, complete=complete, ignored=listing.ignored)


def stuck_files(platform: Platform, model: str) -> list[str]:
    """Return the names of files that have not matched their manifests for too long.

    The list is empty if the landing zone cannot be listed: the arrivals sensor reports that error.
    """
    try:
        return scan_landing_zone(platform, model).stuck
    except LandingZoneError:
        return []


def _without_outcome(platform: Platform, model: str, listed: Iterable[Arrival]) -> list[Arrival]:
    known = platform.database.known_arrivals(model)
    return [arrival for arrival in listed if arrival.key not in known]


def _find_interrupted(platform: Platform, model: str, listed: Iterable[Arrival]) -> list[Arrival]:
    """Return stored arrivals whose run stopped before an outcome, and whose files have been removed since."""
    keys = {arrival.key for arrival in listed}
    return [batch.arrival for batch in platform.database.unhandled_batches(model) if batch.arrival.key not in keys]
