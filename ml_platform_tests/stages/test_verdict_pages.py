"""A verdict's page: what a person must find there, whatever was decided, and what must not stand there."""

from dataclasses import replace
from typing import Any
from xml.etree.ElementTree import Element

import pytest

from ml_platform.model_spec import Approval, Comparison, Gate, GoldenSet, ModelSpec, Range
from ml_platform.records import Figure, Findings, GateOutcome, Verdict
from ml_platform.stages import gates, verdict_pages
from ml_platform.stages._curves import Curve, Curves
from ml_platform_tests import fakes
from ml_platform_tests.html_pages import read, rows, sections, text

SPEC = fakes.visits_spec()
MADE = fakes.candidate()
CURVES = Curves(
    rows=200,
    of=[
        Curve(name="candidate", roc=[0.5, 0.9, 1.0], calibration=[(0.1, 0.2), (0.8, 0.9)]),
        Curve(name="baseline, prior", roc=[0.0, 0.5, 1.0], calibration=[(0.4, 0.4)]),
    ],
)


def judged(*figures: Figure, spec: ModelSpec = SPEC, **changes: Any) -> Verdict:
    """Return a verdict on these figures; a metric that none of them names stands on the gate's bound."""
    named = {figure.metric for figure in figures}
    found = fakes.findings(spec)
    others = [figure for figure in found.figures if figure.metric not in named]
    return gates.judge(MADE, replace(found, figures=[*figures, *others], **changes), spec)


def page_of(verdict: Verdict, spec: ModelSpec = SPEC, curves: Curves | None = CURVES) -> Element:
    return read(verdict_pages.draw(verdict, MADE, spec, curves))


def headline(page: Element) -> Element:
    return next(element for element in page.iter("div") if "said" in element.get("class", "").split())


def row(section: Element, first: str) -> list[str]:
    (found,) = [cells for cells in rows(section) if cells[0].startswith(first)]
    return found


# What was decided


def test_a_passing_verdict_says_so_and_shows_every_gate() -> None:
    verdict = judged(Figure(metric="auc_roc", value=0.91, low=0.88, high=0.94, rows=200))

    page = page_of(verdict)

    assert text(headline(page)).startswith("PASS. All 4 gates hold")
    table = sections(page)["The gates"]
    assert [cells[:2] for cells in rows(table)][1:] == [[r.condition, "PASS"] for r in verdict.results]
    assert "0.91 [0.88, 0.94]" in row(table, "auc_roc >= 0.8")[2]
    assert "the gate asks for >= 0.8" in row(table, "auc_roc >= 0.8")[3]


def test_a_page_has_its_parts_in_the_order_of_a_readers_questions() -> None:
    assert list(sections(page_of(judged()))) == [
        "The gates",
        "Beside whom",
        "Figures",
        "Slices",
        "Curves",
        "Time, memory and size",
        "What it rests on",
        "How to check it",
    ]


def test_a_version_that_somebody_must_approve_is_not_said_to_go_on_by_itself() -> None:
    spec = fakes.visits_spec(approval=Approval())

    assert "once somebody approves it" in text(headline(page_of(judged(), spec)))
    assert "approves" not in text(headline(page_of(judged())))


def test_a_refused_verdict_names_each_gate_that_does_not_hold_and_why() -> None:
    page = page_of(judged(Figure(metric="auc_roc", value=0.7), Figure(metric="f1_score", value=0.2)))

    said = headline(page)
    assert text(said).startswith("REFUSED. 2 of 4 gates do not hold. The champion stays.")
    assert [text(reason) for reason in said.iter("li")] == [
        "FAIL auc_roc is 0.7, the gate asks for >= 0.8",
        "FAIL f1_score is 0.2, the gate asks for >= 0.7",
    ]
    assert row(sections(page)["The gates"], "auc_roc >= 0.8")[1] == "FAIL"


def test_an_inconclusive_verdict_is_refused_without_calling_the_model_bad() -> None:
    page = page_of(judged(Figure(metric="auc_roc", value=0.95, rows=7)))

    said = headline(page)
    assert text(said).startswith(
        "REFUSED. 1 of 4 gates does not say either way, and what cannot be told does not pass."
    )
    assert "INCONCLUSIVE" in said.get("class", "").split()
    assert [text(reason) for reason in said.iter("li")] == ["INCONCLUSIVE auc_roc rests on 7 rows, 30 are asked for"]
    cells = row(sections(page)["The gates"], "auc_roc >= 0.8")
    assert (cells[1], "It cannot be told" in cells[3]) == ("INCONCLUSIVE", True)


