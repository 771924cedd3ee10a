"""Sample one run of the main job and name its seconds; see README.md.

Usage: profile_run.py. Each sample of the main thread counts for the first kind of work in `KINDS` whose file is on the
stack. Processes that the run starts are counted by their CPU time.
"""

import os
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from bench import ROOT, empty_mlflow

INTERVAL = 0.005
# Part of a file's path, or of "path:function": the first that is on the stack names the kind.
KINDS = {
    "importlib._bootstrap": "imports",
    "training/fit.py": "fit and store the model",
    "system/isolated_process.py": "wait for fresh processes",
    "system/fork_server.py": "wait for fresh processes",
    "storage/mlflow_registry.py": "MLflow",
    "evaluation/": "judge: predict, resample, compare, draw",
    "inference/": "judge: predict, resample, compare, draw",
    "data/": "data: publish, pin, check, profile",
    "governance/status.py": "status table",
    "dagster/_core/storage": "Dagster's event log",
    "dagster/_core/instance": "Dagster's event log",
    "ml_platform/database": "the platform's database",
    "dagster/": "Dagster: plan and execute",
    "ml_platform/": "the platform, other",
}


def kind_of(frame: FrameType | None) -> str:
    """Return the kind of work that a stack is doing."""
    files = []
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    return next((kind for part, kind in KINDS.items() if any(part in file for file in files)), "other")


def sample(main_thread: int, seconds: Counter[str], done: threading.Event) -> None:
    """Add the time since the last sample to the kind of work that the main thread is doing."""
    last = time.perf_counter()
    while not done.wait(INTERVAL):
        now = time.perf_counter()
        seconds[kind_of(sys._current_frames().get(main_thread))] += now - last
        last = now


def main() -> None:
    """Run the demonstration in this process and print seconds by kind, most first."""
    with tempfile.TemporaryDirectory(prefix="bench-loop-") as name:
        folder = Path(name)
        (folder / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
        os.environ |= {
            "DAGSTER_HOME": name,
            "OMP_NUM_THREADS": "1",
            "ML_PLATFORM_HOME": f"{name}/home",
            "MLFLOW_TRACKING_URI": empty_mlflow(folder, "profile"),
        }
        for module in [module for module in sys.modules if module.startswith("ml_platform")]:
            del sys.modules[module]
        seconds, done = Counter[str](), threading.Event()
        begin = os.times()
        arguments = (threading.get_ident(), seconds, done)
        threading.Thread(target=sample, args=arguments, daemon=True).start()
        try:
            from ml_platform.cli import main as run

            sys.argv = ["ml-platform", "demo"]
            run()
        except SystemExit as end:
            if end.code:
                raise
        finally:
            done.set()
        from ml_platform.system import isolated_process

        isolated_process.stop_early_process()
        end_times = os.times()
    for kind, spent in seconds.most_common():
        print(f"{spent:6.2f} s  {kind}")
    own = end_times.user + end_times.system - begin.user - begin.system
    children = end_times.children_user + end_times.children_system - begin.children_user - begin.children_system
    print(
        f"{end_times.elapsed - begin.elapsed:6.2f} s  in all; {own:.2f} CPU s here, {children:.2f} in other processes"
    )


if __name__ == "__main__":
    main()
