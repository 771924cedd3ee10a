"""Check that MLflow responds, without importing MLflow, whose client takes seconds to import."""

from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy as sa

from ml_platform.errors import ConfigurationError, RemoteServiceError
from ml_platform.system import http_client

SECONDS = 3.0


def mlflow_responds(tracking_uri: str) -> bool:
    """Return True if MLflow's server responds, or its database file exists."""
    try:
        parts = urlsplit(tracking_uri)
        if parts.scheme not in {"http", "https"}:
            return Path(str(sa.make_url(tracking_uri).database)).is_file()
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        netloc = f"{host}:{parts.port}" if parts.port else str(host)
        http_client.send(f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}/health", seconds=SECONDS)
    except RemoteServiceError as error:
        return error.status is not None and error.status < 500
    except (ConfigurationError, sa.exc.ArgumentError, ValueError):  # "databricks", or a port of 99999
        return False
    return True
