from typing import Any

import pytest

from ml_platform.ci.attribution import MetricChange, find_metric_changes, sentences
from ml_platform.ci.result_schema import ChangeResult, ReportedMeasurement, ReportedReference
from ml_platform_tests.support import repositories

PAID = "plan = paid"
PLACE = ("holdout", PAID, "auc_roc")


def trial(*corners: float, **fields: Any) -> ChangeResult:
    """Return a result with these AUCs of paying visitors: old code, new code, on the old and then the new data."""
    places = [("old", "old"), ("new", "old"), ("old", "new"), ("new", "new")][-len(corners) :]
    return repositories.trial({p: {"": 0.9, PAID: value} for p, value in zip(places, corners, strict=True)}, **fields)


def paid_change(found: ChangeResult) -> MetricChange:
    return next(one for one in find_metric_changes(found) if one.where == PLACE)


@pytest.mark.parametrize(
    ("corners", "cause", "code", "data"),
    [
        ((0.92, 0.70, 0.92, 0.70), "code", -0.22, 0.0),
        ((0.92, 0.92, 0.70, 0.70), "data", 0.0, -0.22),
        ((0.92, 0.82, 0.81, 0.70), "both", -0.105, -0.115),
        # Better data, and code that is worse by more.
        ((0.90, 0.70, 0.95, 0.75), "code", -0.2, 0.05),
        ((0.92, 0.70), "code", -0.22, 0.0),
    ],
)
def test_attribution_worse_metric_names_code_or_data(
    corners: tuple[float, ...], cause: str, code: float, data: float
) -> None:
    found = paid_change(trial(*corners))

    assert (found.cause, found.worse, found.told) == (cause, True, True)
    assert [found.code, found.data] == pytest.approx([code, data])
    assert found.by == pytest.approx(code + data)


def test_sentence_names_metric_slice_and_cause() -> None:
    same = trial(0.92, 0.70)
    both = trial(0.92, 0.82, 0.81, 0.70)

    assert sentences(same) == [
        "auc_roc of plan = paid became worse: 0.92 before, 0.7 now (-0.22). "
        "The cause is the code: the data are the same."
    ]
    assert sentences(both) == [
        "auc_roc of plan = paid became worse: 0.92 before, 0.7 now (-0.22). "
        "The causes are code and data: the code moves it by -0.105, the data by -0.115."
    ]


def test_sentences_failed_gate_comes_first() -> None:
    far = repositories.asked(
        name="auc_roc_by_plan", condition="auc_roc >= 0.88, for each plan", at_least=0.88, places=[PAID]
    )
    found = repositories.trial(
        {("old", "new"): {"": 0.95, PAID: 0.89}, ("new", "new"): {"": 0.85, PAID: 0.87}},
        asked=[repositories.asked(), far],
    )

    (said,) = sentences(found)
    assert "0.87 now (-0.02), which fails the gate auc_roc >= 0.88, for each plan. " in said
    assert said.endswith("Also worse: all rows.")


def test_attribution_change_within_interval_is_not_reported() -> None:
    assert sentences(trial(0.92, 0.91)) == []
    assert not paid_change(trial(0.92, 0.91)).told


def test_attribution_paired_comparison_is_sharper_than_intervals() -> None:
    corners = repositories.trial({("old", "new"): {"": 0.90}, ("new", "new"): {"": 0.89}}).corners
    reference = ReportedReference(
        kind="champion", name="version 1", metric="auc_roc", difference=-0.01, low=-0.015, high=-0.005
    )
    baseline = reference.model_copy(update={"kind": "baseline"})

    told = repositories.trial(corners=[corners[0], corners[1].model_copy(update={"reference": reference})])
    not_told = repositories.trial(corners=[corners[0], corners[1].model_copy(update={"reference": baseline})])

    assert sentences(told)[0].startswith("auc_roc of all rows became worse: 0.9 before, 0.89 now")
    assert sentences(not_told) == []


def test_attribution_small_slice_is_not_shown() -> None:
    few = [
        repositories.corner(code, "new", repositories.measurements({PAID: value}, rows=4))
        for code, value in (("old", 0.9), ("new", 0.1))
    ]

    assert find_metric_changes(repositories.trial(corners=few)) == []


def test_attribution_loss_is_better_when_smaller() -> None:
    def loss(code: str, value: float) -> Any:
        return repositories.corner(code, "new", repositories.measurements({"": value}, metric="log_loss"))

    assert sentences(repositories.trial(corners=[loss("old", 0.2), loss("new", 0.4)]))[0].startswith(
        "log_loss of all rows"
    )
    assert sentences(repositories.trial(corners=[loss("old", 0.4), loss("new", 0.2)])) == []


