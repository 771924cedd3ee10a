"""Which version answers which request: the traffic plan, as the database keeps it and the servers obey it.

Champion is the version that the ledger last promoted; a plan says how far traffic has moved to it from the champion
before. A plan names versions and nothing else: their bytes are those that the ledger's verdicts name.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from ml_platform.records import canonical_json


class Mode(StrEnum):
    """How traffic is divided.

    ALL: one version answers everything. CANARY: the successor answers a share that grows by steps. AB: it answers a
    fixed share until enough was seen. SHADOW: it is asked beside the other, and its answers are logged only.
    """

    ALL = "all"
    CANARY = "canary"
    AB = "ab"
    SHADOW = "shadow"


@dataclass(frozen=True, kw_only=True)
class TrafficPlan:
    """Who answers at one moment.

    Parameters
    ----------
    model : str
    sequence : int
        Counts a model's plans from 1; a plan replaces the one before it (compare and set).
    decision : int
        Sequence of the ledger's entry that made the champion: a plan of an earlier decision is out of date.
    mode : Mode
    stable : int
        The version that answers what the successor does not, and in its place where it fails.
    successor : int or None
        The champion on its way in; ``None`` for ALL.
    share : float
        Share of the keys that the successor answers, 0 to 1; 0 for ALL and SHADOW.
    step : int
        Index of the rollout's step, from 0.
    salt : str
        Text hashed with each key, the same for a whole rollout: a key that met the successor goes on meeting it when
        the share grows.
    since : datetime
        When this plan was made, in UTC.
    reason, actor : str
        Why, and who made it.
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
        """The versions that must be loaded, the stable one first."""
        return (self.stable,) if self.successor is None else (self.stable, self.successor)

    @property
    def under_way(self) -> bool:
        """Whether traffic is on its way from one version to another."""
        return self.successor is not None

    def version_for(self, key: str) -> int:
        """Return the version that answers a key: always the same one while the plan stands."""
        if self.successor is None or self.mode is Mode.SHADOW or place_of(key, self.salt) >= self.share:
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


def place_of(key: str, salt: str) -> float:
    """Return where a key lies in [0, 1): evenly spread, the same on every host and in every process."""
    digest = hashlib.blake2b(f"{salt}\n{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


# Upper ends of the buckets of latencies in seconds, and one more bucket for what took longer.
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True, kw_only=True)
class TrafficFigures:
    """What one server counted of one version since a plan began.

    Parameters
    ----------
    model : str
    plan : int
        Sequence of the plan.
    server : str
        Name of the server, its processes together.
    version : int
    records : int
        Records that the version was asked for, answered or not; of a shadow too.
    failures : int
        Those of them that it did not answer: it raised, took too long, or said what is no finite number.
    latencies : list of int, len(LATENCY_BUCKETS) + 1
        Records by the time that their prediction took in the server.
    scores : list of int
        Records by score, between the ends that the version's request contract names; one list for all versions of a
        rollout, so that they can be compared.
    requests : int
        Requests that the split gave to this version, whoever answered in the end: what a sample-ratio test counts.
    """

    model: str
    plan: int
    server: str
    version: int
    requests: int = 0
    records: int = 0
    failures: int = 0
    latencies: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS) + 1))
    scores: list[int] = field(default_factory=list)

    @property
    def document(self) -> str:
        """The figures as canonical JSON."""
        return canonical_json(asdict(self))

    @classmethod
    def from_document(cls, text: str) -> "TrafficFigures":
        """Read figures back from their canonical JSON."""
        return cls(**json.loads(text))


@dataclass(frozen=True, kw_only=True)
class ServerBeat:
    """That a server was alive, and what it served.

    `admin_address` is its admin port, ``http://host:port``; `says` holds the sequence of the plan that it obeys, the
    loaded versions with their digests, the number of live workers and whether it is stale.
    """

    model: str
    server: str
    admin_address: str
    says: dict[str, Any]
    seen_at: datetime | None = None
