"""Promise 11: the same dataset version, code and lock give the same model."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ml_platform.data import datasets
from ml_platform.database import tables
from ml_platform.errors import DigestMismatchError, EvidenceError, ForgottenError, IrreproducibleError
from ml_platform.governance import reproduce as governance_reproduce
from ml_platform.governance.reproduce import Reproduction, ReproductionOutcome
from ml_platform.inference import golden_requests
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.verdict import Candidate
from ml_platform.settings import PROJECT_ROOT
from ml_platform.storage import delta_table
from ml_platform.storage.mlflow_registry import MODEL_FOLDER
from ml_platform.storage.model_files import MODEL_FILE
from ml_platform.training import provenance
from ml_platform.training.train import current_candidate
from ml_platform_tests.support import example_models, fakes, lifecycle

pytestmark = pytest.mark.slow

MODULE = "ml_platform_tests.support.example_models"
SEED = "visits = fakes.visits_spec()"
OTHER = "visits = fakes.visits_spec(pipeline=lambda: fakes.visits_pipeline().set_params(classify__C=0.01))"


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(root), *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def champion(platform: Platform, spec: ModelSpec = example_models.visits) -> None:
    (fakes.landing(platform) / spec.name).mkdir(exist_ok=True)
    fakes.drop(platform, "monday.parquet", fakes.visits(400), spec.name)
    lifecycle.live(platform, spec)


def candidate(platform: Platform) -> Candidate:
    return current_candidate(platform, "visits")


def record_revision(platform: Platform, revision: str) -> None:
    """Record another code revision for the champion."""
    with platform.database.engine.begin() as connection:
        connection.execute(tables.candidates.update().values(code_revision=revision))


def champion_of_revision(platform: Platform, revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a champion as a checkout of this revision would."""
    with monkeypatch.context() as other:
        other.setattr(provenance, "code_revision", lambda *_: revision)
        champion(platform)


def reproduce(platform: Platform, model: str = "visits", **options: Any) -> Reproduction:
    return governance_reproduce.reproduce(platform, model, 1, module=MODULE, **options)


def read_deployment(platform: Platform) -> dict[Path, bytes]:
    """Return the content of a deployment: all files except the databases, and all rows of the databases."""
    import sqlite3

    home = platform.settings.home
    files = {p.relative_to(home): p.read_bytes() for p in home.rglob("*") if p.is_file() and ".db" not in p.name}
    for name in ("platform.db", "mlflow.db"):
        connection = sqlite3.connect(home / name)
        files[Path(name)] = "\n".join(connection.iterdump()).encode()
        connection.close()
    return files


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit of the platform's code and a model."""
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(variable, raising=False)
    root = tmp_path / "checkout"
    without = shutil.ignore_patterns("__pycache__", "test_*", "snapshots", "actions")
    shutil.copytree(PROJECT_ROOT / "ml_platform", root / "ml_platform", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PROJECT_ROOT / "ml_platform_tests", root / "ml_platform_tests", ignore=without)
    shutil.copy(PROJECT_ROOT / "requirements.lock", root)
    git(root.parent, "init", "--quiet", str(root))
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "first")
    return root


def change_the_model(checkout: Path) -> None:
    file = checkout / "ml_platform_tests" / "support" / "example_models.py"
    assert SEED in file.read_text()
    file.write_text(file.read_text().replace(SEED, OTHER))
    git(checkout, "commit", "--quiet", "--all", "--message", "another model")


@pytest.mark.servers
def test_reproduce_rebuilds_without_other_changes(platform: Platform) -> None:
    champion(platform)
    before = read_deployment(platform)

    result = reproduce(platform)

    assert read_deployment(platform) == before
    assert (result.outcome, result.differences, result.notes) == (ReproductionOutcome.REPRODUCED, [], [])
    assert result.rebuilt_digest == result.model_digest == candidate(platform).model_digest
    assert {"auc_roc", "f1_score", "f1_score.low", "model_size_mb"} <= set(result.figures)
    assert result.not_compared == []
    assert result.predictions > golden_requests.GOLDEN_ROWS


@pytest.mark.soak
def test_pipeline_without_seed_is_named(platform: Platform) -> None:
    champion(platform, example_models.unseeded)

    result = reproduce(platform, "unseeded")

    assert result.outcome is ReproductionOutcome.NOT_REPRODUCED
    assert result.deterministic is False
    assert result.unseeded == ["classify__random_state"]
    assert any(difference.startswith("holdout, row ") for difference in result.differences)


