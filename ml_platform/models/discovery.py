"""Find and load the models: each has a file in this folder, with the model's name."""

import importlib
import pkgutil
import traceback
from pathlib import Path

from pydantic import ValidationError

from ml_platform.errors import ConfigurationError, one_line
from ml_platform.model_spec import MODEL_NAME, NAME_RULE, ModelSpec

PACKAGE = "ml_platform.models"
FOLDER = Path(__file__).resolve().parent
NO_MODEL = "discovery"
# A model has three groups of assets: its name, and its name with each of these suffixes.
GROUP_SUFFIXES = ("_data", "_live")


def names() -> list[str]:
    """List the names of all models that have a file, sorted, without importing a file.

    A file whose name begins with an underscore is not a model, but code that models share.
    """
    return sorted(name for name in _files() if MODEL_NAME.fullmatch(name))


def _files() -> list[str]:
    files = (file.name for file in pkgutil.iter_modules([str(FOLDER)]))
    return [name for name in files if name != NO_MODEL and not name.startswith("_")]


def load(name: str) -> ModelSpec:
    """Import a model's file and return its ModelSpec.

    Raises
    ------
    ConfigurationError
        The model has no file, or the file cannot be imported or declares no model of this name.
    """
    known = names()
    if name not in known:
        raise ConfigurationError(
            f"There is no model {name!r}. Declared models: {', '.join(known) or 'none'}. "
            "Each model has a file ml_platform/models/NAME.py."
        )
    return load_from(f"{PACKAGE}.{name}", name)


def load_from(module: str, name: str) -> ModelSpec:
    """Import a module and return its ModelSpec of this name.

    Raises
    ------
    ConfigurationError
        The module cannot be imported, or does not declare ``NAME = ModelSpec(name="NAME", …)`` exactly once.
    """
    try:
        members = {
            key: value for key, value in vars(importlib.import_module(module)).items() if type(value) is ModelSpec
        }
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a file that calls sys.exit must not end the process that loads the other models
        raise ConfigurationError(f"{_locate(error, module)}: {_describe(error)}") from error
    if name in members and members[name].name == name:
        return members[name]
    declared = ", ".join(f"{key} = ModelSpec(name={value.name!r})" for key, value in members.items()) or "none"
    raise ConfigurationError(
        f"{module} must declare the model {name!r}: {name} = ModelSpec(name={name!r}, …). It declares: {declared}."
    )


def load_all() -> tuple[list[ModelSpec], dict[str, ConfigurationError]]:
    """Load every model that can be loaded.

    Returns
    -------
    specs : list of ModelSpec
        The loaded models, sorted by name.
    broken : dict of ConfigurationError
        The errors of the others, by the name of their file.
    """
    specs, broken = list[ModelSpec](), dict[str, ConfigurationError]()
    known = names()
    for name in sorted(set(_files()) - set(known)):
        broken[name] = ConfigurationError(
            f"ml_platform/models/{name}: {NAME_RULE} The name of a file that models share begins with an underscore."
        )
    for name in known:
        try:
            specs.append(load(name))
        except ConfigurationError as error:
            broken[name] = error
    for name in known:
        other = next((name.removesuffix(suffix) for suffix in GROUP_SUFFIXES if name.endswith(suffix)), None)
        if other in known and name not in broken:
            specs = [spec for spec in specs if spec.name != name]
            broken[name] = ConfigurationError(
                f"ml_platform/models/{name}.py: {name!r} is an asset group of the model {other!r}. Choose another name."
            )
    return specs, broken


def _locate(error: BaseException, module: str) -> str:
    """Return the file and line of a failed import: the deepest one in this folder, or else the module."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_relative(error.filename)}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(FOLDER) in frame.filename]
    own = [frame for frame in frames if Path(frame.filename) != Path(__file__).resolve()]
    return f"{_relative(own[-1].filename)}, line {own[-1].lineno}" if own else module


def _relative(file: str) -> str:
    path = Path(file)
    return path.relative_to(FOLDER.parent.parent).as_posix() if FOLDER.parent.parent in path.parents else str(path)


def _describe(error: BaseException) -> str:
    """Describe an error in one line of bounded length; pydantic's errors become one sentence for each field."""
    if not isinstance(error, ValidationError):
        return one_line(error)
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    sentences = (": ".join([*map(str, one["loc"]), one["msg"].removeprefix("Value error, ")]) for one in problems)
    return one_line(ConfigurationError("; ".join(sentences))).removeprefix("ConfigurationError: ")
