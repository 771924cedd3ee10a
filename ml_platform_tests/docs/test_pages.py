"""Links of the pages lead somewhere, their commands exist, and the front page answers a reader's first questions."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from ml_platform.cli import app
from ml_platform.settings import PROJECT_ROOT
from ml_platform_tests.docs import pages
from ml_platform_tests.docs.reference import commands, option_names
from ml_platform_tests.plain_english import MAX_README_WORDS

PAGES = pages.list_pages()
# Options of docker and pip.
OTHER_OPTIONS = {"--help", "--build-arg", "--require-hashes"}
COMMANDS = typer.main.get_command(app)
# The questions with which a reader opens the front page, and the page that has the answer.
QUESTIONS = {
    "How do I add a model?": "how-to/add-a-model.md",
    "Why was my version refused?": "how-to/gates.md",
    "How do I roll back?": "how-to/promotion-and-rollback.md",
    "What does this gate mean?": "how-to/gates.md",
    "How do I deploy?": "how-to/deployment.md",
}


def broken_links(page: Path, text: str) -> list[str]:
    """Return the links of a page whose file or anchor does not exist."""
    broken = []
    for link in pages.links(page, text):
        name = f"{link.file}#{link.anchor}"
        if not link.file.exists() or (link.anchor and link.anchor not in pages.anchors(link.file.read_text())):
            broken.append(name)
    return broken


def unknown_commands(text: str) -> list[str]:
    """Return the command lines and single options of a page that `ml-platform` does not have."""
    known = OTHER_OPTIONS.union(*(option_names(option) for _, _, command in commands() for option in command.params))
    lines = [" ".join(words) for words in pages.command_lines(text, "ml-platform") if not is_command(words)]
    return lines + [option for option in pages.single_options(text) if option not in known]


def is_command(words: list[str]) -> bool:
    """Return True if words name a command, or a group alone, and every option is one of its own."""
    command: Any = COMMANDS
    names = [word for word in words if not word.startswith("-")]
    while getattr(command, "commands", None) and names:
        if names[0] not in command.commands:
            return False
        command = command.commands[names.pop(0)]
    known = {"--help", *(name for parameter in command.params for name in option_names(parameter))}
    return {word.partition("=")[0] for word in words if word.startswith("--")} <= known


def front_page_links(clicks: int) -> set[pages.Link]:
    """Return the links that a reader sees on the front page and on the pages at most `clicks` - 1 links away."""
    seen, reachable = set[Path](), [pages.DOCS / "index.md"]
    found = set[pages.Link]()
    for _ in range(clicks):
        new = {link for page in reachable for link in pages.links(page, page.read_text())}
        seen |= set(reachable)
        found |= new
        reachable = [link.file for link in new if link.file.suffix == ".md" and link.file not in seen]
    return found


@pytest.mark.parametrize("page", PAGES, ids=pages.page_name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text()) == []


@pytest.mark.parametrize(
    "line",
    ["[x](nowhere.md)", "[x](index.md#nowhere)", "[x](#nowhere)", "![x](images/nowhere.png)", "[![x](a.png)](no.md)"],
)
def test_broken_link_is_found(line: str) -> None:
    assert len(broken_links(pages.DOCS / "index.md", f"# Title\n\n{line}\n")) == 1


def test_pages_of_the_site_link_inside_it() -> None:
    site = [page for page in PAGES if page.is_relative_to(pages.DOCS)]

    outside = [link for page in site for link in pages.links(page, page.read_text())]

    assert len(outside) > 50
    assert [link for link in outside if not link.file.is_relative_to(pages.DOCS)] == []


@pytest.mark.parametrize("page", PAGES, ids=pages.page_name)
def test_commands_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", (PROJECT_ROOT / "Makefile").read_text(), flags=re.MULTILINE))

    made = {words[0] for words in pages.command_lines(text, "make") if re.fullmatch("[a-z-]+", words[0])}

    assert sorted(made - targets) == []
    assert unknown_commands(text) == []


@pytest.mark.parametrize(
    "line",
    [
        "`ml-platform nothing churn`",
        "`ml-platform quarantine nothing churn`",
        "`ml-platform rollback churn --nothing`",
        "`--nothing N`",
        '```sh\nml-platform rollback churn \\\n    --nothing "x"\n```',
    ],
)
def test_unknown_command_or_option_is_found(line: str) -> None:
    assert len(unknown_commands(line)) == 1


@pytest.mark.parametrize("question", QUESTIONS)
def test_question_is_answered_within_two_clicks(question: str) -> None:
    answers = {link for link in front_page_links(clicks=2) if link.text == question}

    assert {str(link.file.relative_to(pages.DOCS)) for link in answers} == {QUESTIONS[question]}


def test_every_page_is_within_three_clicks() -> None:
    reachable = {link.file for link in front_page_links(clicks=3)} | {pages.DOCS / "index.md"}

    assert sorted(pages.page_name(page) for page in pages.DOCS.rglob("*.md") if page not in reachable) == []


def test_readme_is_short() -> None:
    assert len((PROJECT_ROOT / "README.md").read_text().split()) <= MAX_README_WORDS


def test_readme_names_the_first_command() -> None:
    readme = (PROJECT_ROOT / "README.md").read_text()

    assert ["demo"] in [words[:1] for words in pages.command_lines(readme, "make")]


def test_decisions_are_all_listed() -> None:
    folder = pages.DOCS / "decisions"
    index = folder / "index.md"

    listed = {link.file for link in pages.links(index, index.read_text())}

    assert sorted(path.name for path in folder.glob("0*.md") if path not in listed) == []
