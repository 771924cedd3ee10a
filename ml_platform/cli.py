"""The command line: thin over `workflows`; Dagster is imported only where a command launches a run.

Exit status: 0 done; 1 done, and something was refused (a gate failed, a file was quarantined); 2 it could not be
done, and the message says why and what to do.
"""

import logging
import sys

import typer
from rich.console import Console

from ml_platform.commands import data, deciding, github, laptop, looking, predicting, quality, serving, traffic
from ml_platform.commands.shared import FAILED, progress
from ml_platform.errors import PlatformError

app = typer.Typer(
    help="From a dropped file to a champion in the registry, with evidence that anyone can check.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    laptop.demo,
    laptop.dev,
    looking.status,
    looking.history,
    data.land,
    data.ingest,
    data.forget,
    deciding.retrain,
    deciding.approve,
    deciding.reproduce,
    deciding.reconcile,
    serving.serve,
    predicting.predict,
    traffic.traffic,
    traffic.rollback,
):
    app.command()(command)
github.register(app)
quality.register(app)

quarantine = typer.Typer(help="Explain what is quarantined; release what passes now.", no_args_is_help=True)
quarantine.command("show")(data.quarantine_show)
quarantine.command("release")(data.quarantine_release)
app.add_typer(quarantine, name="quarantine")
explain = typer.Typer(help="Why a version is champion, or is not, with the proof.", no_args_is_help=True)
explain.command("champion")(looking.explain_champion)
explain.command("version")(looking.explain_version)
app.add_typer(explain, name="explain")
ledger = typer.Typer(help="The record of approvals, promotions and rollbacks.", no_args_is_help=True)
ledger.command("verify")(looking.ledger_verify)
app.add_typer(ledger, name="ledger")


class _Progress(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        progress.print(f"  {record.getMessage()}", markup=False)


def main() -> None:
    """Run the command line; turn the platform's own errors into one message and exit status 2."""
    logger = logging.getLogger("ml_platform")
    logger.addHandler(_Progress())
    logger.setLevel(logging.INFO)
    try:
        app()
    except PlatformError as error:
        Console(stderr=True, style="red", highlight=False).print(f"error: {error}", markup=False, soft_wrap=True)
        sys.exit(FAILED)
