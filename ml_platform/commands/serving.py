"""`ml-platform serve`: the prediction server of one model, until it is interrupted."""

import logging
from typing import Annotated

import typer

from ml_platform.commands.shared import Model


def serve(
    model: Model,
    port: Annotated[int, typer.Option(help="Port for predictions; 0 takes a free one.")] = 8080,
    admin_port: Annotated[int, typer.Option(help="Port for the admin routes; 0 takes a free one.")] = 8081,
    workers: Annotated[int, typer.Option(help="Processes that answer.", min=1, max=256)] = 1,
    host: Annotated[str, typer.Option(help="Address of both ports.")] = "127.0.0.1",
) -> None:
    """Serve what the ledger and the traffic plan name, in the formats of MLflow and the Open Inference Protocol."""
    from ml_platform.serving import supervisor
    from ml_platform.workflows import Platform

    # Of a server people want to know when: its lines have times, and what a command says as it works has none.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logger = logging.getLogger("ml_platform")
    logger.handlers.clear()
    logger.setLevel(logging.INFO)
    supervisor.serve(Platform(), model, host=host, port=port, admin_port=admin_port, workers=workers, say=typer.echo)
