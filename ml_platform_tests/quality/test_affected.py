import json
from pathlib import Path

import pytest

from ml_platform.errors import ConfigurationError
from ml_platform.quality.affected import affected
from ml_platform_tests.quality import made

MODEL = "from ml_platform.pipeline import life\nfrom ml_platform.features import {0}\n"
GOLDEN = "spec = ModelSpec(name='trips', golden=(GoldenSet(name='holidays', sha256='0'),))\n"
FILES = {
    "ml_platform/__init__.py": "",
    "ml_platform/pipeline.py": "from ml_platform import stages\n\ndef life(): ...\n",
    "ml_platform/definitions.py": "from ml_platform import resources\nfrom ml_platform.pipeline import life\n",
    "ml_platform/resources.py": "",
    "ml_platform/stages.py": "",
    "ml_platform/serving.py": "",
    "ml_platform/features/__init__.py": "",
    "ml_platform/features/text.py": "from . import words\n",
    "ml_platform/features/words.py": "",
    "ml_platform/features/times.py": "from ml_platform.features.days import day\nimport ml_platform.features.zones\n",
    "ml_platform/features/days/__init__.py": "from . import months\n",
    "ml_platform/features/days/months.py": "day = 1\n",
    "ml_platform/features/zones.py": "",
    "ml_platform/defs/models/__init__.py": "",
    "ml_platform/defs/models/mails.py": MODEL.format("text"),
    "ml_platform/defs/models/trips.py": MODEL.format("times") + "from ml_platform import resources\n" + GOLDEN,
    "data/mails.parquet": "rows",
    "data/golden/mails/spam.parquet": "rows",
    "requirements.lock": "",
    ".gitignore": "ignored\n",
    "docs/page.md": "",
}
ALL = ["mails", "trips"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return made.repository(tmp_path / "checkout", FILES)


def models(root: Path, base: str = "main") -> list[str]:
    return [found.model for found in affected(base, root)]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("ml_platform/defs/models/mails.py", ["mails"]),
        ("ml_platform/features/text.py", ["mails"]),
        ("ml_platform/features/words.py", ["mails"]),
        ("ml_platform/features/times.py", ["trips"]),
        ("ml_platform/features/days/__init__.py", ["trips"]),
        ("ml_platform/features/days/months.py", ["trips"]),
        ("ml_platform/features/zones.py", ["trips"]),
        ("ml_platform/features/__init__.py", ALL),
        ("ml_platform/resources.py", ALL),
        ("data/mails.parquet", ["mails"]),
        ("data/golden/mails/spam.parquet", ["mails"]),
        ("data/nobodys.parquet", ALL),
        ("data/trips.csv", ALL),
        ("data/trips.parquet/deeper", ALL),
        ("data/golden/mails/deeper/spam.parquet", ALL),
        ("ml_platform/stages.py", ALL),
        ("ml_platform/serving.py", ALL),
        ("ml_platform/pipeline.py", ALL),
        ("requirements.lock", ALL),
        (".github/workflows/quality-gates.yml", ALL),
        ("what-nobody-knows", ALL),
        ("docs/page.md", []),
        ("README.md", []),
        ("LICENSE", []),
        ("ml_platform_tests/test_it.py", []),
    ],
)
def test_a_file_counts_for_the_models_that_it_can_change(root: Path, file: str, expected: list[str]) -> None:
    made.write(root, {file: "changed = 1\n"})

    assert models(root) == expected
    assert models(made.commit(root), "HEAD~1") == expected


def test_what_was_deleted_counts_for_all_and_a_deleted_model_is_named(root: Path) -> None:
    (root / "ml_platform/features/words.py").unlink()
    assert models(root) == ALL

    assert affected("main", root)[0].reasons == ("ml_platform/features/words.py: was deleted",)

    (root / "ml_platform/defs/models/mails.py").unlink()
    (root / "ml_platform/defs/models/__init__.py").unlink()
    assert models(root) == ALL


def test_a_model_may_be_a_package_and_is_named_when_it_goes(root: Path) -> None:
    file = "ml_platform/defs/models/parcels/__init__.py"
    made.write(root, {file: MODEL.format("words")})
    assert models(root) == ["parcels"]

    made.commit(root)
    made.write(root, {"ml_platform/features/words.py": "changed = 1\n"})
    assert models(root, "HEAD") == ["mails", "parcels"]
    (root / file).unlink()
    assert models(root, "HEAD") == [*ALL[:1], "parcels", *ALL[1:]]


