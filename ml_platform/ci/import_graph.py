"""The package's imports, read from the text of its modules: nothing is imported or run."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = "ml_platform"
# Calls that can import any module.
DYNAMIC = {"import_module", "__import__", "exec", "eval", "run_path", "run_module"}


class Imports:
    """The package's modules and their imports, also those within functions.

    Parameters
    ----------
    root : Path
        Folder of the package.
    """

    def __init__(self, root: Path) -> None:
        files = sorted((root / PACKAGE).rglob("*.py"))
        self.files = {parse_module_name(file.relative_to(root).as_posix()): file for file in files}
        self._trees: dict[str, ast.Module | None] = {}

    def reached_from(self, module: str) -> set[str]:
        """Return a module and its direct and indirect imports, with their packages."""
        reached, waiting = set[str](), [module]
        while waiting:
            name = waiting.pop()
            if name not in reached and name in self.files:
                reached.add(name)
                waiting += self._imported_names(name)
        return reached

    def are_plain(self, modules: Iterable[str]) -> bool:
        """Return True if all modules parse and none can import by a name that is computed at run time."""
        for module in modules:
            tree = self.tree(module)
            if tree is None:
                return False
            functions = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
            if any(getattr(function, "attr", getattr(function, "id", "")) in DYNAMIC for function in functions):
                return False
        return True

    def tree(self, module: str) -> ast.Module | None:
        """Return a module's syntax tree; ``None`` if it does not parse."""
        if module not in self._trees:
            try:
                self._trees[module] = ast.parse(self.files[module].read_bytes())
            except (SyntaxError, ValueError):
                self._trees[module] = None
        return self._trees[module]

    def _imported_names(self, module: str) -> Iterator[str]:
        package = module if self.files[module].name == "__init__.py" else module.rpartition(".")[0]
        yield from _with_parents(module)
        for node in ast.walk(self.tree(module) or ast.Module([], [])):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from _with_parents(alias.name)
            if isinstance(node, ast.ImportFrom):
                # One leading dot is the package itself, each further one its parent.
                parents = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
                source = ".".join([*parents, *([node.module] if node.module else [])])
                yield from _with_parents(source)
                # An imported name may be a module itself.
                yield from (f"{source}.{alias.name}" for alias in node.names)


def parse_module_name(path: str) -> str:
    """Return a module's dotted name from its file's path, relative to the repository."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _with_parents(module: str) -> Iterator[str]:
    parts = module.split(".")
    yield from (".".join(parts[: length + 1]) for length in range(len(parts)))
