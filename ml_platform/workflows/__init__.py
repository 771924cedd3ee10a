"""The stages composed, without Dagster: what `pipeline.py` puts into assets and the command line calls.

Each function is one step of a model's life. It can be run again after a crash at any point: what was done is found
and not done twice.
"""

from ml_platform.workflows.back import Return, go_back
from ml_platform.workflows.candidates import (
    current_candidate,
    golden_problems,
    pin_dataset,
    profile_dataset,
    train_candidate,
)
from ml_platform.workflows.evidence import evidence
from ml_platform.workflows.explain import explain
from ml_platform.workflows.following import End, Followed, Tested, check_version, follow_rollout
from ml_platform.workflows.forgotten import (
    is_forgotten,
    original_numbers,
    refuse_forgotten,
    remove_from_raw_batch,
)
from ml_platform.workflows.ingestion import keep_findings, keep_raw_batches, preview_batch, publish_batches
from ml_platform.workflows.judging import CURVES, Judgement, curves_of, judge_candidate
from ml_platform.workflows.landing import (
    ignored_files,
    land_files,
    landed,
    look_for_arrivals,
    waiting_arrivals,
)
from ml_platform.workflows.ledger import ledgers, verify_ledger
from ml_platform.workflows.people import authenticate, who
from ml_platform.workflows.platform import FORGET_KEY, Platform, alone
from ml_platform.workflows.predictions import (
    TakenPredictions,
    take_predictions,
    waiting_predictions,
    without_predictions,
)
from ml_platform.workflows.promotion import (
    approve_version,
    promote_version,
    register_candidate,
    require_reason,
    roll_back,
    show_champion,
    stage_version,
)
from ml_platform.workflows.reconciliation import alert, reconcile
from ml_platform.workflows.reproduction import Likeness, Reproduction, reproduce
from ml_platform.workflows.rollout import Traffic, described, step_rollout, traffic_of
from ml_platform.workflows.served import SERVED_FILES, SERVED_FOLDER, list_served_again
from ml_platform.workflows.slots import claim_slot
from ml_platform.workflows.status import status
from ml_platform.workflows.traffic import is_carried_out, keep_plan, living_servers, plan_in_force, unfinished_rollout

__all__ = [
    "CURVES",
    "FORGET_KEY",
    "SERVED_FILES",
    "SERVED_FOLDER",
    "End",
    "Followed",
    "Judgement",
    "Likeness",
    "Platform",
    "Reproduction",
    "Return",
    "TakenPredictions",
    "Tested",
    "Traffic",
    "alert",
    "alone",
    "approve_version",
    "authenticate",
    "check_version",
    "claim_slot",
    "current_candidate",
    "curves_of",
    "described",
    "evidence",
    "explain",
    "follow_rollout",
    "go_back",
    "golden_problems",
    "ignored_files",
    "is_carried_out",
    "is_forgotten",
    "judge_candidate",
    "keep_findings",
    "keep_plan",
    "keep_raw_batches",
    "land_files",
    "landed",
    "ledgers",
    "list_served_again",
    "living_servers",
    "look_for_arrivals",
    "original_numbers",
    "pin_dataset",
    "plan_in_force",
    "preview_batch",
    "profile_dataset",
    "promote_version",
    "publish_batches",
    "reconcile",
    "refuse_forgotten",
    "register_candidate",
    "remove_from_raw_batch",
    "reproduce",
    "require_reason",
    "roll_back",
    "show_champion",
    "stage_version",
    "status",
    "step_rollout",
    "take_predictions",
    "traffic_of",
    "train_candidate",
    "unfinished_rollout",
    "verify_ledger",
    "waiting_arrivals",
    "waiting_predictions",
    "who",
    "without_predictions",
]
