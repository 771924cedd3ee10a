"""A contract whose check ends, blocks or bloats the process that validates: as a hostile file does to its reader."""

import os
import signal
import time
from typing import Any

import pandera.pandas as pa

from ml_platform_tests.support.fakes import Visits

CRASHES, HANGS, BLOATS, EXITS = 901, 902, 903, 904


class DeadlyVisits(Visits):
    """Visitors; some numbers of pages end the process."""

    @pa.check("pages")
    @classmethod
    def _end_the_process(cls, pages: Any) -> bool:
        if (pages == CRASHES).any():
            os.kill(os.getpid(), signal.SIGSEGV)
        if (pages == HANGS).any():
            time.sleep(600)
        if (pages == BLOATS).any():
            kept = []
            while True:
                kept.append(b"\1" * 2**24)
        if (pages == EXITS).any():
            raise SystemExit(3)
        return True

    class Config:
        strict = True
