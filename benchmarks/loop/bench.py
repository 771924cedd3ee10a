"""CPU and wall time of the main job against a plain script that does the same steps; see README.md."""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from ml_platform.devtools.demo_data import exports
from ml_platform.storage.mlflow_registry import prepare_store

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def cpu_seconds(command: list[str], environment: dict[str, str], folder: Path) -> tuple[float, float]:
    """Return CPU and wall seconds of a command and everything that it started and waited for."""
    start = os.times()
    with (folder / "output.log").open("ab") as log:
        done = subprocess.run(command, env=environment, cwd=folder, stdout=log, stderr=log)
    end = os.times()
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}; its output: {(folder / 'output.log').read_text()}")
    cpu = end.children_user - start.children_user + end.children_system - start.children_system
    return cpu, end.elapsed - start.elapsed


def platform_run(folder: Path, number: int, environment: dict[str, str]) -> tuple[float, float]:
    home = folder / f"platform-{number}"
    command = [str(Path(sys.executable).parent / "ml-platform"), "demo"]
    here = {"ML_PLATFORM_HOME": str(home), "MLFLOW_TRACKING_URI": empty_mlflow(folder, home.name)}
    return cpu_seconds(command, {**environment, **here}, folder)


def empty_mlflow(folder: Path, name: str) -> str:
    """Return the address of an empty MLflow database whose migrations have run: neither side's time includes them.

    Each run has its own, since MLflow holds the anchor of one ledger and refuses any other ledger.
    """
    prepare_store(f"sqlite:///{folder}/empty.db")
    shutil.copy(folder / "empty.db", folder / f"{name}.db")
    return f"sqlite:///{folder}/{name}.db"


def plain_run(folder: Path, number: int, environment: dict[str, str]) -> tuple[float, float]:
    home = folder / f"plain-{number}"
    (home / "landing").mkdir(parents=True)
    for name, data in exports().items():
        (home / "landing" / name).write_bytes(data)
    command = [sys.executable, str(HERE / "plain.py"), str(home), empty_mlflow(folder, home.name)]
    return cpu_seconds(command, environment, folder)


def main() -> None:
    """Run the pairs and print a line each, then the medians of their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--warm-up-pairs", type=int, default=1, help="pairs to run first, without counting them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-loop-") as name:
        folder = Path(name)
        shutil.copy(ROOT / "dagster.yaml", folder)
        environment = {**os.environ, "DAGSTER_HOME": name, "OMP_NUM_THREADS": "1"}
        ratios = []
        for number in range(1 - options.warm_up_pairs, options.pairs + 1):
            cpu, wall = platform_run(folder, number, environment)
            plain_cpu, plain_wall = plain_run(folder, number, environment)
            label = f"pair {number}" if number > 0 else "warm-up"
            print(
                f"{label}: platform {cpu:.2f} CPU s in {wall:.1f} s, "
                f"plain {plain_cpu:.2f} CPU s in {plain_wall:.1f} s, "
                f"ratio CPU {cpu / plain_cpu:.2f} wall {wall / plain_wall:.2f}",
                flush=True,
            )
            if number > 0:
                ratios.append((cpu / plain_cpu, wall / plain_wall))
        cpus, walls = zip(*ratios, strict=True)
        print(f"ratio CPU {statistics.median(cpus):.2f} wall {statistics.median(walls):.2f}")


if __name__ == "__main__":
    main()
