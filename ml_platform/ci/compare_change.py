"""Compare a changed model with the base's champion on the same data, in temporary deployments.

The base's code first trains its champion; in the same deployment the working tree's candidate is then compared with it,
as it would be after a merge. Records in Dagster's event log and the stored verdict decide, never an exit status.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_platform.ci import gate_changes
from ml_platform.ci.affected_models import MODELS, find_affected_models
from ml_platform.ci.gate_changes import format_check_name
from ml_platform.ci.git import find_merge_base
from ml_platform.ci.result_schema import (
    MAX_CHANGES,
    MAX_FILES,
    MAX_NOTES,
    MAX_PROBLEMS,
    ChangeResult,
    CheckState,
    CodeDataRun,
    DeclaredComparison,
    DeclaredGate,
    GateChange,
    Outcome,
    ReportedCheck,
    bounded,
)
from ml_platform.ci.sandbox import Checkout, Sandbox
from ml_platform.ci.sandbox_run import Age, SandboxRun, data_file, export_files, ingest, run_in_sandbox
from ml_platform.errors import ChangeComparisonError, ConfigurationError, PlatformError
from ml_platform.training import provenance

Say = Callable[[str], None]
# The name under which a change may declare that its candidate was not compared with the base's champion.
NOT_COMPARED = "{model}:base"
BLOCKED = "DagsterAssetCheckFailedError"
FIRST = 3
COMMIT = re.compile(r"[0-9a-f]{40}")
LOCK = "requirements.lock"
PICTURES = ("curves.svg", "verdict.html")


@dataclass(kw_only=True)
class _Side:
    """The base's or the working tree's code and its declarations; `why` is the reason if `declares` is empty."""

    code: Checkout
    there: bool
    declares: dict[str, Any] = field(default_factory=dict)
    why: str = ""

    def checks(self, group: str) -> list[dict[str, Any]]:
        return [check for check in self.declares.get("checks", []) if check["group"] == group]


@dataclass(kw_only=True)
class _Findings:
    """Findings of a comparison: `broken` lists steps that failed, `problems` conditions that do not hold."""

    broken: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checks: list[ReportedCheck] = field(default_factory=list)
    changes: list[GateChange] = field(default_factory=list)
    corners: list[CodeDataRun] = field(default_factory=list)
    pictures: Path | None = None
    data_changed: bool = False

    @property
    def outcome(self) -> Outcome:
        return Outcome.BROKEN if self.broken else Outcome.FAIL if self.problems else Outcome.PASS


def run_comparison(
    model: str, base: str, root: Path, out: Path, *, golden: str = "", say: Say = lambda _: None
) -> ChangeResult:
    """Compare a model's code in the working tree with the base's; write the result, pictures and a log.

    Parameters
    ----------
    model, base : str
        The model, and the ref to compare with.
    root : Path
        Root of the checkout whose working tree is compared.
    out : Path
        Folder for ``MODEL.json`` (``MODEL-GOLDEN.json``), pictures and the log of the processes.
    golden : str
        Golden dataset that must be evaluated; empty for none.
    say : callable
        Called with a message before each step.

    Raises
    ------
    ConfigurationError
        git has no such commit, or neither side has such a model.
    """
    commit, stem = find_merge_base(base, root), f"{model}-{golden}" if golden else model
    head, words = provenance.code_revision(None, root), COMMIT.sub(lambda match: match[0][:12], base)
    out.mkdir(parents=True, exist_ok=True)
    # By name: the files of another golden dataset's comparison have the same prefix.
    for stale in (f"{stem}.json", f"{stem}.log", *(f"{stem}-{name}" for name in PICTURES)):
        (out / stale).unlink(missing_ok=True)
    with provenance.checked_out(commit, root) as tree, tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        comparison = _Comparison(model, golden, Path(folder).resolve(), out / f"{stem}.log", say)
        old = comparison.side(Checkout(folder=tree, words=f"the code of {words}"))
        new = comparison.side(Checkout(folder=root.resolve(), words="the working tree's code"))
        if not old.there and not new.there:
            raise ConfigurationError(f"There is no model {model!r}, here or in {base}.")
        comparison.compare(old, new)
        findings = comparison.findings
        for name in PICTURES if findings.pictures else ():
            if (picture := findings.pictures / name).is_file():  # type: ignore[operator]
                shutil.copyfile(picture, out / f"{stem}-{name}")
    named = {"model": model, "golden": golden, "base": words, "base_commit": commit, "head": head}
    files = [reason for one in find_affected_models(base, root) if one.model == model for reason in one.reasons]
    declares, changed = new.declares or old.declares, _limit(files, MAX_FILES)
    result = _document(findings, declares, is_new=not old.there, changed=changed, **named)
    (out / f"{stem}.json").write_text(result.model_dump_json(indent=1))
    return result


def _document(findings: _Findings, declares: Mapping[str, Any], **named: Any) -> ChangeResult:
    compared = declares.get("comparison")
    return ChangeResult(
        **named,
        outcome=findings.outcome,
        data_changed=findings.data_changed,
        problems=_limit(dict.fromkeys([*findings.broken, *findings.problems]), MAX_PROBLEMS),
        notes=_limit(findings.notes, MAX_NOTES),
        task=declares.get("task", "binary"),
        positive=declares.get("positive") or "",
        asked=[DeclaredGate(**gate) for gate in declares.get("gates", [])],
        compared=DeclaredComparison(**compared) if compared else None,
        checks=findings.checks,
        changes=findings.changes[:MAX_CHANGES],
        corners=findings.corners,
    )


def _limit(texts: Iterable[str], maximum: int) -> list[str]:
    """Return texts within the document's limits: a contract may lose ten thousand columns at once."""
    lines = list(map(bounded, texts))
    return lines if len(lines) <= maximum else [*lines[: maximum - 1], f"and {len(lines) - maximum + 1:,} more"]


