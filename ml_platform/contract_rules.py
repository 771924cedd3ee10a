"""The rules for a contract: what a pandera schema may declare, so that every stored row has the declared values.

A type is allowed only if text files, Parquet, Delta and pandas return its values unchanged, with and without missing
ones. Any other declaration is refused when the model is declared, not when its first file arrives.
"""

import re
from typing import Any, Literal

Kind = Literal["integer", "number", "boolean", "text", "time"]

# Of the other types: Delta has no unsigned integers, float16, durations or other time zones, and reads no nanoseconds;
# pandas makes floats of integers, and objects of booleans, with missing values; categories come back as text.
ALLOWED_TYPES = (
    "int (or numpy.int8, int16, int32), float (or numpy.float32), bool, str, and times as "
    'Annotated[pandas.DatetimeTZDtype, "us", "UTC"]'
)
MAX_NAME = 255
FIRST = re.compile(r"[^\W_]")
NOT_IN_NAMES = re.compile(r"""['"`\\]""")
ENTITY_KINDS: tuple[Kind, ...] = ("integer", "text")
LABEL_KINDS: dict[str, tuple[Kind, ...]] = {
    "binary": ("text", "integer", "boolean"),
    "multiclass": ("text", "integer"),
    "regression": ("number", "integer"),
}
# Features of pandera by the attribute that declares them, with the advice for authors.
OF_SCHEMA = {
    "parsers": "Change the values before the file is landed, or in the pipeline.",
    "index": "Make it a column.",
    "dtype": "Give each column its own type.",
    "add_missing_columns": "Land files with every column of the contract.",
    "on_missing_columns": "Land files with every column of the contract.",
    "drop_invalid_rows": "Bad rows are quarantined within quarantine_tolerance.",
}
OF_COLUMN = {
    "regex": "Declare each column by its name.",
    "parsers": "Change the values before the file is landed, or in the pipeline.",
    "drop_invalid_rows": "Bad rows are quarantined within quarantine_tolerance.",
    "on_missing": "Land files with every column of the contract.",
}


def find_contract_problem(schema: Any, *, entity: str, event_time: str, label: str, task: str) -> str | None:
    """Return the first thing in a contract that the platform cannot keep, as a sentence; ``None`` if there is none.

    Parameters
    ----------
    schema : pandera DataFrameSchema
    entity, event_time, label : str
        Columns of the schema.
    task : str
        The task of the model.
    """
    for name, advice in OF_SCHEMA.items():
        if getattr(schema, name, None):
            return f"the contract declares {name}, which is not supported. {advice}"
    return (
        _find_in_names(list(schema.columns))
        or next((problem for column in schema.columns.values() if (problem := _find_in_column(column))), None)
        or _find_in_roles(schema.columns, entity, event_time, label, task)
    )


def _find_in_names(names: list[Any]) -> str | None:
    for name in names:
        text = name if isinstance(name, str) else ""
        allowed = FIRST.match(text) and text.isprintable() and text == text.strip() and len(text) <= MAX_NAME
        if not allowed or NOT_IN_NAMES.search(text):
            return (
                f"column {name!r} must have a name of at most {MAX_NAME} printable characters, the first one a letter "
                "or digit, without quotes, backslashes, or spaces at its end. Use Field(alias=…) for another name. "
                "Names with a leading underscore are the platform's own."
            )
    folded: dict[str, str] = {}
    for name in names:
        if (other := folded.setdefault(name.casefold(), name)) != name:
            return (
                f"columns {other!r} and {name!r} differ only in upper and lower case, which Delta does not distinguish."
            )
    return None


def _find_in_column(column: Any) -> str | None:
    from pandera.api.hypotheses import Hypothesis

    name = column.name
    for feature, advice in OF_COLUMN.items():
        if getattr(column, feature, None):
            return f"column {name!r} declares {feature}, which is not supported. {advice}"
    if not column.required:
        return f"column {name!r} must not be Optional. Make it nullable, and land files with the column."
    if column.default is not None:
        return f"column {name!r} must not have a default. Fill in missing values in the pipeline."
    if any(isinstance(check, Hypothesis) for check in column.checks):
        return f"column {name!r} must not have a hypothesis test, whose result depends on the size of a file."
    kind = find_kind(column)
    if kind is None:
        return f"column {name!r} must have one of the types {ALLOWED_TYPES}. Got {column.dtype} instead."
    if column.nullable and kind in {"integer", "boolean"}:
        advice = "float" if kind == "integer" else 'str with isin=["true", "false"], or float with isin=[0, 1]'
        return (
            f"column {name!r} must not be nullable: with missing values, pandas turns {column.dtype} into another "
            f"type. Declare it as {advice}."
        )
    return None


def find_kind(column: Any) -> Kind | None:
    """Return the kind of a column's type; ``None`` for a type that is not allowed.

    Parameters
    ----------
    column : pandera Column
    """
    import numpy as np
    import pandas as pd

    dtype = column.dtype.type if column.dtype is not None else None
    if isinstance(dtype, pd.StringDtype):
        return "text"
    if isinstance(dtype, pd.DatetimeTZDtype):
        return "time" if (dtype.unit, str(dtype.tz)) == ("us", "UTC") else None
    kinds: dict[str, Kind] = {"i": "integer", "f": "number", "b": "boolean"}
    if not isinstance(dtype, np.dtype) or (dtype.kind == "f" and dtype.itemsize not in {4, 8}):
        return None
    return kinds.get(dtype.kind)


def _find_in_roles(columns: Any, entity: str, event_time: str, label: str, task: str) -> str | None:
    roles = (
        ("entity", entity, ENTITY_KINDS),
        ("event_time", event_time, ("time",)),
        ("label", label, LABEL_KINDS[task]),
    )
    for role, name, kinds in roles:
        kind = find_kind(columns[name])
        if kind not in kinds:
            task_of = f" of the task {task!r}" if role == "label" else ""
            return f"the {role}{task_of} must be {' or '.join(kinds)}. Got {name!r}, which is {kind}, instead."
        if columns[name].nullable:
            advice = " Land a row once its label is known." if role == "label" else ""
            return f"the {role} {name!r} must not be nullable: a row without it cannot be used.{advice}"
    return None
