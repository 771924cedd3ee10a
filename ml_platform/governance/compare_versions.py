"""Comparison of a version with its rebuild: bytes, predictions to the bit, and measurements of the verdict."""

import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_platform.records.verdict import Verdict
from ml_platform.training.canonical_skops import write_canonical

EXAMPLES = 5
# Measurements of time and memory depend on the machine.
INCOMPARABLE = re.compile(r"(_ms|_seconds|_mib|_noise)(\.|$)")
SIZE = "model_size_mb"


def canonical_digest(model_file: Path) -> str:
    """Return the hex sha256 of a model file's canonical form; nothing is deserialised."""
    with model_file.open("rb") as source, tempfile.TemporaryFile() as target:
        write_canonical(source, target)
        target.seek(0)
        return hashlib.file_digest(target, "sha256").hexdigest()


def different_predictions(
    name: str, before: Mapping[str, Sequence[Any]], after: Mapping[str, Sequence[Any]]
) -> list[str]:
    """Describe the predictions that differ in any bit: the first `EXAMPLES` of each kind, and their number.

    Parameters
    ----------
    name : str
        Name of the predicted rows, for the sentences.
    before, after : mapping of str to sequence of length n_rows
        Scores and decisions of the version and of its rebuild, by the same names.

    Returns
    -------
    list of str
        Sentences; empty if all predictions are identical.
    """
    differences = []
    for kind in sorted({*before, *after}):
        old, new = before.get(kind, ()), after.get(kind, ())
        rows = [i for i, pair in enumerate(zip(old, new, strict=False)) if repr(pair[0]) != repr(pair[1])]
        differences += [f"{name}, row {i}: {kind} {new[i]!r} instead of {old[i]!r}" for i in rows[:EXAMPLES]]
        if len(rows) > EXAMPLES:
            differences.append(f"{name}: {kind} of {len(rows):,} of {len(old):,} rows differ")
        if len(old) != len(new):
            differences.append(f"{name}: {kind} of {len(new):,} rows instead of {len(old):,}")
    return differences


def measurements(document: str) -> dict[str, float]:
    """Return all measurements in a verdict's document, bounds too, by their names in MLflow."""
    return Verdict.from_document(document).metrics


def comparable(before: Mapping[str, float], after: Mapping[str, float], *, size: bool) -> tuple[list[str], list[str]]:
    """Return the names of the measurements that a rebuild must repeat, and of those that it cannot.

    `size` is True if the version's own bytes are canonical: other files have another size at each save.
    """
    paths = sorted({*before, *after})
    skipped = [path for path in paths if INCOMPARABLE.search(path) or (path == SIZE and not size)]
    return [path for path in paths if path not in skipped], skipped


def different_measurements(before: Mapping[str, float], after: Mapping[str, float], paths: Sequence[str]) -> list[str]:
    """Describe the measurements among `paths` that differ or are missing on one side, as sentences."""
    old, new = ({path: repr(side[path]) for path in paths if path in side} for side in (before, after))
    return [
        f"{path} {new.get(path, 'none')} instead of {old.get(path, 'none')}"
        for path in paths
        if old.get(path) != new.get(path)
    ]
