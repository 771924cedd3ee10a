"""Make a version again from its pinned dataset, code and lock, and say whether it is the same model.

The work is done by `rebuild` in a fresh process and in a deployment that is thrown away: registry, ledger and
candidates stay as they are.
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

from ml_platform import provenance
from ml_platform.errors import DigestMismatchError, EvidenceError, ForgottenError, IrreproducibleError
from ml_platform.predictor import file_digest
from ml_platform.records import Candidate, Verdict
from ml_platform.settings import PROJECT_ROOT
from ml_platform.stages.staging import GOLDEN_ANSWERS, GOLDEN_REQUESTS
from ml_platform.workflows import likeness
from ml_platform.workflows.candidates import ENVIRONMENT
from ml_platform.workflows.platform import Platform

log = logging.getLogger("ml_platform")

# By its path: with earlier code the module may not be there, and nothing of this process comes along.
PROGRAM = Path(__file__).with_name("rebuild.py")
# What leads to a deployment or a registry: the fresh process gets none of it but the frozen datasets' folder.
OURS = ("ML_PLATFORM_", "MLFLOW_", "DAGSTER_", "AWS_")
FROZEN = "ML_PLATFORM_GOLDEN"
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*: ")


class Likeness(StrEnum):
    """What came of making a version again."""

    REPRODUCED = "reproduced"
    OTHER_BYTES = "predictions identical, bytes differ"
    NOT_REPRODUCED = "not reproduced"


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What came of making a version again.

    `model_digest` and `rebuilt_digest` are those of canonical bytes. `predictions` counts the rows that were predicted
    by both, `figures` names what is equal in both verdicts or should be, `not_compared` the figures that say something
    of the machine or of another model. `differences` are the first ones, as sentences; `notes` say what is not as it
    was. `deterministic` says whether a second rebuild had the bytes of the first, None where none was needed; where it
    had not, `unseeded` names the pipeline's parameters ``random_state`` that are None.
    """

    model: str
    version: int
    candidate: str
    outcome: Likeness
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
        """Whether every prediction is identical to the bit and every figure equal."""
        return self.outcome is not Likeness.NOT_REPRODUCED


@dataclass(frozen=True, kw_only=True)
class _Recorded:
    """A version as the platform recorded it; `file` are its bytes, as the registry has them."""

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
    """Code to rebuild with: its folder, its revision, and how a person would call it."""

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
    here: bool = False,
    any_commit: bool = False,
) -> Reproduction:
    """Train and judge a version again and compare.

    Parameters
    ----------
    platform : Platform
        It is only read.
    model, version : str, int
        The model's name and the version's number in the registry.
    module : str
        Dotted name of the module that declares the model.
    root : Path
        The checkout, or the folder that the package is installed in.
    here : bool
        Rebuild with the code and lock that are here, whatever was recorded; the notes say how they differ.
    any_commit : bool
        Also run the code of a commit that HEAD does not come from.

    Returns
    -------
    Reproduction

    Raises
    ------
    EvidenceError
        There is no such version, or it was never judged.
    ForgottenError
        A person's data in its dataset was forgotten.
    DigestMismatchError
        The registry's bytes are not those that were recorded.
    IrreproducibleError
        Lock or code are not as they were and cannot be had, or the dataset's rows are not those that were pinned.
    """
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as name:
        folder = Path(name)
        recorded = _recorded(platform, model, version, folder)
        notes = [*_lock_notes(recorded, root, here=here), *_environment_notes(recorded)]
        with _code(platform, recorded, root, here=here, any_commit=any_commit) as code:
            log.info("version %s is made again with %s", version, code.words)
            first = _rebuild(platform, recorded, code, module, folder / "first")
            again = None
            if likeness.canonical_digest(recorded.file) != likeness.canonical_digest(Path(first["file"])):
                log.info("its bytes differ: a second rebuild tells whether the pipeline always gives the same")
                again = _rebuild(platform, recorded, code, module, folder / "second")
        return _compared(recorded, code, first, again, notes)


