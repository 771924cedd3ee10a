"""Why a metric cannot be told: each function returns the reason, or an empty text.

Labels and answers are ndarrays of shape (n_samples,), or (n_samples, n_classes) for the answers.
"""

from typing import Any


def rows_problem(labels: Any, answers: Any) -> str:
    """Say why labels and answers are no rows of numbers."""
    import numpy as np

    if not len(labels):
        return "there are no rows"
    if len(answers) != len(labels):
        return f"the model answers for {len(answers)} rows of {len(labels)}"
    for what, array in (("labels", labels), ("answers", answers)):
        if array.dtype.kind not in "biuf":
            return f"the {what} are no numbers"
        if not np.isfinite(array).all():
            return f"not all {what} are finite"
    return ""


def _classes_problem(what: str, numbers: Any, classes: int) -> str:
    import numpy as np

    outside = ~np.isin(numbers, np.arange(classes))
    return f"the {what} must be 0 to {classes - 1}, and {numbers[outside][0]} is among them" if outside.any() else ""


def ranks_problem(labels: Any, scores: Any) -> str:
    """Say why the areas under ROC curves, or their variance, are undefined."""
    import numpy as np

    classes = scores.shape[1] if scores.ndim == 2 else 2
    reason = rows_problem(labels, scores) or _classes_problem("labels", labels, classes)
    if reason:
        return reason
    counts = np.bincount(labels.astype("int64"), minlength=classes)
    if np.count_nonzero(counts) == 1:
        return "the rows hold one class only"
    return f"each class needs 2 rows, and one has {counts.min()}" if counts.min() < 2 else ""


def answers_problem(task: str, reads: str, labels: Any, answers: Any) -> str:
    """Say why answers are not what a metric of a task can read; `reads` is "predictions" or "probabilities"."""
    if answers is None:
        return f"the model gives no {reads}"
    reason = rows_problem(labels, answers)
    if reason or task == "regression":
        return reason
    if reads == "probabilities":
        return _probabilities_problem(labels, answers)
    classes = 2 if task == "binary" else int(max(labels.max(), answers.max(), 0)) + 1
    return _classes_problem("labels", labels, classes) or _classes_problem("predictions", answers, classes)


def _probabilities_problem(labels: Any, probabilities: Any) -> str:
    import numpy as np

    if probabilities.min() < 0 or probabilities.max() > 1:
        return "the probabilities must be 0 to 1"
    if probabilities.ndim == 1:
        return _classes_problem("labels", labels, 2)
    if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-6):
        return "the probabilities of a row must sum to 1"
    return _classes_problem("labels", labels, probabilities.shape[1])
