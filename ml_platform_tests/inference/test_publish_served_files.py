"""The files that a server needs of a candidate: stored when it is judged, uploaded to MLflow, reached by an erasure."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ml_platform.data.ingest import publish_batches, store_raw_batches
from ml_platform.data.landing import waiting_arrivals
from ml_platform.data.pin import pin_dataset
from ml_platform.errors import RegistryUnavailableError
from ml_platform.evaluation.judge import Judgement, judge_candidate
from ml_platform.governance import forget as governance_forget
from ml_platform.inference import golden_requests, parity
from ml_platform.inference.parity import PARITY_FILE, Parity
from ml_platform.inference.predictor import load
from ml_platform.inference.publish_served_files import SERVED_FILES, SERVED_FOLDER
from ml_platform.inference.request_contract import RequestContract
from ml_platform.inference.served_files import CONTRACT_FILE, SERVED_LIST
from ml_platform.orchestration import metadata
from ml_platform.platform import Platform
from ml_platform.records.ledger import Action
from ml_platform.records.verdict import Candidate
from ml_platform.release.promote import promote_version
from ml_platform.release.register import register_candidate, stage_version
from ml_platform.storage.mlflow_registry import Registry
from ml_platform.storage.model_files import MODEL_FILE
from ml_platform.training.train import train_candidate
from ml_platform_tests.support import fakes

pytestmark = pytest.mark.slow

SPEC = fakes.visits_spec(logged_features=("plan",))


def trained(platform: Platform) -> Candidate:
    fakes.drop(platform, "monday.parquet", fakes.visits(300))
    keys = [arrival.key for arrival in waiting_arrivals(platform, SPEC.name)]
    store_raw_batches(platform, SPEC.name, keys)
    publish_batches(platform, SPEC, keys)
    pin_dataset(platform, SPEC)
    return train_candidate(platform, SPEC, reason="schedule")


def judged(platform: Platform) -> Candidate:
    candidate = trained(platform)
    judge_candidate(platform, SPEC, candidate)
    return platform.database.candidate(candidate.id)


def uploaded(platform: Platform) -> Path:
    """Return the folder of the served files in MLflow's only run."""
    (folder,) = platform.settings.artifacts.rglob(SERVED_FOLDER)
    return folder


def require_whole(folder: Path, digest: str | None) -> None:
    """Require that every file has its digest in the list, and the list the given digest."""
    listed = json.loads((folder / SERVED_LIST).read_bytes())
    assert hashlib.sha256((folder / SERVED_LIST).read_bytes()).hexdigest() == digest
    assert sorted(listed) == sorted(SERVED_FILES)
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in listed} == listed


def first_golden_visitor(platform: Platform, candidate: Candidate) -> str:
    """Return the visitor of the first golden request."""
    request = pd.read_parquet(platform.candidate_folder(candidate) / golden_requests.GOLDEN_REQUESTS).iloc[0]
    rows = fakes.visits(300)
    return str(rows.loc[rows["seconds"] == request["seconds"], "visitor"].iloc[0])


def forget(platform: Platform, visitor: str) -> None:
    governance_forget.forget(platform, SPEC, visitor, reason="request 17", actor="ann")


def test_erasure_of_golden_request_has_logged_head(platform: Platform) -> None:
    candidate = platform.database.candidate(judged(platform).id)
    register_candidate(platform, SPEC, candidate)
    stage_version(platform, candidate)
    promote_version(platform, SPEC, candidate, reason="schedule", actor="ann")

    forget(platform, first_golden_visitor(platform, candidate))

    head = platform.database.ledger_head("visits")
    assert head is not None
    assert head.action == Action.ERASURE
    assert [entry.sequence for entry in platform.ledger_anchor.heads("visits")] == [*range(1, head.sequence + 1)]


def test_judging_stores_served_files_here_and_in_mlflow(platform: Platform) -> None:
    candidate = judged(platform)
    folder = platform.candidate_folder(candidate)

    require_whole(folder, candidate.served_digest)
    require_whole(uploaded(platform), candidate.served_digest)
    assert json.loads((folder / SERVED_LIST).read_text())[MODEL_FILE] == candidate.model_digest
    contract = RequestContract.from_document((folder / CONTRACT_FILE).read_text())
    result = Parity.from_document((folder / PARITY_FILE).read_text())
    assert (contract.model, contract.names, contract.logged) == ("visits", ("pages", "seconds", "plan"), ("plan",))
    way = parity.way_to_predict(load(folder / MODEL_FILE, candidate.model_digest), contract, result)
    requests = pd.read_parquet(folder / golden_requests.GOLDEN_REQUESTS)
    expected = json.loads((folder / golden_requests.GOLDEN_ANSWERS).read_text())
    assert way.fast
    assert vars(way.predict_records(contract.convert_frame(requests))) == expected


