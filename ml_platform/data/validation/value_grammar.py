"""The grammar of values in text files, the only one: CSV and JSON Lines give each cell's text, this module its value.

A cell has a value of its column's type, or none: nothing is guessed, rounded or trimmed. An integer is decimal digits
with an optional ``-``; leading zeros are allowed. A number may also have a ``+``, a fraction and an exponent, or be
``nan`` or ``inf``. A time is ISO 8601, with an offset or ``Z`` if the contract's column has a zone, and without if it
has none.
"""

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from ml_platform.data.validation.text_patterns import (
    BOOLEAN,
    DATE,
    DECIMAL,
    FRACTIONS,
    INTEGER,
    NOT_FINITE,
    NUMBER,
    OFFSET,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Maximum number of characters of a value that a violation quotes.
QUOTED = 200


def describe_type(kind: pa.DataType) -> str:
    """Return a type of Arrow as a violation names it, such as ``an integer of 64 bits``."""
    if types.is_integer(kind):
        sign = "" if types.is_signed_integer(kind) else " without a sign"
        return f"an integer of {kind.bit_width} bits{sign}"
    if types.is_timestamp(kind):
        return f"a time {'without' if kind.tz is None else 'with'} an offset, of unit {kind.unit}"
    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    if types.is_floating(kind):
        return "a number"
    return {"bool": "true or false", "date32[day]": "a date"}.get(str(kind), str(kind))


def quote(text: str) -> str:
    """Return a text as a violation shows it: in quotes, without control characters; if it is long, its beginning."""
    return repr(text) if len(text) <= QUOTED else f"{text[:QUOTED]!r} and more, {len(text):,} characters in all"


def read_values(texts: pa.Array, kind: pa.DataType) -> "tuple[pa.Array, NDArray[np.bool_]]":
    """Return the values that texts have in a type.

    Parameters
    ----------
    texts : pyarrow Array of strings of length n
        Cells of one column; null is a missing value.
    kind : pyarrow DataType
        The type of the contract's column.

    Returns
    -------
    values : pyarrow Array of length n
        Values of the type; null where the text is missing or has no value.
    unread : ndarray of shape (n,)
        True for texts without a value of this type.

    Raises
    ------
    pyarrow.ArrowException
        Text cannot have values of this type.
    """
    if types.is_string(kind):
        return texts, np.zeros(len(texts), dtype=bool)
    present = texts.is_valid().to_numpy(zero_copy_only=False)
    pattern = _find_pattern(kind)
    if pattern is not None:
        matches = pl.Series(pl.from_arrow(texts)).str.contains(f"^(?:{pattern})$")
        if not matches.all():
            texts = pc.if_else(matches.to_arrow(), texts, pa.scalar(None, pa.string()))
    values = _cast(texts, kind)
    if types.is_floating(kind):
        # 1e400 is beyond the type's range: only the words mean infinity.
        beyond = pc.and_(pc.is_inf(values), pc.match_substring_regex(texts, "[0-9]"))
        if pc.any(beyond).as_py():
            values = pc.if_else(beyond, pa.scalar(None, kind), values)
    return values, present & ~values.is_valid().to_numpy(zero_copy_only=False)


def _find_pattern(kind: pa.DataType) -> str | None:
    """Return the regular expression of a type's texts; None if Arrow's own conversion is the rule."""
    if types.is_integer(kind):
        return INTEGER
    if types.is_floating(kind):
        return f"{NUMBER}|{NOT_FINITE}"
    if types.is_decimal(kind):
        return DECIMAL
    if types.is_boolean(kind):
        return BOOLEAN
    if types.is_date(kind):
        return DATE
    if not types.is_timestamp(kind):
        return None
    clock = f"[0-9]{{2}}(?::[0-9]{{2}}(?::[0-9]{{2}}{FRACTIONS[kind.unit]})?)?"
    return f"{DATE}(?:[T ]{clock})?" if kind.tz is None else f"{DATE}[T ]{clock}{OFFSET}"


def _cast(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Convert texts of the right form; those without a value, such as the 30th of February, become null."""
    try:
        return pc.cast(texts, kind)
    except pa.ArrowInvalid:
        # Arrow names only the first: few texts have no value, so halves are tried until they are found.
        if len(texts) == 1:
            return pa.nulls(1, kind)
        half = len(texts) // 2
        return pa.concat_arrays([_cast(texts[:half], kind), _cast(texts[half:], kind)])
