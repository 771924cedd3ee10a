"""A code location with one small model, for the command that CI runs: see test_mutants.py."""

import dagster as dg

from ml_platform.pipeline import PlatformResource, model_definitions
from ml_platform_tests import fakes

defs = dg.Definitions.merge(
    model_definitions(fakes.visits_spec()), dg.Definitions(resources={"platform": PlatformResource()})
)
