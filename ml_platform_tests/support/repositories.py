"""Git repositories with the platform's code, and handmade results of `ci compare`."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_platform.ci.result_schema import (
    ChangeResult,
    CheckState,
    CodeDataRun,
    DeclaredGate,
    Outcome,
    ReportedCheck,
    ReportedGate,
    ReportedMeasurement,
)
from ml_platform.settings import PROJECT_ROOT

WHO = ["-c", "user.name=tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false"]
# AUC of two slices, by code and data.
AUC = {("old", "new"): {"": 0.90, "plan = paid": 0.92}, ("new", "new"): {"": 0.90, "plan = paid": 0.92}}


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *WHO, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def repository(root: Path, files: Mapping[str, str]) -> Path:
    """Return a repository with these files in one commit, the branch main."""
    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch", "main")
    write(root, files)
    return commit(root)


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def commit(root: Path) -> Path:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--allow-empty", "--message", "a commit")
    return root


def checkout(root: Path) -> Path:
    """Return a repository with the platform's code and data in one commit."""
    root.mkdir()
    for name in ("ml_platform", "data", ".github"):
        shutil.copytree(PROJECT_ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(PROJECT_ROOT / name, root)
    (root / ".gitignore").write_text("__pycache__/\n")
    git(root, "init", "--quiet", "--initial-branch", "main")
    return commit(root)


def edit(root: Path, name: str, *pairs: tuple[str, str]) -> None:
    text = (root / name).read_text()
    for old, new in pairs:
        assert old in text, f"{name} no longer holds {old!r}"
        text = text.replace(old, new)
    (root / name).write_text(text)


def asked(**fields: Any) -> DeclaredGate:
    given = {"name": "auc_roc", "condition": "auc_roc >= 0.8", "metric": "auc_roc", "at_least": 0.8, "at_most": None}
    rest = {"on": "value", "dataset": "holdout", "min_rows": 30, "places": [""]}
    return DeclaredGate(**{**given, **rest, **fields})


def measurements(
    values: Mapping[str, float], *, metric: str = "auc_roc", half: float | None = 0.02, rows: int = 500
) -> list[ReportedMeasurement]:
    return [
        ReportedMeasurement(
            metric=metric,
            value=value,
            low=None if half is None else value - half,
            high=None if half is None else value + half,
            rows=rows,
            slice=part,
        )
        for part, value in values.items()
    ]


def corner(code: Any, data: Any, found: list[ReportedMeasurement], **fields: Any) -> CodeDataRun:
    digest = {"old": "a", "new": "b"}[code] * 64
    gate = ReportedGate(name="auc_roc", condition="auc_roc >= 0.8", value=0.9, outcome="PASS", why="it is 0.9")
    made: dict[str, Any] = {"verdict_digest": digest, "model_digest": digest, "gates": [gate], "measurements": found}
    return CodeDataRun(code=code, data=data, **{**made, **fields})


def trial(auc: Mapping[tuple[str, str], Mapping[str, float]] = AUC, **fields: Any) -> ChangeResult:
    """Return a result of `visits` with this AUC by code and data, and by slice."""
    done = ReportedCheck(check="visits/trained_model:auc_roc", state=CheckState.SUCCEEDED, said="PASS")
    made: dict[str, Any] = {
        "model": "visits",
        "outcome": Outcome.PASS,
        "base": "main",
        "base_commit": "0" * 40,
        "head": "1" * 40,
        "asked": [asked()],
        "checks": [done],
        "corners": [corner(code, data, measurements(values)) for (code, data), values in auc.items()],
        "data_changed": ("old", "old") in auc,
    }
    return ChangeResult(**{**made, **fields})
