import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ml_platform.errors import LedgerError
from ml_platform.records import GENESIS, LedgerEntry, LedgerHead, now
from ml_platform.stages import ledger
from ml_platform.stages.ledger import HeadsLog

Stored = list[tuple[LedgerEntry, str]]


def entry(sequence: int, previous_digest: str = GENESIS, model: str = "visits") -> LedgerEntry:
    return LedgerEntry(
        model=model,
        sequence=sequence,
        action="promotion",
        version=sequence,
        previous_version=sequence - 1 or None,
        candidate=f"candidate-{sequence}",
        verdict_digest="0" * 64,
        reason="schedule",
        actor="test",
        recorded_at=now(),
        details={"approval": None},
        previous_digest=previous_digest,
    )


def chain(length: int, model: str = "visits") -> Stored:
    entries: list[LedgerEntry] = []
    for sequence in range(1, length + 1):
        entries.append(entry(sequence, entries[-1].digest if entries else GENESIS, model))
    return [(each, each.digest) for each in entries]


def test_a_chain_as_it_was_written_has_no_problems() -> None:
    assert ledger.chain_problems(chain(4)) == []
    assert ledger.chain_problems([]) == []


CHANGES = {
    "model": "others",
    "action": "rollback",
    "version": 9,
    "previous_version": 9,
    "candidate": "other",
    "verdict_digest": "1" * 64,
    "reason": "other",
    "actor": "other",
    "recorded_at": now(),
    "details": {"approval": "1" * 64},
}


@pytest.mark.parametrize("field", CHANGES)
def test_an_edit_of_any_field_shows(field: str) -> None:
    stored = chain(3)
    stored[1] = (replace(stored[1][0], **{field: CHANGES[field]}), stored[1][1])  # type: ignore[arg-type]

    assert ledger.chain_problems(stored) == ["entry 2 was changed: its digest is not the stored one"]


def test_every_field_is_bound() -> None:
    assert {*CHANGES, "sequence", "previous_digest"} == set(LedgerEntry.__dataclass_fields__)


def test_an_edit_with_a_fitting_digest_shows_in_the_next_entry() -> None:
    stored = chain(3)
    edited = replace(stored[1][0], reason="other")
    stored[1] = (edited, edited.digest)

    assert ledger.chain_problems(stored) == ["entry 3 does not follow entry 2 by digest"]


def test_an_entry_removed_in_the_middle_shows() -> None:
    first, _, third = chain(3)

    assert ledger.chain_problems([first, third]) == [
        "between entry 1 and entry 3 something was removed",
        "entry 3 does not follow entry 1 by digest",
    ]


def test_a_first_entry_that_was_removed_shows() -> None:
    assert len(ledger.chain_problems(chain(3)[1:])) == 2


def test_a_reordered_pair_shows() -> None:
    first, second, third = chain(3)
    swapped = [
        (replace(third[0], sequence=2), third[1]),
        (replace(second[0], sequence=3), second[1]),
    ]

    problems = ledger.chain_problems([first, *swapped])

    assert [problem for problem in problems if "was changed" in problem] == [
        "entry 2 was changed: its digest is not the stored one",
        "entry 3 was changed: its digest is not the stored one",
    ]


def heads(stored: Stored) -> list[LedgerHead]:
    return [ledger.head_of(each) for each, _ in stored]


def test_an_anchor_that_saw_a_part_of_the_ledger_agrees() -> None:
    stored = chain(3)

    assert ledger.anchor_problems("the log", heads(stored)[:2], stored) == []
    assert ledger.anchor_problems("the log", [], stored) == []
    assert [late.sequence for late in ledger.unanchored(heads(stored)[:2], stored)] == [3]
    assert ledger.unanchored(heads(stored), stored) == []


def test_a_truncated_tail_shows_in_the_anchor_alone() -> None:
    stored = chain(3)

    assert ledger.chain_problems(stored[:2]) == []
    assert ledger.anchor_problems("the log", heads(stored), stored[:2]) == [
        "the log saw entry 3, and the ledger ends with 2: its tail was cut off"
    ]
    assert len(ledger.anchor_problems("the log", heads(stored), [])) == 3


def test_a_replaced_chain_shows_in_the_anchor_alone() -> None:
    seen, other = heads(chain(2)), chain(3)

    assert ledger.chain_problems(other) == []
    assert ledger.anchor_problems("the log", seen, other) == [
        "the log saw another entry 1 than the ledger holds",
        "the log saw another entry 2 than the ledger holds",
    ]


# The log of heads


def test_the_log_has_one_json_line_an_entry(tmp_path: Path) -> None:
    log, stored = HeadsLog(tmp_path / "new" / "heads.log"), chain(2)
    log.append([stored[0][0]])
    log.append([stored[1][0], entry(1, model="others")])
    log.append([])

    lines = [json.loads(line) for line in log.path.read_text().splitlines()]

    assert [(line["model"], line["sequence"], line["digest"]) for line in lines[:2]] == [
        ("visits", 1, stored[0][1]),
        ("visits", 2, stored[1][1]),
    ]
    assert log.heads("visits") == heads(stored)
    assert log.models() == ["others", "visits"]


def test_a_log_that_is_not_there_saw_nothing(tmp_path: Path) -> None:
    log = HeadsLog(tmp_path / "heads.log")

    assert (log.heads("visits"), log.models()) == ([], [])


@pytest.mark.parametrize("cut", [1, 20, 5000])
def test_a_line_that_a_crash_cut_off_is_none_and_is_written_again(tmp_path: Path, cut: int) -> None:
    log, stored = HeadsLog(tmp_path / "heads.log"), chain(60)
    log.append([each for each, _ in stored[:50]])
    whole = log.path.read_bytes()
    log.append([each for each, _ in stored[50:51]])
    os.truncate(log.path, len(whole) + min(cut, log.path.stat().st_size - len(whole) - 1))
    assert log.heads("visits") == heads(stored[:50])

    log.append([each for each, _ in stored[50:]])

    assert log.heads("visits") == heads(stored)
    assert log.path.read_bytes().startswith(whole)


@pytest.mark.parametrize(
    "line", ["", "{", "[]", '{"model": "visits"}', '{"model": "v", "sequence": "x", "digest": ""}']
)
def test_a_line_that_the_platform_never_wrote_is_an_edit(tmp_path: Path, line: str) -> None:
    log = HeadsLog(tmp_path / "heads.log")
    log.append([entry(1)])
    with log.path.open("a") as file:
        file.write(f"{line}\n")

    with pytest.raises(LedgerError, match=r"Line 2 of .*heads\.log was changed"):
        log.heads("visits")
