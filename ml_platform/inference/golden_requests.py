"""Golden requests: rows stored with a candidate and its predictions for them, which every later copy must repeat."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ml_platform.inference.predictor import Predictor
from ml_platform.storage import atomic_files

if TYPE_CHECKING:
    import pandas as pd


GOLDEN_REQUESTS = "golden_requests.parquet"
GOLDEN_ANSWERS = "golden_answers.json"
GOLDEN_ROWS = 50


def store_golden_requests(predictor: Predictor, features: "pd.DataFrame", folder: Path) -> None:
    """Store the first `GOLDEN_ROWS` rows and the candidate's predictions for them.

    Parameters
    ----------
    predictor : Predictor
    features : DataFrame of shape (n_samples, n_features)
    folder : Path
        The candidate's folder.
    """
    requests = features.head(GOLDEN_ROWS)
    atomic_files.write(folder / GOLDEN_REQUESTS, requests.to_parquet(index=False))
    answers = {
        "scores": predictor.scores(requests).tolist(),
        "predictions": predictor.predictions(requests).tolist(),
    }
    atomic_files.write(folder / GOLDEN_ANSWERS, json.dumps(answers).encode())


def remove_golden_requests(folder: Path) -> None:
    """Remove the golden requests and their predictions, without which the integration test cannot pass."""
    for name in (GOLDEN_REQUESTS, GOLDEN_ANSWERS):
        (folder / name).unlink(missing_ok=True)


def golden_requests(folder: Path) -> "pd.DataFrame":
    """Return the golden requests of a candidate's folder, a DataFrame of shape (n_requests, n_features)."""
    import pandas as pd

    return pd.read_parquet(folder / GOLDEN_REQUESTS)