def _recorded(platform: Platform, model: str, version: int, folder: Path) -> _Recorded:
    registration = platform.database.registration(model, version)
    if registration is None:
        raise EvidenceError(f"There is no version {version} of {model!r}. See: ml-platform history {model}.")
    candidate = platform.database.candidate(registration.candidate)
    verdict = platform.database.verdict_on(candidate.id)
    if candidate.forgotten_at is not None:
        raise ForgottenError(
            f"Version {version} of {model!r} cannot be reproduced: rows that it was trained on were forgotten on "
            f"{candidate.forgotten_at:%Y-%m-%d}, because a person asked for it. Train a new one: "
            f"ml-platform retrain {model}."
        )
    if verdict is None:
        raise EvidenceError(f"Version {version} of {model!r} has no verdict that a rebuild could be compared with.")
    file = platform.registry.fetch(model, version, folder)
    _require_digest(file, candidate, version)
    golden = platform.candidate_folder(candidate)
    return _Recorded(version=version, candidate=candidate, verdict=verdict, file=file, golden=golden)


def _require_digest(file: Path, candidate: Candidate, version: int) -> None:
    found = file_digest(file)
    if found != candidate.model_digest:
        raise DigestMismatchError(
            f"Version {version} of {candidate.model!r} must have sha256 {candidate.model_digest}. The registry's bytes "
            f"have {found}: they are not those that were gated, and were not loaded. Restore them: the platform's copy "
            f"is that of candidate {candidate.id}."
        )


def _lock_notes(recorded: _Recorded, root: Path, *, here: bool) -> list[str]:
    was, found = recorded.candidate.lineage.lock_digest, provenance.lock_digest(root)
    if was != found and not here:
        raise IrreproducibleError(
            f"{recorded.name} was trained under a requirements.lock with digest {was[:12]}, and the one here has "
            f"{found[:12]}: other packages may give another model. Go where that lock stands and is installed: "
            f"{_elsewhere(recorded)}. Or rebuild with what is here: --here."
        )
    changed = [f"the lock here has digest {found[:12]}, the recorded one {was[:12]}"] if was != found else []
    return changed + provenance.not_as_locked(root)


def _elsewhere(recorded: _Recorded) -> str:
    """Return the commands that rebuild a version in a checkout of its own commit."""
    commit = recorded.candidate.lineage.code_revision.partition("+")[0]
    return (
        f"git worktree add ../{commit[:12]} {commit} && cd ../{commit[:12]} && make .venv/.runtime && "
        f"ML_PLATFORM_HOME=… ml-platform reproduce {recorded.candidate.model} {recorded.version}"
    )


def _trained_in(recorded: _Recorded) -> dict[str, str]:
    file = recorded.golden / ENVIRONMENT
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def _environment_notes(recorded: _Recorded) -> list[str]:
    was, found = _trained_in(recorded), provenance.environment()
    if not was:
        return ["which Python and which CPU trained it was not recorded"]
    # Not the threads: the rebuild gets those that were recorded.
    names = [name for name in found if name != provenance.THREADS and found[name] != was.get(name)]
    return [f"{name} is {found[name]}, it was trained with {was.get(name)}" for name in names]


@contextmanager
def _code(platform: Platform, recorded: _Recorded, root: Path, *, here: bool, any_commit: bool) -> Iterator[_Code]:
    was, found = (
        recorded.candidate.lineage.code_revision,
        provenance.code_revision(platform.settings.code_revision, root),
    )
    if was == found:
        yield _Code(folder=root, revision=was, words="the recorded code, which is here")
    elif here:
        yield _Code(folder=root, revision=found, words=f"the code that is here, {found}, instead of {was}")
    else:
        _require_commit(recorded, root, any_commit=any_commit)
        with provenance.checked_out(was, root) as folder:
            yield _Code(folder=folder, revision=was, words=f"the code of commit {was}, in a worktree of its own")


