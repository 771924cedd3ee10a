"""Checks of a dataset version before training."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from ml_platform.data import dataset_checks
from ml_platform.records.data import DatasetVersion
from ml_platform_tests.support import fakes

SPEC = fakes.visits_spec()


def labelled(n: int = 400) -> tuple[pd.DataFrame, Any]:
    rows = fakes.visits(n)
    return rows[SPEC.features], (rows["bought"] == "yes").to_numpy().astype("int64")


def test_leaks_honest_features_are_accepted() -> None:
    features, labels = labelled()

    assert dataset_checks.find_leaking_features(features, labels) == {}


@pytest.mark.parametrize("sign", [1, -1])
def test_leaks_number_equal_to_label_is_found(sign: int) -> None:
    features, labels = labelled()

    assert dataset_checks.find_leaking_features(features.assign(copy=sign * labels), labels) == {"copy": 1.0}


def test_leaks_category_equal_to_label_is_found() -> None:
    features, labels = labelled()

    assert dataset_checks.find_leaking_features(features.assign(copy=np.where(labels == 1, "y", "n")), labels) == {
        "copy": 1.0
    }


def test_leak_score_equals_auc_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    _, labels = labelled()
    almost = pd.DataFrame({"almost": labels.astype(float)})
    almost.loc[[0, 1], "almost"] = 0.5

    assert dataset_checks.find_leaking_features(almost, labels) == pytest.approx(
        {"almost": roc_auc_score(labels, almost["almost"])}
    )


def test_leaks_unique_categories_are_accepted() -> None:
    _, labels = labelled()

    assert (
        dataset_checks.find_leaking_features(pd.DataFrame({"id": [f"v{i}" for i in range(len(labels))]}), labels) == {}
    )


def test_leaks_constant_category_rare_class_is_accepted() -> None:
    labels = np.array([1] + [0] * 199)

    assert dataset_checks.find_leaking_features(pd.DataFrame({"same": ["x"] * 200}), labels) == {}


@pytest.mark.parametrize("label", [0, 1])
def test_leaks_single_class_has_none(label: int) -> None:
    assert dataset_checks.find_leaking_features(pd.DataFrame({"a": [1, 2, 3]}), np.array([label] * 3)) == {}


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_leaks_of_several_classes_are_found(random: np.random.Generator) -> None:
    labels = random.choice(["a", "b", "c"], 600)
    codes = np.searchsorted(["a", "b", "c"], labels)
    features = pd.DataFrame(
        {
            "text": np.char.add("is ", labels),
            "number": codes * -2,
            "spread": codes + random.random(600) * 0.99,
            "noise": random.random(600),
            "other": random.choice(["x", "y"], 600),
            "hint": np.where(random.random(600) < 0.5, codes, 0),
        }
    )

    assert set(dataset_checks.find_leaking_features(features, labels, "multiclass")) == {"text", "number", "spread"}


def test_leaks_of_numeric_label_are_found(random: np.random.Generator) -> None:
    labels = random.choice([1.0, 5.0, 9.0], 600)
    features = pd.DataFrame(
        {
            "copy": labels,
            "grown": -np.exp(labels),
            "text": labels.astype("str"),
            "noise": random.random(600),
            "constant": 1,
            "hint": labels + random.normal(0, 2, 600),
            "other": random.choice(["x", "y"], 600),
            "id": [f"v{i}" for i in range(600)],
        }
    )

    assert set(dataset_checks.find_leaking_features(features, labels, "regression")) == {"copy", "grown", "text"}


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["few"] * 300 + ["many"] * 300, "it has 2 classes, the multiclass task needs at least three"),
        (["few"] * 300 + ["many"] * 298 + ["some"] * 2, "0.3% of its rows are some"),
        (["few"] * 300 + ["many"] * 200 + ["some"] * 100, None),
    ],
)
def test_balance_two_or_rare_classes_are_a_problem(labels: list[str], problem: str | None) -> None:
    rows, spec = fakes.visits(600).drop(columns="bought").assign(kind=labels), fakes.kinds_spec()
    version = DatasetVersion(model="visits", version=1, digest="", rows=600)

    report = dataset_checks.build_dataset_report(version, rows, np.array(labels), spec)

    assert report.share_positive is None
    assert (problem is None) == ("class_balance" not in report.problems)
    assert report.problems.get("class_balance", "").startswith(problem or "")


@pytest.mark.parametrize(("spent", "is_problem"), [(7.0, True), (None, False)])
def test_balance_constant_numeric_label_is_a_problem(spent: float | None, is_problem: bool) -> None:
    rows, spec = fakes.spending(fakes.visits(600)), fakes.spending_spec()
    rows = rows if spent is None else rows.assign(spent=spent)
    version = DatasetVersion(model="visits", version=1, digest="", rows=600)

    report = dataset_checks.build_dataset_report(version, rows, rows["spent"].to_numpy(), spec)

    assert ("class_balance" in report.problems) is is_problem
