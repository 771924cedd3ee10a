import time
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from ml_platform.errors import ConfigurationError
from ml_platform.evaluation import metrics
from ml_platform.evaluation.uncertainty import bootstrap, delong, intervals
from ml_platform.evaluation.uncertainty.estimates import Difference, Interval
from ml_platform.evaluation.uncertainty.intervals import Answers

FEW = settings(max_examples=40, deadline=None, database=None, derandomize=True)
QUICK: dict[str, Any] = {"resamples": 100}
TASKS = ["binary", "multiclass", "regression"]


def binary(
    n: int = 300, *, seed: int = 0, signal: float = 1.5, rare: float = 0.5, shift: float = 0.0
) -> tuple[Any, Answers]:
    """Return labels, and answers whose probabilities are off by `shift` on the logit scale."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=n) * signal - rare
    labels = (random.random(n) < 1 / (1 + np.exp(-logits))).astype("int64")
    scores = 1 / (1 + np.exp(-logits - shift))
    return labels, Answers(predictions=(scores >= 0.5).astype("int64"), probabilities=scores)


def multiclass(n: int = 300, *, seed: int = 0, signal: float = 1.5, classes: int = 3) -> tuple[Any, Answers]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    logits = random.normal(size=(n, classes)) + signal * np.eye(classes)[labels]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, Answers(predictions=shares.argmax(axis=1), probabilities=shares)


def regression(n: int = 300, *, seed: int = 0, noise: float = 0.5) -> tuple[Any, Answers]:
    random = np.random.default_rng(seed)
    predictions = random.normal(size=n) * 3
    return predictions + random.normal(size=n) * noise, Answers(predictions=predictions)


DRAWS: dict[str, Callable[..., tuple[Any, Answers]]] = {
    "binary": binary,
    "multiclass": multiclass,
    "regression": regression,
}


def rows_in(answers: Answers, order: Any) -> Answers:
    shares = answers.probabilities
    return Answers(predictions=answers.predictions[order], probabilities=None if shares is None else shares[order])


# --- the values are scikit-learn's --------------------------------------------------------------------------------


def strictly_inside(measurement: Interval) -> bool:
    assert measurement.value is not None
    assert measurement.low is not None
    assert measurement.high is not None
    return measurement.low < measurement.value < measurement.high


def calibration_by_scikit_learn(labels: Any, scores: Any) -> float:
    observed, predicted = calibration_curve(labels, scores, n_bins=10)
    counts = np.bincount(np.searchsorted(np.linspace(0, 1, 11)[1:-1], scores), minlength=10)
    return float((np.abs(observed - predicted) * counts[counts > 0]).sum() / len(labels))


SCIKIT_LEARN: dict[str, dict[str, Callable[[Any, Answers], float]]] = {
    "binary": {
        "auc_roc": lambda y, a: sk.roc_auc_score(y, a.probabilities),
        "average_precision": lambda y, a: sk.average_precision_score(y, a.probabilities),
        "f1_score": lambda y, a: sk.f1_score(y, a.predictions),
        "precision": lambda y, a: sk.precision_score(y, a.predictions),
        "recall": lambda y, a: sk.recall_score(y, a.predictions),
        "accuracy": lambda y, a: sk.accuracy_score(y, a.predictions),
        "brier_score": lambda y, a: sk.brier_score_loss(y, a.probabilities),
        "log_loss": lambda y, a: sk.log_loss(y, a.probabilities, labels=[0, 1]),
        "expected_calibration_error": lambda y, a: calibration_by_scikit_learn(y, a.probabilities),
    },
    "multiclass": {
        "accuracy": lambda y, a: sk.accuracy_score(y, a.predictions),
        "f1_macro": lambda y, a: sk.f1_score(y, a.predictions, average="macro"),
        "auc_ovr": lambda y, a: sk.roc_auc_score(y, a.probabilities, multi_class="ovr"),
        "log_loss": lambda y, a: sk.log_loss(y, a.probabilities, labels=[0, 1, 2]),
    },
    "regression": {
        "r2": lambda y, a: sk.r2_score(y, a.predictions),
        "mean_absolute_error": lambda y, a: sk.mean_absolute_error(y, a.predictions),
        "root_mean_squared_error": lambda y, a: sk.root_mean_squared_error(y, a.predictions),
    },
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("task", TASKS)
def test_every_value_equals_that_of_scikit_learn(task: Any, seed: int) -> None:
    labels, answers = DRAWS[task](120, seed=seed)
    if answers.probabilities is not None and task == "binary":
        answers = replace(answers, probabilities=answers.probabilities.round(1))  # ties, 0 and 1 among them

    found = intervals.measurements(task, labels, answers, **QUICK)

    assert set(found) == set(SCIKIT_LEARN[task]) == set(metrics.CATALOGUE[task])
    for name, measurement in found.items():
        assert measurement.value == pytest.approx(SCIKIT_LEARN[task][name](labels, answers), rel=1e-12), name
        assert strictly_inside(measurement), name
        assert measurement.reason == ""


@pytest.mark.parametrize("task", TASKS)
def test_every_metric_declares_its_better_direction(task: Any) -> None:
    labels, good = DRAWS[task](200)
    worse = rows_in(good, np.roll(np.arange(200), 7))

    for name, metric in metrics.CATALOGUE[task].items():
        values = [SCIKIT_LEARN[task][name](labels, answers) for answers in (good, worse)]
        assert (values[0] > values[1]) == (metric.better is metrics.Better.MORE), name
        assert name.endswith("_error") <= (metric.better is metrics.Better.LESS), name


@FEW
@given(data=st.data())
def test_counted_metrics_equal_those_of_scikit_learn(data: st.DataObject) -> None:
    row = st.tuples(st.integers(0, 1), st.integers(0, 1))
    labels, predictions = np.array(data.draw(st.lists(row, min_size=1, max_size=12))).T

    for name, of in (("f1_score", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
        measurement = intervals.measurements("binary", labels, Answers(predictions=predictions), **QUICK)[name]
        assert (np.nan if measurement.value is None else measurement.value) == pytest.approx(
            of(labels, predictions, zero_division=np.nan), nan_ok=True
        )


def test_macro_f1_counts_a_class_only_predicted() -> None:
    labels, predictions = np.array([0, 0, 1, 1, 0]), np.array([0, 3, 1, 0, 0])

    assert metrics.f1_macro(labels, predictions) == pytest.approx(sk.f1_score(labels, predictions, average="macro"))


# --- areas under ROC curves ---------------------------------------------------------------------------------------


def delong_by_pairs(labels: Any, *scores: Any) -> tuple[Any, Any]:
    """Return areas and their covariance from every pair of rows: DeLong's definition, slowly."""
    wins = np.stack([np.sign(s[labels == 1][:, None] - s[labels == 0][None, :]) / 2 + 0.5 for s in scores])
    m, n = wins.shape[1:]
    covariance = np.cov(wins.mean(axis=2)) / m + np.cov(wins.mean(axis=1)) / n
    return wins.mean(axis=(1, 2)), np.atleast_2d(covariance)


