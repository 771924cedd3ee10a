"""A temporary deployment, and the platform's commands in it, with the code of a chosen checkout.

It neither reads nor writes the real deployment: state, databases, MLflow's store and Dagster's records are in a
temporary folder, and its processes inherit no variable of another deployment.
"""

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_platform.errors import ChangeComparisonError
from ml_platform.records.canonical import sha256_text

PROGRAM = Path(__file__).with_name("inspect_model.py")
# Prefixes of variables of a deployment, registry, runner or other repository: a contributor's code must not see them.
FOREIGN = ("ML_PLATFORM_", "MLFLOW_", "DAGSTER_", "AWS_", "GITHUB_", "ACTIONS_", "RUNNER_", "INPUT_", "GIT_")
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
class Checkout:
    """A checkout of the code: its folder and its name in messages."""

    folder: Path
    words: str


class Sandbox:
    """A temporary deployment in a folder; `log` is the file for the output of its processes."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder, log
        self._token = secrets.token_hex(16)
        (folder / "var" / "dagster").mkdir(parents=True)
        where = json.dumps(str(folder / "var" / "dagster"))
        (folder / "dagster.yaml").write_text(INSTANCE.format(var=where))
        tokens = folder / "tokens.json"
        tokens.touch(mode=0o600)
        tokens.write_text(json.dumps({APPROVER: sha256_text(self._token)}))

    def materialise(self, code: Checkout, model: str) -> int:
        """Run `dagster asset materialize` for the model's group; return the exit status, which decides nothing."""
        select = ["--select", f"group:{model}", "-m", "ml_platform.definitions"]
        return self._run(code, "dagster asset materialize", ("-m", "dagster", "asset", "materialize", *select))

    def ingest(self, code: Checkout, model: str, files: dict[str, bytes]) -> int:
        """Land and publish files with the command line; return the exit status."""
        exports = self.folder / "exports"
        exports.mkdir()
        for name, data in files.items():
            (exports / name).write_bytes(data)
        landed = self._platform(code, "land", *(str(exports / name) for name in files), "--model", model)
        return landed or self._platform(code, "ingest", model)

    def approve(self, code: Checkout, model: str) -> int:
        """Approve the newest version, as another user than its trainer; return the exit status."""
        token = "--auth", "token", "--token-name", APPROVER
        return self._platform(code, "approve", model, *token, "--reason", "quality gates")

    def inspect(self, code: Checkout, subject: str, model: str, *arguments: str) -> dict[str, Any]:
        """Return the result of `inspect_model`, run with a checkout's code.

        Raises
        ------
        ChangeComparisonError
            The process failed; the message ends with its error.
        """
        output = self.folder / f"{subject}.json"
        output.unlink(missing_ok=True)
        arguments = ("-P", str(PROGRAM), subject, model, str(output), *arguments)
        status = self._run(code, f"inspect_model {subject}", arguments)
        if status != 0 or not output.is_file():
            raise ChangeComparisonError(
                f"inspect_model {subject} {model} failed with {code.words}: {self.exit_reason()}"
            )
        document: dict[str, Any] = json.loads(output.read_text())
        return document

    def exit_reason(self) -> str:
        """Return the last process's error from the log, in one line of at most `LONGEST` characters."""
        text = self.log.read_text(errors="replace").rpartition("\n$ ")[2]
        lines = [line.strip() for line in text.splitlines()[1:] if line.strip()] or ["it exited without output"]
        # The last line that names an error, with the lines after it.
        start = max((place for place, line in enumerate(lines) if EXCEPTION.match(line)), default=-1)
        return " ".join(lines[start:])[:LONGEST]

    def _platform(self, code: Checkout, *arguments: str) -> int:
        program = ("-P", "-c", "from ml_platform.cli import main; main()", *arguments)
        return self._run(code, f"ml-platform {arguments[0]}", program)

    def _run(self, code: Checkout, command: str, arguments: Sequence[str]) -> int:
        with self.log.open("ab") as log:
            log.write(f"\n$ {command}, with {code.words}\n".encode())
            log.flush()
            # Without a timeout: training may take long, and the CI job has a timeout of its own.
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

    def _environment(self, code: Checkout) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(FOREIGN) and not SECRET.search(name)
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
