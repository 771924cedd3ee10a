"""Rebuild a version from its pinned dataset, code and lock, and compare it with the original.

`rebuild` does the work in a fresh process and a temporary deployment: registry, ledger and candidates are not changed.
"""

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ml_platform.errors import DigestMismatchError, EvidenceError, ForgottenError, IrreproducibleError
from ml_platform.governance import compare_versions
from ml_platform.inference.golden_requests import GOLDEN_ANSWERS, GOLDEN_REQUESTS
from ml_platform.platform import Platform
from ml_platform.records.verdict import Candidate, Verdict
from ml_platform.settings import PROJECT_ROOT
from ml_platform.storage.model_files import file_digest
from ml_platform.training import provenance
from ml_platform.training.train import ENVIRONMENT

log = logging.getLogger("ml_platform")

# Run by path: an earlier commit may not have the module, and nothing of this process is imported.
PROGRAM = Path(__file__).with_name("rebuild.py")
# Prefixes of variables that name a deployment or a registry. The fresh process gets none of these variables, except the
# folder of the golden datasets.
OURS = ("ML_PLATFORM_", "MLFLOW_", "DAGSTER_", "AWS_")
FROZEN = "ML_PLATFORM_GOLDEN_DIR"
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*: ")


class ReproductionOutcome(StrEnum):
    """Outcome of a rebuild."""

    REPRODUCED = "reproduced"
    OTHER_BYTES = "predictions identical, bytes differ"
    NOT_REPRODUCED = "not reproduced"


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """Result of a rebuild.

    Parameters
    ----------
    model, version, candidate
        The version.
    outcome : ReproductionOutcome
    code : str
        Description of the code that was used.
    code_revision, lock_digest, dataset_version, dataset_digest
        The version's recorded code, lock and dataset.
    model_digest, rebuilt_digest : str
        Hex sha256 of both models' canonical bytes.
    predictions : int
        Number of rows predicted by both models.
    figures : list of str
        Names of the measurements that were compared.
    not_compared : list of str
        Names of the measurements that depend on the machine or on another model.
    differences : list of str
        The first differences, as sentences.
    notes : list of str
        Changes of environment and lock since the training, as sentences.
    deterministic : bool or None
        True if a second rebuild had the bytes of the first; ``None`` if none was needed.
    unseeded : list of str
        Names of the pipeline's parameters ``random_state`` that are None, if the rebuilds differ.
    """

    model: str
    version: int
    candidate: str
    outcome: ReproductionOutcome
    code: str
    code_revision: str
    lock_digest: str
    dataset_version: int
    dataset_digest: str
    model_digest: str
    rebuilt_digest: str
    predictions: int
    figures: list[str]
    not_compared: list[str]
    differences: list[str]
    notes: list[str]
    deterministic: bool | None = None
    unseeded: list[str]

    @property
    def identical(self) -> bool:
        """True if every prediction is identical to the bit and every measurement equal."""
        return self.outcome is not ReproductionOutcome.NOT_REPRODUCED


@dataclass(frozen=True, kw_only=True)
class _Recorded:
    """A version as recorded; `file` is the registry's model file, `golden` the folder of its golden requests."""

    version: int
    candidate: Candidate
    verdict: Verdict
    file: Path
    golden: Path

    @property
    def name(self) -> str:
        return f"Version {self.version} of {self.candidate.model!r}"


@dataclass(frozen=True, kw_only=True)
class _Code:
    """Code of a rebuild: its folder, its revision, and a description in words."""

    folder: Path
    revision: str
    words: str


def reproduce(
    platform: Platform,
    model: str,
    version: int,
    *,
    module: str,
    root: Path = PROJECT_ROOT,
    current_code: bool = False,
    any_commit: bool = False,
) -> Reproduction:
    """Train and judge a version again, and compare both.

    Parameters
    ----------
    platform : Platform
        Only read.
    model, version : str, int
        The model's name and the version's number in the registry.
    module : str
        Dotted name of the module that declares the model.
    root : Path
        The checkout, or the folder of the installed package.
    current_code : bool
        True rebuilds with the current code and lock instead of the recorded ones; the notes describe the difference.
    any_commit : bool
        True also runs code of a commit that is not an ancestor of HEAD.

    Returns
    -------
    Reproduction

    Raises
    ------
    EvidenceError
        There is no such version, or it was never judged.
    ForgottenError
        Data of a person in its dataset was erased.
    DigestMismatchError
        The registry's bytes differ from the recorded ones.
    IrreproducibleError
        Lock or code changed and the recorded ones are not available, or the dataset's rows differ from the pinned ones.
    """
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as name:
        folder = Path(name)
        recorded = _load_recorded(platform, model, version, folder)
        notes = _describe_changes(recorded, root, current_code=current_code)
        with _checkout(platform, recorded, root, current_code=current_code, any_commit=any_commit) as code:
            log.info("rebuilding version %s with %s", version, code.words)
            first = _rebuild(platform, recorded, code, module, folder / "first")
            again = None
            digest = compare_versions.canonical_digest
            if digest(recorded.file) != digest(Path(first["file"])):
                log.info("its bytes differ: rebuilding it again to see if the pipeline is deterministic")
                again = _rebuild(platform, recorded, code, module, folder / "second")
        return _compare(recorded, code, first, again, notes)


