from typing import Any

import pytest

from ml_platform.quality.documents import FigureDone, RivalDone, Trial
from ml_platform.quality.moved import Moved, moved, sentences
from ml_platform_tests.quality import made

PAID = "plan = paid"
PLACE = ("holdout", PAID, "auc_roc")


def trial(*corners: float, **fields: Any) -> Trial:
    """Return a trial whose AUC of those who paid is this: old code, new code, on the old and then the new data."""
    places = [("old", "old"), ("new", "old"), ("old", "new"), ("new", "new")][-len(corners) :]
    return made.trial({p: {"": 0.9, PAID: value} for p, value in zip(places, corners, strict=True)}, **fields)


def of_those_who_paid(found: Trial) -> Moved:
    return next(one for one in moved(found) if one.where == PLACE)


@pytest.mark.parametrize(
    ("corners", "cause", "code", "data"),
    [
        ((0.92, 0.70, 0.92, 0.70), "code", -0.22, 0.0),
        ((0.92, 0.92, 0.70, 0.70), "data", 0.0, -0.22),
        ((0.92, 0.82, 0.81, 0.70), "both", -0.105, -0.115),
        # The data make it better, and the code worse by more.
        ((0.90, 0.70, 0.95, 0.75), "code", -0.2, 0.05),
        ((0.92, 0.70), "code", -0.22, 0.0),
    ],
)
def test_the_cause_of_what_became_worse_is_told(
    corners: tuple[float, ...], cause: str, code: float, data: float
) -> None:
    found = of_those_who_paid(trial(*corners))

    assert (found.cause, found.worse, found.told) == (cause, True, True)
    assert [found.code, found.data] == pytest.approx([code, data])
    assert found.by == pytest.approx(code + data)


def test_the_sentence_names_metric_slice_and_cause() -> None:
    same = trial(0.92, 0.70)
    both = trial(0.92, 0.82, 0.81, 0.70)

    assert sentences(same) == [
        "auc_roc of plan = paid became worse: 0.92 before, 0.7 now (-0.22). "
        "The cause is the code: the data are the same."
    ]
    assert sentences(both) == [
        "auc_roc of plan = paid became worse: 0.92 before, 0.7 now (-0.22). "
        "The causes are both, code and data: the code moves it by -0.105, the data by -0.115."
    ]


def test_a_gate_that_closes_comes_first_and_is_named() -> None:
    far = made.asked(name="auc_roc_by_plan", condition="auc_roc >= 0.88, for each plan", at_least=0.88, places=[PAID])
    found = made.trial(
        {("old", "new"): {"": 0.95, PAID: 0.89}, ("new", "new"): {"": 0.85, PAID: 0.87}}, asked=[made.asked(), far]
    )

    (said,) = sentences(found)
    assert "0.87 now (-0.02), which closes the gate auc_roc >= 0.88, for each plan. " in said
    assert said.endswith("Worse too: all rows.")


def test_what_stays_within_its_interval_is_not_told() -> None:
    assert sentences(trial(0.92, 0.91)) == []
    assert not of_those_who_paid(trial(0.92, 0.91)).told


def test_the_paired_comparison_sees_what_intervals_do_not() -> None:
    corners = made.trial({("old", "new"): {"": 0.90}, ("new", "new"): {"": 0.89}}).corners
    rival = RivalDone(kind="champion", name="version 1", metric="auc_roc", difference=-0.01, low=-0.015, high=-0.005)
    baseline = rival.model_copy(update={"kind": "baseline"})

    told = made.trial(corners=[corners[0], corners[1].model_copy(update={"rival": rival})])
    not_told = made.trial(corners=[corners[0], corners[1].model_copy(update={"rival": baseline})])

    assert sentences(told)[0].startswith("auc_roc of all rows became worse: 0.9 before, 0.89 now")
    assert sentences(not_told) == []


def test_a_slice_of_a_handful_of_rows_is_not_shown() -> None:
    few = [
        made.corner(code, "new", made.figures({PAID: value}, rows=4)) for code, value in (("old", 0.9), ("new", 0.1))
    ]

    assert moved(made.trial(corners=few)) == []


def test_less_is_better_of_times_and_losses() -> None:
    def loss(code: str, value: float) -> Any:
        return made.corner(code, "new", made.figures({"": value}, metric="log_loss"))

    assert sentences(made.trial(corners=[loss("old", 0.2), loss("new", 0.4)]))[0].startswith("log_loss of all rows")
    assert sentences(made.trial(corners=[loss("old", 0.4), loss("new", 0.2)])) == []


