"""The one way to load a model, digest first, and to predict with it: evaluation, serving and batch call this.

Run as a program it is the integration test's fresh process: it knows nothing but a file and its digest::

    python -m ml_platform.predictor MODEL.skops DIGEST REQUESTS.parquet ANSWERS.json

writes ``{"scores": [...], "predictions": [...]}``. A model's code may print what it likes: the answers stand
in the file.
"""

import hashlib
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.compiled import Compiled, Order, compile_pipeline
from ml_platform.errors import DigestMismatchError, ModelError, UntrustedModelError
from ml_platform.fresh import answer
from ml_platform.request_contract import Record, RequestContract

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

MODEL_FILE = "model.skops"

# What a model file may contain beyond what skops itself trusts (scikit-learn's estimators, NumPy and SciPy). The
# list is the platform's: a list that comes with a model, as MLmodel brings one, is an attacker's to widen.
TRUSTED_TYPES = (
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._classification.f1_score",
    "sklearn.metrics._scorer._CurveScorer",
    "sklearn.metrics._scorer._PassthroughScorer",
    "sklearn.metrics._scorer._Scorer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._metadata_requests.MetadataRequest",
    "sklearn.utils._metadata_requests.MethodMetadataRequest",
)


@dataclass(frozen=True)
class Answers:
    """What a model says of some records.

    Parameters
    ----------
    scores : list of float, or of list of float
        The probability of the positive class, or of each class, or the predicted number, by record.
    predictions : list
        1 or 0 at the model's own threshold, or the class, or the number, by record.
    """

    scores: list[Any]
    predictions: list[Any]


class Predictor:
    """A fitted pipeline whose bytes were verified: it tells two classes apart, or more, or predicts a number.

    Parameters
    ----------
    pipeline : fitted scikit-learn Pipeline
        Its classes are 0 and 1, or three or more values; one without probabilities predicts numbers.
    digest : str
        Hex sha256 of the file that it was loaded from.
    """

    def __init__(self, pipeline: Any, digest: str) -> None:
        self.pipeline = pipeline
        self.digest = digest

    @property
    def classes(self) -> "NDArray[Any]":
        """The classes that it knows, in the order of its probabilities; shape (n_classes,), empty without any."""
        import numpy as np

        return np.asarray(getattr(self.pipeline, "classes_", ()))

    def scores(self, frame: "pd.DataFrame") -> "NDArray[np.float64]":
        """Return the probability of the positive class, or of each class, or the predicted number.

        Parameters
        ----------
        frame : DataFrame of shape (n_samples, n_features)
            The features by name.

        Returns
        -------
        ndarray of shape (n_samples,), or (n_samples, n_classes) for more than two classes
        """
        if not hasattr(self.pipeline, "predict_proba"):
            return self.pipeline.predict(frame)  # type: ignore[no-any-return]
        probabilities = self.pipeline.predict_proba(frame)
        return probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities  # type: ignore[no-any-return]

    def predictions(self, frame: "pd.DataFrame") -> "NDArray[Any]":
        """Return 1 or 0 at the model's own threshold, or the class, or the number; shape (n_samples,)."""
        return self.pipeline.predict(frame)  # type: ignore[no-any-return]

    def for_records(self, contract: RequestContract, fast: Order | None = None) -> "RecordPredictor":
        """Return what predicts records of a contract.

        Parameters
        ----------
        contract : RequestContract
        fast : str or None
            By the compiled preprocessing, with its array in the order ``C`` or ``F`` for which the parity check
            passed. ``None`` goes through DataFrames.

        Raises
        ------
        UncompiledError
            The fast way was asked for, and the pipeline has a part that is not known to the compiler.
        """
        return RecordPredictor(self, contract, compile_pipeline(self.pipeline, contract, fast) if fast else None)

    def score_record(self, record: Mapping[Any, Any]) -> float | list[float]:
        """Return the score of one record of feature names and values; a list, in the order of `classes`, for many."""
        import pandas as pd

        return self.scores(pd.DataFrame([record]))[0].tolist()  # type: ignore[no-any-return]


