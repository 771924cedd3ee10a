"""What the workflows may do, by their text: who may write, what is pinned, which text reaches a shell."""

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

from ml_platform.quality import comment as quality_comment
from ml_platform_tests import workflow_files
from ml_platform_tests.workflow_files import ACTIONS, GITHUB, ROOT, STUBS, WORKFLOWS, read, steps

FILES = [*WORKFLOWS, *ACTIONS]
# What runs the code of pull requests, a fork's too.
OPEN = ["ci.yml", "quality-gates.yml"]
# What holds a secret or a token that writes.
RELEASES = ["image.yml", "promote.yml", "quality-report.yml", "retrain.yml"]
PINNED = re.compile(r"uses: (?:\./\S+|[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+)$")
WRITING = {
    "image.yml": {"publish": {"attestations", "id-token", "packages"}},
    "quality-report.yml": {"comment": {"pull-requests"}},
}


def by_name(name: str) -> dict[str, Any]:
    return read(GITHUB / "workflows" / name)


def named(file: Path) -> str:
    return str(file.relative_to(GITHUB))


def unpinned(text: str) -> list[str]:
    """Return the lines that use an action whose commit is not pinned with its version beside it."""
    used = [line.strip().removeprefix("- ") for line in text.splitlines() if re.search(r"^\s*(- )?uses:", line)]
    return [line for line in used if not PINNED.fullmatch(line)]


def test_every_workflow_is_among_those_that_are_open_or_release() -> None:
    assert sorted(file.name for file in WORKFLOWS) == sorted([*OPEN, *RELEASES])


@pytest.mark.fault("C4")
@pytest.mark.parametrize("file", FILES, ids=named)
def test_actions_are_pinned_by_their_whole_commit_with_the_version_beside_it(file: Path) -> None:
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
def test_what_is_not_pinned_is_found(used: str) -> None:
    assert unpinned(f"    steps:\n      - uses: {used}\n") == [f"uses: {used}"]


@pytest.mark.fault("C4")
def test_the_linter_that_make_lint_runs_refuses_a_tag(tmp_path: Path) -> None:
    workflow = tmp_path / ".github" / "workflows" / "x.yml"
    workflow.parent.mkdir(parents=True)
    text = (GITHUB / "workflows" / "ci.yml").read_text()
    workflow.write_text(text.replace("checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8 # v5.0.0", "checkout@v1"))
    zizmor = Path(sys.executable).parent / "zizmor"

    done = subprocess.run([zizmor, "--offline", str(workflow)], capture_output=True, text=True)

    assert done.returncode != 0
    assert "unpinned-uses" in done.stdout


@pytest.mark.parametrize("file", WORKFLOWS, ids=named)
def test_no_token_may_do_anything_but_what_a_job_says(file: Path) -> None:
    document = read(file)

    assert document["permissions"] == {}
    for name, job in document["jobs"].items():
        wanted = {right for right, level in job["permissions"].items() if level != "read"}
        assert wanted == WRITING.get(file.name, {}).get(name, set()), name


@pytest.mark.parametrize("file", WORKFLOWS, ids=named)
def test_a_checkout_leaves_no_token_behind(file: Path) -> None:
    checkouts = [step for _, step in steps(read(file)) if step.get("uses", "").startswith("actions/checkout@")]

    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize("file", WORKFLOWS, ids=named)
def test_a_pull_request_never_meets_the_rights_of_its_base(file: Path) -> None:
    document = read(file)

    assert "pull_request_target" not in document["on"]
    if "workflow_run" in document["on"]:  # its checkout is the default branch: nothing of the pull request is named
        checkouts = [step for _, step in steps(document) if "checkout@" in step.get("uses", "")]
        assert [set(step["with"]) & {"ref", "repository"} for step in checkouts] == [set()]


@pytest.mark.fault("C2")
@pytest.mark.parametrize("file", FILES, ids=named)
def test_text_reaches_a_shell_through_the_environment_only(file: Path) -> None:
    scripts = [step["run"] for _, step in steps(read(file)) if "run" in step]

    assert [script for script in scripts if "${{" in script] == []
    assert not re.search(r"github-script|eval |bash -c", file.read_text())


@pytest.mark.fault("C1")
@pytest.mark.parametrize("name", OPEN)
def test_what_runs_a_pull_requests_code_knows_no_secret(name: str) -> None:
    document, text = by_name(name), (GITHUB / "workflows" / name).read_text()

    assert not re.search(r"secrets\.|github\.token|GITHUB_TOKEN", text)
    assert all("environment" not in job for job in document["jobs"].values())
    assert "pull_request" in document["on"]


@pytest.mark.parametrize("name", ["promote.yml", "retrain.yml"])
def test_secrets_are_those_of_an_environment(name: str) -> None:
    for job, step in steps(by_name(name)):
        if "secrets." in json.dumps(step):
            assert "environment" in by_name(name)["jobs"][job]


