"""Try a change of one model: the base's code and the working tree's on the same data, in deployments thrown away.

The base's champion is made first; in the same deployment the working tree's candidate then meets it, as it would after
the change. What decides are the records in Dagster's event log and the stored verdict, never an exit status.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_platform import provenance
from ml_platform.errors import ConfigurationError, PlatformError, TrialError
from ml_platform.quality import gate_changes
from ml_platform.quality.affected import MODELS, affected
from ml_platform.quality.documents import (
    MOST_CHANGES,
    MOST_FILES,
    MOST_NOTES,
    MOST_PROBLEMS,
    Asked,
    CheckDone,
    CheckState,
    Compared,
    Corner,
    GateChange,
    GateDone,
    Outcome,
    Trial,
    bounded,
)
from ml_platform.quality.gate_changes import name_of
from ml_platform.quality.git import start_of
from ml_platform.quality.lifetime import Age, Life, data_file, files_of, ingest, live
from ml_platform.quality.lives import Code, Home

Say = Callable[[str], None]
# Under this name a change may declare that no champion of the base was met.
NOT_MET = "{model}:base"
BLOCKED = "DagsterAssetCheckFailedError"
FIRST = 3
COMMIT = re.compile(r"[0-9a-f]{40}")
LOCK = "requirements.lock"
PICTURES = ("curves.png", "verdict.html")


@dataclass(kw_only=True)
class _Side:
    """One code and what it declares; `declares` is empty where it cannot say, and `why` says the reason."""

    code: Code
    there: bool
    declares: dict[str, Any] = field(default_factory=dict)
    why: str = ""

    def checks(self, group: str) -> list[dict[str, Any]]:
        return [check for check in self.declares.get("checks", []) if check["group"] == group]


@dataclass(kw_only=True)
class _Found:
    """What a trial found so far; `broken` is what could not be done, `problems` what does not hold."""

    broken: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checks: list[CheckDone] = field(default_factory=list)
    changes: list[GateChange] = field(default_factory=list)
    corners: list[Corner] = field(default_factory=list)
    pictures: Path | None = None
    data_changed: bool = False

    @property
    def outcome(self) -> Outcome:
        return Outcome.BROKEN if self.broken else Outcome.FAIL if self.problems else Outcome.PASS


def try_change(model: str, base: str, root: Path, out: Path, *, golden: str = "", say: Say = lambda _: None) -> Trial:
    """Try what the working tree changes of a model, and leave a file, pictures and a log.

    Parameters
    ----------
    model, base : str
        The model, and the ref that the change is compared with.
    root : Path
        The top of the checkout; its working tree is what is tried.
    out : Path
        Gets ``MODEL.json`` (``MODEL-GOLDEN.json``), and beside it pictures and the processes' log.
    golden : str
        A golden dataset that must have been judged; empty for none in particular.
    say : callable
        Called with what is being done.

    Raises
    ------
    ConfigurationError
        git knows no such commit, or neither side has such a model.
    """
    commit, stem = start_of(base, root), f"{model}-{golden}" if golden else model
    head, words = provenance.code_revision(None, root), COMMIT.sub(lambda found: found[0][:12], base)
    out.mkdir(parents=True, exist_ok=True)
    # By name: what another golden dataset's trial left begins alike.
    for stale in (f"{stem}.json", f"{stem}.log", *(f"{stem}-{name}" for name in PICTURES)):
        (out / stale).unlink(missing_ok=True)
    with provenance.checked_out(commit, root) as tree, tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        trying = _Trying(model, golden, Path(folder).resolve(), out / f"{stem}.log", say)
        old, new = (
            trying.side(Code(folder=tree, words=f"the code of {words}")),
            trying.side(Code(folder=root.resolve(), words="the code that is here")),
        )
        if not old.there and not new.there:
            raise ConfigurationError(f"There is no model {model!r}, here or in {base}.")
        trying.try_both(old, new)
        found = trying.found
        for name in PICTURES if found.pictures else ():
            if (picture := found.pictures / name).is_file():  # type: ignore[operator]
                shutil.copyfile(picture, out / f"{stem}-{name}")
    named = {"model": model, "golden": golden, "base": words, "base_commit": commit, "head": head}
    files = [reason for one in affected(base, root) if one.model == model for reason in one.reasons]
    trial = _document(
        found, new.declares or old.declares, is_new=not old.there, changed=_few(files, MOST_FILES), **named
    )
    (out / f"{stem}.json").write_text(trial.model_dump_json(indent=1))
    return trial


def _document(found: _Found, declares: Mapping[str, Any], **named: Any) -> Trial:
    compared = declares.get("comparison")
    return Trial(
        **named,
        outcome=found.outcome,
        data_changed=found.data_changed,
        problems=_few(dict.fromkeys([*found.broken, *found.problems]), MOST_PROBLEMS),
        notes=_few(found.notes, MOST_NOTES),
        task=declares.get("task", "binary"),
        positive=declares.get("positive") or "",
        asked=[Asked(**gate) for gate in declares.get("gates", [])],
        compared=Compared(**compared) if compared else None,
        checks=found.checks,
        changes=found.changes[:MOST_CHANGES],
        corners=found.corners,
    )


def _few(texts: Iterable[str], most: int) -> list[str]:
    """Return texts as a document takes them: a contract of ten thousand columns may lose them all."""
    found = list(map(bounded, texts))
    return found if len(found) <= most else [*found[: most - 1], f"and {len(found) - most + 1:,} more"]


class _Trying:
    """A trial under way: where it is done, and what it found."""

    def __init__(self, model: str, golden: str, folder: Path, log: Path, say: Say) -> None:
        self.model, self.golden, self.folder, self.log, self.say = model, golden, folder, log, say
        self.found = _Found()

    def home(self, name: str) -> Home:
        """Make a deployment."""
        return Home(self.folder / name, self.log)

    def side(self, code: Code) -> _Side:
        """Ask a code what it declares."""
        models = code.folder / MODELS
        there = (models / f"{self.model}.py").is_file() or (models / self.model / "__init__.py").is_file()
        side = _Side(code=code, there=there, why="" if there else f"{code.words} has no model {self.model}")
        try:
            if there:
                self.say(f"asking {code.words}")
                side.declares = self._declared(code)
        except TrialError as error:
            side.why = str(error)
        return side

    def _declared(self, code: Code) -> dict[str, Any]:
        said = self.home(f"asked-{len(list(self.folder.iterdir()))}").ask(code, "declared", self.model)
        if Path(said["code"]) != code.folder.resolve():
            raise TrialError(f"{code.words} stands in {code.folder}, and Python took that of {said['code']}.")
        return said

    def try_both(self, old: _Side, new: _Side) -> None:
        """Do all of it. What goes wrong is found and written down, and whatever is found is red."""
        try:
            reasons = gate_changes.declared(new.code.folder, old.code.folder)
        except ConfigurationError as error:
            self.found.broken.append(str(error))
            reasons = {}
        if old.declares and (new.declares or not new.there):
            self.found.changes = gate_changes.changes_of(self.model, old.declares, new.declares, reasons)
        if new.there:
            self.found.notes += _notes_of_packages(old, new)
            self._live(old, new, reasons)
        self._require_checks(old, new, reasons)
        self._require_declared_changes()

    # Lives

    def _live(self, old: _Side, new: _Side, reasons: Mapping[str, str]) -> None:
        if not new.declares:
            self.found.broken.append(new.why)
            return
        try:
            files = files_of(new.code, self.model, new.declares)
            published = self._ingest(new, "head", files)
            champion = self._champion(old, files, reasons)
            if published.failed:
                self.found.problems += published.failed
                return
            self._judge(new, champion or published)
            self._explain(old, new)
        except PlatformError as error:
            self.found.broken.append(str(error))

    def _ingest(self, new: _Side, name: str, files: dict[str, bytes]) -> Life:
        """Publish with the working tree's contract; the checks of the data are read from that run."""
        self.say(f"publishing data/{self.model}.parquet with {new.code.words}")
        life = ingest(self.home(name), new.code, self.model, files, new.checks(f"{self.model}_data"))
        self.found.checks += life.checks
        return life

    def _champion(self, old: _Side, files: dict[str, bytes], reasons: Mapping[str, str]) -> Life | None:
        """Let the base's code make its champion of the same rows; ``None`` where there is none, which is said."""
        if not old.there:
            self.found.notes.append(f"{old.why}: it is new, and is held against its baseline")
            return None
        life, why = self._base_life(old, files, "new") if old.declares else (None, old.why)
        if life and life.corner.judged:
            self.found.corners.append(life.corner)
        if life and life.champion is not None:
            return life
        check = NOT_MET.format(model=self.model)
        change = GateChange(check=check, kind="not compared", before=bounded(why), declared=reasons.get(check, ""))
        self.found.changes.append(change)
        return None

    def _base_life(self, old: _Side, files: dict[str, bytes], data: Age) -> tuple[Life | None, str]:
        """Return what came of the base's code on these rows, and why it has no champion there, if so."""
        home = self.home(f"base-on-{data}-data")
        try:
            self.say(f"{old.code.words} on the {data} data")
            published = ingest(home, old.code, self.model, files, [])
            if published.failed:
                return None, published.failed[0]
            life = live(home, old.code, self.model, ("old", data))
            if life.champion is None and old.declares["approval"] == "manual" and not life.failed:
                life.champion = self._approved(life, old)
        except PlatformError as error:
            return None, str(error)
        refused = [gate.why for gate in life.corner.gates if gate.outcome != "PASS"]
        return life, "; ".join(refused or life.failed or ["nothing was promoted"])

    def _approved(self, life: Life, old: _Side) -> int | None:
        return 1 if life.home.approve(old.code, self.model) == 0 else None

    def _judge(self, new: _Side, where: Life) -> None:
        """Let the working tree's candidate be judged where the champion is, and demand every gate and check of it."""
        self.say(f"{new.code.words} on the new data")
        life = live(where.home, new.code, self.model, ("new", "new"), new.checks(self.model))
        self.found.checks += life.checks
        self.found.corners.append(life.corner)
        self.found.pictures = life.folder
        failed = any(check.state is CheckState.FAILED for check in life.checks)
        # That a check stopped the run is said with the check.
        stopped = [why for why in life.failed if not (failed and BLOCKED in why)]
        self.found.problems += [f"the run failed: {why}" for why in stopped]
        if not life.corner.judged:
            said = f"{new.code.words} came to no verdict: {life.corner.why}"
            (self.found.problems if failed else self.found.broken).append(said)
            return
        self.found.problems += problems_of_gates(life.corner, new.declares)
        self.found.problems += problems_of_golden(life.corner, new.declares, self.golden)

    def _explain(self, old: _Side, new: _Side) -> None:
        """Where the data changed, let both codes live on the old data too: no gate, but what tells the cause."""
        before, now = data_file(old.code, self.model), data_file(new.code, self.model)
        self.found.data_changed = not before.is_file() or before.read_bytes() != now.read_bytes()
        if not self.found.data_changed or not old.declares or not before.is_file():
            return
        files = files_of(old.code, self.model, old.declares)
        life, why = self._base_life(old, files, "old")
        self._add(life.corner if life else Corner(code="old", data="old", why=bounded(why)))
        self.say(f"{new.code.words} on the old data")
        home = life.home if life and life.champion is not None else self.home("head-on-old-data")
        if not (life and life.champion is not None):
            published = ingest(home, new.code, self.model, files, [])
            if published.failed:
                self._add(Corner(code="new", data="old", why=bounded(published.failed[0])))
                return
        self._add(live(home, new.code, self.model, ("new", "old")).corner)

    def _add(self, corner: Corner) -> None:
        self.found.corners.append(corner)
        if not corner.judged:
            self.found.notes.append(f"{corner.code} code on {corner.data} data could not be judged: {corner.why}")

    # What must hold

    def _require_checks(self, old: _Side, new: _Side, reasons: Mapping[str, str]) -> None:
        """Demand every check of both sides: what has no record that says SUCCEEDED is a problem."""
        done = {check.check: check for check in self.found.checks}
        here = {name_of(check) for check in new.declares.get("checks", [])}
        gone = [name_of(check) for check in old.declares.get("checks", []) if name_of(check) not in here]
        for name in sorted(here - set(done)):
            done[name] = CheckDone(check=name, state=CheckState.MISSING, said="it was not run")
        for name in gone:
            # Of a file that does not import nobody knows what it would have declared.
            state = CheckState.MISSING if new.there and not new.declares else CheckState.REMOVED
            done[name] = CheckDone(check=name, state=state, declared=reasons.get(name, ""))
        self.found.checks = [done[name] for name in sorted(done)]
        told = {f"{self.model}/trained_model:{gate.name}" for gate in self._closed_gates()}
        self.found.problems += problems_of_checks(check for check in self.found.checks if check.check not in told)

    def _closed_gates(self) -> list[GateDone]:
        """Return the gates of the working tree's candidate that did not pass; each is a problem already."""
        judged = [corner for corner in self.found.corners if (corner.code, corner.data) == ("new", "new")]
        return [gate for corner in judged for gate in corner.gates if gate.outcome != "PASS"]

    def _require_declared_changes(self) -> None:
        for change in self.found.changes:
            if change.declared:
                self.found.notes.append(f"{_words(change)} Declared: {change.declared}")
            else:
                self.found.problems.append(f"{_words(change)} If that is meant, say so in {gate_changes.FILE}.")


