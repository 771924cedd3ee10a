import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ml_platform.predictor import MODEL_FILE, load
from ml_platform.stages import staging, training
from ml_platform_tests import fakes, odd_models

SPEC = fakes.visits_spec()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a candidate's folder, golden requests inside, and its model's digest."""
    folder = tmp_path_factory.mktemp("candidate")
    rows = fakes.visits(100)
    digest = training.store(training.fit(rows, SPEC), folder)
    predictor = load(folder / MODEL_FILE, digest)
    staging.keep_golden_requests(predictor, rows[SPEC.features], folder)
    return folder, digest


@pytest.fixture
def candidate(stored: tuple[Path, str], tmp_path: Path) -> tuple[Path, str]:
    """Return a copy of it that a test may change."""
    return Path(shutil.copytree(stored[0], tmp_path / "candidate")), stored[1]


def problem_of(candidate: tuple[Path, str]) -> str | None:
    folder, digest = candidate
    return staging.integration_test(folder / MODEL_FILE, digest, folder)


def edit_answers(folder: Path, **changes: Any) -> None:
    path = folder / staging.GOLDEN_ANSWERS
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_golden_requests_are_the_first_rows_and_the_models_answers(stored: tuple[Path, str]) -> None:
    folder, digest = stored
    predictor = load(folder / MODEL_FILE, digest)
    features = fakes.visits(100)[SPEC.features].head(staging.GOLDEN_ROWS)

    requests = pd.read_parquet(folder / staging.GOLDEN_REQUESTS)
    answers = json.loads((folder / staging.GOLDEN_ANSWERS).read_text())

    pd.testing.assert_frame_equal(requests, features)
    assert answers["scores"] == predictor.scores(features).tolist()
    assert answers["predictions"] == predictor.predictions(features).tolist()


def test_the_bytes_that_were_gated_pass_in_a_fresh_process(stored: tuple[Path, str]) -> None:
    assert problem_of(stored) is None


def test_an_answer_that_differs_in_the_last_bit_is_noticed(candidate: tuple[Path, str]) -> None:
    import math

    folder, _ = candidate
    scores = json.loads((folder / staging.GOLDEN_ANSWERS).read_text())["scores"]
    edit_answers(folder, scores=[math.nextafter(scores[0], 1), *scores[1:]])

    assert problem_of(candidate) == "its answers differ from those that were gated"


@pytest.mark.fault("M3")
def test_bytes_that_changed_after_the_gates_are_not_loaded(candidate: tuple[Path, str]) -> None:
    model = candidate[0] / MODEL_FILE
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)

    problem = problem_of(candidate)

    assert problem is not None
    assert "DigestMismatchError" in problem
    assert "It was not loaded." in problem


def test_a_model_that_wants_other_columns_is_refused(candidate: tuple[Path, str]) -> None:
    requests = candidate[0] / staging.GOLDEN_REQUESTS
    pd.read_parquet(requests).drop(columns="plan").to_parquet(requests)

    problem = problem_of(candidate)

    assert problem is not None
    assert "plan" in problem


def test_what_a_model_writes_to_stdout_is_not_taken_for_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "PROGRAM", odd_models.NAME)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    file, digest = odd_models.store(tmp_path, odd_models.Odd("writes"))
    fakes.visits(3)[SPEC.features].to_parquet(tmp_path / staging.GOLDEN_REQUESTS)
    (tmp_path / staging.GOLDEN_ANSWERS).write_text('{"scores": [0.5, 0.5, 0.5], "predictions": [0, 0, 0]}')

    assert staging.integration_test(file, digest, tmp_path) is None
