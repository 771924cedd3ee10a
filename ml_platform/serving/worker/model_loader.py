"""Loads a version from its local copy: verifies digests, loads the model, and replays its golden requests.

A version that fails one of these steps gets no traffic; the failure is a typed error.
"""

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.errors import ConfigurationError, ModelError, PredictionError, UnsupportedPipelineError
from ml_platform.inference import parity
from ml_platform.inference.golden_requests import GOLDEN_ANSWERS, GOLDEN_REQUESTS
from ml_platform.inference.predictor import Answers, Predictor, RecordPredictor, load
from ml_platform.inference.request_contract import Record, RequestContract
from ml_platform.inference.served_files import CONTRACT_FILE
from ml_platform.monitoring.prediction_log.writer import LoggedVersion
from ml_platform.safe_text import describe_without_values
from ml_platform.serving import version_cache
from ml_platform.serving.http.wire_formats import Formats
from ml_platform.serving.state import ServedVersion
from ml_platform.storage.model_files import MODEL_FILE

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ml_platform.serving")

# Golden answers may come from another machine, whose libraries may round the last bit differently.
TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A version that is ready to predict.

    Parameters
    ----------
    served : ServedVersion
    contract : RequestContract
    formats : Formats
        Reads the requests.
    predict : callable
        Takes a list of records and returns their `Answers`; raises any exception of the model.
    predict_frame : callable or None
        Takes a DataFrame and returns arrays of scores and predictions; raises any exception of the model.
    way : str
        Its way to predict: ``compiled`` or ``frame``.
    logged : LoggedVersion
        Its description in the prediction log.
    seconds : float
        Duration of the loading, in seconds.
    """

    served: ServedVersion
    contract: RequestContract
    formats: Formats
    predict: Callable[[list[Record]], Answers]
    way: str
    logged: LoggedVersion
    seconds: float
    predict_frame: "Callable[[pd.DataFrame], tuple[Any, Any]] | None" = None

    @property
    def version(self) -> int:
        """Its version number."""
        return self.served.version


def load_version(home: Path, model: str, served: ServedVersion) -> Loaded:
    """Load a version, and warm it up with its golden requests.

    Parameters
    ----------
    home : Path
        The folder of the model's server, with the local copies.
    model : str
    served : ServedVersion

    Raises
    ------
    DigestMismatchError
        A file does not match its digest; no file was deserialised.
    ModelError
        The model cannot be loaded, or its answers to the golden requests differ from those of its evaluation.
    """
    start = time.monotonic()
    folder = version_cache.copy_folder(home, served)
    version_cache.verify(folder, served)
    predictor = load(folder / MODEL_FILE, served.model_digest)
    try:
        contract = RequestContract.from_document((folder / CONTRACT_FILE).read_text())
    except (ConfigurationError, OSError, ValueError) as error:
        raise ModelError(f"The request contract in {folder} cannot be read: {error}.") from error
    record_predictor = _make_record_predictor(predictor, contract, folder)
    way = "compiled" if record_predictor.fast else "frame"
    _warm_up(predictor, record_predictor, folder, served)
    seconds = time.monotonic() - start
    log.info("version %s of %s is loaded and warm after %.2f s (%s)", served.version, model, seconds, way)
    return Loaded(
        served=served,
        contract=contract,
        formats=Formats(contract),
        predict=record_predictor.predict_records,
        way=way,
        logged=LoggedVersion(contract=contract, version=served.version, digest=served.model_digest),
        seconds=seconds,
        predict_frame=record_predictor.predict_frame,
    )


def _make_record_predictor(predictor: Predictor, contract: RequestContract, folder: Path) -> RecordPredictor:
    """Return a compiled predictor if this compiler's parity check of the version passed, else one of DataFrames."""
    path = folder / parity.PARITY_FILE
    try:
        result = parity.Parity.from_document(path.read_text()) if path.exists() else None
        return parity.way_to_predict(predictor, contract, result)
    except (UnsupportedPipelineError, OSError, ValueError, TypeError) as error:
        log.warning("the parity check in %s cannot be used, so the version predicts with DataFrames: %s", path, error)
        return predictor.for_records(contract, None)


def _warm_up(predictor: Predictor, record_predictor: RecordPredictor, folder: Path, served: ServedVersion) -> None:
    """Replay the golden requests in the way that requests are answered, and in the way of the evaluation."""
    import numpy as np
    import pandas as pd

    requests = pd.read_parquet(folder / GOLDEN_REQUESTS)
    expected = json.loads((folder / GOLDEN_ANSWERS).read_text())
    if requests.empty:  # an erasure has removed all of them
        return
    records = record_predictor.contract.convert_frame(requests)
    for predict in (
        lambda: Answers(predictor.scores(requests).tolist(), predictor.predictions(requests).tolist()),
        lambda: record_predictor.predict_records(records),
    ):
        # A model may raise any exception: the future catches it.
        with ThreadPoolExecutor(max_workers=1) as thread:
            call = thread.submit(predict)
            error = call.exception()
        if error is not None:
            raise PredictionError(
                f"Version {served.version} failed to predict its golden requests: {describe_without_values(error)}."
            )
        answers = call.result()
        same = answers.predictions == expected["predictions"] and np.allclose(
            answers.scores, expected["scores"], rtol=TOLERANCE, atol=TOLERANCE
        )
        if not same:
            raise ModelError(
                f"The answers of version {served.version} to its golden requests differ from those of its evaluation."
            )
