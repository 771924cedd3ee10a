"""Judging a candidate: its measurements, its comparison with champion or baseline, and the rows of both."""

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

from ml_platform.data import dataset_checks, datasets
from ml_platform.data.ingest import publish_batches, store_raw_batches
from ml_platform.data.landing import waiting_arrivals
from ml_platform.data.pin import pin_dataset
from ml_platform.database.tables import candidates as candidates_table
from ml_platform.errors import DatasetError, EvidenceError
from ml_platform.evaluation import metrics
from ml_platform.evaluation.judge import judge_candidate
from ml_platform.evaluation.measure import IN_A_FRESH_PROCESS
from ml_platform.evaluation.uncertainty import delong
from ml_platform.inference.predictor import load
from ml_platform.model_spec import METRICS, Comparison, Gate, GoldenSet, InRange, ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.ledger import LedgerEntry
from ml_platform.records.verdict import Candidate, GateOutcome, Measurement, Reference, Verdict
from ml_platform.release.promote import promote_version
from ml_platform.release.register import register_candidate, stage_version
from ml_platform.storage.model_files import MODEL_FILE
from ml_platform.training import fit
from ml_platform.training.train import train_candidate
from ml_platform_tests.support import fakes
from ml_platform_tests.support.html_pages import read, sections, text
from ml_platform_tests.support.html_pages import rows as rows_of

pytestmark = pytest.mark.slow

SPEC = fakes.visits_spec()


def publish(platform: Platform, spec: ModelSpec, rows: pd.DataFrame, name: str = "monday.parquet") -> None:
    fakes.drop(platform, name, rows)
    # In a copied home the earlier files have other change times: they arrive again.
    keys = [arrival.key for arrival in waiting_arrivals(platform, spec.name) if arrival.name == name]
    store_raw_batches(platform, spec.name, keys)
    assert [result.outcome.value for result in publish_batches(platform, spec, keys)] == ["published"]


def train(platform: Platform, spec: ModelSpec) -> Candidate:
    pin_dataset(platform, spec)
    return train_candidate(platform, spec, reason="schedule")


def with_other_bytes(spec: ModelSpec) -> ModelSpec:
    """Return a spec whose models predict like those of another but have other bytes: equal fits have equal bytes."""
    from sklearn.pipeline import Pipeline

    return spec.model_copy(
        update={"pipeline": lambda: Pipeline([(f"{name}_too", step) for name, step in spec.pipeline().steps])}
    )


def judge(platform: Platform, spec: ModelSpec, candidate: Candidate) -> Verdict:
    return judge_candidate(platform, spec, candidate).verdict


def promote(platform: Platform, spec: ModelSpec, candidate: Candidate) -> LedgerEntry:
    candidate = platform.database.candidate(candidate.id)
    register_candidate(platform, spec, candidate)
    stage_version(platform, candidate)
    return promote_version(platform, spec, candidate, reason="schedule", actor="test")


