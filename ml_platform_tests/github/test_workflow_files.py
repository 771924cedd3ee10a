"""The workflows' text: rights, pinned actions, text in shells; and the script that writes the comment."""

import html
import importlib.util
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from ml_platform.ci import pr_comment as quality_comment
from ml_platform.settings import PROJECT_ROOT
from ml_platform_tests.support import workflow_files
from ml_platform_tests.support.workflow_files import ACTIONS, GITHUB, STUBS, WORKFLOWS, read, steps

FILES = [*WORKFLOWS, *ACTIONS]
# Workflows that run the code of pull requests, also from forks.
OPEN = ["ci.yml", "quality-gates.yml"]
# Workflows with a secret or a token that can write.
RELEASES = ["image.yml", "promote.yml", "quality-report.yml", "retrain.yml"]
PINNED = re.compile(r"uses: (?:\./\S+|[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+)$")
WRITING = {
    "image.yml": {"publish": {"attestations", "id-token", "packages"}},
    "promote.yml": {"promote": {"id-token"}},
    "quality-report.yml": {"comment": {"pull-requests"}},
}


def by_name(name: str) -> dict[str, Any]:
    return read(GITHUB / "workflows" / name)


def named(file: Path) -> str:
    return str(file.relative_to(GITHUB))


def unpinned(text: str) -> list[str]:
    """Return the lines that use an action without a full commit and a version comment."""
    used = [line.strip().removeprefix("- ") for line in text.splitlines() if re.search(r"^\s*(- )?uses:", line)]
    return [line for line in used if not PINNED.fullmatch(line)]


def test_workflows_are_open_or_release() -> None:
    assert sorted(file.name for file in WORKFLOWS) == sorted([*OPEN, *RELEASES])


@pytest.mark.fault("C4")
@pytest.mark.parametrize("file", FILES, ids=named)
def test_actions_are_pinned_by_full_commit(file: Path) -> None:
    assert unpinned(file.read_text()) == []
    assert "uses:" in file.read_text()


@pytest.mark.fault("C4")
@pytest.mark.parametrize(
    "used",
    [
        "x/y@v1",
        "x/y@main",
        "x/y@0057852 # v4.3.0",
        "x/y@0057852bfaa89a56745cba8c7296529d2fc39830",
        "docker://x:1",
        "x/y",
    ],
)
def test_unpinned_actions_are_found(used: str) -> None:
    assert unpinned(f"    steps:\n      - uses: {used}\n") == [f"uses: {used}"]


@pytest.mark.fault("C4")
def test_zizmor_refuses_unpinned_action(tmp_path: Path) -> None:
    workflow = tmp_path / ".github" / "workflows" / "x.yml"
    workflow.parent.mkdir(parents=True)
    text = (GITHUB / "workflows" / "ci.yml").read_text()
    workflow.write_text(text.replace("checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8 # v5.0.0", "checkout@v1"))
    zizmor = Path(sys.executable).parent / "zizmor"

    done = subprocess.run([zizmor, "--offline", str(workflow)], capture_output=True, text=True)

    assert done.returncode != 0
    assert "unpinned-uses" in done.stdout


@pytest.mark.parametrize("file", WORKFLOWS, ids=named)
def test_workflow_tokens_have_minimal_rights(file: Path) -> None:
    document = read(file)

    assert document["permissions"] == {}
    for name, job in document["jobs"].items():
        wanted = {right for right, level in job["permissions"].items() if level != "read"}
        assert wanted == WRITING.get(file.name, {}).get(name, set()), name


@pytest.mark.parametrize("file", WORKFLOWS, ids=named)
def test_checkouts_persist_no_credentials(file: Path) -> None:
    checkouts = [step for _, step in steps(read(file)) if step.get("uses", "").startswith("actions/checkout@")]

    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize("file", WORKFLOWS, ids=named)
def test_pull_requests_never_get_base_rights(file: Path) -> None:
    document = read(file)

    assert "pull_request_target" not in document["on"]
    if "workflow_run" in document["on"]:  # it must check out the default branch, nothing from the pull request
        checkouts = [step for _, step in steps(document) if "checkout@" in step.get("uses", "")]
        assert [set(step["with"]) & {"ref", "repository"} for step in checkouts] == [set()]


