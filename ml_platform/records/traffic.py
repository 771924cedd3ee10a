"""The traffic plan, which assigns requests to versions, and the records of the servers that follow it.

The champion is the version that the ledger last promoted; a plan gives the share of traffic that has moved to it from
the previous champion. A plan names versions only; the ledger's verdicts name their bytes.
"""

import base64
import hashlib
import json
import zlib
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from ml_platform.records.canonical import canonical_json


class Mode(StrEnum):
    """The division of traffic.

    ALL: one version answers every request. CANARY: the successor answers a share that grows by steps. AB: it answers a
    fixed share until there are enough requests. SHADOW: it receives copies of requests, and its answers are only
    logged.
    """

    ALL = "all"
    CANARY = "canary"
    AB = "ab"
    SHADOW = "shadow"


@dataclass(frozen=True, kw_only=True)
class TrafficPlan:
    """The versions that answer requests, and their shares.

    Parameters
    ----------
    model : str
    sequence : int
        Number of the model's plan, from 1; a plan replaces the one before it (compare and set).
    decision : int
        Sequence of the ledger entry that made the champion: a plan of an earlier decision is out of date.
    mode : Mode
    stable : int
        The version that answers the other requests, and those on which the successor fails.
    successor : int or None
        The champion that traffic moves to; ``None`` for ALL.
    share : float
        Share of the keys that the successor answers, from 0 to 1; 0 for ALL and SHADOW.
    step : int
        Index of the rollout's step, from 0.
    salt : str
        Text hashed with each key, the same for a whole rollout: the successor keeps its keys when the share grows.
    since : datetime
        Time of this plan, in UTC.
    reason, actor : str
        Why it was made, and by whom.
    """

    model: str
    sequence: int
    decision: int
    mode: Mode
    stable: int
    since: datetime
    reason: str
    actor: str
    successor: int | None = None
    share: float = 0.0
    step: int = 0
    salt: str = ""

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions to load, the stable one first."""
        return (self.stable,) if self.successor is None else (self.stable, self.successor)

    @property
    def under_way(self) -> bool:
        """True while traffic moves from one version to another."""
        return self.successor is not None

    def version_for(self, key: str) -> int:
        """Return the version that answers a key: always the same under one plan."""
        if self.successor is None or self.mode is Mode.SHADOW or hash_key(key, self.salt) >= self.share:
            return self.stable
        return self.successor

    @property
    def document(self) -> str:
        """The plan as canonical JSON."""
        return canonical_json({**asdict(self), "since": self.since.isoformat()})

    @classmethod
    def from_document(cls, text: str) -> "TrafficPlan":
        """Read a plan back from its canonical JSON."""
        fields = json.loads(text)
        return cls(**{**fields, "mode": Mode(fields["mode"]), "since": datetime.fromisoformat(fields["since"])})


def hash_key(key: str, salt: str) -> float:
    """Return a key's position in [0, 1): evenly spread, and the same on every host and in every process."""
    return _digest_key(key, salt) / 2**64


def find_cell(key: str, salt: str) -> int:
    """Return a key's cell, 0 to `UNIT_CELLS` - 1; it does not depend on the key's position."""
    return _digest_key(key, salt) % UNIT_CELLS


def _digest_key(key: str, salt: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{salt}\n{key}".encode(), digest_size=8).digest(), "big")


# A rollout counts units: a key, by the first outcome of its requests; a request without a key is a unit of its own. A
# version's units are a set of bits, one for each cell, so that processes can be summed without counting a key twice.
# The first unit of a cell counts, the others are left out: this does not depend on their outcomes.
UNIT_CELLS = 2**15


def pack_cells(cells: bytes) -> str:
    """Return a set of cells as text, compressed; empty for no cells."""
    return base64.b64encode(zlib.compress(cells)).decode() if any(cells) else ""


def unpack_cells(text: str) -> int:
    """Return the set of cells of a text as an integer with one bit for each."""
    return int.from_bytes(zlib.decompress(base64.b64decode(text)), "little") if text else 0


# A prediction of this many records takes about as long as one of a single record.
RECORDS_PER_DEADLINE = 32


def deadlines_for(records: int) -> int:
    """Return the number of deadlines that a request has to be answered: one for every 32 records or part of them."""
    return max(1, -(-records // RECORDS_PER_DEADLINE))


# Upper ends of the latency buckets, in seconds; one more bucket holds longer times.
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True, kw_only=True)
class TrafficStats:
    """One server's counts for one version since a plan began.

    Parameters
    ----------
    model : str
    plan : int
        Sequence of the plan.
    server : str
        Name of the server; its processes are counted together.
    version : int
    records : int
        Records sent to the version, answered or not; copies to a shadow included.
    failures : int
        Records that it did not answer: it raised, took too long, or returned a number that is not finite.
    latencies : list of int, len(LATENCY_BUCKETS) + 1
        Units by the time of their first prediction in the server, divided by `deadlines_for` its records.
    scores : list of float
        Units by the scores of their first request, in buckets whose ends are in the version's request contract; the
        same buckets for all versions of a rollout, so that they can be compared. A request of n records adds 1/n to
        the bucket of each.
    requests : int
        Requests that the split assigned to this version, also those that another version answered after a failure;
        copies to a shadow included.
    seen, failed : str
        The cells of the units, and of those whose first request failed (`pack_cells`); empty for a plan of one version.
    """

    model: str
    plan: int
    server: str
    version: int
    requests: int = 0
    records: int = 0
    failures: int = 0
    latencies: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS) + 1))
    scores: list[float] = field(default_factory=list)
    seen: str = ""
    failed: str = ""

    @property
    def document(self) -> str:
        """The figures as canonical JSON."""
        return canonical_json(asdict(self))

    @classmethod
    def from_document(cls, text: str) -> "TrafficStats":
        """Read figures back from their canonical JSON."""
        return cls(**json.loads(text))


@dataclass(frozen=True, kw_only=True)
class ServerHeartbeat:
    """A sign of life of a server, with its state.

    `admin_address` is its admin port, ``http://host:port``; `says` holds the sequence of the plan that it follows, the
    loaded versions with their digests, the number of live workers, and True if it is stale. `number` counts the
    server's heartbeats since its start; it is None of a server that sends none. `age` is the time since the database
    has stored it, in seconds by the database's clock, negative after that was set back; None before it is stored.
    """

    model: str
    server: str
    admin_address: str
    says: dict[str, Any]
    number: int | None = None
    age: float | None = None
