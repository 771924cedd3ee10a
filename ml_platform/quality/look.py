"""Say what a model's code declares, or what came of its run: a program of its own, for a fresh process.

It may run with the code of an earlier commit on its path, so that it asks for little::

    python -P ml_platform/quality/look.py declared MODEL ANSWER.json
    python -P ml_platform/quality/look.py judged MODEL ANSWER.json RUN

The environment names the deployment, which is thrown away.
"""

import dis
import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import ml_platform
from ml_platform.model_spec import ModelSpec

MODELS = "ml_platform.defs.models"
# What decides with the gates: how the holdout is made, what counts as right, and which rows are taken at all.
SETTINGS = (
    "task",
    "label",
    "positive",
    "entity",
    "event_time",
    "split",
    "holdout_share",
    "least_rows",
    "least_share_of_a_class",
    "quarantine_tolerance",
    "least_rows_a_batch",
    "most_rows_a_batch",
)


def declared(model: str) -> dict[str, Any]:
    """Return what a model's file declares, and every asset check of its two groups, as Dagster loads them.

    Returns
    -------
    dict
        ``code``, the folder that the code came from; names of columns; ``gates`` and ``comparison`` with all that they
        ask for; ``settings``, ``baseline``, ``approvers`` and ``rollout``; ``golden``, digests by name; ``contract``, a
        rule of every column by name, those of whole rows under the empty name; ``checks`` with asset, group, blocking
        and what they say of themselves. What an earlier platform does not know is None.
    """
    # The model's own file first: its error is then the last word of this process.
    members = vars(importlib.import_module(f"{MODELS}.{model}")).values()
    spec = next(member for member in members if isinstance(member, ModelSpec) and member.name == model)
    compared = spec.comparison
    return {
        "code": str(Path(ml_platform.__file__).resolve().parent.parent),
        "entity": spec.entity,
        "event_time": spec.event_time,
        "task": spec.task,
        "positive": None if spec.positive is None else str(spec.positive),
        "approval": "manual" if spec.approval_needed else "automatic",
        "approvers": spec.approval_needed and spec.approval_needed.model_dump(mode="json"),
        "settings": {name: getattr(spec, name, None) for name in SETTINGS},
        "baseline": baseline_of(spec),
        "rollout": spec.rollout.model_dump(mode="json") if hasattr(spec, "rollout") else None,
        "golden": {one.name: one.sha256 for one in spec.golden},
        "contract": contract_of(spec.table.to_schema()),
        "gates": [_gate(gate, spec) for gate in spec.gates],
        "comparison": compared and {**compared.model_dump(), "name": compared.name, "condition": compared.condition},
        "checks": _checks(model),
    }


def _gate(gate: Any, spec: ModelSpec) -> dict[str, Any]:
    asked = gate.model_dump(include={"metric", "at_least", "at_most", "on", "dataset", "least_rows"})
    places = [part.name for part in spec.parts_of(gate.slices)] or [""]
    return {**asked, "name": gate.name, "condition": gate.condition, "places": places}


def baseline_of(spec: ModelSpec) -> str | None:
    """Return what a model's baseline is in words, with a digest of its code where it is a rule; ``None`` if unknown."""
    stated, rule = getattr(spec, "stated_baseline", None), getattr(spec, "baseline", None)
    return f"{stated}, code {_code(rule)}" if callable(rule) else stated


def contract_of(schema: Any) -> dict[str, Any]:
    """Return every column's type, what it demands and its rules; those of whole rows have the empty name."""
    columns = {
        name: {
            "dtype": str(column.dtype),
            "demands": [what for what in ("required", "unique") if getattr(column, what)]
            + ([] if column.nullable else ["not empty"]),
            "rules": _rules(column.checks),
        }
        for name, column in schema.columns.items()
    }
    declared = schema.unique or []
    groups = [declared] if all(isinstance(name, str) for name in declared) else declared
    together = [f"unique: {', '.join(sorted(group))}" for group in groups if group]
    return {**columns, "": {"dtype": "rows", "demands": together, "rules": _rules(schema.checks)}}


def _rules(checks: Any) -> list[dict[str, Any]]:
    # A check that only warns rejects nothing.
    return [_rule(check) for check in checks if not check.raise_warning]


