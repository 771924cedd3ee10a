"""A program that writes a model's declarations, or the verdict of its run, as JSON.

Usage, with the environment of a temporary deployment::

    python -P ml_platform/ci/inspect_model.py declared MODEL OUTPUT.json
    python -P ml_platform/ci/inspect_model.py judged MODEL OUTPUT.json RUN

It also runs with the code of an earlier commit on its path, so it uses as little of the package as possible.
"""

import dis
import hashlib
import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import CodeType
from typing import Any

import ml_platform
from ml_platform.model_spec import ModelSpec
from ml_platform.models import discovery

# Settings that decide together with the gates: the holdout, the label and the accepted rows.
SETTINGS = (
    "task",
    "label",
    "positive",
    "entity",
    "event_time",
    "split",
    "holdout_share",
    "min_rows",
    "min_class_share",
    "quarantine_tolerance",
    "min_batch_rows",
    "max_batch_rows",
)


def inspect_declaration(model: str) -> dict[str, Any]:
    """Return a model's declarations, and the asset checks of its two groups as Dagster loads them.

    Returns
    -------
    dict
        ``code``, the folder of the imported code; names of columns; ``gates`` and ``comparison`` with their conditions;
        ``settings``, ``baseline``, ``approvers`` and ``rollout``; ``golden``, digests by name; ``contract``, rules by
        column, those of whole rows under an empty name; ``checks`` with asset, group, blocking and description. A
        setting that an earlier platform does not have is None.
    """
    # The model's own file first, so that its error is the last line of this process's output.
    spec = discovery.load(model)
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
        "baseline": describe_baseline(spec),
        "rollout": spec.rollout.model_dump(mode="json") if hasattr(spec, "rollout") else None,
        "golden": {one.name: one.sha256 for one in spec.golden},
        "contract": describe_contract(spec.contract.to_schema()),
        "gates": [
            gate.model_dump(include={"metric", "at_least", "at_most", "on", "dataset", "min_rows"})
            | {"name": gate.name, "condition": gate.condition}
            | {"places": [part.name for part in spec.expand_slices(gate.slices)] or [""]}
            for gate in spec.gates
        ],
        "comparison": compared and {**compared.model_dump(), "name": compared.name, "condition": compared.condition},
        "checks": _checks(model),
    }


def describe_baseline(spec: ModelSpec) -> str | None:
    """Return a model's baseline in words, with a digest of its code if it is a rule; ``None`` if unknown."""
    stated, rule = getattr(spec, "stated_baseline", None), getattr(spec, "baseline", None)
    return f"{stated}, code {_code(rule)}" if callable(rule) else stated


