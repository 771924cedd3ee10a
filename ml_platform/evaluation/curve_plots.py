"""ROC and calibration curves as charts: for pages, and as one SVG picture."""

from collections.abc import Sequence

from ml_platform.evaluation.curves import Curve
from ml_platform.model_spec import Task
from ml_platform.reporting.charts import Plot
from ml_platform.reporting.render import render


def plot_curves(curves: Sequence[Curve], task: Task, positive: object, label: str = "label") -> list[Plot]:
    """Return the charts of curves with points: ROC, then calibration; no chart if no curve has points.

    Parameters
    ----------
    curves : sequence of Curve
        The candidate's, then its reference's.
    task : "binary", "multiclass" or "regression"
    positive : object
        The positive class of a binary task.
    label : str
        The name of the predicted column.
    """
    names = " and ".join(curve.name for curve in curves)
    axes = {
        "binary": ("mean probability", f"share that is {positive}"),
        "multiclass": ("mean probability of the predicted class", "share of correct predictions"),
        "regression": ("mean prediction", f"mean {label}"),
    }[task]
    plots = []
    if any(len(curve.roc) > 1 for curve in curves):
        plots.append(
            Plot(
                title="ROC, mean of each class against the rest" if task == "multiclass" else "ROC",
                lines=[
                    # The rates belong to evenly spaced false positive rates; a single one has no spacing.
                    [(0.0, 0.0), *((place / (len(roc) - 1), rate) for place, rate in enumerate(roc))]
                    if len(roc) > 1
                    else []
                    for roc in (curve.roc for curve in curves)
                ],
                axes=("false positive rate", "true positive rate"),
                label=f"ROC of {names}; the diagonal is chance.",
                dots=False,
            )
        )
    if plots or any(curve.calibration for curve in curves):
        plots.append(
            Plot(
                title="Calibration by tenths of the rows",
                lines=[curve.calibration for curve in curves],
                axes=axes,
                label=f"Calibration of {names}; on the diagonal, predictions agree with the labels.",
                dots=True,
            )
        )
    return plots


def draw_curves(curves: Sequence[Curve], task: Task, positive: object, label: str) -> bytes | None:
    """Draw the curves as one SVG picture; ``None`` if no curve has points."""
    plots = plot_curves(curves, task, positive, label)
    return render("curves.svg.j2", plots=plots, names=[curve.name for curve in curves]).encode() if plots else None
