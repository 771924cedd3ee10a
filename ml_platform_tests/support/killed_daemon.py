"""A real daemon that kills itself with SIGKILL at a call within a tick: see e2e/test_daemon.py.

Usage: ``python -m ml_platform_tests.support.killed_daemon WHERE WHEN WORKSPACE``, with WHERE and WHEN as
in ``lifecycle.py``.
"""

import sys

from dagster._daemon.cli import cli

from ml_platform_tests.support.lifecycle import die_at

if __name__ == "__main__":
    where, when, workspace = sys.argv[1:]
    die_at(where, when)
    cli(["run", "--workspace", workspace])
