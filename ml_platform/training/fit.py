"""Fit the author's pipeline and store it as skops."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.data.dataset_checks import target
from ml_platform.errors import ModelError, OutOfMemoryError
from ml_platform.model_spec import ModelSpec
from ml_platform.storage import atomic_files
from ml_platform.storage.model_files import MODEL_FILE, file_digest
from ml_platform.training.canonical_skops import write_canonical

if TYPE_CHECKING:
    import pandas as pd


def fit(rows: "pd.DataFrame", spec: ModelSpec) -> Any:
    """Fit the author's pipeline on training rows.

    Parameters
    ----------
    rows : DataFrame of shape (n_samples, n_columns)
        The training rows, without the holdout, which not even a decision threshold may depend on.
    spec : ModelSpec

    Returns
    -------
    fitted scikit-learn Pipeline
        A classifier with the classes 0 and 1 for the task ``binary``, with the label's classes for ``multiclass``; a
        regressor for ``regression``.

    Raises
    ------
    ModelError
        `spec.pipeline` did not return a classifier with `predict_proba`, or a regressor, as its task requires.
    OutOfMemoryError
        Fitting the pipeline needs more memory than there is, or than this process may use.
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
            f"Fitting the pipeline of the model {spec.name!r} on {len(rows):,} rows needs more memory than there is: "
            f"{str(error) or 'amount unknown'}. Nothing was stored. Change the pipeline, train on a machine with more "
            "memory, or raise ML_PLATFORM_TRAINING_MEMORY_BYTES if it is set."
        ) from error


def store(pipeline: Any, folder: Path) -> str:
    """Write a fitted pipeline to ``<folder>/model.skops`` atomically, and return the file's hex sha256.

    The same fit gives the same bytes, in any process.

    Raises
    ------
    StorageError
        The disk is full, read-only or broken.
    """
    import skops.io as sio

    with atomic_files.temporary_beside(folder / MODEL_FILE) as temporary:
        with temporary.open("wb") as file:
            write_canonical(io.BytesIO(sio.dumps(pipeline)), file)
        digest = file_digest(temporary)
        atomic_files.atomic_replace(temporary, folder / MODEL_FILE)
    return digest
