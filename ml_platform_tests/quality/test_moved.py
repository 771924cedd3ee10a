from typing import Any

import pytest

from ml_platform.quality.documents import RivalDone, Trial
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
