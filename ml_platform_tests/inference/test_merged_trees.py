"""All trees in one call give the same bits as one call for each tree."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from ml_platform.inference.merged_trees import MAX_RECORDS, make_raw_predict, merge_trees

RANDOM = np.random.default_rng(0)
# Two numbers with missing values, one without, and a category of the codes 0 to 7.
FEATURES = np.c_[RANDOM.normal(size=(400, 3)), RANDOM.integers(0, 8, 400)]
FEATURES[:, :2][RANDOM.random((400, 2)) < 0.1] = np.nan
SIGNAL = np.nan_to_num(FEATURES[:, 0]) + (FEATURES[:, 3] % 3) + RANDOM.normal(size=400) / 4

ESTIMATORS = {
    "two classes": HistGradientBoostingClassifier(max_iter=20).fit(FEATURES, SIGNAL > 1),
    "one tree": HistGradientBoostingClassifier(max_iter=1).fit(FEATURES, SIGNAL > 1),
    "four classes": HistGradientBoostingClassifier(max_iter=7).fit(FEATURES, np.digitize(SIGNAL, [0, 1, 2])),
    "a category": HistGradientBoostingClassifier(max_iter=20, categorical_features=[3]).fit(FEATURES, SIGNAL > 1),
    "numbers": HistGradientBoostingRegressor(max_iter=20).fit(FEATURES, SIGNAL),
    "counts": HistGradientBoostingRegressor(loss="poisson", max_iter=9).fit(FEATURES, np.exp(SIGNAL)),
    "stumps": HistGradientBoostingRegressor(max_iter=20, max_depth=1).fit(FEATURES, SIGNAL),
}
# Values that trees compare with, beside the extreme ones.
ENDS = [
    *{float(value) for tree in ESTIMATORS["numbers"]._predictors[0] for value in tree.nodes["num_threshold"]},
    *(np.nan, np.inf, -np.inf, 0.0, -0.0, 1e300, 5e-324, 7.0, 8.0, 250.0),
]
blocks = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, MAX_RECORDS + 2), st.just(4)),
    elements=st.sampled_from(ENDS) | st.floats(-9, 9),
)


@given(block=blocks, layout=st.sampled_from("CF"))
@pytest.mark.parametrize("name", ESTIMATORS)
def test_merged_trees_give_same_bits(name: str, block: NDArray[np.float64], layout: Any) -> None:
    estimator, block = ESTIMATORS[name], np.asarray(block, order=layout)
    if name == "a category":  # scikit-learn encodes categories, and refuses to encode infinity
        block = np.where(np.isinf(block), 0, block)

    expected, actual = estimator._raw_predict(block), make_raw_predict(estimator)(block)

    assert merge_trees(estimator) is not None
    assert actual.tobytes() == expected.tobytes()
    assert (actual.shape, actual.dtype, actual.flags.f_contiguous) == (expected.shape, expected.dtype, True)


def test_few_records_are_predicted_by_merged_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = ESTIMATORS["two classes"]
    sizes = list[int]()
    monkeypatch.setattr(estimator, "_raw_predict", lambda block: sizes.append(len(block)))
    predict = make_raw_predict(estimator)

    for size in (1, MAX_RECORDS, MAX_RECORDS + 1):
        predict(FEATURES[:size])

    assert sizes == [MAX_RECORDS + 1]


def test_estimator_of_float32_sums_is_not_merged() -> None:
    estimator = HistGradientBoostingRegressor(max_iter=3).fit(FEATURES, SIGNAL)
    estimator._baseline_prediction = estimator._baseline_prediction.astype(np.float32)

    assert merge_trees(estimator) is None
    np.testing.assert_array_equal(make_raw_predict(estimator)(FEATURES[:9]), estimator._raw_predict(FEATURES[:9]))


def test_block_of_other_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fitted on 4 columns. Got 3\."):
        make_raw_predict(ESTIMATORS["numbers"])(FEATURES[:5, :3])
