"""A candidate beside its rivals: what is measured, on which rows, and when a comparison counts."""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from sklearn.metrics import roc_auc_score

from ml_platform import workflows
from ml_platform.database.tables import candidates as candidates_table
from ml_platform.errors import DatasetError, EvidenceError
from ml_platform.model_spec import METRICS, Comparison, Gate, GoldenSet, ModelSpec, Range
from ml_platform.predictor import MODEL_FILE, load
from ml_platform.records import Candidate, Figure, GateOutcome, LedgerEntry, Rival, Verdict
from ml_platform.stages import datasets, intervals, training
from ml_platform.workflows import Platform
from ml_platform.workflows.measuring import IN_A_FRESH_PROCESS
from ml_platform_tests import fakes
from ml_platform_tests.html_pages import read, sections, text
from ml_platform_tests.html_pages import rows as rows_of

SPEC = fakes.visits_spec()


def publish(platform: Platform, spec: ModelSpec, rows: pd.DataFrame, name: str = "monday.parquet") -> None:
    fakes.drop(platform, name, rows)
    keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, spec.name)]
    workflows.keep_raw_batches(platform, spec.name, keys)
    assert [result.outcome.value for result in workflows.publish_batches(platform, spec, keys)] == ["published"]


def train(platform: Platform, spec: ModelSpec) -> Candidate:
    workflows.pin_dataset(platform, spec)
    return workflows.train_candidate(platform, spec, reason="schedule")


def alike(spec: ModelSpec) -> ModelSpec:
    """Return a model whose candidates answer as those of another and have other bytes: equal fits have equal bytes."""
    from sklearn.pipeline import Pipeline

    return spec.model_copy(
        update={"pipeline": lambda: Pipeline([(f"{name}_too", step) for name, step in spec.pipeline().steps])}
    )


def judge(platform: Platform, spec: ModelSpec, candidate: Candidate) -> Verdict:
    return workflows.judge_candidate(platform, spec, candidate).verdict


def promote(platform: Platform, spec: ModelSpec, candidate: Candidate) -> LedgerEntry:
    candidate = platform.database.candidate(candidate.id)
    workflows.register_candidate(platform, spec, candidate)
    workflows.stage_version(platform, candidate)
    return workflows.promote_version(platform, spec, candidate, reason="schedule", actor="test")


