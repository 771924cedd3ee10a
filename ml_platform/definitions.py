"""What Dagster loads: everything under defs/, with this deployment's resources; nothing else."""

from pathlib import Path

import dagster as dg

from ml_platform.own_checks import refuse_unasked
from ml_platform.resources import PlatformResource


@dg.definitions
def defs() -> dg.Definitions:
    """Assemble the code location.

    Runs stay in one process: each step of Dagster's default executor would import pandas, scikit-learn and MLflow
    again (docs/decisions/0003).
    """
    found = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions.merge(
        refuse_unasked(found),
        dg.Definitions(resources={"platform": PlatformResource()}, executor=dg.in_process_executor),
    )