def _load_recorded(platform: Platform, model: str, version: int, folder: Path) -> _Recorded:
    registration = platform.database.registration(model, version)
    if registration is None:
        raise EvidenceError(f"There is no version {version} of {model!r}. See: ml-platform history {model}.")
    candidate = platform.database.candidate(registration.candidate)
    verdict = platform.database.verdict_on(candidate.id)
    if candidate.forgotten_at is not None:
        raise ForgottenError(
            f"Version {version} of {model!r} cannot be reproduced: some of its training rows were erased on "
            f"{candidate.forgotten_at:%Y-%m-%d}, because a person asked for it. Train a new one: "
            f"ml-platform retrain {model}."
        )
    if verdict is None:
        raise EvidenceError(f"Version {version} of {model!r} has no verdict to compare a rebuild with.")
    file = platform.registry.fetch(model, version, folder)
    digest = file_digest(file)
    if digest != candidate.model_digest:
        raise DigestMismatchError(
            f"Version {version} of {model!r} must have sha256 {candidate.model_digest}. The registry's bytes have "
            f"{digest}: they are not those that passed the gates, and were not loaded. Restore them from the "
            f"platform's copy of candidate {candidate.id}."
        )
    golden = platform.candidate_folder(candidate)
    return _Recorded(version=version, candidate=candidate, verdict=verdict, file=file, golden=golden)


def _describe_changes(recorded: _Recorded, root: Path, *, current_code: bool) -> list[str]:
    """Describe the changes of lock, packages and environment since the training; refuse another lock by default."""
    lock, current_lock = recorded.candidate.lineage.lock_digest, provenance.lock_digest(root)
    if lock != current_lock and not current_code:
        raise IrreproducibleError(
            f"{recorded.name} was trained under a requirements.lock with digest {lock[:12]}, and the one here has "
            f"{current_lock[:12]}: other packages may give another model. Rebuild it in a checkout with that lock: "
            f"{_checkout_commands(recorded)}. Or rebuild with the current code and lock: --current-code."
        )
    changed = [f"the lock here has digest {current_lock[:12]}, the recorded one {lock[:12]}"]
    notes = (changed if lock != current_lock else []) + provenance.find_lock_mismatches(root)
    environment, current = _training_environment(recorded), provenance.environment()
    if not environment:
        return [*notes, "which Python and which CPU trained it was not recorded"]
    # Threads are left out: the rebuild gets the recorded number.
    names = [name for name in current if name != provenance.THREADS and current[name] != environment.get(name)]
    return notes + [f"{name} is {current[name]}, it was trained with {environment.get(name)}" for name in names]


def _checkout_commands(recorded: _Recorded) -> str:
    """Return the commands that rebuild a version in a checkout of its own commit."""
    commit = recorded.candidate.lineage.code_revision.partition("+")[0]
    return (
        f"git worktree add ../{commit[:12]} {commit} && cd ../{commit[:12]} && make .venv/.runtime && "
        f"ML_PLATFORM_HOME=… ml-platform reproduce {recorded.candidate.model} {recorded.version}"
    )


def _training_environment(recorded: _Recorded) -> dict[str, str]:
    file = recorded.golden / ENVIRONMENT
    return dict(json.loads(file.read_text())) if file.is_file() else {}


@contextmanager
def _checkout(
    platform: Platform, recorded: _Recorded, root: Path, *, current_code: bool, any_commit: bool
) -> Iterator[_Code]:
    """Yield the code of a rebuild: the checkout if its revision fits or `current_code` is set, else a git worktree."""
    revision = recorded.candidate.lineage.code_revision
    current = provenance.code_revision(platform.settings.code_revision, root)
    if revision == current:
        yield _Code(folder=root, revision=revision, words="the recorded code, which is here")
        return
    if current_code:
        yield _Code(folder=root, revision=current, words=f"the code that is here, {current}, instead of {revision}")
        return
    commit, _, difference = revision.partition("+")
    problem = ""
    if difference:
        problem = f"with changes to commit {commit} that were never committed; their digest is {difference}"
    elif not provenance.has_commit(commit, root):
        problem = f"by the code of {commit}, which the git of {root} does not have; try: git fetch --unshallow"
    elif not any_commit and not provenance.is_in_history(commit, root):
        problem = f"by the code of commit {commit}, which is not an ancestor of HEAD; --any-commit lets it run"
    if problem:
        raise IrreproducibleError(
            f"{recorded.name} was trained {problem}. Rebuild it in a checkout of that code: "
            f"{_checkout_commands(recorded)}. Or rebuild with the current code: --current-code."
        )
    with provenance.checked_out(revision, root) as folder:
        yield _Code(folder=folder, revision=revision, words=f"the code of commit {revision}, in a worktree of its own")


