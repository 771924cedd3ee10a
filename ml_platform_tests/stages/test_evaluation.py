from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ml_platform.predictor import Predictor
from ml_platform.records import GateOutcome
from ml_platform.stages import evaluation, gates
from ml_platform_tests import fakes

SPEC = fakes.visits_spec()
LABELS = np.array([0, 0, 0, 1, 1, 1, 1, 0])
SCORES = np.array([0.1, 0.4, 0.6, 0.35, 0.8, 0.9, 0.6, 0.2])


class Recited:
    """A pipeline that says what it was told to say, row by row; it reads the row's position from ``position``."""

    def __init__(self, scores: Any) -> None:
        self.told = np.asarray(scores, dtype=float)

    def predict_proba(self, frame: pd.DataFrame) -> Any:
        scores = self.told[frame["position"].to_numpy()]
        return np.column_stack([1 - scores, scores])

    def predict(self, frame: pd.DataFrame) -> Any:
        return (self.predict_proba(frame)[:, 1] >= 0.5).astype("int64")


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.skops"
    path.write_bytes(bytes(250_000))
    return path


def evaluate(model_file: Path, scores: Any = SCORES, labels: Any = LABELS) -> evaluation.Evaluation:
    features = pd.DataFrame({"position": np.arange(len(labels))})
    return evaluation.evaluate(Predictor(Recited(scores), ""), features, np.asarray(labels), model_file)


def test_the_auc_is_the_share_of_pairs_in_the_right_order(model_file: Path) -> None:
    pairs = [(p, n) for p in SCORES[LABELS == 1] for n in SCORES[LABELS == 0]]
    right = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs)

    assert evaluate(model_file).metrics["auc_roc"] == pytest.approx(right / len(pairs))


def test_the_counts_behind_f1_precision_recall_and_accuracy_are_those_at_the_models_threshold(
    model_file: Path,
) -> None:
    predicted = SCORES >= 0.5
    hits, alarms, positives = (predicted & (LABELS == 1)).sum(), predicted.sum(), LABELS.sum()

    metrics = evaluate(model_file).metrics

    assert metrics["precision"] == pytest.approx(hits / alarms)
    assert metrics["recall"] == pytest.approx(hits / positives)
    assert metrics["f1_score"] == pytest.approx(2 * hits / (alarms + positives))
    assert metrics["accuracy"] == pytest.approx((predicted == LABELS).mean())
    assert metrics["brier_score"] == pytest.approx(((SCORES - LABELS) ** 2).mean())


def test_the_size_of_the_holdout_and_of_the_file_are_metrics(model_file: Path) -> None:
    metrics = evaluate(model_file).metrics

    assert metrics["model_size_mb"] == model_file.stat().st_size / 1e6
    assert (metrics["holdout_rows"], metrics["holdout_positives"]) == (len(LABELS), LABELS.sum())


def test_every_metric_of_the_default_gates_is_computed(model_file: Path) -> None:
    metrics = evaluate(model_file).metrics

    assert {gate.metric for gate in SPEC.gates} <= set(metrics)
    assert np.isfinite(list(metrics.values())).all()


def test_the_labels_and_scores_are_kept_with_the_metrics(model_file: Path) -> None:
    measured = evaluate(model_file)

    np.testing.assert_array_equal(measured.labels, LABELS)
    np.testing.assert_array_equal(measured.scores, SCORES)


@pytest.mark.parametrize("label", [0, 1])
def test_with_one_class_alone_there_is_no_auc_and_its_gate_is_inconclusive(model_file: Path, label: int) -> None:
    measured = evaluate(model_file, labels=np.full(len(SCORES), label))

    assert "auc_roc" not in measured.metrics
    assert evaluation.draw_curves(measured) is None
    outcomes = {r.metric: r.outcome for r in gates.judge(fakes.candidate(), measured.metrics, SPEC).results}
    assert outcomes["auc_roc"] is GateOutcome.INCONCLUSIVE


def test_a_model_that_never_says_yes_has_an_f1_of_zero_and_fails(model_file: Path) -> None:
    measured = evaluate(model_file, scores=np.zeros(len(LABELS)))

    assert measured.metrics["f1_score"] == 0.0
    outcomes = {r.metric: r.outcome for r in gates.judge(fakes.candidate(), measured.metrics, SPEC).results}
    assert outcomes["f1_score"] is GateOutcome.FAIL


@pytest.mark.fault("M1")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("share", ["one", "all"])
def test_scores_that_are_not_finite_do_not_pass(model_file: Path, bad: float, share: str) -> None:
    scores = np.where(np.arange(len(SCORES)) < (1 if share == "one" else len(SCORES)), bad, SCORES)

    measured = evaluate(model_file, scores=scores)

    assert_inconclusive(measured)


