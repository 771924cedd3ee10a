"""The values that stages hand to each other: frozen, without behaviour beyond naming themselves."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from ml_platform.errors import ConfigurationError
from ml_platform.model_spec import safe_name

SLOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._-]{0,63}")
LONGEST_REASON = 255


def now() -> datetime:
    """Return the time in UTC, aware."""
    return datetime.now(UTC)


def canonical_json(value: Any) -> str:
    """Write a value so that equal values give equal text: sorted keys, no spaces, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def sha256_text(text: str) -> str:
    """Return the hex sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """One file found in the landing zone; `etag` is empty where the zone gives files none."""

    model: str
    name: str
    size: int
    mtime_ns: int
    etag: str = ""

    @property
    def key(self) -> str:
        """The partition key: a slug and 12 hex digits of sha256 over path, size, and etag, else mtime."""
        identity = f"{self.model}/{self.name}\n{self.size}\n{self.etag or self.mtime_ns}"
        return f"{re.sub(r'[^A-Za-z0-9]+', '-', self.name)[:40].strip('-')}-{sha256_text(identity)[:12]}"


class Outcome(StrEnum):
    """What became of an arrival."""

    PUBLISHED = "published"
    QUARANTINED = "quarantined"
    DUPLICATE = "duplicate"


@dataclass(frozen=True, kw_only=True)
class RawBatch:
    """The bytes of an arrival as they came, stored once under their sha256.

    `promised_sha256` is what the manifest of the file names; None where there is no manifest.
    `removed` are the numbers of rows that were taken out since they were validated, because someone was forgotten:
    findings go on counting them.
    """

    arrival: Arrival
    sha256: str
    path: str
    promised_sha256: str | None = None
    removed: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """What became of one arrival, and why.

    `rules` counts the findings of every rule, by data check; `examples` are up to five of them a check, as sentences;
    `dataset_version` is None where nothing was published.
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


@dataclass(frozen=True, kw_only=True)
class Release:
    """Rows of an arrival that were quarantined and passed later; `number` counts an arrival's releases from 1."""

    model: str
    arrival: str
    number: int
    rows: int
    dataset_version: int | None
    actor: str
    released_at: datetime


@dataclass(frozen=True, kw_only=True)
class Tombstone:
    """That an entity was forgotten, without saying who: a keyed digest, and the digest of the key.

    `completed_at` is None while the deletion is under way; `figures` counts what lost the entity.
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


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a candidate was made of; every field is a digest, a number or a name that can be checked."""

    dataset_version: int
    dataset_digest: str
    code_revision: str
    lock_digest: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model just trained; `run_id` is the Dagster run that did it, None outside Dagster.

    `actor` is the person who asked for the training, as ``name@where``; None where the platform did by itself.
    `forgotten_at` says since when it cannot be reproduced: rows it was trained on were forgotten; None if it can.
    `served_digest` is that of the list of the files that a server needs of it, None before it was judged.
    """

    id: str
    model: str
    model_digest: str
    lineage: Lineage
    trained_at: datetime
    run_id: str | None = None
    mlflow_run_id: str | None = None
    forgotten_at: datetime | None = None
    actor: str | None = None
    served_digest: str | None = None


class GateOutcome(StrEnum):
    """The result of a gate. Only PASS passes."""

    PASS = "PASS"  # noqa: S105 - a result, no password
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number that was measured of a model, where, and between which bounds it may lie.

    Parameters
    ----------
    metric : str
    value, low, high : float or None
        Two-sided bounds at 90 %, so that each alone is a one-sided 95 % bound; of a time, the range that noise leaves.
        None where it cannot be told.
    rows : int or None
        How many rows of the dataset are in the slice; None for what rests on no rows, as a file's size.
    dataset : str
        ``holdout`` or the name of a golden dataset.
    slice : str
        The slice's name; empty for all rows.
    method : str
        How the bounds were found.
    reason : str
        Why a number is None; empty where all are there.
    """

    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    rows: int | None = None
    dataset: str = "holdout"
    slice: str = ""
    method: str = ""
    reason: str = ""

    @property
    def label(self) -> str:
        """The name that MLflow shows and takes: ``holiday/plan_paid/auc_roc``."""
        where = [] if self.dataset == "holdout" else [self.dataset]
        part = [safe_name(self.slice)] if self.slice else []
        return "/".join([*where, *part, self.metric])


