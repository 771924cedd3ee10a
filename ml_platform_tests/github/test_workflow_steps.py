"""Steps of the workflows: their conditions, and their scripts, run by bash with stubs of the programs."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ml_platform.model_spec import Retraining
from ml_platform.settings import PROJECT_ROOT
from ml_platform_tests.support.workflow_files import GITHUB, WORKFLOWS, commit, git, read, steps

# Logs each call as a line, prints a chosen output and exits with a chosen status.
STUB = """#!/usr/bin/env bash
printf '%s' "$(basename "$0")" >> "$CALLS"
printf '|%s' "$@" >> "$CALLS"
printf '\\n' >> "$CALLS"
printf '%s' "${SAYS:-}"
exit "${STATUS:-0}"
"""
ODD = '"; touch x #'


def script(workflow: str, part: str) -> str:
    """Return the only script of a workflow that contains a text."""
    [found] = [step["run"] for _, step in steps(read(GITHUB / "workflows" / workflow)) if part in step.get("run", "")]
    return str(found)


class Ran:
    """The result of a script, run in its own folder as on GitHub's runners."""

    def __init__(self, folder: Path, text: str, *stubs: str, **environment: str) -> None:
        for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "CALLS"):
            (folder / name).touch()
            environment[name] = str(folder / name)
        (folder / "programs").mkdir(exist_ok=True)
        for name in stubs:
            (folder / "programs" / name).write_text(STUB)
            (folder / "programs" / name).chmod(0o755)
        (folder / "script.sh").write_text(text)
        self.folder = folder
        self.done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", folder / "script.sh"],
            cwd=folder,
            env={"PATH": f"{folder / 'programs'}:{os.environ['PATH']}", "HOME": str(folder), **environment},
            capture_output=True,
            text=True,
        )

    @property
    def status(self) -> int:
        return self.done.returncode

    @property
    def calls(self) -> list[list[str]]:
        return [line.split("|") for line in (self.folder / "CALLS").read_text().splitlines()]

    @property
    def outputs(self) -> dict[str, str]:
        lines = (self.folder / "GITHUB_OUTPUT").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    @property
    def summary(self) -> str:
        return (self.folder / "GITHUB_STEP_SUMMARY").read_text()


# Conditions and environments of jobs: a change of these lines changes access rights.

CONDITIONS = {
    "ci.yml": {"lint": (None, None, None), "test": (None, None, None)},
    "image.yml": {
        "build": (None, None, None),
        "publish": ("github.event_name == 'push'", "build", "images"),
    },
    "promote.yml": {
        "test": ("github.ref == 'refs/heads/main'", None, "staging"),
        "promote": ("needs.test.outputs.waits == 'true'", "test", "production"),
    },
    "quality-gates.yml": {
        "affected": (None, None, None),
        "gates": ("needs.affected.outputs.models != '[]'", "affected", None),
        "report": (
            "${{ !cancelled() && needs.affected.result == 'success' && needs.gates.result != 'skipped' }}",
            ["affected", "gates"],
            None,
        ),
        "decision": ("always()", ["affected", "gates", "report"], None),
    },
    "quality-report.yml": {
        "comment": (
            "github.event.workflow_run.event == 'pull_request' && github.event.workflow_run.conclusion != 'cancelled'",
            None,
            None,
        )
    },
    "retrain.yml": {
        "models": (
            "github.ref == 'refs/heads/main' "
            "&& (github.event_name == 'workflow_dispatch' || vars.ML_PLATFORM_NO_DAGSTER == 'true')",
            None,
            None,
        ),
        "train": (None, "models", "retraining"),
    },
}
WAITING = {
    "ci.yml": ("ci-${{ github.ref }}", "${{ github.event_name == 'pull_request' }}"),
    "image.yml": ("image-${{ github.ref }}", "${{ github.event_name == 'pull_request' }}"),
    "promote.yml": ("promote-${{ github.event.client_payload.model || inputs.model }}", False),
    "quality-gates.yml": ("quality-gates-${{ github.event.pull_request.number || github.ref }}", True),
    "quality-report.yml": (
        "quality-report-${{ github.event.workflow_run.head_repository.full_name }}"
        "-${{ github.event.workflow_run.head_branch }}",
        False,
    ),
    "retrain.yml": ("retrain-${{ inputs.model || 'all' }}", False),
}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_job_conditions_needs_and_environments(file: Path) -> None:
    document = read(file)
    found = {name: (job.get("if"), job.get("needs"), job.get("environment")) for name, job in document["jobs"].items()}
    concurrency = document["concurrency"]

    assert found == CONDITIONS[file.name]
    assert (concurrency["group"], concurrency["cancel-in-progress"]) == WAITING[file.name]
    assert all(0 < job["timeout-minutes"] <= 720 for job in document["jobs"].values())
    assert all(job.get("strategy", {"fail-fast": False})["fail-fast"] is False for job in document["jobs"].values())