@pytest.mark.parametrize(
    ("before", "after", "half", "told"), [(10, 30, 5, True), (10, 30, 11, False), (10, 10.5, 0.1, False)]
)
def test_a_time_is_told_where_noise_does_not_explain_it(before: float, after: float, half: float, told: bool) -> None:
    def time(code: str, value: float) -> Any:
        return made.corner(code, "new", made.figures({"": value}, metric="inference_time_ms", half=half))

    assert bool(sentences(made.trial(corners=[time("old", before), time("new", after)]))) is told


def test_the_same_bytes_take_the_same_time() -> None:
    found = (
        made.figures({"": 10}, metric="inference_time_ms", half=1),
        made.figures({"": 90}, metric="inference_time_ms", half=1),
    )
    corners = [
        made.corner(code, "new", f, model_digest="c" * 64) for code, f in zip(("old", "new"), found, strict=True)
    ]

    assert sentences(made.trial(corners=corners)) == []


def test_without_a_corner_the_cause_is_not_guessed() -> None:
    whole = trial(0.92, 0.7, 0.92, 0.7)
    partly = whole.model_copy(update={"corners": [c for c in whole.corners if (c.code, c.data) != ("new", "old")]})

    assert of_those_who_paid(partly).cause == "unknown"
    assert "not every corner could be judged" in sentences(partly)[0]
    nothing = whole.model_copy(update={"corners": [c for c in whole.corners if (c.code, c.data) != ("old", "old")]})
    assert sentences(nothing) == []


# What is shown, what is told, and in which order


def judged(code: str, *found: FigureDone, data: str = "new", **fields: Any) -> Any:
    return made.corner(code, data, list(found), **fields)


def figure(value: float | None, *, metric: str = "auc_roc", **fields: Any) -> FigureDone:
    half = 0.02 if value is not None else 0.0
    spread = {"low": (value or 0.0) - half, "high": (value or 0.0) + half, "rows": 500}
    return FigureDone(metric=metric, value=value, **{**spread, **fields})


def pair(before: FigureDone, after: FigureDone, **fields: Any) -> Trial:
    return made.trial(corners=[judged("old", before), judged("new", after)], **fields)


@pytest.mark.parametrize(
    "odd", [figure(None), figure(0.9, slice="plan = other"), figure(0.9, rows=4)], ids=["no value", "new", "few rows"]
)
def test_a_figure_that_one_side_does_not_have_is_not_compared(odd: FigureDone) -> None:
    assert moved(pair(odd, figure(0.1))) == []
    assert moved(pair(figure(0.9), odd)) == []


def test_a_figure_of_no_rows_as_a_size_is_compared() -> None:
    size: dict[str, Any] = {"metric": "model_size_mb", "rows": None, "low": None, "high": None}

    assert sentences(pair(figure(1.0, **size), figure(9.0, **size)))[0].startswith("model_size_mb became worse: 1")


def test_what_did_not_move_has_no_cause_and_what_cannot_be_told_no_part() -> None:
    (same,) = moved(pair(figure(0.9), figure(0.9)))
    assert (same.by, same.cause, same.told) == (0.0, "unknown", False)

    four = [judged(code, figure(0.9), data=data) for code in ("old", "new") for data in ("old", "new")]
    four[1] = judged("old", figure(None), data="new")
    assert moved(made.trial(corners=four, data_changed=True))[0].code is None


def test_a_quarter_of_the_whole_is_a_cause() -> None:
    assert of_those_who_paid(trial(0.9, 0.78, 0.88, 0.76)).cause == "code"
    assert of_those_who_paid(trial(0.9, 0.80, 0.86, 0.76)).cause == "both"


def test_both_values_must_lie_outside_of_each_others_interval() -> None:
    """A slice of fewer rows has a wide interval: where the value before lies in it, luck explains the move."""
    wide = figure(0.85, low=0.75, high=0.95)

    assert sentences(pair(figure(0.90), wide)) == sentences(pair(wide, figure(0.80))) == []
    assert len(sentences(pair(figure(0.97), wide))) == 1