@dataclass(frozen=True, kw_only=True)
class Rival:
    """Whom a candidate was compared with on the same rows, and what came of it.

    Parameters
    ----------
    kind : str
        ``champion`` or ``baseline``.
    name : str
        ``version 3``, or the baseline as the author declares it.
    version, model_digest : int, str or None
        Of the champion whose bytes answered. None for a baseline.
    metric : str
    rows : int
        The rows of the holdout that neither of the two was trained on.
    difference, low, high : float or None
        How much better the candidate is; bounds one-sided at the comparison's confidence. None where it cannot be told.
    p_better : float or None
        One-sided p-value of "the candidate is not better".
    method, reason : str
        As in `Figure`.
    figures : list of Figure
        The rival's own figures, on all places where the candidate's were measured.
    """

    kind: str
    name: str
    metric: str
    version: int | None = None
    model_digest: str | None = None
    rows: int = 0
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_better: float | None = None
    method: str = ""
    reason: str = ""
    figures: list[Figure] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that was measured of one candidate; its gates' results follow from this alone.

    `champion` is the version that was champion at that time, whoever the rival is; None where there was none.
    `rival` is None where the author asks for no comparison.
    """

    figures: list[Figure]
    rival: Rival | None = None
    champion: int | None = None


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """One gate, applied to one candidate.

    `name` is that of the check. `value` is what decided, in the slice that decided; None where it cannot be told.
    """

    name: str
    condition: str
    value: float | None
    outcome: GateOutcome
    why: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Every gate's result for one candidate, bound by digest to what it speaks of.

    `split`, `slices` and `baseline` say in words what `gates_digest` binds with the gates: how the holdout was made,
    which parts of it were measured, and what the first model must beat.
    """

    candidate: str
    model: str
    model_digest: str
    dataset_version: int
    dataset_digest: str
    gates_digest: str
    code_revision: str
    lock_digest: str
    split: str
    slices: list[str]
    baseline: str
    findings: Findings
    results: list[GateResult]

    @property
    def passed(self) -> bool:
        """Whether there is at least one gate and every one passed."""
        return bool(self.results) and all(result.outcome is GateOutcome.PASS for result in self.results)

    @property
    def metrics(self) -> dict[str, float]:
        """Every number by the name that MLflow shows it under, bounds as ``NAME.low`` and ``NAME.high``."""
        numbers = {
            f"{figure.label}{suffix}": number
            for figure in self.findings.figures
            for suffix, number in (("", figure.value), (".low", figure.low), (".high", figure.high))
        }
        return {name: number for name, number in numbers.items() if number is not None}

    @property
    def document(self) -> str:
        """The verdict as canonical JSON."""
        return canonical_json(asdict(self))

    @property
    def digest(self) -> str:
        """The hex sha256 of the canonical JSON."""
        return sha256_text(self.document)

    @classmethod
    def from_document(cls, text: str) -> "Verdict":
        """Read a verdict back from its canonical JSON."""
        fields = json.loads(text)
        results = [GateResult(**{**row, "outcome": GateOutcome(row["outcome"])}) for row in fields.pop("results")]
        findings = _findings(fields.pop("findings"))
        return cls(**fields, findings=findings, results=results)


def _findings(fields: dict[str, Any]) -> Findings:
    rival = fields["rival"]
    return Findings(
        figures=_figures(fields["figures"]),
        rival=rival and Rival(**{**rival, "figures": _figures(rival["figures"])}),
        champion=fields["champion"],
    )


def _figures(rows: list[dict[str, Any]]) -> list[Figure]:
    return [Figure(**row) for row in rows]


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A candidate's number in the registry."""

    model: str
    version: int
    candidate: str


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What a retraining is unique by.

    Parameters
    ----------
    model, reason : str
    slot : str
        For a schedule its time in UTC, ``2026-11-23T02:00Z``; for new rows the dataset version and the try,
        ``version-3-try-1``; else a name that whoever asks gives.

    Raises
    ------
    ConfigurationError
        The slot is no such name, or the reason is longer than a database's key.
    """

    model: str
    reason: str
    slot: str

    def __post_init__(self) -> None:
        """Refuse what could not be stored as a key."""
        if not SLOT.fullmatch(self.slot):
            raise ConfigurationError(
                "--slot must be `due` or at most 64 letters, digits, dots, colons, dashes and underscores. Got "
                f"{self.slot!r} instead."
            )
        if len(self.reason) > LONGEST_REASON:
            raise ConfigurationError(
                f"The reason of a slot must have at most {LONGEST_REASON} characters. Got {len(self.reason)} instead."
            )


def slot_name(time: datetime) -> str:
    """Return the slot of a schedule's tick: its time in UTC to the minute, whatever zone it is told in."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%MZ}"


