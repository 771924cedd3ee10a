"""The champions of a ledger that are still valid, and the versions that were rolled back."""

from collections.abc import Sequence

from ml_platform.records.ledger import Action, LedgerEntry

# Keys of a promotion's `details`: the author's declared rollout, and the version that was served until then.
ROLLOUT, FROM_VERSION = "rollout", "from_version"


def champion_stack(history: Sequence[LedgerEntry]) -> tuple[list[int], set[int]]:
    """Return the stack of champions after a history of decisions, and the versions that were rolled back.

    Parameters
    ----------
    history : sequence of LedgerEntry
        The decisions, oldest first.

    Returns
    -------
    champions : list of int
        Versions, each promoted on top of the one before: the last is the champion, and a rollback returns to the one
        before it. A champion that was replaced before its rollout finished is not in the list.
    rolled_back : set of int
        Versions that were rolled back and did not become champion again since.
    """
    champions, rolled_back = list[int](), set[int]()
    for entry in history:
        if entry.action == Action.ROLLBACK:
            kept = champions[: champions.index(entry.version)] if entry.version in champions else champions
            # All versions promoted on top of the target are rolled back, and the champion in any case.
            removed = {*champions[len(kept) :], *champions[-1:]}
            champions, rolled_back = kept, (rolled_back | removed) - {entry.version}
        elif entry.action == Action.REPLACEMENT:  # the champion, under another number
            champions = champions[:-1]
        elif entry.details.get(FROM_VERSION) in champions:  # drops a champion whose rollout had not finished
            champions = champions[: champions.index(entry.details[FROM_VERSION]) + 1]
        champions = [*champions, entry.version]
    return champions, rolled_back
