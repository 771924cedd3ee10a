"""A model's whole life in another process, which can be killed at a call: see faults/test_kills.py.

Usage: ``python -m ml_platform_tests.support.lifecycle HOME [WHERE WHEN]``, where WHERE names a function, as
``module:attribute.path``, and WHEN is ``before`` or ``after``: the process kills itself with SIGKILL at that call.
"""

import functools
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from ml_platform.data.pin import pin_dataset
from ml_platform.evaluation.judge import judge_candidate
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.ledger import LedgerEntry
from ml_platform.release.promote import promote_version
from ml_platform.release.register import register_candidate, stage_version
from ml_platform.training.train import train_candidate
from ml_platform_tests.support import fakes
from ml_platform_tests.support.steps import publish


def live(platform: Platform, spec: ModelSpec | None = None) -> LedgerEntry:
    """Publish waiting files, train and promote, as the runs of a deployment do; ``visits`` by default."""
    spec = spec or fakes.visits_spec()
    publish(platform, spec)
    pin_dataset(platform, spec)
    candidate = train_candidate(platform, spec, reason="schedule")
    judge_candidate(platform, spec, candidate)
    candidate = platform.database.candidate(candidate.id)
    register_candidate(platform, spec, candidate)
    stage_version(platform, candidate)
    return promote_version(platform, spec, candidate, reason="schedule", actor="test")


def die_at(where: str, when: str) -> None:
    """Make the process kill itself before or after the next call of a function."""
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
    called = getattr(owner, name)

    @functools.wraps(called)
    def dying(*arguments: Any, **options: Any) -> Any:
        if when == "after":
            called(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, dying)


if __name__ == "__main__":
    home, *death = sys.argv[1:]
    if death:
        die_at(*death)
    live(fakes.platform_in(Path(home)))
