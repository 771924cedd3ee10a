"""The check of sentences finds banned words at their line, and lets plain sentences pass."""

from pathlib import Path

import pytest

from ml_platform_tests import plain_english

PROSE = '''"""Return {opening} a version."""

# The process {comment}.
MESSAGE = "Run it again: {message}."
'''


def complaints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **words: str) -> list[str]:
    monkeypatch.setattr(plain_english, "ROOT", tmp_path)
    plain = {"opening": "the digest of", "comment": "exits", "message": "nothing was changed"}
    source = PROSE.format(**{**plain, **words})
    sentences = plain_english.python_sentences(tmp_path / "module.py", source)
    return [line for sentence in sentences for line in plain_english.complaints(sentence)]


def test_plain_sentences_have_no_complaints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complaints(tmp_path, monkeypatch) == []


@pytest.mark.parametrize(
    ("place", "words", "line"),
    [
        ("opening", "what is left of", 1),
        ("comment", "dies without an answer", 3),
        ("message", "Somebody released it", 4),
        ("message", "the file is no Parquet", 4),
    ],
)
def test_banned_words_are_found_at_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, words: str, line: int
) -> None:
    [complaint] = complaints(tmp_path, monkeypatch, **{place: words})

    assert complaint.startswith(f"module.py:{line}: ")


def test_code_blocks_of_a_page_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_english, "ROOT", tmp_path)
    page = "One line.\n\n```sh\nwhoever\n```\nwhoever\n"

    [found] = [
        line
        for sentence in plain_english.markdown_sentences(tmp_path / "page.md", page)
        for line in plain_english.complaints(sentence)
    ]

    assert found.startswith("page.md:6: page: 'whoever'")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("    pass\n" * 40, "module.py:1: long_function has 41 lines, above 40"),
        ("    pass\n" * 39, None),
        ('    """Return it."""\n' + "    pass\n" * 39, None),
    ],
)
def test_function_length_excludes_the_docstring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, expected: str | None
) -> None:
    monkeypatch.setattr(plain_english, "ROOT", tmp_path)
    source = f'def long_function():\n{body}\n\ndef documented():\n    """Return it."""\n'

    found = [line for line in plain_english.shape({tmp_path / "module.py": source}) if "long_function" in line]

    assert found == ([] if expected is None else [expected])


def test_long_test_names_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_english, "ROOT", tmp_path)
    eight = "test_one_two_three_four_five_six_seven_eight"
    source = f"def {eight}(): ...\ndef {eight}_nine(): ...\n"

    [found] = plain_english.long_names(tmp_path / "test_module.py", source)

    assert found.startswith("test_module.py:2: ")