def test_a_gate_that_failed_is_worth_more_than_one_that_cannot_be_told() -> None:
    page = page_of(judged(Figure(metric="auc_roc", value=None, reason="one class"), Figure(metric="f1_score", value=0)))

    assert text(headline(page)).startswith("REFUSED. 1 of 4 gates does not hold.")
    assert len(list(headline(page).iter("li"))) == 2
    assert "not told one class" in row(sections(page)["The gates"], "auc_roc >= 0.8")[2]


def test_a_verdict_without_gates_is_refused() -> None:
    assert text(headline(page_of(replace(judged(), results=[])))) == "REFUSED. No gate was applied. The champion stays."


# Pictures of intervals


def places(picture: Element) -> tuple[float, float, float, float]:
    """Return where value, bound, and the area that is asked for stand, from left to right."""
    (dot,) = picture.iter("circle")
    (bound,) = [line for line in picture.iter("line") if line.get("class") == "bound"]
    (asked,) = [area for area in picture.iter("rect") if area.get("class") == "asked"]
    left, width = float(asked.get("x", "")), float(asked.get("width", ""))
    return float(dot.get("cx", "")), float(bound.get("x1", "")), left, left + width


@pytest.mark.parametrize("value", [0.7, 0.9])
def test_a_least_value_is_drawn_with_what_is_above_it_asked_for(value: float) -> None:
    page = page_of(judged(Figure(metric="auc_roc", value=value, low=value - 0.05, high=value + 0.05)))

    picture = next(sections(page)["The gates"].iter("svg"))
    at, bound, left, right = places(picture)

    assert (at > bound) == (value > 0.8)
    assert left == bound < right
    said = f"all rows: {value} [{value - 0.05:.4g}, {value + 0.05:.4g}], asked for is at least 0.8"
    assert picture.get("aria-label", "").replace("\N{NO-BREAK SPACE}", " ") == said


def test_a_greatest_value_is_drawn_with_what_is_below_it_asked_for() -> None:
    page = page_of(judged(Figure(metric="model_size_mb", value=12.0)))

    picture = list(sections(page)["The gates"].iter("svg"))[2]
    at, bound, left, right = places(picture)

    assert left == 0 < right == bound < at


# Beside whom


def test_the_champion_stands_beside_the_candidate_with_its_bytes_and_the_difference() -> None:
    rival = fakes.beaten(
        SPEC,
        kind="champion",
        name="version 3",
        version=3,
        model_digest="c" * 64,
        difference=-0.02,
        low=-0.05,
        high=0.01,
        figures=[Figure(metric="auc_roc", value=0.82, low=0.8, high=0.84, rows=200)],
    )

    page = page_of(judged(rival=rival, champion=3))

    beside = sections(page)["Beside whom"]
    assert row(beside, "candidate")[1:3] == [MADE.id, MADE.model_digest]
    assert row(beside, "champion")[1:] == ["version 3", "c" * 64, "0.82 [0.8, 0.84]"]
    assert "is worse: -0.02 [-0.05, 0.01] on 200 rows" in text(beside)
    assert "champion, version 3" in next(rows(sections(page)["Figures"]))
    picture = list(sections(page)["The gates"].iter("svg"))[-1]
    assert places(picture)[0] < places(picture)[1]


def test_the_first_model_stands_beside_its_baseline() -> None:
    said = text(sections(page_of(judged()))["Beside whom"])

    assert "There is no champion yet" in said
    assert "DummyClassifier(prior)" in said
    assert "is better: 0.4 [0.3, 0.5] on 200 rows" in said
    gain = list(sections(page_of(judged()))["The gates"].iter("svg"))[-1]
    assert gain.get("aria-label", "").endswith("its lower bound must reach 0")


def test_a_champion_with_the_same_bytes_is_named_beside_the_baseline_that_takes_its_place() -> None:
    rival = fakes.beaten(SPEC, version=3, model_digest=MADE.model_digest)

    beside = sections(page_of(judged(rival=rival, champion=3)))["Beside whom"]

    assert "version 3, which has the candidate's very bytes: the baseline takes its place" in text(beside)
    assert row(beside, "baseline")[2] == "a baseline has none"


