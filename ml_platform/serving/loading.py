"""Load a version from its kept copy: digests first, then the model, then its golden requests are replayed.

A version that fails here never gets traffic; what it failed at is a typed error.
"""

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_platform.errors import ConfigurationError, ModelError, PredictionError, UncompiledError
from ml_platform.predictor import MODEL_FILE, Answers, Predictor, RecordPredictor, load
from ml_platform.request_contract import Record, RequestContract
from ml_platform.serving import copies
from ml_platform.serving.formats import Formats
from ml_platform.serving.prediction_log import LoggedVersion
from ml_platform.serving.state import ServedVersion
from ml_platform.stages import parity
from ml_platform.stages.served import CONTRACT_FILE
from ml_platform.stages.staging import GOLDEN_ANSWERS, GOLDEN_REQUESTS

log = logging.getLogger("ml_platform.serving")

# Golden answers were given by the machine that judged: another one's libraries may round the last bit otherwise.
NEAR = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A version that is ready to answer.

    Parameters
    ----------
    served : ServedVersion
    contract : RequestContract
    formats : Formats
        Reads requests that keep the contract.
    predict : callable
        Takes a list of records and returns their `Answers`; may raise whatever the model raises.
    way : str
        How it predicts: ``compiled`` or ``frame``.
    logged : LoggedVersion
        What the prediction log says of it.
    seconds : float
        How long loading it took.
    """

    served: ServedVersion
    contract: RequestContract
    formats: Formats
    predict: Callable[[list[Record]], Answers]
    way: str
    logged: LoggedVersion
    seconds: float

    @property
    def version(self) -> int:
        """Its number."""
        return self.served.version


def load_version(home: Path, model: str, served: ServedVersion) -> Loaded:
    """Load a version, and warm it up with its golden requests.

    Parameters
    ----------
    home : Path
        The folder of the model's server, with the kept copies.
    model : str
    served : ServedVersion

    Raises
    ------
    DigestMismatchError
        A file is not the one that was judged; nothing was deserialised.
    ModelError
        The model cannot be loaded, or answers otherwise than when it was judged.
    """
    began = time.monotonic()
    folder = copies.copy_folder(home, served)
    copies.verify(folder, served)
    predictor = load(folder / MODEL_FILE, served.model_digest)
    contract = _contract(folder)
    asked = _way_to_predict(predictor, contract, folder)
    way = "compiled" if asked.fast else "frame"
    _warm_up(predictor, asked, folder, served)
    seconds = time.monotonic() - began
    log.info("version %s of %s is loaded and warm after %.2f s (%s)", served.version, model, seconds, way)
    return Loaded(
        served=served,
        contract=contract,
        formats=Formats(contract),
        predict=asked.predict_records,
        way=way,
        logged=LoggedVersion(contract=contract, version=served.version, digest=served.model_digest),
        seconds=seconds,
    )


def _contract(folder: Path) -> RequestContract:
    try:
        return RequestContract.from_document((folder / CONTRACT_FILE).read_text())
    except (ConfigurationError, OSError, ValueError) as error:
        raise ModelError(f"The request contract in {folder} cannot be read: {error}.") from error


def _way_to_predict(predictor: Predictor, contract: RequestContract, folder: Path) -> RecordPredictor:
    """Return the compiled way where a parity check of this very compiler found it equal, else DataFrames."""
    path = folder / parity.PARITY_FILE
    try:
        found = parity.Parity.from_document(path.read_text()) if path.exists() else None
        return parity.way_to_predict(predictor, contract, found)
    except (UncompiledError, OSError, ValueError, TypeError) as error:
        log.warning("%s says nothing that can be used, so DataFrames are: %s", path, error)
        return predictor.for_records(contract, None)


def _warm_up(
    predictor: Predictor,
    asked: RecordPredictor,
    folder: Path,
    served: ServedVersion,
) -> None:
    """Replay the golden requests, in the way that requests will be answered and in the way that was judged."""
    import pandas as pd

    requests = pd.read_parquet(folder / GOLDEN_REQUESTS)
    expected = json.loads((folder / GOLDEN_ANSWERS).read_text())
    if requests.empty:  # everybody in them was forgotten
        return
    records = asked.contract.records_of(requests)
    judged = _said(
        lambda: Answers(predictor.scores(requests).tolist(), predictor.predictions(requests).tolist()), served
    )
    answers = _said(lambda: asked.predict_records(records), served)
    for said in (judged, answers):
        _require_same(said, expected, served)


def _said(asked: Callable[[], Answers], served: ServedVersion) -> Answers:
    # A model's code may raise whatever it likes: the future catches it.
    with ThreadPoolExecutor(max_workers=1) as thread:
        called = thread.submit(asked)
        error = called.exception()
    if error is not None:
        raise PredictionError(
            f"Version {served.version} could not answer its golden requests: {type(error).__name__}: {error}"
        ) from error
    return called.result()


def _require_same(said: Answers, expected: dict[str, list[Any]], served: ServedVersion) -> None:
    import numpy as np

    same = said.predictions == expected["predictions"] and np.allclose(
        said.scores, expected["scores"], rtol=NEAR, atol=NEAR
    )
    if not same:
        raise ModelError(f"Version {served.version} answers its golden requests otherwise than when it was judged.")
