"""What of a version and of its rebuild is the same: bytes, predictions to the bit, figures of the verdict."""

import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_platform.records import Verdict
from ml_platform.stages._skops import write_canonical

EXAMPLES = 5
# Clocks and memory say something of the machine.
INCOMPARABLE = re.compile(r"(_ms|_seconds|_mib|_noise)(\.|$)")
SIZE = "model_size_mb"


def canonical_digest(model_file: Path) -> str:
    """Return the hex sha256 that a model file has once it is written canonically; nothing is deserialised."""
    with model_file.open("rb") as source, tempfile.TemporaryFile() as target:
        write_canonical(source, target)
        target.seek(0)
        return hashlib.file_digest(target, "sha256").hexdigest()


def different_predictions(
    name: str, before: Mapping[str, Sequence[Any]], after: Mapping[str, Sequence[Any]]
) -> list[str]:
    """Say which predictions differ in any bit; at most `EXAMPLES` of them, and how many there are.

    Parameters
    ----------
    name : str
        What was predicted, for the sentences.
    before, after : mapping of str to sequence of length n_rows
        Scores and decisions of the version and of its rebuild, by the same names.
    """
    found = []
    for kind in sorted({*before, *after}):
        old, new = before.get(kind, ()), after.get(kind, ())
        rows = [i for i, pair in enumerate(zip(old, new, strict=False)) if repr(pair[0]) != repr(pair[1])]
        found += [f"{name}, row {i}: {kind} {new[i]!r} instead of {old[i]!r}" for i in rows[:EXAMPLES]]
        if len(rows) > EXAMPLES:
            found.append(f"{name}: {kind} of {len(rows):,} of {len(old):,} rows differ")
        if len(old) != len(new):
            found.append(f"{name}: {kind} of {len(new):,} rows instead of {len(old):,}")
    return found


def figures(document: str) -> dict[str, float]:
    """Return every number that a verdict's document says of the model, bounds too, by the name that MLflow shows."""
    return Verdict.from_document(document).metrics


def comparable(before: Mapping[str, float], after: Mapping[str, float], *, size: bool) -> tuple[list[str], list[str]]:
    """Return the paths of the figures that a rebuild must repeat, and of those that it cannot.

    `size` says whether the version's own bytes are canonical: others have another length at every save.
    """
    paths = sorted({*before, *after})
    skipped = [path for path in paths if INCOMPARABLE.search(path) or (path == SIZE and not size)]
    return [path for path in paths if path not in skipped], skipped


def different_figures(before: Mapping[str, float], after: Mapping[str, float], paths: Sequence[str]) -> list[str]:
    """Say which of some figures are not equal, or stand on one side only."""
    old, new = ({path: repr(side[path]) for path in paths if path in side} for side in (before, after))
    return [
        f"{path} {new.get(path, 'none')} instead of {old.get(path, 'none')}"
        for path in paths
        if old.get(path) != new.get(path)
    ]
