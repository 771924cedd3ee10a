"""Golden datasets: frozen files that a model's author names, read only while they are what was frozen."""

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from ml_platform.errors import DatasetError, DigestMismatchError
from ml_platform.model_spec import GoldenSet, ModelSpec

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = 5


def golden_file(folder: Path, spec: ModelSpec, golden: GoldenSet) -> Path:
    """Return where a golden dataset stands below the folder of all of them."""
    return folder / spec.name / f"{golden.name}.parquet"


def read_golden(folder: Path, spec: ModelSpec, golden: GoldenSet) -> "pd.DataFrame":
    """Read a golden dataset; the bytes that were compared are those that are read.

    Returns
    -------
    DataFrame of shape (n_rows, n_columns)
        The columns of the contract.

    Raises
    ------
    DigestMismatchError
        The file's sha256 is not the one that the author pinned.
    DatasetError
        It is missing, is no Parquet file, has no rows, or breaks the contract.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = golden_file(folder, spec, golden)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DatasetError(f"The golden dataset {file} cannot be read: {error.strerror}.") from error
    found = hashlib.sha256(data).hexdigest()
    if found != golden.sha256:
        raise DigestMismatchError(
            f"The golden dataset {file} has sha256 {found}, and {golden.sha256} is pinned. Restore the file, or pin "
            "its digest in the model's file if the change is meant."
        )
    try:
        rows = pq.read_table(io.BytesIO(data)).replace_schema_metadata(None).to_pandas()
    except pa.ArrowException as error:
        raise DatasetError(f"The golden dataset {file} is no Parquet file: {error}.") from error
    return _keeping_contract(rows, spec, file)


def _keeping_contract(rows: "pd.DataFrame", spec: ModelSpec, file: Path) -> "pd.DataFrame":
    from pandera.errors import SchemaErrors

    if rows.empty:
        raise DatasetError(f"The golden dataset {file} has no rows.")
    try:
        spec.table.validate(rows, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases.drop_duplicates(["column", "check"]).head(EXAMPLES).to_dict("records")
        said = "; ".join(f"{case['column']} {case['check']}: got {case['failure_case']}" for case in cases)
        raise DatasetError(f"The golden dataset {file} breaks the contract of {spec.name!r}: {said}.") from errors
    return rows


def problems(folder: Path, spec: ModelSpec) -> dict[str, str]:
    """Return what is wrong with a model's golden datasets, by name; an empty dict where nothing is."""
    found = {}
    for golden in spec.golden:
        try:
            read_golden(folder, spec, golden)
        except (DatasetError, DigestMismatchError) as error:
            found[golden.name] = str(error)
    return found
