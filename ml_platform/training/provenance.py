"""The code and the environment that a candidate was trained with, as digests."""

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
from ml_platform.settings import PROJECT_ROOT
from ml_platform.storage.model_files import file_digest


def lock_digest(root: Path = PROJECT_ROOT) -> str:
    """Return the hex sha256 of ``requirements.lock``, which pins the version of every installed package.

    Raises
    ------
    ConfigurationError
        The lock file is missing.
    """
    lock = root / "requirements.lock"
    if not lock.is_file():
        raise ConfigurationError(f"{lock} is missing, which pins the versions of all packages. Run: make lock")
    return file_digest(lock)


def code_revision(given: str | None = None, root: Path = PROJECT_ROOT) -> str:
    """Return the checkout's commit; a dirty checkout adds ``+`` and a digest of its difference from the commit.

    Parameters
    ----------
    given : str or None
        ``ML_PLATFORM_CODE_REVISION``, for an installation that is no checkout; returned as it is. A checkout is
        described by git alone, so that no variable can give its code another name.
    root : Path
        The folder of the code.

    Raises
    ------
    ConfigurationError
        git fails in the checkout; or `root` is no checkout, and `given` is None.
    """
    # A repository around the folder, for instance around a virtual environment, does not hold this code.
    is_checkout = (root / ".git").exists()
    if not is_checkout and not given:
        raise ConfigurationError(
            f"The code in {root} is no git checkout, so that its revision is unknown. Set ML_PLATFORM_CODE_REVISION "
            "to the commit that was installed."
        )
    if given and not is_checkout:
        return given
    commit = _git(root, "rev-parse", "HEAD").decode().strip()
    difference = hashlib.sha256(_git(root, "diff", "--binary", "--no-ext-diff", "--no-color", "HEAD"))
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z").split(b"\0")
    for name in sorted(filter(None, untracked)):
        path = root / os.fsdecode(name)
        if path.is_symlink():
            content = os.fsencode(path.readlink())
        else:
            # git lists a folder if it holds another repository, whose files are not this project's code.
            content = file_digest(path).encode() if path.is_file() else b"folder"
        difference.update(name + b"\0" + content + b"\0")
    clean = hashlib.sha256().hexdigest()
    return commit if difference.hexdigest() == clean else f"{commit}+{difference.hexdigest()[:16]}"


def environment() -> dict[str, str]:
    """Return the properties of this machine that can change a model's numbers, by name."""
    return {
        "Python": platform.python_version(),
        "system": platform.system(),
        "CPU": platform.machine(),
        "number of CPUs": str(os.cpu_count()),
        THREADS: os.environ.get(THREADS, ""),
    }


def find_lock_mismatches(root: Path = PROJECT_ROOT) -> list[str]:
    """Return one sentence for each package whose installed version differs from ``requirements.lock``."""
    from packaging.requirements import Requirement

    lines = [line.removesuffix("\\").strip() for line in (root / "requirements.lock").read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line[:1].isalnum()]
    wanted = {pin.name: pin.specifier for pin in pins if pin.marker is None or pin.marker.evaluate()}
    mismatches = list[str]()
    for name, specifier in wanted.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            mismatches.append(f"{name} not installed, {specifier} locked")
            continue
        if version not in specifier:
            mismatches.append(f"{name} {version} installed, {specifier} locked")
    return mismatches


# scikit-learn's trees store the number of threads that fitted them, so that it changes the bytes of the model.
THREADS = "OMP_NUM_THREADS"
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def has_commit(commit: str, root: Path = PROJECT_ROOT) -> bool:
    """Return True if git has this commit, given by its full hash; False for any other text."""
    return bool(COMMIT.fullmatch(commit)) and _git_succeeds(root, "cat-file", "-e", f"{commit}^{{commit}}")


def is_in_history(commit: str, root: Path = PROJECT_ROOT) -> bool:
    """Return True if HEAD is this commit or a descendant of it."""
    return has_commit(commit, root) and _git_succeeds(root, "merge-base", "--is-ancestor", commit, "HEAD")


@contextmanager
def checked_out(commit: str, root: Path = PROJECT_ROOT) -> Iterator[Path]:
    """Check out a commit in a temporary worktree, and remove it afterwards.

    Raises
    ------
    ConfigurationError
        git fails.
    """
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        tree = Path(folder).resolve() / "code"
        # The user's git hooks are disabled: only code of the commit may run.
        _git(root, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--quiet", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def _git_succeeds(root: Path, *arguments: str) -> bool:
    try:
        _git(root, *arguments)
    except ConfigurationError:
        return False
    return True


def _git(root: Path, *arguments: str) -> bytes:
    # Variables such as GIT_DIR would show another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", b"").decode(errors="replace") or str(error)
        raise ConfigurationError(
            f"git failed in {root}: {detail.strip()}. The code revision of a checkout is read from git: install git, "
            "and run in a checkout with a commit."
        ) from error
    return done.stdout
