"""A verdict's page: its content for every decision, and the safety of its markup."""

from dataclasses import replace
from typing import Any
from xml.etree.ElementTree import Element

import pytest

from ml_platform.evaluation import gates, verdict_page, verdict_view
from ml_platform.evaluation.curves import Curve, Curves
from ml_platform.model_spec import Approval, Comparison, Gate, GoldenSet, InRange, ModelSpec
from ml_platform.records.verdict import Evaluation, GateOutcome, Measurement, Verdict
from ml_platform_tests.support import fakes
from ml_platform_tests.support.html_pages import read, rows, sections, text

SPEC = fakes.visits_spec()
MADE = fakes.candidate()
CURVES = Curves(
    rows=200,
    of=[
        Curve(name="candidate", roc=[0.5, 0.9, 1.0], calibration=[(0.1, 0.2), (0.8, 0.9)]),
        Curve(name="baseline, prior", roc=[0.0, 0.5, 1.0], calibration=[(0.4, 0.4)]),
    ],
)


def judge(*measurements: Measurement, spec: ModelSpec = SPEC, **changes: Any) -> Verdict:
    """Return a verdict on these measurements; the other metrics are on their gates' bounds."""
    named = {measurement.metric for measurement in measurements}
    evaluation = fakes.evaluation(spec)
    others = [measurement for measurement in evaluation.measurements if measurement.metric not in named]
    return gates.judge(MADE, replace(evaluation, measurements=[*measurements, *others], **changes), spec)


def draw_page(verdict: Verdict, spec: ModelSpec = SPEC, curves: Curves | None = CURVES) -> Element:
    return read(verdict_page.draw(verdict, MADE, spec, curves))


def headline(page: Element) -> Element:
    return next(element for element in page.iter("div") if "headline" in element.get("class", "").split())


def row(section: Element, first: str) -> list[str]:
    (cells,) = [cells for cells in rows(section) if cells[0].startswith(first)]
    return cells


# The decision


def test_passing_verdict_shows_every_gate() -> None:
    verdict = judge(Measurement(metric="auc_roc", value=0.91, low=0.88, high=0.94, rows=200))

    page = draw_page(verdict)

    assert text(headline(page)).startswith("PASS. All 4 gates hold")
    table = sections(page)["Gates"]
    assert [cells[:2] for cells in rows(table)][1:] == [[r.condition, "PASS"] for r in verdict.results]
    assert "0.91 [0.88, 0.94]" in row(table, "auc_roc >= 0.8")[2]
    assert "the gate asks for >= 0.8" in row(table, "auc_roc >= 0.8")[3]


def test_sections_are_in_order() -> None:
    assert list(sections(draw_page(judge()))) == [
        "Gates",
        "Comparison",
        "Measurements",
        "Slices",
        "Curves",
        "Time, memory and size",
        "Lineage",
        "How to verify it",
    ]


def test_headline_mentions_a_needed_approval() -> None:
    spec = fakes.visits_spec(approval=Approval())

    assert "after an approval" in text(headline(draw_page(judge(), spec)))
    assert "approval" not in text(headline(draw_page(judge())))


def test_refused_verdict_names_failed_gates_with_reasons() -> None:
    page = draw_page(judge(Measurement(metric="auc_roc", value=0.7), Measurement(metric="f1_score", value=0.2)))

    decision = headline(page)
    assert text(decision).startswith("REFUSED. 2 of 4 gates do not hold. The champion stays.")
    assert [text(reason) for reason in decision.iter("li")] == [
        "FAIL auc_roc is 0.7, the gate asks for >= 0.8",
        "FAIL f1_score is 0.2, the gate asks for >= 0.7",
    ]
    assert row(sections(page)["Gates"], "auc_roc >= 0.8")[1] == "FAIL"


def test_inconclusive_verdict_is_refused_without_failed_gates() -> None:
    page = draw_page(judge(Measurement(metric="auc_roc", value=0.95, rows=7)))

    decision = headline(page)
    assert text(decision).startswith("REFUSED. 1 of 4 gates is inconclusive, which blocks promotion. No gate failed.")
    assert "INCONCLUSIVE" in decision.get("class", "").split()
    assert [text(reason) for reason in decision.iter("li")] == [
        "INCONCLUSIVE auc_roc rests on 7 rows, 30 are asked for"
    ]
    cells = row(sections(page)["Gates"], "auc_roc >= 0.8")
    assert (cells[1], "inconclusive" in cells[3]) == ("INCONCLUSIVE", True)


