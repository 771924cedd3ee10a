"""Canonical skops files: the same fit gives the same bytes, in any process.

skops writes different bytes at every save. It numbers objects, and names the files of arrays, by their address in
memory; zip entries have the time; and sets are in the order of their hashes. None of this belongs to the model.
"""

import json
import zipfile
from pathlib import PurePosixPath
from typing import IO, Any

SCHEMA = "schema.json"
# Equal objects of these kinds count as one object, because it is chance if Python shares an immutable object.
IMMUTABLE = {"JsonNode", "TypeNode", "FunctionNode"}
EARLIEST = (1980, 1, 1, 0, 0, 0)


def write_canonical(source: IO[bytes], target: IO[bytes]) -> None:
    """Rewrite a skops file so that equal content has equal bytes, without deserialising it.

    Objects and files are numbered in the order in which the schema names them. The zip entries have that order, one
    time and one mode, and the members of a set are sorted.

    Parameters
    ----------
    source : binary file
        A skops file, canonical or not.
    target : binary file
        Receives a skops file that loads as an equal object.

    Raises
    ------
    zipfile.BadZipFile, KeyError, ValueError
        The source is not a skops file.
    """
    with zipfile.ZipFile(source) as given, zipfile.ZipFile(target, "w") as written:
        numbers = _Numbers()
        schema = numbers.renumber(_with_sorted_sets(json.loads(given.read(SCHEMA))))
        for old, new in numbers.files.items():
            written.writestr(_entry(new), given.read(old))
        written.writestr(_entry(SCHEMA), json.dumps(schema, separators=(",", ":")))


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, EARLIEST)
    entry.create_system, entry.external_attr = 3, 0o600 << 16  # as on Unix, on any system
    return entry


class _Numbers:
    """The new numbers of objects and names of files, assigned in the order of the schema."""

    def __init__(self) -> None:
        self.objects: dict[object, int] = {}
        self.files: dict[str, str] = {}

    def renumber(self, value: Any) -> Any:
        """Return a part of the schema with new numbers and file names."""
        if isinstance(value, list):
            return [self.renumber(item) for item in value]
        if not isinstance(value, dict):
            return value
        names: dict[str, Any] = {}
        if _is_node(value) and "__id__" in value:
            identity = _dump(value) if value["__loader__"] in IMMUTABLE else value["__id__"]
            # Numbers start at 1: skops takes 0 for no number.
            names["__id__"] = self.objects.setdefault(identity, len(self.objects) + 1)
        if _is_node(value) and isinstance(file := value.get("file"), str):
            names["file"] = self.files.setdefault(file, f"{len(self.files) + 1}{PurePosixPath(file).suffix}")
        return {key: names[key] if key in names else self.renumber(item) for key, item in value.items()}


def _is_node(value: dict[str, Any]) -> bool:
    # A dict of the model may have this key, too, but its values are nodes.
    return isinstance(value.get("__loader__"), str)


def _with_sorted_sets(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_sorted_sets(item) for item in value]
    if not isinstance(value, dict):
        return value
    node = {key: _with_sorted_sets(item) for key, item in value.items()}
    if _is_node(node) and node["__loader__"] == "SetNode":
        node["content"] = sorted(node["content"], key=_dump)
    return node


def _dump(value: Any) -> str:
    return json.dumps(_without_numbers(value))


def _without_numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_numbers(item) for item in value]
    if not isinstance(value, dict):
        return value
    drop = {"__id__", "file"} if _is_node(value) else set()
    return {key: _without_numbers(item) for key, item in value.items() if key not in drop}
