"""A model that answers its golden requests correctly, and some later ones badly.

``python -m ml_platform_tests.support.misbehaving_worker …`` is a worker that trusts this model too.
"""

import re
import sys
import time
from typing import Any

import numpy as np

from ml_platform.storage import model_files

NAME = "ml_platform_tests.support.misbehaving_worker"
# No golden request has these seconds: `fakes.visits` draws less than a hundred.
NAN, RAISES, SLOW, WAITS, SPINS = 1_000.0, 2_000.0, 3_000.0, 4_000.0, 5_000.0


class Moody:
    """A fitted model of two classes whose score grows with the pages; it misbehaves for some seconds."""

    def __init__(self) -> None:
        self.classes_ = np.array([0, 1])

    def predict_proba(self, frame: Any) -> Any:
        seconds, scores = frame["seconds"].to_numpy(), frame["pages"].to_numpy() / 1_000
        if (seconds == RAISES).any():
            raise ValueError(f"no plan fits {frame.to_dict()}")
        if (seconds == SLOW).any():
            time.sleep(3)
        if (seconds == WAITS).any():
            time.sleep(600)
        if (seconds == SPINS).any():
            re.match("(a+)+$", "a" * 50 + "b")  # does not end in years, and holds the interpreter's lock
        scores = np.where(seconds == NAN, np.nan, scores)
        return np.column_stack([1 - scores, scores])

    def predict(self, frame: Any) -> Any:
        return (self.predict_proba(frame)[:, 1] > 0.5).astype("int64")


TRUSTED = (*model_files.TRUSTED_TYPES, f"{NAME}.Moody")


if __name__ == "__main__":
    from ml_platform.serving.worker import worker

    model_files.TRUSTED_TYPES = TRUSTED  # type: ignore[assignment]
    worker.main(sys.argv[1:])
