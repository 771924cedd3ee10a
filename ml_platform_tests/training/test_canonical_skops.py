"""Canonical model files: equal fits have equal bytes, and predict the same as the file that skops wrote."""

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
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import TunedThresholdClassifierCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from ml_platform.inference import predictor
from ml_platform.storage import model_files
from ml_platform.storage.mlflow_registry import run_files
from ml_platform.training import fit
from ml_platform.training.canonical_skops import write_canonical
from ml_platform_tests.support import fakes

ROWS = fakes.visits(200)


def _build(encoder: Any, classifier: Any) -> Pipeline:
    preprocess = ColumnTransformer([("categories", encoder, ["plan"])], remainder="passthrough")
    return Pipeline([("preprocess", preprocess), ("classify", classifier)])


def boosting() -> Any:
    return _build(OrdinalEncoder(), HistGradientBoostingClassifier(max_iter=10, random_state=0))


def tuned() -> Any:
    trees = HistGradientBoostingClassifier(max_iter=5, random_state=0)
    return _build(OrdinalEncoder(), TunedThresholdClassifierCV(trees, scoring="f1", cv=3, random_state=0))


def forest() -> Any:
    return _build(OneHotEncoder(), RandomForestClassifier(n_estimators=5, random_state=0))


def imputed() -> Any:
    encode = _build(OneHotEncoder(), LogisticRegression(random_state=0))
    encode.steps.insert(1, ("fill", SimpleImputer()))
    return encode


PIPELINES = {"logistic": fakes.visits_pipeline, **{f.__name__: f for f in (boosting, tuned, forest, imputed)}}


@pytest.fixture(params=PIPELINES, scope="module")
def pipeline(request: pytest.FixtureRequest) -> Callable[[], Any]:
    return PIPELINES[request.param]


def fitted(pipeline: Callable[[], Any]) -> Any:
    return fit.fit(ROWS, fakes.visits_spec(pipeline=pipeline))


def canonical(data: bytes) -> bytes:
    target = io.BytesIO()
    write_canonical(io.BytesIO(data), target)
    return target.getvalue()


def loaded(data: bytes) -> Any:
    return sio.loads(data, trusted=list(model_files.TRUSTED_TYPES))  # noqa: TID251 - as a user without the platform


def scores(model: Any) -> Any:
    return model.predict_proba(ROWS[fakes.visits_spec().features])


@pytest.mark.slow
def test_two_fits_have_same_bytes(pipeline: Callable[[], Any], tmp_path: Path) -> None:
    first, second = (fit.store(fitted(pipeline), tmp_path / name) for name in ("first", "second"))

    assert first == second


@pytest.mark.slow
def test_processes_with_other_hash_seeds_store_same_bytes(tmp_path: Path) -> None:
    here = {name: fit.store(fitted(made), tmp_path / name) for name, made in PIPELINES.items()}

    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-m", __name__, str(tmp_path)], env=environment, capture_output=True)
        assert json.loads(done.stdout) == here


def test_plain_skops_bytes_differ_at_every_save() -> None:
    """If this fails, canonical files are no longer needed."""
    first, second = (sio.dumps(fitted(fakes.visits_pipeline)) for _ in range(2))

    assert first != second
    assert canonical(first) == canonical(second)


@pytest.mark.slow
def test_canonical_file_predicts_same_bits(pipeline: Callable[[], Any], tmp_path: Path) -> None:
    model = fitted(pipeline)
    digest = fit.store(model, tmp_path)
    path = tmp_path / model_files.MODEL_FILE

    np.testing.assert_array_equal(scores(predictor.load(path, digest).pipeline), scores(model))
    np.testing.assert_array_equal(scores(loaded(path.read_bytes())), scores(model))