@pytest.mark.parametrize(
    ("before", "after", "half", "told"), [(10, 30, 5, True), (10, 30, 11, False), (10, 10.5, 0.1, False)]
)
def test_attribution_time_is_reported_beyond_noise(before: float, after: float, half: float, told: bool) -> None:
    def time(code: str, value: float) -> Any:
        return repositories.corner(
            code, "new", repositories.measurements({"": value}, metric="inference_time_ms", half=half)
        )

    assert bool(sentences(repositories.trial(corners=[time("old", before), time("new", after)]))) is told


def test_attribution_time_of_same_model_is_not_reported() -> None:
    found = (
        repositories.measurements({"": 10}, metric="inference_time_ms", half=1),
        repositories.measurements({"": 90}, metric="inference_time_ms", half=1),
    )
    corners = [
        repositories.corner(code, "new", f, model_digest="c" * 64)
        for code, f in zip(("old", "new"), found, strict=True)
    ]

    assert sentences(repositories.trial(corners=corners)) == []


def test_attribution_missing_run_gives_unknown_cause() -> None:
    whole = trial(0.92, 0.7, 0.92, 0.7)
    partly = whole.model_copy(update={"corners": [c for c in whole.corners if (c.code, c.data) != ("new", "old")]})

    assert paid_change(partly).cause == "unknown"
    assert "a run that would separate their effects has no verdict" in sentences(partly)[0]
    nothing = whole.model_copy(update={"corners": [c for c in whole.corners if (c.code, c.data) != ("old", "old")]})
    assert sentences(nothing) == []


# Shown measurements, reported changes and their order


def judged(code: str, *found: ReportedMeasurement, data: str = "new", **fields: Any) -> Any:
    return repositories.corner(code, data, list(found), **fields)


def measurement(value: float | None, *, metric: str = "auc_roc", **fields: Any) -> ReportedMeasurement:
    half = 0.02 if value is not None else 0.0
    spread = {"low": (value or 0.0) - half, "high": (value or 0.0) + half, "rows": 500}
    return ReportedMeasurement(metric=metric, value=value, **{**spread, **fields})


def pair(before: ReportedMeasurement, after: ReportedMeasurement, **fields: Any) -> ChangeResult:
    return repositories.trial(corners=[judged("old", before), judged("new", after)], **fields)


@pytest.mark.parametrize(
    "odd",
    [measurement(None), measurement(0.9, slice="plan = other"), measurement(0.9, rows=4)],
    ids=["no value", "new", "few rows"],
)
def test_attribution_measurement_of_one_side_is_not_compared(odd: ReportedMeasurement) -> None:
    assert find_metric_changes(pair(odd, measurement(0.1))) == []
    assert find_metric_changes(pair(measurement(0.9), odd)) == []


def test_attribution_size_without_rows_is_compared() -> None:
    size: dict[str, Any] = {"metric": "model_size_mb", "rows": None, "low": None, "high": None}

    assert sentences(pair(measurement(1.0, **size), measurement(9.0, **size)))[0].startswith(
        "model_size_mb became worse: 1"
    )


def test_attribution_unchanged_metric_has_no_cause() -> None:
    (same,) = find_metric_changes(pair(measurement(0.9), measurement(0.9)))
    assert (same.by, same.cause, same.told) == (0.0, "unknown", False)

    four = [judged(code, measurement(0.9), data=data) for code in ("old", "new") for data in ("old", "new")]
    four[1] = judged("old", measurement(None), data="new")
    assert find_metric_changes(repositories.trial(corners=four, data_changed=True))[0].code is None


def test_attribution_quarter_of_difference_is_a_cause() -> None:
    assert paid_change(trial(0.9, 0.78, 0.88, 0.76)).cause == "code"
    assert paid_change(trial(0.9, 0.80, 0.86, 0.76)).cause == "both"


def test_attribution_both_values_must_leave_both_intervals() -> None:
    """A small slice has a wide interval: a value before the change within it is explained by sampling error."""
    wide = measurement(0.85, low=0.75, high=0.95)

    assert sentences(pair(measurement(0.90), wide)) == sentences(pair(wide, measurement(0.80))) == []
    assert len(sentences(pair(measurement(0.97), wide))) == 1


