"""What code and which environment a candidate was made with, as digests."""

import hashlib
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
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


def environment() -> dict[str, str]:
    """Return what besides code and lock can change a model's numbers, by name."""
    return {
        "Python": platform.python_version(),
        "system": platform.system(),
        "CPU": platform.machine(),
        "number of CPUs": str(os.cpu_count()),
        THREADS: os.environ.get(THREADS, ""),
    }


def not_as_locked(root: Path = PROJECT_ROOT) -> list[str]:
    """Return, as sentences, which installed packages have another version than ``requirements.lock`` pins."""
    from packaging.requirements import Requirement

    lines = [line.removesuffix("\\").strip() for line in (root / "requirements.lock").read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line[:1].isalnum()]
    wanted = {pin.name: pin.specifier for pin in pins if pin.marker is None or pin.marker.evaluate()}
    found = {name: _installed(name) for name in wanted}
    return [
        f"{name} {version or 'not'} installed, {wanted[name]} locked"
        for name, version in found.items()
        if version is None or version not in wanted[name]
    ]


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# scikit-learn's trees keep the number of threads that they were fitted with: other threads, other bytes.
THREADS = "OMP_NUM_THREADS"
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def has_commit(commit: str, root: Path = PROJECT_ROOT) -> bool:
    """Whether git has this commit, given by its whole hash; False for anything else."""
    return bool(COMMIT.fullmatch(commit)) and _says_yes(root, "cat-file", "-e", f"{commit}^{{commit}}")


def is_in_history(commit: str, root: Path = PROJECT_ROOT) -> bool:
    """Whether HEAD is this commit or comes after it."""
    return has_commit(commit, root) and _says_yes(root, "merge-base", "--is-ancestor", commit, "HEAD")


@contextmanager
def checked_out(commit: str, root: Path = PROJECT_ROOT) -> Iterator[Path]:
    """Check a commit out in a temporary worktree, which is removed afterwards.

    Raises
    ------
    ConfigurationError
        git refuses.
    """
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        tree = Path(folder).resolve() / "code"
        # No hook of the person's: what stands in the commit is all that may run.
        _git(root, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--quiet", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def _says_yes(root: Path, *arguments: str) -> bool:
    try:
        _git(root, *arguments)
    except ConfigurationError:
        return False
    return True


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