def test_canonical_file_loads_with_mlflow_client(tmp_path: Path) -> None:
    import mlflow.sklearn

    model = fitted(boosting)
    fit.store(model, tmp_path)
    features = ROWS[fakes.visits_spec().features]

    with run_files(tmp_path / model_files.MODEL_FILE, features.head(), {}) as files:
        from_mlflow = mlflow.sklearn.load_model(str(files / "model"))  # noqa: TID251 - as users of MLflow do

    np.testing.assert_array_equal(scores(from_mlflow), scores(model))


@pytest.mark.slow
def test_canonical_bytes_are_unchanged_by_rewriting(pipeline: Callable[[], Any]) -> None:
    once = canonical(sio.dumps(fitted(pipeline)))

    assert canonical(once) == once


def test_other_model_has_other_bytes(tmp_path: Path) -> None:
    digests = {
        fit.store(fit.fit(rows, fakes.visits_spec()), tmp_path / str(len(rows))) for rows in (ROWS, ROWS.head(199))
    }

    assert len(digests) == 2


def test_zip_entries_have_fixed_time_mode_and_order() -> None:
    with zipfile.ZipFile(io.BytesIO(canonical(sio.dumps(fitted(forest))))) as file:
        entries = file.infolist()
        schema = json.loads(file.read("schema.json"))

    assert [entry.filename for entry in entries[:2]] == ["1.npy", "2.npy"]
    assert entries[-1].filename == "schema.json"
    assert {(entry.date_time, entry.external_attr, entry.create_system) for entry in entries} == {
        ((1980, 1, 1, 0, 0, 0), 0o600 << 16, 3)
    }
    assert schema["__id__"] == 1


def test_shared_object_is_shared_after_loading() -> None:
    shared, equal = np.arange(3), np.arange(3)
    first, second, third = loaded(canonical(sio.dumps([shared, shared, equal])))

    assert first is second
    assert first is not third
    np.testing.assert_array_equal(third, equal)


def test_equal_texts_count_as_one_object() -> None:
    word = "a longer text"
    shared, copied = [word, word], [word, "".join(["a longer", " text"])]
    assert copied[0] is not copied[1]

    assert canonical(sio.dumps(shared)) == canonical(sio.dumps(copied))
    assert loaded(canonical(sio.dumps([1, 1.0, "1", True, None, "None"]))) == [1, 1.0, "1", True, None, "None"]


def test_set_is_written_in_one_order() -> None:
    forth, back = [8, 0, 16, 3], [3, 16, 0, 8]
    assert list(set(forth)) != list(set(back))

    assert canonical(sio.dumps(set(forth))) == canonical(sio.dumps(set(back)))
    assert loaded(canonical(sio.dumps({"a", "b", (1, "c")}))) == {"a", "b", (1, "c")}


def test_sparse_matrix_is_written_without_time() -> None:
    matrix = sparse.csr_matrix(np.eye(3))
    data = canonical(sio.dumps([matrix, matrix]))

    with zipfile.ZipFile(io.BytesIO(data)) as file, zipfile.ZipFile(io.BytesIO(file.read("1.npz"))) as inside:
        assert file.namelist() == ["1.npz", "schema.json"]
        assert {entry.date_time for entry in inside.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    read, _ = sio.loads(data, trusted=["scipy.sparse._csr.csr_matrix"])  # noqa: TID251 - a matrix, not a model
    np.testing.assert_array_equal(read.toarray(), np.eye(3))


def test_dict_with_skops_keys_is_unchanged() -> None:
    value = {"__id__": 7, "file": "a.npy", "__loader__": "SetNode", "content": [2, 1], 3: b"bytes"}

    assert loaded(canonical(sio.dumps(value))) == value


def test_not_a_skops_file_is_refused() -> None:
    with pytest.raises(zipfile.BadZipFile):
        canonical(b"no zip")
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(KeyError, match=r"schema\.json"):
        canonical(empty.getvalue())


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.stdout.write(json.dumps({name: fit.store(fitted(made), folder / name) for name, made in PIPELINES.items()}))
