"""The integration test of a registered version: its bytes, in a fresh process, against golden requests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ml_platform import durable, fresh
from ml_platform.errors import ModelError
from ml_platform.predictor import Predictor

if TYPE_CHECKING:
    import pandas as pd

GOLDEN_REQUESTS = "golden_requests.parquet"
GOLDEN_ANSWERS = "golden_answers.json"
GOLDEN_ROWS = 50
TIMEOUT_SECONDS = 120
PROGRAM = "ml_platform.predictor"


def keep_golden_requests(predictor: Predictor, features: "pd.DataFrame", folder: Path) -> None:
    """Store some rows and what the candidate says of them, for whoever loads its bytes later to compare."""
    requests = features.head(GOLDEN_ROWS)
    durable.write(folder / GOLDEN_REQUESTS, requests.to_parquet(index=False))
    answers = {
        "scores": predictor.scores(requests).tolist(),
        "predictions": predictor.predictions(requests).tolist(),
    }
    durable.write(folder / GOLDEN_ANSWERS, json.dumps(answers).encode())


def remove_golden_requests(folder: Path) -> None:
    """Remove them with their answers: the integration test cannot pass without."""
    for name in (GOLDEN_REQUESTS, GOLDEN_ANSWERS):
        (folder / name).unlink(missing_ok=True)


def golden_requests(folder: Path) -> "pd.DataFrame":
    """Return the golden requests of a candidate's folder."""
    import pandas as pd

    return pd.read_parquet(folder / GOLDEN_REQUESTS)


def integration_test(model_file: Path, digest: str, golden: Path) -> str | None:
    """Load a model file in a fresh process and compare its answers to the bit.

    Parameters
    ----------
    model_file : Path
        Bytes from the registry.
    digest : str
        Hex sha256 that they must have.
    golden : Path
        The candidate's folder, which holds its golden requests and answers.

    Returns
    -------
    str or None
        What went wrong; ``None`` if nothing did.
    """
    arguments = [str(model_file), digest, str(golden / GOLDEN_REQUESTS)]
    try:
        found = fresh.ask(PROGRAM, arguments, seconds=TIMEOUT_SECONDS)
    except ModelError as error:
        return str(error)
    expected = json.loads((golden / GOLDEN_ANSWERS).read_text())
    return None if found == expected else "its answers differ from those that were gated"


def signature_problem(shown: Sequence[tuple[str, str]], asked: Sequence[tuple[str, str]]) -> str | None:
    """Say where what MLflow tells a version's clients to send differs from what the version was gated with.

    Parameters
    ----------
    shown, asked : sequence of (name, type)
        The features by MLflow's signature, and those of the golden requests; order counts.
    """
    if list(shown) == list(asked):
        return None
    pairs = [(one, other) for one, other in zip(shown, asked, strict=False) if one != other]
    says, needs = pairs[0] if pairs else (f"{len(shown)} features", f"{len(asked)}")
    return f"its signature in MLflow differs from what was gated: it must say {needs}. Got {says} instead"