@pytest.mark.parametrize("decimals", [1, 12])
def test_auc_interval_equals_delong_over_all_pairs(decimals: int) -> None:
    labels, answers = binary(90)
    scores = np.asarray(answers.probabilities).round(decimals)
    (area,), covariance = delong_by_pairs(labels, scores)
    reach = 1.6448536269514722 * np.sqrt(covariance[0, 0]) / (area * (1 - area))

    found = delong.auc_interval(labels, scores)

    assert found.value == pytest.approx(area)
    middle = np.log(area / (1 - area))
    assert [found.low, found.high] == pytest.approx(1 / (1 + np.exp([reach - middle, -reach - middle])))
    assert found.rows == 90


def test_auc_difference_equals_delong_over_all_pairs() -> None:
    labels, answers = binary(90)
    ours = np.asarray(answers.probabilities)
    theirs = (ours + np.random.default_rng(1).normal(size=90) * 0.2).round(1)
    areas, covariance = delong_by_pairs(labels, ours, theirs)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])

    found = delong.auc_difference(labels, ours, theirs)

    assert found.value == pytest.approx(areas[0] - areas[1])
    assert found.low == pytest.approx(areas[0] - areas[1] - 1.6448536269514722 * error)
    assert found.p_better == pytest.approx(stats.norm.sf((areas[0] - areas[1]) / error))