def _rebuild(platform: Platform, recorded: _Recorded, code: _Code, module: str, home: Path) -> dict[str, Any]:
    """Train and judge in a fresh process with its own home; return the result of `rebuild`."""
    candidate, lineage = recorded.candidate, recorded.candidate.lineage
    golden = recorded.golden / GOLDEN_REQUESTS
    home.mkdir()
    if not golden.is_file():
        raise EvidenceError(f"{recorded.name} has lost its golden requests: {golden} is missing. Restore it.")
    order = {
        "code": str(code.folder),
        "module": module,
        "model": candidate.model,
        "dataset": {
            "model": candidate.model,
            "version": lineage.dataset_version,
            "digest": lineage.dataset_digest,
            "rows": 0,
        },
        "rows": str(platform.rows(candidate.model)),
        "stored": str(recorded.file),
        "digest": candidate.model_digest,
        "golden": str(golden),
    }
    order_file, answer = home / "order.json", home / "answer.json"
    order_file.write_text(json.dumps(order))
    # -P: the program's folder contains modules with the names of standard modules.
    command = [sys.executable, "-P", str(PROGRAM), str(order_file), str(answer)]
    environment = _rebuild_environment(recorded, code, home)
    # There is no time limit: a rebuild takes as long as the training did.
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0 or not answer.is_file():
        raise IrreproducibleError(
            f"{recorded.name} could not be rebuilt with {code.words}: {_exit_reason(done.stderr)}."
        )
    result: dict[str, Any] = json.loads(answer.read_text())
    if "refused" in result:
        raise IrreproducibleError(f"{recorded.name} cannot be rebuilt: {result['refused']}")
    return result


def _exit_reason(stderr: str) -> str:
    """Return the last line with an exception, since threads of a library may write more lines after it."""
    lines = stderr.strip().splitlines() or ["it exited without an error message"]
    return next((line for line in reversed(lines) if EXCEPTION.match(line)), lines[-1])


def _rebuild_environment(recorded: _Recorded, code: _Code, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name == FROZEN or not name.startswith(OURS)}
    threads = _training_environment(recorded).get(provenance.THREADS)
    if threads is not None:
        kept[provenance.THREADS] = threads  # empty counts as not set
    path = os.pathsep.join(filter(None, [str(code.folder), kept.get("PYTHONPATH")]))
    return {
        **kept,
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "ML_PLATFORM_HOME": str(home / "home"),
        "ML_PLATFORM_CODE_REVISION": code.revision,
    }


def _compare(
    recorded: _Recorded, code: _Code, first: dict[str, Any], again: dict[str, Any] | None, notes: list[str]
) -> Reproduction:
    lineage = recorded.candidate.lineage
    digests = [compare_versions.canonical_digest(file) for file in (recorded.file, Path(first["file"]))]
    documents = recorded.verdict.document, first["verdict"]
    before, after = (compare_versions.measurements(document) for document in documents)
    paths, skipped = compare_versions.comparable(before, after, size=digests[0] == recorded.candidate.model_digest)
    answers = json.loads((recorded.golden / GOLDEN_ANSWERS).read_text())
    differences = [
        *compare_versions.different_predictions("holdout", first["before"], first["after"]),
        *compare_versions.different_predictions("golden requests", answers, first["answers"]),
        *compare_versions.different_measurements(before, after, paths),
    ]
    second = again and compare_versions.canonical_digest(Path(again["file"]))
    deterministic = None if second is None else second == digests[1]
    return Reproduction(
        model=recorded.candidate.model,
        version=recorded.version,
        candidate=recorded.candidate.id,
        outcome=_outcome(differences, digests),
        code=code.words,
        code_revision=lineage.code_revision,
        lock_digest=lineage.lock_digest,
        dataset_version=lineage.dataset_version,
        dataset_digest=lineage.dataset_digest,
        model_digest=digests[0],
        rebuilt_digest=digests[1],
        predictions=len(first["after"]["scores"]) + len(first["answers"]["scores"]),
        figures=paths,
        not_compared=skipped,
        differences=differences,
        notes=notes,
        deterministic=deterministic,
        unseeded=first["unseeded"] if deterministic is False else [],
    )


def _outcome(differences: list[str], digests: list[str]) -> ReproductionOutcome:
    if differences:
        return ReproductionOutcome.NOT_REPRODUCED
    return ReproductionOutcome.REPRODUCED if digests[0] == digests[1] else ReproductionOutcome.OTHER_BYTES