STEPS = {
    "ci.yml": ["github.event_name == 'push' && github.ref == 'refs/heads/main'"],
    "image.yml": ["github.event_name == 'push'", "github.event_name == 'push'", "always()"],
    "promote.yml": ["(failure() || cancelled()) && steps.approve.outcome != 'skipped'"],
    "quality-gates.yml": ["always()", "always()"],
    "quality-report.yml": [],
    "retrain.yml": ["vars.ML_PLATFORM_DAGSTER_URL != ''", "vars.ML_PLATFORM_DAGSTER_URL == ''"],
}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_step_conditions(file: Path) -> None:
    assert [step["if"] for _, step in steps(read(file)) if "if" in step] == STEPS[file.name]


def test_required_workflows_run_in_merge_queue() -> None:
    for name in ("ci.yml", "quality-gates.yml"):
        assert {"pull_request", "merge_group"} <= set(read(GITHUB / "workflows" / name)["on"])


def test_report_workflow_follows_gates_workflow() -> None:
    document = read(GITHUB / "workflows" / "quality-report.yml")
    [download] = [step for _, step in steps(document) if "download-artifact@" in step.get("uses", "")]

    assert document["on"]["workflow_run"]["workflows"] == [read(GITHUB / "workflows" / "quality-gates.yml")["name"]]
    assert download["continue-on-error"] is True
    # With -I, nothing in an artifact can be imported.
    assert script("quality-report.yml", "comment.py").startswith("python3 -I ")


def test_github_and_dagster_schedules_are_equal() -> None:
    [clock] = read(GITHUB / "workflows" / "retrain.yml")["on"]["schedule"]

    assert clock["cron"] == Retraining.model_fields["schedule"].default


# The gates


@pytest.fixture
def change(tmp_path: Path) -> Path:
    """A repository with a branch that main has moved on from."""
    top = tmp_path / "top"
    top.mkdir()
    git(top, "init", "--quiet", "--initial-branch", "main")
    (top / "a").touch()
    parted = commit(top, "a")
    git(top, "checkout", "--quiet", "-b", "change")
    (top / "b").touch()
    commit(top, "b")
    git(top, "tag", "head")
    git(top, "checkout", "--quiet", "main")
    (top / "c").touch()
    commit(top, "c")
    git(top, "tag", "parted", parted)
    return top


def base(top: Path, **environment: str) -> str:
    ran = Ran(top, script("quality-gates.yml", "merge-base"), BASE=git(top, "rev-parse", "main"), **environment)
    assert ran.status == 0, ran.done.stderr
    return ran.outputs["sha"]


def test_merge_base_of_merge_is_current_base(change: Path) -> None:
    main = git(change, "rev-parse", "main")
    git(change, "checkout", "--quiet", "--detach", "main")
    git(change, "merge", "--quiet", "--no-ff", "--message", "m", "head")

    assert base(change, QUEUED_ON="") == main


def test_merge_base_of_branch_is_fork_point(change: Path) -> None:
    git(change, "checkout", "--quiet", "head")

    assert base(change, QUEUED_ON="") == git(change, "rev-parse", "parted")


def test_merge_base_in_queue_is_queue_base(change: Path) -> None:
    """With two queued changes, the second one's first parent may differ from the queue's base."""
    git(change, "checkout", "--quiet", "--detach", "main")
    git(change, "merge", "--quiet", "--no-ff", "--message", "m", "head")

    assert base(change, QUEUED_ON=git(change, "rev-parse", "parted")) == git(change, "rev-parse", "parted")


