"""Records of data: arrivals, batches, releases, tombstones and dataset versions."""

import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from ml_platform.records.canonical import sha256_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """One file found in the landing zone.

    `etag` is empty if the zone has none. `ctime_ns` is the time of the newest change of the file or of its manifest, 0
    if it is unknown. `changed_ns` is 0 for the first arrival with this name, size and modification time; a later one
    has other bytes or another manifest, and repeats its `ctime_ns` here.
    """

    model: str
    name: str
    size: int
    mtime_ns: int
    etag: str = ""
    ctime_ns: int = field(default=0, compare=False)
    changed_ns: int = 0

    @property
    def key(self) -> str:
        """The partition key: a slug, and 12 hex digits of the sha256 of path, size, and etag (mtime if it is empty).

        `changed_ns` is part of it unless it is 0, so that the keys of known files do not change.
        """
        identity = f"{self.model}/{self.name}\n{self.size}\n{self.etag or self.mtime_ns}"
        identity += f"\n{self.changed_ns}" if self.changed_ns else ""
        return f"{re.sub(r'[^A-Za-z0-9]+', '-', self.name)[:40].strip('-')}-{sha256_text(identity)[:12]}"


class Outcome(StrEnum):
    """The outcome of an arrival."""

    PUBLISHED = "published"
    QUARANTINED = "quarantined"
    DUPLICATE = "duplicate"


@dataclass(frozen=True, kw_only=True)
class RawBatch:
    """The unchanged bytes of an arrival, stored once under their sha256.

    `promised_sha256` is the digest in the file's manifest; None without a manifest. `removed` holds the numbers of the
    rows that an erasure removed after validation; the counts of violations still include them. `corrects` is True if
    the manifest declares a correction.
    """

    arrival: Arrival
    sha256: str
    path: str
    promised_sha256: str | None = None
    removed: tuple[int, ...] = ()
    corrects: bool = False


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """The outcome of one arrival, and its reason.

    `rules` counts the violations of every rule, by data check; `examples` holds up to five of them for each check, as
    sentences; `dataset_version` is None if nothing was published. Of all `rows`, those that are neither quarantined nor
    passed over are published.
    """

    arrival: Arrival
    sha256: str
    outcome: Outcome
    rows: int
    quarantined_rows: int
    dataset_version: int | None
    reason: str
    rules: dict[str, dict[str, int]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    passed_over_rows: int = 0

    @property
    def published_rows(self) -> int:
        """Number of rows in the model's table."""
        return self.rows - self.quarantined_rows - self.passed_over_rows


@dataclass(frozen=True, kw_only=True)
class Release:
    """Quarantined rows of an arrival that were published later; `number` counts an arrival's releases from 1."""

    model: str
    arrival: str
    number: int
    rows: int
    dataset_version: int | None
    actor: str
    released_at: datetime


@dataclass(frozen=True, kw_only=True)
class Tombstone:
    """The record of an entity's erasure, without its name: a keyed digest, and the digest of the key.

    `completed_at` is None while the erasure is in progress; `figures` counts the rows, files and predictions removed.
    """

    model: str
    digest: str
    key_digest: str
    reason: str
    actor: str
    asked_at: datetime
    completed_at: datetime | None = None
    figures: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DatasetVersion:
    """A version of a model's Delta table, pinned by number and digest."""

    model: str
    version: int
    digest: str
    rows: int
