"""Render a template of this package; every value is escaped."""

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

# XML allows no control characters, UTF-8 no lone surrogates; directional controls reorder the text around them.
UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
TEMPLATES = Path(__file__).parent / "templates"


@cache
def load_environment() -> "Environment":
    """Return the environment of the templates. Undefined values raise an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def render(template: str, **values: object) -> str:
    """Return the text of a template, for instance ``verdict.html.j2``, with these values filled in.

    Unsafe characters of values are shown as replacement characters.
    """
    return UNSAFE.sub("\N{REPLACEMENT CHARACTER}", load_environment().get_template(template).render(values))
