"""Golden datasets: frozen files that a model's author declares, read only if their digest matches."""

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
    """Return the path of a golden dataset in the folder of all golden datasets."""
    return folder / spec.name / f"{golden.name}.parquet"


def read_golden(folder: Path, spec: ModelSpec, golden: GoldenSet) -> "pd.DataFrame":
    """Read a golden dataset from the same bytes whose digest was compared.

    Returns
    -------
    DataFrame of shape (n_rows, n_columns)
        The columns of the contract.

    Raises
    ------
    DigestMismatchError
        The file's sha256 differs from the pinned one.
    DatasetError
        The file is missing, is not valid Parquet, has no rows or breaks the contract.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pandera.errors import SchemaErrors

    file = golden_file(folder, spec, golden)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DatasetError(f"The golden dataset {file} cannot be read: {error.strerror}.") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != golden.sha256:
        raise DigestMismatchError(
            f"The golden dataset {file} has sha256 {sha256}, and {golden.sha256} is pinned. Restore the file, or pin "
            "its digest in the model's file if the change is intended."
        )
    try:
        rows: pd.DataFrame = pq.read_table(io.BytesIO(data)).replace_schema_metadata(None).to_pandas()
    except pa.ArrowException as error:
        raise DatasetError(f"The golden dataset {file} is not a valid Parquet file: {error}.") from error
    if rows.empty:
        raise DatasetError(f"The golden dataset {file} has no rows.")
    try:
        spec.contract.validate(rows, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases.drop_duplicates(["column", "check"]).head(EXAMPLES).to_dict("records")
        details = "; ".join(f"{case['column']} {case['check']}: got {case['failure_case']}" for case in cases)
        raise DatasetError(f"The golden dataset {file} breaks the contract of {spec.name!r}: {details}.") from errors
    return rows


def problems(folder: Path, spec: ModelSpec) -> dict[str, str]:
    """Return the errors of a model's golden datasets by name; empty if all can be used."""
    errors = {}
    for golden in spec.golden:
        try:
            read_golden(folder, spec, golden)
        except (DatasetError, DigestMismatchError) as error:
            errors[golden.name] = str(error)
    return errors
