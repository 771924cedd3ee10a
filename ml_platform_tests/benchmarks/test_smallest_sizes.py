"""Every benchmark runs to its last line at its smallest size, from a shell that has nothing on its PATH."""

import os
import re
import subprocess
import sys

import pytest

from ml_platform.settings import PROJECT_ROOT

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("command", "last_line"),
    [
        (["loop/bench.py", "--pairs", "1", "--warm-up-pairs", "0"], r"ratio CPU \d+\.\d\d wall \d+\.\d\d"),
        (["loop/profile_run.py"], r" *\d+\.\d\d s  in all; \d+\.\d\d CPU s here, \d+\.\d\d in other processes"),
        (["arrivals/bench.py", "10", "folder"], r"tick: .* asks for \d+ files, .*"),
        (["arrivals/bench.py", "10", "bucket-manifests"], r"tick: .* asks for \d+ files, .*"),
        (
            ["validation/bench.py", "--rows", "1000", "--repeats", "1", "--without-great-expectations"],
            r"1,000 rows: .* times the time of Polars by hand, peak .* MiB",
        ),
        (
            ["serving/bench.py", "--clients", "2", "--seconds", "0.5", "--rounds", "1"],
            r"compiled \d+\.\d times, unknown step on numbers \d+\.\d times, other \d+\.\d times",
        ),
    ],
    ids=lambda value: "-".join(value[:1]) if isinstance(value, list) else "",
)
def test_benchmark_smallest_size_ends_with_result(command: list[str], last_line: str) -> None:
    environment = {"PATH": os.defpath, "HOME": os.environ["HOME"], "DAGSTER_DISABLE_TELEMETRY": "1"}
    program, *arguments = command

    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(PROJECT_ROOT / "benchmarks" / program), *arguments],
        env=environment,
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=560,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert re.fullmatch(last_line, done.stdout.splitlines()[-1])
