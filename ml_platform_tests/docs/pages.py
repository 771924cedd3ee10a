"""The Markdown pages of the repository, with their links, anchors and commands."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ml_platform.settings import PROJECT_ROOT

DOCS = PROJECT_ROOT / "docs"
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[(?P<text>(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (?P<title>.+)$", flags=re.MULTILINE)
SHELLS = {"", "sh", "bash", "console", "text"}


class Link(NamedTuple):
    """A link to a file of the repository: its text, the file, and the anchor, which is empty for a whole page."""

    text: str
    file: Path
    anchor: str


def list_pages() -> list[Path]:
    """Return every page that people read."""
    top = [PROJECT_ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")]
    return [*top, *sorted((PROJECT_ROOT / "benchmarks").rglob("*.md")), *sorted(DOCS.rglob("*.md"))]


def page_name(page: Path) -> str:
    """Return a page's path in the repository, the id of its tests."""
    return str(page.relative_to(PROJECT_ROOT))


def without_code(text: str) -> str:
    """Return a page's text without its blocks of code and inline code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as the site and GitHub make them."""
    titles = [re.sub(r"[`*]", "", match["title"]) for match in HEADING.finditer(FENCE.sub("", text))]
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def links(page: Path, text: str) -> Iterator[Link]:
    """Yield the links of a page to files, images included; addresses of other sites are left out."""
    for match in LINK.finditer(without_code(text)):
        name, _, anchor = match["target"].partition("#")
        if "://" not in name:
            yield Link(match["text"], (page.parent / name).resolve() if name else page, anchor)


def inline_code(text: str) -> list[str]:
    """Return the inline code of a page."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def single_options(text: str) -> list[str]:
    """Return the options that a page names by themselves, as inline code."""
    return [re.split(r"[\s=]", code)[0] for code in inline_code(text) if code.startswith("--")]


def shown_output(text: str, command: str) -> list[str]:
    """Return the output of a command that a page shows, without the lines that it leaves out."""
    blocks = [match["code"] for match in FENCE.finditer(text) if match["language"] == "console"]
    runs = [run.splitlines() for block in blocks for run in re.split(r"^\$ ", block, flags=re.MULTILINE)]
    return [line for run in runs if run and run[0] == command for line in run[1:] if line.strip() not in {"", "…"}]


def without_figures(line: str) -> str:
    """Return a line of output without what differs between runs: numbers, digests, times, paths and users."""
    line = re.sub(r"\S*var/\S+|\b\w+@\w+\b|\b[0-9a-f]{8,}(?:-[0-9a-f]{4,})*\b|[-+]?\d[\w.,:-]*", "#", line)
    return " ".join(line.split())


def command_lines(text: str, program: str) -> Iterator[list[str]]:
    """Yield the words behind a program's name, of each command line in a page's code, as blocks or inline."""
    blocks = [match["code"] for match in FENCE.finditer(text) if match["language"] in SHELLS]
    code = "\n".join([*blocks, *inline_code(text)]).replace("\\\n", " ")
    for match in re.finditer(rf"(?:^|[\s(]){program} ([^\n|;&#>)]+)", code):
        yield shlex.split(match[1].replace("'", ""))
