"""Golden datasets are read only if they have the pinned digest."""

import hashlib
from pathlib import Path

import pandas as pd
import pytest

from ml_platform.data import golden_datasets
from ml_platform.errors import DatasetError, DigestMismatchError
from ml_platform.model_spec import GoldenSet, ModelSpec
from ml_platform_tests.support import fakes


def freeze(folder: Path, rows: pd.DataFrame) -> ModelSpec:
    file = folder / "visits" / "holiday.parquet"
    file.parent.mkdir(parents=True)
    rows.to_parquet(file, index=False)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return fakes.visits_spec(golden=(GoldenSet(name="holiday", sha256=sha256),))


def test_golden_set_with_pinned_digest_is_read(tmp_path: Path) -> None:
    spec = freeze(tmp_path, fakes.visits(10))

    rows = golden_datasets.read_golden(tmp_path, spec, spec.golden[0])

    pd.testing.assert_frame_equal(rows, fakes.visits(10))
    assert golden_datasets.problems(tmp_path, spec) == {}


def test_golden_set_changed_file_is_refused(tmp_path: Path) -> None:
    spec = freeze(tmp_path, fakes.visits(10))
    fakes.visits(11).to_parquet(tmp_path / "visits" / "holiday.parquet", index=False)

    with pytest.raises(DigestMismatchError, match="is pinned"):
        golden_datasets.read_golden(tmp_path, spec, spec.golden[0])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (fakes.visits(10).assign(plan="none such"), "breaks the contract of 'visits': plan"),
        (fakes.visits(10).drop(columns="plan"), "breaks the contract"),
        (fakes.visits(0), "has no rows"),
    ],
)
def test_golden_set_breaking_contract_is_refused(tmp_path: Path, rows: pd.DataFrame, message: str) -> None:
    spec = freeze(tmp_path, rows)

    with pytest.raises(DatasetError, match=message):
        golden_datasets.read_golden(tmp_path, spec, spec.golden[0])


def test_golden_problems_name_missing_and_broken_sets(tmp_path: Path) -> None:
    noise = tmp_path / "visits" / "noise.parquet"
    noise.parent.mkdir()
    noise.write_bytes(b"noise")
    sets = (
        GoldenSet(name="none", sha256="0" * 64),
        GoldenSet(name="noise", sha256=hashlib.sha256(b"noise").hexdigest()),
    )

    errors = golden_datasets.problems(tmp_path, fakes.visits_spec(golden=sets))

    assert set(errors) == {"none", "noise"}
    assert "No such file" in errors["none"]
    assert "is not a valid Parquet file" in errors["noise"]


def test_golden_set_names_must_be_unique() -> None:
    with pytest.raises(ValueError, match="each dataset once"):
        fakes.visits_spec(golden=(GoldenSet(name="a", sha256="0" * 64),) * 2)
