"""The page and the comment: what they say, and that a stranger's text stays text in them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ml_platform.cli import app
from ml_platform.errors import DataError
from ml_platform.quality import documents
from ml_platform.quality.comment import MARKER, comment, plain
from ml_platform.quality.documents import CheckDone, CheckState, GateChange, Outcome, RivalDone, Trial
from ml_platform.quality.page import draw
from ml_platform.quality.report import collect
from ml_platform_tests import html_pages
from ml_platform_tests.quality import made

EVIL = "</td><script>alert(1)</script> ![x](http://a.example/x) @all #1 `b` | www.a.example a@b.example <!-- *c* GH-1"
WORSE = {("old", "new"): {"": 0.90, "plan = paid": 0.92}, ("new", "new"): {"": 0.90, "plan = paid": 0.62}}


def refused(**fields: Any) -> Trial:
    bad = CheckDone(check="visits/trained_model:own", state=CheckState.SKIPPED, said="it gave no result")
    change = GateChange(check="visits/trained_model:f1_score", kind="removed", before="f1_score >= 0.7")
    given: dict[str, Any] = {
        "outcome": Outcome.FAIL,
        "problems": ["gate auc_roc >= 0.8 is FAIL: it is 0.62", "the check visits/trained_model:own is SKIPPED"],
        "checks": [*made.trial().checks, bad],
        "changes": [change],
    }
    return made.trial(WORSE, **{**given, **fields})


def leave(trial: Trial, folder: Path) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{trial.model}.json").write_text(trial.model_dump_json())
    return folder


def test_the_page_says_what_was_decided_what_moved_it_and_on_what() -> None:
    root = html_pages.read(draw([refused()]))
    parts, everything = html_pages.sections(root), html_pages.text(root)

    assert "visits: REFUSED. Not every gate holds." in everything
    assert "gate auc_roc >= 0.8 is FAIL: it is 0.62" in everything
    assert list(parts) == [
        "What moved it",
        "Gates that changed",
        "The gates",
        "Slices",
        "Curves",
        "Time, memory and size",
        "Asset checks",
        "What it rests on",
    ]
    assert (
        "auc_roc of plan = paid became worse: 0.92 before, 0.62 now (-0.3). The cause is the code"
        in html_pages.text(parts["What moved it"])
    )
    assert "not declared" in html_pages.text(parts["Gates that changed"])
    assert "Slices that moved: plan = paid." in html_pages.text(parts["Slices"])
    assert "1 of 2 expected checks are on record as SUCCEEDED" in html_pages.text(parts["Asset checks"])


def test_what_could_not_be_judged_is_refused_on_the_page_and_in_the_comment() -> None:
    broken = made.trial(
        outcome=Outcome.BROKEN, corners=[], checks=[], problems=["ModuleNotFoundError: No module named 'torch'"]
    )

    (body,) = html_pages.read(draw([broken])).iter("body")
    for said in (html_pages.text(body), comment([broken])):
        assert "REFUSED. It could not be judged" in said
        assert "No module named 'torch'" in said
        assert "PASS" not in said


def everywhere(text: str) -> Trial:
    corners = [
        made.corner(
            code,
            "new",
            made.figures({text: value, "": value}),
            gates=[{"name": text, "condition": text, "value": 0.1, "outcome": "FAIL", "why": text}],
            rival=RivalDone(kind="champion", name=text, metric=text, reason=text),
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
        asked=[made.asked(name=text, condition=text, places=[text])],
        checks=[CheckDone(check=text, state=CheckState.FAILED, said=text)],
        changes=[GateChange(check=text, kind="removed", before=text, after=text, declared=text)],
    )


@pytest.mark.fault("C2")
def test_a_strangers_text_is_no_markup_on_the_page() -> None:
    tags = {element.tag for element in html_pages.read(draw([everywhere(EVIL)])).iter()}
    plain_tags = {element.tag for element in html_pages.read(draw([everywhere("name")])).iter()}

    assert tags == plain_tags
    assert EVIL in html_pages.text(html_pages.read(draw([everywhere(EVIL)])))


@pytest.mark.fault("C2")
def test_a_strangers_text_is_no_markup_mention_or_link_in_the_comment() -> None:
    said = comment([everywhere(EVIL)])
    ours = comment([everywhere("name")])

    assert re.findall(r"</?[a-z!]", said) == re.findall(r"</?[a-z!]", ours)
    for mark in ("@", "`", "*", "[", "]", "![", "://", "www."):
        assert said.count(mark) == ours.count(mark), mark
    assert {line.count("|") for line in said.splitlines()} == {line.count("|") for line in ours.splitlines()}
    # References are looked for in what was rendered: something invisible stands behind the mark.
    assert set(re.findall(r"&#(?:64|35);(.{7})", said)) == {"&#8203;"}
    assert re.search(r"GH&#45;&#8203;1", said)


@pytest.mark.parametrize("text", ["auc_roc of plan = paid became worse: 0.92 before, 0.7 now (+0.1)", "2 of 3; 50 %"])
def test_plain_words_stay_as_they_are(text: str) -> None:
    assert plain(text) == text


def test_the_comment_is_bounded_and_decisions_come_first() -> None:
    many = [
        refused(model=f"model_{number}", problems=[f"{place} {'x' * 900}" for place in range(40)])
        for number in range(9)
    ]

    said = comment(many, most=20_000)

    two = comment([made.trial(model="mails"), refused()])
    assert two.rindex("### ") < two.index("<details>")
    assert len(said) <= 20_000
    assert said.startswith(MARKER)
    assert re.search(r"\d+ parts more stand in the whole report", said)
    assert all(f"### model&#95;{number}" in said or f"### model_{number}" in said for number in range(3))
    assert len(comment([everywhere("&" * 150)] * 100)) <= 60_000


def test_files_of_several_folders_become_one_report_and_red_is_its_exit_status(tmp_path: Path) -> None:
    leave(made.trial(model="mails"), tmp_path / "a")
    leave(refused(), tmp_path / "b" / "below")
    page, text = tmp_path / "report.html", tmp_path / "report.md"
    folders = ["--from", str(tmp_path / "a"), "--from", str(tmp_path / "b")]

    done = CliRunner().invoke(app, ["report", *folders, "--out", str(page), "--markdown", str(text)])
    good = CliRunner().invoke(app, ["report", *folders[:2], "--out", str(page)])

    assert (done.exit_code, good.exit_code) == (1, 0), done.output
    assert "### mails: PASS" in text.read_text()
    assert "### visits: REFUSED" in text.read_text()
    assert page.read_text().startswith("<!doctype html>")


def test_what_could_not_be_judged_has_the_exit_status_2(tmp_path: Path) -> None:
    leave(made.trial(outcome=Outcome.BROKEN), tmp_path)

    assert (
        CliRunner().invoke(app, ["report", "--from", str(tmp_path), "--out", str(tmp_path / "r.html")]).exit_code == 2
    )


def changed(**fields: Any) -> str:
    return json.dumps({**json.loads(made.trial().model_dump_json()), **fields})


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
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
def test_a_file_that_is_no_trials_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "visits.json").write_text(text)

    with pytest.raises(DataError, match="is not what `ml-platform quality` leaves"):
        collect([tmp_path])


def test_a_folder_without_trials_and_a_file_too_large_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="holds no JSON file"):
        collect([tmp_path])

    leave(made.trial(), tmp_path)
    monkeypatch.setattr(documents, "MOST_BYTES", 100)
    with pytest.raises(DataError, match="must have at most 100 bytes"):
        collect([tmp_path])


def test_a_report_of_files_needs_no_dagster(tmp_path: Path) -> None:
    """The job that writes comments reads a stranger's files: the less it loads, the better."""
    leave(made.trial(), tmp_path)
    text = (
        "import sys; from pathlib import Path; from ml_platform.quality.report import collect, write\n"
        f"write(collect([Path({str(tmp_path)!r})]), page=Path({str(tmp_path / 'r.html')!r}), markdown=None)\n"
        "print([name for name in ('dagster', 'mlflow', 'sklearn', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)

    assert done.stdout.strip() == "[]", done.stderr