def test_auc_of_two_columns_equals_one_column() -> None:
    labels, answers = binary(90)
    scores = np.asarray(answers.probabilities)
    both = np.column_stack([1 - scores, scores])

    one, two = delong.auc_interval(labels, scores), delong.auc_interval(labels, both)

    assert [two.value, two.low, two.high] == pytest.approx([one.value, one.low, one.high])


@pytest.mark.parametrize(("positives", "negatives"), [(2, 2), (5, 300), (300, 5), (60, 60)])
def test_auc_perfect_separation_is_bounded_by_pairs(positives: int, negatives: int) -> None:
    labels = np.repeat([0, 1], [negatives, positives])

    right, wrong = (delong.auc_interval(labels, scores * 1.0) for scores in (labels, -labels))

    chance = 0.05 ** (1 / min(positives, negatives))
    assert [right.value, right.low, right.high] == pytest.approx([1, chance, 1])
    assert [wrong.value, wrong.low, wrong.high] == pytest.approx([0, 0, 1 - chance])
    assert (right.value, wrong.value) == (1, 0)


def test_auc_nearly_perfect_claims_no_more_than_perfect() -> None:
    labels = np.repeat([0, 1], [5_000, 5])
    scores = np.arange(5_005.0)
    perfect = delong.auc_interval(labels, scores)
    scores[[4_999, 5_000]] = scores[[5_000, 4_999]]

    nearly = delong.auc_interval(labels, scores)

    assert nearly.value is not None
    assert 0.999 < nearly.value < 1
    assert nearly.low == perfect.low


def test_auc_of_constant_scores_has_wide_bounds() -> None:
    found = delong.auc_interval(np.repeat([0, 1], 20), np.full(40, 0.3))

    assert found.value == 0.5
    assert found.low is not None
    assert found.high is not None
    assert 0.4 < found.low < 0.45
    assert found.high == pytest.approx(1 - found.low)


def test_auc_constant_gain_is_bounded_by_pairs() -> None:
    labels = np.repeat([0, 1], 20)

    few = delong.auc_difference(labels[18:22], labels[18:22] * 1.0, np.zeros(4))
    many = delong.auc_difference(labels, labels * 1.0, np.zeros(40))

    assert few.value == many.value == 0.5
    assert few.low is not None
    assert many.low is not None
    assert few.low < 0 < many.low < 0.5
    assert few.p_better == pytest.approx(1.5**-2)
    assert many.p_better == pytest.approx(1.5**-20)


# --- properties ---------------------------------------------------------------------------------------------------

SCORES = st.integers(0, 8).map(lambda eighths: eighths / 8)


@st.composite
def scored(draw: st.DrawFn, models: int = 1) -> tuple[Any, ...]:
    """Return labels with both classes, and the scores of some models, with many ties."""
    row = st.tuples(st.integers(0, 1), *[SCORES] * models)
    rows = [(0, *[0.5] * models)] * 5 + [(1, *[0.25] * models)] * 5 + draw(st.lists(row, max_size=20))
    labels, *scores = np.array(draw(st.permutations(rows))).T
    return labels.astype("int64"), *scores


def contains(measurement: Interval | Difference) -> bool:
    assert measurement.value is not None
    return (
        measurement.low is None or measurement.high is None or measurement.low <= measurement.value <= measurement.high
    )


@FEW
@given(drawn=scored())
def test_bounds_contain_the_value(drawn: Any) -> None:
    labels, scores = drawn
    answers = Answers(predictions=(scores >= 0.5).astype("int64"), probabilities=scores)

    assert all(
        contains(measurement) for measurement in intervals.measurements("binary", labels, answers, **QUICK).values()
    )


