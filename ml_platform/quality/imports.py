"""Which modules of the package a module imports, read from the text: nothing is imported or run."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = "ml_platform"
# Whoever calls one of these may import anything.
DYNAMIC = {"import_module", "__import__", "exec", "eval", "run_path", "run_module"}


class Imports:
    """The package's modules and what each imports, at any depth of its text.

    Parameters
    ----------
    root : Path
        The folder that the package stands in.
    """

    def __init__(self, root: Path) -> None:
        files = sorted((root / PACKAGE).rglob("*.py"))
        self.files = {module_of(file.relative_to(root).as_posix()): file for file in files}
        self._trees: dict[str, ast.Module | None] = {}

    def reached_from(self, module: str) -> set[str]:
        """Return a module, all that it imports and what that imports, packages included."""
        found, waiting = set[str](), [module]
        while waiting:
            name = waiting.pop()
            if name not in found and name in self.files:
                found.add(name)
                waiting += self._named_in(name)
        return found

    def are_plain(self, modules: Iterable[str]) -> bool:
        """Whether all of these parse, and import nothing by a name that is only known when they run."""
        return all(self._is_plain(module) for module in modules)

    def _is_plain(self, module: str) -> bool:
        tree = self.tree(module)
        return tree is not None and not any(
            isinstance(node, ast.Call) and _called(node) in DYNAMIC for node in ast.walk(tree)
        )

    def tree(self, module: str) -> ast.Module | None:
        """Return a module's syntax tree; ``None`` where it is no Python."""
        if module not in self._trees:
            try:
                self._trees[module] = ast.parse(self.files[module].read_bytes())
            except (SyntaxError, ValueError):
                self._trees[module] = None
        return self._trees[module]

    def _named_in(self, module: str) -> Iterator[str]:
        package = module if self.files[module].name == "__init__.py" else module.rpartition(".")[0]
        yield from _with_parents(module)
        for node in ast.walk(self.tree(module) or ast.Module([], [])):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from _with_parents(alias.name)
            if isinstance(node, ast.ImportFrom):
                source = _absolute(node, package)
                yield from _with_parents(source)
                # What is imported may be a module itself.
                yield from (f"{source}.{alias.name}" for alias in node.names)


def module_of(path: str) -> str:
    """Return the dotted name of the module in a file, by its path from the top."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _with_parents(module: str) -> Iterator[str]:
    parts = module.split(".")
    yield from (".".join(parts[: length + 1]) for length in range(len(parts)))


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    above = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])
