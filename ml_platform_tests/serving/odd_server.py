"""`ml-platform serve` with workers that trust `odd.Moody`."""

import sys

from ml_platform.cli import main
from ml_platform.serving import workforce

if __name__ == "__main__":
    workforce.PROGRAM = "ml_platform_tests.serving.odd"
    sys.argv[0] = "ml-platform"
    main()
