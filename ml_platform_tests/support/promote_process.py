"""A promotion in another process, which can stop at a call: see release/ledger/test_follow.py.

Usage: ``python -m ml_platform_tests.support.promote_process HOME CANDIDATE [WHERE]``: prints the version, or the name
of the error.
"""

import functools
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_platform.errors import PlatformError
from ml_platform.platform import Platform
from ml_platform.release.promote import promote_version
from ml_platform.settings import PROJECT_ROOT, Settings
from ml_platform_tests.support import fakes


def stop_at(where: str) -> None:
    """Make the process stop itself before the next call of a function, named as ``module:attribute.path``."""
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
    called = getattr(owner, name)

    @functools.wraps(called)
    def stopping(*arguments: Any, **options: Any) -> Any:
        setattr(owner, name, called)
        os.kill(os.getpid(), signal.SIGSTOP)
        return called(*arguments, **options)

    setattr(owner, name, stopping)


@contextmanager
def promote_in_a_process(platform: Platform, candidate: str, stop_at: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        "-m",
        "ml_platform_tests.support.promote_process",
        str(platform.settings.home),
        candidate,
        stop_at,
    ]
    environment = {**os.environ, "ML_PLATFORM_DATABASE_URL": platform.settings.database}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()  # nothing else would continue or end a stopped process


if __name__ == "__main__":
    home, identifier, *where = sys.argv[1:]
    platform = Platform(Settings(home=Path(home)))
    candidate = platform.database.candidate(identifier)
    platform.registry.alias("visits", "champion")
    if any(where):
        stop_at(where[0])
    try:
        entry = promote_version(
            platform, fakes.uncompared_spec(), candidate, reason="schedule", actor="another process"
        )
        sys.stdout.write(f"version {entry.version}\n")
    except PlatformError as error:
        sys.stdout.write(f"{type(error).__name__}\n")
