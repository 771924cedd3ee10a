"""Models as in an author's file, for processes that get a module's name."""

from typing import Any

from ml_platform_tests.support import fakes


def forest_pipeline() -> Any:
    """Return a forest without a seed: every fit differs."""
    from sklearn.ensemble import RandomForestClassifier

    return fakes.visits_pipeline().set_params(classify=RandomForestClassifier(n_estimators=5))


def boosted_pipeline() -> Any:
    """Return boosted trees, which store the number of threads of their fit."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    trees = HistGradientBoostingClassifier(max_iter=5, random_state=0)
    return fakes.visits_pipeline().set_params(preprocess__sparse_threshold=0, classify=trees)


visits = fakes.visits_spec()
boosted = fakes.visits_spec(name="boosted", pipeline=boosted_pipeline)
unseeded = fakes.visits_spec(name="unseeded", pipeline=forest_pipeline)