@pytest.mark.soak
def test_reproduce_older_code_uses_a_temporary_worktree(
    platform: Platform, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion_of_revision(platform, git(checkout, "rev-parse", "HEAD"), monkeypatch)
    change_the_model(checkout)

    result = reproduce(platform, root=checkout)
    other = reproduce(platform, root=checkout, current_code=True)

    assert result.outcome is ReproductionOutcome.REPRODUCED
    assert result.code == f"the code of commit {result.code_revision}, in a worktree of its own"
    assert git(checkout, "worktree", "list").count("\n") == 0
    assert other.outcome is ReproductionOutcome.NOT_REPRODUCED
    assert other.deterministic is True
    assert other.code.startswith("the code that is here, ")
    assert any(difference.startswith("brier_score ") for difference in other.differences)


@pytest.mark.soak
def test_reproduce_unrelated_commit_needs_any_commit(
    platform: Platform, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_the_model(checkout)
    champion_of_revision(platform, git(checkout, "rev-parse", "HEAD"), monkeypatch)
    git(checkout, "reset", "--quiet", "--hard", "HEAD~1")

    with pytest.raises(IrreproducibleError, match=r"is not an ancestor of HEAD; --any-commit"):
        reproduce(platform, root=checkout)

    result = reproduce(platform, root=checkout, any_commit=True)
    assert result.code.startswith("the code of commit")
    assert result.outcome is ReproductionOutcome.NOT_REPRODUCED


def test_reproduce_unavailable_code_is_refused_with_advice(platform: Platform) -> None:
    champion(platform)
    unknown, dirty = "which the git of .* does not have", "never committed; their digest is 0123456789abcdef"

    for revision, message in {
        "f" * 40: unknown,
        "v1.2": unknown,
        "HEAD": unknown,
        "--help": unknown,
        "f" * 40 + "+0123456789abcdef": dirty,
    }.items():
        record_revision(platform, revision)
        with pytest.raises(IrreproducibleError, match=message) as refused:
            reproduce(platform, any_commit=True)
        assert "git worktree add" in str(refused.value)
        assert "--current-code" in str(refused.value)


@pytest.mark.soak
def test_the_threads_that_trained_it_train_it_again(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    champion(platform, example_models.boosted)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")

    result = reproduce(platform, "boosted")

    assert (result.outcome, result.notes) == (ReproductionOutcome.REPRODUCED, [])


@pytest.mark.soak
def test_reproduce_same_uncommitted_changes_are_accepted(
    platform: Platform, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "ml_platform_tests" / "note.py").write_text("")
    revision = provenance.code_revision(root=checkout)
    champion_of_revision(platform, revision, monkeypatch)

    result = reproduce(platform, root=checkout)

    assert "+" in revision
    assert (result.outcome, result.code) == (ReproductionOutcome.REPRODUCED, "the recorded code, which is here")


@pytest.mark.soak
def test_reproduce_other_lock_is_refused_or_noted(
    platform: Platform, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion(platform)
    here = provenance.environment()
    monkeypatch.setattr(provenance, "environment", lambda: {**here, "CPU": "abacus"})
    lock = checkout / "requirements.lock"
    lock.write_text(lock.read_text() + "# another\n")

    with pytest.raises(IrreproducibleError, match=r"requirements\.lock with digest [0-9a-f]{12}, and the one here"):
        reproduce(platform, root=checkout)

    result = reproduce(platform, root=checkout, current_code=True)
    assert result.outcome is ReproductionOutcome.REPRODUCED
    lock_note, cpu_note = result.notes
    assert lock_note.startswith("the lock here has digest ")
    assert cpu_note == f"CPU is abacus, it was trained with {here['CPU']}"


def test_reproduce_version_with_erased_rows_is_refused(platform: Platform) -> None:
    champion(platform)
    platform.database.mark_forgotten("visits", 1)

    with pytest.raises(ForgottenError, match=r"Version 1 of 'visits' cannot be reproduced: .* were erased on"):
        reproduce(platform)


def test_a_version_that_there_is_not_is_refused(platform: Platform) -> None:
    with pytest.raises(EvidenceError, match="There is no version 1 of 'visits'"):
        reproduce(platform)


@pytest.mark.fault("M3")
def test_bytes_that_were_changed_are_not_loaded(platform: Platform) -> None:
    champion(platform)
    (stored,) = platform.settings.artifacts.rglob(f"{MODEL_FOLDER}/{MODEL_FILE}")
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)

    with pytest.raises(DigestMismatchError, match="were not loaded"):
        reproduce(platform)


def test_reproduce_changed_rows_are_refused(platform: Platform) -> None:
    champion(platform)
    table = platform.rows("visits")
    rows = datasets.read_version(table, example_models.visits, 1).replace({"pages": {49: 48}})
    shutil.rmtree(table)
    others = pa.Table.from_pandas(rows, preserve_index=False)
    delta_table.publish(table, others, arrival="monday", sha256="f" * 64, notes={})

    with pytest.raises(IrreproducibleError, match=r"cannot be rebuilt: Version 1 .* was pinned with digest"):
        reproduce(platform)

    for file in table.glob("*.parquet"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(IrreproducibleError, match=r"could not be rebuilt with .*: .*Parquet"):
        reproduce(platform)


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (
            "Traceback:\n  ...\nArrowInvalid: torn\nterminate called\n",
            "ArrowInvalid: torn",
        ),
        ("Traceback:\n  ...\nMemoryError\n", "MemoryError"),
        ("", "it exited without an error message"),
    ],
)
def test_exit_reason_names_the_exception(stderr: str, reason: str) -> None:
    assert governance_reproduce._exit_reason(stderr).endswith(reason)


@pytest.mark.soak
def test_golden_answers_that_were_changed_show(platform: Platform) -> None:
    champion(platform)
    file = platform.candidate_folder(candidate(platform)) / golden_requests.GOLDEN_ANSWERS
    answers = json.loads(file.read_text())
    answers["predictions"][0] = 1 - answers["predictions"][0]
    file.write_text(json.dumps(answers))

    result = reproduce(platform)

    assert result.outcome is ReproductionOutcome.NOT_REPRODUCED
    assert result.rebuilt_digest == result.model_digest
    assert result.differences == [f for f in result.differences if f.startswith("golden requests, row ")] != []


def test_a_folder_without_the_platforms_code_is_refused(platform: Platform, tmp_path: Path) -> None:
    champion(platform)
    shutil.copy(PROJECT_ROOT / "requirements.lock", tmp_path)
    revision = candidate(platform).lineage.code_revision
    platform.settings = platform.settings.model_copy(update={"code_revision": revision})

    with pytest.raises(IrreproducibleError, match="but Python imported it from"):
        reproduce(platform, root=tmp_path)
