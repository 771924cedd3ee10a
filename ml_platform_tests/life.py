"""A model's whole life in a process of its own, which can be told to die at a call: see test_kills.py.

Usage: ``python -m ml_platform_tests.life HOME [WHERE WHEN]``, where WHERE names a function, as
``module:attribute.path``, and WHEN is ``before`` or ``after``: the process kills itself with SIGKILL at that call.
"""

import functools
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from ml_platform import workflows
from ml_platform.model_spec import ModelSpec
from ml_platform.records import LedgerEntry
from ml_platform.workflows import Platform
from ml_platform_tests import fakes


def live(platform: Platform, spec: ModelSpec | None = None) -> LedgerEntry:
    """Take what waits in the landing zone to the champion, as the runs of a deployment do; ``visits`` by default."""
    spec = spec or fakes.visits_spec()
    keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, spec.name)]
    workflows.keep_raw_batches(platform, spec.name, keys)
    workflows.publish_batches(platform, spec, keys)
    workflows.pin_dataset(platform, spec)
    candidate = workflows.train_candidate(platform, spec, reason="schedule")
    workflows.judge_candidate(platform, spec, candidate)
    candidate = platform.database.candidate(candidate.id)
    workflows.register_candidate(platform, spec, candidate)
    workflows.stage_version(platform, candidate)
    return workflows.promote_version(platform, spec, candidate, reason="schedule", actor="test")


def die_at(where: str, when: str) -> None:
    """Let the process kill itself before or after the next call of a function."""
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
