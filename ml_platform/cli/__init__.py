"""The command line: a thin layer over the package. Only commands that launch a run import Dagster.

Exit status: 0 success; 1 the command finished, but something was refused (a gate failed, a file was quarantined);
2 the command failed: its message names the cause and the next step.
"""

import contextlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from ml_platform.cli import automation, ci, data, lifecycle, local, predict, serve, status, traffic
from ml_platform.cli.common import FAILED, progress
from ml_platform.cli.console import prepare_streams
from ml_platform.errors import PlatformError
from ml_platform.safe_text import escape_controls, hide_secrets
from ml_platform.system.file_modes import make_files_private

Command = Callable[..., None]


def _build_group(text: str, commands: dict[str, Command]) -> typer.Typer:
    group = typer.Typer(help=text, no_args_is_help=True)
    for name, command in commands.items():
        group.command(name)(command)
    return group


# Commands by help panel, in the order of `ml-platform --help`.
PANELS: dict[str, dict[str, Command | typer.Typer]] = {
    "Data": {
        "land": data.land,
        "ingest": data.ingest,
        "quarantine": _build_group(
            "Show quarantined data; add an arrival; release rows that pass now.",
            {"show": data.quarantine_show, "add": data.quarantine_add, "release": data.quarantine_release},
        ),
        "forget": data.forget,
    },
    "Lifecycle": {
        "models": automation.models,
        "status": status.status,
        "retrain": lifecycle.retrain,
        "resume": lifecycle.resume,
        "approve": lifecycle.approve,
        "reconcile": lifecycle.reconcile,
    },
    "Serving": {
        "serve": serve.serve,
        "predict": predict.predict,
        "rollout": _build_group(
            "Show a champion's rollout or wait for it to finish.",
            {"status": traffic.rollout_status, "wait": traffic.rollout_wait},
        ),
        "rollback": traffic.rollback,
    },
    "Governance": {
        "history": status.history,
        "explain": _build_group(
            "Explain why a version is or is not champion.",
            {"champion": status.explain_champion, "version": status.explain_version},
        ),
        "reproduce": lifecycle.reproduce,
        "ledger": _build_group(
            "Verify the record of approvals, promotions and rollbacks.", {"verify": status.ledger_verify}
        ),
    },
    "CI": {
        "ci": _build_group(
            "Run quality gates on a change or a registered version.",
            {"affected": ci.affected, "compare": ci.compare, "report": ci.report, "check-version": ci.check_version},
        ),
        "webhook-server": automation.webhook_server,
    },
    "Local": {"demo": local.demo, "dev": local.dev},
}


class _Commands(TyperGroup):
    def list_commands(self, ctx: object) -> list[str]:  # noqa: ARG002 - typer's signature
        """Return commands in the order of `PANELS`; typer lists sub-apps first."""
        return [name for commands in PANELS.values() for name in commands]

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Parse the group's options."""
        with _escaped_usage_errors():
            return super().make_context(*args, **options)

    def invoke(self, context: Any) -> Any:
        """Parse a command's arguments and run it."""
        with _escaped_usage_errors():
            return super().invoke(context)


@contextlib.contextmanager
def _escaped_usage_errors() -> Iterator[None]:
    """Show control characters of arguments, which usage errors repeat, as escapes."""
    try:
        yield
    except TyperException as error:
        error.message = escape_controls(hide_secrets(error.message))
        raise


app = typer.Typer(
    cls=_Commands,
    help="Train, evaluate, promote and serve models, with verifiable evidence for each decision.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for panel, commands in PANELS.items():
    for name, command in commands.items():
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            app.command(name, rich_help_panel=panel)(command)


class _Progress(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        progress.print(f"  {record.getMessage()}")


def main() -> None:
    """Run the command line; print a platform error as one message and exit with status 2."""
    prepare_streams()
    make_files_private()
    logger = logging.getLogger("ml_platform")
    logger.addHandler(_Progress())
    logger.setLevel(logging.INFO)
    try:
        app()
    except PlatformError as error:
        progress.print(f"error: {error}", style="red")
        sys.exit(FAILED)
    except Exception:  # noqa: BLE001 - a bug: print the traceback; exit status 1 would mean "refused"
        for line in traceback.format_exc().splitlines():
            progress.print(line)
        sys.exit(FAILED)
