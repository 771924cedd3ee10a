"""Promise 11: the same dataset version, code and lock give the same model."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ml_platform import provenance, workflows
from ml_platform.database import tables
from ml_platform.errors import DigestMismatchError, EvidenceError, ForgottenError, IrreproducibleError
from ml_platform.model_spec import ModelSpec
from ml_platform.predictor import MODEL_FILE
from ml_platform.records import Candidate
from ml_platform.settings import PROJECT_ROOT
from ml_platform.stages import datasets, staging
from ml_platform.stages.registry import MODEL_FOLDER
from ml_platform.workflows import Likeness, Platform, Reproduction, reproduction
from ml_platform_tests import declared, fakes, life

MODULE = "ml_platform_tests.declared"
SEED = "visits = fakes.visits_spec()"
OTHER = "visits = fakes.visits_spec(pipeline=lambda: fakes.visits_pipeline().set_params(classify__C=0.01))"


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(root), *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def champion(platform: Platform, spec: ModelSpec = declared.visits) -> None:
    (fakes.landing(platform) / spec.name).mkdir(exist_ok=True)
    fakes.drop(platform, "monday.parquet", fakes.visits(400), spec.name)
    life.live(platform, spec)


def candidate(platform: Platform) -> Candidate:
    return workflows.current_candidate(platform, "visits")


def record_revision(platform: Platform, revision: str) -> None:
    """Let it be recorded that the champion was trained by other code."""
    with platform.database.engine.begin() as connection:
        connection.execute(tables.candidates.update().values(code_revision=revision))


def trained_with(platform: Platform, revision: str | None) -> None:
    """Let the platform run code of another revision from now on; ``None`` lets it ask git."""
    platform.settings = platform.settings.model_copy(update={"code_revision": revision})


def reproduce(platform: Platform, model: str = "visits", **options: Any) -> Reproduction:
    return workflows.reproduce(platform, model, 1, module=MODULE, **options)


def everything(platform: Platform) -> dict[Path, bytes]:
    """Return what a deployment holds: every file but the databases, and every row of these."""
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
    """A repository of its own with the platform's code and a model in it, committed once."""
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(variable, raising=False)
    root = tmp_path / "checkout"
    without = shutil.ignore_patterns("__pycache__", "e2e", "stages", "test_*", "snapshots")
    shutil.copytree(PROJECT_ROOT / "ml_platform", root / "ml_platform", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PROJECT_ROOT / "ml_platform_tests", root / "ml_platform_tests", ignore=without)
    shutil.copy(PROJECT_ROOT / "requirements.lock", root)
    git(root.parent, "init", "--quiet", str(root))
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "first")
    return root


def change_the_model(checkout: Path) -> None:
    file = checkout / "ml_platform_tests" / "declared.py"
    assert SEED in file.read_text()
    file.write_text(file.read_text().replace(SEED, OTHER))
    git(checkout, "commit", "--quiet", "--all", "--message", "another model")


def test_a_version_is_made_again_and_nothing_else_is_changed(platform: Platform) -> None:
    champion(platform)
    before = everything(platform)

    found = reproduce(platform)

    assert everything(platform) == before
    assert (found.outcome, found.differences, found.notes) == (Likeness.REPRODUCED, [], [])
    assert found.rebuilt_digest == found.model_digest == candidate(platform).model_digest
    assert {"auc_roc", "f1_score", "f1_score.low", "model_size_mb"} <= set(found.figures)
    assert found.not_compared == []
    assert found.predictions > staging.GOLDEN_ROWS


@pytest.mark.soak
def test_a_pipeline_that_nobody_seeded_is_named(platform: Platform) -> None:
    champion(platform, declared.unseeded)

    found = reproduce(platform, "unseeded")

    assert found.outcome is Likeness.NOT_REPRODUCED
    assert found.deterministic is False
    assert found.unseeded == ["classify__random_state"]
    assert any(difference.startswith("holdout, row ") for difference in found.differences)


@pytest.mark.soak
def test_code_that_was_changed_since_is_checked_out_and_removed_again(platform: Platform, checkout: Path) -> None:
    trained_with(platform, git(checkout, "rev-parse", "HEAD"))
    champion(platform)
    change_the_model(checkout)
    trained_with(platform, None)

    found = reproduce(platform, root=checkout)
    other = reproduce(platform, root=checkout, here=True)

    assert found.outcome is Likeness.REPRODUCED
    assert found.code == f"the code of commit {found.code_revision}, in a worktree of its own"
    assert git(checkout, "worktree", "list").count("\n") == 0
    assert other.outcome is Likeness.NOT_REPRODUCED
    assert other.deterministic is True
    assert other.code.startswith("the code that is here, ")
    assert any(difference.startswith("brier_score ") for difference in other.differences)


