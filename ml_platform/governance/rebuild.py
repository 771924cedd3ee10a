"""Train and judge a version again in a temporary deployment. `reproduce` runs this program in a fresh process.

It may run with the code of an earlier commit on its path, and therefore uses little of the platform: `Platform`, the
steps that train and judge, and the functions that read rows and models::

    python -P ml_platform/governance/rebuild.py ORDER.json ANSWER.json

The environment names the temporary deployment; nothing else is written.
"""

import json
import sys
from pathlib import Path
from typing import Any

import ml_platform
from ml_platform.data import datasets
from ml_platform.errors import PlatformError
from ml_platform.evaluation.judge import judge_candidate
from ml_platform.inference.predictor import load
from ml_platform.models import discovery
from ml_platform.platform import Platform
from ml_platform.records.data import DatasetVersion
from ml_platform.training.train import train_candidate


def rebuild(order: dict[str, Any]) -> dict[str, Any]:
    """Train on the pinned rows, judge, and predict with the stored model and the new one.

    Parameters
    ----------
    order : dict
        `code`, the folder of the code; `module` and `model`, the model to train; `dataset`, its dataset version;
        `rows`, the path of its table; `stored`, the model file to compare with, and `digest`, its sha256; `golden`, the
        file of its golden requests.

    Returns
    -------
    dict
        `file`, the new model; `verdict` on it, as a document; `before` and `after`, the predictions of the stored and
        the new model for the holdout; `answers`, the new model's predictions for the golden requests; `unseeded`, the
        names of the parameters ``random_state`` that are None.

    Raises
    ------
    PlatformError
        The code comes from another folder, or a step refused, for instance because the rows differ from the pinned
        ones.
    """
    import pandas as pd

    folder = Path(ml_platform.__file__).resolve().parent.parent
    if folder != Path(order["code"]).resolve():
        raise PlatformError(
            f"its code must come from {order['code']}, but Python imported it from {folder}. Check that the first "
            "folder contains the package ml_platform."
        )
    platform, spec = Platform(), discovery.load_from(order["module"], order["model"])
    dataset = DatasetVersion(**order["dataset"])
    # A link: the table is not copied, and is only read.
    table = platform.rows(order["model"])
    table.parent.mkdir(parents=True)
    table.symlink_to(order["rows"], target_is_directory=True)
    platform.database.record_dataset(dataset)
    candidate = train_candidate(platform, spec, reason="reproduce")
    verdict = judge_candidate(platform, spec, candidate).verdict
    _, rows = datasets.pin(platform.rows(spec.name), spec, dataset.version)
    features = datasets.split(rows, spec)[1][spec.features]
    old = load(Path(order["stored"]), order["digest"])
    new = load(platform.model_file(candidate), candidate.model_digest)
    parameters = new.pipeline.get_params(deep=True).items()
    return {
        "file": str(platform.model_file(candidate)),
        "verdict": verdict.document,
        "before": _predictions(old, features),
        "after": _predictions(new, features),
        "answers": _predictions(new, pd.read_parquet(order["golden"])),
        "unseeded": sorted(name for name, value in parameters if name.endswith("random_state") and value is None),
    }


def _predictions(predictor: Any, features: Any) -> dict[str, list[Any]]:
    return {"scores": predictor.scores(features).tolist(), "predictions": predictor.predictions(features).tolist()}


def main(arguments: list[str]) -> None:
    """Rebuild as the first file says; write the result, or the reason of a refusal, into the second."""
    order, answer = map(Path, arguments)
    try:
        result = rebuild(json.loads(order.read_text()))
    except PlatformError as error:
        result = {"refused": str(error)}
    answer.write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
