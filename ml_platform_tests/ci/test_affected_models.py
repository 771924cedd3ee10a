import json
from pathlib import Path

import pytest

from ml_platform.ci.affected_models import find_affected_models
from ml_platform.errors import ConfigurationError
from ml_platform_tests.support import repositories

MODEL = "from ml_platform.pipeline import life\nfrom ml_platform.features import {0}\n"
GOLDEN = "spec = ModelSpec(name='trips', golden=(GoldenSet(name='holidays', sha256='0'),))\n"
FILES = {
    "ml_platform/__init__.py": "",
    "ml_platform/pipeline.py": "from ml_platform import stages\n\ndef life(): ...\n",
    "ml_platform/definitions.py": "from ml_platform import resources\nfrom ml_platform.pipeline import life\n",
    "ml_platform/orchestration/resources.py": "",
    "ml_platform/stages.py": "",
    "ml_platform/serving.py": "",
    "ml_platform/features/__init__.py": "",
    "ml_platform/features/text.py": "from . import words\n",
    "ml_platform/features/words.py": "",
    "ml_platform/features/times.py": "from ml_platform.features.days import day\nimport ml_platform.features.zones\n",
    "ml_platform/features/days/__init__.py": "from . import months\n",
    "ml_platform/features/days/months.py": "day = 1\n",
    "ml_platform/features/zones.py": "",
    "ml_platform/models/__init__.py": "",
    "ml_platform/models/mails.py": MODEL.format("text"),
    "ml_platform/models/trips.py": MODEL.format("times") + "from ml_platform import resources\n" + GOLDEN,
    "data/mails.parquet": "rows",
    "data/golden/mails/spam.parquet": "rows",
    "requirements.lock": "",
    ".gitignore": "ignored\n",
    "docs/page.md": "",
}
ALL = ["mails", "trips"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return repositories.repository(tmp_path / "checkout", FILES)


def models(root: Path, base: str = "main") -> list[str]:
    return [found.model for found in find_affected_models(base, root)]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("ml_platform/models/mails.py", ["mails"]),
        ("ml_platform/features/text.py", ["mails"]),
        ("ml_platform/features/words.py", ["mails"]),
        ("ml_platform/features/times.py", ["trips"]),
        ("ml_platform/features/days/__init__.py", ["trips"]),
        ("ml_platform/features/days/months.py", ["trips"]),
        ("ml_platform/features/zones.py", ["trips"]),
        ("ml_platform/features/__init__.py", ALL),
        ("ml_platform/orchestration/resources.py", ALL),
        ("data/mails.parquet", ["mails"]),
        ("data/golden/mails/spam.parquet", ["mails"]),
        ("data/other.parquet", ALL),
        ("data/trips.csv", ALL),
        ("data/trips.parquet/deeper", ALL),
        ("data/golden/mails/deeper/spam.parquet", ALL),
        ("ml_platform/stages.py", ALL),
        ("ml_platform/serving.py", ALL),
        ("ml_platform/pipeline.py", ALL),
        ("requirements.lock", ALL),
        (".github/workflows/quality-gates.yml", ALL),
        ("unknown-file", ALL),
        ("docs/page.md", []),
        ("README.md", []),
        ("LICENSE", []),
        ("ml_platform_tests/test_it.py", []),
    ],
)
def test_changed_file_affects_its_models(root: Path, file: str, expected: list[str]) -> None:
    repositories.write(root, {file: "changed = 1\n"})

    assert models(root) == expected
    assert models(repositories.commit(root), "HEAD~1") == expected


def test_deleted_file_affects_all_models(root: Path) -> None:
    (root / "ml_platform/features/words.py").unlink()
    assert models(root) == ALL

    assert find_affected_models("main", root)[0].reasons == ("ml_platform/features/words.py: was deleted",)

    (root / "ml_platform/models/mails.py").unlink()
    (root / "ml_platform/models/__init__.py").unlink()
    assert models(root) == ALL


def test_model_package_is_affected_and_deleted(root: Path) -> None:
    file = "ml_platform/models/parcels/__init__.py"
    repositories.write(root, {file: MODEL.format("words")})
    assert models(root) == ["parcels"]

    repositories.commit(root)
    repositories.write(root, {"ml_platform/features/words.py": "changed = 1\n"})
    assert models(root, "HEAD") == ["mails", "parcels"]
    (root / file).unlink()
    assert models(root, "HEAD") == [*ALL[:1], "parcels", *ALL[1:]]


