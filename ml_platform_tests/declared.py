"""Models as an author's file declares them, for processes that are told a module's name."""

from typing import Any

from ml_platform_tests import fakes


def forest_pipeline() -> Any:
    """Return a forest that nobody seeded: every fit gives another one."""
    from sklearn.ensemble import RandomForestClassifier

    return fakes.visits_pipeline().set_params(classify=RandomForestClassifier(n_estimators=5))


def boosted_pipeline() -> Any:
    """Return boosted trees, which keep the number of threads that they were fitted with."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    trees = HistGradientBoostingClassifier(max_iter=5, random_state=0)
    return fakes.visits_pipeline().set_params(preprocess__sparse_threshold=0, classify=trees)


visits = fakes.visits_spec()
boosted = fakes.visits_spec(name="boosted", pipeline=boosted_pipeline)
unseeded = fakes.visits_spec(name="unseeded", pipeline=forest_pipeline)
