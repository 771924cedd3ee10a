"""Golden datasets are read only while they are what was frozen."""

import hashlib
from pathlib import Path

import pandas as pd
import pytest

from ml_platform.errors import DatasetError, DigestMismatchError
from ml_platform.model_spec import GoldenSet, ModelSpec
from ml_platform.stages import golden
from ml_platform_tests import fakes


def frozen(folder: Path, rows: pd.DataFrame) -> ModelSpec:
    file = folder / "visits" / "holiday.parquet"
    file.parent.mkdir(parents=True)
    rows.to_parquet(file, index=False)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return fakes.visits_spec(golden=(GoldenSet(name="holiday", sha256=sha256),))


def test_a_golden_set_is_read_as_it_was_frozen(tmp_path: Path) -> None:
    spec = frozen(tmp_path, fakes.visits(10))

    rows = golden.read_golden(tmp_path, spec, spec.golden[0])

    pd.testing.assert_frame_equal(rows, fakes.visits(10))
    assert golden.problems(tmp_path, spec) == {}


def test_a_changed_golden_set_is_refused(tmp_path: Path) -> None:
    spec = frozen(tmp_path, fakes.visits(10))
    fakes.visits(11).to_parquet(tmp_path / "visits" / "holiday.parquet", index=False)

    with pytest.raises(DigestMismatchError, match="is pinned"):
        golden.read_golden(tmp_path, spec, spec.golden[0])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (fakes.visits(10).assign(plan="none such"), "breaks the contract of 'visits': plan"),
        (fakes.visits(10).drop(columns="plan"), "breaks the contract"),
        (fakes.visits(0), "has no rows"),
    ],
)
def test_a_golden_set_that_breaks_the_contract_is_refused(tmp_path: Path, rows: pd.DataFrame, said: str) -> None:
    spec = frozen(tmp_path, rows)

    with pytest.raises(DatasetError, match=said):
        golden.read_golden(tmp_path, spec, spec.golden[0])


def test_missing_and_broken_golden_sets_are_named(tmp_path: Path) -> None:
    noise = tmp_path / "visits" / "noise.parquet"
    noise.parent.mkdir()
    noise.write_bytes(b"noise")
    sets = (
        GoldenSet(name="none", sha256="0" * 64),
        GoldenSet(name="noise", sha256=hashlib.sha256(b"noise").hexdigest()),
    )

    found = golden.problems(tmp_path, fakes.visits_spec(golden=sets))

    assert set(found) == {"none", "noise"}
    assert "No such file" in found["none"]
    assert "no Parquet file" in found["noise"]


def test_each_golden_set_is_named_once() -> None:
    with pytest.raises(ValueError, match="each set once"):
        fakes.visits_spec(golden=(GoldenSet(name="a", sha256="0" * 64),) * 2)