class RecordPredictor:
    """Predicts records of one contract, through DataFrames or by the compiled preprocessing.

    Parameters
    ----------
    predictor : Predictor
    contract : RequestContract
    compiled : Compiled or None
        ``None`` makes a DataFrame of the types that the model was trained on.
    """

    def __init__(self, predictor: Predictor, contract: RequestContract, compiled: Compiled | None) -> None:
        self.predictor = predictor
        self.contract = contract
        self._compiled = compiled
        self._head, self._estimator = _parted(predictor.pipeline)

    @property
    def fast(self) -> bool:
        """Whether it goes by the compiled preprocessing."""
        return self._compiled is not None

    def predict_records(self, records: Sequence[Record]) -> Answers:
        """Return what the model says of some records, at least one; it may raise whatever the model raises.

        Parameters
        ----------
        records : sequence of tuple
            Values in the contract's order, None for a missing one.
        """
        if self._compiled is not None:
            scores, predictions = self._compiled.answer(records)
        else:
            frame = self.contract.frame(records)
            block = frame if self._head is None else self._head.transform(frame)
            scores, predictions = _both(self._estimator, block)
        return Answers(scores.tolist(), predictions.tolist())


def _parted(pipeline: Any) -> tuple[Any, Any]:
    """Return a pipeline's transformers and its estimator, so that rows go through the first once for two answers."""
    from sklearn.pipeline import Pipeline

    if not isinstance(pipeline, Pipeline) or len(pipeline.steps) < 2:
        return None, pipeline
    return pipeline[:-1], pipeline[-1]


def _both(estimator: Any, rows: Any) -> "tuple[NDArray[Any], NDArray[Any]]":
    asked = Predictor(estimator, "")
    predictions = asked.predictions(rows)
    return (asked.scores(rows) if hasattr(estimator, "predict_proba") else predictions), predictions


def file_digest(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(path: Path, digest: str) -> Predictor:
    """Load a model whose bytes have the digest that was recorded for it.

    The bytes are read once: what was digested is what is deserialised.

    Raises
    ------
    DigestMismatchError
        The file has other bytes; nothing of it was deserialised.
    UntrustedModelError
        The file asks for types outside `TRUSTED_TYPES`.
    ModelError
        The file cannot be read, or another scikit-learn wrote it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"The model file {path} cannot be read: {error.strerror}.") from error
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise DigestMismatchError(
            f"{path} must have sha256 {digest}. Got {found} instead: it is not the model that was gated. "
            "It was not loaded."
        )
    return Predictor(_deserialise(data, path), digest)


def _deserialise(data: bytes, path: Path) -> Any:
    import skops.io as sio
    from sklearn.exceptions import InconsistentVersionWarning
    from skops.io.exceptions import UntrustedTypesFoundException

    with warnings.catch_warnings():
        warnings.simplefilter("error", InconsistentVersionWarning)
        try:
            return sio.loads(data, trusted=list(TRUSTED_TYPES))  # noqa: TID251 - the one place that may
        except UntrustedTypesFoundException as error:
            raise UntrustedModelError(
                f"{path} asks for types that this platform does not load: {error}. If they are harmless, add them "
                "to TRUSTED_TYPES in ml_platform/predictor.py."
            ) from error
        except InconsistentVersionWarning as warning:
            raise ModelError(f"{path} was written by another scikit-learn: {warning}. Train it again.") from warning
        except (zipfile.BadZipFile, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ModelError(f"{path} is no skops file that this version reads: {error}.") from error


def main(arguments: list[str]) -> None:
    """Load a model and write its predictions for the rows of a Parquet file, as JSON."""
    import pandas as pd

    model, digest, requests, answers = arguments
    predictor = load(Path(model), digest)
    frame = pd.read_parquet(requests)
    said = {"scores": predictor.scores(frame).tolist(), "predictions": predictor.predictions(frame).tolist()}
    answer(Path(answers), said)


if __name__ == "__main__":
    main(sys.argv[1:])
