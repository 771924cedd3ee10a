"""The format of a server's log lines: outside text in a message cannot change a terminal or forge a line."""

import logging
from typing import Any

from ml_platform.safe_text import escape_controls, hide_secrets


class SafeFormatter(logging.Formatter):
    """Formats a record as one line, without secrets of addresses; a traceback follows line by line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name in `logging`
        """Return the record's line."""
        return escape_controls(hide_secrets(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name in `logging`
        """Return the traceback's lines."""
        lines = super().formatException(ei).splitlines()
        return "\n".join(escape_controls(hide_secrets(line)) for line in lines)


def configure_server_logs(process: str = "") -> None:
    """Write warnings of all modules to stderr with time and level, unless logging is configured already.

    Parameters
    ----------
    process : str
        Name of the process in each line, followed by a colon; empty for none.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(SafeFormatter(f"%(asctime)s %(levelname)s {process}%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
