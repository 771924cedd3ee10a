"""What a host's workers are to serve, as the supervisor leaves it for them in one file.

``state.json`` is written whole or not at all, and is on the disk before anybody is told of it: a host that restarts
while database and MLflow are down goes on with it. Nothing in it is believed further than its digests: what a worker
loads must have them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ml_platform import durable
from ml_platform.errors import StorageError
from ml_platform.records import canonical_json
from ml_platform.traffic import Mode, TrafficPlan

STATE_FILE = "state.json"
# The sequence of a plan that no database holds: that of a rollback which the ledger has not heard of yet.
OVERRIDE = 0


@dataclass(frozen=True, kw_only=True)
class ServedVersion:
    """A version with what proves its files.

    Parameters
    ----------
    version : int
    candidate : str
        Names the folder of its kept copy.
    model_digest : str
        Hex sha256 of the model's file, as the verdict that the ledger names says.
    served_digest : str
        Hex sha256 of the list of the files that a server needs, each with its own.
    """

    version: int
    candidate: str
    model_digest: str
    served_digest: str


@dataclass(frozen=True, kw_only=True)
class DesiredState:
    """What a host is to serve.

    Parameters
    ----------
    model : str
    revision : int
        Counts what was written to the file; a worker says which one it obeys.
    plan : TrafficPlan
    arms : mapping of int to ServedVersion
        What must be loaded: the versions of the plan whose files are here, and what a rollback would return to.
    known : tuple of ServedVersion
        The champions that stand before the present one, the newest last, whose files are here: a rollback may go there.
    deadline_ms : float
        How long a successor may take before the stable version answers in its place.
    ledger_head : tuple of (int, str)
        Sequence and digest of the last entry that was seen of the ledger.
    decision : int
        Sequence of the ledger's entry that made the champion.
    stale : str
        Why this may be out of date; empty if it is not.
    override : str
        The rollback of the journal that this follows and the ledger does not say yet; empty if there is none.
    """

    model: str
    revision: int
    plan: TrafficPlan
    arms: Mapping[int, ServedVersion]
    known: tuple[ServedVersion, ...] = ()
    deadline_ms: float = 1_000.0
    ledger_head: tuple[int, str] = (0, "")
    decision: int = 0
    stale: str = ""
    override: str = ""
    problems: Mapping[int, str] = field(default_factory=dict)

    @property
    def champion(self) -> int:
        """The version that traffic is on its way to, or has arrived at."""
        return self.plan.successor if self.plan.successor is not None else self.plan.stable

    def same_as(self, other: "DesiredState") -> bool:
        """Whether two states ask for the same, whatever their revisions are."""
        return replace(self, revision=0) == replace(other, revision=0)

    @property
    def document(self) -> str:
        """The state as canonical JSON."""
        return canonical_json(
            {
                **asdict(self),
                "plan": json.loads(self.plan.document),
                "arms": {str(version): asdict(arm) for version, arm in self.arms.items()},
                "problems": {str(version): problem for version, problem in self.problems.items()},
            }
        )

    @classmethod
    def from_document(cls, text: str) -> "DesiredState":
        """Read a state back from its canonical JSON."""
        fields: dict[str, Any] = json.loads(text)
        sequence, digest = fields["ledger_head"]
        read = {
            "plan": TrafficPlan.from_document(json.dumps(fields["plan"])),
            "arms": {int(version): ServedVersion(**arm) for version, arm in fields["arms"].items()},
            "known": tuple(ServedVersion(**one) for one in fields["known"]),
            "ledger_head": (int(sequence), str(digest)),
            "problems": {int(version): problem for version, problem in fields["problems"].items()},
        }
        return cls(**{**fields, **read})


def overridden(state: DesiredState, target: ServedVersion, *, journal: str, reason: str, actor: str) -> DesiredState:
    """Return the state in which one version answers everything, because somebody rolled back to it."""
    plan = replace(
        state.plan,
        sequence=OVERRIDE,
        mode=Mode.ALL,
        stable=target.version,
        successor=None,
        share=0.0,
        step=0,
        reason=reason,
        actor=actor,
    )
    return replace(state, plan=plan, arms={**state.arms, target.version: target}, override=journal)


def write_state(folder: Path, state: DesiredState) -> None:
    """Leave a state for the workers of a host; it is on the disk when this returns.

    Raises
    ------
    StorageError
        It could not be written; the one before is still there.
    """
    durable.write(folder / STATE_FILE, state.document.encode())


def read_state(folder: Path) -> DesiredState | None:
    """Return the state that was left in a folder; ``None`` where there is none.

    Raises
    ------
    StorageError
        The file is not what the platform wrote.
    """
    path = folder / STATE_FILE
    try:
        return DesiredState.from_document(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StorageError(
            f"{path} is not what the platform wrote: {error}. Remove it: the server makes it again from the ledger."
        ) from error
