import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ml_platform.inference import golden_requests
from ml_platform.inference.predictor import load
from ml_platform.release import integration_test
from ml_platform.storage.model_files import MODEL_FILE
from ml_platform.training import fit
from ml_platform_tests.support import fakes, misbehaving_models

pytestmark = pytest.mark.slow

SPEC = fakes.visits_spec()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a candidate's folder, with golden requests, and its model's digest."""
    folder = tmp_path_factory.mktemp("candidate")
    rows = fakes.visits(100)
    digest = fit.store(fit.fit(rows, SPEC), folder)
    predictor = load(folder / MODEL_FILE, digest)
    golden_requests.store_golden_requests(predictor, rows[SPEC.features], folder)
    return folder, digest


@pytest.fixture
def candidate(stored: tuple[Path, str], tmp_path: Path) -> tuple[Path, str]:
    """Return a copy of the stored candidate that a test may change."""
    return Path(shutil.copytree(stored[0], tmp_path / "candidate")), stored[1]


def run_integration_test(candidate: tuple[Path, str]) -> str | None:
    folder, digest = candidate
    return integration_test.integration_test(folder / MODEL_FILE, digest, folder)


def edit_answers(folder: Path, **changes: Any) -> None:
    path = folder / golden_requests.GOLDEN_ANSWERS
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_golden_requests_are_first_rows_with_answers(stored: tuple[Path, str]) -> None:
    folder, digest = stored
    predictor = load(folder / MODEL_FILE, digest)
    features = fakes.visits(100)[SPEC.features].head(golden_requests.GOLDEN_ROWS)

    requests = pd.read_parquet(folder / golden_requests.GOLDEN_REQUESTS)
    answers = json.loads((folder / golden_requests.GOLDEN_ANSWERS).read_text())

    pd.testing.assert_frame_equal(requests, features)
    assert answers["scores"] == predictor.scores(features).tolist()
    assert answers["predictions"] == predictor.predictions(features).tolist()


def test_integration_test_unchanged_bytes_pass(stored: tuple[Path, str]) -> None:
    assert run_integration_test(stored) is None


def test_integration_test_answer_off_by_one_bit_fails(candidate: tuple[Path, str]) -> None:
    import math

    folder, _ = candidate
    scores = json.loads((folder / golden_requests.GOLDEN_ANSWERS).read_text())["scores"]
    edit_answers(folder, scores=[math.nextafter(scores[0], 1), *scores[1:]])

    assert run_integration_test(candidate) == "its answers differ from those that were gated"


@pytest.mark.fault("M3")
def test_integration_test_changed_bytes_are_not_loaded(candidate: tuple[Path, str]) -> None:
    model = candidate[0] / MODEL_FILE
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)

    problem = run_integration_test(candidate)

    assert problem is not None
    assert "DigestMismatchError" in problem
    assert "It was not loaded." in problem


def test_integration_test_model_with_other_columns_fails(candidate: tuple[Path, str]) -> None:
    requests = candidate[0] / golden_requests.GOLDEN_REQUESTS
    pd.read_parquet(requests).drop(columns="plan").to_parquet(requests)

    problem = run_integration_test(candidate)

    assert problem is not None
    assert "plan" in problem


def test_integration_test_ignores_a_models_stdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration_test, "PROGRAM", misbehaving_models.NAME)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    file, digest = misbehaving_models.store(tmp_path, misbehaving_models.Odd("writes"))
    fakes.visits(3)[SPEC.features].to_parquet(tmp_path / golden_requests.GOLDEN_REQUESTS)
    (tmp_path / golden_requests.GOLDEN_ANSWERS).write_text('{"scores": [0.5, 0.5, 0.5], "predictions": [0, 0, 0]}')

    assert integration_test.integration_test(file, digest, tmp_path) is None