@pytest.mark.slow
@settings(FEW, max_examples=25)
@given(drawn=scored(models=2))
def test_swapping_the_models_negates_the_difference(drawn: Any) -> None:
    labels, *pair = drawn
    ours, theirs = (Answers(predictions=(s >= 0.5).astype("int64"), probabilities=s) for s in pair)

    ahead = intervals.differences("binary", labels, ours, theirs, **QUICK)
    behind = intervals.differences("binary", labels, theirs, ours, **QUICK)

    for name, one in ahead.items():
        other = behind[name]
        assert one.value == -(other.value or 0.0), name
        if one.low is None or one.high is None or one.p_better is None:
            assert other.reason == one.reason
            continue
        assert contains(one)
        assert [other.low, other.high] == pytest.approx([-one.high, -one.low]), name
        assert other.p_better == pytest.approx(1 - one.p_better), name


@FEW
@given(drawn=scored())
def test_equal_models_differ_by_exactly_zero(drawn: Any) -> None:
    labels, scores = drawn
    answers = Answers(predictions=(scores >= 0.5).astype("int64"), probabilities=scores)

    for found in intervals.differences("binary", labels, answers, answers, **QUICK).values():
        assert (found.value, found.low, found.high, found.p_better) == (0, 0, 0, 0.5)


@FEW
@given(drawn=scored(models=2), stretch=st.sampled_from([np.exp, np.cbrt, lambda s: s**3 - 7, lambda s: 1e6 * s]))
def test_auc_is_invariant_under_monotone_transformations(drawn: Any, stretch: Any) -> None:
    labels, ours, theirs = drawn

    assert delong.auc_interval(labels, stretch(ours)) == delong.auc_interval(labels, ours)
    assert delong.auc_difference(labels, stretch(ours), theirs) == delong.auc_difference(labels, ours, theirs)


@pytest.mark.parametrize("task", TASKS)
def test_clearly_better_model_wins_by_every_metric(task: Any) -> None:
    labels, good = DRAWS[task](300)
    poor = rows_in(good, np.roll(np.arange(300), 7))

    for name, found in intervals.differences(task, labels, good, poor, **QUICK).items():
        assert found.low is not None
        assert found.p_better is not None
        assert found.low > 0, name
        assert found.p_better < 0.05, name
    for name, found in intervals.differences(task, labels, poor, good, **QUICK).items():
        assert found.p_better is not None
        assert found.p_better > 0.95, name


@pytest.mark.parametrize("task", TASKS)
def test_row_order_changes_no_result(task: Any) -> None:
    labels, ours = DRAWS[task](80)
    theirs = rows_in(ours, np.roll(np.arange(80), 3))
    order = np.random.default_rng(5).permutation(80)

    shuffled = intervals.measurements(task, labels[order], rows_in(ours, order), **QUICK)
    for name, measurement in intervals.measurements(task, labels, ours, **QUICK).items():
        assert same(shuffled[name], measurement), name
    turned = intervals.differences(task, labels[order], rows_in(ours, order), rows_in(theirs, order), **QUICK)
    for name, found in intervals.differences(task, labels, ours, theirs, **QUICK).items():
        assert same(turned[name], found), name


def same(one: Interval | Difference, other: Interval | Difference) -> bool:
    return [one.value, one.low, one.high] == pytest.approx([other.value, other.low, other.high], rel=1e-12)


def test_bootstrap_depends_on_the_seed() -> None:
    labels, answers = binary(100)

    one, again, other = (
        bootstrap.bootstrap_interval(metrics.brier_score, labels, answers.probabilities, seed=seed, **QUICK)  # type: ignore[arg-type]
        for seed in (3, 3, 4)
    )

    assert one == again
    assert one.value == other.value
    assert (one.low, one.high) != (other.low, other.high)


