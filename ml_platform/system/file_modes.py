"""Modes of new files: a deployment's own are private to its user, files made for others keep the user's umask."""

import contextlib
import os
from collections.abc import Iterator

PRIVATE = 0o077
_of_user: list[int] = []


def make_files_private() -> None:
    """Give no other user access to files and folders that this process and its children create from now on.

    Entry points call it: the home holds raw data, keys and the ledger. A default ACL of a folder overrides it.
    """
    before = os.umask(PRIVATE)
    if not _of_user:
        _of_user.append(before)
    os.umask(before | PRIVATE)


@contextlib.contextmanager
def users_file_modes() -> Iterator[None]:
    """Create files with the modes of the user's umask in this block: those that a command writes for others."""
    before = os.umask(_of_user[0]) if _of_user else None
    try:
        yield
    finally:
        if before is not None:
            os.umask(before)
