"""Tests of the smoke test: one version behind the real public port, in a fresh process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ml_platform.errors import ModelError
from ml_platform.evaluation import latency
from ml_platform.inference import golden_requests
from ml_platform.platform import Platform
from ml_platform.records.verdict import Candidate
from ml_platform.release import integration_test
from ml_platform.release.register import stage_version
from ml_platform.storage.model_files import MODEL_FILE
from ml_platform.system import fork_server, isolated_process
from ml_platform.training.train import current_candidate
from ml_platform_tests.support import fakes

pytestmark = pytest.mark.servers

ENOUGH_MS = 60_000.0


@pytest.fixture
def evaluated(honest: Path, tmp_path: Path) -> tuple[Platform, Candidate, Path]:
    """Return a platform, its newest candidate, and the folder with the candidate's files."""
    platform = fakes.copied_platform(honest, tmp_path / "home")
    candidate = current_candidate(platform, "visits")
    return platform, candidate, platform.candidate_folder(candidate)


def test_smoke_test_returns_golden_answers_and_latencies(
    evaluated: tuple[Platform, Candidate, Path],
) -> None:
    _, candidate, folder = evaluated
    digests = [candidate.model_digest, str(candidate.served_digest)]

    result = isolated_process.run_isolated(
        integration_test.SERVER,
        [str(folder / MODEL_FILE), str(folder), "visits", *digests],
        seconds=integration_test.TIMEOUT_SECONDS,
    )

    expected = json.loads((folder / golden_requests.GOLDEN_ANSWERS).read_text())
    assert result["predictions"] == expected["predictions"]
    assert result["scores"] == pytest.approx(expected["scores"], rel=1e-9)
    assert 0 < result["p50_ms"] <= result["p95_ms"]


@pytest.mark.fault("M3")
def test_changed_model_file_is_not_served(evaluated: tuple[Platform, Candidate, Path], tmp_path: Path) -> None:
    _, candidate, folder = evaluated
    other = tmp_path / "other.skops"
    other.write_bytes((folder / MODEL_FILE).read_bytes() + b" ")

    problem = integration_test.server_problem(other, candidate, folder, ENOUGH_MS)

    assert problem is not None
    assert "does not match its sha256" in problem


@pytest.mark.parametrize("max_ms", [ENOUGH_MS, 1e-6])
def test_server_with_wrong_answers_is_a_problem(
    evaluated: tuple[Platform, Candidate, Path], monkeypatch: pytest.MonkeyPatch, max_ms: float
) -> None:
    _, candidate, folder = evaluated
    monkeypatch.setattr(integration_test, "SERVER", "ml_platform_tests.support.wrong_answers")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))

    problem = integration_test.server_problem(folder / MODEL_FILE, candidate, folder, max_ms)

    assert problem == "its answers behind the server differ from those that were gated"


@pytest.mark.parametrize(
    ("max_ms", "ends_with"),
    [
        (300.0, None),
        (100.0, "Test the version again when it is idle: ml-platform resume visits"),
        (29.0, "30 ms without the machine's noise; the bound is 29 ms"),
    ],
)
def test_server_latency_within_noise_is_inconclusive(
    evaluated: tuple[Platform, Candidate, Path], monkeypatch: pytest.MonkeyPatch, max_ms: float, ends_with: str | None
) -> None:
    _, candidate, folder = evaluated
    monkeypatch.setattr(integration_test, "SERVER", "ml_platform_tests.support.slow_answers")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))

    problem = integration_test.server_problem(folder / MODEL_FILE, candidate, folder, max_ms)

    assert problem == ends_with if ends_with is None else str(problem).endswith(ends_with)


@pytest.fixture
def burners() -> Iterator[None]:
    """Keep all cores busy."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("burners")
def test_fast_version_never_fails_on_busy_machine(evaluated: tuple[Platform, Candidate, Path]) -> None:
    _, candidate, folder = evaluated

    problem = integration_test.server_problem(folder / MODEL_FILE, candidate, folder, 5)

    assert problem is None or problem.endswith("ml-platform resume visits")


def test_smoke_test_runs_with_a_workers_threads(
    evaluated: tuple[Platform, Candidate, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, candidate, folder = evaluated
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setattr(integration_test, "SERVER", "ml_platform_tests.support.print_threads")

    problem = integration_test.server_problem(folder / MODEL_FILE, candidate, folder, ENOUGH_MS)

    assert problem is not None
    assert problem.endswith("threads: 1")


def test_version_that_passes_is_staged(evaluated: tuple[Platform, Candidate, Path]) -> None:
    platform, candidate, _ = evaluated

    assert stage_version(platform, candidate, max_ms=ENOUGH_MS)[1] is None


@pytest.mark.skipif(not fork_server.SUPPORTED, reason="the fork server is Linux only")
def test_three_tests_fork_from_one_process(
    evaluated: tuple[Platform, Candidate, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, candidate, folder = evaluated
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    isolated_process.start_early(integration_test.FRESH_MODULES)

    def no_interpreter(*_: Any, **__: Any) -> None:
        pytest.fail("an interpreter was started beside the fork server")

    monkeypatch.setattr(subprocess, "run", no_interpreter)
    model_file, digest = folder / MODEL_FILE, candidate.model_digest
    measured = latency.measure(model_file, digest, folder / golden_requests.GOLDEN_REQUESTS, warm_seconds=0.1)

    assert integration_test.integration_test(model_file, digest, folder) is None
    assert integration_test.server_problem(model_file, candidate, folder, ENOUGH_MS) is None
    # Imports take most of a cold load; the fork server's count.
    assert measured.cold_load_seconds > 10 * measured.first_prediction_ms / 1_000


def test_golden_requests_changed_after_evaluation_are_refused(evaluated: tuple[Platform, Candidate, Path]) -> None:
    _, candidate, folder = evaluated
    pd.read_parquet(folder / golden_requests.GOLDEN_REQUESTS).head(0).to_parquet(
        folder / golden_requests.GOLDEN_REQUESTS
    )

    # The list of files still has the digest of the original requests.
    with pytest.raises(ModelError, match="does not match its sha256"):
        isolated_process.run_isolated(
            integration_test.SERVER,
            [str(folder / MODEL_FILE), str(folder), "visits", candidate.model_digest, str(candidate.served_digest)],
            seconds=integration_test.TIMEOUT_SECONDS,
        )
