"""A server whose answers are not its version's, for the integration test to detect.

It has the arguments of `ml_platform.serving.smoke_test`.
"""

import json
import sys
from pathlib import Path

from ml_platform.inference.golden_requests import GOLDEN_ANSWERS
from ml_platform.system.isolated_process import write_answer

folder, file = Path(sys.argv[2]), Path(sys.argv[-1])
expected = json.loads((folder / GOLDEN_ANSWERS).read_text())
write_answer(file, {**expected, "scores": [score / 2 for score in expected["scores"]], "p95_ms": 0.1})