def test_failed_gate_outweighs_inconclusive_gate() -> None:
    page = draw_page(
        judge(Measurement(metric="auc_roc", value=None, reason="one class"), Measurement(metric="f1_score", value=0))
    )

    assert text(headline(page)).startswith("REFUSED. 1 of 4 gates does not hold.")
    assert len(list(headline(page).iter("li"))) == 2
    assert "not available one class" in row(sections(page)["Gates"], "auc_roc >= 0.8")[2]


def test_verdict_without_gates_is_refused() -> None:
    assert (
        text(headline(draw_page(replace(judge(), results=[])))) == "REFUSED. No gate was applied. The champion stays."
    )


# Charts of intervals


def places(picture: Element) -> tuple[float, float, float, float]:
    """Return the horizontal positions of value and bound, and the left and right end of the range that passes."""
    (dot,) = picture.iter("circle")
    (bound,) = [line for line in picture.iter("line") if line.get("class") == "bound"]
    (required,) = [area for area in picture.iter("rect") if area.get("class") == "required"]
    left, width = float(required.get("x", "")), float(required.get("width", ""))
    return float(dot.get("cx", "")), float(bound.get("x1", "")), left, left + width


@pytest.mark.parametrize("value", [0.7, 0.9])
def test_lower_bound_shades_values_above_it(value: float) -> None:
    page = draw_page(judge(Measurement(metric="auc_roc", value=value, low=value - 0.05, high=value + 0.05)))

    picture = next(sections(page)["Gates"].iter("svg"))
    at, bound, left, right = places(picture)

    assert (at > bound) == (value > 0.8)
    assert left == bound < right
    label = f"all rows: {value} [{value - 0.05:.4g}, {value + 0.05:.4g}], required is at least 0.8"
    assert picture.get("aria-label") == label


def test_upper_bound_shades_values_below_it() -> None:
    page = draw_page(judge(Measurement(metric="model_size_mb", value=12.0)))

    picture = list(sections(page)["Gates"].iter("svg"))[2]
    at, bound, left, right = places(picture)

    assert left == 0 < right == bound < at


# The comparison


def test_comparison_shows_champion_digest_and_difference() -> None:
    reference = fakes.beaten(
        SPEC,
        kind="champion",
        name="version 3",
        version=3,
        model_digest="c" * 64,
        difference=-0.02,
        low=-0.05,
        high=0.01,
        measurements=[Measurement(metric="auc_roc", value=0.82, low=0.8, high=0.84, rows=200)],
    )

    page = draw_page(judge(reference=reference, champion=3))

    comparison = sections(page)["Comparison"]
    assert row(comparison, "candidate")[1:3] == [MADE.id, MADE.model_digest]
    assert row(comparison, "champion")[1:] == ["version 3", "c" * 64, "0.82 [0.8, 0.84]"]
    assert "is worse: -0.02 [-0.05, 0.01] on 200 rows" in text(comparison)
    assert "champion, version 3" in next(rows(sections(page)["Measurements"]))
    picture = list(sections(page)["Gates"].iter("svg"))[-1]
    assert places(picture)[0] < places(picture)[1]


def test_first_model_is_compared_with_baseline() -> None:
    said = text(sections(draw_page(judge()))["Comparison"])

    assert "There is no champion yet" in said
    assert "DummyClassifier(prior)" in said
    assert "is better: 0.4 [0.3, 0.5] on 200 rows" in said
    gain = list(sections(draw_page(judge()))["Gates"].iter("svg"))[-1]
    assert gain.get("aria-label", "").endswith("its lower bound must reach 0")


def test_baseline_replaces_champion_with_same_bytes() -> None:
    reference = fakes.beaten(SPEC, version=3, model_digest=MADE.model_digest)

    comparison = sections(draw_page(judge(reference=reference, champion=3)))["Comparison"]

    assert "version 3, which has the same bytes as the candidate: the baseline replaces it" in text(comparison)
    assert row(comparison, "baseline")[2] == "a baseline has none"


def test_missing_comparison_has_a_reason() -> None:
    reference = fakes.beaten(
        SPEC, kind="champion", name="version 3", version=3, difference=None, low=None, reason="it is gone"
    )

    assert "They were not compared: it is gone." in text(
        sections(draw_page(judge(reference=reference, champion=3)))["Comparison"]
    )


