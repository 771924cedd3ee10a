"""The page and the comment of a change: their content, and the escaping of hostile text."""

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ml_platform.ci import result_schema
from ml_platform.ci.pr_comment import MARKER, comment, plain
from ml_platform.ci.report import collect, read_all
from ml_platform.ci.report_page import draw
from ml_platform.ci.result_schema import (
    ChangeResult,
    CheckState,
    DeclaredComparison,
    GateChange,
    Outcome,
    ReportedCheck,
    ReportedCurve,
    ReportedGate,
    ReportedMeasurement,
    ReportedReference,
)
from ml_platform.cli import app
from ml_platform.errors import DataError
from ml_platform_tests.support import html_pages, repositories

EVIL = "</td><script>alert(1)</script> ![x](http://a.example/x) @all #1 `b` | www.a.example a@b.example <!-- *c* GH-1"
WORSE = {("old", "new"): {"": 0.90, "plan = paid": 0.92}, ("new", "new"): {"": 0.90, "plan = paid": 0.62}}


def refused(**fields: Any) -> ChangeResult:
    bad = ReportedCheck(check="visits/trained_model:own", state=CheckState.SKIPPED, said="it gave no result")
    change = GateChange(check="visits/trained_model:f1_score", kind="removed", before="f1_score >= 0.7")
    given: dict[str, Any] = {
        "outcome": Outcome.FAIL,
        "problems": ["gate auc_roc >= 0.8 is FAIL: it is 0.62", "the check visits/trained_model:own is SKIPPED"],
        "checks": [*repositories.trial().checks, bad],
        "changes": [change],
    }
    return repositories.trial(WORSE, **{**given, **fields})


def leave(trial: ChangeResult, folder: Path) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{trial.model}.json").write_text(trial.model_dump_json())
    return folder


def test_page_shows_decision_causes_and_lineage() -> None:
    root = html_pages.read(draw([refused(changed=["ml_platform/models/visits.py: its code"])]))
    parts, everything = html_pages.sections(root), html_pages.text(root)

    assert "visits: REFUSED. Not every gate holds." in everything
    assert "gate auc_roc >= 0.8 is FAIL: it is 0.62" in everything
    assert list(parts) == [
        "What became worse",
        "Changed gates",
        "Gates",
        "Slices",
        "Curves",
        "Time, memory and size",
        "Asset checks",
        "Lineage",
    ]
    assert (
        "auc_roc of plan = paid became worse: 0.92 before, 0.62 now (-0.3). The cause is the code"
        in html_pages.text(parts["What became worse"])
    )
    assert "What changed: ml_platform/models/visits.py: its code." in html_pages.text(parts["What became worse"])
    assert "not declared" in html_pages.text(parts["Changed gates"])
    assert "Slices that moved: plan = paid." in html_pages.text(parts["Slices"])
    assert "1 of 2 expected checks are on record as SUCCEEDED" in html_pages.text(parts["Asset checks"])


def test_broken_change_is_refused_in_page_and_comment() -> None:
    broken = repositories.trial(
        outcome=Outcome.BROKEN, corners=[], checks=[], problems=["ModuleNotFoundError: No module named 'torch'"]
    )

    (body,) = html_pages.read(draw([broken])).iter("body")
    for said in (html_pages.text(body), comment([broken])):
        assert "REFUSED. It could not be judged" in said
        assert "No module named 'torch'" in said
        assert "PASS" not in said


def everywhere(text: str) -> ChangeResult:
    corners = [
        repositories.corner(
            code,
            "new",
            repositories.measurements({text: value, "": value}),
            gates=[{"name": text, "condition": text, "value": 0.1, "outcome": "FAIL", "why": text}],
            reference=ReportedReference(kind="champion", name=text, metric=text, reason=text),
        )
        for code, value in (("old", 0.9), ("new", 0.1))
    ]
    return refused(
        base=text,
        head=text,
        problems=[text],
        notes=[text],
        corners=corners,
        positive=text,
        asked=[repositories.asked(name=text, condition=text, places=[text])],
        checks=[ReportedCheck(check=text, state=CheckState.FAILED, said=text)],
        changes=[GateChange(check=text, kind="removed", before=text, after=text, declared=text)],
    )


@pytest.mark.fault("C2")
def test_page_escapes_every_text() -> None:
    tags = {element.tag for element in html_pages.read(draw([everywhere(EVIL)])).iter()}
    plain_tags = {element.tag for element in html_pages.read(draw([everywhere("name")])).iter()}

    assert tags == plain_tags
    assert EVIL in html_pages.text(html_pages.read(draw([everywhere(EVIL)])))


