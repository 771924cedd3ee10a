"""Say what a model's code declares, or what came of its run: a program of its own, for a fresh process.

It may run with the code of an earlier commit on its path, so that it asks for little::

    python -P ml_platform/quality/look.py declared MODEL ANSWER.json
    python -P ml_platform/quality/look.py judged MODEL ANSWER.json RUN

The environment names the deployment, which is thrown away.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import ml_platform
from ml_platform.model_spec import ModelSpec

MODELS = "ml_platform.defs.models"


def declared(model: str) -> dict[str, Any]:
    """Return what a model's file declares, and every asset check of its two groups, as Dagster loads them.

    Returns
    -------
    dict
        ``code``, the folder that the code came from; names of columns; ``gates`` and ``comparison`` with all that they
        ask for; ``checks`` with asset, group, blocking and what they say of themselves.
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
        "golden": [one.name for one in spec.golden],
        "gates": [_gate(gate, spec) for gate in spec.gates],
        "comparison": compared and {**compared.model_dump(), "name": compared.name, "condition": compared.condition},
        "checks": _checks(model),
    }


def _gate(gate: Any, spec: ModelSpec) -> dict[str, Any]:
    asked = gate.model_dump(include={"metric", "at_least", "at_most", "on", "dataset", "least_rows"})
    places = [part.name for part in spec.parts_of(gate.slices)] or [""]
    return {**asked, "name": gate.name, "condition": gate.condition, "places": places}


def _checks(model: str) -> list[dict[str, Any]]:
    from ml_platform.definitions import defs

    graph = defs().get_repository_def().asset_graph
    found = []
    for key in graph.asset_check_keys:
        group, node = graph.get(key.asset_key).group_name, graph.get(key)
        if group in {model, f"{model}_data"}:
            said = {"blocking": bool(node.blocking), "description": node.description or ""}
            found.append({"asset": list(key.asset_key.path), "name": key.name, "group": group, **said})
    return sorted(found, key=lambda check: (check["asset"], check["name"]))


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
