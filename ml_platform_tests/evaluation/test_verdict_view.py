"""The view of a verdict: every page, table and comment shows the same words and figures."""

import html
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import dagster as dg
import pytest

from ml_platform.ci.pr_comment import comment
from ml_platform.ci.report_page import draw
from ml_platform.ci.result_schema import DeclaredComparison, ReportedGate, ReportedMeasurement, ReportedReference
from ml_platform.cli.status import gates_table
from ml_platform.evaluation import gates, verdict_page
from ml_platform.evaluation.curve_plots import draw_curves, plot_curves
from ml_platform.evaluation.curves import Curve
from ml_platform.evaluation.verdict_view import (
    find_requirements,
    gain_bound,
    gate_record,
    measurement_table,
    view_gates,
    view_measurements,
    view_verdict,
)
from ml_platform.model_spec import Gate
from ml_platform.orchestration.metadata import gate_check
from ml_platform.records.verdict import Measurement, Verdict
from ml_platform.reporting.charts import Interval, compute_scale, format_number
from ml_platform_tests.support import fakes, html_pages, repositories

SPEC = fakes.visits_spec()
AUC = Measurement(metric="auc_roc", value=0.70512, low=0.65, high=0.75, rows=200)
CURVE = Curve(name="candidate", roc=[0.5, 0.9, 1.0], calibration=[(0.1, 0.2), (0.8, 0.9)])


def judge(*measurements: Measurement) -> Verdict:
    evaluation = replace(fakes.evaluation(SPEC), measurements=list(measurements))
    return gates.judge(fakes.candidate(), evaluation, SPEC)


def report(verdict: Verdict) -> Any:
    """Return a verdict as `ci compare` reports it."""
    reference = verdict.evaluation.reference
    assert reference is not None
    assert SPEC.comparison is not None
    names = ("name", "condition", "metric", "margin", "min_gain", "confidence", "min_rows")
    run = repositories.corner(
        "new",
        "new",
        [ReportedMeasurement(**_fields(one, ReportedMeasurement)) for one in verdict.evaluation.measurements],
        gates=[ReportedGate(**{**vars(result), "outcome": result.outcome.value}) for result in verdict.results],
        reference=ReportedReference(**_fields(reference, ReportedReference)),
    )
    asked = [
        repositories.asked(
            name=gate.name, condition=gate.condition, metric=gate.metric, at_least=gate.at_least, at_most=gate.at_most
        )
        for gate in SPEC.gates
    ]
    compared = DeclaredComparison(**{name: getattr(SPEC.comparison, name) for name in names})
    return repositories.trial(corners=[run], asked=asked, compared=compared)


def _fields(record: Any, schema: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in schema.model_fields}


def test_gate_reads_the_same_in_every_rendering() -> None:
    verdict = judge(AUC)
    page = html_pages.text(html_pages.read(verdict_page.draw(verdict, fakes.candidate(), SPEC, None)))
    change = report(verdict)
    change_page, markdown = html_pages.text(html_pages.read(draw([change]))), html.unescape(comment([change]))

    for gate, result in zip(view_verdict(verdict, SPEC).gates, verdict.results, strict=True):
        check = gate_check(result, {})
        assert (check.description, check.metadata["gate"]) == (
            f"{gate.outcome}: {gate.why}",
            dg.MetadataValue.text(gate.condition),
        )
        readings = [reading.measurement.text for reading in gate.readings]
        for text in (page, change_page, markdown):
            assert [word for word in (gate.condition, gate.outcome, gate.why, *readings) if word not in text] == []
        assert f"{gate.explanation} {gate.why}" in page
        assert f"{gate.explanation} {gate.why}" in change_page


def test_command_line_formats_values_as_pages_do() -> None:
    records = [gate_record(gate) for gate in view_gates(judge(AUC).results)]

    columns = [list(column.cells) for column in gates_table(records).columns]

    assert columns[0][0] == "auc_roc >= 0.8"
    assert columns[1][:2] == ["0.7051", "not available"]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "not available"), (0.123456, "0.1235"), (1_234.5, "1,234"), (123_456.7, "123,457")]
)
def test_number_has_four_significant_digits(value: float | None, text: str) -> None:
    assert format_number(value) == text


def test_measurement_of_few_rows_has_no_numbers() -> None:
    few = replace(AUC, rows=4, slice="plan = paid")

    (shown,) = view_measurements([few]).values()
    (row,) = measurement_table(judge(few))

    assert (shown.hidden, shown.interval.numbers, shown.rows) == (True, [], "fewer than 5")
    assert {name: row[name] for name in ("slice", "value", "low", "high", "rows")} == {
        "slice": "plan = paid",
        "value": "",
        "low": "",
        "high": "",
        "rows": "fewer than 5",
    }


def test_missing_measurement_is_not_measured() -> None:
    (reading,) = view_verdict(judge(), SPEC).gates[0].readings

    assert reading.measurement.text == "not measured"
    assert reading.label == "all rows: not measured, required is at least 0.8"


def test_requirement_applies_to_its_slices_only() -> None:
    spec = fakes.visits_spec(gates=(Gate(metric="recall", at_least=0.5, slices=("plan",)),))

    (recall, comparison) = find_requirements(spec, None)

    assert recall.asks == ">= 0.5"
    assert recall.applies_to(("holdout", "plan = paid", "recall"))
    assert not recall.applies_to(("holdout", "", "recall"))
    assert not comparison.applies_to(("holdout", "", "auc_roc"))


def test_gain_over_a_baseline_must_be_positive() -> None:
    baseline = fakes.beaten(SPEC)
    champion = fakes.beaten(SPEC, kind="champion", name="version 1", version=1)

    bounds = [gain_bound(reference, 0.02, gain).value for reference in (baseline, champion) for gain in (None, 0.1)]

    assert bounds == [0.0, 0.0, -0.02, 0.1]


# Charts


def test_scale_without_numbers_is_finite() -> None:
    assert compute_scale([Interval(value=None)]) == pytest.approx((-0.08, 1.08))
    assert compute_scale([Interval(value=0.0)]) == (-1.0, 1.0)


def test_curves_are_one_svg_picture_with_names_escaped() -> None:
    evil = replace(CURVE, name="<script>alert(1)</script>")

    picture = draw_curves([CURVE, evil], "binary", "yes", "bought")

    assert picture is not None
    root = ET.fromstring(picture)  # noqa: S314 - drawn here
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert {element.tag.partition("}")[2] for element in root.iter()} <= {
        *("svg", "style", "rect", "text", "line", "polyline", "circle")
    }
    assert "<script>alert(1)</script>" in "".join(root.itertext())


@pytest.mark.parametrize("curve", [replace(CURVE, roc=[], calibration=[]), replace(CURVE, roc=[0.5], calibration=[])])
def test_curves_without_points_are_not_drawn(curve: Curve) -> None:
    assert plot_curves([curve], "binary", "yes") == []
    assert draw_curves([curve], "binary", "yes", "bought") is None
