"""The README's steps, in a new home."""

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ml_platform.models.churn import churn
from ml_platform.settings import PROJECT_ROOT
from ml_platform_tests.docs.pages import shown_output, without_figures

BIN = Path(sys.executable).parent

pytestmark = pytest.mark.e2e


class Deployment:
    """A folder with dagster.yaml and nothing else, and the commands to call there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml").read_text())
        self.environment = {**os.environ, "DAGSTER_HOME": str(folder), "ML_PLATFORM_HOME": str(folder / "var")}

    demo = ""

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        program = [str(BIN / command[0]), *command[1:]]
        return subprocess.run(
            program, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=240
        )

    def status(self) -> dict[str, Any]:
        models: list[dict[str, Any]] = json.loads(self.call("ml-platform", "status", "--json").stdout)
        return models[0]

    def champion_in_mlflow(self) -> Any:
        address = f"sqlite:///{self.folder}/var/mlflow.db"
        client = MlflowClient(address, address)
        return client.get_model_version_by_alias("churn", "champion")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    made = Deployment(tmp_path_factory.mktemp("deployment"))
    done = made.call("ml-platform", "demo")
    assert done.returncode == 0, done.stderr
    made.demo = done.stdout + done.stderr
    return made


def test_demo_makes_a_champion_in_mlflow(deployment: Deployment) -> None:
    status, version = deployment.status(), deployment.champion_in_mlflow()

    assert int(version.version) == status["champion"] >= 1
    results = {gate["gate"]: gate["result"] for gate in status["gates"]}
    assert results == dict.fromkeys(churn.conditions.values(), "PASS")
    lineage = {"dataset_version", "dataset_digest", "code_revision", "lock_digest", "model_digest", "verdict_digest"}
    assert {f"ml_platform.{name}" for name in lineage} <= {name for name, value in version.tags.items() if value}


@pytest.mark.parametrize(
    ("page", "command"),
    [
        ("README.md", "make demo"),
        ("docs/tutorial.md", "make demo"),
        ("docs/tutorial.md", "ml-platform explain champion churn"),
        ("docs/tutorial.md", "ml-platform ledger verify"),
        ("docs/how-to/operations.md", "ml-platform reconcile churn"),
    ],
)
def test_output_of_a_page_is_current(deployment: Deployment, page: str, command: str) -> None:
    shown = shown_output((PROJECT_ROOT / page).read_text(), command)
    done = None if command == "make demo" else deployment.call(*command.split())

    printed = deployment.demo if done is None else done.stdout + done.stderr

    assert shown
    lines = {without_figures(line) for line in printed.splitlines()}
    assert [line for line in shown if without_figures(line) not in lines] == []


def test_explanation_names_requester_and_arrivals(deployment: Deployment) -> None:
    done = deployment.call("ml-platform", "explain", "champion", "churn", "--json")

    explanation = json.loads(done.stdout)
    assert explanation["ledger"]["verifies"] is True
    user = explanation["candidate"]["trained_by"]
    assert user.startswith(f"{pwd.getpwuid(os.getuid()).pw_name}@")
    assert explanation["candidate"]["asked_for_by"] == user
    assert len(explanation["dataset"]["arrivals"]) == 5
    assert sum(arrival["rows"] for arrival in explanation["dataset"]["arrivals"]) == 5_000


def test_second_demo_publishes_nothing_twice(deployment: Deployment) -> None:
    before = deployment.status()

    done = deployment.call("ml-platform", "demo")

    assert done.returncode == 0
    assert "nothing was published twice" in done.stdout
    assert deployment.status() == before


def test_dagster_materialize_makes_a_new_champion(deployment: Deployment) -> None:
    before = deployment.status()["champion"]

    select = ["--select", "group:churn", "-m", "ml_platform.definitions"]
    done = deployment.call("dagster", "asset", "materialize", *select)

    assert done.returncode == 0, done.stderr[-2_000:]
    assert deployment.status()["champion"] == before + 1
    assert int(deployment.champion_in_mlflow().version) == before + 1


def test_shuffled_labels_fail_and_the_champion_stays(deployment: Deployment) -> None:
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


def test_rollback_restores_previous_champion_and_ledger_verifies(deployment: Deployment) -> None:
    before = deployment.status()["champion"]

    done = deployment.call("ml-platform", "rollback", "churn", "--reason", "a test")
    verified = deployment.call("ml-platform", "ledger", "verify")

    assert done.returncode == 0, done.stderr
    assert deployment.status()["champion"] == int(deployment.champion_in_mlflow().version) == before - 1
    assert verified.returncode == 0, verified.stdout
