import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_platform.database import Database
from ml_platform.errors import ConflictError, EvidenceError
from ml_platform.records import Candidate, LedgerEntry
from ml_platform.stages.promotion import promote
from ml_platform_tests import fakes


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'platform.db'}")
    yield opened
    opened.close()


def trained(database: Database, version: int, **changes: Any) -> Candidate:
    """Return the candidate of a version, trained in the order in which tests ask for them."""
    try:
        return database.candidate(f"candidate-{version}")
    except EvidenceError:
        database.record_candidate(fakes.candidate(f"candidate-{version}", **changes))
    return database.candidate(f"candidate-{version}")


def promote_numbered(database: Database, version: int, reason: str = "schedule", **changes: Any) -> LedgerEntry:
    candidate = trained(database, version, **changes)
    verdict = fakes.verdict(candidate)
    return promote(database, fakes.registration(candidate, version), verdict, reason=reason, actor="test")


def test_the_first_promotion_opens_the_ledger(database: Database) -> None:
    entry = promote_numbered(database, 1)

    assert (entry.sequence, entry.version, entry.previous_version) == (1, 1, None)
    assert database.champion("visits") == entry


def test_a_promotion_names_its_evidence_its_reason_and_who_asked(database: Database) -> None:
    candidate = fakes.candidate()
    verdict = fakes.verdict(candidate)

    registration = fakes.registration(candidate, 3)
    entry = promote(database, registration, verdict, reason="manual: a test", actor="ada")

    assert (entry.action, entry.candidate, entry.verdict_digest) == ("promotion", candidate.id, verdict.digest)
    assert (entry.reason, entry.actor) == ("manual: a test", "ada")


def test_each_promotion_follows_the_one_before(database: Database) -> None:
    for version in (1, 5, 2):
        promote_numbered(database, version)

    history = database.history("visits")
    assert [entry.version for entry in history] == [1, 5, 2]
    assert [entry.sequence for entry in history] == [1, 2, 3]
    assert [entry.previous_version for entry in history] == [None, 1, 5]


def test_promoting_the_champion_again_changes_nothing(database: Database) -> None:
    promote_numbered(database, 1)
    first = promote_numbered(database, 2, reason="schedule")

    again = promote_numbered(database, 2, reason="manual: once more")

    assert again == first
    assert len(database.history("visits")) == 2


def test_a_candidate_that_a_newer_one_has_overtaken_is_not_promoted(database: Database) -> None:
    slow = trained(database, 2)
    champion = promote_numbered(database, 3)

    with pytest.raises(ConflictError, match="Version 3 of 'visits' is champion and was made of newer rows, or later"):
        promote_numbered(database, 2)

    assert slow.trained_at < trained(database, 3).trained_at
    assert database.history("visits") == [champion]


def test_newer_rows_outrank_a_later_training(database: Database) -> None:
    old_rows = replace(fakes.candidate().lineage, dataset_version=1)
    champion = promote_numbered(database, 1)

    with pytest.raises(ConflictError, match="made of newer rows"):
        promote_numbered(database, 2, lineage=old_rows)

    assert database.champion("visits") == champion


class Held(Database):
    """A database whose readers of the champion wait until all of them have read."""

    everybody_has_read = threading.Barrier(2)

    def champion(self, model: str) -> LedgerEntry | None:
        found = super().champion(model)
        self.everybody_has_read.wait(timeout=20)
        return found


@pytest.mark.fault("P7")
@pytest.mark.parametrize("champions_before", [0, 1])
def test_of_two_promotions_at_once_one_wins_and_the_other_gets_a_conflict(
    database: Database, champions_before: int
) -> None:
    for version in range(1, champions_before + 1):
        promote_numbered(database, version)
    for version in (8, 9):
        trained(database, version)
    address = database.url.render_as_string(hide_password=False)
    outcomes: dict[int, str] = {}

    def try_to_promote(version: int) -> None:
        rival = Held(address)
        try:
            outcomes[version] = f"promoted {promote_numbered(rival, version).version}"
        except ConflictError:
            outcomes[version] = "conflict"
        finally:
            rival.close()

    threads = [threading.Thread(target=try_to_promote, args=(version,)) for version in (8, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    (winner,) = [version for version, outcome in outcomes.items() if outcome == f"promoted {version}"]
    assert sorted(outcomes.values()) == ["conflict", f"promoted {winner}"]
    history = database.history("visits")
    assert [entry.sequence for entry in history] == list(range(1, champions_before + 2))
    assert [entry.previous_version for entry in history] == [None, *(entry.version for entry in history[:-1])]
    assert history[-1].version == winner
