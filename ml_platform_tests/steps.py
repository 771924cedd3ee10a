"""One step of a model's life in a process of its own, whose system calls can fail or kill it: see test_disks.py.

Usage: ``python -m ml_platform_tests.steps HOME publish`` or ``… HOME train``.
"""

import sys
from pathlib import Path

from ml_platform import workflows
from ml_platform.workflows import Platform
from ml_platform_tests import fakes


def publish(platform: Platform) -> None:
    """Keep, validate and publish what waits in the landing zone."""
    keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, "visits")]
    workflows.keep_raw_batches(platform, "visits", keys)
    workflows.publish_batches(platform, fakes.visits_spec(), keys)


def train(platform: Platform) -> None:
    """Store a candidate."""
    workflows.train_candidate(platform, fakes.visits_spec(), reason="schedule")


STEPS = {"publish": publish, "train": train}

if __name__ == "__main__":
    home, step = sys.argv[1:]
    STEPS[step](fakes.platform_in(Path(home)))
