"""Time zones of Parquet columns: names that mean UTC become the contract's, names that no library knows are refused.

Writers call UTC ``Z``, ``UTC+0`` or ``+00:00``. Arrow accepts any text as a zone; Polars ends with a panic and pandas
with an error when it is not in the time zone database.
"""

import re
from typing import TYPE_CHECKING
from zoneinfo import available_timezones

from ml_platform.errors import UnreadableFileError, shorten

if TYPE_CHECKING:
    import pyarrow as pa

# The names of the time zone database that are links to UTC, ISO 8601's, and offsets of zero.
UTC_NAME = re.compile(
    r"(Etc/)?(UTC|UCT|Zulu|Universal|GMT|Greenwich|GMT0)|Z|((Etc/)?(UTC|GMT))?[+-]00?(:?00)?", re.IGNORECASE
)
OFFSET = re.compile(r"[+-](0[0-9]|1[0-4]):[0-5][0-9]")


def use_known_zones(schema: "pa.Schema", contract: "pa.Schema") -> "pa.Schema":
    """Return a file's schema with the contract's name of UTC in place of other names of UTC.

    Parameters
    ----------
    schema, contract : pyarrow Schema
        The file's and the contract's; columns that only one of them has stay unchanged.

    Raises
    ------
    UnreadableFileError
        A column's time zone, also one inside a nested type, does not exist.
    """
    import pyarrow as pa
    import pyarrow.types as types

    fields = []
    for field in schema:
        known = contract.field(field.name).type if field.name in contract.names else None
        wanted = known.tz if known is not None and types.is_timestamp(known) else None
        if types.is_timestamp(field.type) and field.type.tz and UTC_NAME.fullmatch(field.type.tz):
            utc = wanted if wanted and UTC_NAME.fullmatch(wanted) else "UTC"
            fields.append(field.with_type(pa.timestamp(field.type.unit, tz=utc)))
            continue
        if unknown := _find_unknown_zone(field.type):
            raise UnreadableFileError(f"column '{shorten(field.name)}' has the unknown time zone '{shorten(unknown)}'")
        fields.append(field)
    return pa.schema(fields)


def _find_unknown_zone(kind: "pa.DataType") -> str | None:
    import pyarrow.types as types

    if types.is_timestamp(kind):
        known = not kind.tz or kind.tz in available_timezones() or OFFSET.fullmatch(kind.tz)
        return None if known else str(kind.tz)
    parts = [] if types.is_dictionary(kind) else map(kind.field, range(kind.num_fields))
    inner = [kind.value_type] if types.is_dictionary(kind) else [part.type for part in parts]
    return next((zone for zone in map(_find_unknown_zone, inner) if zone), None)