def describe_contract(schema: Any) -> dict[str, Any]:
    """Return each column's type, requirements and rules; those of whole rows have an empty name."""
    columns = {
        name: {
            "dtype": str(column.dtype),
            "demands": [name for name in ("required", "unique") if getattr(column, name)]
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
    return [
        {
            "name": check.name or "",
            "says": {name: _value(value) for name, value in (check.statistics or {}).items()},
            # The function of pandera's own checks is a dispatcher, whose code is no part of the rule.
            "code": _code(check._check_fn) if inspect.isfunction(check._check_fn) else "",
            "words": str(check.error or check.name),
        }
        for check in checks
        if not check.raise_warning  # a check that only warns rejects nothing
    ]


def _value(value: Any) -> Any:
    if isinstance(value, list | tuple | set | frozenset):
        return [_value(item) for item in value]
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _code(function: Any) -> str:
    """Return a digest of a function's behaviour, independent of its comments and its place in the file."""
    return hashlib.sha256("\n".join(_behaviour(function, set())).encode()).hexdigest()[:12]


def _behaviour(function: Any, seen: set[int]) -> Iterator[str]:
    """Yield a function's instructions and constants, and those of the platform's functions that it uses."""
    plain = inspect.unwrap(function)
    code = getattr(plain, "__code__", None)
    if code is None or id(code) in seen:
        yield getattr(plain, "__qualname__", type(plain).__qualname__)
        return
    seen.add(id(code))
    yield from _instructions(code)
    names = [plain.__globals__.get(name) for name in code.co_names]
    defaults = [*(plain.__defaults__ or ()), *(plain.__kwdefaults__ or {}).values()]
    # pandera wraps an author's check in a function of its own, whose closure holds it.
    closure = [getattr(cell.cell_contents, "check_fn", cell.cell_contents) for cell in plain.__closure__ or ()]
    for value in (*names, *defaults, *closure):
        if isinstance(value, bool | int | float | str):
            yield repr(value)
        elif str(getattr(value, "__module__", "")).startswith("ml_platform") and hasattr(
            inspect.unwrap(value) if callable(value) else value, "__code__"
        ):
            yield from _behaviour(value, seen)


def _instructions(code: CodeType) -> Iterator[str]:
    # With the values of constants, not their numbers: a docstring changes all numbers.
    for step in dis.get_instructions(code):
        constant = step.argval
        if isinstance(constant, CodeType):
            yield from _instructions(constant)
        elif isinstance(constant, frozenset):
            # Sorted, because the order of a set's members differs between processes.
            yield f"{step.opname} {sorted(map(repr, constant))}"
        else:
            yield f"{step.opname} {constant!r}"


def _checks(model: str) -> list[dict[str, Any]]:
    from ml_platform.definitions import defs

    graph = defs().get_repository_def().asset_graph
    codes: dict[Any, str] = {}
    for made in graph.assets_defs:
        # Only an author's own checks need a digest: a change of the platform's code affects every model.
        function = getattr(getattr(made.node_def, "compute_fn", None), "decorated_fn", None)
        if str(getattr(function, "__module__", "")).startswith(f"{discovery.PACKAGE}."):
            codes.update(dict.fromkeys(made.check_keys, _code(function)))
    checks = []
    for key in graph.asset_check_keys:
        group, node = graph.get(key.asset_key).group_name, graph.get(key)
        if group in {model, f"{model}_data"}:
            texts = {"description": node.description or "", "code": codes.get(key, "")}
            place = {"asset": list(key.asset_key.path), "name": key.name, "group": group}
            checks.append({**place, "blocking": bool(node.blocking), **texts})
    return sorted(checks, key=lambda check: (check["asset"], check["name"]))


def inspect_verdict(model: str, run: str) -> dict[str, Any]:
    """Return the verdict on the candidate of a Dagster run, with its curves, and the current champion.

    ``verdict`` is None if the run stored none, ``champion`` is None if there is none.
    """
    from ml_platform.platform import Platform

    platform = Platform()
    candidate = platform.database.newest_candidate(model, run)
    # An older platform ignores the run and returns the newest candidate of all.
    candidate = candidate if candidate is not None and candidate.run_id == run else None
    verdict = platform.database.verdict_on(candidate.id) if candidate else None
    champion = platform.database.champion(model)
    folder = platform.candidate_folder(candidate) if candidate else None
    points = folder / "curves.json" if folder else None
    return {
        "verdict": asdict(verdict) if verdict else None,
        "verdict_digest": verdict.digest if verdict else "",
        "champion": champion.version if champion else None,
        "is_champion": bool(candidate and champion and champion.candidate == candidate.id),
        "curves": json.loads(points.read_text()) if points and points.is_file() else None,
        "folder": str(folder) if folder else "",
    }


def main(arguments: list[str]) -> None:
    """Inspect the subject, a model's declarations or a run's verdict, and write the result to a file."""
    subject, model, output, *run = arguments
    document = inspect_declaration(model) if subject == "declared" else inspect_verdict(model, *run)
    Path(output).write_text(json.dumps(document))


if __name__ == "__main__":
    main(sys.argv[1:])
