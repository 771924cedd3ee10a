"""`make lint`: check sentences against a short list of banned words, and functions against limits of length.

To ban a word, add a line to `BANNED`: a regular expression and what to write in its place.
"""

import argparse
import ast
import io
import re
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent

BANNED = {
    r"who(m)?ever|somebody|someone|anybody|anyone|nobody|everybody|no one": "name the user, the process or the worker",
    r"whatever|wherever": "name the thing, or say 'any'",
    r"(stands?|stood) (in|under|beside|at|on|there)": "is stored in, is in",
    r"so (many|much) (bytes|rows|seconds|times|files|characters|requests)": "give the unit: 'at most 8 GiB'",
    r"without a word": "silently",
    r"(is|are) no (?-i:[A-Z])\w*": "'X did not return a valid Y', 'X is not a Y'",
    r"(dies?|died) (first|early|without|on|in|with)": "exits, is killed, fails",
    r"(is|are|was|goes|turns|stays) red": "fails, failed",
    r"(is|are) told": "'X reports Y', 'X receives Y'",
    r"cannot be told": "is inconclusive",
    r"thereby|hereby|therein|thereof": "leave it out",
    r"(at )?least_|most_": "min_, max_",
}
OPENINGS = {
    r"Return (what|whether|how|who|where|which|when|why)\b": "a noun: 'Return the champion.', 'Return True if …'",
    r"(What|Who|Where|Whether|How)\b": "a noun or an imperative: 'Settings of the server.'",
}
EVERYTHING = [
    ".github",
    "ml_platform",
    "ml_platform_tests",
    "benchmarks",
    "docs",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
EXEMPT = {"plain_english.py", "test_plain_english.py"}  # they quote the banned words
MAX_WHAT = 2  # "what" a thousand words of docstrings: most hide a noun
MAX_FUNCTION_LINES = 40
MAX_MEDIAN_LINES = 8
MAX_CALLED_ONCE = 0.15  # private functions that are referenced at most once, of all functions
MAX_TEST_WORDS = 8
MAX_README_WORDS = 600


class Sentence(NamedTuple):
    """A text of a file that people read."""

    path: Path
    line: int
    kind: str
    text: str


Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_sentences(path: Path, source: str) -> Iterator[Sentence]:
    """Yield docstrings, strings of several words, and comments."""
    tree = ast.parse(source)
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef | ast.Module) and ast.get_docstring(node):
            first = node.body[0]
            assert isinstance(first, ast.Expr)
            docstrings.add(first.value)
            yield Sentence(path, first.lineno, "docstring", ast.get_docstring(node) or "")
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node not in docstrings
            and " " in node.value
        ):
            yield Sentence(path, node.lineno, "message", node.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Sentence(path, token.start[0], "comment", token.string)


def markdown_sentences(path: Path, source: str) -> Iterator[Sentence]:
    """Yield the lines of a page, without its blocks of code."""
    text = re.sub(
        r"^```.*?^```", lambda block: "\n" * block.group().count("\n"), source, flags=re.MULTILINE | re.DOTALL
    )
    for number, line in enumerate(text.splitlines(), 1):
        yield Sentence(path, number, "page", line)


def complaints(sentence: Sentence) -> Iterator[str]:
    """Yield a line for each banned word or opening in a sentence."""
    place = f"{sentence.path.relative_to(ROOT)}"
    for pattern, advice in BANNED.items():
        for match in re.finditer(rf"\b({pattern})\b", sentence.text, flags=re.IGNORECASE):
            line = sentence.line + sentence.text[: match.start()].count("\n")
            yield f"{place}:{line}: {sentence.kind}: '{match.group()}': {advice}"
    for pattern, advice in OPENINGS.items() if sentence.kind == "docstring" else ():
        if opening := re.match(pattern, sentence.text):
            yield f"{place}:{sentence.line}: docstring: opens with '{opening.group()}': {advice}"


def body_lines(function: Function) -> int:
    """Return a function's number of lines, without decorators and docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function):
        docstring = function.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def shape(sources: dict[Path, str]) -> Iterator[str]:
    """Yield the functions above a limit, and the totals of the package that miss theirs."""
    nodes = [(path, node) for path, source in sources.items() for node in ast.walk(ast.parse(source))]
    functions = [(path, node) for path, node in nodes if isinstance(node, Function)]
    for path, function in functions:
        if (lines := body_lines(function)) > MAX_FUNCTION_LINES:
            place = f"{path.relative_to(ROOT)}:{function.lineno}"
            yield f"{place}: {function.name} has {lines} lines, above {MAX_FUNCTION_LINES}"
    documented = [node for _, node in nodes if isinstance(node, Function | ast.ClassDef | ast.Module)]
    words = " ".join(ast.get_docstring(node) or "" for node in documented).lower().split()
    whats = sum(re.sub(r"\W", "", word) == "what" for word in words)
    figures = {
        "median lines of a function": (statistics.median(body_lines(f) for _, f in functions), MAX_MEDIAN_LINES),
        "share of private functions referenced at most once": (called_once(nodes), MAX_CALLED_ONCE),
        "'what' a thousand words of docstrings": (1000 * whats / len(words), MAX_WHAT),
    }
    for name, (value, limit) in figures.items():
        if value > limit:
            yield f"ml_platform: {name}: {value:.3g}, above {limit}"


def called_once(nodes: list[tuple[Path, ast.AST]]) -> float:
    """Return the share of the functions that are private and whose name occurs at most once in the package."""
    references = Counter(node.id for _, node in nodes if isinstance(node, ast.Name))
    references.update(node.attr for _, node in nodes if isinstance(node, ast.Attribute))
    names = [node.name for _, node in nodes if isinstance(node, Function)]
    return sum(bool(re.match("_[^_]", name)) and references[name] <= 1 for name in names) / len(names)


def long_names(path: Path, source: str) -> Iterator[str]:
    """Yield the tests whose name has more than eight words."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function) and node.name.startswith("test_"):
            words = len(node.name.split("_")) - 1
            if words > MAX_TEST_WORDS:
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {words} words, above {MAX_TEST_WORDS}"


def check(paths: list[str]) -> list[str]:
    """Return the complaints about the files under `paths`, all files of the repository if there are none."""
    roots = [ROOT / path for path in paths or EVERYTHING]
    files = sorted({file for root in roots for file in ([root] if root.is_file() else root.rglob("*.*"))})
    result = []
    for file in files:
        if file.suffix not in {".py", ".md"} or file.name in EXEMPT:
            continue
        source = file.read_text()
        read = python_sentences if file.suffix == ".py" else markdown_sentences
        result += [line for sentence in read(file, source) for line in complaints(sentence)]
        if file.suffix == ".py" and "ml_platform_tests" in file.parts:
            result += long_names(file, source)
    package = {file: file.read_text() for file in sorted((ROOT / "ml_platform").rglob("*.py"))}
    result += shape(package) if not paths else ()
    readme = len((ROOT / "README.md").read_text().split())
    if not paths and readme > MAX_README_WORDS:
        result.append(f"README.md: {readme} words, above {MAX_README_WORDS}")
    return result


def main() -> int:
    """Print the complaints. Return 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "paths", nargs="*", help="files or folders; the limits of the whole package are checked without any"
    )
    found = check(parser.parse_args().paths)
    sys.stdout.write("".join(f"{line}\n" for line in found))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