@pytest.mark.fault("C2")
@pytest.mark.parametrize("file", FILES, ids=named)
def test_scripts_receive_text_only_by_environment(file: Path) -> None:
    scripts = [step["run"] for _, step in steps(read(file)) if "run" in step]

    assert [script for script in scripts if "${{" in script] == []
    assert not re.search(r"github-script|eval |bash -c", file.read_text())


@pytest.mark.fault("C1")
@pytest.mark.parametrize("name", OPEN)
def test_open_workflows_have_no_secrets(name: str) -> None:
    document, text = by_name(name), (GITHUB / "workflows" / name).read_text()

    assert not re.search(r"secrets\.|github\.token|GITHUB_TOKEN", text)
    assert all("environment" not in job for job in document["jobs"].values())
    assert "pull_request" in document["on"]


@pytest.mark.parametrize("name", ["promote.yml", "retrain.yml"])
def test_secrets_need_an_environment(name: str) -> None:
    for job, step in steps(by_name(name)):
        if "secrets." in json.dumps(step):
            assert "environment" in by_name(name)["jobs"][job]


@pytest.mark.fault("C3")
@pytest.mark.parametrize("name", RELEASES)
def test_release_jobs_restore_no_cache(name: str) -> None:
    for _, step in steps(by_name(name)):
        assert "actions/cache" not in step.get("uses", "")
        assert "cache" not in step.get("with", {})
        assert not re.search(r"--cache-from|type=gha", step.get("run", ""))


@pytest.mark.fault("C3")
def test_only_main_saves_the_package_cache() -> None:
    saving = [
        (file.name, step) for file in FILES for _, step in steps(read(file)) if "cache/save@" in step.get("uses", "")
    ]
    whole = [
        step["uses"] for file in FILES for _, step in steps(read(file)) if "actions/cache@" in step.get("uses", "")
    ]
    [(name, step)] = saving

    assert whole == []
    assert name == "ci.yml"
    assert step["if"] == "github.event_name == 'push' && github.ref == 'refs/heads/main'"
    assert step["with"]["path"] == "~/.cache/pip/http-v2"
    makefile = (PROJECT_ROOT / "Makefile").read_text()
    assert len(re.findall(r"pip install .*--requirement|pip install .*-r ", makefile)) == 2
    assert len(re.findall(r"--require-hashes", makefile)) == 2


def test_decision_job_always_runs() -> None:
    jobs = by_name("quality-gates.yml")["jobs"]

    assert jobs["decision"]["if"] == "always()"
    assert set(jobs["decision"]["needs"]) == set(jobs) - {"decision"}
    assert "paths" not in (by_name("quality-gates.yml")["on"]["pull_request"] or {})


DECISIONS = {
    "nothing affected": ("success", "[]", "skipped", "skipped", 0),
    "all passed": ("success", '[{"model":"churn"}]', "success", "success", 0),
    "a gate failed": ("success", '[{"model":"churn"}]', "failure", "success", 1),
    "the report failed": ("success", '[{"model":"churn"}]', "success", "failure", 1),
    "gates were skipped": ("success", '[{"model":"churn"}]', "skipped", "skipped", 1),
    "affected models unknown": ("failure", "", "skipped", "skipped", 1),
    "affected models unknown, but listed as none": ("failure", "[]", "skipped", "skipped", 1),
    "gates without models failed": ("success", "[]", "failure", "skipped", 1),
    "affected models failed after listing": ("failure", '[{"model":"churn"}]', "success", "success", 1),
    "canceled": ("success", '[{"model":"churn"}]', "cancelled", "skipped", 1),
}


@pytest.mark.fault("C5")
@pytest.mark.parametrize("case", DECISIONS.values(), ids=DECISIONS)
def test_decision_succeeds_only_if_required_jobs_did(
    case: tuple[str, str, str, str, int],
) -> None:
    *given, status = case
    [script] = [step["run"] for job, step in steps(by_name("quality-gates.yml")) if job == "decision"]
    environment = dict(zip(("AFFECTED", "MODELS", "GATES", "REPORT"), map(str, given), strict=True))

    done = subprocess.run(["bash", "-eo", "pipefail", "-c", script], env={**environment, "PATH": os.environ["PATH"]})

    assert done.returncode == status


