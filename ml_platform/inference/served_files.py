"""The list of the files that a server needs of a version; the list's digest verifies all of them.

The list is ``served.json``, ``{file name: sha256}`` as canonical JSON. Its own sha256 is recorded in the database.
"""

from collections.abc import Sequence
from pathlib import Path

from ml_platform.records.canonical import canonical_json, sha256_text
from ml_platform.storage import atomic_files
from ml_platform.storage.model_files import file_digest

CONTRACT_FILE = "request_contract.json"
SERVED_LIST = "served.json"


def list_files(folder: Path, names: Sequence[str]) -> tuple[str, str]:
    """Return the text of the list of some files, and the text's hex sha256; nothing is written.

    Raises
    ------
    OSError
        A file is missing or cannot be read.
    """
    text = canonical_json({name: file_digest(folder / name) for name in names})
    return text, sha256_text(text)


def write_list(folder: Path, names: Sequence[str]) -> str:
    """Write the list of some files into their folder, and return the list's hex sha256.

    Raises
    ------
    StorageError
        The disk is full, read-only or broken.
    """
    text, digest = list_files(folder, names)
    atomic_files.write(folder / SERVED_LIST, text.encode())
    return digest