def test_platform_code_affects_models_without_visible_imports(root: Path) -> None:
    repositories.write(root, {"ml_platform/models/alone.py": "", "ml_platform/stages.py": "import importlib\n"})
    repositories.commit(root)
    repositories.write(root, {"ml_platform/stages.py": "importlib.import_module('ml_platform' + '.x')\n"})
    assert models(root, "HEAD") == ["alone", *ALL]

    # The platform's own dynamic imports do not affect other models.
    repositories.commit(root)
    repositories.write(root, {"ml_platform/features/words.py": "changed = 1\n"})
    assert models(root, "HEAD") == ["mails"]


def test_ignored_file_affects_no_model(root: Path) -> None:
    repositories.write(root, {"ignored": ""})
    assert models(root) == []

    repositories.write(root, {"setup.py": ""})
    assert find_affected_models("main", root)[0].reasons == ("setup.py: may change anything",)


def test_moved_file_counts_as_deleted(root: Path) -> None:
    repositories.git(root, "mv", "ml_platform/features/words.py", "ml_platform/features/other.py")

    assert models(root) == ALL


def test_new_model_is_affected_alone(root: Path) -> None:
    repositories.write(root, {"ml_platform/models/new.py": MODEL.format("times")})

    assert models(root) == ["new"]


@pytest.mark.parametrize(
    "call",
    [
        "importlib.import_module(name)",
        "__import__(name)",
        "exec(name)",
        "eval(name)",
        "runpy.run_path(name)",
        "runpy.run_module(name)",
    ],
)
def test_dynamic_import_makes_model_affected(call: str, root: Path) -> None:
    repositories.write(root, {"ml_platform/features/times.py": f"name = 'x' + 'y'\n{call}\n"})
    repositories.commit(root)
    repositories.write(root, {"ml_platform/features/words.py": "changed = 1\n"})

    assert models(root, "HEAD") == ALL


@pytest.mark.parametrize("text", ["def", "word = '\0'"])
def test_invalid_syntax_makes_model_affected(text: str, root: Path) -> None:
    repositories.write(root, {"ml_platform/models/trips.py": text})
    repositories.commit(root)
    repositories.write(root, {"ml_platform/features/words.py": "changed = 1\n"})

    assert models(root, "HEAD") == ALL


def test_later_base_commits_affect_no_model(root: Path) -> None:
    repositories.git(root, "checkout", "--quiet", "-b", "mine")
    repositories.write(root, {"ml_platform/features/times.py": "changed = 1\n"})
    repositories.commit(root)
    repositories.git(root, "checkout", "--quiet", "main")
    repositories.write(root, {"ml_platform/features/words.py": "changed = 1\n"})
    repositories.commit(root)
    repositories.git(root, "checkout", "--quiet", "mine")

    assert models(root) == ["trips"]


def test_golden_datasets_become_matrix_cells(root: Path) -> None:
    repositories.write(root, {"requirements.lock": "changed"})

    cells = [cell for found in find_affected_models("main", root) for cell in found.cells]

    assert json.loads(json.dumps(cells)) == [
        {"model": "mails", "golden": "spam"},
        {"model": "trips", "golden": "holidays"},
    ]


@pytest.mark.fault("C2")
@pytest.mark.parametrize("name", ['x"; touch x #.py', "$(id).py", "-x.py"])
def test_unsafe_model_name_is_refused(root: Path, name: str) -> None:
    repositories.write(root, {f"ml_platform/models/{name}": ""})

    with pytest.raises(ConfigurationError, match="A model's name must be lower-case words"):
        find_affected_models("main", root)


@pytest.mark.fault("C2")
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data/golden/mails/x; touch x.parquet", ""),
        ("ml_platform/models/mails.py", "golden = GoldenSet(name='$(id)', sha256='0')"),
    ],
)
def test_unsafe_golden_dataset_name_is_refused(file: str, text: str, root: Path) -> None:
    repositories.write(root, {file: text})

    with pytest.raises(ConfigurationError, match="A model's name must be lower-case words"):
        find_affected_models("main", root)


@pytest.mark.parametrize("base", ["nowhere", "--help", "HEAD~7"])
def test_unknown_base_is_refused_with_advice(root: Path, base: str) -> None:
    with pytest.raises(ConfigurationError, match="git fetch"):
        find_affected_models(base, root)
