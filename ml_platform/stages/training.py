"""Fit the author's pipeline and store it as skops."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform import durable
from ml_platform.errors import ModelError, OutOfMemoryError
from ml_platform.model_spec import ModelSpec
from ml_platform.predictor import MODEL_FILE, file_digest
from ml_platform.stages._skops import write_canonical

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


def target(rows: "pd.DataFrame", spec: ModelSpec) -> "NDArray[Any]":
    """Return what is to be predicted, shape (n_samples,).

    1 where the label equals `spec.positive` and else 0, of type int64, for the task ``binary``; the label as text or
    integers for ``multiclass``; float64 for ``regression``.
    """
    labels = rows[spec.label]
    if spec.task == "binary":
        return (labels == spec.positive).to_numpy().astype("int64")
    if spec.task == "regression":
        return labels.to_numpy().astype("float64")
    values = labels.to_numpy()
    # Objects would stand in the model's file, which holds plain arrays only.
    return values if values.dtype.kind in "iu" else values.astype("str")


def fit(rows: "pd.DataFrame", spec: ModelSpec) -> Any:
    """Fit the author's pipeline on training rows.

    Parameters
    ----------
    rows : DataFrame of shape (n_samples, n_columns)
        Training rows only: the holdout is never seen here, thresholds included.

    Returns
    -------
    fitted scikit-learn Pipeline
        Its classes are 0 and 1, or those of the label; one without probabilities predicts numbers.

    Raises
    ------
    ModelError
        What `spec.pipeline` returned cannot do the task: a classifier with probabilities, or a regressor.
    OutOfMemoryError
        Fitting it asked for more memory than this process may have.
    """
    pipeline = spec.pipeline()
    classifies = spec.task != "regression"
    if not hasattr(pipeline, "fit") or hasattr(pipeline, "predict_proba") != classifies:
        raise ModelError(
            f"pipeline() of the model {spec.name!r} must return a scikit-learn Pipeline with"
            f"{'' if classifies else 'out'} predict_proba. Got {type(pipeline).__name__} instead."
        )
    try:
        return pipeline.fit(rows[spec.features], target(rows, spec))
    except MemoryError as error:
        raise OutOfMemoryError(
            f"Fitting the pipeline of the model {spec.name!r} on {len(rows):,} rows asked for more memory than there "
            f"is: {str(error) or 'it does not say how much'}. Nothing was stored. Let it ask for less, or train where "
            "there is more; where ML_PLATFORM_TRAINING_MEMORY is set, it bounds it, in bytes."
        ) from error


def store(pipeline: Any, folder: Path) -> str:
    """Write a fitted pipeline to ``<folder>/model.skops``, whole or not at all; return the file's sha256.

    The same fit gives the same bytes, in any process.

    Raises
    ------
    StorageError
        The disk is full, read-only or broken.
    """
    import skops.io as sio

    with durable.temporary_beside(folder / MODEL_FILE) as temporary:
        with temporary.open("wb") as file:
            write_canonical(io.BytesIO(sio.dumps(pipeline)), file)
        digest = file_digest(temporary)
        durable.place(temporary, folder / MODEL_FILE)
    return digest
