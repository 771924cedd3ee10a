"""The kept copies of a host: every file that a server needs of a version, held against digests wherever it is from.

A version's files are named in ``served.json`` with the sha256 of each; the list's own digest is in the database, and
the model's file is that of the verdict. A copy that does not fit is never used, and is fetched again.
"""

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from ml_platform import durable
from ml_platform.errors import DigestMismatchError, ModelError
from ml_platform.predictor import MODEL_FILE
from ml_platform.serving.state import ServedVersion
from ml_platform.stages.served import SERVED_LIST

log = logging.getLogger("ml_platform.serving")

VERSIONS = "versions"
# A name that leads out of its folder, or into one below, is no file that the platform lists.
FORBIDDEN = ("/", "\\", "\0")

Source = Callable[[Path], Path]


def copy_folder(home: Path, served: ServedVersion) -> Path:
    """Return where a version's files stand below the folder of a model's server.

    The list's digest is part of the name: files that were written again, because somebody was forgotten, are others.
    """
    return home / VERSIONS / f"{served.candidate}-{served.served_digest[:12]}"


def keep(home: Path, served: ServedVersion, sources: Iterable[Source]) -> Path:
    """Have a version's files here, verified; return their folder.

    Parameters
    ----------
    home : Path
        The folder of a model's server.
    served : ServedVersion
    sources : iterable of callable
        Each takes an empty folder and returns a folder in which the files stand, or raises a `ModelError`. The first
        whose files are right is taken.

    Raises
    ------
    DigestMismatchError
        No source has the right files; the message says what each had.
    StorageError
        The disk does not take them.
    """
    target = copy_folder(home, served)
    problems = [f"the kept copy: {_problem(target, served)}"] if target.exists() else []
    if target.exists() and not _problem(target, served):
        return target
    for source in sources:
        problem = _take(source, target, served)
        if not problem:
            return target
        problems.append(problem)
    raise DigestMismatchError(
        f"Version {served.version} cannot be served: {'; '.join(problems) or 'its files are nowhere'}. Restore its "
        "files, or judge its candidate again. What was served before goes on."
    )


def _take(source: Source, target: Path, served: ServedVersion) -> str:
    """Copy a version's files from a source; return why not, or an empty text."""
    with durable.storing_in(target.parent):
        durable.make_folder(target.parent)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        temporary.mkdir()
        try:
            found = source(temporary / "fetched")
            if problem := _problem(found, served):
                return problem
            _place(found, temporary / "whole", target, served)
        except ModelError as error:
            return str(error)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return _problem(target, served)


def _place(found: Path, whole: Path, target: Path, served: ServedVersion) -> None:
    whole.mkdir()
    for name in (SERVED_LIST, *_listed(found, served)):
        shutil.copyfile(found / name, whole / name)
        durable.sync(whole / name)
    durable.sync(whole)
    shutil.rmtree(target, ignore_errors=True)
    whole.replace(target)
    durable.sync(target.parent)


def verify(folder: Path, served: ServedVersion) -> None:
    """Hold a version's files against their digests.

    Raises
    ------
    DigestMismatchError
        One of them is missing or is another; nothing of them may be used.
    """
    if problem := _problem(folder, served):
        raise DigestMismatchError(f"The files of version {served.version} are not what was judged: {problem}.")


def _problem(folder: Path, served: ServedVersion) -> str:
    try:
        listed = _listed(folder, served)
        for name, digest in listed.items():
            if _digest(folder / name) != digest:
                return f"{folder / name} is not the file that was judged"
    except DigestMismatchError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror}"
    return ""


def _listed(folder: Path, served: ServedVersion) -> Mapping[str, str]:
    """Return the sha256 of every file of a version, as the verified list says."""
    text = (folder / SERVED_LIST).read_bytes()
    if hashlib.sha256(text).hexdigest() != served.served_digest:
        raise DigestMismatchError(f"{folder / SERVED_LIST} is not the list that was judged")
    listed: dict[str, str] = json.loads(text)
    if listed.get(MODEL_FILE) != served.model_digest:
        raise DigestMismatchError(f"{folder / SERVED_LIST} names another model than the verdict")
    if any(part in name for name in listed for part in FORBIDDEN):
        raise DigestMismatchError(f"{folder / SERVED_LIST} names a file outside its folder")
    return listed


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tidy(home: Path, kept: Collection[ServedVersion]) -> list[Path]:
    """Remove the copies that nothing may be served from any more; return what was removed."""
    folder = home / VERSIONS
    names = {copy_folder(home, served).name for served in kept}
    gone = [path for path in folder.iterdir() if path.name not in names] if folder.is_dir() else []
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
        log.info("removed the kept copy %s", path.name)
    return gone
