"""Find the models that a change affects: by their files, imports, data and golden datasets. In doubt, all of them."""

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ml_platform.ci.git import change_since
from ml_platform.ci.import_graph import Imports, parse_module_name
from ml_platform.errors import ConfigurationError
from ml_platform.model_spec import MODEL_NAME, NAME_RULE
from ml_platform.models import discovery

MODELS = "ml_platform/models"
# The platform's own code: these modules and their imports. A change of it affects every model.
PLATFORM = ("ml_platform.pipeline", "ml_platform.definitions")
# Paths that belong to no model and affect none. Any other path that belongs to no single model affects all.
NO_PART = ("docs", "benchmarks", "ml_platform_tests", "scripts")
NO_PART_FILES = ("LICENSE", ".gitignore", "mkdocs.yml")
# A model's own file or package, and the files of its rows and golden datasets.
MODEL_FILE = re.compile(rf"{MODELS}/(?:(?P<file>[^/]+)\.py|(?P<package>[^/]+)/__init__\.py)")
DATA_FILE = re.compile(r"data/(?:golden/(?P<golden>[^/]+)/[^/]+|(?P<rows>[^/]+)\.parquet)")


@dataclass(frozen=True, kw_only=True)
class AffectedModel:
    """A model that a change affects.

    Parameters
    ----------
    model : str
    golden : tuple of str
        Names of its golden datasets.
    reasons : tuple of str
        A reason for each changed file that affects it.
    """

    model: str
    golden: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def cells(self) -> list[dict[str, str]]:
        """Jobs of a matrix: one for each golden dataset, or one with an empty `golden`."""
        return [{"model": self.model, "golden": golden} for golden in self.golden or ("",)]


@dataclass
class _Tree:
    """A working tree's models and the modules that each imports."""

    root: Path
    imports: Imports
    models: list[str]
    reached: dict[str, set[str]] = field(init=False)
    platform: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.reached = {model: self.imports.reached_from(_module(model)) for model in self.models}
        self.platform = set().union(*map(self.imports.reached_from, PLATFORM))


def find_affected_models(base: str, root: Path) -> list[AffectedModel]:
    """Return the models that the working tree's changes affect, by name.

    Deleted models are included: their gates are gone too.

    Parameters
    ----------
    base : str
        Branch, tag or commit. The change starts at its merge base with HEAD.
    root : Path
        Root of the checkout.

    Raises
    ------
    ConfigurationError
        git has no such commit, or the name of a model or golden dataset is invalid.
    """
    change = change_since(base, root)
    tree = _Tree(root=root, imports=Imports(root), models=_models(root))
    removed = [MODEL_FILE.fullmatch(path) for path, status in change.files.items() if status == "D"]
    deleted = [m["package"] or m["file"] for m in removed if m and (m["package"] or _is_model(m["file"]))]
    models = sorted({*tree.models, *map(_safe, deleted)})
    reasons: dict[str, list[str]] = {model: [] for model in models}
    for path, status in sorted(change.files.items()):
        affected, why = _affected_by(path, status, tree)
        for model in models if affected is None else affected:
            reasons[model].append(f"{path}: {why}")
    return [
        AffectedModel(model=model, golden=_golden(model, tree), reasons=tuple(texts))
        for model, texts in sorted(reasons.items())
        if texts
    ]


def _models(root: Path) -> list[str]:
    folder = root / MODELS
    files = [file.stem for file in folder.glob("*.py") if _is_model(file.stem)]
    return sorted(map(_safe, [*files, *(file.parent.name for file in folder.glob("*/__init__.py"))]))


def _is_model(stem: str) -> bool:
    """Return True for a model's file, False for discovery's own and for code that models share."""
    return stem != discovery.NO_MODEL and not stem.startswith("_")


def _safe(name: str) -> str:
    # The workflow puts names into commands and file names, and any contributor can propose a file.
    if not MODEL_NAME.fullmatch(name):
        raise ConfigurationError(f"{NAME_RULE.capitalize()} Got {name!r} in {MODELS}.")
    return name


def _module(model: str) -> str:
    return parse_module_name(f"{MODELS}/{model}.py")


def _affected_by(path: str, status: str, tree: _Tree) -> tuple[list[str] | None, str]:
    """Return the models that a changed file affects, ``None`` for all, and the reason."""
    top = PurePosixPath(path).parts[0]
    if top in NO_PART or path in NO_PART_FILES or path.endswith(".md"):
        return [], ""
    data = DATA_FILE.fullmatch(path)
    if data and (owner := data["golden"] or data["rows"]) in tree.models:
        return [owner], "its data"
    if status == "D":
        return None, "was deleted"
    if top != "ml_platform" or not path.endswith(".py"):
        return None, "may change anything"
    module = parse_module_name(path)
    if module in tree.platform:
        return None, "the platform's code"
    importers = [model for model in tree.models if module in tree.reached[model]]
    if not importers:
        return None, "no model's file is seen to import it"
    # The text of a module does not show imports by names that are computed at run time.
    unknown = [m for m in tree.models if not tree.imports.are_plain(tree.reached[m] - tree.platform)]
    return sorted({*importers, *unknown}), "its code"


def _golden(model: str, tree: _Tree) -> tuple[str, ...]:
    """Return the names of a model's golden datasets: of its files, and of literals in the model's code."""
    names = {file.stem for file in (tree.root / "data" / "golden" / model).glob("*.parquet")}
    syntax = tree.imports.tree(_module(model)) if _module(model) in tree.imports.files else None
    for node in ast.walk(syntax or ast.Module([], [])):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("GoldenSet"):
            values = [word.value for word in node.keywords if word.arg == "name"]
            names.update(v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str))
    return tuple(sorted(map(_safe, names)))
