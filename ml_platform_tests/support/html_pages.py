"""HTML pages as trees, as a browser's parser reads them."""

from collections.abc import Iterator
from html.parser import HTMLParser
from xml.etree.ElementTree import Element, TreeBuilder

VOID = {"meta", "br", "link", "img", "input"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.builder = TreeBuilder()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in VOID:
            self.builder.end(tag)

    def handle_endtag(self, tag: str) -> None:
        self.builder.end(tag)

    def handle_data(self, data: str) -> None:
        self.builder.data(data)


def read(page: str) -> Element:
    """Return the root element of a page; every element must be closed."""
    reader = _Reader()
    reader.feed(page.removeprefix("<!doctype html>").strip())
    return reader.builder.close()


def text(element: Element) -> str:
    """Return the visible text of an element, with single spaces, as a browser shows it."""
    return " ".join("".join(element.itertext()).split())


def sections(root: Element) -> dict[str, Element]:
    """Return the sections by their headings, in order."""
    return {text(section[0]): section for section in root.iter("section")}


def rows(element: Element) -> Iterator[list[str]]:
    """Yield the cells of every row of the tables in an element, with their headers."""
    for row in element.iter("tr"):
        yield [text(cell) for cell in row]
