"""Checks of a dataset version before training."""

import numpy as np
import pytest

from ml_platform.data import dataset_checks
from ml_platform.records.data import DatasetVersion
from ml_platform_tests.support import fakes


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


@pytest.mark.fault("D27")
def test_report_leak_with_gaps_names_clue() -> None:
    rows = fakes.visits(400)
    labels = (rows["bought"] == "yes").to_numpy().astype("int64")
    copy = rows.assign(pages=np.where(np.arange(400) % 50 == 7, np.nan, labels))
    version = DatasetVersion(model="visits", version=1, digest="", rows=400)

    report = dataset_checks.build_dataset_report(version, copy, labels, fakes.visits_spec())

    assert report.problems == {
        "leakage": "a single feature gives the label away: pages (1.000 on its 392 rows with a value)"
    }
