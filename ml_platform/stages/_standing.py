"""Which champions stand in a ledger, and which were rolled back."""

from collections.abc import Sequence

from ml_platform.records import Action, LedgerEntry

# What a promotion's `details` say of its rollout: the author's declaration, and the version that answered until then.
ROLLOUT, FROM_VERSION = "rollout", "from_version"


def standing(history: Sequence[LedgerEntry]) -> tuple[list[int], set[int]]:
    """Return the versions that stand in the ledger, and those that were rolled back.

    Parameters
    ----------
    history : sequence of LedgerEntry
        The decisions, oldest first.

    Returns
    -------
    champions : list of int
        Each promoted on top of the one before; the last is the champion, the one before it what a rollback returns to.
        A champion whose rollout was overtaken before it answered everything is not among them.
    rolled_back : set of int
        What a rollback left and nothing brought back since.
    """
    champions, rolled_back = list[int](), set[int]()
    for entry in history:
        if entry.action == Action.ROLLBACK:
            kept = champions[: champions.index(entry.version)] if entry.version in champions else champions
            # What was promoted on top of the target goes with the champion, which goes in any case.
            gone = {*champions[len(kept) :], *champions[-1:]}
            champions, rolled_back = kept, (rolled_back | gone) - {entry.version}
        elif entry.action == Action.REPLACEMENT:  # the champion, under another number
            champions = champions[:-1]
        elif entry.details.get(FROM_VERSION) in champions:  # not on top of one that was still on its way in
            champions = champions[: champions.index(entry.details[FROM_VERSION]) + 1]
        champions = [*champions, entry.version]
    return champions, rolled_back