@pytest.mark.fault("C3")
@pytest.mark.parametrize("name", RELEASES)
def test_a_job_that_releases_restores_no_cache(name: str) -> None:
    for _, step in steps(by_name(name)):
        assert "actions/cache" not in step.get("uses", "")
        assert "cache" not in step.get("with", {})
        assert not re.search(r"--cache-from|type=gha", step.get("run", ""))


@pytest.mark.fault("C3")
def test_a_cache_is_saved_by_main_alone_and_holds_what_hashes_are_asked_of() -> None:
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
    makefile = (ROOT / "Makefile").read_text()
    assert len(re.findall(r"pip install .*--requirement|pip install .*-r ", makefile)) == 2
    assert len(re.findall(r"--require-hashes", makefile)) == 2


def test_branch_protection_has_one_job_that_always_says_something() -> None:
    jobs = by_name("quality-gates.yml")["jobs"]

    assert jobs["decision"]["if"] == "always()"
    assert set(jobs["decision"]["needs"]) == set(jobs) - {"decision"}
    assert "paths" not in (by_name("quality-gates.yml")["on"]["pull_request"] or {})


DECISIONS = {
    "nothing affected": ("success", "[]", "skipped", "skipped", 0),
    "all passed": ("success", '[{"model":"churn"}]', "success", "success", 0),
    "a gate is red": ("success", '[{"model":"churn"}]', "failure", "success", 1),
    "the report is red": ("success", '[{"model":"churn"}]', "success", "failure", 1),
    "gates were skipped": ("success", '[{"model":"churn"}]', "skipped", "skipped", 1),
    "nobody knows what is affected": ("failure", "", "skipped", "skipped", 1),
    "nobody knows, and says that nothing is": ("failure", "[]", "skipped", "skipped", 1),
    "gates of nothing are red": ("success", "[]", "failure", "skipped", 1),
    "gates of a list that broke off": ("failure", '[{"model":"churn"}]', "success", "success", 1),
    "canceled": ("success", '[{"model":"churn"}]', "cancelled", "skipped", 1),
}


@pytest.mark.fault("C5")
@pytest.mark.parametrize("case", DECISIONS.values(), ids=DECISIONS)
def test_the_decision_is_green_only_if_everything_that_had_to_run_succeeded(
    case: tuple[str, str, str, str, int],
) -> None:
    *given, status = case
    [script] = [step["run"] for job, step in steps(by_name("quality-gates.yml")) if job == "decision"]
    environment = dict(zip(("AFFECTED", "MODELS", "GATES", "REPORT"), map(str, given), strict=True))

    done = subprocess.run(["bash", "-eo", "pipefail", "-c", script], env={**environment, "PATH": os.environ["PATH"]})

    assert done.returncode == status


def test_the_python_of_the_image_is_that_of_the_workflows() -> None:
    [step] = [step for _, step in steps(read(ACTIONS[0])) if "setup-python" in step.get("uses", "")]
    base = re.search(
        r"^ARG PYTHON_IMAGE=python:([\d.]+)-slim-bookworm@sha256:[0-9a-f]{64}$", dockerfile(), re.MULTILINE
    )

    assert base is not None
    assert base[1] == step["with"]["python-version"]


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def test_the_image_installs_by_hashes_and_runs_as_nobody_special() -> None:
    lines = dockerfile().splitlines()
    stages = [line.split() for line in lines if line.startswith("FROM ")]

    assert re.search(r"pip install --require-hashes .*--requirement requirements.lock", dockerfile())
    assert lines.index("USER 10001:10001") < lines.index("FROM base AS webserver")
    assert [stage[-1] for stage in stages if stage[1] == "base"] == ["webserver", "daemon", "code-location", "serving"]
    assert sum(line.startswith("HEALTHCHECK ") for line in lines) == 4
    assert not re.search(r"secret|password|token", dockerfile(), re.IGNORECASE)
    # Whatever stands in a checkout, a layer gets what is named.
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def test_dependabot_looks_after_every_folder_of_actions() -> None:
    [actions, _] = yaml.safe_load((GITHUB / "dependabot.yml").read_text())["updates"]

    assert actions["directories"] == ["/", "/.github/actions/*"]


def test_every_foreign_action_has_a_stub_that_takes_what_it_is_given() -> None:
    for file in FILES:
        for _, step in steps(read(file)):
            name, _, ref = step.get("uses", "").partition("@")
            if not ref:
                continue
            stub = STUBS.joinpath(*name.split("/")[1:]) / "action.yml"
            assert set(step.get("with", {})) <= set(yaml.safe_load(stub.read_text()).get("inputs", {})), name


# The comment


class GitHub:
    """The part of GitHub's API that the comment needs, on loopback; it keeps what it is sent."""

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
                """Say nothing."""

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
        """What was posted or changed."""
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


def test_the_first_comment_says_how_the_gates_ended_and_what_the_report_says(report: Path) -> None:
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