def _words(change: GateChange) -> str:
    if change.kind == "not compared":
        return f"{change.check}: the candidate met no champion of the base, for {change.before}."
    return f"{change.check} is {change.kind}: {change.before}{f', now {change.after}' if change.after else ''}."


def _notes_of_packages(old: _Side, new: _Side) -> list[str]:
    """Return what a reader should know of the packages that both codes ran with."""
    locks = [side.code.folder / LOCK for side in (old, new)]
    notes = []
    if all(lock.is_file() for lock in locks) and provenance.lock_digest(locks[0].parent) != provenance.lock_digest(
        locks[1].parent
    ):
        notes.append(f"{LOCK} changed, and both codes ran with the packages that are installed here")
    others = provenance.not_as_locked(new.code.folder) if locks[1].is_file() else []
    if others:
        notes.append(f"{len(others)} packages are not those of {LOCK}: {'; '.join(others[:FIRST])}")
    return notes


def problems_of_checks(checks: Iterable[CheckDone]) -> list[str]:
    """Return, as sentences, which checks have no success on record; a removal that is declared is none."""
    return [
        f"the check {check.check} is {check.state.value}{f': {check.said}' if check.said else ''}"
        for check in checks
        if check.state is not CheckState.SUCCEEDED
        # Removals without a reason are told as changes.
        and check.state is not CheckState.REMOVED
    ]


def problems_of_golden(corner: Corner, declares: Mapping[str, Any], golden: str) -> list[str]:
    """Return, as a sentence, that a golden dataset was not judged; none is missed where `golden` is empty."""
    if not golden or any(figure.dataset == golden for figure in corner.figures):
        return []
    named = ", ".join(declares["golden"]) or "none"
    return [f"the golden dataset {golden!r} was not judged; the model declares {named}"]


def problems_of_gates(corner: Corner, declares: Mapping[str, Any]) -> list[str]:
    """Return, as sentences, which gates did not pass or were not applied."""
    compared = declares["comparison"]
    expected = {gate["name"] for gate in declares["gates"]} | ({compared["name"]} if compared else set())
    missing = sorted(expected - {gate.name for gate in corner.gates})
    bad = [f"gate {gate.condition} is {gate.outcome}: {gate.why}" for gate in corner.gates if gate.outcome != "PASS"]
    return [*bad, *(f"gate {name} was not applied" for name in missing)]
