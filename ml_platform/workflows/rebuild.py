"""Train and judge once more in a deployment that is thrown away: a program of its own, for a fresh process.

It may run with the code of an earlier commit on its path, so that it asks for little: `Platform`, the steps that train
and judge, and what reads rows and models::

    python -P ml_platform/workflows/rebuild.py ORDER.json ANSWER.json

The environment names the deployment that is thrown away; nothing else is written. See `reproduction`.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import ml_platform
from ml_platform import workflows
from ml_platform.errors import PlatformError
from ml_platform.model_spec import ModelSpec
from ml_platform.predictor import load
from ml_platform.records import Candidate, DatasetVersion
from ml_platform.stages import datasets
from ml_platform.workflows import Platform


def declared(module: str, model: str) -> ModelSpec:
    """Return what a model's author declared in a module; importing it may import Dagster."""
    members = vars(importlib.import_module(module)).values()
    return next(member for member in members if isinstance(member, ModelSpec) and member.name == model)


def rebuild(order: dict[str, Any]) -> dict[str, Any]:
    """Train on the pinned rows, judge, and predict with the stored model and the new one.

    Parameters
    ----------
    order : dict
        `code` is the folder that the code must come from; `module` and `model` say what is trained, `dataset` on which
        version, `rows` where its table stands; `stored` is the model file to compare with, `digest` its sha256,
        `golden` the requests that it answered when it was judged.

    Returns
    -------
    dict
        The new model's `file`; `verdict` on it, as a document; `before` and `after`, what the stored and the new model
        predict for the holdout; `answers` of the new one to the golden requests; `unseeded`, the parameters
        ``random_state`` that are None.

    Raises
    ------
    PlatformError
        The code comes from elsewhere, or a step refused: the rows are not those that were pinned, for instance.
    """
    import pandas as pd

    _require_code(order["code"])
    platform, spec = Platform(), declared(order["module"], order["model"])
    dataset = DatasetVersion(**order["dataset"])
    _show_rows(platform, order)
    platform.database.record_dataset(dataset)
    candidate = workflows.train_candidate(platform, spec, reason="reproduce")
    verdict = workflows.judge_candidate(platform, spec, candidate).verdict
    _, rows = datasets.pin(platform.rows(spec.name), spec, dataset.version)
    features = datasets.split(rows, spec)[1][spec.features]
    old, new = load(Path(order["stored"]), order["digest"]), _loaded(platform, candidate)
    return {
        "file": str(platform.model_file(candidate)),
        "verdict": verdict.document,
        "before": _predictions(old, features),
        "after": _predictions(new, features),
        "answers": _predictions(new, pd.read_parquet(order["golden"])),
        "unseeded": _unseeded(new.pipeline),
    }


def _require_code(folder: str) -> None:
    found = Path(ml_platform.__file__).resolve().parent.parent
    if found != Path(folder).resolve():
        raise PlatformError(
            f"its code must come from {folder}, and Python took that of {found}. Does the platform's package stand in "
            "that folder?"
        )


def _show_rows(platform: Platform, order: dict[str, Any]) -> None:
    # A link: the table is read where it stands, and only read.
    table = platform.rows(order["model"])
    table.parent.mkdir(parents=True)
    table.symlink_to(order["rows"], target_is_directory=True)


def _loaded(platform: Platform, candidate: Candidate) -> Any:
    return load(platform.model_file(candidate), candidate.model_digest)


def _predictions(predictor: Any, features: Any) -> dict[str, list[Any]]:
    return {"scores": predictor.scores(features).tolist(), "predictions": predictor.predictions(features).tolist()}


def _unseeded(pipeline: Any) -> list[str]:
    parameters = pipeline.get_params(deep=True)
    return sorted(name for name, value in parameters.items() if name.endswith("random_state") and value is None)


def main(arguments: list[str]) -> None:
    """Follow the order in one file; write into another what came of it, or why a step refused."""
    order, answer = map(Path, arguments)
    try:
        found = rebuild(json.loads(order.read_text()))
    except PlatformError as error:
        found = {"refused": str(error)}
    answer.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
