"""The file of ledger heads outside the database."""

import json
import os
from pathlib import Path

import pytest

from ml_platform.errors import LedgerError
from ml_platform.storage.ledger_anchor import LedgerAnchor
from ml_platform_tests.support import fakes
from ml_platform_tests.support.ledger_chains import chain, entry, heads


def test_anchor_has_one_json_line_per_entry(tmp_path: Path) -> None:
    anchor, stored = LedgerAnchor(tmp_path / "new" / "heads.log"), chain(2)
    anchor.append([stored[0][0]])
    anchor.append([stored[1][0], entry(1, model="others")])
    anchor.append([])

    lines = [json.loads(line) for line in anchor.path.read_text().splitlines()]

    assert [(line["model"], line["sequence"], line["digest"]) for line in lines[:2]] == [
        ("visits", 1, stored[0][1]),
        ("visits", 2, stored[1][1]),
    ]
    assert anchor.heads("visits") == heads(stored)
    assert anchor.models() == ["others", "visits"]


def test_anchor_missing_file_is_empty(tmp_path: Path) -> None:
    anchor = LedgerAnchor(tmp_path / "heads.log")

    assert (anchor.heads("visits"), anchor.models()) == ([], [])


@pytest.mark.parametrize("cut", [1, 20, 5000])
def test_anchor_torn_line_is_ignored_and_rewritten(tmp_path: Path, cut: int) -> None:
    anchor, stored = LedgerAnchor(tmp_path / "heads.log"), chain(60)
    anchor.append([each for each, _ in stored[:50]])
    whole = anchor.path.read_bytes()
    anchor.append([each for each, _ in stored[50:51]])
    os.truncate(anchor.path, len(whole) + min(cut, anchor.path.stat().st_size - len(whole) - 1))
    assert anchor.heads("visits") == heads(stored[:50])

    anchor.append([each for each, _ in stored[50:]])

    assert anchor.heads("visits") == heads(stored)
    assert anchor.path.read_bytes().startswith(whole)


@pytest.mark.parametrize(
    "line", ["", "{", "[]", '{"model": "visits"}', '{"model": "v", "sequence": "x", "digest": ""}']
)
def test_anchor_invalid_line_is_an_edit(tmp_path: Path, line: str) -> None:
    anchor = LedgerAnchor(tmp_path / "heads.log")
    anchor.append([entry(1)])
    with anchor.path.open("a") as file:
        file.write(f"{line}\n")

    with pytest.raises(LedgerError, match=r"Line 2 of .*heads\.log was changed"):
        anchor.heads("visits")


def test_anchor_logs_each_verdict_once(tmp_path: Path) -> None:
    anchor, stored = LedgerAnchor(tmp_path / "heads.log"), chain(1)
    candidate = fakes.candidate()
    first, second = fakes.verdict(candidate), fakes.verdict(candidate, auc_roc=0.5)
    for verdict in (first, second, first):
        anchor.append_verdict(verdict)
    anchor.append([stored[0][0]])

    assert anchor.verdicts("visits") == {candidate.id: [first.digest, second.digest]}
    assert anchor.verdicts("others") == {}
    assert anchor.heads("visits") == heads(stored)


@pytest.mark.parametrize("line", ['{"model": "visits", "verdict": "00"}', "[" * 100_000, "3"])
def test_anchor_line_of_no_known_kind_is_refused(tmp_path: Path, line: str) -> None:
    anchor = LedgerAnchor(tmp_path / "heads.log")
    anchor.path.write_text(f"{line}\n")

    with pytest.raises(LedgerError, match=r"Line 1 of .* was changed"):
        anchor.verdicts("visits")