@pytest.mark.fault("C2")
def test_comment_escapes_markup_mentions_and_links() -> None:
    said = comment([everywhere(EVIL)])
    ours = comment([everywhere("name")])

    assert re.findall(r"</?[a-z!]", said) == re.findall(r"</?[a-z!]", ours)
    for mark in ("@", "`", "*", "[", "]", "![", "://", "www."):
        assert said.count(mark) == ours.count(mark), mark
    assert {line.count("|") for line in said.splitlines()} == {line.count("|") for line in ours.splitlines()}
    # GitHub looks for references in the rendered text: an invisible character follows the mark.
    assert set(re.findall(r"&#(?:64|35);(.{7})", said)) == {"&#8203;"}
    assert re.search(r"GH&#45;&#8203;1", said)


@pytest.mark.parametrize("text", ["auc_roc of plan = paid became worse: 0.92 before, 0.7 now (+0.1)", "2 of 3; 50 %"])
def test_plain_words_are_not_escaped(text: str) -> None:
    assert plain(text) == text


def test_comment_is_bounded_with_decisions_first() -> None:
    many = [
        refused(model=f"model_{number}", problems=[f"{place} {'x' * 900}" for place in range(40)])
        for number in range(9)
    ]

    said = comment(many, max_characters=20_000)

    two = comment([repositories.trial(model="mails"), refused()])
    assert two.rindex("### ") < two.index("<details>")
    assert len(said) <= 20_000
    assert said.startswith(MARKER)
    assert re.search(r"\d+ more parts are in the whole report", said)
    assert all(f"### model&#95;{number}" in said or f"### model_{number}" in said for number in range(3))
    assert len(comment([everywhere("&" * 150)] * 100)) <= 60_000


def test_comment_of_refused_change_has_every_table() -> None:
    corners = [
        repositories.corner(
            code,
            "new",
            [*repositories.measurements(WORSE[code, "new"]), *size],
            reference=ReportedReference(
                kind="champion", name="version 1", metric="auc_roc", difference=-0.1, low=-0.2, high=-0.05
            ),
            curves=[ReportedCurve(name="it", roc=[number / 40 for number in range(41)], calibration=[])],
        )
        for code, size in (("old", []), ("new", [SIZE, SIZE.model_copy(update=NO_MEMORY)]))
    ]
    files = [f"data/{number}.parquet: its data" for number in range(5)]
    said = comment([refused(corners=corners, changed=files, compared=COMPARED, notes=["it is a note"])])

    first = said.index("<details>")
    for words in (
        "visits: REFUSED. Not every gate holds.",
        "auc_roc of plan = paid became worse: 0.92 before, 0.62 now (-0.3). The cause is the code",
        "What changed: data/0.parquet: its data; data/1.parquet: its data; data/2.parquet: its data; and 2 more.",
        "- it is a note",
    ):
        assert html.unescape(said).index(words) < first, words
    tables = re.findall(r"<summary>visits: (.*)</summary>", said)
    assert tables == [
        "changed gates",
        "checks without success",
        "gates",
        "measurements that moved",
        "time and size",
        "ROC curves",
    ]
    shown = html.unescape(said)
    assert "| visits/trained_model:f1_score | removed | f1_score >= 0.7 |  | NOT DECLARED |" in shown
    assert "| visits/trained_model:own | SKIPPED | it gave no result |" in shown
    assert "| auc_roc >= 0.8 | PASS | 0.9 [0.88, 0.92] | 0.9 [0.88, 0.92] | it is 0.9 |" in shown
    assert "| auc_roc of plan = paid | 0.92 | 0.62 | worse: code |" in shown
    assert "| the model file, in MB | 7 | not measured |" in shown
    assert "| memory of that process, in MiB | not available | not measured |" in shown
    assert [line.count(",") for line in said.splitlines() if line.startswith("    line [")] == [20, 20]
    assert "Of this change, then the base." in said


SIZE = ReportedMeasurement(metric="model_size_mb", value=7.0, low=6.0)
NO_MEMORY = {"metric": "resident_memory_mib", "value": None}
COMPARED = DeclaredComparison(
    name="auc_roc_compared",
    condition="auc_roc at most 0.02 behind",
    metric="auc_roc",
    margin=0.02,
    min_gain=None,
    confidence=0.95,
    min_rows=30,
)


def test_comparison_shows_gain_and_reference() -> None:
    gate = ReportedGate(
        name="auc_roc_compared", condition="auc_roc compared", value=-0.1, outcome="FAIL", why="too far"
    )
    reference = ReportedReference(
        kind="champion", name="version 1", metric="auc_roc", difference=-0.1, low=-0.2, high=-0.05
    )
    end = repositories.corner("new", "new", [], gates=[gate], reference=reference)

    said = html.unescape(comment([repositories.trial(corners=[end], compared=COMPARED)]))

    assert "| auc_roc compared | FAIL | gains -0.1 [-0.2, -0.05] | over the champion, version 1 | too far |" in said
    assert "ROC curves" not in said