def test_model_without_comparison_declares_none() -> None:
    spec = fakes.visits_spec(comparison=None)

    assert "declares no comparison" in text(sections(draw_page(judge(spec=spec), spec))["Comparison"])


@pytest.mark.parametrize(("gain", "bound"), [(None, -0.01), (0.1, 0.1)])
def test_comparison_bound_is_the_declared_one(gain: float | None, bound: float) -> None:
    spec = fakes.visits_spec(comparison=Comparison(min_gain=gain))
    reference = fakes.beaten(spec, kind="champion", name="version 3", version=3)

    page = draw_page(judge(spec=spec, reference=reference, champion=3), spec)

    picture = list(sections(page)["Gates"].iter("svg"))[-1]
    assert picture.get("aria-label", "").endswith(f"its lower bound must reach {bound:g}")


# Measurements, slices, costs


def test_golden_dataset_has_its_own_measurements() -> None:
    spec = fakes.visits_spec(golden=(GoldenSet(name="holiday", sha256="0" * 64),))
    measurements = [
        Measurement(metric="auc_roc", value=0.9, low=0.85, high=0.95, rows=1_234),
        Measurement(metric="auc_roc", value=0.6, low=0.5, high=0.7, rows=200, dataset="holiday"),
    ]

    found = sections(draw_page(judge(*measurements, spec=spec), spec))["Measurements"]

    assert [text(head) for head in found.iter("h3")] == [
        "On the holdout: 1,234 rows",
        "On the golden dataset holiday: 200 rows",
    ]
    assert [cells[1] for cells in rows(found) if cells[0].startswith("auc_roc")] == [
        "0.9 [0.85, 0.95]",
        "0.6 [0.5, 0.7]",
    ]


def sliced(min_rows: int = 30, few: int = 3) -> tuple[ModelSpec, Verdict]:
    gate = Gate(metric="recall", at_least=0.5, slices=("plan",), min_rows=min_rows)
    spec = fakes.visits_spec(gates=(*SPEC.gates, gate), slices=(InRange(column="pages", below=10),))
    measurements = [
        Measurement(metric="recall", value=0.61, low=0.52, high=0.7, rows=90, slice="plan = free"),
        Measurement(metric="recall", value=0.77, low=0.7, high=0.84, rows=110, slice="plan = paid"),
        Measurement(metric="recall", value=0.123, low=0.1, high=0.9, rows=few, slice="pages < 10"),
    ]
    return spec, judge(*measurements, spec=spec)


def test_slices_show_rows_intervals_and_gate_marks() -> None:
    spec, verdict = sliced()

    found = sections(draw_page(verdict, spec))["Slices"]

    column = next(rows(found)).index("recall")
    table = {cells[0]: cells for cells in list(rows(found))[1:4]}
    assert (table["plan = paid"][1], table["plan = paid"][column]) == ("110", "gate 0.77 [0.7, 0.84]")
    assert table["plan = free"][column] == "gate 0.61 [0.52, 0.7]"
    assert "gate" not in table["pages < 10"][column]


def test_few_rows_have_no_measurements() -> None:
    spec, verdict = sliced(few=4)
    enough = sliced(few=5)[1]

    said = text(draw_page(verdict, spec))

    assert "fewer than 5 rows: no measurements are shown" in said
    assert "0.123" not in said
    assert "0.123" in text(draw_page(enough, spec))


def test_costs_show_range_and_requirement() -> None:
    spec = fakes.visits_spec(gates=(*SPEC.gates, Gate(metric="inference_time_ms", at_most=100)))
    measurements = [
        Measurement(metric="inference_time_ms", value=7.5, low=2.5, high=7.5),
        Measurement(metric="cold_load_seconds", value=3),
    ]

    found = sections(draw_page(judge(*measurements, spec=spec), spec))["Time, memory and size"]

    assert row(found, "inference_time_ms")[1:3] == ["7.5 [2.5, 7.5]", "<= 100"]
    assert row(found, "cold_load_seconds")[1:3] == ["3", "nothing"]
    assert row(found, "model_size_mb")[1:3] == ["10 [10, 10]", "<= 10"]


# Curves