class _Comparison:
    """A comparison in progress: its temporary folder and its findings."""

    def __init__(self, model: str, golden: str, folder: Path, log: Path, say: Say) -> None:
        self.model, self.golden, self.folder, self.log, self.say = model, golden, folder, log, say
        self.findings = _Findings()

    def sandbox(self, name: str) -> Sandbox:
        """Make a temporary deployment."""
        return Sandbox(self.folder / name, self.log)

    def side(self, code: Checkout) -> _Side:
        """Read a checkout's declarations of the model."""
        models = code.folder / MODELS
        there = (models / f"{self.model}.py").is_file() or (models / self.model / "__init__.py").is_file()
        side = _Side(code=code, there=there, why="" if there else f"{code.words} has no model {self.model}")
        if not there:
            return side
        self.say(f"inspecting {code.words}")
        try:
            sandbox = self.sandbox(f"inspect-{len(list(self.folder.iterdir()))}")
            declares = sandbox.inspect(code, "declared", self.model)
        except ChangeComparisonError as error:
            side.why = str(error)
            return side
        if Path(declares["code"]) == code.folder.resolve():
            side.declares = declares
        else:
            side.why = f"Expected Python to import {code.words} from {code.folder}, got {declares['code']}."
        return side

    def compare(self, old: _Side, new: _Side) -> None:
        """Run the whole comparison. Errors become findings, which fail the comparison."""
        try:
            reasons = gate_changes.read_declared_reasons(new.code.folder, old.code.folder)
        except ConfigurationError as error:
            self.findings.broken.append(str(error))
            reasons = {}
        if old.declares and (new.declares or not new.there):
            self.findings.changes = gate_changes.find_gate_changes(self.model, old.declares, new.declares, reasons)
        if new.there:
            self.findings.notes += _package_notes(old, new)
            self._run(old, new, reasons)
        self.require_checks(old, new, reasons)
        self.require_declared_changes()

    # Runs

    def _run(self, old: _Side, new: _Side, reasons: Mapping[str, str]) -> None:
        if not new.declares:
            self.findings.broken.append(new.why)
            return
        try:
            files = export_files(new.code, self.model, new.declares)
            self.say(f"publishing data/{self.model}.parquet with {new.code.words}")
            data_checks = new.checks(f"{self.model}_data")
            published = ingest(self.sandbox("head"), new.code, self.model, files, data_checks)
            self.findings.checks += published.checks
            champion = self.train_champion(old, files, reasons)
            if published.failed:
                self.findings.problems += published.failed
                return
            self.evaluate(new, champion or published)
            self._explain(old, new)
        except PlatformError as error:
            self.findings.broken.append(str(error))

    def train_champion(self, old: _Side, files: dict[str, bytes], reasons: Mapping[str, str]) -> SandboxRun | None:
        """Train the base's champion on the same rows; return ``None``, with a finding, if there is none."""
        if not old.there:
            self.findings.notes.append(f"{old.why}: the model is new and is compared with its baseline")
            return None
        run, why = self._base_run(old, files, "new") if old.declares else (None, old.why)
        if run and run.corner.judged:
            self.findings.corners.append(run.corner)
        if run and run.champion is not None:
            return run
        check = NOT_COMPARED.format(model=self.model)
        change = GateChange(check=check, kind="not compared", before=bounded(why), declared=reasons.get(check, ""))
        self.findings.changes.append(change)
        return None

    def _base_run(self, old: _Side, files: dict[str, bytes], data: Age) -> tuple[SandboxRun | None, str]:
        """Return the run of the base's code on these rows, and the reason if it has no champion."""
        sandbox = self.sandbox(f"base-on-{data}-data")
        try:
            self.say(f"running {old.code.words} on the {data} data")
            published = ingest(sandbox, old.code, self.model, files, [])
            if published.failed:
                return None, published.failed[0]
            run = run_in_sandbox(sandbox, old.code, self.model, ("old", data))
            if run.champion is None and old.declares["approval"] == "manual" and not run.failed:
                run.champion = 1 if sandbox.approve(old.code, self.model) == 0 else None
        except PlatformError as error:
            return None, str(error)
        refused = [gate.why for gate in run.corner.gates if gate.outcome != "PASS"]
        return run, "; ".join(refused or run.failed or ["nothing was promoted"])

    def evaluate(self, new: _Side, where: SandboxRun) -> None:
        """Run the working tree's code in the champion's deployment; every gate and check of it must pass."""
        self.say(f"running {new.code.words} on the new data")
        run = run_in_sandbox(where.home, new.code, self.model, ("new", "new"), new.checks(self.model))
        self.findings.checks += run.checks
        self.findings.corners.append(run.corner)
        self.findings.pictures = run.folder
        failed = any(check.state is CheckState.FAILED for check in run.checks)
        # A check that stopped the run is a finding of its own.
        stopped = [why for why in run.failed if not (failed and BLOCKED in why)]
        self.findings.problems += [f"the run failed: {why}" for why in stopped]
        if not run.corner.judged:
            message = f"{new.code.words} has no verdict: {run.corner.why}"
            (self.findings.problems if failed else self.findings.broken).append(message)
            return
        self.findings.problems += problems_of_gates(run.corner, new.declares)
        self.findings.problems += problems_of_golden(run.corner, new.declares, self.golden)

    def _explain(self, old: _Side, new: _Side) -> None:
        """If the data changed, run both codes on the old data too, only to attribute differences."""
        before, now = data_file(old.code, self.model), data_file(new.code, self.model)
        self.findings.data_changed = not before.is_file() or before.read_bytes() != now.read_bytes()
        if not self.findings.data_changed or not old.declares or not before.is_file():
            return
        files = export_files(old.code, self.model, old.declares)
        run, why = self._base_run(old, files, "old")
        self._add(run.corner if run else CodeDataRun(code="old", data="old", why=bounded(why)))
        self.say(f"running {new.code.words} on the old data")
        has_champion = run is not None and run.champion is not None
        sandbox = run.home if run is not None and has_champion else self.sandbox("head-on-old-data")
        if not has_champion:
            published = ingest(sandbox, new.code, self.model, files, [])
            if published.failed:
                self._add(CodeDataRun(code="new", data="old", why=bounded(published.failed[0])))
                return
        self._add(run_in_sandbox(sandbox, new.code, self.model, ("new", "old")).corner)

    def _add(self, run: CodeDataRun) -> None:
        self.findings.corners.append(run)
        if not run.judged:
            self.findings.notes.append(f"the {run.code} code has no verdict on the {run.data} data: {run.why}")

    # Requirements

    def require_checks(self, old: _Side, new: _Side, reasons: Mapping[str, str]) -> None:
        """Require a record that says SUCCEEDED of every check of both sides; any other is a problem."""
        done = {check.check: check for check in self.findings.checks}
        here = {format_check_name(check) for check in new.declares.get("checks", [])}
        gone = [
            format_check_name(check) for check in old.declares.get("checks", []) if format_check_name(check) not in here
        ]
        for name in sorted(here - set(done)):
            done[name] = ReportedCheck(check=name, state=CheckState.MISSING, said="it was not run")
        for name in gone:
            # A file that does not import might still declare the check.
            state = CheckState.MISSING if new.there and not new.declares else CheckState.REMOVED
            done[name] = ReportedCheck(check=name, state=state, declared=reasons.get(name, ""))
        self.findings.checks = [done[name] for name in sorted(done)]
        # The candidate's gates that did not pass are problems already.
        gates = [g for run in self.findings.corners if (run.code, run.data) == ("new", "new") for g in run.gates]
        reported = {f"{self.model}/trained_model:{gate.name}" for gate in gates if gate.outcome != "PASS"}
        self.findings.problems += problems_of_checks(c for c in self.findings.checks if c.check not in reported)

    def require_declared_changes(self) -> None:
        """Note the declared changes of gates, and report each that is not declared as a problem."""
        for change in self.findings.changes:
            if change.declared:
                self.findings.notes.append(f"{_words(change)} Declared: {change.declared}")
            else:
                advice = f"If this is intended, declare it in {gate_changes.FILE}."
                self.findings.problems.append(f"{_words(change)} {advice}")


