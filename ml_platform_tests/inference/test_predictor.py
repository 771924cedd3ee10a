import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
import skops.io as sio
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import FunctionTransformer

from ml_platform.errors import DigestMismatchError, ModelError, UntrustedModelError
from ml_platform.inference import predictor
from ml_platform.storage import model_files
from ml_platform_tests.support import fakes

ROWS = fakes.visits(100)
SPEC = fakes.visits_spec()
FEATURES = ROWS[SPEC.features]


@pytest.fixture(scope="module")
def fitted() -> Any:
    return fakes.visits_pipeline().fit(FEATURES, (ROWS["bought"] == "yes").astype("int64"))


@pytest.fixture(scope="module")
def model_bytes(fitted: Any) -> bytes:
    return bytes(sio.dumps(fitted))


def stored(folder: Path, data: bytes) -> tuple[Path, str]:
    path = folder / "model.skops"
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


def edited(model_bytes: bytes, edit: Callable[[str], str]) -> bytes:
    """Return the model file with an edited schema."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(model_bytes)) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, edit(data.decode()).encode() if name == "schema.json" else data)
    return target.getvalue()


def test_loaded_model_predicts_as_fitted(fitted: Any, model_bytes: bytes, tmp_path: Path) -> None:
    path, digest = stored(tmp_path, model_bytes)

    loaded = predictor.load(path, digest)

    assert loaded.digest == digest
    np.testing.assert_array_equal(loaded.scores(FEATURES), fitted.predict_proba(FEATURES)[:, 1])
    np.testing.assert_array_equal(loaded.predictions(FEATURES), fitted.predict(FEATURES))
    assert loaded.classes.tolist() == [0, 1]


def test_record_score_equals_row_score(fitted: Any) -> None:
    loaded = predictor.Predictor(fitted, "")
    for position in range(5):
        row = FEATURES.iloc[[position]]

        assert loaded.score_record(row.to_dict("records")[0]) == loaded.scores(row)[0]


def test_multiclass_record_has_score_per_class() -> None:
    rows = fakes.kinds(ROWS)
    loaded = predictor.Predictor(fakes.visits_pipeline().fit(FEATURES, rows["kind"].to_numpy().astype("str")), "")

    scores = loaded.score_record(FEATURES.iloc[0].to_dict())

    assert isinstance(scores, list)
    assert len(scores) == len(loaded.classes) == 3
    assert sum(scores) == pytest.approx(1)


def test_regression_score_is_prediction() -> None:
    rows = fakes.spending(ROWS)
    loaded = predictor.Predictor(fakes.spending_pipeline().fit(FEATURES, rows["spent"]), "")

    assert loaded.score_record(FEATURES.iloc[0].to_dict()) == pytest.approx(loaded.predictions(FEATURES)[0])
    assert len(loaded.classes) == 0


def test_record_field_order_does_not_matter(fitted: Any) -> None:
    loaded = predictor.Predictor(fitted, "")
    record = FEATURES.iloc[0].to_dict()

    assert loaded.score_record(dict(reversed(record.items()))) == loaded.score_record(record)


@pytest.mark.fault("M3")
@settings(max_examples=25, deadline=None, database=None)
@given(data=st.data())
def test_model_with_flipped_bit_is_refused(
    model_bytes: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path, digest = stored(tmp_path_factory.mktemp("model"), model_bytes)
    flipped = bytearray(model_bytes)
    flipped[data.draw(st.integers(0, len(flipped) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(flipped)

    with pytest.raises(DigestMismatchError, match="not the model that passed its gates"):
        predictor.load(path, digest)


@pytest.mark.fault("M3")
@pytest.mark.parametrize("data", [b"", b"no skops file at all"])
def test_digest_is_compared_before_file_is_read(tmp_path: Path, data: bytes) -> None:
    path, _ = stored(tmp_path, data)

    with pytest.raises(DigestMismatchError):
        predictor.load(path, "0" * 64)


def test_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        predictor.load(tmp_path / "model.skops", "0" * 64)


@pytest.mark.parametrize(
    "data", [b"", b"no skops file at all", b"PK\x05\x06" + bytes(18)], ids=["empty", "text", "zip"]
)
def test_not_a_skops_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path, digest = stored(tmp_path, data)

    with pytest.raises(ModelError, match="is not a skops file"):
        predictor.load(path, digest)


@pytest.mark.parametrize("schema", ["", "{", "{}", "[]", "null", '{"protocol": 99}'])
def test_skops_file_with_broken_schema_is_refused(model_bytes: bytes, tmp_path: Path, schema: str) -> None:
    path, digest = stored(tmp_path, edited(model_bytes, lambda _: schema))

    with pytest.raises(ModelError, match="is not a skops file"):
        predictor.load(path, digest)


@pytest.mark.fault("M4")
def test_pickle_is_not_executed(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    path, digest = stored(tmp_path, f"cpathlib\nPath.touch\n(cpathlib\nPath\n(V{proof}\ntRtR.".encode())

    with pytest.raises(ModelError, match="is not a skops file"):
        predictor.load(path, digest)
    assert not proof.exists()


@pytest.mark.fault("M4")
def test_foreign_function_is_refused_without_importing_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign_module.py").write_text("def harm(x): return x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    transformer = sio.dumps(FunctionTransformer(np.sqrt))
    path, digest = stored(tmp_path, edited(transformer, foreign))
    (tmp_path / "MLmodel").write_text("flavors: {sklearn: {skops_trusted_types: [foreign_module.harm]}}\n")

    with pytest.raises(UntrustedModelError, match=r"foreign_module\.harm"):
        predictor.load(path, digest)
    assert "foreign_module" not in sys.modules


def foreign(schema: str) -> str:
    document = json.loads(schema)
    function = document["content"]["content"]["func"]
    function.update({"__class__": "harm", "__module__": "foreign_module", "__loader__": "FunctionNode"})
    function["content"] = {"module_path": "foreign_module", "function": "harm"}
    return json.dumps(document)


@pytest.mark.fault("M6")
def test_model_of_other_sklearn_version_is_refused(model_bytes: bytes, tmp_path: Path) -> None:
    assert "99.0.0" not in sklearn.__version__
    old, new = (f'\\"{version}\\"' for version in (sklearn.__version__, "99.0.0"))
    path, digest = stored(tmp_path, edited(model_bytes, lambda schema: schema.replace(old, new)))

    with pytest.raises(ModelError, match=r"another version of scikit-learn.*99\.0\.0"):
        predictor.load(path, digest)


def test_program_writes_predictions(fitted: Any, model_bytes: bytes, tmp_path: Path) -> None:
    path, digest = stored(tmp_path, model_bytes)
    requests = tmp_path / "requests.parquet"
    FEATURES.head(7).to_parquet(requests)

    predictor.main([str(path), digest, str(requests), str(tmp_path / "answers.json")])

    answer = json.loads((tmp_path / "answers.json").read_text())
    loaded = predictor.Predictor(fitted, digest)
    assert answer["scores"] == loaded.scores(FEATURES.head(7)).tolist()
    assert answer["predictions"] == loaded.predictions(FEATURES.head(7)).tolist()


def test_file_digest_is_sha256_of_bytes(tmp_path: Path) -> None:
    path, digest = stored(tmp_path, b"bytes")

    assert model_files.file_digest(path) == digest


def test_frame_index_does_not_matter(fitted: Any) -> None:
    loaded = predictor.Predictor(fitted, "")
    shifted = FEATURES.set_axis(pd.RangeIndex(1_000, 1_000 + len(FEATURES)))

    np.testing.assert_array_equal(loaded.scores(shifted), loaded.scores(FEATURES))
