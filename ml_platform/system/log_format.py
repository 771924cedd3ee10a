"""The format of a server's log lines: outside text in a message cannot change a terminal or forge a line."""

import logging
import traceback
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


class FormatterWithoutValues(SafeFormatter):
    """Formats tracebacks without the texts of exceptions, which may quote values of a request."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name in `logging`
        """Return the places and the exception's type."""
        places = "".join(traceback.format_tb(ei[2])).splitlines()
        return "\n".join(map(escape_controls, [*places, f"{ei[0].__name__} (its message may quote a request)"]))


def configure_server_logs(process: str = "", *, show_error_texts: bool = True) -> None:
    """Write warnings of all modules to stderr with time and level, unless logging is configured already.

    Parameters
    ----------
    process : str
        Name of the process in each line, followed by a colon; empty for none.
    show_error_texts : bool
        False leaves the texts of exceptions out of tracebacks.
    """
    handler = logging.StreamHandler()
    formatter = SafeFormatter if show_error_texts else FormatterWithoutValues
    handler.setFormatter(formatter(f"%(asctime)s %(levelname)s {process}%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