# --- shares and the bootstrap -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "of"), [(0, 1), (1, 1), (3, 17), (17, 17), (0, 17), (812, 1000)])
def test_proportion_interval_equals_exact_bounds_of_scipy(hits: int, of: int) -> None:
    expected = stats.binomtest(hits, of).proportion_ci(0.9, "exact")

    found = bootstrap.proportion_interval(hits, of)

    assert [found.value, found.low, found.high] == pytest.approx([hits / of, expected.low, expected.high])


def test_perfect_f1_has_a_lower_bound() -> None:
    labels = np.repeat([0, 1], [50, 20])

    found = intervals.measurements("binary", labels, Answers(predictions=labels), **QUICK)["f1_score"]

    jaccard = 0.05 ** (1 / 20)
    assert (found.value, found.high, found.rows) == (1, 1, 20)
    assert found.low == pytest.approx(2 * jaccard / (1 + jaccard))


def test_bootstrap_of_mean_agrees_with_normal_bounds() -> None:
    labels, answers = regression(2_000)
    errors = np.abs(labels - answers.predictions)
    reach = 1.645 * errors.std() / np.sqrt(len(errors))

    found = intervals.measurements("regression", labels, answers)["mean_absolute_error"]

    assert [found.low, found.high] == pytest.approx([errors.mean() - reach, errors.mean() + reach], abs=0.15 * reach)


def test_bootstrap_of_mean_difference_agrees_with_normal_bounds() -> None:
    labels, ours = regression(2_000)
    theirs = ours.predictions + np.random.default_rng(1).normal(size=2_000) * 0.2
    gains = np.abs(labels - theirs) - np.abs(labels - ours.predictions)
    reach = 1.645 * gains.std() / np.sqrt(len(gains))

    found = intervals.differences("regression", labels, ours, Answers(predictions=theirs))["mean_absolute_error"]

    assert [found.low, found.high] == pytest.approx([gains.mean() - reach, gains.mean() + reach], abs=0.15 * reach)


@pytest.mark.slow
def test_bootstrap_agrees_with_that_of_scipy() -> None:
    labels, answers = binary(400, seed=2)
    scores = np.asarray(answers.probabilities)
    theirs = stats.bootstrap(
        (labels, scores),
        sk.average_precision_score,
        paired=True,
        vectorized=False,
        n_resamples=1_000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval

    ours = bootstrap.bootstrap_interval(metrics.average_precision, labels, scores)

    width = theirs.high - theirs.low
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], abs=0.12 * width)


def test_strata_keep_their_number_of_rows() -> None:
    labels = np.repeat([0, 1, 2], [50, 7, 20])
    seen: list[Any] = []

    def counting(drawn: Any, _: Any) -> float:
        seen.append(np.bincount(drawn, minlength=3))
        return float(len(seen))

    bootstrap.bootstrap_interval(counting, labels, labels, strata=labels, **QUICK)
    kept = np.array(seen)
    seen.clear()
    bootstrap.bootstrap_interval(counting, labels, labels, **QUICK)

    assert (kept == [50, 7, 20]).all()
    assert np.ptp(np.array(seen), axis=0).min() > 0
    assert (np.array(seen).sum(axis=1) == 77).all()


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_only_macro_f1_is_stratified(task: Any) -> None:
    labels, answers = DRAWS[task](100)
    found = intervals.measurements(task, labels, answers, **QUICK)
    drawn = {name: metric for name, metric in metrics.CATALOGUE[task].items() if "bootstrap" in found[name].method}

    assert drawn
    for name, metric in drawn.items():
        given = getattr(answers, metric.reads)
        strata = labels if name == "f1_macro" else None
        assert metric.kernel is not None
        again = bootstrap.bootstrap_interval(metric.kernel, labels, given, strata=strata, biased=metric.biased, **QUICK)
        assert replace(found[name], value=again.value) == again, name
        assert found[name].value == pytest.approx(again.value, rel=1e-12), name


