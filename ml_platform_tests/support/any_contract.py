"""Contracts of any types and names, importable by name: the name of the class describes it, and the module makes it."""

import json
from functools import cache
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pandera.pandas as pandera

Utc = Annotated[pd.DatetimeTZDtype, "us", "UTC"]
TYPES: dict[str, Any] = {
    "int": int,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "float": float,
    "float32": np.float32,
    "bool": bool,
    "str": str,
    "string": pd.StringDtype,
    "utc": Utc,
    "uint8": np.uint8,
    "uint64": np.uint64,
    "float16": np.float16,
    "longdouble": np.longdouble,
    "complex": np.complex128,
    "object": object,
    "bytes": bytes,
    "date": pandera.Date,
    "Int64": pd.Int64Dtype,
    "Float64": pd.Float64Dtype,
    "boolean": pd.BooleanDtype,
    "category": pd.CategoricalDtype,
    "naive": np.dtype("datetime64[us]"),
    "nanoseconds": np.dtype("datetime64[ns]"),
    "utc_ns": Annotated[pd.DatetimeTZDtype, "ns", "UTC"],
    "utc_ms": Annotated[pd.DatetimeTZDtype, "ms", "UTC"],
    "berlin": Annotated[pd.DatetimeTZDtype, "us", "Europe/Berlin"],
    "timedelta": np.dtype("timedelta64[ns]"),
    "period": Annotated[pd.PeriodDtype, "D"],
}
FIXED: dict[str, Any] = {"visitor": int, "seen_at": Utc, "pages": int, "seconds": float, "plan": str, "bought": str}


def name_contract(columns: list[tuple[str, str, bool]], *, fixed: dict[str, str] | None = None) -> str:
    """Return the name of a contract: the columns of visits, some with another type, and further columns.

    Parameters
    ----------
    columns : list of tuple
        Name, type and nullability of each further column.
    fixed : dict or None
        Types of columns of visits that differ.
    """
    return "Any_" + json.dumps([columns, fixed or {}]).encode().hex()


@cache
def __getattr__(name: str) -> Any:
    prefix, _, description = name.partition("_")
    if prefix != "Any":
        raise AttributeError(name)
    columns, fixed = json.loads(bytes.fromhex(description))
    types = {**FIXED, **{column: TYPES[key] for column, key in fixed.items()}}
    fields: dict[str, Any] = {"Config": type("Config", (), {"strict": True})}
    for number, (column, key, nullable) in enumerate(columns):
        types[f"x{number}"] = TYPES[key]
        fields[f"x{number}"] = pandera.Field(alias=column, nullable=nullable)
    own = {"__annotations__": types, "__module__": __name__, "__qualname__": name, **fields}
    return type(name, (pandera.DataFrameModel,), own)