def lines(page: Element) -> list[int]:
    """Return the number of points of each line."""
    return [len(line.get("points", "").split()) for line in sections(page)["Curves"].iter("polyline")]


def test_curves_show_candidate_and_reference() -> None:
    page = draw_page(judge())

    assert [text(title) for title in page.iter("figcaption")] == ["ROC", "Calibration by tenths of the rows"]
    assert lines(page) == [4, 4, 2, 1]
    assert "the same 200 rows of the holdout" in text(sections(page)["Curves"])


def test_regression_has_calibration_without_roc() -> None:
    spec = fakes.spending_spec()
    curves = Curves(rows=90, of=[Curve(name="candidate", roc=[], calibration=[(4.0, 5.0), (250.0, 240.0)])])

    page = draw_page(judge(spec=spec), spec, curves)

    assert [text(title) for title in page.iter("figcaption")] == ["Calibration by tenths of the rows"]
    assert {"4", "127", "250", "mean prediction", "mean spent"} <= {text(t) for t in page.iter("text")}


def test_multiclass_roc_is_a_mean() -> None:
    spec = fakes.kinds_spec()

    assert "ROC, mean of each class against the rest" in text(draw_page(judge(spec=spec), spec))


@pytest.mark.parametrize("curves", [None, Curves(rows=3, of=[Curve(name="candidate", roc=[], calibration=[])])])
def test_curves_without_points_are_absent(curves: Curves | None) -> None:
    page = draw_page(judge(), curves=curves)

    assert "There are none" in text(sections(page)["Curves"])
    assert lines(page) == []


# Lineage


def test_lineage_names_every_digest() -> None:
    verdict = judge()

    page = draw_page(verdict)

    said = text(sections(page)["Lineage"])
    bound = (
        verdict.model_digest,
        verdict.dataset_digest,
        verdict.code_revision,
        verdict.lock_digest,
        verdict.gates_digest,
        verdict.digest,
        MADE.lineage.reason,
        "version 3",
    )
    assert [value for value in bound if value not in said] == []
    commands = [text(code) for code in sections(page)["How to verify it"].iter("code")]
    assert {"ml-platform explain version visits N", "ml-platform reproduce visits N", "sha256sum verdict.json"} < set(
        commands
    )


# Hostile text

EVIL = '<script src="//evil.example/x">alert(1)</script>&"\''
KNOWN = (
    "html head meta title style body h1 h2 h3 p small strong code section div table thead tbody tr th td ul li dl dt "
    "dd span details summary figure figcaption svg rect line circle polyline text"
)


def evil_page() -> str:
    measurements = [
        Measurement(metric="f1_score", value=None, reason=EVIL),
        Measurement(metric="f1_score", value=0.5, rows=90, slice=EVIL, method=EVIL),
        Measurement(metric=EVIL, value=0.5, dataset=EVIL),
    ]
    reference = fakes.beaten(SPEC, name=EVIL, reason=EVIL, method=EVIL)
    made = replace(MADE, actor=EVIL, id=EVIL, lineage=replace(MADE.lineage, reason=EVIL, code_revision=EVIL))
    curves = Curves(rows=200, of=[replace(CURVES.of[0], name=EVIL), replace(CURVES.of[1], name=EVIL)])
    return verdict_page.draw(
        gates.judge(made, Evaluation(measurements=measurements, reference=reference), SPEC), made, SPEC, curves
    )


def test_page_shows_hostile_names_as_text() -> None:
    page = read(evil_page())

    assert {element.tag for element in page.iter()} <= set(KNOWN.split())
    found = sections(page)
    for title in ("Gates", "Comparison", "Measurements", "Slices", "Curves", "Lineage"):
        assert EVIL in text(found[title]), title


def test_page_loads_nothing_and_runs_nothing() -> None:
    for page in (evil_page(), verdict_page.draw(judge(), MADE, SPEC, CURVES)):
        root = read(page)
        names = {name for element in root.iter() for name in element.attrib}
        assert not {name for name in names if name.startswith("on")} | names & {"src", "href", "style", "action"}
        style = "".join(text(element) for element in root.iter("style"))
        assert "url(" not in style
        assert "@import" not in style
        policy = [meta.get("content") for meta in root.iter("meta") if meta.get("http-equiv")]
        assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_every_outcome_has_an_explanation() -> None:
    assert set(verdict_view.EXPLANATIONS) == set(GateOutcome)