def test_resamples_draw_every_row_of_a_stratum_alike() -> None:
    labels = np.repeat([0, 1], [6, 10])
    rows, drawn = np.arange(16), np.zeros(16)

    def counting(_: Any, taken: Any) -> float:
        drawn[:] += np.bincount(taken, minlength=16)
        return float(taken.sum())

    bootstrap.bootstrap_interval(counting, labels, rows, strata=labels, resamples=4_000)

    assert stats.chisquare(drawn[:6]).pvalue > 1e-4
    assert stats.chisquare(drawn[6:]).pvalue > 1e-4


def test_bootstrap_of_ten_thousand_rows_is_fast() -> None:
    labels, answers = binary(10_000)

    start = time.process_time()  # the process's own seconds: neighbours do not count
    bootstrap.bootstrap_interval(metrics.f1_score, labels, answers.predictions, strata=labels)

    assert time.process_time() - start < 2


# --- undefined metrics and invalid arguments ---------------------------------------------------------------------

LABELS, ANSWERS = binary(40)
INFINITE = np.where(np.arange(40) == 17, np.inf, LABELS)
BROKEN = {
    "no rows": (LABELS[:0], rows_in(ANSWERS, slice(0, 0)), "no rows"),
    "a row too few": (LABELS, rows_in(ANSWERS, slice(1, None)), "39 rows of 40"),
    "nan": (LABELS, Answers(predictions=LABELS * np.nan, probabilities=LABELS * np.nan), "finite"),
    "one inf": (LABELS, Answers(predictions=INFINITE, probabilities=INFINITE), "finite"),
    "text": (LABELS, Answers(predictions=LABELS.astype(str), probabilities=LABELS.astype(str)), "no numbers"),
    "labels missing": (LABELS * np.nan, ANSWERS, "finite"),
    "other labels": (LABELS + 1, ANSWERS, "must be 0 to 1"),
    "other answers": (LABELS, Answers(predictions=LABELS * 2, probabilities=LABELS * 2.0), "must be 0 to 1"),
}


@pytest.mark.fault("M1")
@pytest.mark.parametrize("broken", BROKEN)
def test_broken_answers_give_a_reason_without_numbers(broken: str) -> None:
    labels, answers, reason = BROKEN[broken]
    good = Answers(predictions=labels, probabilities=labels * 1.0)

    found = intervals.measurements("binary", labels, answers, **QUICK)
    against = intervals.differences("binary", labels, good, answers, **QUICK)

    assert len(found) == len(against) == 9
    everything: list[Interval | Difference] = [*found.values(), *against.values()]
    for measurement in everything:
        assert (measurement.value, measurement.low, measurement.high) == (None, None, None)
        assert reason in measurement.reason


@pytest.mark.fault("M1")
@pytest.mark.parametrize("function", [delong.auc_interval, lambda y, s: delong.auc_difference(y, s, s)])
@pytest.mark.parametrize(
    ("labels", "scores", "reason"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], "one class only"),
        ([0, 0, 1], [0.1, 0.2, 0.3], "one has 1"),
        ([0, 0, 1, 1], [0.1, 0.2, np.nan, 0.3], "finite"),
        ([0, 0, 1, 1], [0.1, 0.2, 0.3], "3 rows of 4"),
        ([], [], "no rows"),
        ([0, 0, 2, 2], [0.1, 0.2, 0.3, 0.4], "must be 0 to 1, and 2"),
        ([0, 0, 1, 1], np.eye(3)[[0, 0, 1, 1]], "one has 0"),
    ],
)
def test_undefined_auc_gives_a_reason_without_numbers(function: Any, labels: Any, scores: Any, reason: str) -> None:
    found = function(np.array(labels), np.array(scores))

    assert (found.value, found.low, found.high) == (None, None, None)
    assert reason in found.reason


def test_missing_probabilities_leave_the_other_metrics() -> None:
    found = intervals.measurements("binary", LABELS, Answers(predictions=ANSWERS.predictions), **QUICK)

    assert found["f1_score"].value is not None
    assert (found["auc_roc"].value, found["auc_roc"].reason) == (None, "the model gives no probabilities")


