"""Canonical model files: equal fits have equal bytes, and say the same as what skops wrote."""

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io as sio
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.model_selection import TunedThresholdClassifierCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from ml_platform import predictor
from ml_platform.stages import training
from ml_platform.stages._skops import write_canonical
from ml_platform.stages.registry import run_files
from ml_platform_tests import fakes

ROWS = fakes.visits(200)


def _behind(encoder: Any, classifier: Any) -> Pipeline:
    preprocess = ColumnTransformer([("categories", encoder, ["plan"])], remainder="passthrough")
    return Pipeline([("preprocess", preprocess), ("classify", classifier)])


def boosting() -> Any:
    return _behind(OrdinalEncoder(), HistGradientBoostingClassifier(max_iter=10, random_state=0))


def tuned() -> Any:
    trees = HistGradientBoostingClassifier(max_iter=5, random_state=0)
    return _behind(OrdinalEncoder(), TunedThresholdClassifierCV(trees, scoring="f1", cv=3, random_state=0))


def forest() -> Any:
    return _behind(OneHotEncoder(), RandomForestClassifier(n_estimators=5, random_state=0))


PIPELINES = {"logistic": fakes.visits_pipeline, **{f.__name__: f for f in (boosting, tuned, forest)}}


@pytest.fixture(params=PIPELINES, scope="module")
def pipeline(request: pytest.FixtureRequest) -> Callable[[], Any]:
    return PIPELINES[request.param]


def fitted(pipeline: Callable[[], Any]) -> Any:
    return training.fit(ROWS, fakes.visits_spec(pipeline=pipeline))


def canonical(data: bytes) -> bytes:
    target = io.BytesIO()
    write_canonical(io.BytesIO(data), target)
    return target.getvalue()


def loaded(data: bytes) -> Any:
    return sio.loads(data, trusted=list(predictor.TRUSTED_TYPES))  # noqa: TID251 - as somebody without the platform


def scores(model: Any) -> Any:
    return model.predict_proba(ROWS[fakes.visits_spec().features])


def test_two_fits_are_stored_as_the_same_bytes(pipeline: Callable[[], Any], tmp_path: Path) -> None:
    first, second = (training.store(fitted(pipeline), tmp_path / name) for name in ("first", "second"))

    assert first == second


def test_processes_that_hash_differently_store_the_same_bytes(tmp_path: Path) -> None:
    here = {name: training.store(fitted(made), tmp_path / name) for name, made in PIPELINES.items()}

    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-m", __name__, str(tmp_path)], env=environment, capture_output=True)
        assert json.loads(done.stdout) == here


def test_what_skops_itself_writes_differs_at_every_save() -> None:
    """Otherwise none of this would be needed any more."""
    first, second = (sio.dumps(fitted(fakes.visits_pipeline)) for _ in range(2))

    assert first != second
    assert canonical(first) == canonical(second)


def test_predictions_are_the_same_to_the_bit_for_whoever_loads_it(pipeline: Callable[[], Any], tmp_path: Path) -> None:
    model = fitted(pipeline)
    digest = training.store(model, tmp_path)
    path = tmp_path / predictor.MODEL_FILE

    np.testing.assert_array_equal(scores(predictor.load(path, digest).pipeline), scores(model))
    np.testing.assert_array_equal(scores(loaded(path.read_bytes())), scores(model))


def test_mlflows_own_client_loads_it(tmp_path: Path) -> None:
    import mlflow.sklearn

    model = fitted(boosting)
    training.store(model, tmp_path)
    features = ROWS[fakes.visits_spec().features]

    with run_files(tmp_path / predictor.MODEL_FILE, features.head(), {}) as files:
        found = mlflow.sklearn.load_model(str(files / "model"))  # noqa: TID251 - what users of MLflow do

    np.testing.assert_array_equal(scores(found), scores(model))


def test_canonical_bytes_are_canonical_already(pipeline: Callable[[], Any]) -> None:
    once = canonical(sio.dumps(fitted(pipeline)))

    assert canonical(once) == once


def test_another_model_has_other_bytes(tmp_path: Path) -> None:
    digests = {
        training.store(training.fit(rows, fakes.visits_spec()), tmp_path / str(len(rows)))
        for rows in (ROWS, ROWS.head(199))
    }

    assert len(digests) == 2


def test_entries_say_nothing_of_when_and_where_they_were_written() -> None:
    with zipfile.ZipFile(io.BytesIO(canonical(sio.dumps(fitted(forest))))) as file:
        entries = file.infolist()
        schema = json.loads(file.read("schema.json"))

    assert [entry.filename for entry in entries[:2]] == ["1.npy", "2.npy"]
    assert entries[-1].filename == "schema.json"
    assert {(entry.date_time, entry.external_attr, entry.create_system) for entry in entries} == {
        ((1980, 1, 1, 0, 0, 0), 0o600 << 16, 3)
    }
    assert schema["__id__"] == 1


def test_an_object_that_stands_in_two_places_is_one_object_again() -> None:
    shared, alike = np.arange(3), [np.arange(3)]
    one, two, three = loaded(canonical(sio.dumps([shared, shared, alike[0]])))

    assert one is two
    assert one is not three
    np.testing.assert_array_equal(three, alike[0])


def test_equal_text_counts_as_one_object_whether_python_shares_it_or_not() -> None:
    word = "a longer text"
    shared, copied = [word, word], [word, "".join(["a longer", " text"])]
    assert copied[0] is not copied[1]

    assert canonical(sio.dumps(shared)) == canonical(sio.dumps(copied))
    assert loaded(canonical(sio.dumps([1, 1.0, "1", True, None, "None"]))) == [1, 1.0, "1", True, None, "None"]


def test_a_set_is_written_in_one_order() -> None:
    forth, back = [8, 0, 16, 3], [3, 16, 0, 8]
    assert list(set(forth)) != list(set(back))

    assert canonical(sio.dumps(set(forth))) == canonical(sio.dumps(set(back)))
    assert loaded(canonical(sio.dumps({"a", "b", (1, "c")}))) == {"a", "b", (1, "c")}


def test_a_sparse_matrix_is_written_without_the_time() -> None:
    matrix = sparse.csr_matrix(np.eye(3))
    data = canonical(sio.dumps([matrix, matrix]))

    with zipfile.ZipFile(io.BytesIO(data)) as file, zipfile.ZipFile(io.BytesIO(file.read("1.npz"))) as inside:
        assert file.namelist() == ["1.npz", "schema.json"]
        assert {entry.date_time for entry in inside.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    found, _ = sio.loads(data, trusted=["scipy.sparse._csr.csr_matrix"])  # noqa: TID251 - no model
    np.testing.assert_array_equal(found.toarray(), np.eye(3))


def test_a_models_own_words_are_left_alone() -> None:
    value = {"__id__": 7, "file": "a.npy", "__loader__": "SetNode", "content": [2, 1], 3: b"bytes"}

    assert loaded(canonical(sio.dumps(value))) == value


def test_what_is_no_skops_file_is_refused() -> None:
    with pytest.raises(zipfile.BadZipFile):
        canonical(b"no zip")
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(KeyError, match=r"schema\.json"):
        canonical(empty.getvalue())


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.stdout.write(
        json.dumps({name: training.store(fitted(made), folder / name) for name, made in PIPELINES.items()})
    )