def test_the_platforms_code_counts_for_a_model_that_is_not_seen_to_import_it(root: Path) -> None:
    made.write(root, {"ml_platform/defs/models/alone.py": "", "ml_platform/stages.py": "import importlib\n"})
    made.commit(root)
    made.write(root, {"ml_platform/stages.py": "importlib.import_module('ml_platform' + '.x')\n"})
    assert models(root, "HEAD") == ["alone", *ALL]

    # What the platform itself does puts no model in doubt.
    made.commit(root)
    made.write(root, {"ml_platform/features/words.py": "changed = 1\n"})
    assert models(root, "HEAD") == ["mails"]


def test_a_file_that_git_does_not_keep_and_one_outside_the_package(root: Path) -> None:
    made.write(root, {"ignored": ""})
    assert models(root) == []

    made.write(root, {"setup.py": ""})
    assert affected("main", root)[0].reasons == ("setup.py: may change anything",)


def test_a_file_that_was_moved_counts_as_deleted(root: Path) -> None:
    made.git(root, "mv", "ml_platform/features/words.py", "ml_platform/features/other.py")

    assert models(root) == ALL


def test_a_new_model_is_affected_alone(root: Path) -> None:
    made.write(root, {"ml_platform/defs/models/new.py": MODEL.format("times")})

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
def test_a_model_that_imports_by_names_made_at_run_time_is_in_doubt(call: str, root: Path) -> None:
    made.write(root, {"ml_platform/features/times.py": f"name = 'x' + 'y'\n{call}\n"})
    made.commit(root)
    made.write(root, {"ml_platform/features/words.py": "changed = 1\n"})

    assert models(root, "HEAD") == ALL


@pytest.mark.parametrize("text", ["def", "word = '\0'"])
def test_code_that_is_no_python_is_in_doubt(text: str, root: Path) -> None:
    made.write(root, {"ml_platform/defs/models/trips.py": text})
    made.commit(root)
    made.write(root, {"ml_platform/features/words.py": "changed = 1\n"})

    assert models(root, "HEAD") == ALL


def test_a_branch_is_not_charged_with_what_the_base_did_since(root: Path) -> None:
    made.git(root, "checkout", "--quiet", "-b", "mine")
    made.write(root, {"ml_platform/features/times.py": "changed = 1\n"})
    made.commit(root)
    made.git(root, "checkout", "--quiet", "main")
    made.write(root, {"ml_platform/features/words.py": "changed = 1\n"})
    made.commit(root)
    made.git(root, "checkout", "--quiet", "mine")

    assert models(root) == ["trips"]


def test_every_golden_dataset_is_a_cell_of_the_matrix(root: Path) -> None:
    made.write(root, {"requirements.lock": "changed"})

    cells = [cell for found in affected("main", root) for cell in found.cells]

    assert json.loads(json.dumps(cells)) == [
        {"model": "mails", "golden": "spam"},
        {"model": "trips", "golden": "holidays"},
    ]


@pytest.mark.fault("C2")
@pytest.mark.parametrize("name", ['x"; touch x #.py', "$(id).py", "-x.py"])
def test_a_name_that_could_be_a_command_is_refused(root: Path, name: str) -> None:
    made.write(root, {f"ml_platform/defs/models/{name}": ""})

    with pytest.raises(ConfigurationError, match="A model's name must match"):
        affected("main", root)


@pytest.mark.fault("C2")
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data/golden/mails/x; touch x.parquet", ""),
        ("ml_platform/defs/models/mails.py", "golden = GoldenSet(name='$(id)', sha256='0')"),
    ],
)
def test_a_golden_datasets_name_that_could_be_a_command_is_refused(file: str, text: str, root: Path) -> None:
    made.write(root, {file: text})

    with pytest.raises(ConfigurationError, match="A model's name must match"):
        affected("main", root)


@pytest.mark.parametrize("base", ["nowhere", "--help", "HEAD~7"])
def test_a_base_that_is_no_commit_is_refused_with_advice(root: Path, base: str) -> None:
    with pytest.raises(ConfigurationError, match="git fetch"):
        affected(base, root)
