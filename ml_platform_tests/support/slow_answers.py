"""A server with its version's answers that takes 300 ms a record, on a machine whose control varies by a factor of ten.

It has the arguments of `ml_platform.serving.smoke_test`.
"""

import json
import sys
from pathlib import Path

from ml_platform.inference.golden_requests import GOLDEN_ANSWERS
from ml_platform.system.isolated_process import write_answer

folder, file = Path(sys.argv[2]), Path(sys.argv[-1])
answers = json.loads((folder / GOLDEN_ANSWERS).read_text())
write_answer(file, {**answers, "p50_ms": 200.0, "p95_ms": 300.0, "calls": 100, "noise": 10.0})
