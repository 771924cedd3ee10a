"""What waits in the landing zone."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ml_platform.errors import LandingZoneError
from ml_platform.records import Arrival
from ml_platform.stages import arrivals
from ml_platform.workflows.platform import Platform


def land_files(platform: Platform, model: str, files: Mapping[str, bytes]) -> list[str]:
    """Put files into a model's folder of the landing zone, each whole or not at all.

    Returns
    -------
    list of str
        The names of those that were landed; a file that is there already with these bytes is left alone.

    Raises
    ------
    LandingZoneError
        A name cannot be an arrival's, or a file of that name with other bytes is waiting. Nothing was landed.
    """
    zone = platform.zone
    arrivals.require_safe_names(files)
    zone.prepare(model)
    new = [name for name, data in files.items() if not arrivals.holds(zone, model, name, data)]
    waiting = {arrival.name for arrival in waiting_arrivals(platform, model)}
    if taken := sorted(waiting & set(new)):
        raise LandingZoneError(
            f"A file {taken[0]!r} with other bytes waits in {zone.address}/{model}. Run `ml-platform ingest {model}` "
            "first, or choose another name. Nothing was landed."
        )
    return [name for name in new if arrivals.land(zone, model, name, files[name])]


def ignored_files(platform: Platform, model: str) -> list[str]:
    """Return the names in a model's folder of the landing zone that can be no arrival."""
    return arrivals.list_files(platform.zone, model).ignored


def landed(platform: Platform, model: str) -> list[Arrival]:
    """Return all files in a model's folder of the landing zone that can be arrivals, handled or not."""
    return arrivals.list_files(platform.zone, model).arrivals


def waiting_arrivals(platform: Platform, model: str) -> list[Arrival]:
    """Return the files in the landing zone that have no outcome yet, complete or not, oldest first.

    Raises
    ------
    LandingZoneError
        The landing zone cannot be listed.
    """
    found = arrivals.list_files(platform.zone, model).arrivals
    return [*_kept_without_outcome(platform, model, found), *_without_outcome(platform, model, found)]


def look_for_arrivals(platform: Platform, model: str, **options: Any) -> arrivals.Look:
    """Tell which of the files that wait are complete; nothing is changed by looking.

    Parameters
    ----------
    platform : Platform
        Its landing zone.
    model : str
        Its folder there.
    **options
        Those of `arrivals.look`: what was seen before, and how much is asked for.

    Raises
    ------
    LandingZoneError
        The landing zone cannot be listed.
    """
    options.setdefault("stuck_hours", platform.settings.stuck_hours)
    listing = arrivals.list_files(platform.zone, model)
    left = _kept_without_outcome(platform, model, listing.arrivals)[: options.get("limit", arrivals.ARRIVALS_A_RUN)]
    waiting = _without_outcome(platform, model, listing.arrivals)
    look = arrivals.look(platform.zone, waiting, listing.with_manifest, **options)
    complete = [*left, *look.complete[: -len(left)]] if left else look.complete
    return replace(look, complete=complete, ignored=listing.ignored)


def stuck_files(platform: Platform, model: str) -> list[str]:
    """Return the names of the files that their manifests have not fitted for long; none where nobody can tell."""
    try:
        return look_for_arrivals(platform, model).stuck
    except LandingZoneError:  # the sensor is red because of it
        return []


def _without_outcome(platform: Platform, model: str, found: Iterable[Arrival]) -> list[Arrival]:
    known = platform.database.known_arrivals(model)
    return [arrival for arrival in found if arrival.key not in known]


def _kept_without_outcome(platform: Platform, model: str, found: Iterable[Arrival]) -> list[Arrival]:
    """Return the arrivals whose run died behind their first step, and whose files are gone since."""
    there = {arrival.key for arrival in found}
    return [batch.arrival for batch in platform.database.unhandled_batches(model) if batch.arrival.key not in there]
