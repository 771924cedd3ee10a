"""In the place of a program that runs in a fresh process: it dies and says how many threads it was given."""

import os
import sys

sys.exit(f"threads: {os.environ['OMP_NUM_THREADS']}")
