"""The integration test of a registered version: its bytes, in a fresh process, against golden requests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform import durable, fresh
from ml_platform.errors import ModelError
from ml_platform.predictor import Predictor
from ml_platform.records import Candidate

if TYPE_CHECKING:
    import pandas as pd

GOLDEN_REQUESTS = "golden_requests.parquet"
GOLDEN_ANSWERS = "golden_answers.json"
GOLDEN_ROWS = 50
TIMEOUT_SECONDS = 120
PROGRAM = "ml_platform.predictor"
SERVER = "ml_platform.serving.trial"
# A machine that is busy is asked again before a version is refused for its time.
TRIES = 2
NEAR = 1e-9


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


def server_problem(model_file: Path, candidate: Candidate, golden: Path, most_ms: float) -> str | None:
    """Serve a model file behind the real public port, in a fresh process, and ask it its golden requests over HTTP.

    Parameters
    ----------
    model_file : Path
        Bytes from the registry.
    candidate : Candidate
    golden : Path
        The candidate's folder, which holds the other files that a server needs.
    most_ms : float
        The bound of the 95th percentile of the time of one record, in milliseconds, HTTP included.

    Returns
    -------
    str or None
        What went wrong; ``None`` if nothing did.
    """
    if candidate.served_digest is None:
        return "it was judged before there were files for a server: run its gates again"
    arguments = [str(model_file), str(golden), candidate.model, candidate.model_digest, candidate.served_digest]
    expected = json.loads((golden / GOLDEN_ANSWERS).read_text())
    slowest = most_ms
    for _ in range(TRIES):
        try:
            found = fresh.ask(SERVER, arguments, seconds=TIMEOUT_SECONDS, environment=fresh.AS_SERVED)
        except ModelError as error:
            return f"its server: {error}"
        if found and not _same(found, expected):
            return "its answers behind the server differ from those that were gated"
        if not found or found["p95_ms"] <= most_ms:
            return None
        slowest = found["p95_ms"]
    return f"one record through the server takes {slowest:.4g} ms (95th percentile), the gate asks for <= {most_ms:g}"


def _same(said: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether answers are those that were gated; a record alone may differ from many at once in the last bit."""
    import numpy as np

    near = np.allclose(said["scores"], expected["scores"], rtol=NEAR, atol=NEAR)
    return bool(near) and said["predictions"] == expected["predictions"]


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