@pytest.mark.soak
def test_a_commit_that_head_does_not_come_from_runs_only_if_a_person_says_so(
    platform: Platform, checkout: Path
) -> None:
    change_the_model(checkout)
    trained_with(platform, git(checkout, "rev-parse", "HEAD"))
    champion(platform)
    git(checkout, "reset", "--quiet", "--hard", "HEAD~1")
    trained_with(platform, None)

    with pytest.raises(IrreproducibleError, match=r"HEAD does not come from: say --any-commit"):
        reproduce(platform, root=checkout)

    found = reproduce(platform, root=checkout, any_commit=True)
    assert found.code.startswith("the code of commit")
    assert found.outcome is Likeness.NOT_REPRODUCED


def test_code_that_nobody_can_bring_back_is_refused_with_advice(platform: Platform) -> None:
    champion(platform)
    unknown, dirty = "which the git of .* does not have", "never committed; their digest is 0123456789abcdef"

    for revision, said in {
        "f" * 40: unknown,
        "v1.2": unknown,
        "HEAD": unknown,
        "--help": unknown,
        "f" * 40 + "+0123456789abcdef": dirty,
    }.items():
        record_revision(platform, revision)
        with pytest.raises(IrreproducibleError, match=said) as refused:
            reproduce(platform, any_commit=True)
        assert "git worktree add" in str(refused.value)
        assert "--here" in str(refused.value)


@pytest.mark.soak
def test_the_threads_that_trained_it_train_it_again(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    champion(platform, declared.boosted)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")

    found = reproduce(platform, "boosted")

    assert (found.outcome, found.notes) == (Likeness.REPRODUCED, [])


@pytest.mark.soak
def test_uncommitted_changes_that_are_still_here_are_the_same_code(platform: Platform, checkout: Path) -> None:
    (checkout / "ml_platform_tests" / "note.py").write_text("")
    revision = provenance.code_revision(root=checkout)
    trained_with(platform, revision)
    champion(platform)
    trained_with(platform, None)

    found = reproduce(platform, root=checkout)

    assert "+" in revision
    assert (found.outcome, found.code) == (Likeness.REPRODUCED, "the recorded code, which is here")


@pytest.mark.soak
def test_another_lock_is_refused_and_with_here_noted_as_another_cpu_is(
    platform: Platform, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion(platform)
    here = provenance.environment()
    monkeypatch.setattr(provenance, "environment", lambda: {**here, "CPU": "abacus"})
    lock = checkout / "requirements.lock"
    lock.write_text(lock.read_text() + "# another\n")

    with pytest.raises(IrreproducibleError, match=r"requirements\.lock with digest [0-9a-f]{12}, and the one here"):
        reproduce(platform, root=checkout)

    found = reproduce(platform, root=checkout, here=True)
    assert found.outcome is Likeness.REPRODUCED
    lock_note, cpu_note = found.notes
    assert lock_note.startswith("the lock here has digest ")
    assert cpu_note == f"CPU is abacus, it was trained with {here['CPU']}"


def test_a_version_that_lost_a_persons_data_says_so(platform: Platform) -> None:
    champion(platform)
    platform.database.mark_forgotten("visits", 1)

    with pytest.raises(ForgottenError, match=r"Version 1 of 'visits' cannot be reproduced: .* were forgotten on"):
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


def test_rows_that_are_not_those_that_were_pinned_are_refused(platform: Platform) -> None:
    champion(platform)
    table = platform.rows("visits")
    rows = datasets.read_version(table, declared.visits, 1).replace({"pages": {49: 48}})
    shutil.rmtree(table)
    others = pa.Table.from_pandas(rows, preserve_index=False)
    datasets.publish(table, others, arrival="monday", sha256="f" * 64, notes={})

    with pytest.raises(IrreproducibleError, match=r"cannot be made again: Version 1 .* was pinned with digest"):
        reproduce(platform)

    for file in table.glob("*.parquet"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(IrreproducibleError, match=r"could not be made again with .*: .*Parquet"):
        reproduce(platform)


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        (
            "Traceback:\n  ...\nArrowInvalid: torn\nterminate called\n",
            "ArrowInvalid: torn",
        ),
        ("Traceback:\n  ...\nMemoryError\n", "MemoryError"),
        ("", "it died without a word"),
    ],
)
def test_of_a_process_that_died_the_exception_is_named(stderr: str, said: str) -> None:
    assert reproduction._why(stderr).endswith(said)


@pytest.mark.soak
def test_golden_answers_that_were_changed_show(platform: Platform) -> None:
    champion(platform)
    file = platform.candidate_folder(candidate(platform)) / staging.GOLDEN_ANSWERS
    answers = json.loads(file.read_text())
    answers["predictions"][0] = 1 - answers["predictions"][0]
    file.write_text(json.dumps(answers))

    found = reproduce(platform)

    assert found.outcome is Likeness.NOT_REPRODUCED
    assert found.rebuilt_digest == found.model_digest
    assert found.differences == [f for f in found.differences if f.startswith("golden requests, row ")] != []


def test_a_folder_without_the_platforms_code_is_refused(platform: Platform, tmp_path: Path) -> None:
    champion(platform)
    shutil.copy(PROJECT_ROOT / "requirements.lock", tmp_path)

    with pytest.raises(IrreproducibleError, match="Python took that of"):
        reproduce(platform, root=tmp_path)
