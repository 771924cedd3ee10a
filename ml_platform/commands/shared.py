"""What all commands share: where they write, how they name a model, what their exit status says."""

import contextlib
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console

from ml_platform.errors import ConfigurationError
from ml_platform.model_spec import ModelSpec

progress = Console(stderr=True, highlight=False, soft_wrap=True)
# A pipe has no width: what is written into a file or a log is not folded.
output = Console(highlight=False, width=None if sys.stdout.isatty() else 160)

Model = Annotated[str, typer.Argument(help="Name of the model, for instance churn.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
MODELS = "ml_platform.defs.models"
REFUSED = 1
FAILED = 2
FIRST = 10


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Say what is being done, with a spinner where somebody watches."""
    progress.print(what, style="bold")
    with progress.status(what) if progress.is_terminal else contextlib.nullcontext():
        yield


def require_model(model: str) -> None:
    """Refuse a model that has no file: its folder would be watched by nobody. Dagster need not be asked."""
    models = declared_models()
    if model not in models:
        raise ConfigurationError(f"There is no model {model!r}. There is: {', '.join(models) or 'none'}.")


def declared_models() -> list[str]:
    """Return the names of the files under defs/models/, which are the models' names."""
    from ml_platform.defs import models

    return sorted(found.name for found in pkgutil.iter_modules(models.__path__))


def spec_of(model: str) -> ModelSpec:
    """Return what a model's author declared; importing its file imports Dagster."""
    require_model(model)
    members = vars(importlib.import_module(f"{MODELS}.{model}")).values()
    return next(member for member in members if isinstance(member, ModelSpec) and member.name == model)