@pytest.fixture(scope="module")
def champion_once(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """The home of a platform whose champion was trained on 600 visits; tests copy it."""
    opened = fakes.platform_in(tmp_path_factory.mktemp("champion") / "home")
    shutil.copy(empty_mlflow, opened.settings.home / "mlflow.db")
    publish(opened, SPEC, fakes.visits(600))
    candidate = train(opened, SPEC)
    judge(opened, SPEC, candidate)
    promote(opened, SPEC, candidate)
    opened.database.close()
    return opened.settings.home


@pytest.fixture
def reigned(champion_once: Path, tmp_path: Path) -> Iterator[Platform]:
    """A platform with a champion, version 1, and its rows."""
    opened = fakes.copied_platform(champion_once, tmp_path / "home")
    yield opened
    opened.database.close()


def champion_of(platform: Platform) -> Candidate:
    entry = platform.database.champion("visits")
    assert entry is not None
    return platform.database.candidate(entry.candidate)


def rival(verdict: Verdict) -> Rival:
    assert verdict.findings.rival is not None
    return verdict.findings.rival


def compared(verdict: Verdict, spec: ModelSpec = SPEC) -> tuple[GateOutcome, str]:
    assert spec.comparison is not None
    (result,) = [result for result in verdict.results if result.name == spec.comparison.name]
    return result.outcome, result.why


def figure(verdict: Verdict, metric: str, part: str = "", dataset: str = "holdout") -> Figure:
    where = (dataset, part, metric)
    (found,) = [f for f in verdict.findings.figures if (f.dataset, f.slice, f.metric) == where]
    return found


# What is measured


def test_metrics_are_scikit_learns_on_the_holdout_and_on_every_slice(reigned: Platform) -> None:
    spec = fakes.visits_spec(slices=("plan", Range(column="pages", below=10)))
    candidate = train(reigned, spec)

    verdict = judge(reigned, spec, candidate)

    _, holdout = datasets.split(datasets.read_version(reigned.rows("visits"), spec, 1), spec)
    predictor = load(reigned.model_file(candidate), candidate.model_digest)
    labels, scores = training.target(holdout, spec), predictor.scores(holdout[spec.features])
    paid = (holdout["plan"] == "paid").to_numpy()
    everywhere, of_paid = figure(verdict, "auc_roc"), figure(verdict, "auc_roc", "plan = paid")
    assert (everywhere.rows, of_paid.rows) == (len(holdout), paid.sum())
    assert everywhere.value == pytest.approx(roc_auc_score(labels, scores))
    assert of_paid.value == pytest.approx(roc_auc_score(labels[paid], scores[paid]))
    assert (everywhere.low or 1) < (everywhere.value or 0) < (everywhere.high or 0)
    places = {f.slice for f in verdict.findings.figures if f.metric in METRICS["binary"]}
    assert places == {"", "plan = free", "plan = paid", "pages < 10"}


def test_the_names_that_a_spec_may_compare_are_those_that_are_measured() -> None:
    assert {task: set(names) for task, names in METRICS.items()} == {
        task: set(names) for task, names in intervals.CATALOGUE.items()
    }


def test_mlflow_shows_points_bounds_and_slices(reigned: Platform) -> None:
    spec = fakes.visits_spec(slices=("plan",))
    candidate = train(reigned, spec)

    judgement = workflows.judge_candidate(reigned, spec, candidate)

    client = MlflowClient(reigned.settings.tracking_uri)
    shown = client.get_run(judgement.mlflow_run_id).data.metrics
    assert shown == judgement.verdict.metrics
    assert {"auc_roc", "auc_roc.low", "auc_roc.high", "plan_paid/auc_roc", "plan_paid/auc_roc.low"} < set(shown)
    (stored,) = [f.path for f in client.list_artifacts(judgement.mlflow_run_id) if f.path == "verdict.json"]
    path = Path(client.download_artifacts(judgement.mlflow_run_id, stored))
    assert Verdict.from_document(path.read_text()) == judgement.verdict


def test_the_page_of_a_verdict_stands_beside_the_candidate_and_in_mlflow(reigned: Platform) -> None:
    spec = fakes.visits_spec(slices=("plan",))
    champion = champion_of(reigned)
    publish(reigned, spec, fakes.visits(50, first=10_000), "tuesday.parquet")
    candidate = train(reigned, spec)

    judgement = workflows.judge_candidate(reigned, spec, candidate)

    assert judgement.page == reigned.verdict_page(candidate)
    page = sections(read(judgement.page.read_text()))
    assert judgement.verdict.digest in text(page["What it rests on"])
    assert {candidate.model_digest, champion.model_digest} <= {text(c) for c in page["Beside whom"].iter("code")}
    assert [len(line.get("points", "").split()) for line in page["Curves"].iter("polyline")][:2] == [102, 102]
    client = MlflowClient(reigned.settings.tracking_uri)
    for name in ("verdict.html", "curves.json"):
        shown = Path(client.download_artifacts(judgement.mlflow_run_id, name)).read_bytes()
        assert shown == (reigned.candidate_folder(candidate) / name).read_bytes()
    stored = Path(client.download_artifacts(judgement.mlflow_run_id, "verdict.json")).read_bytes()
    assert hashlib.sha256(stored).hexdigest() == judgement.verdict.digest


def test_a_candidate_that_is_judged_again_has_the_page_of_its_last_verdict(reigned: Platform) -> None:
    champion = champion_of(reigned)
    harder = fakes.visits_spec(gates=(Gate(metric="auc_roc", at_least=0.999),))

    judge(reigned, harder, champion)

    said = text(read(reigned.verdict_page(champion).read_text()))
    assert "REFUSED. 1 of 2 gates does not hold" in said


def test_time_and_memory_come_from_a_fresh_process_where_a_gate_asks(reigned: Platform) -> None:
    spec = fakes.visits_spec(gates=(*SPEC.gates, Gate(metric="inference_time_ms", at_most=60_000)))
    candidate = train(reigned, spec)

    timed, untimed = judge(reigned, spec, candidate), judge(reigned, SPEC, candidate)

    assert set(timed.metrics) >= IN_A_FRESH_PROCESS
    assert not IN_A_FRESH_PROCESS & set(untimed.metrics)
    time = figure(timed, "inference_time_ms")
    assert timed.metrics["inference_p50_ms"] <= time.value <= timed.metrics["inference_p99_ms"]  # type: ignore[operator]
    assert time.low <= time.value == time.high  # type: ignore[operator]
    assert timed.metrics["resident_memory_mib"] > 50
    size = reigned.model_file(candidate).stat().st_size / 1e6
    assert timed.metrics["model_size_mb"] == untimed.metrics["model_size_mb"] == size
    assert timed.passed


@pytest.mark.fault("M2")
def test_a_model_that_is_too_slow_is_refused(reigned: Platform) -> None:
    spec = fakes.visits_spec(gates=(Gate(metric="inference_time_ms", at_most=0.06),))

    verdict = judge(reigned, spec, train(reigned, spec))

    assert verdict.results[0].outcome is GateOutcome.FAIL
    assert "the gate asks for <= 0.06" in verdict.results[0].why


@pytest.mark.fault("M2")
def test_a_model_that_cannot_be_timed_is_inconclusive(reigned: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = fakes.visits_spec(gates=(*SPEC.gates, Gate(metric="inference_time_ms", at_most=60_000)))
    candidate = train(reigned, spec)
    monkeypatch.setattr("ml_platform.stages.latency.PROGRAM", "ml_platform.nowhere")

    verdict = judge(reigned, spec, candidate)

    (result,) = [result for result in verdict.results if result.name == "inference_time_ms"]
    assert result.outcome is GateOutcome.INCONCLUSIVE
    assert "ml_platform.nowhere" in result.why
    assert not verdict.passed


def freeze(platform: Platform, rows: pd.DataFrame, name: str = "holiday") -> GoldenSet:
    path = platform.settings.golden / "visits" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(path, index=False)
    return GoldenSet(name=name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_gate_on_a_golden_dataset_is_judged_on_its_rows(reigned: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reigned, "settings", reigned.settings.model_copy(update={"golden": reigned.settings.home}))
    golden = freeze(reigned, fakes.visits(200, first=5_000, seed=9, signal=0.0))
    gate = Gate(metric="auc_roc", at_least=0.8, dataset="holiday")
    spec = fakes.visits_spec(golden=(golden,), gates=(*SPEC.gates, gate))

    verdict = judge(reigned, spec, train(reigned, spec))

    assert figure(verdict, "auc_roc", dataset="holiday").rows == 200
    assert {r.name for r in verdict.results if r.outcome is not GateOutcome.PASS} == {"auc_roc_on_holiday"}
    assert verdict.metrics["holiday/auc_roc"] < 0.7 < verdict.metrics["auc_roc"]


def test_nothing_is_judged_while_a_golden_dataset_is_missing(reigned: Platform) -> None:
    candidate = train(reigned, SPEC)
    spec = fakes.visits_spec(golden=(GoldenSet(name="holiday", sha256="0" * 64),))

    with pytest.raises(DatasetError, match=r"holiday\.parquet cannot be read"):
        judge(reigned, spec, candidate)

    assert reigned.database.verdict_on(candidate.id) is None


# The other tasks


@pytest.mark.parametrize(
    ("spec", "rows"),
    [
        (fakes.kinds_spec(slices=("plan",)), fakes.kinds(fakes.visits(600))),
        (fakes.spending_spec(slices=("plan",)), fakes.spending(fakes.visits(600))),
    ],
    ids=["multiclass", "regression"],
)
def test_models_of_classes_and_of_numbers_live_as_binary_ones_do(
    platform: Platform, spec: ModelSpec, rows: pd.DataFrame
) -> None:
    publish(platform, spec, rows)
    first = train(platform, spec)
    verdict = judge(platform, spec, first)

    assert verdict.passed, [result.why for result in verdict.results]
    assert rival(verdict).kind == "baseline"
    measured = {f.metric for f in verdict.findings.figures if f.slice == "plan = paid" and f.value is not None}
    assert measured == set(METRICS[spec.task])
    page = sections(read(platform.verdict_page(first).read_text()))
    assert set(METRICS[spec.task]) == {cell.split()[0] for cell, *_ in list(rows_of(page["Figures"]))[1:]}
    assert list(page["Curves"].iter("polyline"))
    assert promote(platform, spec, first).version == 1
    second = judge(platform, spec, train(platform, alike(spec)))
    assert (rival(second).name, rival(second).difference) == ("version 1", 0)
    assert second.passed


# Rivals


def test_the_first_model_is_held_against_the_baseline_on_the_holdout(platform: Platform) -> None:
    publish(platform, SPEC, fakes.visits(600))

    verdict = judge(platform, SPEC, train(platform, SPEC))

    found = rival(verdict)
    assert (found.kind, found.name, found.version) == ("baseline", "DummyClassifier(prior)", None)
    assert found.rows == figure(verdict, "auc_roc").rows
    assert verdict.baseline == "DummyClassifier(prior)"
    assert {f.value for f in found.figures if f.metric == "auc_roc"} == {0.5}
    assert compared(verdict)[0] is GateOutcome.PASS


def knows_the_odds(frame: pd.DataFrame) -> Any:
    """The rule that made the labels."""
    odds = 3.0 * ((frame["pages"] - 25) / 12 + np.where(frame["plan"] == "paid", 0.7, -0.7))
    return 1 / (1 + np.exp(-odds))


def test_a_first_model_that_does_not_beat_last_years_rule_is_refused(platform: Platform) -> None:
    spec = fakes.visits_spec(baseline=knows_the_odds)
    publish(platform, spec, fakes.visits(600))

    verdict = judge(platform, spec, train(platform, spec))

    outcome, why = compared(verdict)
    assert outcome is GateOutcome.FAIL
    assert "rule ml_platform_tests.test_judging.knows_the_odds" in why


def test_an_equal_candidate_follows_the_champion_by_the_margin(reigned: Platform) -> None:
    publish(reigned, SPEC, fakes.visits(10, first=10_000), "tuesday.parquet")

    verdict = judge(reigned, SPEC, train(reigned, SPEC))

    found = rival(verdict)
    assert (found.kind, found.name, found.version) == ("champion", "version 1", 1)
    assert (found.model_digest, verdict.findings.champion) == (champion_of(reigned).model_digest, 1)
    assert {f.label for f in found.figures} == {f.label for f in verdict.findings.figures} - {"model_size_mb"}
    assert compared(verdict)[0] is GateOutcome.PASS


def test_a_candidate_that_is_worse_than_the_champion_is_refused(reigned: Platform) -> None:
    worse = fakes.visits_spec(
        pipeline=lambda: fakes.visits_pipeline().set_params(preprocess__numbers="drop"),
        gates=(Gate(metric="auc_roc", at_least=0.5),),
    )

    verdict = judge(reigned, worse, train(reigned, worse))

    assert [result.outcome.value for result in verdict.results] == ["PASS", "FAIL"]
    assert "over version 1" in compared(verdict)[1]


@pytest.mark.parametrize("confidence", [0.95, 0.6])
def test_the_authors_confidence_is_that_of_one_side(reigned: Platform, confidence: float) -> None:
    spec = fakes.visits_spec(
        pipeline=lambda: fakes.visits_pipeline().set_params(preprocess__numbers="drop"),
        comparison=Comparison(confidence=confidence),
    )
    candidate = train(reigned, spec)

    found = rival(judge(reigned, spec, candidate))

    _, holdout = datasets.split(datasets.read_version(reigned.rows("visits"), spec, 1), spec)
    ours, theirs = (
        load(reigned.model_file(one), one.model_digest).scores(holdout[spec.features])
        for one in (candidate, champion_of(reigned))
    )
    two_sided = intervals.auc_difference(
        training.target(holdout, spec), ours, theirs, confidence=1 - 2 * (1 - confidence)
    )
    assert found.low == pytest.approx(two_sided.low)
    assert found.difference == pytest.approx(two_sided.value)


def test_an_equal_candidate_shows_no_gain(reigned: Platform) -> None:
    spec = fakes.visits_spec(comparison=Comparison(minimum_gain=0.001))

    assert compared(judge(reigned, spec, train(reigned, alike(spec))), spec)[0] is GateOutcome.FAIL


def test_without_a_comparison_nobody_is_asked(reigned: Platform) -> None:
    spec = fakes.visits_spec(comparison=None)

    verdict = judge(reigned, spec, train(reigned, spec))

    assert (verdict.findings.rival, verdict.findings.champion) == (None, 1)
    assert [result.name for result in verdict.results] == [gate.name for gate in spec.gates]


@pytest.mark.parametrize(("gain", "outcome"), [(None, GateOutcome.PASS), (0.0, GateOutcome.INCONCLUSIVE)])
def test_the_champion_is_not_compared_with_itself(reigned: Platform, gain: float | None, outcome: GateOutcome) -> None:
    champion, spec = champion_of(reigned), fakes.visits_spec(comparison=Comparison(minimum_gain=gain))

    verdict = judge(reigned, spec, champion)

    assert rival(verdict).kind == ("baseline" if gain is None else "champion")
    assert (rival(verdict).version, rival(verdict).model_digest) == (1, champion.model_digest)
    assert compared(verdict, spec)[0] is outcome


def test_a_champion_whose_own_file_is_gone_is_fetched_from_the_registry(reigned: Platform) -> None:
    reigned.model_file(champion_of(reigned)).unlink()

    assert compared(judge(reigned, SPEC, train(reigned, SPEC)))[0] is GateOutcome.PASS


@pytest.mark.fault("M3")
def test_a_champion_whose_bytes_are_gone_everywhere_is_inconclusive(reigned: Platform) -> None:
    for path in reigned.settings.home.rglob(MODEL_FILE):
        path.unlink()

    outcome, why = compared(judge(reigned, SPEC, train(reigned, alike(SPEC))))

    assert outcome is GateOutcome.INCONCLUSIVE
    assert "was not compared with version 1" in why


@pytest.mark.fault("M3")
def test_a_champion_with_other_bytes_is_inconclusive_and_never_loaded(reigned: Platform) -> None:
    reigned.model_file(champion_of(reigned)).write_bytes(b"other bytes")

    outcome, why = compared(judge(reigned, SPEC, train(reigned, alike(SPEC))))

    assert outcome is GateOutcome.INCONCLUSIVE
    assert "it is not the model that was gated" in why


def test_a_champion_that_cannot_read_the_new_contract_is_inconclusive(reigned: Platform) -> None:
    candidate, champion = train(reigned, SPEC), champion_of(reigned)
    other = fakes.visits_pipeline().set_params(preprocess__transformers=[("as they are", "passthrough", ["leaves"])])
    other.fit(fakes.visits(100).rename(columns={"pages": "leaves"}), np.arange(100) % 2)
    digest = training.store(other, reigned.candidate_folder(champion))
    with reigned.database._transaction() as connection:
        its = candidates_table.c.id == champion.id
        connection.execute(sa.update(candidates_table).where(its).values(model_digest=digest))

    outcome, why = compared(judge(reigned, SPEC, candidate))

    assert outcome is GateOutcome.INCONCLUSIVE
    assert "cannot answer rows of this contract" in why


# Rows that the champion was trained on


def test_by_entity_the_champion_has_seen_no_row_of_the_holdout(reigned: Platform) -> None:
    publish(reigned, SPEC, fakes.visits(300, first=601, day=2, seed=1), "tuesday.parquet")

    verdict = judge(reigned, SPEC, train(reigned, SPEC))

    assert rival(verdict).rows == figure(verdict, "auc_roc").rows


def trained_on(platform: Platform, spec: ModelSpec, candidate: Candidate) -> set[int]:
    rows = datasets.read_version(platform.rows("visits"), spec, candidate.lineage.dataset_version)
    return set(datasets.split(rows, spec)[0]["visitor"])


@pytest.mark.parametrize("change", [{"split": "time"}, {"holdout_share": 0.5}], ids=str)
def test_when_the_split_was_changed_rows_that_the_champion_was_trained_on_are_left_out(
    reigned: Platform, change: dict[str, Any]
) -> None:
    spec, seen = fakes.visits_spec(**change), trained_on(reigned, SPEC, champion_of(reigned))

    verdict = judge(reigned, spec, train(reigned, spec))

    _, holdout = datasets.split(datasets.read_version(reigned.rows("visits"), spec, 1), spec)
    unseen = len(set(holdout["visitor"]) - seen)
    assert 0 < unseen < len(holdout)
    assert (rival(verdict).rows, figure(verdict, "auc_roc").rows) == (unseen, len(holdout))


def test_by_time_rows_that_came_late_are_left_out_if_the_champion_was_trained_on_them(platform: Platform) -> None:
    spec = fakes.visits_spec(split="time")
    publish(platform, spec, fakes.visits(600, day=5))
    first = train(platform, spec)
    judge(platform, spec, first)
    promote(platform, spec, first)
    seen = trained_on(platform, spec, first)
    publish(platform, spec, fakes.visits(1_200, first=1_000, day=2, seed=1), "late.parquet")

    verdict = judge(platform, spec, train(platform, spec))

    _, holdout = datasets.split(datasets.read_version(platform.rows("visits"), spec, 2), spec)
    unseen = len(set(holdout["visitor"]) - seen)
    assert (rival(verdict).rows, len(holdout)) == (unseen, 360)
    assert unseen == 120


def test_a_champion_whose_training_rows_are_unknown_is_inconclusive(reigned: Platform) -> None:
    with reigned.database._transaction() as connection:
        connection.execute(sa.text("DELETE FROM verdicts"))

    outcome, why = compared(judge(reigned, SPEC, train(reigned, alike(SPEC))))

    assert outcome is GateOutcome.INCONCLUSIVE
    assert "no verdict that says how its training rows were chosen" in why


# Between judging and promotion


def test_a_comparison_with_an_earlier_champion_is_no_evidence(reigned: Platform) -> None:
    overtaken, faster = train(reigned, SPEC), train(reigned, SPEC)
    judge(reigned, SPEC, overtaken)
    judge(reigned, SPEC, faster)
    promote(reigned, SPEC, faster)

    with pytest.raises(EvidenceError, match="compared when version 1 was champion, and version 2 is now"):
        promote(reigned, SPEC, overtaken)

    champion = reigned.database.champion("visits")
    assert champion is not None
    assert champion.candidate == faster.id


def test_a_candidate_judged_before_the_first_champion_is_no_evidence_after_it(platform: Platform) -> None:
    publish(platform, SPEC, fakes.visits(600))
    slow, first = train(platform, SPEC), train(platform, SPEC)
    judge(platform, SPEC, slow)
    judge(platform, SPEC, first)
    promote(platform, SPEC, first)

    with pytest.raises(EvidenceError, match="compared before there was a champion"):
        promote(platform, SPEC, slow)


def test_the_champion_stays_evidence_for_itself(reigned: Platform) -> None:
    assert promote(reigned, SPEC, champion_of(reigned)).version == 1


@pytest.mark.parametrize(
    "change",
    [
        {"gates": SPEC.gates[1:]},
        {"gates": (Gate(metric="auc_roc", at_least=0.81), *SPEC.gates[1:])},
        {"comparison": None},
        {"comparison": Comparison(margin=0.5)},
        {"baseline": "stratified"},
        {"slices": ("plan",)},
    ],
    ids=["a gate dropped", "a threshold changed", "no comparison", "another margin", "another baseline", "a slice"],
)
def test_what_was_changed_since_the_judgement_is_no_evidence(reigned: Platform, change: dict[str, Any]) -> None:
    candidate = train(reigned, SPEC)
    judge(reigned, SPEC, candidate)

    with pytest.raises(EvidenceError, match="the gates were changed since it was judged"):
        promote(reigned, fakes.visits_spec(**change), candidate)


def test_the_verdict_of_another_model_is_no_evidence(reigned: Platform) -> None:
    candidate, other = train(reigned, SPEC), train(reigned, alike(SPEC))
    judge(reigned, SPEC, candidate)
    theirs = judge(reigned, SPEC, other)
    reigned.database.record_verdict(replace(theirs, candidate=candidate.id))

    with pytest.raises(EvidenceError, match="the model's bytes have sha256"):
        promote(reigned, SPEC, candidate)
