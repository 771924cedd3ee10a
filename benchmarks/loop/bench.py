"""CPU of the main job against a plain script that does the same steps; see README.md."""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from ml_platform.demo import exports
from ml_platform.stages.registry import prepare_store

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
    """Return the address of an MLflow database that has been through its migrations, which are nobody's steps.

    Each run has its own: the anchor of a ledger in MLflow refuses any other ledger.
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
    """Run the pairs and print a line each, then the median of their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory(prefix="bench-loop-") as name:
        folder = Path(name)
        shutil.copy(ROOT / "dagster.yaml", folder)
        environment = {
            **os.environ,
            "DAGSTER_HOME": name,
            "OMP_NUM_THREADS": "1",
        }
        ratios = []
        for number in range(pairs + 1):
            platform, wall = platform_run(folder, number, environment)
            plain, plain_wall = plain_run(folder, number, environment)
            label = "warm-up" if number == 0 else f"pair {number}"
            print(
                f"{label}: platform {platform:.2f} CPU s ({wall:.1f} s), plain {plain:.2f} CPU s ({plain_wall:.1f} s), "
                f"ratio {platform / plain:.2f}",
                flush=True,
            )
            ratios += [platform / plain] if number else []
        print(f"ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
