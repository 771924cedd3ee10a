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


def part(first: int, n: int, bad_every: int) -> pa.Table:
    """Return rows of which every so many breaks a rule, another one each time."""
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
        columns[column][place * bad_every :: 8 * bad_every] = value
    for column in ("number", "at"):
        columns[column][7 * bad_every :: 8 * bad_every] = columns[column][0]
    columns["at"] = pa.array(columns["at"], pa.timestamp("us", "UTC"))
    columns["discount"] = pa.array(columns["discount"], from_pandas=True)
    return pa.table(columns)


def write(rows: int, bad_every: int) -> Path:
    path = VAR / f"{rows}-{bad_every}.parquet"
    if path.exists():
        return path
    VAR.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    with pq.ParquetWriter(draft, part(0, 1, bad_every).schema, write_page_checksum=True) as writer:
        for first in range(0, rows, AT_ONCE):
            writer.write_table(part(first, min(AT_ONCE, rows - first), bad_every), row_group_size=250_000)
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
    """One engine in its own process.

    Parameters
    ----------
    broken : dict
        By rule: how many rows break it, and the sum of their numbers.
    seconds, cpu, keyed : float
        As of the engine's `Answer`.
    wall, peak : float
        Seconds and MiB of the process, its imports included.
    """

    broken: dict[str, list[int]]
    seconds: float
    cpu: float
    keyed: float
    wall: float
    peak: float

    def __str__(self) -> str:
        named = sum(count for count, _ in self.broken.values())
        keyed = f", {self.keyed:.2f} s with their keys" if self.keyed else ""
        return (
            f"{self.seconds:.2f} s ({self.cpu:.2f} CPU s) to {named:,} named rows{keyed}; "
            f"the process {self.wall:.2f} s, peak {self.peak:,.0f} MiB"
        )


def measure(python: Path, engine: str, path: Path) -> Run:
    start = time.monotonic()
    process = subprocess.Popen([python, HERE / "engines.py", engine, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{engine} ended with {process.returncode}")
    answer = json.loads(output.splitlines()[-1])
    wall = time.monotonic() - start
    return Run(**answer, wall=wall, peak=used.ru_maxrss / 1024)


def run_all(path: Path, repeats: int, great_expectations: bool) -> dict[str, list[Run]]:
    here = Path(sys.executable)
    engines = [(here, "platform"), (here, "polars")] * repeats
    if great_expectations:
        there = great_expectations_python()
        engines += [(there, "great_expectations_by_key"), (there, "great_expectations_by_place")]
    runs: dict[str, list[Run]] = {}
    for python, engine in engines:
        run = measure(python, engine, path)
        runs.setdefault(engine, []).append(run)
        print(f"{engine}: {run}", flush=True)
    return runs


def require_same_answers(runs: dict[str, list[Run]]) -> None:
    (_, first), *others = ((engine, run) for engine, of_engine in runs.items() for run in of_engine)
    for engine, run in others:
        if run.broken != first.broken:
            sys.exit(f"{engine} found other rows than the platform: {run.broken} instead of {first.broken}")


def ratios(runs: dict[str, list[Run]]) -> list[str]:
    """Return the ratios of the medians: of the time by the clock, and in brackets of the CPU time."""

    def middle(field: str, engine: str) -> float:
        return statistics.median(getattr(run, field) for run in runs[engine])

    mine = "platform"
    cpu = {engine: middle("cpu", engine) for engine in runs}
    polars = middle("seconds", mine) / middle("seconds", "polars")
    said = [f"{polars:.2f} ({cpu[mine] / cpu['polars']:.2f}) times the time of Polars by hand"]
    for way, field in {"place": "seconds", "key": "keyed"}.items():
        engine = f"great_expectations_by_{way}"
        if engine in runs:
            faster = middle(field, engine) / middle(field, mine)
            named = f"Great Expectations naming rows by {way}"
            said.insert(0, f"{faster:.1f} ({cpu[engine] / cpu[mine]:.1f}) times as fast as {named}")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bad-every", type=int, default=20, help="one row in this number breaks a rule")
    parser.add_argument("--without-great-expectations", action="store_true")
    options = parser.parse_args()
    path = write(options.rows, options.bad_every)
    runs = run_all(path, options.repeats, not options.without_great_expectations)
    require_same_answers(runs)
    peak = max(run.peak for run in runs["platform"])
    print(f"{options.rows:,} rows: {', '.join(ratios(runs))}, peak {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