def test_affected_step_outputs_models_on_one_line(tmp_path: Path) -> None:
    found = Ran(
        tmp_path, script("quality-gates.yml", "affected --base"), "ml-platform", BASE=ODD, SAYS='[\n{"model": "m"}]'
    )

    assert found.calls == [["ml-platform", "ci", "affected", "--base", ODD, "--json"]]
    assert found.outputs == {"models": '[{"model":"m"}]'}


@pytest.mark.parametrize(
    ("workflow", "part"), [("quality-gates.yml", "affected --base"), ("retrain.yml", "models --json")]
)
def test_failed_model_list_fails_the_step(workflow: str, part: str, tmp_path: Path) -> None:
    found = Ran(tmp_path, script(workflow, part), "ml-platform", BASE="x", MODEL="", SAYS="[]", STATUS="2")

    assert (found.status, found.outputs) == (2, {})


@pytest.mark.parametrize(("golden", "asked"), [("", []), ("refunds", ["--golden", "refunds"])])
def test_gates_step_passes_golden_dataset(golden: str, asked: list[str], tmp_path: Path) -> None:
    found = Ran(
        tmp_path,
        script("quality-gates.yml", "ml-platform ci compare"),
        "ml-platform",
        MODEL="m",
        GOLDEN=golden,
        BASE="x",
        STATUS="1",
    )

    assert found.status == 1
    assert found.calls == [["ml-platform", "ci", "compare", "m", *asked, "--base", "x", "--out", "var/quality"]]


@pytest.mark.parametrize("status", ["0", "1", "2"])
def test_report_step_writes_summary_for_any_status(status: str, tmp_path: Path) -> None:
    report = tmp_path / "var" / "report" / "report.md"
    report.parent.mkdir(parents=True)
    report.write_text("auc_roc fell")

    found = Ran(tmp_path, script("quality-gates.yml", "report --base"), "ml-platform", BASE="x", STATUS=status)

    assert found.status == int(status)
    assert found.summary == "auc_roc fell"


# Retraining


def test_scheduled_retraining_claims_due_slot(tmp_path: Path) -> None:
    here = Ran(
        tmp_path, script("retrain.yml", "--slot due"), "ml-platform", MODEL="m", REASON="", GITHUB_EVENT_NAME="schedule"
    )

    assert here.calls == [["ml-platform", "retrain", "m", "--reason", "schedule", "--slot", "due"]]


def test_manual_retraining_claims_slot_of_its_run(tmp_path: Path) -> None:
    asked = {"MODEL": "m", "REASON": ODD, "GITHUB_RUN_ID": "5", "GITHUB_EVENT_NAME": "workflow_dispatch"}
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()

    here = Ran(tmp_path / "here", script("retrain.yml", "--slot due"), "ml-platform", **asked)
    there = Ran(
        tmp_path / "there", script("retrain.yml", "--dagster-url"), "ml-platform", DAGSTER_URL="http://d", **asked
    )

    command = ["ml-platform", "retrain", "m", "--reason", ODD, "--slot", "github-5"]
    assert here.calls == [command]
    assert there.calls == [[*command, "--dagster-url", "http://d"]]
    assert list(tmp_path.rglob("x")) == []


@pytest.mark.parametrize(("model", "asked"), [("", []), (ODD, [ODD])])
def test_retraining_without_model_covers_all(model: str, asked: list[str], tmp_path: Path) -> None:
    found = Ran(tmp_path, script("retrain.yml", "models --json"), "ml-platform", MODEL=model, SAYS='["m"]')

    assert found.calls == [["ml-platform", "models", "--json", *asked]]
    assert found.outputs == {"models": '["m"]'}


