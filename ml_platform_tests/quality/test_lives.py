"""A deployment that is thrown away: its processes get nothing that leads elsewhere."""

from pathlib import Path

import pytest

from ml_platform.errors import TrialError
from ml_platform.quality.lives import LONGEST, Code, Home
from ml_platform_tests.quality import made

# A platform whose command line says what it was given.
SAYS = "import os, sys\n\ndef main():\n    print(sys.argv[1:], *sorted(os.environ.items()), sep='\\n')\n"


@pytest.fixture
def code(tmp_path: Path) -> Code:
    made.write(tmp_path, {"code/ml_platform/__init__.py": "", "code/ml_platform/cli.py": SAYS})
    return Code(folder=tmp_path / "code", words="the code of a test")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home", tmp_path / "log")


@pytest.mark.fault("C1")
def test_no_process_gets_a_secret_or_a_way_to_a_deployment(
    home: Home, code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_process_that_dies_has_the_last_word(home: Home, code: Code) -> None:
    made.write(code.folder, {"ml_platform/model_spec.py": "raise ValueError('no spec ' + 'x' * 2_000)\n"})

    with pytest.raises(TrialError, match=r"the code of a test cannot say .* ValueError: no spec x") as refused:
        home.ask(code, "declared", "visits")
    assert len(str(refused.value)) < LONGEST + 200


@pytest.mark.parametrize("text", ["raise SystemExit(3)\n", "import os\nos._exit(0)\n"])
def test_an_answer_of_before_is_none_and_neither_is_one_of_a_process_that_failed(
    text: str, home: Home, code: Code
) -> None:
    """It would be that of other code in the same deployment."""
    (home.folder / "declared.json").write_text('{"gates": []}')
    made.write(code.folder, {"ml_platform/model_spec.py": text})

    with pytest.raises(TrialError, match="cannot say what of visits is declared"):
        home.ask(code, "declared", "visits")


def test_an_answer_that_a_process_left_before_it_failed_is_none(home: Home, code: Code) -> None:
    text = "import sys\nfrom pathlib import Path\nPath(sys.argv[3]).write_text('{}')\nsys.exit(1)\n"
    made.write(code.folder, {"ml_platform/model_spec.py": text})

    with pytest.raises(TrialError, match="it died without a word"):
        home.ask(code, "declared", "visits")


def test_files_that_could_not_be_landed_are_not_published(home: Home, code: Code) -> None:
    text = "import sys\n\ndef main():\n    print(sys.argv[1])\n    raise SystemExit(sys.argv[1] == 'land')\n"
    made.write(code.folder, {"ml_platform/cli.py": text})

    assert home.ingest(code, "visits", {"one.parquet": b"rows"}) == 1
    assert "\nland\n" in home.log.read_text()
    assert "ingest" not in home.log.read_text()


def test_nothing_in_the_folder_of_a_deployment_is_taken_for_code_and_nobody_else_reads_its_token(
    home: Home, code: Code
) -> None:
    """A model's code writes there."""
    made.write(home.folder, {"ml_platform/__init__.py": "raise ZeroDivisionError\n"})

    assert home.approve(code, "visits") == 0
    assert (home.folder / "tokens.json").stat().st_mode & 0o777 == 0o600
