"""The temporary deployment: environment, output and failures of its processes."""

from pathlib import Path

import pytest

from ml_platform.ci.sandbox import LONGEST, Checkout, Sandbox
from ml_platform.errors import ChangeComparisonError
from ml_platform_tests.support import repositories

# A package whose command line prints its arguments and environment.
SAYS = "import os, sys\n\ndef main():\n    print(sys.argv[1:], *sorted(os.environ.items()), sep='\\n')\n"


@pytest.fixture
def code(tmp_path: Path) -> Checkout:
    repositories.write(tmp_path, {"code/ml_platform/__init__.py": "", "code/ml_platform/cli/__init__.py": SAYS})
    return Checkout(folder=tmp_path / "code", words="the code of a test")


@pytest.fixture
def home(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "home", tmp_path / "log")


@pytest.mark.fault("C1")
def test_sandbox_processes_inherit_no_secret(home: Sandbox, code: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ["MLFLOW_TRACKING_URI", "ML_PLATFORM_DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "GITHUB_OUTPUT"]
    for name in [*ours, "ACTIONS_RUNTIME_TOKEN", "NPM_TOKEN", "DB_PASSWORD", "GIT_DIR", "AWS_PROFILE", "db_password"]:
        monkeypatch.setenv(name, "leads elsewhere")
    monkeypatch.setenv("LANG", "C.UTF-8")

    assert home.ingest(code, "visits", {"one.parquet": b"rows"}) == 0

    said = home.log.read_text()
    assert "leads elsewhere" not in said
    assert f"('ML_PLATFORM_HOME', '{home.folder}/var')" in said
    assert f"('DAGSTER_HOME', '{home.folder}')" in said
    assert "('LANG', 'C.UTF-8')" in said
    assert "['ingest', 'visits']" in said


def test_sandbox_failed_process_reports_its_error(home: Sandbox, code: Checkout) -> None:
    repositories.write(code.folder, {"ml_platform/model_spec.py": "raise ValueError('no spec ' + 'x' * 2_000)\n"})

    with pytest.raises(
        ChangeComparisonError, match=r"failed with the code of a test: .*ValueError: no spec x"
    ) as refused:
        home.inspect(code, "declared", "visits")
    assert len(str(refused.value)) < LONGEST + 200


@pytest.mark.parametrize("text", ["raise SystemExit(3)\n", "import os\nos._exit(0)\n"])
def test_sandbox_stale_output_is_not_read(text: str, home: Sandbox, code: Checkout) -> None:
    """The file may come from other code in the same deployment."""
    (home.folder / "declared.json").write_text('{"gates": []}')
    repositories.write(code.folder, {"ml_platform/model_spec.py": text})

    with pytest.raises(ChangeComparisonError, match="inspect_model declared visits failed"):
        home.inspect(code, "declared", "visits")


def test_sandbox_output_of_failed_process_is_not_read(home: Sandbox, code: Checkout) -> None:
    text = "import sys\nfrom pathlib import Path\nPath(sys.argv[3]).write_text('{}')\nsys.exit(1)\n"
    repositories.write(code.folder, {"ml_platform/model_spec.py": text})

    with pytest.raises(ChangeComparisonError, match="it exited without output"):
        home.inspect(code, "declared", "visits")


def test_sandbox_failed_landing_stops_ingestion(home: Sandbox, code: Checkout) -> None:
    text = "import sys\n\ndef main():\n    print(sys.argv[1])\n    raise SystemExit(sys.argv[1] == 'land')\n"
    repositories.write(code.folder, {"ml_platform/cli/__init__.py": text})

    assert home.ingest(code, "visits", {"one.parquet": b"rows"}) == 1
    assert "\nland\n" in home.log.read_text()
    assert "ingest" not in home.log.read_text()


def test_sandbox_folder_is_not_imported(home: Sandbox, code: Checkout) -> None:
    """A model's code can write to the folder."""
    repositories.write(home.folder, {"ml_platform/__init__.py": "raise ZeroDivisionError\n"})

    assert home.approve(code, "visits") == 0
    assert (home.folder / "tokens.json").stat().st_mode & 0o777 == 0o600
