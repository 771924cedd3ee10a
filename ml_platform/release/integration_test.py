"""Integration test of a registered version: its bytes, in a fresh process, against the golden requests."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ml_platform.errors import ModelError
from ml_platform.evaluation import latency
from ml_platform.inference.golden_requests import GOLDEN_ANSWERS, GOLDEN_REQUESTS
from ml_platform.records.verdict import Candidate, GateOutcome
from ml_platform.system import isolated_process

TIMEOUT_SECONDS = 120
PROGRAM = "ml_platform.inference.predictor"
SERVER = "ml_platform.serving.smoke_test"
# Imports of the fresh processes of a retraining, in order: first those of the gates, then the prediction server.
FRESH_MODULES = (*latency.LIBRARIES, latency.PROGRAM, PROGRAM, SERVER)
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

    A latency that a busy machine may have caused is measured again, as the gate on `inference_time_ms` does. If it
    stays inconclusive, the problem names the command that repeats the test.

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
    try:
        decision = latency.measure_until_decided(max_ms, partial(_measure_server, model_file, candidate, golden))
    except _WrongAnswersError as error:
        return str(error)
    except ModelError as error:
        return f"its server: {error}"
    # guard: server-latency
    if decision.outcome is GateOutcome.PASS:
        return None
    problem = f"behind the server, {decision.why}"
    # no guard: both outcomes refuse the version, with other words
    if decision.outcome is GateOutcome.FAIL:
        return problem
    return (
        f"{problem}. The result is inconclusive, as other processes may slow this machine down. Test the version again "
        f"when it is idle: ml-platform resume {candidate.model}"
    )


class _WrongAnswersError(ModelError):
    """A version's answers behind the server are not its gated ones."""


def _measure_server(model_file: Path, candidate: Candidate, golden: Path) -> latency.WarmLatency:
    arguments = [str(model_file), str(golden), candidate.model, candidate.model_digest, str(candidate.served_digest)]
    result = isolated_process.run_isolated(
        SERVER, arguments, seconds=TIMEOUT_SECONDS, environment=isolated_process.AS_SERVED
    )
    # no guard: without golden requests there is no answer to compare
    if not result:
        return latency.WarmLatency(p50_ms=0, p95_ms=0, calls=0, noise=1)
    # no guard: see serving/test_smoke_test.py
    if not _same(result, json.loads((golden / GOLDEN_ANSWERS).read_text())):
        raise _WrongAnswersError("its answers behind the server differ from those that were gated")
    return latency.WarmLatency(**{name: result[name] for name in ("p50_ms", "p95_ms", "calls", "noise")})


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