class Action(StrEnum):
    """What an entry of the ledger says. PROMOTION and ROLLBACK decide who is champion.

    REPLACEMENT says that the champion's bytes, whose version was deleted or changed in MLflow, stand there again under
    another number.
    """

    REQUEST = "request"
    APPROVAL = "approval"
    PROMOTION = "promotion"
    ROLLBACK = "rollback"
    REPLACEMENT = "replacement"
    CONFIRMATION = "confirmation"


# Whose version is champion from the entry on. A replacement keeps the candidate and gives it another number.
DECISIONS = (Action.PROMOTION, Action.ROLLBACK, Action.REPLACEMENT)
# What the first entry of every ledger names as the digest of the entry before it.
GENESIS = "0" * 64


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One line of the ledger: what is said of which version, on which evidence, by whom and why.

    `previous_version` is the champion that a decision replaces, for other actions the champion at that moment; None
    before the first. `previous_digest` is that of the entry before, `GENESIS` in the first. `details` hold what only
    some actions have: an approval its `GivenApproval`, a promotion its approval's digest, the author's rollout and the
    version that it moves traffic from, a rollback the figures that decided where no person did, a confirmation the
    sequence of the decision that it confirms, a replacement the number that it replaces.
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
        """The hex sha256 of the canonical JSON of all fields; the time is in UTC, to the microsecond."""
        time = self.recorded_at.astimezone(UTC).isoformat(timespec="microseconds")
        return sha256_text(canonical_json({**asdict(self), "recorded_at": time}))

    @property
    def decides(self) -> bool:
        """Whether its version is champion from this entry on."""
        return self.action in DECISIONS


@dataclass(frozen=True, kw_only=True)
class Person:
    """Somebody whose name was authenticated; `identity` is what that rests on."""

    name: str
    authenticated_by: str
    identity: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class GivenApproval:
    """A person's approval of one verdict; `digest` is that of the ledger's entry that holds it."""

    version: int
    verdict_digest: str
    person: Person
    reason: str
    approved_at: datetime
    expires_at: datetime
    digest: str


@dataclass(frozen=True, kw_only=True)
class LedgerHead:
    """How far a ledger went, as an anchor outside the database says; its entry had this digest."""

    model: str
    sequence: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class ShownModel:
    """What MLflow shows of a model at one moment.

    `aliases` are numbers by name; `versions` the candidate that each version's tag names, None where there is no such
    tag; `head` is the ledger's anchor, None where there is none.
    """

    aliases: dict[str, int] = field(default_factory=dict)
    versions: dict[int, str | None] = field(default_factory=dict)
    head: LedgerHead | None = None


class Alerting(StrEnum):
    """Who is told of a finding: NONE nobody, EVENT a person each time, ONCE a person when it is first found.

    LASTING is as ONCE, and Alertmanager is told until it is mended.
    """

    NONE = "none"
    EVENT = "event"
    ONCE = "once"
    LASTING = "lasting"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One difference between MLflow and the platform's records, and what was done about it.

    `what` names the kind, `summary` says both in one sentence. `entry` is the decision that came of it, None if none
    did.
    """

    model: str
    what: str
    version: int
    summary: str
    alerting: Alerting = Alerting.NONE
    entry: LedgerEntry | None = None

    @property
    def key(self) -> str:
        """What tells it from other findings of the same model."""
        return f"{self.what} {self.version}"


@dataclass(frozen=True, kw_only=True)
class LedgerReport:
    """What came of verifying a ledger.

    `problems` are proof that it was changed; `behind` names the anchors that have not followed it yet, `unread`
    those that could not be asked.
    """

    model: str
    entries: int
    problems: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