def test_a_second_run_updates_the_comment_and_nobody_elses(report: Path) -> None:
    """Neither a person's with the mark, nor one whose account is gone, nor the bot's that only quotes the mark."""
    others = [
        by("somebody", 1),
        by(None, 2),
        by("github-actions[bot]", 3, None),
        by("github-actions[bot]", 4, f"> {MARK}"),
    ]
    with GitHub([PULL], [*others, by("github-actions[bot]", 5)]) as github:
        post(github, report)

    assert [(method, path) for method, path, _ in github.written] == [("PATCH", "/repos/o/r/issues/comments/5")]


def test_the_comment_is_found_behind_many_others(report: Path) -> None:
    with GitHub([PULL], [*(by("somebody", number) for number in range(250)), by("github-actions[bot]", 999)]) as github:
        post(github, report)

    assert [(method, path) for method, path, _ in github.written] == [("PATCH", "/repos/o/r/issues/comments/999")]
    assert len(github.asked) == 5  # the pull request, three pages, the comment


def test_a_commit_that_is_no_longer_the_head_gets_no_comment(report: Path) -> None:
    with GitHub([{"number": 7, "head": {"sha": "b" * 40}}], []) as github:
        done = post(github, report)

    assert (done.returncode, github.written) == (0, [])


def posted(tmp_path: Path, text: str | bytes) -> str:
    """Return the comment that comes of a report."""
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
def test_a_report_calls_nobody_however_the_sign_is_written(call: str, tmp_path: Path) -> None:
    """GitHub looks for names after the sign in what was rendered, where an entity has become what it stands for."""
    rendered = html.unescape(posted(tmp_path, call))

    assert "@" in rendered
    assert not re.search(r"@[A-Za-z0-9]", rendered)


def test_what_the_platform_wrote_stays_as_it_is(tmp_path: Path) -> None:
    said = "ada@example.org said f1_score <0.7 & more"

    shown = html.unescape(posted(tmp_path, quality_comment.plain(said)))

    assert shown.replace("\u200b", "").endswith(said)


def test_a_report_can_neither_pass_for_another_nor_be_endless(tmp_path: Path) -> None:
    body = posted(tmp_path, f"look {MARK}\n<!-- over\nlines -->seen<!-<!-- -->- open " + "x" * 500_000)

    assert (body.count(MARK), body.count("<!--")) == (1, 1)
    assert "lines" not in body
    assert "seen&lt;!-- open xxx" in body
    assert 60_000 < len(body) < 65_536
    assert body.endswith("… cut: the rest is in the run's summary.")


def test_the_report_starts_where_its_own_mark_ended(tmp_path: Path) -> None:
    assert posted(tmp_path, f"{MARK}\n\n## churn").endswith("(https://example.org/run))\n\n## churn")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("many", ["<!--", "@", "&#", "--><!--"])
def test_a_report_that_is_made_to_be_slow_is_not(many: str, tmp_path: Path) -> None:
    assert len(posted(tmp_path, many * 100_000)) < 65_536


def test_a_report_larger_than_the_machine_is_read_as_far_as_it_is_shown(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    with report.open("wb") as file:
        file.truncate(8 * 2**30)
    memory = resource.RLIMIT_AS, (2**30, 2**30)
    with GitHub([PULL], []) as github:
        done = post(github, report, before=lambda: resource.setrlimit(*memory))

    assert done.returncode == 0, done.stderr
    assert len(github.written[0][2]["body"]) < 65_536


def test_github_is_not_waited_for_endlessly(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_is_no_text_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    assert posted(tmp_path, b"churn \xff\xfe fell").endswith("churn \ufffd\ufffd fell")


def test_the_token_does_not_follow_a_redirection(report: Path) -> None:
    with GitHub([], []) as elsewhere, GitHub([PULL], []) as github:
        github.moved_to = f"{elsewhere.url}/x"
        done = post(github, report)

    assert done.returncode != 0
    assert elsewhere.tokens == [None]
    assert "t0ken" not in done.stdout + done.stderr


def test_without_a_report_the_comment_says_so(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the runner")
    (tmp_path / "report.md").symlink_to(tmp_path / "secret")
    with GitHub([PULL], []) as github:
        post(github, tmp_path / "report.md")
        post(github, tmp_path / "none.md")

    assert ["No report was made" in body["body"] for _, _, body in github.written] == [True, True]


@pytest.mark.fault("C2")
def test_a_branch_that_is_a_command_is_text(report: Path, tmp_path: Path) -> None:
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
    """The workflows as they stand in the last commit, with what the working tree changed since."""
    return workflow_files.Runner(folder=tmp_path, **workflow_files.snapshot(tmp_path / "repository"))


@pytest.mark.fault("C2")
def test_the_comments_job_runs_without_anything_of_the_pull_request(runner: workflow_files.Runner) -> None:
    """The whole job by act: an artifact from the other run, a branch whose name is a command."""
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
