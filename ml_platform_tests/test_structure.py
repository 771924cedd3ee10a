"""The folders of tests mirror those of the package, and share only `support/`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ml_platform

TESTS = Path(__file__).parent
PACKAGE = Path(ml_platform.__file__).parent
NO_ROOMS = {"benchmarks", "deploy", "docs", "e2e", "faults", "github", "snapshots", "support"}


def list_folders(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(("__", "."))}


def list_imports(source: str) -> Iterator[str]:
    """Yield the names that a module imports; those of ``from … import`` with their module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def list_imported_tests(source: str) -> list[str]:
    """Return a module's imports from test modules or from a `conftest`."""
    modules = {path.stem for path in TESTS.rglob("test_*.py")} | {"conftest"}
    return [name for name in list_imports(source) if "ml_platform_tests" in name and modules & set(name.split("."))]


@pytest.mark.parametrize(
    "line",
    [
        "import ml_platform_tests.test_docs",
        "from ml_platform_tests.data.test_datasets import SPEC",
        "from ml_platform_tests.data import fakes, test_datasets",
        "def test_it():\n    from ml_platform_tests import conftest",
    ],
)
def test_import_of_test_module_is_detected(line: str) -> None:
    assert len(list_imported_tests(line)) == 1


def test_no_file_imports_test_modules() -> None:
    files = list(TESTS.rglob("*.py"))

    imported = {str(file.relative_to(TESTS)): list_imported_tests(file.read_text()) for file in files}

    assert len(files) > 100
    assert {file: names for file, names in imported.items() if names} == {}


def test_test_folders_mirror_package_folders() -> None:
    assert list_folders(TESTS) - NO_ROOMS <= list_folders(PACKAGE)
    assert list_folders(TESTS) >= NO_ROOMS
