"""Evaluate all trees of a histogram gradient boosting in one call of scikit-learn's own loop.

scikit-learn calls that loop once for each tree, and each call takes longer than walking a tree with a few records. Here
all trees are parts of one tree, below nodes that select one of them by its number, which is one more column.

With T trees and n records, the loop predicts T * n rows. Each row reaches the same leaf as before, and the leaves are
added in the same order, so that the sums are equal to the bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# For more records, the copies of their values take about as long as the calls that they replace.
MAX_RECORDS = 64

RawPredict = Callable[[Any], "NDArray[Any]"]


@dataclass(frozen=True, eq=False)
class MergedTrees:
    """The trees of a fitted histogram gradient boosting estimator as one tree.

    Parameters
    ----------
    nodes : structured ndarray of shape (n_nodes,)
        Nodes in scikit-learn's form. The first ones select a tree.
    bitsets : ndarray of shape (n_categorical_nodes, 8)
        The categories that go to the left, for the nodes that ask for categories.
    known, places : ndarray of shape (n_categorical, 8), and of shape (n_features + 1,)
        The known categories, and the row of each feature in them.
    baseline : ndarray of shape (1, n_classes)
        The sum before the first tree; one column for two classes, and for a regression.
    trees : int
        Number of trees: the iterations times `n_classes`.
    """

    nodes: "NDArray[Any]"
    bitsets: "NDArray[np.uint32]"
    known: "NDArray[np.uint32]"
    places: "NDArray[np.uint32]"
    baseline: "NDArray[Any]"
    trees: int

    def sum_leaves(self, block: "NDArray[np.float64]") -> "NDArray[Any]":
        """Return the sums of the leaves' values, as the estimator's ``_raw_predict``; shape (n_records, n_classes).

        Parameters
        ----------
        block : ndarray of shape (n_records, n_features)

        Raises
        ------
        ValueError
            The array has another number of columns.
        """
        import numpy as np
        from sklearn.ensemble._hist_gradient_boosting._predictor import _predict_from_raw_data

        records, features = block.shape
        if features != len(self.places) - 1:
            raise ValueError(f"The estimator was fitted on {len(self.places) - 1} columns. Got {features}.")
        rows = np.empty((self.trees, records, features + 1))
        rows[:, :, :features] = block
        rows[:, :, features] = np.arange(self.trees)[:, None]
        leaves = np.empty(self.trees * records)
        _predict_from_raw_data(
            self.nodes, rows.reshape(-1, features + 1), self.bitsets, self.known, self.places, 1, leaves
        )
        classes = self.baseline.shape[1]
        terms = np.empty((1 + self.trees // classes, classes, records))
        terms[0] = self.baseline.T
        terms[1:] = leaves.reshape(-1, classes, records)
        # `accumulate` adds one after the other; `sum` would add in pairs.
        return np.asfortranarray(np.add.accumulate(terms, axis=0)[-1].T)


def make_raw_predict(estimator: Any) -> RawPredict:
    """Return a function with the results of a histogram gradient boosting's ``_raw_predict``, faster for few records.

    Its argument is a float64 ndarray of shape (n_records, n_features), which is not validated.
    """
    merged = merge_trees(estimator)
    # Encodes an estimator's own categorical columns, and moves them to the left.
    encoder = estimator._preprocessor

    def predict(block: "NDArray[np.float64]") -> "NDArray[Any]":
        if merged is None or len(block) > MAX_RECORDS:
            return estimator._raw_predict(block)  # type: ignore[no-any-return]
        return merged.sum_leaves(block if encoder is None else encoder.transform(block))

    return predict


def merge_trees(estimator: Any) -> MergedTrees | None:
    """Merge the trees of a fitted HistGradientBoostingClassifier or HistGradientBoostingRegressor.

    Returns ``None`` if the estimator has no trees, or sums other numbers than float64.
    """
    import numpy as np

    trees = [tree for iteration in estimator._predictors for tree in iteration]
    if not trees or estimator._baseline_prediction.dtype != np.float64:
        return None
    known, places = estimator._bin_mapper.make_known_categories_bitsets()
    selecting, number_column = len(trees) - 1, len(places)
    nodes = np.zeros(selecting + sum(len(tree.nodes) for tree in trees), dtype=trees[0].nodes.dtype)
    roots, bitset, start = list[int](), 0, selecting
    for tree in trees:
        part = nodes[start : start + len(tree.nodes)]
        part[:] = tree.nodes
        inner = part["is_leaf"] == 0
        part["left"][inner] += start
        part["right"][inner] += start
        part["bitset_idx"] += bitset
        roots.append(start)
        start, bitset = start + len(part), bitset + len(tree.raw_left_cat_bitsets)
    _select_trees(nodes, roots, number_column)
    bitsets = np.concatenate([tree.raw_left_cat_bitsets for tree in trees])
    places = np.append(places, np.uint32(0)).astype(np.uint32)
    return MergedTrees(nodes, bitsets, known, places, estimator._baseline_prediction, len(trees))


def _select_trees(nodes: "NDArray[Any]", roots: list[int], number_column: int) -> None:
    """Fill the first ``len(roots) - 1`` nodes, a balanced tree whose leaves are the roots of the trees."""
    unused = iter(range(len(roots)))

    def select(first: int, last: int) -> int:
        """Return the place of a node that leads to the trees `first` to `last`."""
        if first == last:
            return roots[first]
        place, middle = next(unused), (first + last) // 2
        node = nodes[place]
        node["feature_idx"], node["num_threshold"] = number_column, middle
        node["left"], node["right"] = select(first, middle), select(middle + 1, last)
        return place

    select(0, len(roots) - 1)
