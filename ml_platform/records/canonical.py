"""One canonical form of time, JSON and records, so that equal records have equal digests.

A digest covers a schema version and the fields of a record that differ from their defaults. Adding a field with a
default therefore leaves existing digests unchanged. If a default or the meaning of a field changes, increase the schema
version of its record.
"""

import hashlib
import json
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

SCHEMA = "schema"


def now() -> datetime:
    """Return the current time, timezone-aware in UTC."""
    return datetime.now(UTC)


def canonical_json(value: Any) -> str:
    """Return a value as JSON, equal text for equal values: sorted keys, no spaces.

    Raises
    ------
    ValueError
        The value holds NaN or infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def sha256_text(text: str) -> str:
    """Return the hex sha256 of a text, encoded in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def versioned(schema: int, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a document with its schema version."""
    return {SCHEMA: schema, **fields}


def drop_defaults(value: Any) -> Any:
    """Return a dataclass as a dictionary of the fields that differ from their defaults; also within lists and dicts."""
    if is_dataclass(value) and not isinstance(value, type):
        kept = {}
        for field in fields(value):
            one = getattr(value, field.name)
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            # True equals 1 and 1.0, but their JSON differs.
            if default is MISSING or type(one) is not type(default) or one != default:
                kept[field.name] = drop_defaults(one)
        return kept
    if isinstance(value, list | tuple):
        return [drop_defaults(one) for one in value]
    if isinstance(value, dict):
        return {key: drop_defaults(one) for key, one in value.items()}
    return value
