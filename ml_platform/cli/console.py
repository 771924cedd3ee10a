"""Consoles whose text is data: no markup, no terminal sequences, no secrets of addresses; one line for each text."""

import json as json_format
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text

from ml_platform.safe_text import escape_controls, hide_secrets


def literal(text: str, style: str = "") -> Text:
    """Return a text with a style, in which outside text cannot do anything."""
    return Text(escape_controls(hide_secrets(text)), style)


class SafeConsole(Console):
    """A console that prints strings literally, in tables too.

    Names, reasons and values of files are not markup, and control characters, line breaks included, are shown as
    escapes. Print several lines with several calls.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text of a string, which rich calls for each string that it prints."""
        return super().render_str(escape_controls(hide_secrets(text)), **options)

    def print_json(
        self, json: str | None = None, *, data: Any = None, default: Callable[[Any], Any] | None = None, **options: Any
    ) -> None:
        """Print data, or a JSON text, as JSON in ASCII; a number that is not finite, which JSON lacks, is null.

        Parameters
        ----------
        json : str or None
            JSON text; ``None`` prints `data`.
        data : Any
        default : callable or None
            Converts values that JSON lacks; ``None`` refuses them.
        **options : Any
            Those of `json.dumps`.
        """
        text = json_format.dumps(data, default=default) if json is None else json
        finite = json_format.loads(text, parse_constant=lambda _: None)
        # JSON need not escape the control character DEL.
        text = json_format.dumps(finite, **{"indent": 2, **options}).replace("\x7f", "\\u007f")
        self.print(Text(text), soft_wrap=True)


def prepare_streams() -> None:
    """Print characters that the terminal's encoding lacks as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