def test_image_and_workflows_use_same_python() -> None:
    [step] = [step for _, step in steps(read(ACTIONS[0])) if "setup-python" in step.get("uses", "")]
    base = re.search(
        r"^ARG PYTHON_IMAGE=python:([\d.]+)-slim-bookworm@sha256:[0-9a-f]{64}$", dockerfile(), re.MULTILINE
    )

    assert base is not None
    assert base[1] == step["with"]["python-version"]


def dockerfile() -> str:
    return (PROJECT_ROOT / "Dockerfile").read_text()


def test_image_requires_hashes_and_unprivileged_user() -> None:
    lines = dockerfile().splitlines()
    stages = [line.split() for line in lines if line.startswith("FROM ")]

    assert re.search(r"pip install --require-hashes .*--requirement requirements.lock", dockerfile())
    assert lines.index("USER 10001:10001") < lines.index("FROM base AS webserver")
    assert [stage[-1] for stage in stages if stage[1] == "base"] == ["webserver", "daemon", "code-location", "serving"]
    assert sum(line.startswith("HEALTHCHECK ") for line in lines) == 4
    assert not re.search(r"secret|password|token", dockerfile(), re.IGNORECASE)
    # The image contains only files that are listed, not the rest of the checkout.
    assert (PROJECT_ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def test_dependabot_covers_all_action_folders() -> None:
    [actions, _] = yaml.safe_load((GITHUB / "dependabot.yml").read_text())["updates"]

    assert actions["directories"] == ["/", "/.github/actions/*"]


def test_foreign_actions_have_stubs_with_same_inputs() -> None:
    for file in FILES:
        for _, step in steps(read(file)):
            name, _, ref = step.get("uses", "").partition("@")
            if not ref:
                continue
            stub = STUBS.joinpath(*name.split("/")[1:]) / "action.yml"
            assert set(step.get("with", {})) <= set(yaml.safe_load(stub.read_text()).get("inputs", {})), name


# The comment


class GitHub:
    """A fake of GitHub's API for pull requests and comments, which stores all requests."""

    def __init__(self, pulls: list[dict[str, Any]], comments: list[dict[str, Any]]) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.tokens: list[str | None] = []
        self.moved_to = ""
        outer = self

        def found(path: str) -> list[dict[str, Any]]:
            query = dict(urllib.parse.parse_qsl(path.partition("?")[2]))
            size, page = int(query.get("per_page", 30)), int(query.get("page", 1))
            return (pulls if "/pulls?" in path else comments)[size * (page - 1) : size * page]

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(size)) if size else None
                outer.asked.append((self.command, self.path, body))
                outer.tokens.append(self.headers["Authorization"])
                known = self.headers["Authorization"] == "Bearer t0ken"
                said = json.dumps((found(self.path) if self.command == "GET" else {}) if known else None).encode()
                self.send_response(302 if outer.moved_to else 200)
                if outer.moved_to:
                    self.send_header("Location", outer.moved_to)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            do_GET = do_POST = do_PATCH = _answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "GitHub":
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def written(self) -> list[tuple[str, str, Any]]:
        """Requests that write."""
        return [asked for asked in self.asked if asked[0] != "GET"]


HEAD = "a" * 40
PULL = {"number": 7, "head": {"sha": HEAD}}
MARK = "<!-- ml-platform quality gates -->"