@pytest.mark.parametrize(
    ("workflow", "part"), [("retrain.yml", "--slot due"), ("promote.yml", '--timeout-minutes "$MINUTES"')]
)
def test_interrupt_reaches_the_steps_program(workflow: str, part: str, tmp_path: Path) -> None:
    """GitHub interrupts only the process of the step, not its children."""
    (tmp_path / "programs").mkdir()
    named = {
        "MODEL": "m",
        "VERSION": "1",
        "MINUTES": "1",
        "REASON": "x",
        "GITHUB_RUN_ID": "5",
        "GITHUB_EVENT_NAME": "schedule",
    }
    found = Ran(tmp_path, f"echo $$ > shell\n{script(workflow, part)}", "ml-platform", SAYS="", **named)
    stub = tmp_path / "programs" / "ml-platform"
    stub.write_text("#!/usr/bin/env bash\necho $$ > program\n")
    again = subprocess.run(
        ["bash", tmp_path / "script.sh"], cwd=tmp_path, env={"PATH": f"{stub.parent}:{os.environ['PATH']}", **named}
    )

    assert (found.status, again.returncode) == (0, 0)
    assert (tmp_path / "shell").read_text() == (tmp_path / "program").read_text()


# Promotion

VERSION = {"MODEL": "m", "VERSION": "7", "REASON": ODD, "VERDICT": "d" * 64, "MINUTES": "90"}


def test_promotion_test_outputs_the_verdict(tmp_path: Path) -> None:
    tested = json.dumps({"verdict": "d", "waits": True, "problem": None})

    found = Ran(tmp_path, script("promote.yml", "check-version"), "ml-platform", SAYS=tested, **VERSION)

    assert found.status == 0, found.done.stderr
    assert found.calls == [
        ["ml-platform", "ci", "check-version", "m", "7", "--json"],
        ["ml-platform", "explain", "version", "m", "7"],
    ]
    assert found.outputs == {"verdict": "d", "waits": "true"}
    assert '"verdict": "d"' in found.summary


def test_promotion_failed_test_outputs_nothing(tmp_path: Path) -> None:
    found = Ran(tmp_path, script("promote.yml", "check-version"), "ml-platform", SAYS="{}", STATUS="1", **VERSION)

    assert (found.status, found.outputs) == (1, {})


def test_promotion_approves_the_tested_verdict(tmp_path: Path) -> None:
    found = Ran(tmp_path, script("promote.yml", "ml-platform approve"), "ml-platform", **VERSION)

    given = ["--auth", "github_environment", "--verdict", VERSION["VERDICT"], "--reason", ODD]
    assert found.calls == [["ml-platform", "approve", "m", "7", *given]]
    document = read(GITHUB / "workflows" / "promote.yml")
    [step] = [step for _, step in steps(document) if step.get("id") == "approve"]
    assert step["env"]["VERDICT"] == "${{ needs.test.outputs.verdict }}"
    assert step["env"]["ML_PLATFORM_GITHUB_REVIEWER"] == "${{ steps.reviewer.outputs.login }}"
    assert step["env"]["ML_PLATFORM_GITHUB_REPOSITORY"] == "${{ github.repository }}"
    assert step["env"]["ML_PLATFORM_GITHUB_ENVIRONMENT"] == document["jobs"]["promote"]["environment"]


def test_promotion_stopped_rollout_rolls_back(tmp_path: Path) -> None:
    (tmp_path / "way").mkdir()
    (tmp_path / "back").mkdir()
    way = Ran(tmp_path / "way", script("promote.yml", '--timeout-minutes "$MINUTES"'), "ml-platform", **VERSION)
    back = Ran(tmp_path / "back", script("promote.yml", "--timeout-minutes 0"), "ml-platform", **VERSION)

    assert way.calls == [["ml-platform", "rollout", "wait", "m", "7", "--timeout-minutes", "90"]]
    assert back.calls == [["ml-platform", "rollout", "wait", "m", "7", "--timeout-minutes", "0"]]


def review(login: str = "grace", *, state: str = "approved", environment: str = "production") -> dict[str, Any]:
    return {"state": state, "environments": [{"name": "staging"}, {"name": environment}], "user": {"login": login}}


REVIEWS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "no review": ([], ""),
    "approved": ([review()], "grace"),
    "rejected": ([review(state="rejected")], ""),
    "another environment": ([review(environment="images")], ""),
    "first rejected, then approved": ([review("ada", state="rejected"), review()], "grace"),
}


