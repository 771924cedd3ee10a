"""A code location for real daemons: the small model ``visits``, whose files its sensor takes, and two that are too big.

``greedy`` asks for more memory than a run may have, ``doomed`` is killed as the kernel kills who takes the last of it.
Only those triggers are here that a test waits for: each of the others costs the code server an import.
"""

import os
import signal
from collections.abc import Callable
from typing import Any

import dagster as dg

from ml_platform.defs import operations
from ml_platform.model_spec import ModelSpec
from ml_platform.pipeline import model_definitions
from ml_platform.resources import PlatformResource
from ml_platform_tests import fakes

TOO_MUCH = 2**34
# A model, and the trigger of it that is switched on.
TRIGGERS = {"visits": "visits_arrivals", "greedy": "greedy_retraining", "doomed": "doomed_retraining"}


def ask_for_too_much(rows: Any) -> Any:
    import numpy as np

    np.empty(TOO_MUCH, dtype="int8")  # nothing of it is touched: a test without the limit takes no memory either
    return rows


def be_killed(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def beginning_with(function: Callable[[Any], Any]) -> Callable[[], Any]:
    """Return how to make the pipeline of ``visits`` with a first step of its own."""

    def pipeline() -> Any:
        from sklearn.pipeline import Pipeline
        from sklearn.preprocessing import FunctionTransformer

        return Pipeline([("first", FunctionTransformer(function)), *fakes.visits_pipeline().steps])

    return pipeline


SPECS = {
    "visits": fakes.visits_spec(),
    "greedy": fakes.visits_spec(name="greedy", pipeline=beginning_with(ask_for_too_much)),
    "doomed": fakes.visits_spec(name="doomed", pipeline=beginning_with(be_killed)),
}


def _of_one_model(spec: ModelSpec) -> dg.Definitions:
    made = model_definitions(spec)
    sensors = [sensor for sensor in made.sensors or () if sensor.name == TRIGGERS[spec.name]]
    return dg.Definitions(assets=made.assets, asset_checks=made.asset_checks, jobs=made.jobs, sensors=sensors)


@dg.definitions
def defs() -> dg.Definitions:
    """Assemble the location as `ml_platform.definitions` does."""
    return dg.Definitions.merge(
        *(_of_one_model(spec) for spec in SPECS.values()),
        dg.Definitions(
            sensors=[operations.dead_runs, operations.failed_runs],
            resources={"platform": PlatformResource()},
            executor=dg.in_process_executor,
        ),
    )
