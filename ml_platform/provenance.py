"""What code and which environment a candidate was made with, as digests."""

import hashlib
import os
import subprocess
from pathlib import Path

from ml_platform.errors import ConfigurationError
from ml_platform.predictor import file_digest
from ml_platform.settings import PROJECT_ROOT


def lock_digest(root: Path = PROJECT_ROOT) -> str:
    """Return the hex sha256 of ``requirements.lock``, which pins what runs.

    Raises
    ------
    ConfigurationError
        There is no lock file, so that nobody could say what ran.
    """
    lock = root / "requirements.lock"
    if not lock.is_file():
        raise ConfigurationError(f"{lock} is missing: it pins what runs. Make it: make lock.")
    return file_digest(lock)


def code_revision(given: str | None = None, root: Path = PROJECT_ROOT) -> str:
    """Return the commit, followed by ``+`` and a digest of the difference where the tree is dirty.

    Parameters
    ----------
    given : str or None
        ``ML_PLATFORM_CODE_REVISION``, for an installation that is no checkout. ``None`` asks git.

    Raises
    ------
    ConfigurationError
        It was not given, and git cannot tell.
    """
    if given:
        return given
    commit = _git(root, "rev-parse", "HEAD").decode().strip()
    difference = hashlib.sha256(_git(root, "diff", "--binary", "--no-ext-diff", "--no-color", "HEAD"))
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z").split(b"\0")
    for name in sorted(filter(None, untracked)):
        difference.update(name + b"\0" + _content(root / os.fsdecode(name)) + b"\0")
    clean = hashlib.sha256().hexdigest()
    return commit if difference.hexdigest() == clean else f"{commit}+{difference.hexdigest()[:16]}"


def _content(path: Path) -> bytes:
    if path.is_symlink():
        return os.fsencode(path.readlink())
    # git names a folder where another repository stands in it: what that holds is not this project's code.
    return file_digest(path).encode() if path.is_file() else b"folder"


def _git(root: Path, *arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", b"").decode(errors="replace") or str(error)
        raise ConfigurationError(
            f"git cannot tell the code revision of {root}: {detail.strip()}. Commit the checkout, or set "
            "ML_PLATFORM_CODE_REVISION where there is none."
        ) from error
    return done.stdout
