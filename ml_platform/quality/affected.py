"""Which models a change affects: those whose file, imports, data or golden datasets differ; all when in doubt."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ml_platform.errors import ConfigurationError
from ml_platform.model_spec import MODEL_NAME
from ml_platform.quality.git import change_since
from ml_platform.quality.imports import Imports, module_of

MODELS = "ml_platform/defs/models"
# What every model's file stands on; a change of it is a change of all.
PLATFORM = ("ml_platform.pipeline", "ml_platform.definitions")
# No model is made of these. Whatever is not named here, and is no model's own, counts for all.
NO_PART = ("docs", "benchmarks", "ml_platform_tests", "scripts")
NO_PART_FILES = ("LICENSE", ".gitignore")


@dataclass(frozen=True, kw_only=True)
class Affected:
    """A model that a change affects.

    `golden` are the names of its golden datasets. `reasons` say why it is affected, one a changed file.
    """

    model: str
    golden: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def cells(self) -> list[dict[str, str]]:
        """What a matrix of jobs runs for it: one a golden dataset, or one whose `golden` is empty."""
        return [{"model": self.model, "golden": golden} for golden in self.golden or ("",)]


@dataclass
class _Tree:
    """The models of a working tree, and which modules each imports."""

    root: Path
    imports: Imports
    models: list[str]
    reached: dict[str, set[str]] = field(init=False)
    platform: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.reached = {model: self.imports.reached_from(_module(model)) for model in self.models}
        self.platform = set().union(*map(self.imports.reached_from, PLATFORM))

    def own(self, model: str) -> set[str]:
        return self.reached[model] - self.platform


def affected(base: str, root: Path) -> list[Affected]:
    """Return the models that the working tree affects since a ref, by name.

    A model whose file was deleted is among them: its gates are gone too.

    Parameters
    ----------
    base : str
        A branch, tag or commit. The change starts where its history and HEAD's meet.
    root : Path
        The top of the checkout.

    Raises
    ------
    ConfigurationError
        git knows no such commit, or a model's name is none that the platform takes.
    """
    change = change_since(base, root)
    tree = _Tree(root=root, imports=Imports(root), models=_models(root))
    deleted = [name for path, status in change.files.items() if status == "D" and (name := _model_in(path))]
    models = sorted({*tree.models, *map(_safe, deleted)})
    reasons: dict[str, list[str]] = {model: [] for model in models}
    for path, status in sorted(change.files.items()):
        touched, why = _touched(path, status, tree)
        for model in models if touched is None else touched:
            reasons[model].append(f"{path}: {why}")
    return [
        Affected(model=model, golden=_golden(model, tree), reasons=tuple(said))
        for model, said in sorted(reasons.items())
        if said
    ]


def _models(root: Path) -> list[str]:
    folder = root / MODELS
    files = [file.stem for file in folder.glob("*.py") if file.stem != "__init__"]
    return sorted(map(_safe, [*files, *(file.parent.name for file in folder.glob("*/__init__.py"))]))


def _safe(name: str) -> str:
    # Names go into commands and file names of those who read the answer, and anybody can propose a file.
    if not MODEL_NAME.fullmatch(name):
        raise ConfigurationError(f"A model's name must match {MODEL_NAME.pattern}. Got {name!r} in {MODELS}.")
    return name


def _module(model: str) -> str:
    return module_of(f"{MODELS}/{model}.py")


def _model_in(path: str) -> str | None:
    """Return the model whose file this is; ``None`` if it is none."""
    found = PurePosixPath(path)
    is_file = found.parent.as_posix() == MODELS and found.suffix == ".py" and found.stem != "__init__"
    is_package = found.parent.parent.as_posix() == MODELS and found.name == "__init__.py"
    return found.stem if is_file else found.parent.name if is_package else None


def _touched(path: str, status: str, tree: _Tree) -> tuple[list[str] | None, str]:
    """Return the models that a changed file counts for, ``None`` for all, and why."""
    parts = PurePosixPath(path).parts
    if parts[0] in NO_PART or path in NO_PART_FILES or path.endswith(".md"):
        return [], ""
    if (owner := _data_of(parts)) in tree.models:
        return [owner], "its data"
    if status == "D":
        return None, "was deleted"
    if parts[0] == "ml_platform" and path.endswith(".py"):
        return _importers(module_of(path), tree)
    return None, "may change anything"


def _data_of(parts: tuple[str, ...]) -> str:
    """Return the model whose rows or golden dataset stand in a file; empty if it is no such file."""
    if parts[:2] == ("data", "golden") and len(parts) == 4:
        return parts[2]
    return (
        PurePosixPath(parts[1]).stem if parts[0] == "data" and len(parts) == 2 and parts[1][-8:] == ".parquet" else ""
    )


def _importers(module: str, tree: _Tree) -> tuple[list[str] | None, str]:
    if module in tree.platform:
        return None, "the platform's code"
    found = [model for model in tree.models if module in tree.reached[model]]
    # What they import by names that are made at run time nobody can read.
    secretive = [model for model in tree.models if not tree.imports.are_plain(tree.own(model))]
    if not found:
        return None, "no model's file is seen to import it"
    return sorted({*found, *secretive}), "its code"


def _golden(model: str, tree: _Tree) -> tuple[str, ...]:
    files = (tree.root / "data" / "golden" / model).glob("*.parquet")
    names = {file.stem for file in files} | set(
        _named_golden(tree.imports.tree(_module(model)) if _there(model, tree) else None)
    )
    for name in names:
        _safe(name)
    return tuple(sorted(names))


def _there(model: str, tree: _Tree) -> bool:
    return _module(model) in tree.imports.files


def _named_golden(tree: ast.Module | None) -> Iterator[str]:
    """Yield the names that a model's file gives to golden datasets, as far as they are written out."""
    for node in ast.walk(tree or ast.Module([], [])):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("GoldenSet"):
            yield from (
                word.value.value
                for word in node.keywords
                if word.arg == "name" and isinstance(word.value, ast.Constant) and isinstance(word.value.value, str)
            )
