"""Fit the author's pipeline and store it as skops."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.data.dataset_checks import target
from ml_platform.errors import ModelError, OutOfMemoryError, UntrustedModelError
from ml_platform.model_spec import ModelSpec
from ml_platform.storage import atomic_files, model_files
from ml_platform.training.canonical_skops import write_canonical

if TYPE_CHECKING:
    import pandas as pd

# Rows per class that are enough for five folds.
ROWS_OF_TRIAL = 50


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
    UntrustedModelError
        The pipeline contains types that no model file may contain; it was not fitted.
    OutOfMemoryError
        Fitting the pipeline needs more memory than there is, or than this process may use.
    """
    pipeline = spec.pipeline()
    classifies = spec.task != "regression"
    if hasattr(pipeline, "fit"):
        dump(pipeline)
    if not hasattr(pipeline, "fit") or _has_probabilities(pipeline, rows, spec) != classifies:
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


def _has_probabilities(pipeline: Any, rows: "pd.DataFrame", spec: ModelSpec) -> bool:
    """Tell whether a pipeline will have predict_proba once it is fitted.

    A StackingClassifier without a final estimator of its own has it only then: a copy is fitted on a few rows.
    """
    from sklearn.base import is_classifier

    if hasattr(pipeline, "predict_proba") or spec.task == "regression" or not is_classifier(pipeline):
        return hasattr(pipeline, "predict_proba")
    few = rows.groupby(spec.label).head(ROWS_OF_TRIAL)
    return hasattr(spec.pipeline().fit(few[spec.features], target(few, spec)), "predict_proba")


def dump(pipeline: Any) -> bytes:
    """Return a pipeline, fitted or not, as the bytes of a skops file that `inference.predictor.load` can read.

    Raises
    ------
    UntrustedModelError
        The pipeline contains types outside `TRUSTED_TYPES`, or one that skops cannot store.
    """
    import skops.io as sio
    from skops.io.exceptions import UnsupportedTypeException

    try:
        data = sio.dumps(pipeline)
        refused = set(sio.get_untrusted_types(data=data)) - set(model_files.TRUSTED_TYPES)
    except (UnsupportedTypeException, RecursionError) as error:
        raise UntrustedModelError(
            f"pipeline() returned a {type(pipeline).__name__} that skops, the format of model files, cannot store: "
            f"{error}. Replace that part, by one of scikit-learn's other classes."
        ) from error
    # no guard: the reader of the file refuses these types too
    if refused:
        raise UntrustedModelError(
            f"pipeline() returned a {type(pipeline).__name__} with parts that no model file may contain, since reading "
            f"them could run code: {', '.join(sorted(refused))}. Use scikit-learn's own classes and functions, such as "
            "FunctionTransformer(numpy.log1p). For a part that is harmless, add its name to TRUSTED_TYPES in "
            "ml_platform/storage/model_files.py."
        )
    return bytes(data)


def store(pipeline: Any, folder: Path) -> str:
    """Write a fitted pipeline to ``<folder>/model.skops`` atomically, and return the file's hex sha256.

    The same fit gives the same bytes, in any process.

    Raises
    ------
    StorageError
        The disk is full, read-only or broken.
    UntrustedModelError
        The fitted pipeline contains types that no model file may contain; nothing was written.
    """
    data = dump(pipeline)
    with atomic_files.temporary_beside(folder / model_files.MODEL_FILE) as temporary:
        with temporary.open("wb") as file:
            write_canonical(io.BytesIO(data), file)
        digest = model_files.file_digest(temporary)
        atomic_files.atomic_replace(temporary, folder / model_files.MODEL_FILE)
    return digest
