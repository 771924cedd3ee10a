"""Integration test of a registered version: its bytes, in a fresh process, against the golden requests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_platform.errors import ModelError
from ml_platform.evaluation import latency
from ml_platform.inference.golden_requests import GOLDEN_ANSWERS, GOLDEN_REQUESTS
from ml_platform.records.verdict import Candidate
from ml_platform.system import isolated_process

TIMEOUT_SECONDS = 120
PROGRAM = "ml_platform.inference.predictor"
SERVER = "ml_platform.serving.smoke_test"
# Imports of the fresh processes of a retraining, in order: first those of the gates, then the prediction server.
FRESH_MODULES = (*latency.LIBRARIES, latency.PROGRAM, PROGRAM, SERVER)
# A busy machine is measured again before a version is refused for its latency.
TRIES = 2
NEAR = 1e-9


def integration_test(model_file: Path, digest: str, golden: Path) -> str | None:
    """Load a model file in a fresh process and compare its predictions to the bit.

    Parameters
    ----------
    model_file : Path
        File from the registry.
    digest : str
        Expected sha256 of the file, in hex.
    golden : Path
        The candidate's folder, with its golden requests and answers.

    Returns
    -------
    str or None
        The problem; ``None`` if the test passes.
    """
    arguments = [str(model_file), digest, str(golden / GOLDEN_REQUESTS)]
    try:
        answers = isolated_process.run_isolated(PROGRAM, arguments, seconds=TIMEOUT_SECONDS)
    except ModelError as error:
        return str(error)
    expected = json.loads((golden / GOLDEN_ANSWERS).read_text())
    # guard: golden-answers
    return None if answers == expected else "its answers differ from those that were gated"


def server_problem(model_file: Path, candidate: Candidate, golden: Path, max_ms: float) -> str | None:
    """Serve a model file by the real prediction server, in a fresh process, and send the golden requests over HTTP.

    Parameters
    ----------
    model_file : Path
        File from the registry.
    candidate : Candidate
    golden : Path
        The candidate's folder, with the other files that a server needs.
    max_ms : float
        Maximum of the 95th percentile of the latency of one record over HTTP, in milliseconds.

    Returns
    -------
    str or None
        The problem; ``None`` if the test passes.
    """
    # guard: no-served-files
    if candidate.served_digest is None:
        return "its verdict is older than the files that a server needs. Run its gates again"
    arguments = [str(model_file), str(golden), candidate.model, candidate.model_digest, candidate.served_digest]
    expected = json.loads((golden / GOLDEN_ANSWERS).read_text())
    slowest = max_ms
    for _ in range(TRIES):
        try:
            result = isolated_process.run_isolated(
                SERVER, arguments, seconds=TIMEOUT_SECONDS, environment=isolated_process.AS_SERVED
            )
        except ModelError as error:
            return f"its server: {error}"
        # no guard: see serving/test_smoke_test.py
        if result and not _same(result, expected):
            return "its answers behind the server differ from those that were gated"
        # guard: server-latency
        if not result or result["p95_ms"] <= max_ms:
            return None
        slowest = result["p95_ms"]
    return f"one record through the server takes {slowest:.4g} ms (95th percentile), the gate asks for <= {max_ms:g}"


def _same(answers: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Return True if answers equal the gated ones. A score may differ in the last bit: records are sent one by one."""
    import numpy as np

    near = np.allclose(answers["scores"], expected["scores"], rtol=NEAR, atol=NEAR)
    # no guard: see serving/test_smoke_test.py
    return bool(near) and answers["predictions"] == expected["predictions"]


def signature_problem(shown: Sequence[tuple[str, str]], asked: Sequence[tuple[str, str]]) -> str | None:
    """Return the first difference of a version's signature in MLflow from its golden requests; None without one.

    Parameters
    ----------
    shown, asked : sequence of (name, type)
        Features of MLflow's signature, and of the golden requests, in order.
    """
    # guard: model-signature
    if list(shown) == list(asked):
        return None
    pairs = [(one, other) for one, other in zip(shown, asked, strict=False) if one != other]
    says, needs = pairs[0] if pairs else (f"{len(shown)} features", f"{len(asked)}")
    return f"its signature in MLflow differs from what was gated: it must say {needs}. Got {says} instead"