def test_rows_of_probabilities_must_sum_to_one() -> None:
    labels, answers = multiclass(60)
    doubled = replace(answers, probabilities=np.asarray(answers.probabilities) / 2)

    found = intervals.measurements("multiclass", labels, doubled, **QUICK)

    assert found["accuracy"].value is not None
    assert "sum to 1" in found["log_loss"].reason


def test_no_predicted_positives_leave_precision_undefined() -> None:
    found = intervals.measurements("binary", LABELS, Answers(predictions=np.zeros_like(LABELS)), **QUICK)

    assert (found["precision"].value, found["precision"].low) == (None, None)
    assert (found["f1_score"].value, found["f1_score"].low) == (0, 0)


@pytest.mark.parametrize(
    ("metric", "labels", "predictions", "value", "reason"),
    [
        (metrics.r2, [2.0] * 9, range(9), None, "undefined on these rows"),
        (metrics.r2, range(4), range(4), 1.0, "needs 5 rows"),
        (metrics.mean_absolute_error, range(9), range(9), 0.0, "same number"),
        (metrics.r2, [0.0] * 8 + [1.0], [0.1] * 8 + [0.9], pytest.approx(0.898, abs=1e-3), "of 100 resamples"),
    ],
)
def test_undefined_bootstrap_gives_a_reason_without_bounds(
    metric: Any, labels: Any, predictions: Any, value: Any, reason: str
) -> None:
    found = bootstrap.bootstrap_interval(
        metric, np.array(labels, dtype=float), np.array(predictions, dtype=float), **QUICK
    )

    assert (found.value, found.low, found.high) == (value, None, None)
    assert reason in found.reason


@pytest.mark.parametrize("confidence", [0, 1, 95, float("nan")])
def test_invalid_confidence_is_refused(confidence: float) -> None:
    scores = np.asarray(ANSWERS.probabilities)
    for call in (
        lambda: intervals.measurements("binary", LABELS, ANSWERS, confidence=confidence),
        lambda: intervals.differences("binary", LABELS, ANSWERS, ANSWERS, confidence=confidence),
        lambda: delong.auc_interval(LABELS, scores, confidence=confidence),
        lambda: delong.auc_difference(LABELS, scores, scores, confidence=confidence),
        lambda: bootstrap.proportion_interval(1, 2, confidence=confidence),
    ):
        with pytest.raises(ConfigurationError, match=r"'confidence' parameter .* between 0 and 1\. Got"):
            call()


def test_invalid_parameters_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'resamples' parameter .* at least 100\. Got 99"):
        bootstrap.bootstrap_interval(metrics.r2, LABELS, LABELS, resamples=99)
    with pytest.raises(ConfigurationError, match=r"'task' parameter must be one of .* Got 'ranking'"):
        intervals.measurements("ranking", LABELS, ANSWERS)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"'hits' parameter .* Got 3"):
        bootstrap.proportion_interval(3, 2)


# --- error rates, by simulation -----------------------------------------------------------------------------------

CANDIDATES = 1_000
HOLDOUT, POSITIVES = 1_000, 140


def holdouts(area: float, count: int, seed: int, *, models: int = 1, gain: float = 0.0) -> Any:
    """Yield labels and the scores of some models with the true area `area`; the first model's is higher by `gain`.

    Scores are normal in each class, a distance of sqrt(2) times the quantile of the area apart; models share half
    of their noise, as models of one dataset do.
    """
    random = np.random.default_rng(seed)
    apart = [2**0.5 * NormalDist().inv_cdf(area + (gain if model == 0 else 0)) for model in range(models)]
    for _ in range(count):
        labels = (np.arange(HOLDOUT) < random.binomial(HOLDOUT, POSITIVES / HOLDOUT)).astype("int64")
        shared = random.normal(size=HOLDOUT)
        noise = (shared + random.normal(size=(models, HOLDOUT))) / 2**0.5
        yield labels, *(noise[model] + apart[model] * labels for model in range(models))


