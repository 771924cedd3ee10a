"""What git says of a change: the commit that it starts from and the files that differ since."""

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

from ml_platform.errors import ConfigurationError


class Change(NamedTuple):
    """Files that differ between a commit and the working tree, by path from the top: A, M or D, as git writes it."""

    commit: str
    files: dict[str, str]


def start_of(ref: str, root: Path) -> str:
    """Return the commit that a change against a ref starts from: where both histories meet, else the ref's own.

    Raises
    ------
    ConfigurationError
        git knows no such commit.
    """
    commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    try:
        # A branch that is behind is not charged with what the base did meanwhile.
        return _text(_git(root, "merge-base", _text(commit), "HEAD"))
    except ConfigurationError:  # a shallow clone, or no common history
        return _text(commit)


def change_since(ref: str, root: Path) -> Change:
    """Return what the working tree changes, committed or not, since the start of a change against a ref.

    Raises
    ------
    ConfigurationError
        git knows no such commit.
    """
    commit = start_of(ref, root)
    # Without renames: what was moved away from somewhere is deleted there.
    said = os.fsdecode(_git(root, "diff", "--name-status", "--no-renames", "--no-ext-diff", "-z", commit, "--"))
    parts = said.split("\0")[:-1]
    files = dict(zip(parts[1::2], parts[::2], strict=True))
    new = os.fsdecode(_git(root, "ls-files", "--others", "--exclude-standard", "-z")).split("\0")
    return Change(commit=commit, files={**files, **{name: "A" for name in new if name}})


def _text(said: bytes) -> str:
    return said.decode().strip()


def _git(root: Path, *arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        detail = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or "it has no such commit"
        raise ConfigurationError(
            f"git cannot say what changed in {root} ({' '.join(arguments[:1])} {arguments[-1]}): {detail}. Name a "
            "commit that is here; in a shallow clone fetch it first: git fetch --depth 100 origin main."
        ) from error
    return done.stdout
