"""A code location with one small model, for the command of CI: see faults/test_mutants.py.

The environment's ``MUTANT`` names one of `mutants.MUTANTS`, which changes the declarations.
"""

import os

import dagster as dg

from ml_platform.orchestration.resources import PlatformResource
from ml_platform.pipeline import model_definitions
from ml_platform_tests.support import fakes, mutants

mutant = os.environ.get("MUTANT")
spec = mutants.MUTANTS[mutant].spec if mutant else fakes.visits_spec()
defs = dg.Definitions.merge(model_definitions(spec), dg.Definitions(resources={"platform": PlatformResource()}))
