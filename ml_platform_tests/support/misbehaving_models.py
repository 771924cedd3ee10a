"""Models that misbehave, as real files that the real program loads once this module is on its trust list.

As a program, it is the measuring process or the integration test's, and trusts its type too.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import skops.io as sio

from ml_platform.evaluation import latency
from ml_platform.inference import predictor
from ml_platform.storage import model_files
from ml_platform.storage.model_files import file_digest

NAME = "ml_platform_tests.support.misbehaving_models"


class Odd:
    """A fitted model of two classes that misbehaves before it predicts."""

    def __init__(self, what: str = "nothing", seconds: float = 0.0, mark: str = "") -> None:
        self.what = what
        self.seconds = seconds
        self.mark = mark

    def predict_proba(self, frame: Any) -> Any:
        if self.what == "raises":
            raise ValueError("no plan fits")
        if self.what == "dies":
            os._exit(7)
        if self.what == "writes":
            sys.stdout.write('{"load": 0, "first": 0, "warm": [0], "control": [1], "memory": 0}\n')
            os.write(1, b"\xff\x00 rubbish" * 10_000)
        if self.what == "grows":
            np.ones(64 * 2**20 // 8).sum()
        if self.mark:
            with Path(self.mark).open("a") as file:
                file.write(f"{os.getpid()}\n")
        time.sleep(self.seconds)
        return np.full((len(frame), 2), 0.5)

    def predict(self, frame: Any) -> Any:
        return self.predict_proba(frame)[:, 1] > 0.6


def store(folder: Path, model: Odd) -> tuple[Path, str]:
    """Write a model as skops; return its file and digest."""
    file = folder / "model.skops"
    sio.dump(model, file)
    return file, file_digest(file)


if __name__ == "__main__":
    model_files.TRUSTED_TYPES = (*model_files.TRUSTED_TYPES, f"{NAME}.Odd")  # type: ignore[assignment]
    (latency.main if len(sys.argv) == 6 else predictor.main)(sys.argv[1:])
