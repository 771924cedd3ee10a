"""Models are found by their files, and a broken file does not keep other models from loading."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_platform import definitions
from ml_platform.errors import ConfigurationError
from ml_platform.models import discovery
from ml_platform_tests.support.fakes import visits_spec

VISITS = "from ml_platform_tests.support.fakes import visits_spec\n\nvisits = visits_spec()\n"
CHECK = """
def check(asset, name, op=None):
    import dagster as dg

    @dg.multi_asset_check(name=op or "visits_checks", specs=[dg.AssetCheckSpec(name, asset=asset)])
    def checks():
        yield dg.AssetCheckResult(passed=True)

    return checks


"""
BROKEN = {
    "typo": ("x = 1\ny = = 2\n", r"some_models/typo\.py, line 2: SyntaxError: "),
    "missing": ("import os\nimport no_such_module\n", r"missing\.py, line 2: ModuleNotFoundError: .*no_such_module"),
    "invalid": (
        "from ml_platform.model_spec import ModelSpec\n\ninvalid = ModelSpec(name='Invalid')\n",
        r"invalid\.py, line 3: name: a model's name must be lower-case words .*; description: Field required",
    ),
    "other_first": (
        VISITS.replace("visits = visits_spec()", "base = visits_spec(name='other_first')\nother_first = 1"),
        r"must declare the model 'other_first': .* It declares: base = ModelSpec\(name='other_first'\)",
    ),
    "interrupts": ("class Panic(BaseException): ...\nraise Panic\n", r"interrupts\.py, line 2: Panic: "),
    "unprintable": (
        "class Mute(Exception):\n    def __str__(self): return 5\nraise Mute\n",
        r"unprintable\.py, line 3: Mute$",
    ),
    "exits": ("import sys\n\nsys.exit(3)\n", r"exits\.py, line 3: SystemExit: 3"),
    "hostile": (
        "raise ValueError('\x1b[31m' + 'x' * 100_000)\n",
        r"hostile\.py, line 1: ValueError:  \[31mx{900,990}$",
    ),
    "stranger": (VISITS, r"must declare the model 'stranger': .* It declares: visits = ModelSpec\(name='visits'\)"),
    "empty": ("", r"must declare the model 'empty': .* It declares: none"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of models in place of the package's."""
    package = tmp_path / "some_models"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(discovery, "FOLDER", package)
    monkeypatch.setattr(discovery, "PACKAGE", "some_models")
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "some_models"]:
        del sys.modules[name]


def test_names_are_file_names(folder: Path) -> None:
    for name in ("visits.py", "_shared.py", "discovery.py", "notes.txt", "Upper.py"):
        (folder / name).write_text("raise RuntimeError('names() imports nothing')\n")
    (folder / "parcels").mkdir()
    (folder / "parcels" / "__init__.py").touch()

    assert discovery.names() == ["parcels", "visits"]
    _, broken = discovery.load_all()
    assert re.match(r"ml_platform/models/Upper: a model's name must be lower-case words", str(broken["Upper"]))
    assert sorted(broken) == ["Upper", "parcels", "visits"]


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_error_names_line(folder: Path, name: str) -> None:
    text, message = BROKEN[name]
    (folder / f"{name}.py").write_text(text)

    with pytest.raises(ConfigurationError, match=message):
        discovery.load(name)


def test_spec_with_model_name_is_loaded(folder: Path) -> None:
    text = "draft = visits_spec()\nvisits = draft.model_copy(update={'description': 'the stricter one'})"
    (folder / "visits.py").write_text(VISITS.replace("visits = visits_spec()", text))

    assert discovery.load("visits").description == "the stricter one"


def test_name_equal_to_asset_group_is_refused(folder: Path) -> None:
    for name in ("sales", "sales_data", "costs_live"):
        (folder / f"{name}.py").write_text(
            VISITS.replace("visits = visits_spec()", f"{name} = visits_spec(name={name!r})")
        )

    specs, broken = discovery.load_all()

    assert [spec.name for spec in specs] == ["costs_live", "sales"]
    assert "'sales_data' is an asset group of the model 'sales'" in str(broken["sales_data"])


@pytest.mark.parametrize("name", ["churn_", "a__b", "_a", "9a", "Churn", "a" * 41, ""])
def test_invalid_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="lower-case words joined by single underscores"):
        visits_spec(name=name)


def test_unknown_model_error_lists_models(folder: Path) -> None:
    (folder / "visits.py").write_text(VISITS)

    with pytest.raises(ConfigurationError, match=r"There is no model 'vists'\. Declared models: visits\."):
        discovery.load("vists")


def test_broken_files_leave_other_models_loaded(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "visits.py").write_text(VISITS)
    for name, (text, _) in BROKEN.items():
        (folder / f"{name}.py").write_text(text)

    specs, broken = discovery.load_all()
    repository = definitions.defs().get_repository_def()

    assert [spec.name for spec in specs] == ["visits"]
    assert sorted(broken) == sorted(BROKEN)
    assert repository.has_job("visits_retrain")
    assert {"dead_runs", "red_ticks", "failed_runs"} < {sensor.name for sensor in repository.sensor_defs}
    logged = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [line.split("'")[1] for line in logged] == sorted(BROKEN)


@pytest.mark.parametrize(
    "wrong",
    [
        "asset_checks=lambda: 1 / 0",
        "asset_checks=lambda: exit(0)",
        "asset_checks=lambda: [check(['other', 'trained_model'], 'auc_roc')]",
        "asset_checks=lambda: [check(['visits', 'trained_model'], 'auc_roc')]",
        "asset_checks=lambda: [check(['visits', 'trained_model'], 'own', op='visits__trained_model')]",
        "asset_checks=lambda: [check(['visits', 'trained_model'], 'own', op='other_gates')]",
        "owners=('not an address',)",
        "retraining=Retraining(schedule='99 99 * * *')",
    ],
)
def test_model_refused_by_dagster_leaves_others_loaded(
    folder: Path, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    text = f"from ml_platform.model_spec import Retraining\n{CHECK}{VISITS}".replace(
        "visits_spec()", f"visits_spec({wrong})"
    )
    (folder / "visits.py").write_text(text)
    (folder / "other.py").write_text(VISITS.replace("visits = visits_spec()", "other = visits_spec(name='other')"))

    repository = definitions.defs().get_repository_def()

    assert {key.path[0] for key in repository.asset_graph.get_all_asset_keys()} == {"other"}
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith("The model 'visits' was not loaded: ml_platform/models/visits.py: ")


@pytest.mark.slow
def test_loading_model_imports_no_dagster() -> None:
    code = (
        "import sys; from ml_platform.models import discovery; discovery.load('churn'); print('dagster' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"


@pytest.mark.slow
def test_loading_location_prints_no_warning() -> None:
    code = "from ml_platform.definitions import defs; print(len(defs().get_repository_def().sensor_defs))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert (int(done.stdout) > 3, done.stderr) == (True, "")
