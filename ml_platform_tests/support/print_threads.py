"""A program for a fresh process: it exits with its number of threads as the error."""

import os
import sys

sys.exit(f"threads: {os.environ['OMP_NUM_THREADS']}")
