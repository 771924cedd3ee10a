"""A promotion in a process of its own, which can be told to stop at a call until it is continued: see test_ledger.py.

Usage: ``python -m ml_platform_tests.promoting HOME CANDIDATE [WHERE]``: prints the version, or the error's name.
"""

import functools
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from ml_platform import workflows
from ml_platform.errors import PlatformError
from ml_platform.settings import Settings
from ml_platform.workflows import Platform
from ml_platform_tests import fakes


def stop_at(where: str) -> None:
    """Let the process stop itself before the next call of a function, named as ``module:attribute.path``."""
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


if __name__ == "__main__":
    home, identifier, *where = sys.argv[1:]
    platform = Platform(Settings(home=Path(home), code_revision="0" * 40))
    candidate = platform.database.candidate(identifier)
    platform.registry.alias("visits", "champion")
    if any(where):
        stop_at(where[0])
    try:
        entry = workflows.promote_version(
            platform, fakes.unrivalled_spec(), candidate, reason="schedule", actor="another process"
        )
        sys.stdout.write(f"version {entry.version}\n")
    except PlatformError as error:
        sys.stdout.write(f"{type(error).__name__}\n")
