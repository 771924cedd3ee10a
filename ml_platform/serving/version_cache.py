"""A host's local copies of versions: all files that a server needs, verified by digest for every source.

A version's files are listed in ``served.json`` with each file's sha256. The list's own digest is in the database, and
the digest of the model's file is in the verdict. A copy that does not match is never used; it is fetched again.
"""

import hashlib
import json
import logging
import shutil
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from ml_platform.errors import DigestMismatchError, MissingFilesError, ModelError
from ml_platform.inference.served_files import SERVED_LIST
from ml_platform.serving.state import ServedVersion
from ml_platform.storage import atomic_files
from ml_platform.storage.model_files import MODEL_FILE

log = logging.getLogger("ml_platform.serving")

VERSIONS = "versions"
# The platform lists files of one folder only: a name with one of these could lead out of it.
FORBIDDEN = ("/", "\\", "\0")

Source = Callable[[Path], Path]

# Two threads may store the same version: the second must not replace the files that a worker loads.
_replacing = threading.Lock()


def copy_folder(home: Path, served: ServedVersion) -> Path:
    """Return the folder of a version's local copy, below the folder of the model's server.

    Its name contains the list's digest: an erasure of a person's data rewrites the files, which need another folder.
    """
    return home / VERSIONS / f"{served.candidate}-{served.served_digest[:12]}"


def store_version_files(home: Path, served: ServedVersion, sources: Iterable[Source]) -> Path:
    """Store a verified local copy of a version's files, unless there is one; return its folder.

    Parameters
    ----------
    home : Path
        The folder of the model's server.
    served : ServedVersion
    sources : iterable of callable
        Each takes an empty folder and returns a folder with the files, or raises a `ModelError`. The first source
        whose files match their digests is copied.

    Raises
    ------
    MissingFilesError
        No source has matching files; the message has the problem of each source.
    StorageError
        The files could not be written.
    """
    target = copy_folder(home, served)
    problems = []
    if target.exists():
        problem = _find_problem(target, served)
        if not problem:
            return target
        problems.append(f"local copy: {problem}")
    for source in sources:
        problem = _copy_from(source, target, served)
        if not problem:
            return target
        problems.append(problem)
    raise MissingFilesError(
        f"Version {served.version} cannot be served: {'; '.join(problems) or 'no source has its files'}. Restore its "
        "files, or evaluate its candidate again. The server continues with the version that it serves now."
    )


def _copy_from(source: Source, target: Path, served: ServedVersion) -> str:
    """Copy a version's files from a source; return the problem, or an empty text."""
    with atomic_files.raise_storage_errors(target.parent):
        atomic_files.make_folder(target.parent)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        temporary.mkdir()
        try:
            folder = source(temporary / "fetched")
            if problem := _find_problem(folder, served):
                return problem
            whole = temporary / "whole"
            whole.mkdir()
            for name in (SERVED_LIST, *_read_list(folder, served)):
                shutil.copyfile(folder / name, whole / name)
                atomic_files.sync(whole / name)
            atomic_files.sync(whole)
            with _replacing:
                if _find_problem(target, served):
                    shutil.rmtree(target, ignore_errors=True)
                    whole.replace(target)
            atomic_files.sync(target.parent)
        except ModelError as error:
            return str(error)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return _find_problem(target, served)


def verify(folder: Path, served: ServedVersion) -> None:
    """Verify a version's files by their digests.

    Raises
    ------
    DigestMismatchError
        A file is missing or does not match; none of the files may be used.
    """
    if problem := _find_problem(folder, served):
        raise DigestMismatchError(f"The files of version {served.version} do not match their digests: {problem}.")


def _find_problem(folder: Path, served: ServedVersion) -> str:
    """Return the first file that does not match its digest, as a sentence; an empty text if all match."""
    try:
        for name, digest in _read_list(folder, served).items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return f"{folder / name} does not match its sha256 in {SERVED_LIST}"
    except DigestMismatchError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror}"
    return ""


def _read_list(folder: Path, served: ServedVersion) -> Mapping[str, str]:
    """Return the sha256 of each file of a version, from the verified list."""
    text = (folder / SERVED_LIST).read_bytes()
    if hashlib.sha256(text).hexdigest() != served.served_digest:
        raise DigestMismatchError(f"{folder / SERVED_LIST} does not match its sha256 in the database")
    digests: dict[str, str] = json.loads(text)
    if digests.get(MODEL_FILE) != served.model_digest:
        raise DigestMismatchError(f"{folder / SERVED_LIST} has another sha256 of {MODEL_FILE} than the verdict")
    if any(part in name for name in digests for part in FORBIDDEN):
        raise DigestMismatchError(f"{folder / SERVED_LIST} names a file outside its folder")
    return digests


def remove_unused_versions(
    home: Path, kept: Collection[ServedVersion], fetched: Collection[ServedVersion] = ()
) -> list[Path]:
    """Remove the local copies of all versions except `kept`, and the rest of interrupted fetches; return the folders.

    Parameters
    ----------
    home : Path
        The folder of the model's server.
    kept, fetched : collection of ServedVersion
        The versions in use, and those whose files are being fetched at the moment.
    """
    folder = home / VERSIONS
    names = {copy_folder(home, served).name for served in [*kept, *fetched]}
    unfinished = tuple(f".{copy_folder(home, served).name}." for served in fetched)
    found = folder.iterdir() if folder.is_dir() else ()
    unused = [path for path in found if path.name not in names and not path.name.startswith(unfinished)]
    for path in unused:
        shutil.rmtree(path, ignore_errors=True)
        log.info("removed the unused local copy %s", path.name)
    return unused
