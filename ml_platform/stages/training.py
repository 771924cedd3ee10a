"""Fit the author's pipeline and store it as skops."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform import durable
from ml_platform.errors import ModelError
from ml_platform.model_spec import ModelSpec
from ml_platform.predictor import MODEL_FILE, file_digest
from ml_platform.stages._skops import write_canonical

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


def target(rows: "pd.DataFrame", spec: ModelSpec) -> "NDArray[np.int64]":
    """Return the label as 0 and 1, shape (n_samples,): 1 where it equals `spec.positive`."""
    return (rows[spec.label] == spec.positive).to_numpy().astype("int64")


def fit(rows: "pd.DataFrame", spec: ModelSpec) -> Any:
    """Fit the author's pipeline on training rows.

    Parameters
    ----------
    rows : DataFrame of shape (n_samples, n_columns)
        Training rows only: the holdout is never seen here, thresholds included.

    Returns
    -------
    fitted scikit-learn Pipeline whose classes are 0 and 1

    Raises
    ------
    ModelError
        What `spec.pipeline` returned is no classifier with probabilities.
    """
    pipeline = spec.pipeline()
    if not (hasattr(pipeline, "fit") and hasattr(pipeline, "predict_proba")):
        raise ModelError(
            f"pipeline() of the model {spec.name!r} must return a scikit-learn Pipeline with predict_proba. "
            f"Got {type(pipeline).__name__} instead."
        )
    return pipeline.fit(rows[spec.features], target(rows, spec))


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