def test_judging_again_gives_same_files(platform: Platform) -> None:
    candidate = judged(platform)

    judge_candidate(platform, SPEC, candidate)

    again = platform.database.candidate(candidate.id)
    assert again.served_digest == candidate.served_digest
    require_whole(uploaded(platform), again.served_digest)


def test_erasure_lists_files_again_everywhere(platform: Platform) -> None:
    candidate = judged(platform)
    requests = len(pd.read_parquet(uploaded(platform) / golden_requests.GOLDEN_REQUESTS))

    forget(platform, first_golden_visitor(platform, candidate))

    after = platform.database.candidate(candidate.id)
    assert after.served_digest != candidate.served_digest
    require_whole(platform.candidate_folder(candidate), after.served_digest)
    require_whole(uploaded(platform), after.served_digest)
    assert len(pd.read_parquet(uploaded(platform) / golden_requests.GOLDEN_REQUESTS)) == requests - 1
    assert len(json.loads((uploaded(platform) / golden_requests.GOLDEN_ANSWERS).read_text())["scores"]) == requests - 1


def test_erasure_outside_golden_requests_changes_no_list(platform: Platform) -> None:
    candidate = judged(platform)
    golden = pd.read_parquet(uploaded(platform) / golden_requests.GOLDEN_REQUESTS)["seconds"]
    rows = fakes.visits(300)

    forget(platform, str(rows.loc[~rows["seconds"].isin(golden), "visitor"].iloc[0]))

    assert platform.database.candidate(candidate.id).served_digest == candidate.served_digest


def test_erasure_after_mlflow_outage_finishes_on_retry(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = judged(platform)
    visitor = first_golden_visitor(platform, candidate)

    def down(*_: Any) -> None:
        raise RegistryUnavailableError("MLflow could not be reached.")

    with monkeypatch.context() as patched:
        patched.setattr(Registry, "show_files", down)
        with pytest.raises(RegistryUnavailableError):
            forget(platform, visitor)
    assert platform.database.candidate(candidate.id).served_digest == candidate.served_digest
    forget(platform, visitor)

    after = platform.database.candidate(candidate.id)
    require_whole(platform.candidate_folder(candidate), after.served_digest)
    require_whole(uploaded(platform), after.served_digest)
    assert after.served_digest != candidate.served_digest


def test_erasure_during_upload_reaches_uploaded_files(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = trained(platform)
    real = Registry.record_run

    forgotten = list[str]()

    def meanwhile(*options: Any) -> str:
        forgotten.append(first_golden_visitor(platform, candidate))
        forget(platform, forgotten[0])
        return real(*options)

    monkeypatch.setattr(Registry, "record_run", meanwhile)
    judge_candidate(platform, SPEC, candidate)

    require_whole(uploaded(platform), platform.database.candidate(candidate.id).served_digest)
    rows = fakes.visits(300)
    erased = rows.loc[rows["visitor"] == int(forgotten[0]), "seconds"].iloc[0]
    for folder in (uploaded(platform), platform.candidate_folder(candidate)):
        requests = pd.read_parquet(folder / golden_requests.GOLDEN_REQUESTS)
        assert len(requests) > 0
        assert erased not in set(requests["seconds"])


def test_failed_parity_warns_without_blocking() -> None:
    verdict = fakes.verdict(fakes.candidate())
    page = Path("verdict.html")

    def check(result: Parity) -> Any:
        return metadata.fast_path_check(
            Judgement(verdict=verdict, curves=None, page=page, mlflow_run_id="run", parity=result)
        )

    assert check(fakes.parity()).passed
    failed = check(fakes.parity(passed=False, why="The compiler does not support RobustScaler."))
    assert (failed.passed, failed.severity.value, failed.description) == (
        False,
        "WARN",
        "The compiler does not support RobustScaler.",
    )