@pytest.mark.parametrize(
    ("gate", "before", "after", "closes"),
    [
        ({}, figure(0.8), figure(0.79), True),
        ({}, figure(0.81), figure(0.80), False),
        # It held before neither.
        ({}, figure(0.79), figure(0.78), False),
        ({"on": "bound"}, figure(0.83), figure(0.81), True),
        ({"on": "bound"}, figure(0.83, low=None), figure(0.81), False),
        ({"at_least": None, "at_most": 0.8}, figure(0.80), figure(0.81), True),
        ({"at_least": None, "at_most": 0.8}, figure(0.79), figure(0.80), False),
        ({"at_least": None, "at_most": 0.8, "on": "bound"}, figure(0.77), figure(0.79), True),
        ({"dataset": "holiday"}, figure(0.81), figure(0.79), False),
        ({"places": [PAID]}, figure(0.81), figure(0.79), False),
        ({"metric": "recall"}, figure(0.81), figure(0.79), False),
    ],
)
def test_a_gate_closes_where_it_held_and_holds_no_longer(
    gate: dict[str, Any], before: FigureDone, after: FigureDone, closes: bool
) -> None:
    """It is told then, however near the figure is to the one before."""
    (found,) = moved(pair(before, after, asked=[made.asked(**gate)]))

    assert (bool(found.closes), found.told) == (closes, closes)


def test_other_rows_are_told_though_the_model_is_the_same_and_times_are_not() -> None:
    same = {"model_digest": "c" * 64}
    slow = figure(90, metric="inference_time_ms", low=89, high=91)
    quick = figure(10, metric="inference_time_ms", low=9, high=11)
    corners = [judged("old", figure(0.9), quick, **same), judged("new", figure(0.7), slow, **same)]

    assert [said.partition(" ")[0] for said in sentences(made.trial(corners=corners))] == ["auc_roc"]


@pytest.mark.parametrize("metric", ["cold_load_seconds", "first_prediction_ms", "machine_noise"])
def test_what_is_measured_once_tells_nothing(metric: str) -> None:
    plain: dict[str, Any] = {"metric": metric, "low": None, "high": None}

    assert sentences(pair(figure(1.0, **plain), figure(9.0, **plain))) == []


def test_the_paired_comparison_is_of_its_own_metric_on_all_rows_and_tells_gains_too() -> None:
    def compared(low: float, high: float, **fields: Any) -> Trial:
        rival = RivalDone(kind="champion", name="version 1", metric="auc_roc", low=low, high=high)
        corners = [judged("old", figure(0.9, **fields)), judged("new", figure(0.89, **fields), rival=rival)]
        return made.trial(corners=corners)

    assert [one.told for one in moved(compared(-0.02, -0.01))] == [True]
    assert [one.told for one in moved(compared(0.01, 0.02))] == [True]
    assert [one.told for one in moved(compared(-0.01, 0.01))] == [False]
    for other in ({"slice": PAID}, {"dataset": "holiday"}, {"metric": "recall"}):
        assert [one.told for one in moved(compared(-0.02, -0.01, **other))] == [False]


def test_closed_gates_come_first_then_what_gates_ask_for_then_the_furthest() -> None:
    names = ("recall", "precision", "auc_roc", "f1_score", "accuracy")
    before = [figure(0.9, metric=name) for name in names]
    after = [figure(value, metric=name) for name, value in zip(names, (0.3, 0.5, 0.79, 0.6, 0.905), strict=True)]
    asks = [made.asked(), made.asked(name="f1_score", metric="f1_score", condition="f1_score >= 0.5", at_least=0.5)]
    found = made.trial(corners=[judged("old", *before), judged("new", *after)], asked=asks)

    assert [said.partition(" ")[0] for said in sentences(found)] == ["auc_roc", "f1_score", "recall", "precision"]
    assert [one.where[2] for one in moved(found)] == ["auc_roc", "recall", "precision", "f1_score", "accuracy"]


def test_what_is_told_comes_before_what_moved_further_by_luck() -> None:
    told, luck = figure(0.9, metric="recall"), figure(0.9, low=0.89, high=0.91)
    then = (figure(0.85, metric="recall"), figure(0.8, low=0.69, high=0.91))

    found = made.trial(corners=[judged("old", told, luck), judged("new", *then)], asked=[])

    assert [(one.where[2], one.told) for one in moved(found)] == [("recall", True), ("auc_roc", False)]


def test_a_sentence_names_three_other_places_and_the_dataset_that_is_none_of_the_training_rows() -> None:
    places = [f"plan = {number}" for number in range(6)]
    before = [figure(0.9, slice=place, dataset="holiday") for place in places]
    after = [figure(0.5 + number / 100, slice=place, dataset="holiday") for number, place in enumerate(places)]

    (said,) = sentences(made.trial(corners=[judged("old", *before), judged("new", *after)]))

    assert said.startswith("auc_roc of plan = 0 on holiday became worse")
    assert said.endswith("Worse too: plan = 1 on holiday, plan = 2 on holiday, plan = 3 on holiday and 2 more.")
