"""Canonical skops files: the same fit gives the same bytes, in any process.

What skops writes differs at every save: objects are numbered by their address in memory, arrays are named after it,
zip entries carry the time, and a set is in the order of its hashes. None of it says anything of the model.
"""

import json
import zipfile
from pathlib import PurePosixPath
from typing import IO, Any

SCHEMA = "schema.json"
# What cannot be changed in place is the same object wherever it is equal; whether Python shares it is chance.
IMMUTABLE = {"JsonNode", "TypeNode", "FunctionNode"}
EARLIEST = (1980, 1, 1, 0, 0, 0)


def write_canonical(source: IO[bytes], target: IO[bytes]) -> None:
    """Write a skops file again so that equal content has equal bytes; nothing of it is deserialised.

    Objects and files are numbered in the order in which the schema names them, entries stand in that order with one
    time and one mode, and the members of a set are sorted.

    Parameters
    ----------
    source : binary file
        A skops file, canonical or not.
    target : binary file
        Gets one that loads as the same object.

    Raises
    ------
    zipfile.BadZipFile, KeyError, ValueError
        The source is no skops file.
    """
    with zipfile.ZipFile(source) as given, zipfile.ZipFile(target, "w") as written:
        numbers = _Numbers()
        schema = numbers.renumber(_with_sorted_sets(json.loads(given.read(SCHEMA))))
        for old, new in numbers.files.items():
            written.writestr(_entry(new), given.read(old))
        written.writestr(_entry(SCHEMA), json.dumps(schema, separators=(",", ":")))


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, EARLIEST)
    entry.create_system, entry.external_attr = 3, 0o600 << 16  # as on Unix, whatever wrote it
    return entry


class _Numbers:
    """Numbers for objects and names for files, given in the order in which they are met."""

    def __init__(self) -> None:
        self.objects: dict[object, int] = {}
        self.files: dict[str, str] = {}

    def renumber(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.renumber(item) for item in value]
        if not isinstance(value, dict):
            return value
        mine = self._names_of(value) if _is_node(value) else {}
        return {key: mine[key] if key in mine else self.renumber(item) for key, item in value.items()}

    def _names_of(self, node: dict[str, Any]) -> dict[str, Any]:
        names: dict[str, Any] = {}
        if "__id__" in node:
            # From 1: skops takes 0 for no number at all.
            names["__id__"] = self.objects.setdefault(_identity(node), len(self.objects) + 1)
        if isinstance(file := node.get("file"), str):
            number = f"{len(self.files) + 1}{PurePosixPath(file).suffix}"
            names["file"] = self.files.setdefault(file, number)
        return names


def _is_node(value: dict[str, Any]) -> bool:
    # A dict of the model's own may have such keys too, but only with nodes as values.
    return isinstance(value.get("__loader__"), str)


def _identity(node: dict[str, Any]) -> object:
    return _text(node) if node["__loader__"] in IMMUTABLE else node["__id__"]


def _with_sorted_sets(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_sorted_sets(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _with_sorted_sets(item) for key, item in value.items()}
    if _is_node(found) and found["__loader__"] == "SetNode":
        found["content"] = sorted(found["content"], key=_text)
    return found


def _text(value: Any) -> str:
    return json.dumps(_without_numbers(value))


def _without_numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_numbers(item) for item in value]
    if not isinstance(value, dict):
        return value
    drop = {"__id__", "file"} if _is_node(value) else set()
    return {key: _without_numbers(item) for key, item in value.items() if key not in drop}