def test_a_comparison_that_did_not_happen_says_why() -> None:
    rival = fakes.beaten(
        SPEC, kind="champion", name="version 3", version=3, difference=None, low=None, reason="it is gone"
    )

    assert "They were not compared: it is gone." in text(
        sections(page_of(judged(rival=rival, champion=3)))["Beside whom"]
    )


def test_a_model_that_is_compared_with_nobody_says_so() -> None:
    spec = fakes.visits_spec(comparison=None)

    assert "asks for no comparison" in text(sections(page_of(judged(spec=spec), spec))["Beside whom"])


@pytest.mark.parametrize(("gain", "bound"), [(None, -0.01), (0.1, 0.1)])
def test_the_bound_of_a_comparison_is_the_one_that_the_author_chose(gain: float | None, bound: float) -> None:
    spec = fakes.visits_spec(comparison=Comparison(minimum_gain=gain))
    rival = fakes.beaten(spec, kind="champion", name="version 3", version=3)

    page = page_of(judged(spec=spec, rival=rival, champion=3), spec)

    picture = list(sections(page)["The gates"].iter("svg"))[-1]
    assert picture.get("aria-label", "").endswith(f"its lower bound must reach {bound:g}")


# Figures, slices, costs


def test_every_golden_dataset_has_its_own_figures() -> None:
    spec = fakes.visits_spec(golden=(GoldenSet(name="holiday", sha256="0" * 64),))
    figures = [
        Figure(metric="auc_roc", value=0.9, low=0.85, high=0.95, rows=1_234),
        Figure(metric="auc_roc", value=0.6, low=0.5, high=0.7, rows=200, dataset="holiday"),
    ]

    found = sections(page_of(judged(*figures, spec=spec), spec))["Figures"]

    assert [text(head) for head in found.iter("h3")] == [
        "On the holdout: 1,234 rows",
        "On the golden dataset holiday: 200 rows",
    ]
    assert [cells[1] for cells in rows(found) if cells[0].startswith("auc_roc")] == [
        "0.9 [0.85, 0.95]",
        "0.6 [0.5, 0.7]",
    ]


def sliced(least_rows: int = 30, few: int = 3) -> tuple[ModelSpec, Verdict]:
    gate = Gate(metric="recall", at_least=0.5, slices=("plan",), least_rows=least_rows)
    spec = fakes.visits_spec(gates=(*SPEC.gates, gate), slices=(Range(column="pages", below=10),))
    figures = [
        Figure(metric="recall", value=0.61, low=0.52, high=0.7, rows=90, slice="plan = free"),
        Figure(metric="recall", value=0.77, low=0.7, high=0.84, rows=110, slice="plan = paid"),
        Figure(metric="recall", value=0.123, low=0.1, high=0.9, rows=few, slice="pages < 10"),
    ]
    return spec, judged(*figures, spec=spec)


def test_slices_have_rows_and_intervals_and_those_that_a_gate_asks_for_are_marked() -> None:
    spec, verdict = sliced()

    found = sections(page_of(verdict, spec))["Slices"]

    column = next(rows(found)).index("recall")
    table = {cells[0]: cells for cells in list(rows(found))[1:4]}
    assert (table["plan = paid"][1], table["plan = paid"][column]) == ("110", "gate 0.77 [0.7, 0.84]")
    assert table["plan = free"][column] == "gate 0.61 [0.52, 0.7]"
    assert "gate" not in table["pages < 10"][column]


def test_a_handful_of_rows_is_named_without_its_figures() -> None:
    spec, verdict = sliced(few=4)
    enough = sliced(few=5)[1]

    said = text(page_of(verdict, spec))

    assert "fewer than 5 rows: no figures are shown" in said
    assert "0.123" not in said
    assert "0.123" in text(page_of(enough, spec))


def test_time_memory_and_size_stand_with_their_range_and_what_is_asked_for() -> None:
    spec = fakes.visits_spec(gates=(*SPEC.gates, Gate(metric="inference_time_ms", at_most=100)))
    figures = [
        Figure(metric="inference_time_ms", value=7.5, low=2.5, high=7.5),
        Figure(metric="cold_load_seconds", value=3),
    ]

    found = sections(page_of(judged(*figures, spec=spec), spec))["Time, memory and size"]

    assert row(found, "inference_time_ms")[1:3] == ["7.5 [2.5, 7.5]", "<= 100"]
    assert row(found, "cold_load_seconds")[1:3] == ["3", "nothing"]
    assert row(found, "model_size_mb")[1:3] == ["10 [10, 10]", "<= 10"]


