"""One version behind the real public port, in a fresh process: its answers, its time, and what it refuses."""

import json
import os
import sys
from pathlib import Path

import pandas as pd
import pytest

from ml_platform import fresh, workflows
from ml_platform.errors import ModelError
from ml_platform.predictor import MODEL_FILE
from ml_platform.records import Candidate
from ml_platform.stages import staging
from ml_platform.workflows import Platform
from ml_platform_tests import fakes, mutants

ENOUGH_MS = 60_000.0


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    return mutants.honest_home(tmp_path_factory.mktemp("honest") / "home", empty_mlflow)


@pytest.fixture
def judged(honest: Path, tmp_path: Path) -> tuple[Platform, Candidate, Path]:
    """A platform, its newest candidate, and the folder with the candidate's files."""
    platform = fakes.copied_platform(honest, tmp_path / "home")
    candidate = workflows.current_candidate(platform, "visits")
    return platform, candidate, platform.candidate_folder(candidate)


def test_the_server_answers_as_the_candidate_did_and_says_how_long_it_took(
    judged: tuple[Platform, Candidate, Path],
) -> None:
    _, candidate, folder = judged
    digests = [candidate.model_digest, str(candidate.served_digest)]

    said = fresh.ask(
        staging.SERVER, [str(folder / MODEL_FILE), str(folder), "visits", *digests], seconds=staging.TIMEOUT_SECONDS
    )

    expected = json.loads((folder / staging.GOLDEN_ANSWERS).read_text())
    assert said["predictions"] == expected["predictions"]
    assert said["scores"] == pytest.approx(expected["scores"], rel=1e-9)
    assert 0 < said["p50_ms"] <= said["p95_ms"]


@pytest.mark.fault("M3")
def test_other_bytes_are_not_served(judged: tuple[Platform, Candidate, Path], tmp_path: Path) -> None:
    _, candidate, folder = judged
    other = tmp_path / "other.skops"
    other.write_bytes((folder / MODEL_FILE).read_bytes() + b" ")

    problem = staging.server_problem(other, candidate, folder, ENOUGH_MS)

    assert problem is not None
    assert "not the file that was judged" in problem


@pytest.mark.parametrize("asked", [ENOUGH_MS, 1e-6])
def test_a_server_that_answers_otherwise_is_not_believed(
    judged: tuple[Platform, Candidate, Path], monkeypatch: pytest.MonkeyPatch, asked: float
) -> None:
    _, candidate, folder = judged
    monkeypatch.setattr(staging, "SERVER", "ml_platform_tests.serving.liar")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))

    problem = staging.server_problem(folder / MODEL_FILE, candidate, folder, asked)

    assert problem == "its answers behind the server differ from those that were gated"


def test_a_version_is_timed_with_the_threads_of_a_servers_worker(
    judged: tuple[Platform, Candidate, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, candidate, folder = judged
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setattr(staging, "SERVER", "ml_platform_tests.threads")

    problem = staging.server_problem(folder / MODEL_FILE, candidate, folder, ENOUGH_MS)

    assert problem is not None
    assert problem.endswith("threads: 1")


def test_a_version_that_passes_through_the_server_is_staged(judged: tuple[Platform, Candidate, Path]) -> None:
    platform, candidate, _ = judged

    assert workflows.stage_version(platform, candidate, most_ms=ENOUGH_MS)[1] is None


def test_requests_of_which_everybody_was_forgotten_ask_nothing(judged: tuple[Platform, Candidate, Path]) -> None:
    _, candidate, folder = judged
    pd.read_parquet(folder / staging.GOLDEN_REQUESTS).head(0).to_parquet(folder / staging.GOLDEN_REQUESTS)

    # The list of the files still names the others.
    with pytest.raises(ModelError, match="not the file that was judged"):
        fresh.ask(
            staging.SERVER,
            [str(folder / MODEL_FILE), str(folder), "visits", candidate.model_digest, str(candidate.served_digest)],
            seconds=staging.TIMEOUT_SECONDS,
        )