def _rule(check: Any) -> dict[str, Any]:
    says = {name: _value(value) for name, value in (check.statistics or {}).items()}
    # Of pandera's own checks the function is a dispatcher, which says nothing.
    own = inspect.isfunction(check._check_fn)
    words = str(check.error or check.name)
    return {"name": check.name or "", "says": says, "code": _code(check._check_fn) if own else "", "words": words}


def _value(value: Any) -> Any:
    if isinstance(value, list | tuple | set | frozenset):
        return [_value(one) for one in value]
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _code(function: Any) -> str:
    """Return a digest of what a function does, whatever its comments and its place in the file are."""
    return hashlib.sha256("\n".join(_does(function, set())).encode()).hexdigest()[:12]


def _does(function: Any, seen: set[int]) -> Iterator[str]:
    plain = inspect.unwrap(function)
    code = getattr(plain, "__code__", None)
    if code is None or id(code) in seen:
        yield getattr(plain, "__qualname__", type(plain).__qualname__)
        return
    seen.add(id(code))
    yield from _instructions(code)
    named = [plain.__globals__.get(name) for name in code.co_names]
    given = [*(plain.__defaults__ or ()), *(plain.__kwdefaults__ or {}).values()]
    # pandera keeps an author's check in what its own function closes over.
    inside = [getattr(cell.cell_contents, "check_fn", cell.cell_contents) for cell in plain.__closure__ or ()]
    for one in (*named, *given, *inside):
        if isinstance(one, bool | int | float | str):
            yield repr(one)
        elif hasattr(inspect.unwrap(one) if callable(one) else one, "__code__") and not _foreign(one):
            yield from _does(one, seen)


def _foreign(function: Any) -> bool:
    return not str(getattr(function, "__module__", "")).startswith("ml_platform")


def _instructions(code: CodeType) -> Iterator[str]:
    # By what each instruction means: a docstring moves the numbers of all constants.
    for step in dis.get_instructions(code):
        constant = step.argval
        if isinstance(constant, CodeType):
            yield from _instructions(constant)
        elif isinstance(constant, frozenset):
            # The order of a set's members is another one in every process.
            yield f"{step.opname} {sorted(map(repr, constant))}"
        else:
            yield f"{step.opname} {constant!r}"


def _checks(model: str) -> list[dict[str, Any]]:
    from ml_platform.definitions import defs

    graph = defs().get_repository_def().asset_graph
    codes = {key: _own_code(made) for made in graph.assets_defs for key in made.check_keys}
    found = []
    for key in graph.asset_check_keys:
        group, node = graph.get(key.asset_key).group_name, graph.get(key)
        if group in {model, f"{model}_data"}:
            said = {"blocking": bool(node.blocking), "description": node.description or "", "code": codes.get(key, "")}
            found.append({"asset": list(key.asset_key.path), "name": key.name, "group": group, **said})
    return sorted(found, key=lambda check: (check["asset"], check["name"]))


def _own_code(made: Any) -> str:
    """Return a digest of the function of an author's own checks; empty for the platform's, which count for all."""
    function = getattr(getattr(made.node_def, "compute_fn", None), "decorated_fn", None)
    return _code(function) if str(getattr(function, "__module__", "")).startswith("ml_platform.defs.") else ""


def judged(model: str, run: str) -> dict[str, Any]:
    """Return the verdict on the candidate that a Dagster run trained, with its curves, and who is champion now.

    ``verdict`` is None where the run trained none or came to none, ``champion`` where there is none.
    """
    from ml_platform.workflows import Platform

    platform = Platform()
    candidate = platform.database.newest_candidate(model, run)
    # Asked for by run, an older platform may answer with the newest one of all.
    mine = candidate if candidate is not None and candidate.run_id == run else None
    verdict = platform.database.verdict_on(mine.id) if mine else None
    champion = platform.database.champion(model)
    folder = platform.candidate_folder(mine) if mine else None
    points = folder / "curves.json" if folder else None
    return {
        "verdict": json.loads(verdict.document) if verdict else None,
        "verdict_digest": verdict.digest if verdict else "",
        "champion": champion.version if champion else None,
        "is_champion": bool(mine and champion and champion.candidate == mine.id),
        "curves": json.loads(points.read_text()) if points and points.is_file() else None,
        "folder": str(folder) if folder else "",
    }


def main(arguments: list[str]) -> None:
    """Do what the first argument names; write the answer into the file that the third names."""
    what, model, answer, *run = arguments
    found = declared(model) if what == "declared" else judged(model, *run)
    Path(answer).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
