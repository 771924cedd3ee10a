"""What people read is true: public docstrings exist, and the README's commands do too."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

import ml_platform
from ml_platform.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(ml_platform.__path__, "ml_platform."):
        if ".migrations" not in found.name:
            yield importlib.import_module(found.name)


def public(module: ModuleType) -> Iterator[tuple[str, object]]:
    for name, member in vars(module).items():
        if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(member) or inspect.isclass(member):
            yield f"{module.__name__}.{name}", member
        if inspect.isclass(member):
            for method, function in vars(member).items():
                if inspect.isfunction(function) and not method.startswith("_"):
                    yield f"{module.__name__}.{name}.{method}", function


def test_everything_public_has_a_docstring() -> None:
    found = [(name, member) for module in modules() for name, member in public(module)]

    assert len(found) > 100
    assert [name for name, member in found if not inspect.getdoc(member)] == []


def commands(page: Path) -> set[tuple[str, str]]:
    """Return the program and sub-command of each command in a page's code, as blocks or inline."""
    text = page.read_text()
    code = "\n".join(re.findall(r"```(?:sh|console|bash)?\n(.*?)```", text, flags=re.DOTALL))
    code += "\n" + "\n".join(re.findall(r"`([^`\n]+)`", text))
    return set(re.findall(r"(?:^|\s)(make|ml-platform) ([a-z][a-z-]*)", code, flags=re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_a_page_names_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    group = typer.main.get_command(app)
    known = {"make": targets, "ml-platform": set(getattr(group, "commands", {}))}

    assert [f"{program} {name}" for program, name in sorted(commands(page)) if name not in known[program]] == []


def test_the_readme_names_commands_at_all() -> None:
    assert ("make", "demo") in commands(ROOT / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    files = [target for target in targets if "://" not in target]

    assert [target for target in files if not (page.parent / target).exists()] == []
