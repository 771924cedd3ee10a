"""Tests of a worker's process."""

import gc
import weakref

from ml_platform.serving.worker.worker import freeze_objects


class Part:
    """An object of a replaced model: a cycle, which only the garbage collection frees."""

    def __init__(self) -> None:
        self.whole = self


def test_freezing_keeps_live_objects_out_of_collections() -> None:
    kept, replaced = Part(), Part()
    dead = weakref.ref(replaced)
    try:
        freeze_objects()
        frozen = gc.get_freeze_count()
        del replaced
        gc.collect()
        assert dead() is not None  # it was frozen while it lived
        freeze_objects()

        assert frozen > 1_000
        assert dead() is None
        assert kept.whole is kept
    finally:
        gc.unfreeze()