class Miscounting(Recited):
    """A pipeline that answers for fewer or for more rows than it was asked about, or only predicts so."""

    def __init__(self, more: int, *, scores_too: bool) -> None:
        super().__init__(SCORES)
        self.more = more
        self.scores_too = scores_too

    def predict_proba(self, frame: pd.DataFrame) -> Any:
        answers = super().predict_proba(frame)
        return miscounted(answers, self.more) if self.scores_too and len(frame) > 1 else answers

    def predict(self, frame: pd.DataFrame) -> Any:
        return miscounted((Recited.predict_proba(self, frame)[:, 1] >= 0.5).astype("int64"), self.more)


def miscounted(answers: Any, more: int) -> Any:
    return np.concatenate([answers, answers[:more]]) if more > 0 else answers[:more]


@pytest.mark.fault("M1")
@pytest.mark.parametrize("scores_too", [True, False])
@pytest.mark.parametrize("more", [-1, 1])
def test_answers_for_another_number_of_rows_do_not_pass(model_file: Path, more: int, scores_too: bool) -> None:
    features = pd.DataFrame({"position": np.arange(len(LABELS))})

    measured = evaluation.evaluate(
        Predictor(Miscounting(more, scores_too=scores_too), ""), features, LABELS, model_file
    )

    assert not {"auc_roc", "f1_score", "accuracy"} & set(measured.metrics)
    assert_inconclusive(measured)


def test_an_empty_holdout_measures_nothing(model_file: Path) -> None:
    measured = evaluate(model_file, labels=np.empty(0, "int64"))

    assert (measured.metrics["holdout_rows"], len(measured.labels), len(measured.scores)) == (0, 0, 0)
    assert_inconclusive(measured)


def assert_inconclusive(measured: evaluation.Evaluation) -> None:
    verdict = gates.judge(fakes.candidate(), measured.metrics, SPEC)
    outcomes = {result.metric: result.outcome for result in verdict.results}
    assert not verdict.passed
    assert outcomes["auc_roc"] is outcomes["f1_score"] is GateOutcome.INCONCLUSIVE
    assert evaluation.draw_curves(measured) is None


class Clock:
    """A clock that stands still but for what the model costs."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def read(self) -> float:
        return self.seconds


class Costly:
    """A pipeline whose calls cost what they were told to, one after the other; the last cost stays."""

    def __init__(self, clock: Clock, *costs: float) -> None:
        self.clock = clock
        self.costs = list(costs)
        self.rows: list[int] = []

    def predict_proba(self, frame: pd.DataFrame) -> Any:
        self.clock.seconds += self.costs.pop(0) if len(self.costs) > 1 else self.costs[0]
        self.rows.append(len(frame))
        return np.full((len(frame), 2), 0.5)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("time.perf_counter", made.read)
    return made


def test_a_model_that_takes_five_seconds_fails_the_latency_gate(clock: Clock) -> None:
    milliseconds = evaluation.latency_p95_ms(Predictor(Costly(clock, 5.0), ""), fakes.visits(60))

    assert milliseconds == pytest.approx(5_000)
    verdict = fakes.verdict(fakes.candidate(), inference_time_ms=milliseconds)
    assert [r.metric for r in verdict.results if r.outcome is GateOutcome.FAIL] == ["inference_time_ms"]


def test_the_first_calls_are_not_timed(clock: Clock) -> None:
    cold = [60.0] * evaluation.WARM_UP_CALLS

    assert evaluation.latency_p95_ms(Predictor(Costly(clock, *cold, 0.002), ""), fakes.visits(60)) == pytest.approx(2)


@pytest.mark.parametrize(("slow", "milliseconds"), [(2, 1.0), (5, 1_000.0)])
def test_the_latency_is_the_95th_percentile(clock: Clock, slow: int, milliseconds: float) -> None:
    calls = [0.001] * evaluation.WARM_UP_CALLS + [1.0] * slow + [0.001]

    measured = evaluation.latency_p95_ms(Predictor(Costly(clock, *calls), ""), fakes.visits(60))

    assert measured == pytest.approx(milliseconds)


@pytest.mark.parametrize("n", [1, 7, 500])
def test_latency_is_that_of_one_record_and_needs_few_rows(clock: Clock, n: int) -> None:
    costly = Costly(clock, 0.001)

    evaluation.latency_p95_ms(Predictor(costly, ""), fakes.visits(n))

    assert costly.rows == [1] * (evaluation.WARM_UP_CALLS + evaluation.TIMED_CALLS)


def test_without_a_row_the_latency_is_inconclusive() -> None:
    nothing = fakes.visits(1).head(0)

    milliseconds = evaluation.latency_p95_ms(Predictor(Recited([]), ""), nothing)

    assert np.isnan(milliseconds)


def test_the_curves_are_a_png(model_file: Path) -> None:
    curves = evaluation.draw_curves(evaluate(model_file))

    assert curves is not None
    assert curves.startswith(b"\x89PNG\r\n")