@pytest.mark.parametrize(("reviews", "login"), REVIEWS.values(), ids=REVIEWS)
def test_promotion_reviewer_approved_its_environment(reviews: list[dict[str, Any]], login: str, tmp_path: Path) -> None:
    """The stub of `gh` filters the API's response with jq, as `gh api --jq` does."""
    (tmp_path / "programs").mkdir()
    gh = tmp_path / "programs" / "gh"
    gh.write_text('#!/usr/bin/env bash\necho "$2" > asked\njq --raw-output "${@: -1}" <<< "$REVIEWS"\n')
    gh.chmod(0o755)
    asked = {"GITHUB_REPOSITORY": "o/r", "GITHUB_RUN_ID": "5", "REVIEWS": json.dumps(reviews)}

    found = Ran(tmp_path, script("promote.yml", "gh api"), **asked)

    assert (tmp_path / "asked").read_text() == "repos/o/r/actions/runs/5/approvals\n"
    assert found.status == (0 if login else 1)
    assert found.outputs == ({"login": login} if login else {})
    assert login or "Protect the environment production" in found.done.stdout


# The image


def test_image_with_vulnerability_is_not_kept() -> None:
    document = read(GITHUB / "workflows" / "image.yml")
    used = [(name, step.get("uses", "").partition("@")[0], step.get("with")) for name, step in steps(document)]
    built = [(action, given) for name, action, given in used if name == "build" and action]
    [proof] = [given for _, action, given in used if action == "actions/attest-build-provenance"]

    assert [action for action, _ in built] == ["actions/checkout", "anchore/scan-action", "actions/upload-artifact"]
    assert built[1][1] == {"image": "ml-platform:webserver", "severity-cutoff": "high", "only-fixed": True}
    # All targets share the layers of the scanned one and add none.
    targets = (PROJECT_ROOT / "Dockerfile").read_text().partition("FROM base AS webserver")[2]
    assert not re.search(r"^(RUN|COPY|ADD) ", targets, re.MULTILINE)
    assert proof == {
        "subject-name": "${{ steps.push.outputs.name }}",
        "subject-digest": "${{ steps.push.outputs.digest }}",
        "push-to-registry": True,
    }


ENGINE = """#!/usr/bin/env bash
printf '%s' "$1" >> "$CALLS"
printf '|%s' "${@:2}" >> "$CALLS"
printf '\\n' >> "$CALLS"
case "$1" in
    volume) [ "$2" = rm ] || echo volume ;;
    run) echo container ;;
    inspect) head -n 1 statuses; sed -i 1d statuses ;;
    logs) echo "what it said" ;;
esac
"""


def healthy(folder: Path, statuses: list[str], *targets: str) -> Ran:
    (folder / "programs").mkdir()
    for name, text in (("engine", ENGINE), ("sleep", "#!/bin/sh\n")):
        (folder / "programs" / name).write_text(text)
        (folder / "programs" / name).chmod(0o755)
    (folder / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    return Ran(folder, f'exec "{GITHUB / "scripts" / "healthy.sh"}" engine {" ".join(targets)}')


def test_image_target_is_started_with_restrictions(tmp_path: Path) -> None:
    ran = healthy(tmp_path, ["starting", "starting", "healthy", "healthy"], "webserver", "serving")

    assert ran.status == 0, ran.done.stderr
    assert ran.done.stdout == "webserver: healthy\nserving: healthy\n"
    started = [call for call in ran.calls if call[0] == "run"]
    assert [call[-1] for call in started] == ["ml-platform:webserver", "ml-platform:serving"]
    for call in started:
        assert {"--read-only", "no-new-privileges", "--cap-drop", "ALL", "volume:/srv/ml-platform/var"} <= set(call)
    assert [call[0] for call in ran.calls].count("inspect") == 4
    assert [call for call in ran.calls if "rm" in call] == [
        ["rm", "--force", "container"],
        ["volume", "rm", "volume"],
    ] * 2


@pytest.mark.parametrize("statuses", [["starting", "unhealthy"], ["starting"] * 200], ids=["unhealthy", "never"])
def test_image_unhealthy_target_fails_with_log(statuses: list[str], tmp_path: Path) -> None:
    ran = healthy(tmp_path, statuses, "webserver", "serving")

    assert ran.status == 1
    assert ran.done.stdout == f"webserver: {statuses[-1]}\nwhat it said\n"
    # Its container and volume are removed, and no other target is started.
    assert ran.calls[-2:] == [["rm", "--force", "container"], ["volume", "rm", "volume"]]
    assert not re.search("serving", str(ran.calls))
