"""Time and memory from a Parquet file to a verdict with the failing rows named; see README.md."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
VAR = HERE.parent.parent / "var" / "bench-gx"
AT_ONCE = 1_000_000
# Every so many rows, one breaks a rule: another one each time.
BAD_EVERY = 100


def part(first: int, n: int) -> pa.Table:
    random = np.random.default_rng(first)
    number = np.arange(first + 1, first + n + 1)
    low = random.random(n) * 100
    columns = {
        "number": number,
        "at": 1_700_000_000_000_000 + number * 1_000,
        "low": low,
        "high": low + random.random(n),
        "items": random.integers(0, 100, n),
        "discount": random.random(n),
        "weight": random.random(n),
        "visits": random.integers(0, 1_000, n),
        "plan": np.array(["free", "paid", "trial"], dtype=object)[random.integers(0, 3, n)],
        "state": np.array(["CA", "NY", "TX", "WA"], dtype=object)[random.integers(0, 4, n)],
        "score": random.random(n),
        "stars": random.integers(0, 5, n),
    }
    bad = [("low", -1.0), ("items", 100), ("discount", np.nan), ("plan", "x"), ("state", "x"), ("score", 2.0),
           ("high", -5.0)]  # fmt: skip
    for place, (column, value) in enumerate(bad):
        columns[column][place * BAD_EVERY :: 8 * BAD_EVERY] = value
    for column in ("number", "at"):
        columns[column][7 * BAD_EVERY :: 8 * BAD_EVERY] = columns[column][0]
    columns["at"] = pa.array(columns["at"], pa.timestamp("us", "UTC"))
    columns["discount"] = pa.array(columns["discount"], from_pandas=True)
    return pa.table(columns)


def write(rows: int) -> Path:
    path = VAR / f"{rows}.parquet"
    if path.exists():
        return path
    VAR.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    with pq.ParquetWriter(draft, part(0, 1).schema) as writer:
        for first in range(0, rows, AT_ONCE):
            writer.write_table(part(first, min(AT_ONCE, rows - first)), row_group_size=250_000)
    draft.rename(path)
    return path


def great_expectations_python() -> Path:
    folder = VAR / "venv"
    done = folder / "done"
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        wanted = ["great_expectations==1.24.*", "pyarrow"]
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *wanted], check=True)
        done.touch()
    return folder / "bin" / "python"


class Run(NamedTuple):
    """One engine in its own process: `seconds` from file to verdict; the rest is of the process, imports included."""

    seconds: float
    findings: int
    wall: float
    cpu: float
    peak: float


def measure(python: Path, engine: str, path: Path) -> Run:
    start = time.monotonic()
    process = subprocess.Popen([python, HERE / "engines.py", engine, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{engine} ended with {process.returncode}")
    wall = time.monotonic() - start
    return Run(**json.loads(output.splitlines()[-1]), wall=wall, cpu=used.ru_utime + used.ru_stime, peak=used.ru_maxrss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without-great-expectations", action="store_true")
    options = parser.parse_args()
    path, here = write(options.rows), Path(sys.executable)
    engines = [(here, "platform"), (here, "polars")] * options.repeats
    if not options.without_great_expectations:
        engines.append((great_expectations_python(), "great_expectations"))
    runs: dict[str, list[Run]] = {}
    for python, engine in engines:
        run = measure(python, engine, path)
        runs.setdefault(engine, []).append(run)
        print(
            f"{engine}: {run.seconds:.2f} s from file to verdict; the process {run.wall:.2f} s, {run.cpu:.2f} CPU s, "
            f"peak {run.peak / 1024:,.0f} MiB; {run.findings:,} findings",
            flush=True,
        )
    assert len({run.findings for of_engine in runs.values() for run in of_engine}) == 1, "the engines disagree"
    seconds = {engine: statistics.median(run.seconds for run in of_engine) for engine, of_engine in runs.items()}
    peak = max(run.peak for run in runs["platform"]) / 1024
    ratios = [f"{seconds['platform'] / seconds['polars']:.2f} times the time of Polars by hand"]
    if "great_expectations" in seconds:
        faster = seconds["great_expectations"] / seconds["platform"]
        ratios.insert(0, f"{faster:.1f} times as fast as Great Expectations")
    print(f"{options.rows:,} rows: {', '.join(ratios)}, peak {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
