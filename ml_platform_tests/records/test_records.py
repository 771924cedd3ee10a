import json
import re
from dataclasses import FrozenInstanceError, replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_platform.records.canonical import canonical_json, now, sha256_text
from ml_platform.records.data import Arrival
from ml_platform.records.verdict import Evaluation, GateOutcome, Measurement, Verdict
from ml_platform_tests.support import fakes

quick = settings(max_examples=50, deadline=None, database=None)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
times = st.integers(0, 2**63 - 1)


@quick
@given(st.dictionaries(st.text(), values, max_size=5))
def test_json_does_not_depend_on_key_order(value: dict[str, object]) -> None:
    backwards = dict(reversed(value.items()))

    assert canonical_json(backwards) == canonical_json(value)
    assert json.loads(canonical_json(value)) == value


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_nan_and_infinity(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"auc_roc": number})


@quick
@given(name=st.text(min_size=1), size=times, mtime=times)
def test_arrival_key_has_only_safe_characters(name: str, size: int, mtime: int) -> None:
    key = Arrival(model="visits", name=name, size=size, mtime_ns=mtime).key

    assert re.fullmatch(r"[A-Za-z0-9-]*-[0-9a-f]{12}", key)
    assert len(key) <= 64


@quick
@given(size=times, mtime=times, other=st.tuples(times, times))
def test_arrival_key_depends_on_size_and_time(size: int, mtime: int, other: tuple[int, int]) -> None:
    arrival = Arrival(model="visits", name="a.csv", size=size, mtime_ns=mtime)

    again = Arrival(model="visits", name="a.csv", size=other[0], mtime_ns=other[1])

    assert (arrival.key == again.key) == (arrival == again)


def test_arrival_keys_differ_for_equal_slugs() -> None:
    keys = {Arrival(model="visits", name=name, size=1, mtime_ns=1).key for name in ("a-b.csv", "a_b.csv", "a.b.csv")}

    assert len(keys) == 3


def test_arrival_key_depends_on_the_model() -> None:
    arrival = Arrival(model="visits", name="a.csv", size=1, mtime_ns=1)

    assert replace(arrival, model="others").key != arrival.key


def test_now_is_aware_in_utc() -> None:
    assert now().utcoffset() == timedelta(0)


def test_verdict_document_round_trip_is_lossless() -> None:
    verdict = fakes.verdict(fakes.candidate(), auc_roc=float("nan"), f1_score=0.1)

    again = Verdict.from_document(verdict.document)

    assert again == verdict
    assert again.digest == verdict.digest == sha256_text(verdict.document)
    assert {result.outcome for result in again.results} == set(GateOutcome)


def test_verdict_metrics_name_dataset_slice_and_bound() -> None:
    measurements = [
        Measurement(metric="auc_roc", value=0.9, low=0.8, high=0.95),
        Measurement(metric="auc_roc", value=0.7, slice="plan = paid"),
        Measurement(metric="auc_roc", value=0.6, slice="0 <= pages < 10", dataset="holiday"),
        Measurement(metric="f1_score", value=None, reason="no rows"),
    ]
    verdict = replace(fakes.verdict(fakes.candidate()), evaluation=Evaluation(measurements=measurements))

    assert verdict.metrics == {
        "auc_roc": 0.9,
        "auc_roc.low": 0.8,
        "auc_roc.high": 0.95,
        "plan_paid/auc_roc": 0.7,
        "holiday/0_pages_10/auc_roc": 0.6,
    }
    assert all(re.fullmatch(r"[A-Za-z0-9_./]+", name) for name in verdict.metrics)


def test_verdict_with_passing_gates_passes() -> None:
    assert fakes.verdict(fakes.candidate()).passed


def test_verdict_without_results_does_not_pass() -> None:
    verdict = fakes.verdict(fakes.candidate())

    assert not replace(verdict, results=[]).passed


@pytest.mark.parametrize("outcome", [GateOutcome.FAIL, GateOutcome.INCONCLUSIVE])
def test_verdict_with_one_blocked_gate_fails(outcome: GateOutcome) -> None:
    verdict = fakes.verdict(fakes.candidate())
    for i, result in enumerate(verdict.results):
        results = [*verdict.results[:i], replace(result, outcome=outcome), *verdict.results[i + 1 :]]

        assert not replace(verdict, results=results).passed


def test_verdict_digest_covers_every_field() -> None:
    verdict = fakes.verdict(fakes.candidate())
    changes: list[dict[str, object]] = [
        {"candidate": "other"},
        {"model": "other"},
        {"model_digest": "other"},
        {"dataset_version": verdict.dataset_version + 1},
        {"dataset_digest": "other"},
        {"gates_digest": "other"},
        {"code_revision": "other"},
        {"lock_digest": "other"},
        {"split": "other"},
        {"slices": ["other"]},
        {"baseline": "other"},
        {"evaluation": replace(verdict.evaluation, champion=7)},
        {"results": verdict.results[1:]},
        {"origin_digest": "other"},
        {"served_digest": "other"},
    ]

    digests = {replace(verdict, **change).digest for change in changes}  # type: ignore[arg-type]

    assert {name for change in changes for name in change} == set(Verdict.__dataclass_fields__)
    assert len(digests - {verdict.digest}) == len(changes)


def test_record_is_frozen() -> None:
    candidate = fakes.candidate()
    with pytest.raises(FrozenInstanceError):
        candidate.model_digest = "other"  # type: ignore[misc]