# Curves


def lines(page: Element) -> list[int]:
    """Return how many points each line has."""
    return [len(line.get("points", "").split()) for line in sections(page)["Curves"].iter("polyline")]


def test_roc_and_calibration_are_drawn_for_the_candidate_and_its_rival() -> None:
    page = page_of(judged())

    assert [text(title) for title in page.iter("figcaption")] == ["ROC", "Calibration, a point a tenth of the rows"]
    assert lines(page) == [4, 4, 2, 1]
    assert "the same 200 rows of the holdout" in text(sections(page)["Curves"])


def test_numbers_have_a_calibration_in_their_unit_and_no_roc_curve() -> None:
    spec = fakes.spending_spec()
    curves = Curves(rows=90, of=[Curve(name="candidate", roc=[], calibration=[(4.0, 5.0), (250.0, 240.0)])])

    page = page_of(judged(spec=spec), spec, curves)

    assert [text(title) for title in page.iter("figcaption")] == ["Calibration, a point a tenth of the rows"]
    assert {"4", "127", "250", "mean prediction", "mean spent"} <= {text(t) for t in page.iter("text")}


def test_several_classes_are_drawn_as_the_mean_of_each() -> None:
    spec = fakes.kinds_spec()

    assert "ROC, mean of each class against the rest" in text(page_of(judged(spec=spec), spec))


@pytest.mark.parametrize("curves", [None, Curves(rows=3, of=[Curve(name="candidate", roc=[], calibration=[])])])
def test_without_points_the_page_says_that_there_are_no_curves(curves: Curves | None) -> None:
    page = page_of(judged(), curves=curves)

    assert "There are none" in text(sections(page)["Curves"])
    assert lines(page) == []


# What it rests on


def test_everything_that_the_verdict_is_bound_to_is_named() -> None:
    verdict = judged()

    page = page_of(verdict)

    said = text(sections(page)["What it rests on"])
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
    commands = [text(code) for code in sections(page)["How to check it"].iter("code")]
    assert {"ml-platform explain version visits N", "ml-platform reproduce visits N", "sha256sum verdict.json"} < set(
        commands
    )


# What must not stand there

EVIL = '<script src="//evil.example/x">alert(1)</script>&"\''
KNOWN = (
    "html head meta title style body h1 h2 h3 p small strong code section div table thead tbody tr th td ul li dl dt "
    "dd span details summary figure figcaption svg rect line circle polyline text"
)


def evil_page() -> str:
    figures = [
        Figure(metric="f1_score", value=None, reason=EVIL),
        Figure(metric="f1_score", value=0.5, rows=90, slice=EVIL, method=EVIL),
        Figure(metric=EVIL, value=0.5, dataset=EVIL),
    ]
    rival = fakes.beaten(SPEC, name=EVIL, reason=EVIL, method=EVIL)
    made = replace(MADE, actor=EVIL, id=EVIL, lineage=replace(MADE.lineage, reason=EVIL, code_revision=EVIL))
    curves = Curves(rows=200, of=[replace(CURVES.of[0], name=EVIL), replace(CURVES.of[1], name=EVIL)])
    return verdict_pages.draw(gates.judge(made, Findings(figures=figures, rival=rival), SPEC), made, SPEC, curves)


def test_whatever_a_name_holds_is_text() -> None:
    page = read(evil_page())

    assert {element.tag for element in page.iter()} <= set(KNOWN.split())
    found = sections(page)
    for title in ("The gates", "Beside whom", "Figures", "Slices", "Curves", "What it rests on"):
        assert EVIL in text(found[title]), title


def test_a_page_loads_nothing_and_runs_nothing() -> None:
    for page in (evil_page(), verdict_pages.draw(judged(), MADE, SPEC, CURVES)):
        root = read(page)
        names = {name for element in root.iter() for name in element.attrib}
        assert not {name for name in names if name.startswith("on")} | names & {"src", "href", "style", "action"}
        style = "".join(text(element) for element in root.iter("style"))
        assert "url(" not in style
        assert "@import" not in style
        policy = [meta.get("content") for meta in root.iter("meta") if meta.get("http-equiv")]
        assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_the_outcomes_are_those_that_the_page_has_words_for() -> None:
    assert set(verdict_pages.WORDS) == set(GateOutcome)
