"""A model that answers its golden requests as it should, and some later ones as it should not.

``python -m ml_platform_tests.serving.odd …`` is a worker that trusts it, beside what every worker trusts.
"""

import sys
import time
from typing import Any

import numpy as np

from ml_platform import predictor

NAME = "ml_platform_tests.serving.odd"
# No golden request has so many seconds: `fakes.visits` draws less than a hundred.
NAN, RAISES, SLOW = 1_000.0, 2_000.0, 3_000.0


class Moody:
    """A fitted model of two classes whose score grows with the pages; of odd seconds it says odd things."""

    def __init__(self) -> None:
        self.classes_ = np.array([0, 1])

    def predict_proba(self, frame: Any) -> Any:
        seconds, scores = frame["seconds"].to_numpy(), frame["pages"].to_numpy() / 1_000
        if (seconds == RAISES).any():
            raise ValueError("no plan fits")
        if (seconds == SLOW).any():
            time.sleep(3)
        scores = np.where(seconds == NAN, np.nan, scores)
        return np.column_stack([1 - scores, scores])

    def predict(self, frame: Any) -> Any:
        return (self.predict_proba(frame)[:, 1] > 0.5).astype("int64")


TRUSTED = (*predictor.TRUSTED_TYPES, f"{NAME}.Moody")


if __name__ == "__main__":
    from ml_platform.serving import worker

    predictor.TRUSTED_TYPES = TRUSTED  # type: ignore[assignment]
    worker.main(sys.argv[1:])
