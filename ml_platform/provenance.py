"""What code and which environment a candidate was made with, as digests."""

import hashlib
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
    commit = _git(root, "rev-parse", "HEAD").strip()
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z").split("\0")
    difference = hashlib.sha256(_git(root, "diff", "HEAD").encode())
    for name in sorted(filter(None, untracked)):
        difference.update(f"{name}\0{file_digest(root / name)}\0".encode())
    clean = hashlib.sha256().hexdigest()
    return commit if difference.hexdigest() == clean else f"{commit}+{difference.hexdigest()[:16]}"


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        raise ConfigurationError(
            f"git cannot tell the code revision of {root}: {detail.strip()}. Commit the checkout, or set "
            "ML_PLATFORM_CODE_REVISION where there is none."
        ) from error
    return done.stdout
