"""What a server needs of a candidate: written when it is judged, shown in MLflow, again when somebody is forgotten."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ml_platform import durable
from ml_platform.model_spec import ModelSpec
from ml_platform.predictor import MODEL_FILE, Predictor
from ml_platform.records import Candidate
from ml_platform.stages import contracting, parity, served, staging
from ml_platform.stages.parity import PARITY_FILE, Parity
from ml_platform.stages.served import CONTRACT_FILE, SERVED_LIST
from ml_platform.workflows.platform import Platform

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ml_platform")

SERVED_FILES = (MODEL_FILE, staging.GOLDEN_REQUESTS, staging.GOLDEN_ANSWERS, CONTRACT_FILE, PARITY_FILE)
# Where they stand among the artifacts of the candidate's MLflow run.
SERVED_FOLDER = "serving"


def keep_served_files(
    platform: Platform,
    spec: ModelSpec,
    candidate: Candidate,
    predictor: Predictor,
    rows: "tuple[pd.DataFrame, pd.DataFrame]",
) -> Parity:
    """Store the request contract and the parity check of a candidate, and list all files that a server needs.

    Its model and golden requests stand in its folder already.

    Parameters
    ----------
    rows : tuple of DataFrame, each of shape (n_samples, n_columns)
        The training rows and the holdout.
    """
    trained, holdout = rows
    folder, features = platform.candidate_folder(candidate), holdout[spec.features]
    contract = contracting.contract_of(spec, predictor.pipeline, trained, predictor.scores(features))
    found = parity.compare(predictor, contract, features)
    durable.write(folder / CONTRACT_FILE, contract.document.encode())
    durable.write(folder / PARITY_FILE, found.document.encode())
    platform.database.record_served(candidate.id, served.write_list(folder, SERVED_FILES))
    log.info("fast path: %s", "agrees to the bit" if found.passed else found.why)
    return found


def remove_served_list(folder: Path) -> None:
    """Remove the list of a candidate's files: without it no server takes them."""
    (folder / SERVED_LIST).unlink(missing_ok=True)


def served_bytes(platform: Platform, candidate: Candidate) -> dict[str, bytes]:
    """Return the files that a server needs of a candidate, by their place among the artifacts of its MLflow run.

    The model itself is among them, so that one folder holds all. Empty where one is missing: of a candidate that was
    judged before there were such files, or whose golden requests were taken back.
    """
    folder, names = platform.candidate_folder(candidate), (*SERVED_FILES, SERVED_LIST)
    if not all((folder / name).is_file() for name in names):
        return {}
    return {f"{SERVED_FOLDER}/{name}": (folder / name).read_bytes() for name in names}


def list_served_again(platform: Platform, candidate: Candidate) -> bool:
    """List a candidate's files again where they are no longer those that are listed; return whether they were not.

    MLflow has them before the database names their digest: what a crash in between leaves is found again.

    Raises
    ------
    RegistryError
        MLflow could not take them; run it again.
    """
    folder = platform.candidate_folder(candidate)
    if candidate.served_digest is None:
        return False
    with suppress(FileNotFoundError):
        _, digest = served.list_files(folder, SERVED_FILES)
        if digest == candidate.served_digest:
            return False
        served.write_list(folder, SERVED_FILES)
        if candidate.mlflow_run_id is not None:
            platform.registry.show_files(candidate.mlflow_run_id, served_bytes(platform, candidate))
        platform.database.record_served(candidate.id, digest)
        return True
    return False
