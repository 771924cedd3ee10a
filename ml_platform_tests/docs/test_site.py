"""The documentation's site builds without a warning and loads nothing from elsewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ml_platform.settings import PROJECT_ROOT

# Elements that a browser loads by itself; links that a reader clicks are none of them.
LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\s\"'>]+)")


def build_site(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of the pages in a folder's docs/; its pages are in var/docs/."""
    shutil.copy(PROJECT_ROOT / "mkdocs.yml", folder)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_site_builds_and_loads_nothing_external(tmp_path: Path) -> None:
    pytest.importorskip("zensical")
    shutil.copytree(PROJECT_ROOT / "docs", tmp_path / "docs")

    built = build_site(tmp_path)

    assert built.returncode == 0, built.stdout + built.stderr
    pages = sorted((tmp_path / "var" / "docs").rglob("*.html"))
    assert len(pages) > 30
    assert {page.name: LOADED.findall(page.read_text()) for page in pages if LOADED.search(page.read_text())} == {}


def test_navigation_is_complete() -> None:
    """`zensical build --strict` accepts an entry without a file, a page without an entry, and a missing image."""
    text, docs = (PROJECT_ROOT / "mkdocs.yml").read_text(), PROJECT_ROOT / "docs"
    entries = set(re.findall(r"[\w/-]+\.md", text.partition("\nnav:")[2]))
    pages = {str(page.relative_to(docs)) for page in docs.rglob("*.md")}
    images = {
        page.parent / name
        for page in docs.rglob("*.md")
        for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())
    }

    assert entries <= pages
    assert {page for page in pages - entries if not re.fullmatch(r"decisions/\d{4}-.*", page)} == set()
    assert len(images) > 1
    assert [image for image in images if not image.is_file()] == []


@pytest.mark.slow
def test_site_with_broken_link_fails(tmp_path: Path) -> None:
    pytest.importorskip("zensical")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Title\n\n[broken](nowhere.md)\n")

    built = build_site(tmp_path)

    assert built.returncode != 0


@pytest.mark.parametrize("element", ['<script src="https://x.y/a.js">', "<link rel=x href=//x.y/a.css>"])
def test_external_element_is_found(element: str) -> None:
    assert LOADED.search(element)
    assert not LOADED.search('<a href="https://x.y/">')
