"""Read a change from git: its first commit's parent and the files that differ since."""

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

from ml_platform.errors import ConfigurationError


class Change(NamedTuple):
    """A commit, and the status (A, M or D) of the files that differ from it, by path from the repository's root."""

    commit: str
    files: dict[str, str]


def find_merge_base(ref: str, root: Path) -> str:
    """Return the last commit that HEAD's history shares with a ref's; the ref's own commit if git finds none.

    Raises
    ------
    ConfigurationError
        git has no such commit.
    """
    commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}").decode().strip()
    try:
        # Later commits of the base are no part of a branch that lags behind it.
        return _git(root, "merge-base", commit, "HEAD").decode().strip()
    except ConfigurationError:  # a shallow clone, or no common history
        return commit


def change_since(ref: str, root: Path) -> Change:
    """Return the working tree's changes, committed or not, since its merge base with a ref.

    Raises
    ------
    ConfigurationError
        git has no such commit.
    """
    commit = find_merge_base(ref, root)
    # Without renames: a moved file counts as deleted in its old place.
    output = os.fsdecode(_git(root, "diff", "--name-status", "--no-renames", "--no-ext-diff", "-z", commit, "--"))
    parts = output.split("\0")[:-1]
    files = dict(zip(parts[1::2], parts[::2], strict=True))
    new = os.fsdecode(_git(root, "ls-files", "--others", "--exclude-standard", "-z")).split("\0")
    return Change(commit=commit, files={**files, **{name: "A" for name in new if name}})


def _git(root: Path, *arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        detail = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or "it has no such commit"
        raise ConfigurationError(
            f"git {arguments[0]} of {arguments[-1]} failed in {root}: {detail}. Use a commit that exists there; in a "
            "shallow clone fetch it first: git fetch --depth 100 origin main."
        ) from error
    return done.stdout
