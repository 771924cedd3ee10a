import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ml_platform.stages import training
from ml_platform.workflows import likeness
from ml_platform_tests import fakes


def test_predictions_that_are_the_same_to_the_bit_say_nothing() -> None:
    answers: dict[str, list[Any]] = {"scores": [0.1, math.nan], "positive": [True, False]}

    assert likeness.different_predictions("holdout", answers, json.loads(json.dumps(answers))) == []


@pytest.mark.parametrize("other", [math.nextafter(0.1, 1), -0.1, math.nan, None])
def test_a_prediction_that_differs_in_the_last_bit_is_named(other: float) -> None:
    found = likeness.different_predictions("holdout", {"scores": [0.2, 0.1]}, {"scores": [0.2, other]})

    assert found == [f"holdout, row 1: scores {other!r} instead of 0.1"]


def test_zero_and_minus_zero_differ() -> None:
    assert likeness.different_predictions("holdout", {"scores": [0.0]}, {"scores": [-0.0]})


def test_the_first_differences_are_named_and_all_are_counted() -> None:
    found = likeness.different_predictions("holdout", {"scores": [0.0] * 9}, {"scores": [1.0] * 9})

    assert len(found) == likeness.EXAMPLES + 1
    assert found[-1] == "holdout: scores of 9 of 9 rows differ"


@pytest.mark.parametrize("after", [{"scores": [0.1]}, {}, {"scores": [0.1, 0.2], "classes": [1]}])
def test_predictions_that_are_missing_or_too_many_differ(after: dict[str, list[float]]) -> None:
    assert likeness.different_predictions("holdout", {"scores": [0.1, 0.2]}, after)


def test_every_number_of_a_verdict_with_its_bounds_is_a_figure() -> None:
    verdict = fakes.verdict(fakes.candidate())

    found = likeness.figures(verdict.document)

    assert found == verdict.metrics
    assert found["auc_roc"] == 0.8


def test_what_says_something_of_the_machine_is_not_compared() -> None:
    timings = [
        "inference_time_ms",
        "inference_time_ms.high",
        "cold_load_seconds",
        "resident_memory_mib",
        "machine_noise",
    ]
    others = ["auc_roc", "account_below_10_ms/auc_roc.low", "f1_score"]
    figures = dict.fromkeys([*timings, *others, likeness.SIZE], 1.0)

    paths, skipped = likeness.comparable(figures, {}, size=False)

    assert paths == sorted(others)
    assert sorted(skipped) == sorted([*timings, likeness.SIZE])
    assert likeness.SIZE in likeness.comparable(figures, {}, size=True)[0]


def test_a_figure_that_differs_or_is_missing_is_named() -> None:
    before, after = {"a": 0.1, "b": 0.2, "c": 0.3}, {"a": 0.1, "b": 0.25, "d": 0.4}

    assert likeness.different_figures(before, after, ["a", "b", "c", "d"]) == [
        "b 0.25 instead of 0.2",
        "c none instead of 0.3",
        "d 0.4 instead of none",
    ]


def test_a_file_that_skops_wrote_has_the_digest_of_the_canonical_one(tmp_path: Path) -> None:
    import skops.io as sio

    model = training.fit(fakes.visits(100), fakes.visits_spec())
    digest = training.store(model, tmp_path)
    sio.dump(model, tmp_path / "plain.skops")

    assert likeness.canonical_digest(tmp_path / "plain.skops") == digest
    assert likeness.canonical_digest(tmp_path / "model.skops") == digest


def test_a_file_whose_arrays_were_changed_has_another_digest(tmp_path: Path) -> None:
    digest = training.store(training.fit(fakes.visits(100), fakes.visits_spec()), tmp_path)
    changed = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "model.skops") as file, zipfile.ZipFile(changed, "w") as other:
        for name in file.namelist():
            data = file.read(name)
            other.writestr(name, data[:-1] + bytes([data[-1] ^ 1]) if name == "1.npy" else data)
    (tmp_path / "changed.skops").write_bytes(changed.getvalue())

    assert likeness.canonical_digest(tmp_path / "changed.skops") != digest