def _words(change: GateChange) -> str:
    if change.kind == "not compared":
        return f"{change.check}: the candidate was not compared with the base's champion: {change.before}."
    return f"{change.check} is {change.kind}: {change.before}{f', now {change.after}' if change.after else ''}."


def _package_notes(old: _Side, new: _Side) -> list[str]:
    """Return notes on the lock and the installed packages, with which both codes ran."""
    before, now = (side.code.folder / LOCK for side in (old, new))
    notes = []
    digests = {provenance.lock_digest(lock.parent) for lock in (before, now) if before.is_file() and now.is_file()}
    if len(digests) == 2:
        notes.append(f"{LOCK} changed, but both codes ran with the installed packages")
    others = provenance.find_lock_mismatches(new.code.folder) if now.is_file() else []
    if others:
        notes.append(f"{len(others)} installed packages differ from {LOCK}: {'; '.join(others[:FIRST])}")
    return notes


def problems_of_checks(checks: Iterable[ReportedCheck]) -> list[str]:
    """Return a sentence for each check without a recorded success, except removed checks."""
    # A removal without a reason is reported as a gate change.
    fine = (CheckState.SUCCEEDED, CheckState.REMOVED)
    bad = [check for check in checks if check.state not in fine]
    return [f"the check {c.check} is {c.state.value}{f': {c.said}' if c.said else ''}" for c in bad]


def problems_of_golden(run: CodeDataRun, declares: Mapping[str, Any], golden: str) -> list[str]:
    """Return a sentence if a golden dataset was not evaluated; none if `golden` is empty."""
    if not golden or any(measurement.dataset == golden for measurement in run.measurements):
        return []
    declared = ", ".join(declares["golden"]) or "none"
    return [f"the golden dataset {golden!r} was not evaluated; the model declares {declared}"]


def problems_of_gates(run: CodeDataRun, declares: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each gate that did not pass or was not applied."""
    compared = declares["comparison"]
    expected = {gate["name"] for gate in declares["gates"]} | ({compared["name"]} if compared else set())
    missing = sorted(expected - {gate.name for gate in run.gates})
    bad = [f"gate {gate.condition} is {gate.outcome}: {gate.why}" for gate in run.gates if gate.outcome != "PASS"]
    return [*bad, *(f"gate {name} was not applied" for name in missing)]
