"""The README's path as a stranger walks it, in a home of its own."""

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ml_platform.defs.models.churn import churn

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.e2e


class Deployment:
    """A folder with dagster.yaml and nothing else, and the commands that people call there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
        self.environment = {**os.environ, "DAGSTER_HOME": str(folder), "ML_PLATFORM_HOME": str(folder / "var")}

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        program = [str(BIN / command[0]), *command[1:]]
        return subprocess.run(
            program, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=240
        )

    def status(self) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.call("ml-platform", "status", "--json").stdout)
        return found[0]

    def champion_in_mlflow(self) -> Any:
        address = f"sqlite:///{self.folder}/var/mlflow.db"
        client = MlflowClient(address, address)
        return client.get_model_version_by_alias("churn", "champion")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    made = Deployment(tmp_path_factory.mktemp("deployment"))
    done = made.call("ml-platform", "demo")
    assert done.returncode == 0, done.stderr
    return made


def test_the_demo_ends_with_a_champion_that_mlflow_finds(deployment: Deployment) -> None:
    status, version = deployment.status(), deployment.champion_in_mlflow()

    assert int(version.version) == status["champion"] >= 1
    results = {gate["gate"]: gate["result"] for gate in status["gates"]}
    assert results == dict.fromkeys(churn.conditions.values(), "PASS")
    lineage = {"dataset_version", "dataset_digest", "code_revision", "lock_digest", "model_digest", "verdict_digest"}
    assert {f"ml_platform.{name}" for name in lineage} <= {name for name, value in version.tags.items() if value}


def test_the_champion_is_explained_by_who_asked_and_what_went_into_it(deployment: Deployment) -> None:
    done = deployment.call("ml-platform", "explain", "champion", "churn", "--json")

    said = json.loads(done.stdout)
    assert said["ledger"]["verifies"] is True
    assert said["candidate"]["asked_for_by"].startswith(f"{pwd.getpwuid(os.getuid()).pw_name}@")
    assert len(said["dataset"]["arrivals"]) == 5
    assert sum(arrival["rows"] for arrival in said["dataset"]["arrivals"]) == 5_000


def test_a_second_demo_publishes_nothing_twice_and_says_so(deployment: Deployment) -> None:
    before = deployment.status()

    done = deployment.call("ml-platform", "demo")

    assert done.returncode == 0
    assert "nothing was published twice" in done.stdout
    assert deployment.status() == before


def test_the_command_that_ci_uses_makes_a_new_champion(deployment: Deployment) -> None:
    before = deployment.status()["champion"]

    select = ["--select", "group:churn", "-m", "ml_platform.definitions"]
    done = deployment.call("dagster", "asset", "materialize", *select)

    assert done.returncode == 0, done.stderr[-2_000:]
    assert deployment.status()["champion"] == before + 1
    assert int(deployment.champion_in_mlflow().version) == before + 1


def test_shuffled_labels_close_the_gates_and_leave_the_champion(deployment: Deployment) -> None:
    before = deployment.status()["champion"]

    done = deployment.call("ml-platform", "demo", "--shuffle-labels")

    results = {gate["gate"]: gate["result"] for gate in deployment.status()["gates"]}
    assert done.returncode == 1
    assert {gate for gate, result in results.items() if result == "PASS"} == {
        "inference_time_ms <= 100",
        "model_size_mb <= 500",
    }
    assert set(results.values()) == {"PASS", "FAIL"}
    assert deployment.status()["champion"] == before
    assert int(deployment.champion_in_mlflow().version) == before


def test_the_champion_before_is_back_after_a_rollback_and_the_ledger_verifies(deployment: Deployment) -> None:
    before = deployment.status()["champion"]

    done = deployment.call("ml-platform", "rollback", "churn", "--reason", "a test")
    verified = deployment.call("ml-platform", "ledger", "verify")

    assert done.returncode == 0, done.stderr
    assert deployment.status()["champion"] == int(deployment.champion_in_mlflow().version) == before - 1
    assert verified.returncode == 0, verified.stdout
