"""Known-bad candidates are stopped, each by name; and no guard can be switched off without one of them getting on."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_platform.errors import PlatformError
from ml_platform.records import Action
from ml_platform.workflows import Platform
from ml_platform_tests import fakes, mutants
from ml_platform_tests.mutants import MUTANTS, Mutant

SAID = {Action.REQUEST, Action.APPROVAL}


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """The home of a platform with a champion and its staged successor; tests copy it."""
    return mutants.honest_home(tmp_path_factory.mktemp("honest") / "home", empty_mlflow)


@pytest.fixture
def promising(honest: Path, tmp_path: Path) -> Iterator[Platform]:
    """A platform with a champion and its staged successor."""
    opened = fakes.copied_platform(honest, tmp_path / "home")
    yield opened
    opened.database.close()


def refusal(mutant: Mutant, platform: Platform) -> str:
    """Attempt what a mutant must not achieve; return the words of the refusal, or none if nobody refused."""
    try:
        mutant.attempt(platform, mutant.spec)
    except PlatformError as error:
        return str(error)
    return ""


def test_the_successor_without_a_change_is_promoted(promising: Platform) -> None:
    assert mutants.promote(promising, mutants.SPEC).version == 2
    assert promising.registry.alias("visits", "champion") == 2


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_stopped_by_name_and_changes_nothing(promising: Platform, name: str) -> None:
    mutant = MUTANTS[name]
    mutant.change(promising)
    database = promising.database
    champion, before = database.champion("visits"), database.ledger("visits")
    shown = promising.registry.alias("visits", "champion")

    said = refusal(mutant, promising)

    assert re.search(mutant.why, said), said or "nobody refused"
    assert database.champion("visits") == champion
    after = database.ledger("visits")
    assert after[: len(before)] == before
    assert {entry.action for entry in after[len(before) :]} <= SAID
    aligned = champion.version if mutant.attempt is mutants.reconcile and champion else shown
    assert promising.registry.alias("visits", "champion") == aligned
