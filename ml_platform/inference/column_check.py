"""Check Arrow tables against a request contract by columns, for files of millions of rows.

A check of columns only says that all rows are valid. Where it does not, the rows are checked one by one, by the decoder
of requests, which names what is wrong. So both give the same answer.
"""

import math
from typing import TYPE_CHECKING, Any

from ml_platform.inference.request_contract import Field, RequestContract

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

# Columns of text with more different values are checked by rows, if the contract has rules for them.
MAX_DIFFERENT = 2_000
INTERVALS = frozenset({"gt", "ge", "lt", "le"})


class ColumnCheck:
    """Checks and converts Arrow data for one contract.

    Parameters
    ----------
    contract : RequestContract
    """

    def __init__(self, contract: RequestContract) -> None:
        self.contract = contract

    def accepts(self, batch: "pa.RecordBatch") -> bool:
        """Return True if all rows satisfy the contract; False if some do not, or if the columns cannot tell.

        Parameters
        ----------
        batch : RecordBatch of shape (n_rows, n_columns)
            Columns of the contract, by name.
        """
        contract, names = self.contract, batch.schema.names
        entity = contract.entity
        if any(name not in names for name in contract.names) or entity.kind not in {"int", "str"}:
            return False
        if entity.name in names and not _is_valid(entity, batch.column(entity.name), nullable=True):
            return False
        return all(_is_valid(field, batch.column(field.name), nullable=field.nullable) for field in contract.features)

    def frame(self, batch: "pa.RecordBatch") -> "pd.DataFrame":
        """Return accepted rows as a DataFrame with the types of the training rows, as `RequestContract.frame` does."""
        frame: pd.DataFrame = batch.select(list(self.contract.names)).to_pandas()
        return frame.astype({field.name: field.dtype for field in self.contract.features})

    def anomalies(self, batch: "pa.RecordBatch") -> "NDArray[np.float64]":
        """Return `RequestContract.anomaly` of each accepted row; ndarray of shape (n_rows,)."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        contract = self.contract
        outside = np.zeros(batch.num_rows, dtype="int64")
        for name, (least, most) in contract.ranges.items():
            values = batch.column(name).to_numpy(zero_copy_only=False)
            with np.errstate(invalid="ignore"):
                outside += (values < least) | (values > most)
        for name, known in contract.categories.items():
            column = batch.column(name)
            unknown = pc.invert(pc.is_in(column, pa.array(known, column.type)))
            outside += pc.and_(unknown, column.is_valid()).to_numpy(zero_copy_only=False)
        return outside / max(len(contract.ranges) + len(contract.categories), 1)


def _is_valid(field: Field, column: "pa.Array", *, nullable: bool) -> bool:
    """Tell whether all values of a column are certain to satisfy a field."""
    import pyarrow as pa

    types: dict[str, tuple[Any, ...]] = {
        "int": (pa.int64(),),
        "float": (pa.float64(),),
        "bool": (pa.bool_(),),
        "str": (pa.string(), pa.large_string()),
    }
    # An integer or truth column with missing values gets another type in a DataFrame.
    empty = column.null_count and (not nullable or field.kind in {"int", "bool"})
    if column.type not in types.get(field.kind, ()) or empty:
        return False
    checks: dict[str, Callable[[Field, pa.Array], bool]] = {"int": _are_numbers_valid, "float": _are_numbers_valid}
    return checks.get(field.kind, _are_different_valid)(field, column)


def _are_numbers_valid(field: Field, column: "pa.Array") -> bool:
    import numpy as np

    values = column.to_numpy(zero_copy_only=False)
    if field.kind == "float":
        missing = np.isnan(values)
        if missing.any():
            if not field.nullable:
                return False
            values = values[~missing]
    if not len(values):
        return True
    if all(rule.name in INTERVALS for rule in field.rules):
        ends = values.min().item(), values.max().item()
        return all(math.isfinite(end) and field.broken(end) is None for end in ends)
    return _are_different_valid(field, column)


def _are_different_valid(field: Field, column: "pa.Array") -> bool:
    if field.kind == "str" and not field.rules:
        return True
    different = column.unique()
    return len(different) <= MAX_DIFFERENT and all(
        value is None or value != value or field.broken(value) is None for value in different.to_pylist()
    )