def _require_commit(recorded: _Recorded, root: Path, *, any_commit: bool) -> None:
    was = recorded.candidate.lineage.code_revision
    commit, _, difference = was.partition("+")
    why = ""
    if difference:
        why = f"with changes to commit {commit} that were never committed; their digest is {difference}"
    elif not provenance.has_commit(commit, root):
        why = f"by the code of {commit}, which the git of {root} does not have; try: git fetch --unshallow"
    elif not any_commit and not provenance.is_in_history(commit, root):
        why = f"by the code of commit {commit}, which HEAD does not come from: say --any-commit if it may run"
    if why:
        raise IrreproducibleError(
            f"{recorded.name} was trained {why}. Go where that code is: {_elsewhere(recorded)}. Or rebuild with the "
            "code that is here: --here."
        )


def _rebuild(platform: Platform, recorded: _Recorded, code: _Code, module: str, home: Path) -> dict[str, Any]:
    """Let a fresh process train and judge in a home of its own; return what it answered."""
    home.mkdir()
    order, answer = home / "order.json", home / "answer.json"
    order.write_text(json.dumps(_order(platform, recorded, code, module)))
    # -P: the folder of the program holds modules that are called like Python's own.
    command = [sys.executable, "-P", str(PROGRAM), str(order), str(answer)]
    # No limit of time: it takes as long as the training did.
    environment = _environment(recorded, code, home)
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0 or not answer.is_file():
        raise IrreproducibleError(f"{recorded.name} could not be made again with {code.words}: {_why(done.stderr)}.")
    found: dict[str, Any] = json.loads(answer.read_text())
    if "refused" in found:
        raise IrreproducibleError(f"{recorded.name} cannot be made again: {found['refused']}")
    return found


def _why(stderr: str) -> str:
    # Threads of a library may have a last word after Python's: the line that names an exception says more.
    lines = stderr.strip().splitlines() or ["it died without a word"]
    return next((line for line in reversed(lines) if EXCEPTION.match(line)), lines[-1])


def _order(platform: Platform, recorded: _Recorded, code: _Code, module: str) -> dict[str, Any]:
    model, lineage = recorded.candidate.model, recorded.candidate.lineage
    golden = recorded.golden / GOLDEN_REQUESTS
    if not golden.is_file():
        raise EvidenceError(f"{recorded.name} has lost its golden requests: {golden} is missing. Restore it.")
    dataset = {"model": model, "version": lineage.dataset_version, "digest": lineage.dataset_digest, "rows": 0}
    return {
        "code": str(code.folder),
        "module": module,
        "model": model,
        "dataset": dataset,
        "rows": str(platform.rows(model)),
        "stored": str(recorded.file),
        "digest": recorded.candidate.model_digest,
        "golden": str(golden),
    }


def _environment(recorded: _Recorded, code: _Code, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name == FROZEN or not name.startswith(OURS)}
    threads = _trained_in(recorded).get(provenance.THREADS)
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


def _compared(
    recorded: _Recorded, code: _Code, first: dict[str, Any], again: dict[str, Any] | None, notes: list[str]
) -> Reproduction:
    lineage = recorded.candidate.lineage
    digests = [likeness.canonical_digest(file) for file in (recorded.file, Path(first["file"]))]
    before, after = likeness.figures(recorded.verdict.document), likeness.figures(first["verdict"])
    paths, skipped = likeness.comparable(before, after, size=digests[0] == recorded.candidate.model_digest)
    differences = _different_predictions(recorded, first) + likeness.different_figures(before, after, paths)
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
        **_determinism(first, again),
    )


def _different_predictions(recorded: _Recorded, found: dict[str, Any]) -> list[str]:
    answers = json.loads((recorded.golden / GOLDEN_ANSWERS).read_text())
    return [
        *likeness.different_predictions("holdout", found["before"], found["after"]),
        *likeness.different_predictions("golden requests", answers, found["answers"]),
    ]


def _outcome(differences: list[str], digests: list[str]) -> Likeness:
    if differences:
        return Likeness.NOT_REPRODUCED
    return Likeness.REPRODUCED if digests[0] == digests[1] else Likeness.OTHER_BYTES


def _determinism(first: dict[str, Any], again: dict[str, Any] | None) -> dict[str, Any]:
    if again is None:
        return {"deterministic": None, "unseeded": []}
    one, other = (likeness.canonical_digest(Path(found["file"])) for found in (first, again))
    return {"deterministic": one == other, "unseeded": [] if one == other else first["unseeded"]}
