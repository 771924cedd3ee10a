"""Find features that give the label away."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_platform.model_spec import Task

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

# A single feature with this score is probably derived from the label.
GIVEAWAY = 0.99
# With fewer rows, or fewer rows outside the most common label, an innocent feature may separate the labels by chance.
# At these limits the probability is 1 in 142,506, the number of choices of 5 rows out of 30.
MIN_ROWS = 30
MIN_OTHER_ROWS = 5
MIN_ROWS_PER_CATEGORY = 5
# Number of equal-sized bins of a numeric feature when it is tested against more than two classes.
BINS = 200
# Number of characters at each end of a text that its properties are taken from, so that long texts take bounded time.
TEXT_END = 100
# Share of the rows above which a word is common.
COMMON_WORD = 0.05
# Number of rows, chosen at random, on which properties of text are scored.
TEXT_ROWS = 20_000


class Leak(NamedTuple):
    """A score of a feature as a predictor of the label, 0 to 1.

    `clue` says which part of the feature has this score, such as "by its length"; it is empty for its values on all
    rows.
    """

    score: float
    clue: str = ""


def find_leaking_features(features: "pd.DataFrame", labels: "NDArray[Any]", task: Task = "binary") -> dict[str, Leak]:
    """Return the features that predict the label almost perfectly on their own, with their scores.

    A feature leaks if a score is at least `GIVEAWAY`. The score of numbers and times is their AUC, in the better
    direction, for two classes, and their absolute rank correlation for a numeric label. The score of categories, or of
    binned numbers for more than two classes, is the accuracy of predicting each category's majority class, provided
    that it removes at least half of the errors of the overall majority; for a numeric label it is the share of variance
    between the categories. Categories of fewer than `MIN_ROWS_PER_CATEGORY` rows are merged.

    A feature with missing values has several scores: of its values, on the rows that have one; of "missing" as a value
    of its own, on all rows; and of being missing. A text feature with few rows for each value also has the scores of
    the text's properties, on at most `TEXT_ROWS` rows; see `text_properties`. A score counts if it has at least
    `MIN_ROWS` rows, of which at least `MIN_OTHER_ROWS` do not have the most common label.

    Parameters
    ----------
    features : DataFrame of shape (n_samples, n_features)
    labels : ndarray of shape (n_samples,)
        0 and 1, classes, or numbers.
    task : "binary", "multiclass" or "regression"

    Returns
    -------
    dict
        Leak by column; its score is an AUC, accuracy, rank correlation or share of variance.
    """
    import pandas as pd

    label = pd.factorize(labels)[0] if task == "multiclass" else labels
    leaks = {}
    for name, column in features.items():
        scores = _score_feature(column.reset_index(drop=True), label, task)
        # The first score that is high enough has the simplest explanation.
        if leak := next((leak for leak in scores if leak.score >= GIVEAWAY), None):
            leaks[str(name)] = leak
    return leaks


def _score_feature(column: "pd.Series[Any]", label: "NDArray[Any]", task: Task) -> Iterator[Leak]:
    """Yield the scores of one feature, those with a simple clue first."""
    missing = column.isna()
    if missing.any():
        score = _score(missing.to_numpy("float64"), label, task, ordered=task == "binary")
        yield Leak(score, "by its missing values")
    ordered = _has_order(column)
    yield from _score_values(column, label, task, ordered)
    if not ordered and column.nunique() * MIN_ROWS_PER_CATEGORY > column.count():
        chosen = column.sample(min(len(column), TEXT_ROWS), random_state=0)
        for clue, values in text_properties(chosen.dropna().astype("str")).items():
            of_all = values.reindex(chosen.index)
            yield from _score_values(of_all, label[chosen.index], task, _has_order(values), f"by its {clue}")


def _has_order(column: "pd.Series[Any]") -> bool:
    """Return True for numbers, truth values and times, False for text."""
    from pandas.api import types

    dtypes = types.is_numeric_dtype, types.is_datetime64_any_dtype, types.is_timedelta64_dtype
    # Dates and decimals are read as Python objects.
    return any(is_of(column) for is_of in dtypes) or types.infer_dtype(column, skipna=True) in ("date", "decimal")


def text_properties(text: "pd.Series[str]") -> dict[str, "pd.Series[Any]"]:
    """Return properties of a text that may show the label although its values hardly repeat, by name.

    Words and numbers are taken from the first and last `TEXT_END` characters.
    """
    length = text.str.len()
    ends = text.where(length <= 2 * TEXT_END, text.str[:TEXT_END] + " " + text.str[-TEXT_END:])
    words = ends.str.findall(r"[^\W_]+").explode()
    # Words that vary from row to row, such as names and ids, would hide the words that show the label.
    common = words.groupby(words).transform("size") >= COMMON_WORD * len(text)
    return {
        "length": length,
        "first character": text.str[:1],
        "last character": text.str[-1:],
        "first word": ends.str.extract(r"([^\W_]+)", expand=False),
        "last word": ends.str.extract(r"([^\W_]+)[\W_]*$", expand=False),
        "text without numbers": ends.str.replace(r"[0-9]+", "", regex=True),
        "common words": words[common].groupby(level=0).agg(" ".join).reindex(text.index, fill_value=""),
        "first number": ends.str.extract(r"([-+]?[0-9]+(?:\.[0-9]+)?)", expand=False).astype("float64"),
    }


def _score_values(
    column: "pd.Series[Any]", label: "NDArray[Any]", task: Task, ordered: bool, clue: str = ""
) -> Iterator[Leak]:
    """Yield the score of a column's values where present, and on all rows with "missing" as a value of its own."""
    import numpy as np
    import pandas as pd

    if ordered:
        codes: NDArray[Any] = column.rank().to_numpy("float64", na_value=np.nan)
        bins = min(BINS, int(column.count()) // MIN_ROWS_PER_CATEGORY)
        if task == "multiclass" and column.nunique() > bins > 0:
            codes = pd.qcut(codes, bins, labels=False, duplicates="drop")
        ordered = task != "multiclass"
    else:
        codes = pd.factorize(column)[0].astype("float64")
        codes[codes < 0] = np.nan
    present = ~np.isnan(codes)
    if present.all():
        yield Leak(_score(codes, label, task, ordered=ordered), clue)
        return
    on_present = _score(codes[present], label[present], task, ordered=ordered)
    yield Leak(on_present, f"{clue} on its {present.sum()} rows with a value".strip())
    # Of numbers, missing is the lowest value or the highest.
    for value in (-1.0, len(codes) + 1.0):
        filled = np.where(present, codes, value)
        yield Leak(_score(filled, label, task, ordered=ordered), f"{clue} with missing as a value".strip())


def _score(values: "NDArray[Any]", label: "NDArray[Any]", task: Task, *, ordered: bool) -> float:
    """Return the score, 0 to 1, of numbers, if they are ordered, or codes of categories as a predictor of the label."""
    import numpy as np
    import pandas as pd

    others = len(label) - np.unique(label, return_counts=True)[1].max(initial=0)
    if len(label) < MIN_ROWS or others < MIN_OTHER_ROWS or values.min() == values.max():
        return 0.0
    if ordered and task == "binary":
        # The Mann-Whitney form of the AUC, by mean ranks: Hanley and McNeil, Radiology 143 (1982), 29-36.
        ranks, positives = pd.Series(values).rank().to_numpy(), int(label.sum())
        pairs = positives * (len(label) - positives)
        area = (ranks[label == 1].sum() - positives * (positives + 1) / 2) / pairs
        return float(max(area, 1 - area))
    if ordered:
        return min(1.0, abs(float(pd.Series(values).rank().corr(pd.Series(label).rank()))))
    _, codes, sizes = np.unique(values, return_inverse=True, return_counts=True)
    # Categories of about one row each predict their own label: they are merged, into the largest if they are few.
    rare = sizes[codes] < MIN_ROWS_PER_CATEGORY
    codes[rare] = -1 if rare.sum() >= MIN_ROWS_PER_CATEGORY else sizes.argmax()
    if task == "regression":
        return min(1.0, float(np.var(pd.Series(label).groupby(codes).transform("mean")) / np.var(label)))
    right = pd.DataFrame({"code": codes, "label": label}).value_counts().groupby("code").max().sum()
    accuracy, base = right / len(label), 1 - others / len(label)
    return float(accuracy) if accuracy >= (1 + base) / 2 else 0.0
