from dataclasses import replace

import pytest

from ml_platform.records.canonical import now
from ml_platform.records.ledger import LedgerEntry
from ml_platform.release.ledger import verification
from ml_platform_tests.support.ledger_chains import chain, heads


def test_chain_unchanged_has_no_problems() -> None:
    assert verification.chain_problems(chain(4)) == []
    assert verification.chain_problems([]) == []


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

    assert verification.chain_problems(stored) == ["entry 2 was changed: its digest is not the stored one"]


def test_every_field_is_bound() -> None:
    assert {*CHANGES, "sequence", "previous_digest"} == set(LedgerEntry.__dataclass_fields__)


def test_edit_with_fitting_digest_shows_in_next_entry() -> None:
    stored = chain(3)
    edited = replace(stored[1][0], reason="other")
    stored[1] = (edited, edited.digest)

    assert verification.chain_problems(stored) == ["entry 3 does not follow entry 2 by digest"]


def test_an_entry_removed_in_the_middle_shows() -> None:
    first, _, third = chain(3)

    assert verification.chain_problems([first, third]) == [
        "between entry 1 and entry 3 something was removed",
        "entry 3 does not follow entry 1 by digest",
    ]


def test_a_first_entry_that_was_removed_shows() -> None:
    assert len(verification.chain_problems(chain(3)[1:])) == 2


def test_a_reordered_pair_shows() -> None:
    first, second, third = chain(3)
    swapped = [
        (replace(third[0], sequence=2), third[1]),
        (replace(second[0], sequence=3), second[1]),
    ]

    problems = verification.chain_problems([first, *swapped])

    assert [problem for problem in problems if "was changed" in problem] == [
        "entry 2 was changed: its digest is not the stored one",
        "entry 3 was changed: its digest is not the stored one",
    ]


def test_anchor_of_earlier_head_has_no_problems() -> None:
    stored = chain(3)

    assert verification.anchor_problems("the log", heads(stored)[:2], stored) == []
    assert verification.anchor_problems("the log", [], stored) == []
    assert [late.sequence for late in verification.unanchored(heads(stored)[:2], stored)] == [3]
    assert verification.unanchored(heads(stored), stored) == []


def test_a_truncated_tail_shows_in_the_anchor_alone() -> None:
    stored = chain(3)

    assert verification.chain_problems(stored[:2]) == []
    assert verification.anchor_problems("the log", heads(stored), stored[:2]) == [
        "the log saw entry 3, and the ledger ends with 2: its tail was cut off"
    ]
    assert len(verification.anchor_problems("the log", heads(stored), [])) == 3


def test_a_replaced_chain_shows_in_the_anchor_alone() -> None:
    seen, other = heads(chain(2)), chain(3)

    assert verification.chain_problems(other) == []
    assert verification.anchor_problems("the log", seen, other) == [
        "the log saw another entry 1 than the ledger holds",
        "the log saw another entry 2 than the ledger holds",
    ]


@pytest.mark.fault("E3")
@pytest.mark.parametrize(
    ("log", "mlflow", "gone"),
    [
        ([1, 2, 3], [3], ""),
        ([1, 2], [2], ""),
        ([1, 2, 3], [2], ""),
        ([1, 2], [3], "the log of heads ends with entry 2, and MLflow saw entry 3"),
        ([1, 3], [3], "the log of heads holds no line for entry 2"),
        ([], [3], "the log of heads holds no entry"),
        ([1, 2, 3], [], "MLflow holds no entry"),
    ],
)
def test_anchor_lost_records_is_missing(log: list[int], mlflow: list[int], gone: str) -> None:
    stored = chain(3)
    stored[1] = (replace(stored[1][0], action="confirmation"), stored[1][1])
    every = {head.sequence: head for head in heads(stored)}
    anchors = {
        where: [every[number] for number in numbers]
        for where, numbers in {verification.LOG: log, verification.MLFLOW: mlflow}.items()
    }

    _, missing = verification.late_anchors(anchors, stored)

    assert [text.partition(":")[0] for text in missing] == ([gone] if gone else [])


def test_anchors_before_the_first_confirmation_are_behind() -> None:
    behind, missing = verification.late_anchors({verification.LOG: [], verification.MLFLOW: []}, chain(1))

    assert (len(behind), missing) == (2, [])
