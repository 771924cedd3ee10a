"""Records of registrations, of the ledger, and of the registry's drift from it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from ml_platform.records.canonical import canonical_json, drop_defaults, sha256_text, versioned


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A candidate's version number in the registry."""

    model: str
    version: int
    candidate: str


class Action(StrEnum):
    """The action of a ledger entry. PROMOTION and ROLLBACK decide the champion.

    REPLACEMENT records a new version number of the champion: its version was deleted or changed in MLflow, and its
    bytes were registered again. ERASURE records the new digest of a version's served files after a person's data was
    erased from them.
    """

    REQUEST = "request"
    APPROVAL = "approval"
    PROMOTION = "promotion"
    ROLLBACK = "rollback"
    REPLACEMENT = "replacement"
    CONFIRMATION = "confirmation"
    ERASURE = "erasure"


# The actions that make their version the champion. A replacement keeps the candidate and changes its number.
DECISIONS = (Action.PROMOTION, Action.ROLLBACK, Action.REPLACEMENT)
# The schema version that an entry's digest covers, see `canonical`.
LEDGER_SCHEMA = 1
# The `previous_digest` of the first entry of every ledger.
GENESIS = "0" * 64


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One entry of the ledger: an action on a version, its evidence, its actor and its reason.

    `previous_version` is the champion that a decision replaces, for other actions the champion at that moment; None
    before the first promotion. `previous_digest` is the digest of the entry before, `GENESIS` in the first. `details`
    depend on the action: an approval has its `GivenApproval`; a promotion its approval's digest, the author's rollout
    and the version that it moves traffic from; an automatic rollback the figures that triggered it; a confirmation the
    sequence of the decision that it confirms; a replacement the number that it replaces; an erasure the digest of the
    served files.
    """

    model: str
    sequence: int
    action: str
    version: int
    previous_version: int | None
    candidate: str
    verdict_digest: str
    reason: str
    actor: str
    recorded_at: datetime
    details: dict[str, Any] = field(default_factory=dict)
    previous_digest: str = GENESIS

    @property
    def digest(self) -> str:
        """The hex sha256 of the canonical JSON of the schema version and the fields that differ from their defaults.

        The time is in UTC, to the microsecond.
        """
        time = self.recorded_at.astimezone(UTC).isoformat(timespec="microseconds")
        return sha256_text(canonical_json(versioned(LEDGER_SCHEMA, {**drop_defaults(self), "recorded_at": time})))

    @property
    def decides(self) -> bool:
        """True if this entry makes its version the champion."""
        return self.action in DECISIONS


@dataclass(frozen=True, kw_only=True)
class Person:
    """A person with an authenticated name; `identity` holds the evidence of the authentication."""

    name: str
    authenticated_by: str
    identity: dict[str, str]


def approval_audience(model: str, version: int, verdict_digest: str) -> str:
    """Return the text that binds GitHub's token to the approval of one verdict on one version."""
    return f"ml-platform:{model}:{version}:{verdict_digest}"


@dataclass(frozen=True, kw_only=True)
class GivenApproval:
    """A person's approval of one verdict; `digest` is that of its ledger entry."""

    version: int
    verdict_digest: str
    person: Person
    reason: str
    approved_at: datetime
    expires_at: datetime
    digest: str


@dataclass(frozen=True, kw_only=True)
class LedgerHead:
    """The last entry of a ledger, by sequence and digest, as an anchor outside the database recorded it."""

    model: str
    sequence: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class RegistrySnapshot:
    """The state of a model in MLflow at one moment.

    `aliases` are version numbers by name; `versions` holds the candidate in each version's tag, None without such a
    tag; `head` is the ledger's anchor, None if there is none.
    """

    aliases: dict[str, int] = field(default_factory=dict)
    versions: dict[int, str | None] = field(default_factory=dict)
    head: LedgerHead | None = None


class Alerting(StrEnum):
    """The alert that a difference raises: NONE none, EVENT one each time, ONCE one when it is first found.

    LASTING alerts as ONCE does, and its alert stays active in Alertmanager until the difference is repaired.
    """

    NONE = "none"
    EVENT = "event"
    ONCE = "once"
    LASTING = "lasting"


@dataclass(frozen=True, kw_only=True)
class RegistryDrift:
    """One difference between MLflow and the platform's records, and the platform's reaction.

    `what` is the kind of difference; `summary` describes difference and reaction in one sentence. `entry` is the ledger
    entry that the platform appended for it, None if it appended none.
    """

    model: str
    what: str
    version: int
    summary: str
    alerting: Alerting = Alerting.NONE
    entry: LedgerEntry | None = None

    @property
    def key(self) -> str:
        """The identity of this difference among those of the same model."""
        return f"{self.what} {self.version}"


@dataclass(frozen=True, kw_only=True)
class LedgerReport:
    """The result of verifying a ledger.

    `problems` prove that the ledger or its evidence was changed; `missing` names the anchors that were there and are
    gone; `behind` names the anchors that have not recorded its newest entry yet, `unread` the anchors that could not be
    read.
    """

    model: str
    entries: int
    problems: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
