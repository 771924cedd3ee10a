"""`ml-platform serve`: the prediction server of one model."""

import logging
from functools import partial
from typing import Annotated

import typer

from ml_platform.cli.common import Model, output
from ml_platform.models import discovery


def serve(
    model: Model,
    port: Annotated[int, typer.Option(help="Port of the prediction API; 0 selects a free port.")] = 8080,
    admin_port: Annotated[int, typer.Option(help="Port of the admin API; 0 selects a free port.")] = 8081,
    workers: Annotated[int, typer.Option(help="Number of worker processes.", min=1, max=256)] = 1,
    host: Annotated[str, typer.Option(help="Address to bind both ports to.")] = "127.0.0.1",
) -> None:
    """Serve a model's predictions over HTTP.

    The ledger and the traffic plan select the versions. Request formats: MLflow's and the Open Inference Protocol's. A
    name that is neither declared nor in the ledger is refused.
    """
    from ml_platform.platform import Platform
    from ml_platform.serving.supervisor import supervisor
    from ml_platform.serving.supervisor.version_selection import require_servable_model
    from ml_platform.system.log_format import configure_server_logs

    # A server's log lines have timestamps; progress messages of other commands have none.
    configure_server_logs()
    logger = logging.getLogger("ml_platform")
    logger.handlers.clear()
    logger.setLevel(logging.INFO)
    say = partial(output.print, soft_wrap=True)
    platform = Platform()
    require_servable_model(platform, model, discovery.names())
    supervisor.serve(platform, model, host=host, port=port, admin_port=admin_port, workers=workers, say=say)