def post(
    github: GitHub, report: Path, *, before: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    known = {
        "GITHUB_API_URL": github.url,
        "GITHUB_REPOSITORY": "o/r",
        "GH_TOKEN": "t0ken",
        "CONCLUSION": "failure",
        "HEAD_OWNER": "fork",
        "HEAD_BRANCH": "branch",
        "HEAD_SHA": HEAD,
        "RUN_URL": "https://example.org/run",
    }
    script = GITHUB / "scripts" / "comment.py"
    return subprocess.run(
        [sys.executable, "-I", str(script), str(report)],
        env={**known, **environment},
        capture_output=True,
        text=True,
        preexec_fn=before,
    )


@pytest.fixture
def report(tmp_path: Path) -> Path:
    file = tmp_path / "report.md"
    file.write_text("# churn\nauc_roc fell")
    return file


def test_first_comment_shows_outcome_and_report(report: Path) -> None:
    with GitHub([PULL], []) as github:
        done = post(github, report)

    assert done.returncode == 0, done.stderr
    [(method, path, body)] = github.written
    assert (method, path) == ("POST", "/repos/o/r/issues/7/comments")
    assert body["body"].startswith(
        f"{MARK}\n**Quality gates: failure** for aaaaaaaaaaaa ([run](https://example.org/run))"
    )
    assert body["body"].endswith("# churn\nauc_roc fell")


def by(login: str | None, number: int, body: str | None = f"{MARK} before") -> dict[str, Any]:
    return {"id": number, "user": login and {"login": login}, "body": body}


def test_second_run_updates_only_its_comment(report: Path) -> None:
    """Not a user's comment with the mark, nor one of a deleted account, nor the bot's that only quotes the mark."""
    others = [
        by("grace", 1),
        by(None, 2),
        by("github-actions[bot]", 3, None),
        by("github-actions[bot]", 4, f"> {MARK}"),
    ]
    with GitHub([PULL], [*others, by("github-actions[bot]", 5)]) as github:
        post(github, report)

    assert [(method, path) for method, path, _ in github.written] == [("PATCH", "/repos/o/r/issues/comments/5")]


def test_comment_is_found_after_many_pages(report: Path) -> None:
    with GitHub([PULL], [*(by("grace", number) for number in range(250)), by("github-actions[bot]", 999)]) as github:
        post(github, report)

    assert [(method, path) for method, path, _ in github.written] == [("PATCH", "/repos/o/r/issues/comments/999")]
    assert len(github.asked) == 5  # the pull request, three pages, the comment


def test_outdated_commit_gets_no_comment(report: Path) -> None:
    with GitHub([{"number": 7, "head": {"sha": "b" * 40}}], []) as github:
        done = post(github, report)

    assert (done.returncode, github.written) == (0, [])


def posted(tmp_path: Path, text: str | bytes) -> str:
    """Return the comment posted for a report."""
    report = tmp_path / "report.md"
    report.write_bytes(text.encode() if isinstance(text, str) else text)
    with GitHub([PULL], []) as github:
        done = post(github, report)
    assert done.returncode == 0, done.stderr
    return str(github.written[0][2]["body"])


CALLS = [
    "@ada",
    "@Ada",
    "@9",
    "@&#97;da",
    "&#64;ada",
    "&#0064;ada",
    "&#x40;xena",
    "&#X0040;xena",
    "&commat;ada",
    "&#64ada",
    "@<!-- -->ada",
    "&#<!-- -->64;ada",
]


@pytest.mark.parametrize("call", CALLS)
def test_comment_mentions_no_user(call: str, tmp_path: Path) -> None:
    """GitHub finds mentions in the rendered text, in which entities are decoded."""
    rendered = html.unescape(posted(tmp_path, call))

    assert "@" in rendered
    assert not re.search(r"@[A-Za-z0-9]", rendered)


def test_comment_keeps_escaped_platform_text(tmp_path: Path) -> None:
    said = "ada@example.org said f1_score <0.7 & more"

    shown = html.unescape(posted(tmp_path, quality_comment.plain(said)))

    assert shown.replace("\u200b", "").endswith(said)


def test_comment_cannot_be_spoofed_or_endless(tmp_path: Path) -> None:
    body = posted(tmp_path, f"look {MARK}\n<!-- over\nlines -->seen<!-<!-- -->- open " + "x" * 500_000)

    assert (body.count(MARK), body.count("<!--")) == (1, 1)
    assert "lines" not in body
    assert "seen&lt;!-- open xxx" in body
    assert 60_000 < len(body) < 65_536
    assert body.endswith("… cut: the rest is in the run's summary.")


def test_comment_strips_the_reports_mark(tmp_path: Path) -> None:
    assert posted(tmp_path, f"{MARK}\n\n## churn").endswith("(https://example.org/run))\n\n## churn")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("many", ["<!--", "@", "&#", "--><!--"])
def test_comment_hostile_report_is_fast(many: str, tmp_path: Path) -> None:
    assert len(posted(tmp_path, many * 100_000)) < 65_536


def test_comment_huge_report_is_read_partly(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    with report.open("wb") as file:
        file.truncate(8 * 2**30)
    memory = resource.RLIMIT_AS, (2**30, 2**30)
    with GitHub([PULL], []) as github:
        done = post(github, report, before=lambda: resource.setrlimit(*memory))

    assert done.returncode == 0, done.stderr
    assert len(github.written[0][2]["body"]) < 65_536


def test_comment_silent_github_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.spec_from_file_location("comment", GITHUB / "scripts" / "comment.py")
    assert known is not None
    assert known.loader is not None
    script = importlib.util.module_from_spec(known)
    known.loader.exec_module(script)
    monkeypatch.setattr(script, "TIMEOUT", 0.2)
    monkeypatch.setenv("GITHUB_REPOSITORY", "o/r")
    monkeypatch.setenv("GH_TOKEN", "t0ken")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("GITHUB_API_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(TimeoutError):
            script.ask("GET", "pulls")


def test_comment_replaces_invalid_bytes(tmp_path: Path) -> None:
    assert posted(tmp_path, b"churn \xff\xfe fell").endswith("churn \ufffd\ufffd fell")


def test_comment_token_follows_no_redirection(report: Path) -> None:
    with GitHub([], []) as elsewhere, GitHub([PULL], []) as github:
        github.moved_to = f"{elsewhere.url}/x"
        done = post(github, report)

    assert done.returncode != 0
    assert elsewhere.tokens == [None]
    assert "t0ken" not in done.stdout + done.stderr


def test_comment_without_report_is_posted(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the runner")
    (tmp_path / "report.md").symlink_to(tmp_path / "secret")
    with GitHub([PULL], []) as github:
        post(github, tmp_path / "report.md")
        post(github, tmp_path / "none.md")

    assert ["No report was made" in body["body"] for _, _, body in github.written] == [True, True]


@pytest.mark.fault("C2")
def test_comment_hostile_branch_name_is_text(report: Path, tmp_path: Path) -> None:
    branch = '"; touch x #&state=closed'
    with GitHub([PULL], []) as github:
        done = post(github, report, HEAD_BRANCH=branch)

    assert done.returncode == 0
    assert (
        github.asked[0][1] == "/repos/o/r/pulls?state=open&head=fork%3A%22%3B+touch+x+%23%26state%3Dclosed&per_page=100"
    )
    assert list(tmp_path.iterdir()) == [report]


# By act, as GitHub would


@pytest.fixture
def runner(tmp_path: Path) -> workflow_files.Runner:
    """The workflows of the last commit with the working tree's changes."""
    return workflow_files.Runner(folder=tmp_path, **workflow_files.snapshot(tmp_path / "repository"))


@pytest.mark.fault("C2")
def test_comment_job_uses_nothing_from_pull_request(runner: workflow_files.Runner) -> None:
    """act runs the whole job, with an artifact of the other run and a branch whose name is a command."""
    (runner.artifacts / "report").mkdir(parents=True)
    (runner.artifacts / "report" / "report.md").write_text("auc_roc fell")
    run = {
        "event": "pull_request",
        "conclusion": "failure",
        "head_branch": '"; touch x #',
        "head_sha": HEAD,
        "html_url": "https://example.org/run",
        "id": 5,
        "head_repository": {"full_name": "fork/r", "owner": {"login": "fork"}},
    }
    with GitHub([PULL], []) as github:
        runner.environment["GITHUB_API_URL"] = github.url
        done = runner.run("quality-report.yml", "workflow_run", {"workflow_run": run}, "--secret", "GITHUB_TOKEN=t0ken")

    assert done.returncode == 0, done.stdout
    assert [body["body"].endswith("auc_roc fell") for _, _, body in github.written] == [True]
    assert list(runner.folder.rglob("x")) == []
