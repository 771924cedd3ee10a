"""A deployment that is thrown away, and the commands that people run in it, with the code of one folder.

Nothing of the real deployment is read or written: home, databases, MLflow's store and Dagster's records stand in one
temporary folder, and no process gets a variable that leads elsewhere.
"""

import json
import os
import re
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_platform.errors import TrialError
from ml_platform.records import sha256_text

LOOK = Path(__file__).with_name("look.py")
# What leads to a deployment, a registry, a runner or another repository. A model's code may be anybody's.
ELSEWHERE = ("ML_PLATFORM_", "MLFLOW_", "DAGSTER_", "AWS_", "GITHUB_", "ACTIONS_", "RUNNER_", "INPUT_", "GIT_")
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|PRIVATE_KEY", re.IGNORECASE)
APPROVER = "quality-gates"
EXCEPTION = re.compile(r"([A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Failure)|error): ")
LONGEST = 500
INSTANCE = """
storage: {{sqlite: {{base_dir: {var}}}}}
local_artifact_storage: {{module: dagster._core.storage.root, class: LocalArtifactStorage, config: {{base_dir: {var}}}}}
compute_logs:
  module: dagster._core.storage.local_compute_log_manager
  class: LocalComputeLogManager
  config: {{base_dir: {var}}}
telemetry: {{enabled: false}}
"""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Code that is tried: the folder that it stands in, and what a person calls it."""

    folder: Path
    words: str


class Home:
    """A deployment in a folder; `log` is the file that keeps what its processes say."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder, log
        self._token = secrets.token_hex(16)
        (folder / "var" / "dagster").mkdir(parents=True)
        where = json.dumps(str(folder / "var" / "dagster"))
        (folder / "dagster.yaml").write_text(INSTANCE.format(var=where))
        tokens = folder / "tokens.json"
        tokens.touch(mode=0o600)
        tokens.write_text(json.dumps({APPROVER: sha256_text(self._token)}))

    def materialise(self, code: Code, model: str) -> int:
        """Run the command that CI knows; return its exit status, which decides nothing."""
        select = ["--select", f"group:{model}", "-m", "ml_platform.definitions"]
        return self._run(code, "dagster asset materialize", ["-m", "dagster", "asset", "materialize", *select])

    def ingest(self, code: Code, model: str, files: dict[str, bytes]) -> int:
        """Land files as people do and publish them; return the exit status."""
        exports = self.folder / "exports"
        exports.mkdir()
        for name, data in files.items():
            (exports / name).write_bytes(data)
        landed = self._platform(code, "land", *(str(exports / name) for name in files), "--model", model)
        return landed or self._platform(code, "ingest", model)

    def approve(self, code: Code, model: str) -> int:
        """Approve the newest version, as nobody who trained it; return the exit status."""
        return self._platform(code, "approve", model, "--by", "token", "--name", APPROVER, "--reason", "quality gates")

    def ask(self, code: Code, what: str, model: str, *arguments: str) -> dict[str, Any]:
        """Return what `look` says with that code.

        Raises
        ------
        TrialError
            The process died; the message ends with its last words.
        """
        answer = self.folder / f"{what}.json"
        answer.unlink(missing_ok=True)
        status = self._run(code, f"look {what}", ["-P", str(LOOK), what, model, str(answer), *arguments])
        if status != 0 or not answer.is_file():
            raise TrialError(f"{code.words} cannot say what of {model} is {what}: {self.last_words()}")
        found: dict[str, Any] = json.loads(answer.read_text())
        return found

    def last_words(self) -> str:
        """Return what in the log explains the last process's end, in one line of at most `LONGEST` characters."""
        text = self.log.read_text(errors="replace").rpartition("\n$ ")[2]
        lines = [line.strip() for line in text.splitlines()[1:] if line.strip()] or ["it died without a word"]
        # The last line that names an error, and what it says in further lines.
        start = max((place for place, line in enumerate(lines) if EXCEPTION.match(line)), default=-1)
        return " ".join(lines[start:])[:LONGEST]

    def _platform(self, code: Code, *arguments: str) -> int:
        program = ["-P", "-c", "from ml_platform.cli import main; main()", *arguments]
        return self._run(code, f"ml-platform {arguments[0]}", program)

    def _run(self, code: Code, words: str, arguments: list[str]) -> int:
        with self.log.open("ab") as log:
            log.write(f"\n$ {words}, with {code.words}\n".encode())
            log.flush()
            # No limit of time: it takes as long as training does; a job has its own.
            done = subprocess.run(  # noqa: S603 - our own interpreter
                [sys.executable, *arguments],
                cwd=self.folder,
                env=self._environment(code),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            )
        return done.returncode

    def _environment(self, code: Code) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(ELSEWHERE) and not SECRET.search(name)
        }
        return {
            "OMP_NUM_THREADS": "1",
            **kept,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(code.folder), kept.get("PYTHONPATH")])),
            "DAGSTER_HOME": str(self.folder),
            "ML_PLATFORM_HOME": str(self.folder / "var"),
            "ML_PLATFORM_APPROVAL_TOKENS_FILE": str(self.folder / "tokens.json"),
            "ML_PLATFORM_APPROVAL_TOKEN": self._token,
        }
