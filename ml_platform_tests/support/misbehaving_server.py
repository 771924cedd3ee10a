"""`ml-platform serve` with workers that trust `misbehaving_worker.Moody`."""

import sys

from ml_platform.cli import main
from ml_platform.serving.supervisor import worker_pool

if __name__ == "__main__":
    worker_pool.PROGRAM = "ml_platform_tests.support.misbehaving_worker"
    sys.argv[0] = "ml-platform"
    main()
