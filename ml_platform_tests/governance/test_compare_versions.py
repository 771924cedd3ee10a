import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ml_platform.governance import compare_versions
from ml_platform.training import fit
from ml_platform_tests.support import fakes


def test_different_predictions_identical_values_give_nothing() -> None:
    answers: dict[str, list[Any]] = {"scores": [0.1, math.nan], "positive": [True, False]}

    assert compare_versions.different_predictions("holdout", answers, json.loads(json.dumps(answers))) == []


@pytest.mark.parametrize("other", [math.nextafter(0.1, 1), -0.1, math.nan, None])
def test_different_predictions_last_bit_is_reported(other: float) -> None:
    result = compare_versions.different_predictions("holdout", {"scores": [0.2, 0.1]}, {"scores": [0.2, other]})

    assert result == [f"holdout, row 1: scores {other!r} instead of 0.1"]


def test_zero_and_minus_zero_differ() -> None:
    assert compare_versions.different_predictions("holdout", {"scores": [0.0]}, {"scores": [-0.0]})


def test_different_predictions_reports_examples_and_count() -> None:
    result = compare_versions.different_predictions("holdout", {"scores": [0.0] * 9}, {"scores": [1.0] * 9})

    assert len(result) == compare_versions.EXAMPLES + 1
    assert result[-1] == "holdout: scores of 9 of 9 rows differ"


@pytest.mark.parametrize("after", [{"scores": [0.1]}, {}, {"scores": [0.1, 0.2], "classes": [1]}])
def test_predictions_that_are_missing_or_too_many_differ(after: dict[str, list[float]]) -> None:
    assert compare_versions.different_predictions("holdout", {"scores": [0.1, 0.2]}, after)


def test_measurements_include_all_numbers_and_bounds() -> None:
    verdict = fakes.verdict(fakes.candidate())

    result = compare_versions.measurements(verdict.document)

    assert result == verdict.metrics
    assert result["auc_roc"] == 0.8


def test_comparable_skips_measurements_of_the_machine() -> None:
    timings = [
        "inference_time_ms",
        "inference_time_ms.high",
        "cold_load_seconds",
        "resident_memory_mib",
        "machine_noise",
    ]
    others = ["auc_roc", "account_below_10_ms/auc_roc.low", "f1_score"]
    measurements = dict.fromkeys([*timings, *others, compare_versions.SIZE], 1.0)

    paths, skipped = compare_versions.comparable(measurements, {}, size=False)

    assert paths == sorted(others)
    assert sorted(skipped) == sorted([*timings, compare_versions.SIZE])
    assert compare_versions.SIZE in compare_versions.comparable(measurements, {}, size=True)[0]


def test_different_measurements_reports_changed_and_missing() -> None:
    before, after = {"a": 0.1, "b": 0.2, "c": 0.3}, {"a": 0.1, "b": 0.25, "d": 0.4}

    assert compare_versions.different_measurements(before, after, ["a", "b", "c", "d"]) == [
        "b 0.25 instead of 0.2",
        "c none instead of 0.3",
        "d 0.4 instead of none",
    ]


def test_canonical_digest_of_skops_file_equals_canonical_file(tmp_path: Path) -> None:
    import skops.io as sio

    model = fit.fit(fakes.visits(100), fakes.visits_spec())
    digest = fit.store(model, tmp_path)
    sio.dump(model, tmp_path / "plain.skops")

    assert compare_versions.canonical_digest(tmp_path / "plain.skops") == digest
    assert compare_versions.canonical_digest(tmp_path / "model.skops") == digest


def test_canonical_digest_of_changed_arrays_differs(tmp_path: Path) -> None:
    digest = fit.store(fit.fit(fakes.visits(100), fakes.visits_spec()), tmp_path)
    changed = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "model.skops") as file, zipfile.ZipFile(changed, "w") as other:
        for name in file.namelist():
            data = file.read(name)
            other.writestr(name, data[:-1] + bytes([data[-1] ^ 1]) if name == "1.npy" else data)
    (tmp_path / "changed.skops").write_bytes(changed.getvalue())

    assert compare_versions.canonical_digest(tmp_path / "changed.skops") != digest
