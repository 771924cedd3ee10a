"""Read and run the workflows: `act` executes their jobs without Docker, foreign actions are stubs in `actions/`."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ml_platform.settings import PROJECT_ROOT

GITHUB = PROJECT_ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
ACTIONS = sorted(GITHUB.glob("actions/*/action.yml"))
STUBS = Path(__file__).parent / "actions"
ACT = shutil.which("act") or shutil.which("act", path=str(Path(sys.executable).parent))


def read(file: Path) -> dict[str, Any]:
    """Return a workflow; its key `on`, which YAML takes for a truth value, as `on`."""
    document: dict[Any, Any] = yaml.safe_load(file.read_text())
    return {"on" if key is True else str(key): value for key, value in document.items()}


def steps(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every step of a workflow or a composite action with the name of its job."""
    for name, job in document.get("jobs", {}).items():
        for step in job["steps"]:
            yield name, step
    for step in document.get("runs", {}).get("steps", []):
        yield "action", step


def foreign_actions() -> set[tuple[str, str]]:
    """Return owner/name and ref of every foreign action."""
    found = set()
    for file in (*WORKFLOWS, *ACTIONS):
        for _, step in steps(read(file)):
            name, _, ref = step.get("uses", "").partition("@")
            if ref:
                found.add(("/".join(name.split("/")[:2]), ref))
    return found


def snapshot(folder: Path) -> dict[str, Any]:
    """Make a repository of this one's files as they are now, with one commit; return the arguments of `Runner`."""
    listed = subprocess.run(
        ["git", "-C", str(PROJECT_ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0")[:-1]:
        if (PROJECT_ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT_ROOT / name, folder / name)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    return {"repository": folder, "commit": commit(folder, "as it stands")}


def git(folder: Path, *arguments: str) -> str:
    """Run git in a repository of a test; return what it prints."""
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, env={**os.environ, **who}, check=True
    )
    return done.stdout.strip()


def commit(folder: Path, message: str) -> str:
    """Commit everything in a repository of a test; return the commit."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


@dataclass(kw_only=True)
class Runner:
    """Runs workflows of a clone in a folder.

    Parameters
    ----------
    folder : Path
        The jobs' output: artifacts, records of the stubs, workspaces.
    repository : Path
        The repository that the stub of actions/checkout clones.
    commit : str
    programs : Path or None
        A folder of programs that come first on the path, as on GitHub's runners.
    """

    folder: Path
    repository: Path
    commit: str
    programs: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def artifacts(self) -> Path:
        """Folder of the stubs of upload-artifact and download-artifact."""
        return self.folder / "artifacts"

    @property
    def log(self) -> list[str]:
        """Records of the other stubs."""
        file = self.folder / "stubs.log"
        return file.read_text().splitlines() if file.exists() else []

    def run(
        self, workflow: str, event: str, payload: dict[str, Any] | None = None, *options: str, seconds: int = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a workflow for an event; its output is both streams."""
        assert ACT is not None
        self.artifacts.mkdir(parents=True, exist_ok=True)
        (self.folder / "event.json").write_text(json.dumps(payload or {}))
        checkout = self.folder / "top"
        if not checkout.exists():
            subprocess.run(["git", "clone", "--quiet", str(self.repository), str(checkout)], check=True)
            subprocess.run(["git", "-C", str(checkout), "checkout", "--quiet", self.commit], check=True)
        arguments = [ACT, event, "--workflows", f".github/workflows/{workflow}", "--eventpath", "../event.json"]
        arguments += [
            "--platform",
            "ubuntu-24.04=-self-hosted",
            "--pull=false",
            "--no-cache-server",
            "--no-skip-checkout",
        ]
        arguments += ["--action-cache-path", str(self.folder / "cache"), "--rm", "--concurrent-jobs", "1"]
        for name, ref in sorted(foreign_actions()):
            arguments += ["--local-repository", f"{name}@{ref}={STUBS / name.split('/')[1]}"]
        for name, value in {**self._stubs(), **self.environment}.items():
            arguments += ["--env", f"{name}={value}"]
        path = os.pathsep.join([*([str(self.programs)] if self.programs else []), os.environ["PATH"]])
        return subprocess.run(
            [*arguments, *options],
            cwd=checkout,
            env={"PATH": path, "HOME": str(self.folder), "LANG": "C.UTF-8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )

    def _stubs(self) -> dict[str, str]:
        return {
            "STUB_ARTIFACTS": str(self.artifacts),
            "STUB_COMMIT": self.commit,
            "STUB_ENVIRONMENT": sys.prefix,
            "STUB_LOG": str(self.folder / "stubs.log"),
            "STUB_REPOSITORY": str(self.repository),
        }


def outputs(text: str) -> list[str]:
    """Return the output lines of a run's steps, without act's own."""
    return re.findall(r"^\[[^\]]*\]\s+\| (.*)$", text, flags=re.MULTILINE)
