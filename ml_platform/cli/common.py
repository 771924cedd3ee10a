"""Consoles, options, arguments and exit statuses that commands share."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from ml_platform.cli.console import SafeConsole, literal
from ml_platform.errors import ConfigurationError
from ml_platform.models import discovery
from ml_platform.settings import require_folder_name

progress = SafeConsole(stderr=True, soft_wrap=True)
# Files and logs have no width: 160 columns keep the rows of tables on one line.
output = SafeConsole(width=None if sys.stdout and sys.stdout.isatty() else 160)


def require_model_name(model: str) -> str:
    """Return the name of a model; raise BadParameter for a text that no model can have as its name.

    Such a text must not reach the database, which accepts no surrogates.
    """
    try:
        return require_folder_name(model)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from None


Model = Annotated[str, typer.Argument(help="Model name, e.g. churn.", callback=require_model_name)]
Version = Annotated[int, typer.Argument(help="Version number in the registry.")]
Reason = Annotated[str, typer.Option(help="Reason, stored in the ledger.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
REFUSED = 1
FAILED = 2
FIRST = 10


@contextlib.contextmanager
def working(message: str) -> Iterator[None]:
    """Print the current work, with a spinner on a terminal."""
    progress.print(message, style="bold")
    with progress.status(literal(message)) if progress.is_terminal else contextlib.nullcontext():
        yield


def require_model(model: str) -> None:
    """Raise ConfigurationError for an undeclared model, without importing any model."""
    models = discovery.names()
    if model not in models:
        raise ConfigurationError(f"There is no model {model!r}. Declared models: {', '.join(models) or 'none'}.")
