"""A model's file: its name, its digest, and the types that it may contain."""

import hashlib
from pathlib import Path

MODEL_FILE = "model.skops"

# Types that a model file may contain in addition to those that skops trusts (scikit-learn's estimators, NumPy, SciPy).
# The list in a model's MLmodel file is never used: an attacker could extend it.
# ``numpy.dtype`` is data: SimpleImputer and KBinsDiscretizer keep one, and skops reads it from an empty array.
TRUSTED_TYPES = (
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._classification.f1_score",
    "sklearn.metrics._scorer._CurveScorer",
    "sklearn.metrics._scorer._PassthroughScorer",
    "sklearn.metrics._scorer._Scorer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._metadata_requests.MetadataRequest",
    "sklearn.utils._metadata_requests.MethodMetadataRequest",
)


def file_digest(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