@pytest.fixture(scope="module")
def champion_once(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """The home of a platform with a champion trained on 600 visits; tests copy it."""
    opened = fakes.platform_in(tmp_path_factory.mktemp("champion") / "home")
    shutil.copy(empty_mlflow, opened.settings.home / "mlflow.db")
    publish(opened, SPEC, fakes.visits(600))
    candidate = train(opened, SPEC)
    judge(opened, SPEC, candidate)
    promote(opened, SPEC, candidate)
    opened.database.close()
    return opened.settings.home


@pytest.fixture
def with_champion(champion_once: Path, tmp_path: Path) -> Iterator[Platform]:
    """A platform with a champion, version 1, and its rows."""
    opened = fakes.copied_platform(champion_once, tmp_path / "home")
    yield opened
    opened.database.close()


def load_champion(platform: Platform) -> Candidate:
    entry = platform.database.champion("visits")
    assert entry is not None
    return platform.database.candidate(entry.candidate)


def rewrite_champion(platform: Platform, digest: str) -> None:
    """Bind the champion to other bytes throughout: record, verdict and ledger, as if it had been trained with them."""
    entry, verdict = platform.database.champion("visits"), platform.database.verdict_on(load_champion(platform).id)
    assert entry is not None
    assert verdict is not None
    with platform.database._transaction() as connection:
        its = candidates_table.c.id == entry.candidate
        connection.execute(sa.update(candidates_table).where(its).values(model_digest=digest))
    champion = platform.database.candidate(entry.candidate)
    other = replace(verdict, model_digest=digest, origin_digest=champion.origin_digest)
    platform.database.record_verdict(other)
    fakes.behind_the_triggers(platform.database, f"UPDATE ledger SET verdict_digest = '{other.digest}'")  # noqa: S608


def reference(verdict: Verdict) -> Reference:
    assert verdict.evaluation.reference is not None
    return verdict.evaluation.reference


def compared(verdict: Verdict, spec: ModelSpec = SPEC) -> tuple[GateOutcome, str]:
    assert spec.comparison is not None
    (result,) = [result for result in verdict.results if result.name == spec.comparison.name]
    return result.outcome, result.why


def measurement(verdict: Verdict, metric: str, part: str = "", dataset: str = "holdout") -> Measurement:
    where = (dataset, part, metric)
    (found,) = [f for f in verdict.evaluation.measurements if (f.dataset, f.slice, f.metric) == where]
    return found


# Measurements


def test_metrics_on_holdout_and_slices_match_scikit_learn(with_champion: Platform) -> None:
    spec = fakes.visits_spec(slices=("plan", InRange(column="pages", below=10)))
    candidate = train(with_champion, spec)

    verdict = judge(with_champion, spec, candidate)

    _, holdout = datasets.split(datasets.read_version(with_champion.rows("visits"), spec, 1), spec)
    predictor = load(with_champion.model_file(candidate), candidate.model_digest)
    labels, scores = dataset_checks.target(holdout, spec), predictor.scores(holdout[spec.features])
    paid = (holdout["plan"] == "paid").to_numpy()
    everywhere, of_paid = measurement(verdict, "auc_roc"), measurement(verdict, "auc_roc", "plan = paid")
    assert (everywhere.rows, of_paid.rows) == (len(holdout), paid.sum())
    assert everywhere.value == pytest.approx(roc_auc_score(labels, scores))
    assert of_paid.value == pytest.approx(roc_auc_score(labels[paid], scores[paid]))
    assert (everywhere.low or 1) < (everywhere.value or 0) < (everywhere.high or 0)
    places = {f.slice for f in verdict.evaluation.measurements if f.metric in METRICS["binary"]}
    assert places == {"", "plan = free", "plan = paid", "pages < 10"}


def test_spec_metrics_equal_measured_metrics() -> None:
    assert {task: set(names) for task, names in METRICS.items()} == {
        task: set(names) for task, names in metrics.CATALOGUE.items()
    }


def test_mlflow_run_has_values_bounds_and_slices(with_champion: Platform) -> None:
    spec = fakes.visits_spec(slices=("plan",))
    candidate = train(with_champion, spec)

    judgement = judge_candidate(with_champion, spec, candidate)

    client = MlflowClient(with_champion.settings.tracking_uri)
    shown = client.get_run(judgement.mlflow_run_id).data.metrics
    assert shown == judgement.verdict.metrics
    assert {"auc_roc", "auc_roc.low", "auc_roc.high", "plan_paid/auc_roc", "plan_paid/auc_roc.low"} < set(shown)
    (stored,) = [f.path for f in client.list_artifacts(judgement.mlflow_run_id) if f.path == "verdict.json"]
    path = Path(client.download_artifacts(judgement.mlflow_run_id, stored))
    assert Verdict.from_document(path.read_text()) == judgement.verdict


def test_verdict_page_is_in_folder_and_mlflow(with_champion: Platform) -> None:
    spec = fakes.visits_spec(slices=("plan",))
    champion = load_champion(with_champion)
    publish(with_champion, spec, fakes.visits(50, first=10_000), "tuesday.parquet")
    candidate = train(with_champion, spec)

    judgement = judge_candidate(with_champion, spec, candidate)

    assert judgement.page == with_champion.verdict_page(candidate)
    page = sections(read(judgement.page.read_text()))
    assert judgement.verdict.digest in text(page["Lineage"])
    assert {candidate.model_digest, champion.model_digest} <= {text(c) for c in page["Comparison"].iter("code")}
    assert [len(line.get("points", "").split()) for line in page["Curves"].iter("polyline")][:2] == [102, 102]
    client = MlflowClient(with_champion.settings.tracking_uri)
    for name in ("verdict.html", "curves.json"):
        shown = Path(client.download_artifacts(judgement.mlflow_run_id, name)).read_bytes()
        assert shown == (with_champion.candidate_folder(candidate) / name).read_bytes()
    stored = Path(client.download_artifacts(judgement.mlflow_run_id, "verdict.json")).read_bytes()
    assert hashlib.sha256(stored).hexdigest() == judgement.verdict.digest


def test_candidate_of_all_rows_is_compared(with_champion: Platform) -> None:
    spec = fakes.visits_spec(rows="all")
    publish(with_champion, spec, fakes.visits(500, first=1, day=2, seed=5), "tuesday.parquet")
    candidate = train(with_champion, spec)

    verdict = judge_candidate(with_champion, spec, candidate).verdict

    assert verdict.split == "entity 0.2 all"
    assert verdict.evaluation.reference is not None
    assert verdict.evaluation.reference.reason == ""


def test_second_judgement_replaces_the_page(with_champion: Platform) -> None:
    champion = load_champion(with_champion)
    harder = fakes.visits_spec(gates=(Gate(metric="auc_roc", at_least=0.999),))

    judge(with_champion, harder, champion)

    page = text(read(with_champion.verdict_page(champion).read_text()))
    assert "REFUSED. 1 of 2 gates does not hold" in page


def test_latency_is_measured_only_for_a_gate(with_champion: Platform) -> None:
    spec = fakes.visits_spec(gates=(*SPEC.gates, Gate(metric="inference_time_ms", at_most=60_000)))
    candidate = train(with_champion, spec)

    timed, untimed = judge(with_champion, spec, candidate), judge(with_champion, SPEC, candidate)

    assert set(timed.metrics) >= IN_A_FRESH_PROCESS
    assert not IN_A_FRESH_PROCESS & set(untimed.metrics)
    time = measurement(timed, "inference_time_ms")
    assert timed.metrics["inference_p50_ms"] <= time.value <= timed.metrics["inference_p99_ms"]  # type: ignore[operator]
    assert time.low <= time.value == time.high  # type: ignore[operator]
    assert timed.metrics["resident_memory_mib"] > 50
    size = with_champion.model_file(candidate).stat().st_size / 1e6
    assert timed.metrics["model_size_mb"] == untimed.metrics["model_size_mb"] == size
    assert timed.passed


@pytest.mark.fault("M2")
def test_slow_model_is_refused(with_champion: Platform) -> None:
    spec = fakes.visits_spec(gates=(Gate(metric="inference_time_ms", at_most=0.06),))

    verdict = judge(with_champion, spec, train(with_champion, spec))

    assert verdict.results[0].outcome is GateOutcome.FAIL
    assert "the gate asks for <= 0.06" in verdict.results[0].why


@pytest.mark.fault("M2")
def test_unmeasurable_latency_is_inconclusive(with_champion: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = fakes.visits_spec(gates=(*SPEC.gates, Gate(metric="inference_time_ms", at_most=60_000)))
    candidate = train(with_champion, spec)
    monkeypatch.setattr("ml_platform.evaluation.latency.PROGRAM", "ml_platform.nowhere")

    verdict = judge(with_champion, spec, candidate)

    (result,) = [result for result in verdict.results if result.name == "inference_time_ms"]
    assert result.outcome is GateOutcome.INCONCLUSIVE
    assert "ml_platform.nowhere" in result.why
    assert not verdict.passed


def freeze(platform: Platform, rows: pd.DataFrame, name: str = "holiday") -> GoldenSet:
    path = platform.settings.golden_dir / "visits" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(path, index=False)
    return GoldenSet(name=name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_gate_on_golden_dataset_uses_its_rows(with_champion: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        with_champion, "settings", with_champion.settings.model_copy(update={"golden_dir": with_champion.settings.home})
    )
    golden = freeze(with_champion, fakes.visits(200, first=5_000, seed=9, signal=0.0))
    gate = Gate(metric="auc_roc", at_least=0.8, dataset="holiday")
    spec = fakes.visits_spec(golden=(golden,), gates=(*SPEC.gates, gate))

    verdict = judge(with_champion, spec, train(with_champion, spec))

    assert measurement(verdict, "auc_roc", dataset="holiday").rows == 200
    assert {r.name for r in verdict.results if r.outcome is not GateOutcome.PASS} == {"auc_roc_on_holiday"}
    assert verdict.metrics["holiday/auc_roc"] < 0.7 < verdict.metrics["auc_roc"]


def test_missing_golden_dataset_blocks_judging(with_champion: Platform) -> None:
    candidate = train(with_champion, SPEC)
    spec = fakes.visits_spec(golden=(GoldenSet(name="holiday", sha256="0" * 64),))

    with pytest.raises(DatasetError, match=r"holiday\.parquet cannot be read"):
        judge(with_champion, spec, candidate)

    assert with_champion.database.verdict_on(candidate.id) is None


# The other tasks


@pytest.mark.parametrize(
    ("spec", "rows"),
    [
        (fakes.kinds_spec(slices=("plan",)), fakes.kinds(fakes.visits(600))),
        (fakes.spending_spec(slices=("plan",)), fakes.spending(fakes.visits(600))),
    ],
    ids=["multiclass", "regression"],
)
def test_multiclass_and_regression_models_are_promoted(platform: Platform, spec: ModelSpec, rows: pd.DataFrame) -> None:
    publish(platform, spec, rows)
    first = train(platform, spec)
    verdict = judge(platform, spec, first)

    assert verdict.passed, [result.why for result in verdict.results]
    assert reference(verdict).kind == "baseline"
    measured = {f.metric for f in verdict.evaluation.measurements if f.slice == "plan = paid" and f.value is not None}
    assert measured == set(METRICS[spec.task])
    page = sections(read(platform.verdict_page(first).read_text()))
    assert set(METRICS[spec.task]) == {cell.split()[0] for cell, *_ in list(rows_of(page["Measurements"]))[1:]}
    assert list(page["Curves"].iter("polyline"))
    assert promote(platform, spec, first).version == 1
    second = judge(platform, spec, train(platform, with_other_bytes(spec)))
    assert (reference(second).name, reference(second).difference) == ("version 1", 0)
    assert second.passed


# References


def test_first_model_is_compared_with_the_baseline(platform: Platform) -> None:
    publish(platform, SPEC, fakes.visits(600))

    verdict = judge(platform, SPEC, train(platform, SPEC))

    compared_with = reference(verdict)
    assert (compared_with.kind, compared_with.name, compared_with.version) == (
        "baseline",
        "DummyClassifier(prior)",
        None,
    )
    assert compared_with.rows == measurement(verdict, "auc_roc").rows
    assert verdict.baseline == "DummyClassifier(prior)"
    assert {f.value for f in compared_with.measurements if f.metric == "auc_roc"} == {0.5}
    assert compared(verdict)[0] is GateOutcome.PASS


def true_odds(frame: pd.DataFrame) -> Any:
    """Return the probabilities that the labels were drawn from."""
    odds = 3.0 * ((frame["pages"] - 25) / 12 + np.where(frame["plan"] == "paid", 0.7, -0.7))
    return 1 / (1 + np.exp(-odds))


def test_first_model_worse_than_rule_is_refused(platform: Platform) -> None:
    spec = fakes.visits_spec(baseline=true_odds)
    publish(platform, spec, fakes.visits(600))

    verdict = judge(platform, spec, train(platform, spec))

    outcome, why = compared(verdict)
    assert outcome is GateOutcome.FAIL
    assert "rule ml_platform_tests.evaluation.test_judge.true_odds" in why


def test_equal_candidate_passes_by_the_margin(with_champion: Platform) -> None:
    publish(with_champion, SPEC, fakes.visits(10, first=10_000), "tuesday.parquet")

    verdict = judge(with_champion, SPEC, train(with_champion, SPEC))

    compared_with = reference(verdict)
    assert (compared_with.kind, compared_with.name, compared_with.version) == ("champion", "version 1", 1)
    assert (compared_with.model_digest, verdict.evaluation.champion) == (load_champion(with_champion).model_digest, 1)
    assert {f.label for f in compared_with.measurements} == {f.label for f in verdict.evaluation.measurements} - {
        "model_size_mb"
    }
    assert compared(verdict)[0] is GateOutcome.PASS


def test_candidate_worse_than_champion_is_refused(with_champion: Platform) -> None:
    worse = fakes.visits_spec(
        pipeline=lambda: fakes.visits_pipeline().set_params(preprocess__numbers="drop"),
        gates=(Gate(metric="auc_roc", at_least=0.5),),
    )

    verdict = judge(with_champion, worse, train(with_champion, worse))

    assert [result.outcome.value for result in verdict.results] == ["PASS", "FAIL"]
    assert "over version 1" in compared(verdict)[1]


@pytest.mark.parametrize("confidence", [0.95, 0.6])
def test_comparison_confidence_is_one_sided(with_champion: Platform, confidence: float) -> None:
    spec = fakes.visits_spec(
        pipeline=lambda: fakes.visits_pipeline().set_params(preprocess__numbers="drop"),
        comparison=Comparison(confidence=confidence),
    )
    candidate = train(with_champion, spec)

    compared_with = reference(judge(with_champion, spec, candidate))

    _, holdout = datasets.split(datasets.read_version(with_champion.rows("visits"), spec, 1), spec)
    ours, theirs = (
        load(with_champion.model_file(one), one.model_digest).scores(holdout[spec.features])
        for one in (candidate, load_champion(with_champion))
    )
    two_sided = delong.auc_difference(
        dataset_checks.target(holdout, spec), ours, theirs, confidence=1 - 2 * (1 - confidence)
    )
    assert compared_with.low == pytest.approx(two_sided.low)
    assert compared_with.difference == pytest.approx(two_sided.value)


def test_equal_candidate_shows_no_gain(with_champion: Platform) -> None:
    spec = fakes.visits_spec(comparison=Comparison(min_gain=0.001))

    assert (
        compared(judge(with_champion, spec, train(with_champion, with_other_bytes(spec))), spec)[0] is GateOutcome.FAIL
    )


def test_no_declared_comparison_gives_no_reference(with_champion: Platform) -> None:
    spec = fakes.visits_spec(comparison=None)

    verdict = judge(with_champion, spec, train(with_champion, spec))

    assert (verdict.evaluation.reference, verdict.evaluation.champion) == (None, 1)
    assert [result.name for result in verdict.results] == [gate.name for gate in spec.gates]


@pytest.mark.parametrize(("gain", "outcome"), [(None, GateOutcome.PASS), (0.0, GateOutcome.INCONCLUSIVE)])
def test_champion_is_not_compared_with_itself(
    with_champion: Platform, gain: float | None, outcome: GateOutcome
) -> None:
    champion, spec = load_champion(with_champion), fakes.visits_spec(comparison=Comparison(min_gain=gain))

    verdict = judge(with_champion, spec, champion)

    assert reference(verdict).kind == ("baseline" if gain is None else "champion")
    assert (reference(verdict).version, reference(verdict).model_digest) == (1, champion.model_digest)
    assert compared(verdict, spec)[0] is outcome


def test_missing_champion_file_is_fetched_from_registry(with_champion: Platform) -> None:
    with_champion.model_file(load_champion(with_champion)).unlink()

    assert compared(judge(with_champion, SPEC, train(with_champion, SPEC)))[0] is GateOutcome.PASS


@pytest.mark.fault("M3")
def test_lost_champion_bytes_are_inconclusive(with_champion: Platform) -> None:
    for path in with_champion.settings.home.rglob(MODEL_FILE):
        path.unlink()

    outcome, why = compared(judge(with_champion, SPEC, train(with_champion, with_other_bytes(SPEC))))

    assert outcome is GateOutcome.INCONCLUSIVE
    assert "was not compared with version 1" in why


@pytest.mark.fault("M3")
def test_changed_champion_bytes_are_never_loaded(with_champion: Platform) -> None:
    with_champion.model_file(load_champion(with_champion)).write_bytes(b"other bytes")

    outcome, why = compared(judge(with_champion, SPEC, train(with_champion, with_other_bytes(SPEC))))

    assert outcome is GateOutcome.INCONCLUSIVE
    assert "the file is not the model that passed its gates" in why


def test_champion_of_another_contract_is_inconclusive(with_champion: Platform) -> None:
    candidate, champion = train(with_champion, SPEC), load_champion(with_champion)
    other = fakes.visits_pipeline().set_params(preprocess__transformers=[("as they are", "passthrough", ["leaves"])])
    other.fit(fakes.visits(100).rename(columns={"pages": "leaves"}), np.arange(100) % 2)
    digest = fit.store(other, with_champion.candidate_folder(champion))
    rewrite_champion(with_champion, digest)

    outcome, why = compared(judge(with_champion, SPEC, candidate))

    assert outcome is GateOutcome.INCONCLUSIVE
    assert "cannot predict rows of this contract" in why


# Rows that the champion was trained on


def test_entity_split_compares_on_the_whole_holdout(with_champion: Platform) -> None:
    publish(with_champion, SPEC, fakes.visits(300, first=601, day=2, seed=1), "tuesday.parquet")

    verdict = judge(with_champion, SPEC, train(with_champion, SPEC))

    assert reference(verdict).rows == measurement(verdict, "auc_roc").rows


def trained_on(platform: Platform, spec: ModelSpec, candidate: Candidate) -> set[int]:
    rows = datasets.read_version(platform.rows("visits"), spec, candidate.lineage.dataset_version)
    return set(datasets.split(rows, spec)[0]["visitor"])


@pytest.mark.parametrize("change", [{"split": "time"}, {"holdout_share": 0.5}], ids=str)
def test_changed_split_excludes_the_champions_training_rows(with_champion: Platform, change: dict[str, Any]) -> None:
    spec, seen = fakes.visits_spec(**change), trained_on(with_champion, SPEC, load_champion(with_champion))

    verdict = judge(with_champion, spec, train(with_champion, spec))

    _, holdout = datasets.split(datasets.read_version(with_champion.rows("visits"), spec, 1), spec)
    unseen = len(set(holdout["visitor"]) - seen)
    assert 0 < unseen < len(holdout)
    assert (reference(verdict).rows, measurement(verdict, "auc_roc").rows) == (unseen, len(holdout))


def test_time_split_excludes_the_champions_training_rows(platform: Platform) -> None:
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
    assert (reference(verdict).rows, len(holdout)) == (unseen, 360)
    assert unseen == 120


def test_champion_without_verdict_is_inconclusive(with_champion: Platform) -> None:
    with with_champion.database._transaction() as connection:
        connection.execute(sa.text("DELETE FROM verdicts"))

    outcome, why = compared(judge(with_champion, SPEC, train(with_champion, with_other_bytes(SPEC))))

    assert outcome is GateOutcome.INCONCLUSIVE
    assert "There is no verdict" in why


# Between judging and promotion


def test_comparison_with_earlier_champion_blocks_promotion(with_champion: Platform) -> None:
    overtaken, faster = train(with_champion, SPEC), train(with_champion, SPEC)
    judge(with_champion, SPEC, overtaken)
    judge(with_champion, SPEC, faster)
    promote(with_champion, SPEC, faster)

    with pytest.raises(EvidenceError, match="compared when version 1 was champion, and version 2 is now"):
        promote(with_champion, SPEC, overtaken)

    champion = with_champion.database.champion("visits")
    assert champion is not None
    assert champion.candidate == faster.id


def test_comparison_before_first_champion_blocks_promotion(platform: Platform) -> None:
    publish(platform, SPEC, fakes.visits(600))
    slow, first = train(platform, SPEC), train(platform, SPEC)
    judge(platform, SPEC, slow)
    judge(platform, SPEC, first)
    promote(platform, SPEC, first)

    with pytest.raises(EvidenceError, match="compared before there was a champion"):
        promote(platform, SPEC, slow)


def test_champion_is_promoted_again_without_error(with_champion: Platform) -> None:
    assert promote(with_champion, SPEC, load_champion(with_champion)).version == 1


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
def test_changed_declaration_blocks_promotion(with_champion: Platform, change: dict[str, Any]) -> None:
    candidate = train(with_champion, SPEC)
    judge(with_champion, SPEC, candidate)

    with pytest.raises(EvidenceError, match="the gates were changed since it was judged"):
        promote(with_champion, fakes.visits_spec(**change), candidate)


def test_verdict_of_another_model_blocks_promotion(with_champion: Platform) -> None:
    candidate, other = train(with_champion, SPEC), train(with_champion, with_other_bytes(SPEC))
    judge(with_champion, SPEC, candidate)
    theirs = judge(with_champion, SPEC, other)
    with_champion.database.record_verdict(replace(theirs, candidate=candidate.id))

    with pytest.raises(EvidenceError, match="the model's bytes have sha256"):
        promote(with_champion, SPEC, candidate)