def test_change_without_effect_has_a_reason() -> None:
    same = repositories.trial(
        corners=[repositories.corner(code, "new", [], model_digest="c" * 64) for code in ("old", "new")]
    )
    corners = repositories.trial().corners

    assert "Nothing: the model is the same to the byte." in comment([same])
    assert "Nothing became worse by more than luck" in comment([repositories.trial()])
    assert "the base was not judged" in comment([repositories.trial(corners=corners[1:])])
    assert "this change was not judged" in comment([repositories.trial(corners=corners[:1])])
    tables = comment([repositories.trial()])
    assert not any(words in tables for words in ("changed gates", "without success", "measurements that moved"))
    assert comment([]) == f"{MARKER}\n\n## Quality gates\n\nNo model is affected by this change.\n"
    assert "No model is affected" not in tables


def test_changed_data_show_four_runs() -> None:
    places = [(code, data) for code in ("old", "new") for data in ("old", "new")]
    four = {place: {"": 0.9 if place == ("old", "old") else 0.6} for place in places}
    partly = repositories.trial(four)

    said = html.unescape(comment([partly.model_copy(update={"corners": partly.corners[:2] + partly.corners[3:]})]))

    heads = "old code, old data | new code, old data | old code, new data | new code, new data"
    assert f"| measurement | {heads} | cause |" in said
    assert "| auc_roc of all rows | 0.9 | not available | 0.6 | 0.6 | worse: unknown |" in said


def test_long_lists_are_cut_with_a_count() -> None:
    many = [f"problem {number}" for number in range(30)]
    changes = [GateChange(check=f"visits:{number}", kind="changed", before="a", after="b") for number in range(30)]
    names = [f"metric_{number}" for number in range(9)]
    corners = [
        repositories.corner(
            code, "new", [f for name in names for f in repositories.measurements({"": value}, metric=name)]
        )
        for code, value in (("old", 0.2), ("new", 0.9))
    ]

    said = comment([refused(problems=many, changes=changes, corners=corners)])

    assert "- problem 19\n- and 10 more" in said
    assert "problem 20" not in said
    assert said.count("| changed |") == 20
    assert "\n\nand 10 more" in said
    assert said.count(" became worse: ") == 5
    assert "- and 4 more" in said


def test_plain_replaces_control_characters_and_line_breaks() -> None:
    assert plain("a\u202eb\n\n# c") == "a&#65533;b &#35;&#8203; c"


def test_comment_ends_at_first_omitted_part() -> None:
    """A later part after a gap would seem to belong to the previous model."""
    long, short = refused(problems=["x" * 300] * 20, model="long"), repositories.trial(model="short")
    assert len(comment([short], max_characters=5_000)) < 4_000

    said = comment([repositories.trial(model="mails"), long, short], max_characters=5_000)

    assert "### mails" in said
    assert "### long: REFUSED" in said
    assert "short" not in said


# Result files


