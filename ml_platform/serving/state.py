"""The desired state of a host's workers: the versions to serve, as the supervisor selected them.

Workers receive it over their channel. It is also stored in ``state.json``, so a host that restarts while database and
MLflow are down continues with it; a full disk delays only this copy. The file proves nothing by itself: a worker loads
only model files that match the digests in it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ml_platform.errors import StorageError
from ml_platform.records.canonical import canonical_json
from ml_platform.records.traffic import Mode, TrafficPlan

STATE_FILE = "state.json"
# Sequence of a plan that is not in the database: that of a rollback which is not in the ledger yet.
OVERRIDE = 0


@dataclass(frozen=True, kw_only=True)
class ServedVersion:
    """A version and the digests that verify its files.

    Parameters
    ----------
    version : int
    candidate : str
        Names the folder of the local copy.
    model_digest : str
        Hex sha256 of the model's file, from the verdict that the ledger names.
    served_digest : str
        Hex sha256 of the list of the files that a server needs, which contains each file's sha256.
    """

    version: int
    candidate: str
    model_digest: str
    served_digest: str


@dataclass(frozen=True, kw_only=True)
class DesiredState:
    """The versions that a host has to serve, and the traffic plan between them.

    Parameters
    ----------
    model : str
    revision : int
        Number of the file's contents, one higher after each write; workers report the revision that they serve.
    plan : TrafficPlan
    arms : mapping of int to ServedVersion
        Versions to load: those of the plan whose files are on this host, and the target of a rollback.
    known : tuple of ServedVersion
        Earlier champions whose files are on this host, the newest last: possible targets of a rollback.
    deadline_ms : float
        Time that a successor has for each 32 records before the stable version answers instead, in milliseconds.
    ledger_head : tuple of (int, str)
        Sequence and digest of the ledger's last entry when this state was made.
    decision : int
        Sequence of the ledger's entry that made the champion.
    stale : str
        Reason why this state may be out of date; empty if it is not.
    override : str
        Id of the journal's rollback that this state follows and the ledger does not contain yet; empty if none.
    problems : mapping of int to str
        Reason why a version cannot be loaded, by version.
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
        """The version that gets all traffic now, or will when the rollout ends."""
        return self.plan.successor if self.plan.successor is not None else self.plan.stable

    def same_as(self, other: "DesiredState") -> bool:
        """Return True if two states differ at most in their revision."""
        return replace(self, revision=0) == replace(other, revision=0)

    @property
    def document(self) -> str:
        """The state as canonical JSON."""
        return canonical_json(
            {
                **asdict(self),
                "plan": json.loads(self.plan.document),
                "arms": {str(version): asdict(served) for version, served in self.arms.items()},
                "problems": {str(version): problem for version, problem in self.problems.items()},
            }
        )

    @classmethod
    def from_document(cls, text: str) -> "DesiredState":
        """Parse a state from its canonical JSON."""
        fields: dict[str, Any] = json.loads(text)
        sequence, digest = fields["ledger_head"]
        parsed = {
            "plan": TrafficPlan.from_document(json.dumps(fields["plan"])),
            "arms": {int(version): ServedVersion(**served) for version, served in fields["arms"].items()},
            "known": tuple(ServedVersion(**served) for served in fields["known"]),
            "ledger_head": (int(sequence), str(digest)),
            "problems": {int(version): problem for version, problem in fields["problems"].items()},
        }
        return cls(**{**fields, **parsed})


def override_plan(state: DesiredState, target: ServedVersion, *, journal: str, reason: str, actor: str) -> DesiredState:
    """Return the state after a rollback: the target version gets all traffic."""
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


def read_state(folder: Path) -> DesiredState | None:
    """Read the state in a folder; ``None`` if there is no file.

    Raises
    ------
    StorageError
        The file cannot be read, or was not written by the platform.
    """
    path = folder / STATE_FILE
    try:
        return DesiredState.from_document(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StorageError(
            f"Could not read the server's state in {path}: {error}. Delete the file: the server writes it again from "
            "the ledger."
        ) from error
