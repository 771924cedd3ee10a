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
TRIGGER = 1_000.0


class Moody:
    """A fitted model of two classes whose score grows with the pages.

    Parameters
    ----------
    what : str
        What it does of a record of `TRIGGER` seconds: ``nan``, ``raises``, ``slow``, or nothing.
    shift : float
        Added to every score.
    """

    def __init__(self, what: str = "", shift: float = 0.0) -> None:
        self.what = what
        self.shift = shift
        self.classes_ = np.array([0, 1])

    def predict_proba(self, frame: Any) -> Any:
        scores = np.clip(frame["pages"].to_numpy() / 1_000 + self.shift, 0.0, 1.0)
        odd = frame["seconds"].to_numpy() >= TRIGGER
        if odd.any() and self.what == "raises":
            raise ValueError("no plan fits")
        if odd.any() and self.what == "slow":
            time.sleep(5)
        if self.what == "nan":
            scores = np.where(odd, np.nan, scores)
        return np.column_stack([1 - scores, scores])

    def predict(self, frame: Any) -> Any:
        return (self.predict_proba(frame)[:, 1] > 0.5).astype("int64")


def trust() -> None:
    """Let this process load it."""
    predictor.TRUSTED_TYPES = (*predictor.TRUSTED_TYPES, f"{NAME}.Moody")  # type: ignore[assignment]


if __name__ == "__main__":
    from ml_platform.serving import worker

    trust()
    worker.main(sys.argv[1:])