REPOSITORY = {
    "ml_platform/__init__.py": "",
    "ml_platform/pipeline.py": "",
    "ml_platform/definitions.py": "",
    "ml_platform/models/__init__.py": "",
    "ml_platform/models/mails.py": "golden = GoldenSet(name='spam', sha256='0')\n",
    "ml_platform/models/visits.py": "",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a change of visits; the command line runs in it."""
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(variable, raising=False)
    made_here = repositories.repository(tmp_path / "checkout", REPOSITORY)
    repositories.write(made_here, {"ml_platform/models/visits.py": "changed = 1\n"})
    monkeypatch.setattr("ml_platform.cli.ci.PROJECT_ROOT", made_here)
    return made_here


def of(root: Path, trial: ChangeResult) -> ChangeResult:
    """Return a result with the commit of the change in a repository."""
    return trial.model_copy(update={"base_commit": repositories.git(root, "rev-parse", "main")})


def drawn(*folders: Path) -> tuple[int, str, str]:
    """Return the exit status and output of `ci report` on folders, and the text of the comment."""
    page, text = folders[0].parent / "report.html", folders[0].parent / "report.md"
    sources = [word for folder in folders for word in ("--from", str(folder))]
    done = CliRunner().invoke(app, ["ci", "report", *sources, "--out", str(page), "--markdown", str(text)])
    assert page.read_text().startswith("<!doctype html>")
    return done.exit_code, done.output, text.read_text()


def test_report_merges_folders_and_fails_if_refused(root: Path, tmp_path: Path) -> None:
    repositories.write(root, {"ml_platform/models/mails.py": REPOSITORY["ml_platform/models/mails.py"] + "changed"})
    leave(of(root, repositories.trial(model="mails", golden="spam")), tmp_path / "a")
    leave(of(root, refused()), tmp_path / "b" / "below")
    leave(of(root, repositories.trial()), tmp_path / "c")

    red, green = drawn(tmp_path / "a", tmp_path / "b"), drawn(tmp_path / "a", tmp_path / "c")

    assert (red[0], green[0]) == (1, 0)
    assert "### mails, golden dataset spam: PASS" in red[2]
    assert "### visits: REFUSED. Not every gate holds." in red[2]
    assert "mails on spam: PASS" in red[1].replace("\n", "")
    assert "affects" not in red[2]


def test_broken_change_has_exit_status_2(root: Path, tmp_path: Path) -> None:
    assert drawn(leave(of(root, repositories.trial(outcome=Outcome.BROKEN)), tmp_path / "a"))[0] == 2


@pytest.mark.fault("C5")
def test_missing_result_file_is_broken(root: Path, tmp_path: Path) -> None:
    """A killed job leaves no file, and the other results may all pass."""
    repositories.write(root, {"ml_platform/pipeline.py": "changed = 1\n"})
    folder = leave(of(root, repositories.trial()), tmp_path / "a")

    status, printed, said = drawn(folder)

    assert status == 2
    assert "mails on spam: BROKEN" in printed
    assert "### visits: PASS" in said
    assert "### mails, golden dataset spam: REFUSED. It could not be judged" in said
    assert "mails on the golden dataset spam has no result" in said
    # A result of the model on other rows does not count.
    leave(of(root, repositories.trial(model="mails")), folder)
    assert drawn(folder)[0] == 2
    leave(of(root, repositories.trial(model="mails", golden="spam")), folder / "below")
    assert drawn(folder)[0] == 0


@pytest.mark.fault("C5")
@pytest.mark.usefixtures("root")
def test_report_without_results_is_broken(tmp_path: Path) -> None:
    status, _, said = drawn(tmp_path / "nothing was kept")

    assert status == 2
    assert "visits has no result" in said


def test_result_of_unaffected_model_has_a_note(root: Path, tmp_path: Path) -> None:
    folder = leave(of(root, repositories.trial()), tmp_path / "a")
    leave(of(root, refused(model="mails")), folder)

    status, _, said = drawn(folder)

    assert status == 1
    assert said.count("the change does not affect this model") == 1
    assert said.index("### mails") < said.index("the change does not affect this model") < said.index("### visits")


@pytest.mark.usefixtures("root")
def test_result_for_another_commit_is_broken(tmp_path: Path) -> None:
    folder = leave(repositories.trial(), tmp_path / "a")

    status, _, said = drawn(folder)

    assert status == 2
    assert "it compares with commit 000000000000, but this change starts at" in said


def changed(**fields: Any) -> str:
    return json.dumps({**json.loads(repositories.trial().model_dump_json()), **fields})


@pytest.mark.parametrize(
    "text",
    [
        "not JSON",
        "[]",
        changed(model="../../etc"),
        changed(golden="x y"),
        changed(outcome="GREEN"),
        changed(more="?"),
        changed(format=2),
        changed(problems=["x" * 1_001]),
        changed().replace("0.92", "NaN"),
        changed(corners=[{"code": "new", "data": "new", "verdict_digest": "<b>"}]),
    ],
)
def test_invalid_result_file_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "visits.json").write_text(text)

    with pytest.raises(DataError, match="is not a result of `ml-platform ci compare`"):
        read_all([tmp_path])


def test_no_file_and_large_file_are_rejected(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="Got no JSON file"):
        collect([tmp_path], "HEAD", repositories.commit(root))

    leave(repositories.trial(), tmp_path)
    monkeypatch.setattr(result_schema, "MAX_BYTES", 100)
    with pytest.raises(DataError, match="must have at most 100 bytes"):
        read_all([tmp_path])


def test_report_of_files_imports_no_dagster(root: Path, tmp_path: Path) -> None:
    """The job that writes comments reads untrusted files, and should load little code."""
    leave(repositories.trial(), tmp_path)
    page = tmp_path / "report.html"
    text = (
        "import sys; from pathlib import Path; from ml_platform.ci.report import collect, write\n"
        f"trials = collect([Path({str(tmp_path)!r})], 'main', Path({str(root)!r}))\n"
        f"write(trials, page=Path({str(page)!r}), markdown=None)\n"
        "print([name for name in ('dagster', 'mlflow', 'sklearn', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)

    assert done.stdout.strip() == "[]", done.stderr
