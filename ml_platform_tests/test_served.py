"""What a server needs of a candidate: written when it is judged, shown in MLflow, reached by forget."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ml_platform import corrections, views, workflows
from ml_platform.errors import RegistryUnavailableError
from ml_platform.predictor import MODEL_FILE, load
from ml_platform.records import Candidate
from ml_platform.request_contract import RequestContract
from ml_platform.stages import parity, staging
from ml_platform.stages.parity import PARITY_FILE, Parity
from ml_platform.stages.registry import Registry
from ml_platform.stages.served import CONTRACT_FILE, SERVED_LIST
from ml_platform.workflows import SERVED_FILES, SERVED_FOLDER, Platform
from ml_platform.workflows.judging import Judgement
from ml_platform_tests import fakes

SPEC = fakes.visits_spec(logged=("plan",))


def trained(platform: Platform) -> Candidate:
    fakes.drop(platform, "monday.parquet", fakes.visits(300))
    keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, SPEC.name)]
    workflows.keep_raw_batches(platform, SPEC.name, keys)
    workflows.publish_batches(platform, SPEC, keys)
    workflows.pin_dataset(platform, SPEC)
    return workflows.train_candidate(platform, SPEC, reason="schedule")


def judged(platform: Platform) -> Candidate:
    candidate = trained(platform)
    workflows.judge_candidate(platform, SPEC, candidate)
    return platform.database.candidate(candidate.id)


def shown(platform: Platform) -> Path:
    """Return the folder that MLflow keeps of the only run's served files."""
    (folder,) = platform.settings.artifacts.rglob(SERVED_FOLDER)
    return folder


def require_whole(folder: Path, digest: str | None) -> None:
    """Every file is the one that the list names, and the list is the one that has the digest."""
    listed = json.loads((folder / SERVED_LIST).read_bytes())
    assert hashlib.sha256((folder / SERVED_LIST).read_bytes()).hexdigest() == digest
    assert sorted(listed) == sorted(SERVED_FILES)
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in listed} == listed


def first_visitor_shown(platform: Platform, candidate: Candidate) -> str:
    """Return who the first golden request is about."""
    request = pd.read_parquet(platform.candidate_folder(candidate) / staging.GOLDEN_REQUESTS).iloc[0]
    rows = fakes.visits(300)
    return str(rows.loc[rows["seconds"] == request["seconds"], "visitor"].iloc[0])


def forget(platform: Platform, visitor: str) -> None:
    corrections.forget(platform, SPEC, visitor, reason="request 17", actor="ann")


def test_judging_leaves_all_that_a_server_needs_here_and_in_mlflow(platform: Platform) -> None:
    candidate = judged(platform)
    folder = platform.candidate_folder(candidate)

    require_whole(folder, candidate.served_digest)
    require_whole(shown(platform), candidate.served_digest)
    assert json.loads((folder / SERVED_LIST).read_text())[MODEL_FILE] == candidate.model_digest
    contract = RequestContract.from_document((folder / CONTRACT_FILE).read_text())
    found = Parity.from_document((folder / PARITY_FILE).read_text())
    assert (contract.model, contract.names, contract.logged) == ("visits", ("pages", "seconds", "plan"), ("plan",))
    way = parity.way_to_predict(load(folder / MODEL_FILE, candidate.model_digest), contract, found)
    requests = pd.read_parquet(folder / staging.GOLDEN_REQUESTS)
    expected = json.loads((folder / staging.GOLDEN_ANSWERS).read_text())
    assert way.fast
    assert vars(way.predict_records(contract.records_of(requests))) == expected


def test_judging_again_gives_the_same_files(platform: Platform) -> None:
    candidate = judged(platform)

    workflows.judge_candidate(platform, SPEC, candidate)

    again = platform.database.candidate(candidate.id)
    assert again.served_digest == candidate.served_digest
    require_whole(shown(platform), again.served_digest)


def test_forgetting_somebody_lists_the_files_again_here_and_in_mlflow(platform: Platform) -> None:
    candidate = judged(platform)
    requests = len(pd.read_parquet(shown(platform) / staging.GOLDEN_REQUESTS))

    forget(platform, first_visitor_shown(platform, candidate))

    after = platform.database.candidate(candidate.id)
    assert after.served_digest != candidate.served_digest
    require_whole(platform.candidate_folder(candidate), after.served_digest)
    require_whole(shown(platform), after.served_digest)
    assert len(pd.read_parquet(shown(platform) / staging.GOLDEN_REQUESTS)) == requests - 1
    assert len(json.loads((shown(platform) / staging.GOLDEN_ANSWERS).read_text())["scores"]) == requests - 1


def test_forgetting_somebody_who_is_in_no_request_changes_no_list(platform: Platform) -> None:
    candidate = judged(platform)
    kept = pd.read_parquet(shown(platform) / staging.GOLDEN_REQUESTS)["seconds"]
    rows = fakes.visits(300)

    forget(platform, str(rows.loc[~rows["seconds"].isin(kept), "visitor"].iloc[0]))

    assert platform.database.candidate(candidate.id).served_digest == candidate.served_digest


def test_what_mlflow_could_not_take_is_shown_by_the_next_try(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = judged(platform)
    visitor = first_visitor_shown(platform, candidate)

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
    require_whole(shown(platform), after.served_digest)
    assert after.served_digest != candidate.served_digest


def test_who_is_forgotten_while_mlflow_takes_the_files_is_taken_out_of_them(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = trained(platform)
    real = Registry.record_run

    gone = list[str]()

    def meanwhile(*options: Any) -> str:
        gone.append(first_visitor_shown(platform, candidate))
        forget(platform, gone[0])
        return real(*options)

    monkeypatch.setattr(Registry, "record_run", meanwhile)
    workflows.judge_candidate(platform, SPEC, candidate)

    require_whole(shown(platform), platform.database.candidate(candidate.id).served_digest)
    rows = fakes.visits(300)
    theirs = rows.loc[rows["visitor"] == int(gone[0]), "seconds"].iloc[0]
    for folder in (shown(platform), platform.candidate_folder(candidate)):
        requests = pd.read_parquet(folder / staging.GOLDEN_REQUESTS)
        assert len(requests) > 0
        assert theirs not in set(requests["seconds"])


def test_a_fast_way_that_does_not_agree_warns_and_blocks_nothing() -> None:
    verdict = fakes.verdict(fakes.candidate())
    page = Path("verdict.html")

    def check(found: Parity) -> Any:
        return views.fast_path_check(
            Judgement(verdict=verdict, curves=None, page=page, mlflow_run_id="run", parity=found)
        )

    assert check(fakes.parity()).passed
    failed = check(fakes.parity(passed=False, why="RobustScaler is not known to the compiler."))
    assert (failed.passed, failed.severity.value, failed.description) == (
        False,
        "WARN",
        "RobustScaler is not known to the compiler.",
    )