@pytest.mark.parametrize(
    ("gate", "before", "after", "closes"),
    [
        ({}, measurement(0.8), measurement(0.79), True),
        ({}, measurement(0.81), measurement(0.80), False),
        # The gate failed before, too.
        ({}, measurement(0.79), measurement(0.78), False),
        ({"on": "confidence_bound"}, measurement(0.83), measurement(0.81), True),
        ({"on": "confidence_bound"}, measurement(0.83, low=None), measurement(0.81), False),
        ({"at_least": None, "at_most": 0.8}, measurement(0.80), measurement(0.81), True),
        ({"at_least": None, "at_most": 0.8}, measurement(0.79), measurement(0.80), False),
        ({"at_least": None, "at_most": 0.8, "on": "confidence_bound"}, measurement(0.77), measurement(0.79), True),
        ({"dataset": "holiday"}, measurement(0.81), measurement(0.79), False),
        ({"places": [PAID]}, measurement(0.81), measurement(0.79), False),
        ({"metric": "recall"}, measurement(0.81), measurement(0.79), False),
    ],
)
def test_attribution_gate_that_passed_before_closes(
    gate: dict[str, Any], before: ReportedMeasurement, after: ReportedMeasurement, closes: bool
) -> None:
    """A failed gate is reported even if the measurement barely changed."""
    (found,) = find_metric_changes(pair(before, after, asked=[repositories.asked(**gate)]))

    assert (bool(found.closes), found.told) == (closes, closes)


def test_attribution_same_model_reports_metrics_but_no_times() -> None:
    same = {"model_digest": "c" * 64}
    slow = measurement(90, metric="inference_time_ms", low=89, high=91)
    quick = measurement(10, metric="inference_time_ms", low=9, high=11)
    corners = [judged("old", measurement(0.9), quick, **same), judged("new", measurement(0.7), slow, **same)]

    assert [said.partition(" ")[0] for said in sentences(repositories.trial(corners=corners))] == ["auc_roc"]


@pytest.mark.parametrize("metric", ["cold_load_seconds", "first_prediction_ms", "machine_noise"])
def test_attribution_metric_measured_once_is_not_reported(metric: str) -> None:
    plain: dict[str, Any] = {"metric": metric, "low": None, "high": None}

    assert sentences(pair(measurement(1.0, **plain), measurement(9.0, **plain))) == []


def test_attribution_paired_comparison_covers_only_its_metric() -> None:
    def compared(low: float, high: float, **fields: Any) -> ChangeResult:
        reference = ReportedReference(kind="champion", name="version 1", metric="auc_roc", low=low, high=high)
        corners = [
            judged("old", measurement(0.9, **fields)),
            judged("new", measurement(0.89, **fields), reference=reference),
        ]
        return repositories.trial(corners=corners)

    assert [one.told for one in find_metric_changes(compared(-0.02, -0.01))] == [True]
    assert [one.told for one in find_metric_changes(compared(0.01, 0.02))] == [True]
    assert [one.told for one in find_metric_changes(compared(-0.01, 0.01))] == [False]
    for other in ({"slice": PAID}, {"dataset": "holiday"}, {"metric": "recall"}):
        assert [one.told for one in find_metric_changes(compared(-0.02, -0.01, **other))] == [False]


def test_sentences_order_is_gates_then_distance() -> None:
    names = ("recall", "precision", "auc_roc", "f1_score", "accuracy")
    before = [measurement(0.9, metric=name) for name in names]
    after = [measurement(value, metric=name) for name, value in zip(names, (0.3, 0.5, 0.79, 0.6, 0.905), strict=True)]
    asks = [
        repositories.asked(),
        repositories.asked(name="f1_score", metric="f1_score", condition="f1_score >= 0.5", at_least=0.5),
    ]
    found = repositories.trial(corners=[judged("old", *before), judged("new", *after)], asked=asks)

    assert [said.partition(" ")[0] for said in sentences(found)] == ["auc_roc", "f1_score", "recall", "precision"]
    assert [one.where[2] for one in find_metric_changes(found)] == [
        "auc_roc",
        "recall",
        "precision",
        "f1_score",
        "accuracy",
    ]


def test_changes_significant_come_before_larger_noise() -> None:
    told, luck = measurement(0.9, metric="recall"), measurement(0.9, low=0.89, high=0.91)
    then = (measurement(0.85, metric="recall"), measurement(0.8, low=0.69, high=0.91))

    found = repositories.trial(corners=[judged("old", told, luck), judged("new", *then)], asked=[])

    assert [(one.where[2], one.told) for one in find_metric_changes(found)] == [("recall", True), ("auc_roc", False)]


def test_sentence_names_three_other_slices_and_dataset() -> None:
    places = [f"plan = {number}" for number in range(6)]
    before = [measurement(0.9, slice=place, dataset="holiday") for place in places]
    after = [measurement(0.5 + number / 100, slice=place, dataset="holiday") for number, place in enumerate(places)]

    (said,) = sentences(repositories.trial(corners=[judged("old", *before), judged("new", *after)]))

    assert said.startswith("auc_roc of plan = 0 on holiday became worse")
    assert said.endswith("Also worse: plan = 1 on holiday, plan = 2 on holiday, plan = 3 on holiday and 2 more.")
