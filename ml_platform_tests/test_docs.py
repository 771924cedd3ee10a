"""Every public function, class and method has a docstring; docs/ has the tests of the pages."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import ml_platform


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


def test_public_members_have_docstrings() -> None:
    found = [(name, member) for module in modules() for name, member in public(module)]

    assert len(found) > 100
    assert [name for name, member in found if not inspect.getdoc(member)] == []
