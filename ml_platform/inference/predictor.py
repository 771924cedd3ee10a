"""Load a model after verifying its digest, and predict with it; evaluation, serving and batch scoring all use this.

The integration test runs this module as a program, in a new process that receives only a file and its digest::

    python -m ml_platform.inference.predictor MODEL.skops DIGEST REQUESTS.parquet ANSWERS.json

It writes ``{"scores": [...], "predictions": [...]}`` to a file, because a model's code may print to standard output.
"""

import hashlib
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.errors import DigestMismatchError, ModelError, UntrustedModelError
from ml_platform.inference.pipeline_compiler import Compiled, Order, compile_pipeline, score_and_predict
from ml_platform.inference.request_contract import Record, RequestContract
from ml_platform.storage import model_files
from ml_platform.system.isolated_process import write_answer

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Answers:
    """The scores and predictions of some records.

    Parameters
    ----------
    scores : list of float, or of list of float
        For each record, the probability of the positive class, or of each class, or the predicted number.
    predictions : list
        For each record, 1 or 0 at the model's own threshold, or the class, or the predicted number.
    """

    scores: list[Any]
    predictions: list[Any]


class Predictor:
    """A fitted pipeline whose bytes were verified: a classifier of two or more classes, or a regressor.

    Parameters
    ----------
    pipeline : fitted scikit-learn Pipeline
        A classifier with the classes 0 and 1, or with three or more classes; without `predict_proba`, a regressor.
    digest : str
        Hex sha256 of the pipeline's file.
    """

    def __init__(self, pipeline: Any, digest: str) -> None:
        self.pipeline = pipeline
        self.digest = digest

    @property
    def classes(self) -> "NDArray[Any]":
        """The classes in the order of the probabilities, shape (n_classes,); empty for a regressor."""
        import numpy as np

        return np.asarray(getattr(self.pipeline, "classes_", ()))

    def scores(self, frame: "pd.DataFrame") -> "NDArray[np.float64]":
        """Return the probability of the positive class, or of each class, or the predicted number.

        Parameters
        ----------
        frame : DataFrame of shape (n_samples, n_features)
            One column for each feature.

        Returns
        -------
        ndarray of shape (n_samples,), or (n_samples, n_classes) for more than two classes
        """
        if not hasattr(self.pipeline, "predict_proba"):
            return self.pipeline.predict(frame)  # type: ignore[no-any-return]
        probabilities = self.pipeline.predict_proba(frame)
        return probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities  # type: ignore[no-any-return]

    def predictions(self, frame: "pd.DataFrame") -> "NDArray[Any]":
        """Return 1 or 0 at the model's own threshold, or the class, or the predicted number; shape (n_samples,)."""
        return self.pipeline.predict(frame)  # type: ignore[no-any-return]

    def for_records(self, contract: RequestContract, fast: Order | None = None) -> "RecordPredictor":
        """Return a predictor of records of a contract.

        Parameters
        ----------
        contract : RequestContract
        fast : str or None
            ``C`` or ``F`` uses the compiled pipeline, with the memory layout for which the parity check passed.
            ``None`` predicts through DataFrames.

        Raises
        ------
        UnsupportedPipelineError
            `fast` is given, and the compiler does not support a step of the pipeline.
        """
        return RecordPredictor(self, contract, compile_pipeline(self.pipeline, contract, fast) if fast else None)

    def score_record(self, record: Mapping[Any, Any]) -> float | list[float]:
        """Return the score of one record, a mapping of the features; for several classes a list in their order."""
        import pandas as pd

        return self.scores(pd.DataFrame([record]))[0].tolist()  # type: ignore[no-any-return]


class RecordPredictor:
    """A predictor of records of one contract, through DataFrames or by a compiled pipeline.

    Parameters
    ----------
    predictor : Predictor
    contract : RequestContract
    compiled : Compiled or None
        ``None`` predicts through a DataFrame with the types of the training rows.
    """

    def __init__(self, predictor: Predictor, contract: RequestContract, compiled: Compiled | None) -> None:
        from sklearn.pipeline import Pipeline

        self.predictor = predictor
        self.contract = contract
        self._compiled = compiled
        # Scores and predictions are both computed from one pass through the transformers.
        pipeline = predictor.pipeline
        self._transformers: Any
        self._estimator: Any
        split = isinstance(pipeline, Pipeline) and len(pipeline.steps) > 1
        self._transformers, self._estimator = (pipeline[:-1], pipeline[-1]) if split else (None, pipeline)

    @property
    def fast(self) -> bool:
        """True if it uses a compiled pipeline."""
        return self._compiled is not None

    def predict_frame(self, frame: "pd.DataFrame") -> "tuple[NDArray[Any], NDArray[Any]]":
        """Return scores and predictions of a DataFrame with the types of the training rows, as arrays."""
        block = frame if self._transformers is None else self._transformers.transform(frame)
        return score_and_predict(self._estimator, block)

    def predict_records(self, records: Sequence[Record]) -> Answers:
        """Predict some records, at least one; every error of the model's own code is passed on.

        Parameters
        ----------
        records : sequence of tuple
            The features' values in the contract's order, None for a missing one.
        """
        if self._compiled is not None:
            scores, predictions = self._compiled.answer(records)
        else:
            scores, predictions = self.predict_frame(self.contract.frame(records))
        return Answers(scores.tolist(), predictions.tolist())


def load(path: Path, digest: str) -> Predictor:
    """Load a model file if it has the recorded digest.

    The file is read once, so that the deserialised bytes are those whose digest was compared.

    Parameters
    ----------
    path : Path
    digest : str
        The recorded hex sha256.

    Raises
    ------
    DigestMismatchError
        The file has another digest; it was not deserialised.
    UntrustedModelError
        The file contains types outside `TRUSTED_TYPES`.
    ModelError
        The file cannot be read, or was written by another version of scikit-learn.
    """
    import skops.io as sio
    from sklearn.exceptions import InconsistentVersionWarning
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"The model file {path} cannot be read: {error.strerror}.") from error
    actual = hashlib.sha256(data).hexdigest()
    # guard: model-file-digest
    if actual != digest:
        raise DigestMismatchError(
            f"{path} must have the sha256 {digest}. Got {actual} instead: the file is not the model that passed its "
            "gates. It was not loaded."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", InconsistentVersionWarning)
        try:
            pipeline = sio.loads(data, trusted=list(model_files.TRUSTED_TYPES))  # noqa: TID251 - the only call
        except UntrustedTypesFoundException as error:
            raise UntrustedModelError(
                f"{path} contains types that the platform does not trust: {error}. If they are harmless, add them to "
                "TRUSTED_TYPES in ml_platform/storage/model_files.py."
            ) from error
        except InconsistentVersionWarning as warning:
            raise ModelError(
                f"{path} was written by another version of scikit-learn: {warning}. Train the model again."
            ) from warning
        except (zipfile.BadZipFile, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ModelError(f"{path} is not a skops file that this version can read: {error}.") from error
    return Predictor(pipeline, digest)


def main(arguments: list[str]) -> None:
    """Load a model and write its predictions for the rows of a Parquet file, as JSON."""
    import pandas as pd

    model, digest, requests, answers = arguments
    predictor = load(Path(model), digest)
    frame = pd.read_parquet(requests)
    content = {"scores": predictor.scores(frame).tolist(), "predictions": predictor.predictions(frame).tolist()}
    write_answer(Path(answers), content)


if __name__ == "__main__":
    main(sys.argv[1:])