def at_most(events: int, of: int, rate: float = 0.05) -> bool:
    """Return True if the events are consistent with at most the rate, by an exact binomial test at 99 %."""
    return bool(stats.binomtest(events, of, rate, alternative="greater").pvalue > 0.01)


def passing(area: float, bound: float, count: int = CANDIDATES) -> int:
    found = (delong.auc_interval(*drawn) for drawn in holdouts(area, count, seed=7))
    return sum(measurement.low is not None and measurement.low >= bound for measurement in found)


def test_true_auc_below_gate_rarely_passes() -> None:
    assert at_most(passing(0.79, 0.80), CANDIDATES)


def test_true_auc_on_gate_passes_at_promised_rate() -> None:
    passed = passing(0.80, 0.80)

    assert at_most(passed, CANDIDATES)
    assert passed > CANDIDATES * 0.02  # not by refusing every model


def calls_better(gain: float, count: int = CANDIDATES) -> int:
    found = (delong.auc_difference(*drawn) for drawn in holdouts(0.80, count, 11, models=2, gain=gain))
    return sum(difference.low is not None and difference.low > 0 for difference in found)


@pytest.mark.slow
def test_equal_models_are_rarely_called_better() -> None:
    better = calls_better(0.0)

    assert at_most(better, CANDIDATES)
    assert better > CANDIDATES * 0.02


def test_gain_of_five_points_is_mostly_detected(record_property: Callable[[str, object], None]) -> None:
    power = calls_better(0.05, 200) / 200
    record_property("power", power)

    assert 0.7 < power < 1


def test_p_value_agrees_with_lower_bound() -> None:
    for drawn in holdouts(0.80, 50, 3, models=2, gain=0.03):
        found = delong.auc_difference(*drawn)
        assert found.low is not None
        assert found.p_better is not None
        assert (found.low > 0) == (found.p_better < 0.05)


@pytest.mark.parametrize("area", [0.7, 0.9, 0.97])
def test_auc_bounds_keep_their_error_rate(area: float) -> None:
    found = [delong.auc_interval(*drawn) for drawn in holdouts(area, 400, seed=1)]

    assert at_most(sum(measurement.low > area for measurement in found if measurement.low is not None), 400)
    assert at_most(sum(measurement.high < area for measurement in found if measurement.high is not None), 400)


def test_f1_bounds_keep_their_error_rate() -> None:
    labels, answers = binary(400_000, seed=99)
    truth = sk.f1_score(labels, answers.predictions)
    found = [f1_measurement(*binary(150, seed=seed)) for seed in range(300)]

    assert at_most(sum(measurement.low > truth for measurement in found if measurement.low is not None), 300)
    assert at_most(sum(measurement.high < truth for measurement in found if measurement.high is not None), 300)


def f1_measurement(labels: Any, answers: Answers) -> Interval:
    return intervals._measurement(
        metrics.CATALOGUE["binary"]["f1_score"], labels, answers.predictions, {"confidence": 0.9}
    )


# The bootstrap is an approximation: its error rate may be up to 8 %.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["brier_score", "log_loss", "average_precision", "expected_calibration_error"])
def test_bootstrap_bounds_nearly_keep_their_error_rate(name: str) -> None:
    metric = metrics.CATALOGUE["binary"][name]
    rare: dict[str, float] = {"signal": 1.8, "rare": 2.6, "shift": 0.5}
    many, answers_of_many = binary(400_000, seed=99, **rare)
    truth = metric.score(many, answers_of_many.probabilities)
    found = []
    for seed in range(200):
        labels, answers = binary(500, seed=seed, **rare)
        options = {"confidence": 0.9, "resamples": 150, "seed": seed}
        found.append(intervals._measurement(metric, labels, answers.probabilities, options))

    assert at_most(sum(measurement.low > truth for measurement in found if measurement.low is not None), 200, rate=0.08)
    assert at_most(
        sum(measurement.high < truth for measurement in found if measurement.high is not None), 200, rate=0.08
    )
