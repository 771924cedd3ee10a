"""Models as an author's file declares them, for processes that are told a module's name."""

from typing import Any

from ml_platform_tests import fakes


def forest_pipeline() -> Any:
    """Return a forest that nobody seeded: every fit gives another one."""
    from sklearn.ensemble import RandomForestClassifier

    return fakes.visits_pipeline().set_params(classify=RandomForestClassifier(n_estimators=5))


visits = fakes.visits_spec()
unseeded = fakes.visits_spec(name="unseeded", pipeline=forest_pipeline)
