"""Store the files that a server needs of a candidate when it is judged, and list them again after an erasure."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ml_platform.inference import contract_builder, golden_requests, parity, served_files
from ml_platform.inference.parity import PARITY_FILE, Parity
from ml_platform.inference.predictor import Predictor
from ml_platform.inference.served_files import CONTRACT_FILE, SERVED_LIST
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.verdict import Candidate
from ml_platform.storage import atomic_files
from ml_platform.storage.model_files import MODEL_FILE

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ml_platform")

SERVED_FILES = (MODEL_FILE, golden_requests.GOLDEN_REQUESTS, golden_requests.GOLDEN_ANSWERS, CONTRACT_FILE, PARITY_FILE)
# Their folder among the artifacts of the candidate's MLflow run.
SERVED_FOLDER = "serving"


def store_served_files(
    platform: Platform,
    spec: ModelSpec,
    candidate: Candidate,
    predictor: Predictor,
    rows: "tuple[pd.DataFrame, pd.DataFrame]",
) -> Parity:
    """Store the request contract and the parity check of a candidate, and list all files that a server needs.

    The model file and the golden requests must be in the candidate's folder already.

    Parameters
    ----------
    platform : Platform
    spec : ModelSpec
    candidate : Candidate
    predictor : Predictor
        The candidate's model.
    rows : tuple of DataFrame, each of shape (n_samples, n_columns)
        The training rows and the holdout.
    """
    trained, holdout = rows
    folder, features = platform.candidate_folder(candidate), holdout[spec.features]
    contract = contract_builder.build_request_contract(spec, predictor.pipeline, trained, predictor.scores(features))
    result = parity.compare(predictor, contract, features)
    atomic_files.write(folder / CONTRACT_FILE, contract.document.encode())
    atomic_files.write(folder / PARITY_FILE, result.document.encode())
    platform.database.record_served(candidate.id, served_files.write_list(folder, SERVED_FILES))
    log.info("fast path: %s", "same bits as the pipeline" if result.passed else result.why)
    return result


def remove_served_list(folder: Path) -> None:
    """Remove the list of a candidate's files, without which no server loads them."""
    (folder / SERVED_LIST).unlink(missing_ok=True)


def served_bytes(platform: Platform, candidate: Candidate) -> dict[str, bytes]:
    """Return the contents of the files that a server needs of a candidate, by their path among its MLflow artifacts.

    The model file is included. The result is empty if a file is missing, because the candidate was judged before these
    files existed or its golden requests were removed.
    """
    folder, names = platform.candidate_folder(candidate), (*SERVED_FILES, SERVED_LIST)
    if not all((folder / name).is_file() for name in names):
        return {}
    return {f"{SERVED_FOLDER}/{name}": (folder / name).read_bytes() for name in names}


def list_served_again(platform: Platform, candidate: Candidate) -> bool:
    """List a candidate's files again if they changed; return True if they did.

    MLflow receives the files before the database records the list's digest, so that a call after a crash in between
    notices the difference and finishes.

    Raises
    ------
    RegistryError
        MLflow did not store the files; call it again.
    """
    folder = platform.candidate_folder(candidate)
    if candidate.served_digest is None:
        return False
    with suppress(FileNotFoundError):
        _, digest = served_files.list_files(folder, SERVED_FILES)
        if digest == candidate.served_digest:
            return False
        served_files.write_list(folder, SERVED_FILES)
        if candidate.mlflow_run_id is not None:
            platform.registry.show_files(candidate.mlflow_run_id, served_bytes(platform, candidate))
        platform.database.record_served_again(candidate, digest)
        return True
    return False
