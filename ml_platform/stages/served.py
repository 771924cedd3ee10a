"""The files that a server needs of a version, as one list: whoever has the list's digest can tell all of them.

The list is ``served.json``, ``{file name: sha256}`` as canonical JSON; its own sha256 stands in the database.
"""

from collections.abc import Sequence
from pathlib import Path

from ml_platform import durable
from ml_platform.predictor import file_digest
from ml_platform.records import canonical_json, sha256_text

CONTRACT_FILE = "request_contract.json"
SERVED_LIST = "served.json"


def list_files(folder: Path, names: Sequence[str]) -> tuple[str, str]:
    """Return the list of some files as text, and its hex sha256; nothing is written.

    Raises
    ------
    OSError
        One of them is not there.
    """
    text = canonical_json({name: file_digest(folder / name) for name in names})
    return text, sha256_text(text)


def write_list(folder: Path, names: Sequence[str]) -> str:
    """Write the list of some files beside them; return its hex sha256.

    Raises
    ------
    StorageError
        The disk is full, read-only or broken.
    """
    text, digest = list_files(folder, names)
    durable.write(folder / SERVED_LIST, text.encode())
    return digest
