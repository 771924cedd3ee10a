"""One step of a model's life in another process, whose system calls can fail or kill it: see faults/test_disks.py.

Usage: ``python -m ml_platform_tests.support.steps HOME publish`` or ``… HOME train``.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from ml_platform.data import datasets
from ml_platform.data.ingest import publish_batches, store_raw_batches
from ml_platform.data.landing import waiting_arrivals
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.data import BatchResult
from ml_platform.records.verdict import Candidate
from ml_platform.training.train import train_candidate
from ml_platform_tests.support import fakes


def publish(platform: Platform, spec: ModelSpec | None = None) -> list[BatchResult]:
    """Store, validate and publish the files in the landing zone; ``visits`` by default."""
    spec = spec or fakes.visits_spec()
    keys = [arrival.key for arrival in waiting_arrivals(platform, spec.name)]
    store_raw_batches(platform, spec.name, keys)
    return publish_batches(platform, spec, keys)


def count_pinned_rows(platform: Platform) -> int:
    """Return the rows of the newest dataset version of ``visits``."""
    return datasets.pin(platform.rows("visits"), fakes.visits_spec())[0].rows


def train(platform: Platform) -> Candidate:
    """Store a candidate."""
    return train_candidate(platform, fakes.visits_spec(), reason="schedule")


STEPS: dict[str, Callable[[Platform], object]] = {"publish": publish, "train": train}

if __name__ == "__main__":
    home, step = sys.argv[1:]
    STEPS[step](fakes.platform_in(Path(home)))
