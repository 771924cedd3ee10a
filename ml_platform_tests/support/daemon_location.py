"""A code location for real daemons: the small model ``visits`` with its arrival sensor, and two bad models.

``greedy`` allocates more memory than a run may have, ``doomed`` is killed as by the kernel when memory runs out.
There are only the triggers that a test waits for: each of the others costs the code server an import.
"""

import os
import signal
from collections.abc import Callable
from typing import Any

import dagster as dg

from ml_platform.model_spec import ModelSpec
from ml_platform.orchestration import maintenance
from ml_platform.orchestration.resources import PlatformResource
from ml_platform.pipeline import model_definitions
from ml_platform.storage import model_files
from ml_platform_tests.support import fakes

TOO_MUCH = 2**34
# The trigger of each model.
TRIGGERS = {"visits": "visits_arrivals", "greedy": "greedy_retraining", "doomed": "doomed_retraining"}


def ask_for_too_much(rows: Any) -> Any:
    import numpy as np

    np.empty(TOO_MUCH, dtype="int8")  # not a byte of it is written: a test without the limit uses no memory either
    return rows


def be_killed(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# A pipeline with a function of its own would be refused before it is fitted.
model_files.TRUSTED_TYPES += (f"{__name__}.ask_for_too_much", f"{__name__}.be_killed")  # type: ignore[assignment]


def prepend_step(function: Callable[[Any], Any]) -> Callable[[], Any]:
    """Return a function that makes the pipeline of ``visits`` after a first step with `function`."""

    def pipeline() -> Any:
        from sklearn.pipeline import Pipeline
        from sklearn.preprocessing import FunctionTransformer

        return Pipeline([("first", FunctionTransformer(function)), *fakes.visits_pipeline().steps])

    return pipeline


SPECS = {
    "visits": fakes.visits_spec(),
    "greedy": fakes.visits_spec(name="greedy", pipeline=prepend_step(ask_for_too_much)),
    "doomed": fakes.visits_spec(name="doomed", pipeline=prepend_step(be_killed)),
}


def _build_definitions(spec: ModelSpec) -> dg.Definitions:
    made = model_definitions(spec)
    sensors = [sensor for sensor in made.sensors or () if sensor.name == TRIGGERS[spec.name]]
    return dg.Definitions(assets=made.assets, asset_checks=made.asset_checks, jobs=made.jobs, sensors=sensors)


@dg.definitions
def defs() -> dg.Definitions:
    """Assemble the location like `ml_platform.definitions`."""
    return dg.Definitions.merge(
        *(_build_definitions(spec) for spec in SPECS.values()),
        dg.Definitions(
            sensors=[maintenance.dead_runs, maintenance.failed_runs],
            resources={"platform": PlatformResource()},
            executor=dg.in_process_executor,
        ),
    )
