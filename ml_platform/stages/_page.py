"""Pages of HTML that load nothing from elsewhere: every text is escaped, unless it is markup that was made here."""

import html

STYLE = """
:root{color-scheme:light dark;--now:#3b6fb5;--then:#c77d2b;--line:#8886}
body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem}
h1{font-size:1.4rem}section{border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem}
h2{font-size:1rem;margin:0;overflow-wrap:anywhere}p{margin:.2rem 0}
svg{width:100%;height:auto;display:block;margin:.4rem 0}
small{opacity:.8}code{font-size:.85em;word-break:break-all}
"""


class Html(str):
    """Markup, which is put into other markup as it is; any other text is escaped."""

    __slots__ = ()


def tag(name: str, *inside: object, **attributes: object) -> Html:
    """Return an element.

    Parameters
    ----------
    name : str
    *inside : object
        `Html` as it is; anything else as text, escaped; None is left out.
    **attributes : object
        ``class_`` stands for ``class``, ``aria_label`` for ``aria-label``; None is left out.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{said}>{together(*inside)}</{name}>")


def together(*parts: object) -> Html:
    """Return markup and texts one after the other; texts are escaped."""
    return Html(
        "".join(part if isinstance(part, Html) else html.escape(str(part)) for part in parts if part is not None)
    )


def document(title: str, style: str, body: Html) -> str:
    """Return a whole page. Its policy lets a browser load nothing, run nothing and send nothing."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}{style}</style></head><body>{body}</body></html>\n"
    )
